"""Versions of models and voices in a store, and the aliases that point to them.

A version is published by claiming its id (``claim.json``), uploading its files, and writing ``manifest.json``
last. Without a manifest the version does not exist, so a writer that dies leaves nothing that shows.
An alias is a row of small numbered objects, each created only if absent; the highest number counts.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue, ValidationError

from shared.cache import Cache, default_cache, verify
from shared.consent import refuse_withdrawn
from shared.errors import (
    AlreadyExistsError,
    ConsentError,
    CorruptObjectError,
    NotFoundError,
    StoreError,
    UserError,
    nearest,
)
from shared.manifests import (
    RESERVED,
    VERSION_PATTERN,
    Alias,
    Claim,
    FileEntry,
    Kind,
    Manifest,
    check_name,
    check_path,
    new_nonce,
    new_version_id,
    now,
    parse,
    this_writer,
)
from shared.store import Progress, Store, counted_on, digest_file

#: What a store without any is told.
_PUBLISHING: dict[Kind, str] = {
    "models": "'vits train' publishes models, 'vits models publish FOLDER NAME' a folder that is there already",
    "voices": "'vits export' publishes voices, 'vits voices publish FOLDER NAME' a folder that is there already",
}


@dataclass(frozen=True)
class Version:
    """One published version of a model or a voice."""

    kind: Kind
    name: str
    id: str
    manifest: Manifest

    @property
    def reference(self) -> str:
        """What names exactly this version: ``name/id``."""
        return f"{self.name}/{self.id}"

    @property
    def prefix(self) -> str:
        """Its folder in the store."""
        return f"{self.kind}/{self.name}/{self.id}"


def files_to_publish(folder: Path) -> list[tuple[str, Path]]:
    """The files of a folder that a version or a checkpoint consists of, as (path within it, file), by path.

    Links to files are followed. Hidden files and folders are left out.

    Raises:
        UserError: The folder is missing or empty, or a path in it cannot be stored.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder, so there is nothing to publish in it")
    found = []
    for file in sorted(folder.rglob("*")):
        relative = file.relative_to(folder)
        if not file.is_file() or any(part.startswith(".") for part in relative.parts):
            continue
        try:
            found.append((check_path(relative.as_posix()), file))
        except ValueError as error:
            raise UserError(f"{file} cannot be stored: {error}. Rename it") from error
    if not found:
        raise UserError(f"{folder} holds no files, so there is nothing to publish")
    return found


def upload_files(
    store: Store, prefix: str, files: Sequence[tuple[str, Path]], *, progress: Progress | None = None
) -> tuple[FileEntry, ...]:
    """Upload files below a folder of the store, and list what was sent.

    Raises:
        UserError: A file cannot be read.
        StoreError: The store failed.
    """
    total, done = sum(file.stat().st_size for _, file in files if file.exists()), 0
    entries = []
    for path, file in files:
        digest = store.upload(f"{prefix}/{path}", file, progress=counted_on(progress, done, total))
        entries.append(FileEntry(path=path, bytes=digest.bytes, sha256=digest.sha256))
        done += digest.bytes
        if progress:
            progress(done, total)
    return tuple(entries)


