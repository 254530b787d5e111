"""Verified copies of a store's files on this machine: addressed by content, shared by processes, limited in size.

::

    <cache>/blobs/<aa>/<sha256>                     a file that was verified when it came
    <cache>/{models,voices}/<name>/<id>-<contents>/ a version's files: hard links to blobs where there are such
    <cache>/tmp/<sha256>.part                       what has come so far of a file; the next attempt goes on from there
    <cache>/locks/<sha256>, <name>-<id>-<contents>  who is at work on a file; which folders are in use, and since when

A lock is the operating system's (``flock``), so a process that dies holds none. A folder is in use from the moment
it is handed out until its process ends. When the cache grows beyond its limit, the folders that nobody uses go, those
used longest ago first, and then the files that no folder holds. What is in use is kept even beyond the limit.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.addresses import why_no_path
from shared.container import user_advice
from shared.errors import CorruptObjectError, StoreError, UserError
from shared.manifests import KINDS, FileEntry
from shared.store import Digest, Progress, Store, counted_on, digest_file

DEFAULT_LIMIT = "20GB"

#: What to do where the cache cannot be written.
CACHE_REMEDY = "make room there, check the permissions, or set VITS_CACHE to another folder"

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_BINARY_UNITS = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}

#: The locks by which this process uses folders, as open file descriptors, until it ends.
_in_use: dict[Path, int] = {}
_in_use_lock = threading.Lock()


def default_cache() -> Path:
    """``$VITS_CACHE``, or ``~/.cache/vits``.

    Raises:
        UserError: It is an address.
    """
    text = os.environ.get("VITS_CACHE") or "~/.cache/vits"
    if why := why_no_path(text):
        raise UserError(f"VITS_CACHE cannot be used: {why}. Addresses are for VITS_STORE")
    return Path(text).expanduser()


def default_limit() -> int:
    """``$VITS_CACHE_LIMIT`` in bytes, or 20 GB.

    Raises:
        UserError: It is no size.
    """
    text = os.environ.get("VITS_CACHE_LIMIT") or DEFAULT_LIMIT
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([kmgt]i?|)b?", text.strip().lower())
    if not match:
        raise UserError(
            f"VITS_CACHE_LIMIT is {text!r}: give a size such as 20GB, 512MiB or a number of bytes"
        )
    return round(float(match[1]) * (_UNITS | _BINARY_UNITS)[match[2]])


def verify(entry: FileEntry, digest: Digest, where: str) -> None:
    """Compare a file with its entry in the manifest.

    Raises:
        CorruptObjectError: They differ.
    """
    if digest != (entry.bytes, entry.sha256):
        raise CorruptObjectError(
            f"{where} does not match its manifest: {digest.bytes} bytes with sha256 {digest.sha256}, where "
            f"{entry.bytes} bytes with sha256 {entry.sha256} are listed. "
            "Publish it again, or use another version or checkpoint"
        )


class Cache:
    """The cache in one folder.

    Attributes:
        folder: Where it is.
        limit: How many bytes it is cut down to; by default what ``VITS_CACHE_LIMIT`` says when it is needed.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder = folder
        self.limit = limit

    def provide(
        self,
        place: str,
        files: tuple[FileEntry, ...],
        store: Store,
        prefix: str,
        progress: Progress | None = None,
    ) -> Path:
        """A folder with files of a store, every one of them verified just now.

        Args:
            place: The folder's path within the cache.
            files: What it is to hold.
            store: Where the files come from, unless they are here already.
            prefix: The folder in the store that they lie in.
            progress: Called with the bytes verified so far and the bytes in all.

        Raises:
            CorruptObjectError: A file of the store does not match its entry.
            NotFoundError: The store does not have a file.
            StoreError: The store failed, or the cache cannot be written.
        """
        folder = self.folder / place
        total, done = sum(entry.bytes for entry in files), 0
        try:
            self._use(folder)
            self._shrink(sum(entry.bytes for entry in files if not self._has(folder / entry.path, entry)))
            for entry in files:
                within = counted_on(progress, done, total)
                self._provide(entry, folder / entry.path, store, f"{prefix}/{entry.path}", within)
                done += entry.bytes
                if progress:
                    progress(done, total)
        except OSError as error:
            raise StoreError(
                f"{folder} cannot be provided with {prefix} of {store.url}: {error.strerror or error}. Make room "
                f"there ({total:,} bytes), check the permissions, or set VITS_CACHE to another folder"
                f"{user_advice(str(error))}"
            ) from error
        return folder

    def forget(self, entry: FileEntry) -> None:
        """Remove a file from the cache, wherever it lies there, as a link or as a copy.

        Who has it open keeps it until then.

        Raises:
            OSError: It cannot be removed.
        """
        (self.folder / "tmp" / f"{entry.sha256}.part").unlink(missing_ok=True)
        for path in [path for path in self._files() if _is_sound(path, entry)]:
            path.unlink(missing_ok=True)

    # ------------------------------------------------------------------ files

    def _provide(
        self, entry: FileEntry, target: Path, store: Store, path: str, progress: Progress | None
    ) -> None:
        """Make sure that a file is in its place and sound."""
        if _is_sound(target, entry):
            return
        with self._locked(entry.sha256):
            blob = self._blob(entry.sha256)
            if not _is_sound(blob, entry):
                try:
                    self._fetch(entry, blob, store, path, progress)
                except OSError as error:
                    if error.errno != errno.ENOSPC or not self._shrink(None):
                        raise
                    self._fetch(entry, blob, store, path, progress)
            self._place(blob, target)

    def _fetch(
        self, entry: FileEntry, blob: Path, store: Store, path: str, progress: Progress | None
    ) -> None:
        part = self.folder / "tmp" / f"{entry.sha256}.part"
        resumed = part.exists()
        digest = store.resume_download(path, part, progress=progress)
        if resumed and digest != (entry.bytes, entry.sha256):
            part.unlink()  # a crash of the machine may have left anything in it
            digest = store.resume_download(path, part, progress=progress)
        try:
            verify(entry, digest, store.address(path))
        except CorruptObjectError:
            part.unlink()
            raise
        part.chmod(0o444)
        blob.parent.mkdir(parents=True, exist_ok=True)
        part.replace(blob)

    def _place(self, blob: Path, target: Path) -> None:
        """Put a file of the cache in its place in a folder, as a hard link where there are such."""
        part = self.folder / "tmp" / secrets.token_hex(16)
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            try:
                os.link(blob, part)
            except OSError:
                shutil.copyfile(blob, part)
            target.parent.mkdir(parents=True, exist_ok=True)
            part.replace(target)
        finally:
            # Renaming onto another link to the same file does nothing, and leaves this one.
            part.unlink(missing_ok=True)

    def _blob(self, sha256: str) -> Path:
        return self.folder / "blobs" / sha256[:2] / sha256

    def _has(self, target: Path, entry: FileEntry) -> bool:
        return target.exists() or self._blob(entry.sha256).exists()

    # ------------------------------------------------------------------ locks

    def _lock_path(self, name: str) -> Path:
        path = self.folder / "locks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with self._lock_path(name).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _locked_if_free(self, name: str) -> Iterator[bool]:
        with self._lock_path(name).open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def _use(self, folder: Path) -> None:
        """Keep a folder from being removed for as long as this process lives."""
        with _in_use_lock:
            if folder not in _in_use:
                file = os.open(self._lock_path(self._use_name(folder)), os.O_RDWR | os.O_CREAT, 0o666)
                fcntl.flock(file, fcntl.LOCK_SH)
                _in_use[folder] = file
            os.utime(self._lock_path(self._use_name(folder)))

    def _use_name(self, folder: Path) -> str:
        return folder.relative_to(self.folder).as_posix().replace("/", "~")

    # ------------------------------------------------------------------ size

    def _shrink(self, incoming: int | None) -> bool:
        """Make room for some bytes within the limit, or as much as can be made; whether anything was removed."""
        limit = default_limit() if self.limit is None else self.limit
        budget = 0 if incoming is None else limit - incoming
        before = self._size()
        if before <= budget:
            return False
        with self._locked("shrink"):
            folders = {path for kind in KINDS for path in self.folder.glob(f"{kind}/*/*") if path.is_dir()}
            for folder in sorted(folders, key=self._last_use):
                if self._size() <= budget:
                    break
                with self._locked_if_free(self._use_name(folder)) as free:
                    if free:
                        shutil.rmtree(folder, ignore_errors=True)
                        self._remove_loose_files()
            if self._size() > budget:
                self._remove_loose_files()
        return self._size() < before

    def _remove_loose_files(self) -> None:
        """Remove blobs that no folder links to, and unfinished files that nobody is at work on."""
        for path in [*self.folder.glob("blobs/*/*"), *self.folder.glob("tmp/*.part")]:
            with self._locked_if_free(path.name.removesuffix(".part")) as free:
                if free and path.exists() and path.stat().st_nlink == 1:
                    path.unlink(missing_ok=True)

    def _last_use(self, folder: Path) -> float:
        return self._lock_path(self._use_name(folder)).stat().st_mtime

    def _files(self) -> Iterator[Path]:
        for top in ("blobs", "tmp", *KINDS):
            for root, _, names in os.walk(self.folder / top):
                yield from (Path(root, name) for name in names)

    def _size(self) -> int:
        """The bytes that the cache takes: a file with many links counts once."""
        sizes = {}
        for path in self._files():
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            sizes[status.st_ino] = status.st_size
        return sum(sizes.values())


def _is_sound(path: Path, entry: FileEntry) -> bool:
    try:
        return path.stat().st_size == entry.bytes and digest_file(path).sha256 == entry.sha256
    except FileNotFoundError:
        return False
