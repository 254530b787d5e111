"""One object store behind one URL: a local folder, S3, Google Cloud Storage, Azure, or memory.

Only what every back end does alike is offered: read, overwrite, create-if-absent, list, delete, and files of
any size in and out. Everything that must be atomic is built on create-if-absent of one small object.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, Self
from urllib.parse import unquote

import obstore
from obstore.exceptions import AlreadyExistsError as ObjectExistsError
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, MemoryStore, from_url

from shared.addresses import mistyped
from shared.aws_profile import profile_credentials
from shared.container import mount_advice, user_advice
from shared.errors import AlreadyExistsError, NotFoundError, StoreError, UserError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

DEFAULT_URL = "file://./store"
#: Files move in pieces of this many bytes; a smaller file is sent in one request.
CHUNK_BYTES = 8 << 20
#: Pieces of one file in flight at once, so at most 32 MiB of it in memory.
CONCURRENT_CHUNKS = 4
#: A request that fails by the service's or the network's fault is sent again for this long, with growing pauses of
#: random length, so that many clients do not come back at once.
PATIENCE = timedelta(minutes=3)
#: The first of these pauses at most, and the longest, in seconds.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 15.0
#: How long a request may take in all: the pieces that are in flight at once get through at 60 kB/s.
REQUEST_TIMEOUT = timedelta(minutes=10)
#: How long a server may say nothing to a request that asks for something, or to `Store.create`.
READ_TIMEOUT = timedelta(minutes=1)
#: How long a server may take to accept a connection.
CONNECT_TIMEOUT = timedelta(seconds=10)

CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role; AWS_ENDPOINT_URL for your own server",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or the machine's service account",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or a managed identity",
}

#: Where a client looks for credentials last, when it was given none: the metadata service of a machine in a cloud.
_METADATA = re.compile(r" https?://[^/ ]+/(latest/(api|meta-data)|computeMetadata|metadata/identity)/")

#: Called with the bytes done so far and the bytes in all.
Progress = Callable[[int, int], None]


def counted_on(progress: Progress | None, done: int, total: int) -> Progress | None:
    """A progress for one file of several, which counts on from the files before it."""
    return progress and (lambda within, _: progress(done + within, total))


class Digest(NamedTuple):
    """The size and SHA-256 (64 hex digits) of some bytes."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing: its path within the store, its size in bytes, its last change."""

    path: str
    size: int
    modified: datetime


def default_store_url() -> str:
    """``$VITS_STORE``, or a folder ``store`` in the working directory."""
    return os.environ.get("VITS_STORE") or DEFAULT_URL