class Registry:
    """The models and voices of one store.

    Attributes:
        store: The store.
        cache: The local folder where verified copies are kept.
    """

    def __init__(self, store: Store, cache: Path | None = None) -> None:
        self.store = store
        self.cache = cache or default_cache()

    # ------------------------------------------------------------------ publishing

    def check_writable(self, kind: Kind, name: str) -> None:
        """Make sure that a version could be published, before long work is done for it. Nothing of this shows.

        It begins as publishing does, by claiming an id, and gives that up. Where nothing may be deleted, the claim
        stays as a crashed publisher's would, until a garbage collection.

        Args:
            kind: ``models`` or ``voices``.
            name: Its name.

        Raises:
            UserError: The name is malformed.
            StoreError: The store cannot be written.
        """
        root = self.store.root
        is_new = root is not None and not root.exists()
        claim = self._claim(kind, check_name(name), new_version_id())
        self._withdraw(f"{kind}/{name}/{claim.version}")
        if root and is_new:
            with suppress(OSError):  # somebody else may have begun to write there
                root.rmdir()

    def publish(
        self,
        kind: Kind,
        name: str,
        folder: Path,
        *,
        licence: str,
        sources: Sequence[str],
        consent: str | None,
        lineage: Mapping[str, JsonValue],
        only: Collection[str] | None = None,
        progress: Progress | None = None,
    ) -> Version:
        """Publish a folder as a new version. It becomes visible at the very end, whole.

        Hidden files, ``manifest.json`` and ``claim.json`` at the top of the folder are left out.

        Args:
            kind: ``models`` or ``voices``.
            name: Its name.
            folder: Its files.
            licence: SPDX identifier where there is one.
            sources: The recordings and models that went in.
            consent: What the speaker agreed to, and where that is recorded.
            lineage: JSON; what made it.
            only: Paths within the folder to publish, which must be there; by default everything.
            progress: Called with the bytes uploaded so far and the bytes in all.

        Raises:
            UserError: The name, the folder or the description cannot be published.
            ConsentError: A speaker has withdrawn what it is made of. Nothing of it is left in the store.
            StoreError: What it is made from was deleted, or the store failed. What was uploaded is removed, as far as
                that works.
        """
        check_name(name)
        found = [(path, file) for path, file in files_to_publish(folder) if path not in RESERVED]
        files = [(path, file) for path, file in found if only is None or path in only]
        missing = sorted({*(only or ())} - {path for path, _ in files})
        if missing:
            raise UserError(f"{folder} does not hold {', '.join(missing)}, so it is not published")
        if not files:
            raise UserError(
                f"{folder} holds nothing but the registry's own records, so there is nothing to publish"
            )
        draft = _draft(kind, name, licence, sources, consent, lineage)
        origins = self._origins(draft)
        claim = self._claim(kind, name, draft.version)
        prefix = f"{kind}/{name}/{claim.version}"
        try:
            entries = upload_files(self.store, prefix, files, progress=progress)
            update = {"version": claim.version, "nonce": claim.nonce, "created": now(), "files": entries}
            manifest = draft.model_copy(update=update)
            self.check_consent(manifest)
            self.check_claim(manifest)  # last, since the look for consent takes its time
        except BaseException:
            # An interrupt too. Once the manifest may have been written, nothing must be removed any more.
            self._withdraw(prefix)
            raise
        version = self.complete(manifest)
        for origin in origins:
            if not self._outlives_its_deletion(origin):
                self.delete(version)
                raise self._deleted_meanwhile(manifest, origin)
        return version

    def _origins(self, draft: Manifest) -> list[str]:
        """The folders of what a version to publish is made from, and that has to be there at the end too.

        Who deletes a version removes its manifest first and looks for what was made from it then; so a look after the
        child's manifest is written leaves no gap. A run may have outlived its base; a voice's model was read just now.

        Raises:
            ConsentError: The model of a voice is not there any more, since a speaker has withdrawn it.
            StoreError: It is not there for another reason; or the store failed.
        """
        there = [each for each in draft.made_from if self.store.exists(f"{each}/manifest.json")]
        missing = [each for each in draft.made_from if each not in there]
        if missing and draft.kind == "voices":
            self.check_consent(draft)  # which may be why
            raise self._deleted_meanwhile(draft, missing[0])
        return there

    def _deleted_meanwhile(self, manifest: Manifest, origin: str) -> StoreError:
        return StoreError(
            f"{self.store.address(origin)} was deleted meanwhile. {manifest.kind}/{manifest.name} is made from it, so "
            "that it could not be found when a speaker withdraws consent, and is not published. Make it again from a "
            "version that is there; an alias keeps that from being collected"
        )

    def check_consent(self, manifest: Manifest) -> None:
        """Make sure that no speaker has withdrawn a version from this store, or what it was made of.

        Raises:
            ConsentError: Somebody has.
            StoreError: The store failed.
        """
        prefix = f"{manifest.kind}/{manifest.name}/{manifest.version}"
        dataset = manifest.lineage.get("dataset")
        refuse_withdrawn(self.store, dataset=dataset, versions={prefix, *manifest.made_from})

    def complete(self, manifest: Manifest) -> Version:
        """Write the manifest of a version whose files are all there: from now on it exists.

        Who withdraws consent writes that down first and looks for versions then, and who takes a publication for given
        up removes its claim first and looks for the manifest then; so a look for the record and for the claim after the
        manifest is written leaves no gap between the two.

        Raises:
            ConsentError: A speaker has withdrawn it at this very moment, and it is deleted again.
            StoreError: It was removed as given up at this very moment, and is deleted again; or the store failed.
        """
        version = Version(manifest.kind, manifest.name, manifest.version, manifest)
        self.store.create(f"{version.prefix}/manifest.json", manifest.to_bytes(), nonce=manifest.nonce)
        try:
            self.check_consent(manifest)
        except ConsentError:
            self.delete(version)
            raise
        if not self._is_claimed(manifest):
            self.delete(version)
            raise self._given_up(manifest)
        return version

    def _claim(self, kind: Kind, name: str, version: str) -> Claim:
        """Take a version's id that nobody has, normally the one that is given."""
        while True:
            claim = Claim(
                kind=kind,
                name=name,
                version=version,
                nonce=new_nonce(),
                writer=this_writer(),
                created=now(),
            )
            path = f"{kind}/{name}/{version}/claim.json"
            try:
                self.store.create(path, claim.to_bytes(), nonce=claim.nonce)
            except AlreadyExistsError:
                version = new_version_id()
            else:
                return claim

    def check_claim(self, manifest: Manifest) -> None:
        """Make sure that nobody has taken a publication for one that was given up: it has lasted for days.

        Raises:
            StoreError: Somebody has.
        """
        if not self._is_claimed(manifest):
            raise self._given_up(manifest)

    def _is_claimed(self, manifest: Manifest) -> bool:
        path = f"{manifest.kind}/{manifest.name}/{manifest.version}/claim.json"
        try:
            return parse(Claim, self.store.read(path), self.store.address(path)).nonce == manifest.nonce
        except NotFoundError:
            return False

    def _given_up(self, manifest: Manifest) -> StoreError:
        path = f"{manifest.kind}/{manifest.name}/{manifest.version}/claim.json"
        return StoreError(
            f"{self.store.address(path)} is gone: the version was deleted, or its upload took so long that it was "
            "removed as given up. Publish or copy it again"
        )

    def _withdraw(self, prefix: str) -> None:
        """Remove what a publisher that gives up has uploaded, the claim last."""
        with suppress(StoreError):
            self.remove_leftovers(prefix)

    # ------------------------------------------------------------------ finding

    def names(self, kind: Kind) -> list[str]:
        """The names that have a version, in alphabetical order.

        Raises:
            StoreError: The store failed.
        """
        return sorted(self._index(kind, kind))

    def versions(self, kind: Kind, name: str) -> list[str]:
        """The ids of a name's versions, the newest last; empty when there are none.

        Raises:
            StoreError: The store failed.
        """
        check_name(name)
        return self._index(kind, f"{kind}/{name}").get(name, [])

    def _index(self, kind: Kind, prefix: str) -> dict[str, list[str]]:
        """Version ids by name. An id tells the second; within it, the manifest's time decides."""
        found = defaultdict(list)
        for item in self.store.list(prefix):
            match item.path.split("/"):
                case [_, name, version, "manifest.json"] if re.fullmatch(VERSION_PATTERN, version):
                    found[name].append((version.partition("-")[0], item.modified, version))
        return {name: [version for *_, version in sorted(rows)] for name, rows in found.items()}

    def resolve(self, kind: Kind, reference: str) -> Version:
        """Find the version that a reference names.

        Args:
            kind: ``models`` or ``voices``.
            reference: ``name`` (its alias ``latest``, or else its newest version), ``name@alias`` or
                ``name/version``.

        Raises:
            UserError: The reference is malformed.
            NotFoundError: It names nothing, or nothing any more; the message lists what there is.
            CorruptObjectError: The manifest or the alias is damaged.
            StoreError: The store failed.
        """
        name, separator, rest = reference.partition("/")
        if separator:
            return self._version(kind, check_name(name), rest)
        name, separator, alias = reference.partition("@")
        check_name(name)
        if separator:
            return self._version(kind, name, self.alias(kind, name, alias))
        move = self._newest_move(kind, name, "latest")
        if move:
            return self._version(kind, name, move.version)
        return self._version(kind, name, self._some_versions(kind, name)[-1])

    def _version(self, kind: Kind, name: str, version: str) -> Version:
        path = f"{kind}/{name}/{version}/manifest.json"
        try:
            if not re.fullmatch(VERSION_PATTERN, version):
                raise NotFoundError(f"{version!r} is no version's id")
            data = self.store.read(path)
        except NotFoundError as error:
            known = self._some_versions(kind, name)
            raise NotFoundError(
                f"{self.store.url} has no version {version!r} of {name!r} in its {kind}"
                f"{_end(version, known)} Its versions: {', '.join(known)}"
            ) from error
        manifest = parse(Manifest, data, self.store.address(path))
        if (manifest.kind, manifest.name, manifest.version) != (kind, name, version):
            raise CorruptObjectError(
                f"{self.store.address(path)} is the manifest of {manifest.kind}/{manifest.name}/"
                f"{manifest.version}: it was copied by hand. Publish the version again"
            )
        return Version(kind, name, version, manifest)

    def _some_versions(self, kind: Kind, name: str) -> list[str]:
        """A name's versions, of which there must be one."""
        versions = self.versions(kind, name)
        if not versions:
            names = self.names(kind)
            there_are = (
                f"Its {kind}: {', '.join(names)}"
                if names
                else f"{self.store.lack(kind)}. {_PUBLISHING[kind]}"
            )
            raise NotFoundError(
                f"{self.store.url} has no {name!r} in its {kind}{_end(name, names)} {there_are}"
            )
        return versions

    # ------------------------------------------------------------------ aliases

    def move_alias(self, kind: Kind, name: str, alias: str, version_id: str) -> Alias:
        """Point an alias to a version: promotion. The alias is created when it is new.

        Of two processes that move it at once both succeed, one after the other.

        Returns:
            The alias as written.

        Raises:
            UserError: The alias's name is malformed.
            NotFoundError: There is no such version, or it was deleted at this moment; the alias is where it was.
            StoreError: The store failed.
        """
        check_name(alias, "alias")
        version = self._version(kind, check_name(name), version_id)
        before = self._newest_move(kind, name, alias)
        move = self._append_move(kind, name, alias, version_id, before.sequence + 1 if before else 1)
        if not self._outlives_its_deletion(version.prefix):
            if before:  # whoever has moved it since has the last word
                self._write_move(kind, name, alias, before.version, move.sequence + 1)
            else:
                self.store.delete(_alias_path(kind, name, alias, move.sequence))
            raise NotFoundError(
                f"{version.reference} was deleted meanwhile, so {name}@{alias} stays as it was"
            )
        return move

    def _append_move(self, kind: Kind, name: str, alias: str, version_id: str, sequence: int) -> Alias:
        while True:
            move = self._write_move(kind, name, alias, version_id, sequence)
            if move:
                return move
            sequence += 1

    def _write_move(self, kind: Kind, name: str, alias: str, version_id: str, sequence: int) -> Alias | None:
        """One move, under a number of its own; None where that number is another's already."""
        move = Alias(
            kind=kind,
            name=name,
            alias=alias,
            sequence=sequence,
            version=version_id,
            nonce=new_nonce(),
            writer=this_writer(),
            created=now(),
        )
        try:
            self.store.create(_alias_path(kind, name, alias, sequence), move.to_bytes(), nonce=move.nonce)
        except AlreadyExistsError:
            return None
        return move

    def _outlives_its_deletion(self, prefix: str) -> bool:
        """Whether a version is there. Who deletes it looks once more for what needs it, and puts its manifest back."""
        for pause in (0, 0.5, 2):
            time.sleep(pause)
            if self.store.exists(f"{prefix}/manifest.json"):
                return True
        return False

    def roll_back(self, kind: Kind, name: str, alias: str) -> Alias:
        """Point an alias to the version that it pointed to before. Done again, it goes one further back.

        Returns:
            The alias as written.

        Raises:
            NotFoundError: There is no such alias, or nothing before it that still exists.
            StoreError: The store failed.
        """
        line: list[str] = []  # what led to the present version: going back to one undoes what came after it
        for move in self.history(kind, name, alias):
            line = line[: line.index(move.version)] if move.version in line else line
            line.append(move.version)
        existing = set(self.versions(kind, name))
        earlier = [version for version in line[:-1] if version in existing]
        if not earlier:
            raise NotFoundError(
                f"{name}@{alias} in the {kind} of {self.store.url} has not pointed to another version before, or it "
                "was deleted. Name the version to point it to: promote"
            )
        return self.move_alias(kind, name, alias, earlier[-1])

    def alias(self, kind: Kind, name: str, alias: str) -> str:
        """The id of the version that an alias points to.

        Raises:
            NotFoundError: There is no such alias; the message lists what there is.
            StoreError: The store failed.
        """
        move = self._newest_move(kind, check_name(name), check_name(alias, "alias"))
        if move is None:
            versions = self._some_versions(kind, name)
            known = sorted(self.aliases(kind, name))
            plain = "what its alias latest points to" if "latest" in known else "its newest version"
            raise NotFoundError(
                f"{name!r} in the {kind} of {self.store.url} has no alias {alias!r}"
                f"{_end(alias, known)} {what_there_is(known, versions)}. "
                f"Write {name} for {plain}, {name}/VERSION for another, or make the alias: "
                f"'vits {kind} promote {name}/{versions[-1]} {alias} --store {self.store.url}'"
            )
        return move.version

    def aliases(self, kind: Kind, name: str) -> dict[str, str]:
        """Every alias of a name, and the id of the version that it points to.

        Raises:
            StoreError: The store failed.
        """
        folder = f"aliases/{kind}/{check_name(name)}"
        found = sorted({item.path.split("/")[3] for item in self.store.list(folder)})
        moves = {alias: self._newest_move(kind, name, alias) for alias in found}
        return {alias: move.version for alias, move in moves.items() if move}

    def history(self, kind: Kind, name: str, alias: str) -> list[Alias]:
        """Every move of an alias, the newest last.

        Raises:
            NotFoundError: There is no such alias.
            StoreError: The store failed.
        """
        self.alias(kind, name, alias)
        return [self._move(kind, name, alias, sequence) for sequence in self._moves(kind, name, alias)]

    def _moves(self, kind: Kind, name: str, alias: str) -> list[int]:
        found = (item.path.rpartition("/")[2] for item in self.store.list(f"aliases/{kind}/{name}/{alias}"))
        return sorted(int(file[:10]) for file in found if re.fullmatch(r"[0-9]{10}\.json", file))

    def _move(self, kind: Kind, name: str, alias: str, sequence: int) -> Alias:
        path = _alias_path(kind, name, alias, sequence)
        return parse(Alias, self.store.read(path), self.store.address(path))

    def _newest_move(self, kind: Kind, name: str, alias: str) -> Alias | None:
        moves = self._moves(kind, name, alias)
        return self._move(kind, name, alias, moves[-1]) if moves else None

    # ------------------------------------------------------------------ deleting

    def delete(self, version: Version, *, keep_if: Callable[[], bool] | None = None) -> bool:
        """Delete a version: its manifest first, after which it does not exist, then its files, its claim last.

        Aliases that point to it are left, and point to nothing.

        Args:
            version: The version.
            keep_if: Whether somebody uses the version. Asked before, and again once the manifest is gone, when
                nobody can begin to any more: if somebody has meanwhile, or it cannot be told, the manifest is put
                back.

        Returns:
            Whether it was deleted.

        Raises:
            StoreError: The store failed. What is half deleted does not exist, and is removed by a garbage collection.
        """
        if keep_if and keep_if():
            return False
        self.store.delete(f"{version.prefix}/manifest.json")
        try:
            kept = keep_if is not None and keep_if()
        except BaseException:
            # An interrupt too: somebody may rely on the version by now.
            self._put_back(version)
            raise
        if kept:
            self._put_back(version)
            return False
        self.remove_leftovers(version.prefix)
        # A copy that found the claim there still may have completed the version once more. Others do not find it now;
        # one that has begun since has a claim of its own.
        manifest, claim = (f"{version.prefix}/{file}" for file in ("manifest.json", "claim.json"))
        if self.store.exists(manifest) and not self.store.exists(claim):
            self.store.delete(manifest)
        return True

    def _put_back(self, version: Version) -> None:
        manifest = version.manifest
        self.store.create(f"{version.prefix}/manifest.json", manifest.to_bytes(), nonce=manifest.nonce)

    def remove_leftovers(self, prefix: str) -> None:
        """Remove what lies in the folder of a version that does not exist, the claim last.

        Raises:
            StoreError: The store failed.
        """
        paths = [item.path for item in self.store.list(prefix)]
        for path in sorted(paths, key=lambda path: path == f"{prefix}/claim.json"):
            self.store.delete(path)

    def remove_given_up(self, prefix: str) -> bool:
        """Remove what a publisher has left that seems dead, the claim first: one that is alive after all notices then.

        Returns:
            Whether it was removed: not if the version has been completed at this very moment.

        Raises:
            StoreError: The store failed.
        """
        path = f"{prefix}/claim.json"
        try:
            claim = self.store.read(path)
        except NotFoundError:
            claim = None  # another collection has it, which puts it back if it finds the version completed
        else:
            self.store.delete(path)
        if self.store.exists(f"{prefix}/manifest.json"):
            if claim:
                self.store.write(path, claim)
            return False
        self.remove_leftovers(prefix)
        return True

    # ------------------------------------------------------------------ fetching

    def fetch(self, version: Version, *, progress: Progress | None = None) -> Path:
        """A local folder with the version's files, every one of them verified just now. Do not write into it.

        A local store's own folder is used in place. From any other, files go through a cache that is
        addressed by content, shared between versions and safe between processes.

        Args:
            version: The version.
            progress: Called with the bytes verified so far and the bytes in all.

        Raises:
            CorruptObjectError: A file in the store does not match the manifest.
            StoreError: The store failed, or the cache cannot be written.
        """
        manifest = version.manifest
        try:
            if self.store.root:
                return self._fetch_here(version, progress)
            # Named after its contents too: another store may hold other files under the same id.
            contents = "".join(f"{entry.path}\n{entry.sha256}\n" for entry in manifest.files)
            digest = hashlib.sha256(contents.encode()).hexdigest()[:16]
            return Cache(self.cache).provide(
                f"{version.prefix}-{digest}", manifest.files, self.store, version.prefix, progress
            )
        except NotFoundError as error:
            if not self.store.exists(f"{version.prefix}/manifest.json"):
                raise NotFoundError(
                    f"{version.reference} was deleted from the {version.kind} of {self.store.url} while it was being "
                    "read. Use another version"
                ) from error
            raise CorruptObjectError(f"{error}, though its manifest lists it. Publish it again") from error
        except OSError as error:
            raise StoreError(
                f"{version.prefix} of {self.store.url} cannot be read: {error.strerror or error}. Check the permissions"
            ) from error

    def _fetch_here(self, version: Version, progress: Progress | None) -> Path:
        """A local store's own folder, verified."""
        folder = Path(str(self.store.root)) / version.prefix
        total, done = version.manifest.total_bytes, 0
        for entry in version.manifest.files:
            target = folder / entry.path
            if not target.is_file():
                raise NotFoundError(f"{target} is missing")
            verify(entry, digest_file(target), str(target))
            done += entry.bytes
            if progress:
                progress(done, total)
        return folder


