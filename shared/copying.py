"""Copying a version from one store to another, through this machine's memory and never through its disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from shared.cache import verify
from shared.errors import AlreadyExistsError, CorruptObjectError, NotFoundError, StoreError
from shared.manifests import Claim, FileEntry, Manifest, parse
from shared.registry import Registry, Version
from shared.store import Digest, Progress, Store, counted_on


def copy_version(source: Store, version: Version, target: Registry, progress: Progress | None = None) -> bool:
    """Copy a version with its id, licence and lineage as they are. It becomes visible in the target whole, at the end.

    What an earlier attempt has copied is verified there, and not sent again. Several may copy the same version at once:
    nothing that is not sound ever lies in its place, so none of them has anything to take back.

    Args:
        source: Where it is.
        version: The version.
        target: Where it goes.
        progress: Called with the bytes copied so far and the bytes in all.

    Returns:
        False if the target had it already.

    Raises:
        CorruptObjectError: A file of the source does not match the manifest; the target does not get the version.
        AlreadyExistsError: The target has another version of this id.
        ConsentError: A speaker has withdrawn it, or what it was made of, from the target.
        StoreError: One of the stores failed, or what had been copied was removed as given up. Copying again goes on
            from there.
    """
    if _is_there(target.store, version):
        return False
    target.check_consent(version.manifest)
    _claim(source, version, target.store)
    total, done = version.manifest.total_bytes, 0
    for entry in version.manifest.files:
        path = f"{version.prefix}/{entry.path}"
        if not _has(target.store, path, entry):
            pieces = _watched(source.pieces(path), counted_on(progress, done, total))
            target.store.upload_pieces(path, _sound(pieces, entry, source.address(path)))
        done += entry.bytes
        if progress:
            progress(done, total)
    target.check_consent(version.manifest)
    target.check_claim(version.manifest)
    _check_sizes(target.store, version)
    target.complete(version.manifest)
    return True


def digest_object(store: Store, path: str) -> Digest:
    """Size and SHA-256 of an object, read through and kept nowhere.

    Raises:
        NotFoundError: There is no such object.
        StoreError: The store failed.
    """
    sha256, size = hashlib.sha256(), 0
    for piece in store.pieces(path):
        sha256.update(piece)
        size += len(piece)
    return Digest(size, sha256.hexdigest())


def damage(store: Store, version: Version, progress: Progress | None = None) -> list[str]:
    """What is wrong with a version's files, read from the store one after another: a sentence for each.

    Raises:
        StoreError: The store failed.
    """
    total, done, problems = version.manifest.total_bytes, 0, []
    for entry in version.manifest.files:
        path = f"{version.prefix}/{entry.path}"
        try:
            verify(entry, digest_object(store, path), store.address(path))
        except NotFoundError:
            problems.append(f"{store.address(path)} is missing, though its manifest lists it")
        except CorruptObjectError as error:
            problems.append(str(error))
        done += entry.bytes
        if progress:
            progress(done, total)
    return problems


def _is_there(store: Store, version: Version) -> bool:
    path = f"{version.prefix}/manifest.json"
    try:
        there = parse(Manifest, store.read(path), store.address(path))
    except NotFoundError:
        return False
    if there != version.manifest:
        raise AlreadyExistsError(
            f"{store.address(path)} is another version of the same id, and stays as it is"
        )
    return True


def _claim(source: Store, version: Version, target: Store) -> None:
    """Take the id in the target as its first writer did, so that attempts after one another are one writer's."""
    path = f"{version.prefix}/claim.json"
    claim = parse(Claim, source.read(path), source.address(path))
    try:
        target.create(path, claim.to_bytes(), nonce=claim.nonce)
    except AlreadyExistsError:
        if parse(Claim, target.read(path), target.address(path)).nonce != claim.nonce:
            raise AlreadyExistsError(
                f"{target.address(path)} is another version of the same id, and stays as it is"
            ) from None


def _check_sizes(store: Store, version: Version) -> None:
    """Make sure that what an earlier attempt had left was not collected since it was found there.

    Raises:
        StoreError: It was.
    """
    sizes = {item.path: item.size for item in store.list(version.prefix)}
    for entry in version.manifest.files:
        path = f"{version.prefix}/{entry.path}"
        if sizes.get(path) != entry.bytes:
            raise StoreError(f"{store.address(path)} was removed while the version was copied. Copy it again")


def _has(store: Store, path: str, entry: FileEntry) -> bool:
    try:
        return store.size(path) == entry.bytes and digest_object(store, path) == (entry.bytes, entry.sha256)
    except NotFoundError:
        return False


def _watched(pieces: Iterator[bytes], progress: Progress | None) -> Iterator[bytes]:
    done = 0
    for piece in pieces:
        yield piece
        done += len(piece)
        if progress:
            progress(done, done)


def _sound(pieces: Iterator[bytes], entry: FileEntry, where: str) -> Iterator[bytes]:
    """A file's pieces, the last of which is held back until all of them match the manifest.

    Raises:
        CorruptObjectError: They do not, and what is written from them never becomes visible.
    """
    sha256, size, held = hashlib.sha256(), 0, b""
    for piece in pieces:
        if held:
            yield held
        sha256.update(piece)
        size += len(piece)
        held = piece
    verify(entry, Digest(size, sha256.hexdigest()), where)
    if held:
        yield held