def digest_file(path: Path) -> Digest:
    """Size and SHA-256 of a local file.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return Digest(file.tell(), sha256)


class Store:
    """An object store. Open one with `Store.open`; safe to share between threads.

    Attributes:
        url: Its address, absolute and without credentials.
        root: Its folder when it is a local one, else None.
        patience: How long a request is tried again.
    """

    def __init__(
        self,
        client: ObjectStore | None,
        url: str,
        root: Path | None = None,
        patience: timedelta = PATIENCE,
        sender: ObjectStore | None = None,
    ) -> None:
        self._opened = client
        self._sender = sender
        self.url = url
        self.root = root
        self.patience = patience

    @classmethod
    def open(cls, url: str, *, patience: timedelta = PATIENCE) -> Self:
        """Open the store at a URL. Nothing is sent yet; a local folder is made by the first write.

        Args:
            url: ``file:///absolute``, ``file://./relative`` to the working directory or a plain path;
                ``s3://bucket/prefix``, ``gs://bucket/prefix``, ``az://container/prefix`` with the provider's
                usual credentials; ``memory://name``, shared within the process, or ``memory://``, private.
            patience: How long a request to a remote store is tried again.

        Raises:
            UserError: The URL is not of one of these forms, or carries a secret.
            StoreError: A file is where the folder should be, or the provider's settings are incomplete.
        """
        _check_not_mistyped(url)
        scheme, separator, rest = url.partition("://")
        if not separator or scheme == "file":
            root = _local_root(url, unquote(rest) if separator else url)
            return cls(_open_folder(root) if root.exists() else None, root.as_uri(), root)
        if scheme == "memory":
            return cls(_open_memory(rest), url)
        if scheme in CREDENTIALS and rest:
            _check_no_secret(scheme, url)
            if rest.startswith("/"):
                raise UserError(f"{url!r} names no bucket: write {scheme}://bucket{rest.rstrip('/')}")
            client, sender = _open_remote(scheme, url, patience)
            return cls(client, url.rstrip("/"), patience=patience, sender=sender)
        raise UserError(
            f"{url!r} is not the address of a store: use a folder (file://./store), s3://bucket/prefix, "
            "gs://bucket/prefix, az://container/prefix or memory://name"
        )

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    @property
    def _client(self) -> ObjectStore:
        """What reads. A folder that nobody has made yet holds nothing, and reading does not make it."""
        if self._opened is None and self.root and self.root.exists():
            self._opened = _open_folder(self.root)
        return self._opened or MemoryStore()

    def _writer(self) -> ObjectStore:
        """What writes.

        Raises:
            StoreError: The folder cannot be made.
        """
        if self._opened is None and self.root:
            self._opened = _open_folder(self.root)
        return self._client

    def lack(self, what: str) -> str:
        """Why nothing of a kind was found, as a sentence without its full stop."""
        advice = mount_advice(str(self.root).lstrip("/")) if self.root else ""
        if advice:
            advice = f".{advice}, or name another store with VITS_STORE"
        if self.root and not self.root.exists():
            return f"{self.url} holds no {what}: there is no folder {self.root} yet{advice}"
        return f"{self.url} holds no {what} yet{advice}"

    def address(self, path: str) -> str:
        """An object's full address, for messages."""
        return f"{self.url}/{path}"

    def read(self, path: str) -> bytes:
        """A small object's bytes.

        Raises:
            NotFoundError: There is none.
            StoreError: The store failed.
        """
        with self._translated("read", path):
            return bytes(obstore.get(self._client, path).bytes())

    def exists(self, path: str) -> bool:
        """Whether an object is there.

        Raises:
            StoreError: The store failed.
        """
        try:
            self.size(path)
        except NotFoundError:
            return False
        return True

    def size(self, path: str) -> int:
        """An object's size in bytes.

        Raises:
            NotFoundError: There is none.
            StoreError: The store failed.
        """
        with self._translated("look up", path):
            return obstore.head(self._client, path)["size"]

    def write(self, path: str, data: bytes) -> None:
        """Write an object, replacing one that is there. Readers see the old bytes or the new, never both.

        Raises:
            StoreError: The store failed.
        """
        with self._translated("write", path):
            obstore.put(self._sender or self._writer(), path, data, use_multipart=False)

    def create(self, path: str, data: bytes, *, nonce: str | None = None) -> None:
        """Create a small object in one request unless it exists. Of many writers, exactly one succeeds.

        Args:
            path: Where.
            data: Its bytes.
            nonce: A string that no other writer's data contains. With it a lost reply does no harm: an
                object that turns out to hold exactly these bytes is this writer's own, and all is well.

        Raises:
            AlreadyExistsError: The object is there.
            StoreError: The store failed.
        """
        if nonce is not None and nonce.encode() not in data:
            raise ValueError("the data do not contain the nonce")
        deadline, pause = time.monotonic() + self.patience.total_seconds(), FIRST_PAUSE
        while True:
            try:
                return self._create_once(path, data)
            except StoreError as error:
                if nonce is None:
                    raise
                if self._holds(path, data):
                    return None
                # The client does not send this again by itself, for without a nonce it could not tell whose it finds.
                if not self._may_pass(error) or time.monotonic() + pause > deadline:
                    raise
            time.sleep(_some_of(pause))
            pause = min(2 * pause, LONGEST_PAUSE)

    def _may_pass(self, error: StoreError) -> bool:
        """Whether a failure to create is the network's or the service's, and may be another time's success."""
        cause = error.__cause__
        lasting = (ObjectExistsError, PermissionDeniedError, UnauthenticatedError, FileNotFoundError)
        return self.root is None and isinstance(cause, BaseError) and not isinstance(cause, lasting)

    def _create_once(self, path: str, data: bytes) -> None:
        with self._translated("create", path):
            obstore.put(self._writer(), path, data, mode="create", use_multipart=False)

    def _holds(self, path: str, data: bytes) -> bool:
        try:
            return self.read(path) == data
        except (NotFoundError, StoreError):
            return False

    def list(self, prefix: str) -> list[ObjectInfo]:
        """All objects below a folder, by path. Objects in the making are not among them.

        Args:
            prefix: Path of the folder; ``""`` is the whole store. ``a/b`` does not match ``a/bc``.

        Raises:
            StoreError: The store failed.
        """
        with self._translated("list", prefix):
            pages = obstore.list(self._client, prefix or None, chunk_size=1000)
            found = [
                ObjectInfo(item["path"], item["size"], item["last_modified"])
                for page in pages
                for item in page
            ]
        return sorted(found, key=lambda item: item.path)

    def delete(self, path: str) -> None:
        """Delete an object. One that is not there is no error.

        Raises:
            StoreError: The store failed.
        """
        try:
            with self._translated("delete", path):
                obstore.delete(self._client, path)
        except NotFoundError:
            pass

    def upload(self, path: str, local: Path, *, progress: Progress | None = None) -> Digest:
        """Write a local file of any size to an object. It becomes visible whole or not at all.

        Args:
            path: Where.
            local: The file.
            progress: Called after every piece.

        Returns:
            Size and SHA-256 of the bytes that were sent, even if the file changed meanwhile.

        Raises:
            UserError: The file cannot be opened.
            StoreError: The store failed.
        """
        try:
            file = local.open("rb")
        except OSError as error:
            raise UserError(f"{local} cannot be read: {error.strerror}") from error
        with file:
            return self.upload_pieces(path, _read_pieces(file, progress))

    def upload_pieces(self, path: str, pieces: Iterator[bytes]) -> Digest:
        """Write an object from its pieces, each of ``CHUNK_BYTES`` but the last. See `upload`.

        Raises:
            StoreError: The store failed.
        """
        first = next(pieces, b"")
        if len(first) < CHUNK_BYTES:
            self.write(path, first)
            return Digest(len(first), hashlib.sha256(first).hexdigest())
        return self._upload_chunks(path, chain([first], pieces))

    def _upload_chunks(self, path: str, pieces: Iterator[bytes]) -> Digest:
        sha256, sent = hashlib.sha256(), 0

        def counted() -> Iterator[bytes]:
            nonlocal sent
            for piece in pieces:
                sha256.update(piece)
                sent += len(piece)
                yield piece

        with self._translated("write", path):
            obstore.put(
                self._sender or self._writer(),
                path,
                counted(),
                chunk_size=CHUNK_BYTES,
                max_concurrency=CONCURRENT_CHUNKS,
            )
        return Digest(sent, sha256.hexdigest())

    def download(self, path: str, local: Path, *, progress: Progress | None = None) -> Digest:
        """Copy an object of any size to a local file, which appears whole or not at all.

        Args:
            path: The object.
            local: The file; its folder is created, and a file that is there is replaced.
            progress: Called after every piece.

        Returns:
            Size and SHA-256 of what was written.

        Raises:
            NotFoundError: There is no such object.
            StoreError: The store failed, or the object changed on the way.
            OSError: The file cannot be written.
        """
        part = local.with_name(f".{local.name}.{secrets.token_hex(8)}.part")
        try:
            digest = self.resume_download(path, part, progress=progress)
            part.replace(local)
        finally:
            part.unlink(missing_ok=True)
        return digest

    def resume_download(self, path: str, part: Path, *, progress: Progress | None = None) -> Digest:
        """Add to a local file what it lacks of an object. After a failure it holds what had come so far.

        The caller sees to it that nobody else writes the file, and compares the digest: what was there before
        may be of another object.

        Args:
            path: The object.
            part: The file, or where it will be.
            progress: Called after every piece.

        Returns:
            Size and SHA-256 of the whole file.

        Raises:
            NotFoundError: There is no such object.
            StoreError: The store failed.
            OSError: The file cannot be written.
        """
        total = self.size(path)
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("a+b") as file:
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256")
            done = file.tell()
            if done > total:
                file.truncate(0)
                sha256, done = hashlib.sha256(), 0
            for piece in self.pieces(path, start=done, end=total):
                file.write(piece)
                sha256.update(piece)
                done += len(piece)
                if progress:
                    progress(done, total)
        return Digest(done, sha256.hexdigest())

    def pieces(self, path: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """An object's bytes in order, in pieces of ``CHUNK_BYTES``, of which several are fetched at once.

        Args:
            path: The object.
            start: The first byte.
            end: The byte after the last, when it is known.

        Raises:
            NotFoundError: There is no such object.
            StoreError: The store failed.
        """
        stop = self.size(path) if end is None else end
        starts = iter(range(start, stop, CHUNK_BYTES))
        with ThreadPoolExecutor(CONCURRENT_CHUNKS) as pool:

            def fetch(at: int) -> Future[bytes]:
                return pool.submit(self._read_range, path, at, min(CHUNK_BYTES, stop - at))

            under_way = deque(map(fetch, islice(starts, CONCURRENT_CHUNKS)))
            try:
                while under_way:
                    piece = under_way.popleft().result()
                    under_way.extend(map(fetch, islice(starts, 1)))
                    yield piece
            finally:
                for future in under_way:
                    future.cancel()

    def _read_range(self, path: str, start: int, length: int) -> bytes:
        with self._translated("read", path):
            chunk = bytes(obstore.get_range(self._client, path, start=start, length=length))
        if len(chunk) != length:
            raise StoreError(f"{self.address(path)} ended early, at byte {start + len(chunk)}: try again")
        return chunk

    @contextmanager
    def _translated(self, action: str, path: str) -> Iterator[None]:
        """Turn the client's errors into ours, each with the object's address and a remedy."""
        try:
            yield
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise StoreError(
                    f"could not {action} {self.address(path)}: {self._explained(error)}"
                ) from error
            raise NotFoundError(f"{self.address(path)} does not exist") from error
        except ObjectExistsError as error:
            raise AlreadyExistsError(f"{self.address(path)} exists already") from error
        except (BaseError, OSError, ValueError) as error:
            raise StoreError(f"could not {action} {self.address(path)}: {self._explained(error)}") from error

    def _explained(self, error: Exception) -> str:
        reason = _first_line(error)
        scheme = self.url.partition("://")[0]
        lowered = reason.lower()
        if os.strerror(errno.ENOSPC).lower() in lowered:
            return f"{reason}. Free some space there"
        if os.strerror(errno.EROFS).lower() in lowered:
            return f"{reason}. Mount it so that it can be written, or choose another store"
        if "nosuchbucket" in str(error).lower() or "bucket does not exist" in lowered:
            return f"there is no such bucket ({reason}). Create it, or correct the address of the store"
        if scheme in CREDENTIALS and _METADATA.search(reason):
            return (
                "no credentials were found: none are set, and the machine's own role, which is asked last, gave "
                f"none ({reason}). Give {CREDENTIALS[scheme]} (see docs/store.md)"
            )
        # A refused listing comes as a general error, and so does a folder without permission.
        refused = any(
            words in lowered for words in ("permission denied", "401 unauthorized", "403 forbidden")
        )
        if refused or isinstance(error, PermissionDeniedError | UnauthenticatedError):
            remedy = CREDENTIALS.get(scheme, "the permissions of the folder")
            return f"access was refused ({reason}). Check {remedy}{user_advice(reason) if self.root else ''}"
        if scheme in CREDENTIALS:
            return (
                f"{reason}. Check that the bucket exists and that the service answers; "
                f"credentials come from {CREDENTIALS[scheme]}"
            )
        return reason


def _first_line(error: Exception) -> str:
    """An error's own words, without the client's debugging dump and query strings (they may be signed)."""
    line = str(error).split("\n", 1)[0].partition(": <?xml")[0]
    return re.sub(r"\?\S*", "", line).rstrip(". ")


def _read_pieces(file: IO[bytes], progress: Progress | None) -> Iterator[bytes]:
    total, done = os.fstat(file.fileno()).st_size, 0
    while piece := file.read(CHUNK_BYTES):
        yield piece
        done += len(piece)
        if progress:
            progress(done, max(done, total))


def _check_no_secret(scheme: str, url: str) -> None:
    """Refuse credentials in an address: it is written into configurations, logs and messages."""
    if "@" in url or "?" in url:
        address = re.sub(r"//[^/]*@", "//", url.partition("?")[0])
        raise UserError(
            f"the address of a store carries no credentials and no options: write {address}, and give "
            f"{CREDENTIALS[scheme]} in the environment"
        )


def _check_not_mistyped(url: str) -> None:
    """Refuse ``s3:/bucket`` and the like: taken for a folder, it would keep what is published on this machine."""
    found = mistyped(url)
    if not found:
        return
    scheme, rest = found
    if scheme != "file":
        meant = f"{scheme}://{rest.lstrip('/')}"
    elif rest.startswith(("/", "./", "../")):
        meant = f"file://{rest}"
    else:
        meant = f"file://./{rest or 'store'}"
    if scheme in CREDENTIALS:
        _check_no_secret(scheme, meant)
        meant = meant if rest.strip("/") else f"{scheme}://bucket/prefix"
    raise UserError(
        f"{url!r} is not the address of a store: did you mean {meant}? (A folder of that name is ./{url})"
    )


def _local_root(url: str, path: str) -> Path:
    if url.startswith("file://") and not path.startswith(("/", "./", "../")) and path not in {".", ".."}:
        raise UserError(
            f"{url!r} is not clear: write file://./{path} for a folder here, or file:///{path} for an "
            "absolute one"
        )
    if not path:
        raise UserError("the address of the store is empty: use a folder such as file://./store")
    return Path(path).expanduser().resolve()


def _open_folder(root: Path) -> LocalStore:
    try:
        return LocalStore(root, mkdir=True, automatic_cleanup=True)
    except (BaseError, OSError) as error:
        raise StoreError(
            f"{root} cannot hold a store: {_first_line(error)}. Choose another folder{user_advice(str(error))}"
        ) from error


_memory: dict[str, MemoryStore] = {}
_memory_lock = threading.Lock()


def _open_memory(name: str) -> MemoryStore:
    if not name:
        return MemoryStore()
    with _memory_lock:
        return _memory.setdefault(name, MemoryStore())


def _some_of(pause: float) -> float:
    """A random length between half of a pause and all of it."""
    return random.uniform(pause / 2, pause)  # noqa: S311


def _open_remote(scheme: str, url: str, patience: timedelta) -> tuple[ObjectStore, ObjectStore]:
    """A client for what is read or small, and one for sending what may be large.

    The first gives up a server that is silent. The other must not: to a client a server is silent also while it is sent
    something, however well that goes, and over a slow uplink no piece would ever get through.
    """
    # Plain HTTP happens only where the user's own endpoint says so.
    sending: ClientConfig = {
        "allow_http": True,
        "connect_timeout": CONNECT_TIMEOUT,
        "timeout": REQUEST_TIMEOUT,
    }
    asking: ClientConfig = {**sending, "read_timeout": READ_TIMEOUT}
    first_pause = timedelta(seconds=_some_of(FIRST_PAUSE))  # the client draws only what comes after it
    retries: RetryConfig = {
        "max_retries": 20,
        "retry_timeout": patience,
        "backoff": {
            "init_backoff": first_pause,
            "max_backoff": timedelta(seconds=LONGEST_PAUSE),
            "base": 2,
        },
    }
    try:
        keys = profile_credentials() if scheme == "s3" else None

        def opened(client: ClientConfig) -> ObjectStore:
            if keys:
                return from_url(url, client_options=client, retry_config=retries, credential_provider=keys)
            return from_url(url, client_options=client, retry_config=retries)

        return opened(asking), opened(sending)
    except (BaseError, ValueError) as error:
        raise StoreError(
            f"{url} cannot be opened: {_first_line(error)}. Set {CREDENTIALS[scheme]}"
        ) from error