def default_voice(registry: Registry) -> str:
    """The voice that speaks when nobody says which: the one published last.

    Raises:
        NotFoundError: The store holds no voice.
        StoreError: The store failed.
    """
    names = registry.names("voices")
    if not names:
        raise NotFoundError(
            f"{registry.store.lack('voice')}. 'vits export' makes one from a model; in the suite's own folder, "
            "'make demo' trains and exports one. Another store is given with --store."
        )
    return max(names, key=lambda name: registry.resolve("voices", name).manifest.created)


def what_there_is(aliases: Sequence[str], versions: Sequence[str]) -> str:
    """What a name has, for whoever asked for an alias or a version that it does not have."""
    there_are = f"Its aliases: {', '.join(aliases)}" if aliases else "It has no aliases"
    return f"{there_are}. Its versions: {', '.join(versions)}"


def _end(word: str, known: Sequence[str]) -> str:
    """The end of a sentence about an unknown word."""
    return nearest(word, known) or "."


def _alias_path(kind: Kind, name: str, alias: str, sequence: int) -> str:
    return f"aliases/{kind}/{name}/{alias}/{sequence:010d}.json"


def _draft(
    kind: Kind,
    name: str,
    licence: str,
    sources: Sequence[str],
    consent: str | None,
    lineage: Mapping[str, JsonValue],
) -> Manifest:
    """A manifest still without files, so that a bad description is refused before anything is uploaded."""
    try:
        return Manifest(
            kind=kind,
            name=name,
            version=new_version_id(),
            nonce=new_nonce(),
            created=now(),
            licence=licence,
            sources=tuple(sources),
            consent=consent,
            lineage=dict(lineage),
            files=(),
        )
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise UserError(f"{kind}/{name} cannot be published as described: {problems}") from error
