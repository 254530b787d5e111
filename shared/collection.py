"""Garbage collection: what nobody can want any more is found first, shown, and then deleted.

What an alias points to, or has pointed to in its last moves, is kept, and so are a name's newest versions, what an
unfinished run began from, whatever a kept version was made from, and everything younger than a day. The rest may go:
superseded versions, what crashed publishers left behind, and the state of runs that have been idle for a month.

No version goes before what was made from it: it is by their lineage that versions are found when a speaker withdraws
consent (`shared.withdrawal`).

Nothing is lost to a race. Before a version goes, aliases and lineages are read again, and once more when its manifest
is deleted: when somebody has promoted the version meanwhile, or published something made from it, the manifest is put
back (and `Registry.move_alias` and `Registry.publish` look again after their last write). A publisher makes sure that
its claim is still there, before it completes a version and after.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from shared.errors import NotFoundError
from shared.manifests import KINDS, NAME_PATTERN, VERSION_PATTERN, Kind, now
from shared.registry import Registry, Version
from shared.runs import bases_of_unfinished
from shared.store import ObjectInfo

#: Nothing younger is ever collected, whatever else is asked for: somebody may be at work on it.
YOUNGEST = timedelta(days=1)

What = Literal["version", "leftover", "run"]


@dataclass(frozen=True)
class Rules:
    """What is kept.

    Attributes:
        age: Versions and leftovers younger than this; a day at least.
        history: How many of an alias's last moves reach their versions.
        newest: How many of a name's newest versions.
        idle: The state of runs of which anything was written within this time; a day at least.
    """

    age: timedelta = YOUNGEST
    history: int = 5
    newest: int = 3
    idle: timedelta = timedelta(days=30)


@dataclass(frozen=True)
class Garbage:
    """Something to delete.

    Attributes:
        what: A version, what a crashed writer left, or a run's state.
        prefix: Its folder in the store.
        bytes: Its size.
        modified: When anything in it was last written.
        why: The reason, for people.
        version: The version, if it is one.
    """

    what: What
    prefix: str
    bytes: int
    modified: datetime
    why: str
    version: Version | None = field(default=None, repr=False)

    @property
    def since(self) -> datetime:
        """When it came to be: later than what it was made from."""
        return self.version.manifest.created if self.version else self.modified


class Collector:
    """Finds and deletes the garbage of one store."""

    def __init__(self, registry: Registry, rules: Rules | None = None) -> None:
        rules = rules or Rules()
        self.registry = registry
        self.store = registry.store
        self.rules = rules
        self._before = now() - max(rules.age, YOUNGEST)
        self._idle_before = now() - max(rules.idle, YOUNGEST)
        self._made_from: dict[str, list[str]] = {}

    def find(self, kinds: Sequence[Kind] = KINDS) -> list[Garbage]:
        """What may be deleted, in the order in which to do it: the youngest first.

        With models among the kinds, the state of runs too.

        Raises:
            CorruptObjectError: A manifest, an alias or a run's state cannot be read, so that it is not known what it
                reaches.
            StoreError: The store failed.
        """
        folders = {kind: self._folders(kind) for kind in KINDS}
        versions = {version.prefix: version for version in every_version(self.registry)}
        self._made_from = {prefix: parents(version, self.registry) for prefix, version in versions.items()}
        kept = self._reached(folders, versions, kinds)
        found: list[Garbage] = []
        for prefix, items in ((prefix, items) for kind in kinds for prefix, items in folders[kind].items()):
            if prefix in kept:
                continue
            size, age = sum(item.size for item in items), _modified(items)
            if prefix in versions:
                why = f"no alias's last {self.rules.history} moves reach it, and it is not among the newest"
                found.append(Garbage("version", prefix, size, age, why, versions[prefix]))
            else:
                found.append(Garbage("leftover", prefix, size, age, "never completed"))
        if "models" in kinds:
            found += self._idle_runs()
        found += self._staged(kinds)
        return sorted(found, key=lambda each: (each.since, each.prefix), reverse=True)

    def delete(self, garbage: Garbage) -> bool:
        """Delete what was found, unless it is wanted by now; whether it was deleted.

        Raises:
            StoreError: The store failed.
        """
        if garbage.version:
            return self.registry.delete(garbage.version, keep_if=lambda: self._is_needed(garbage))
        items = self.store.list(garbage.prefix)
        if self._is_wanted(garbage, items):
            return False
        if garbage.what == "leftover" and items:
            return self.registry.remove_given_up(garbage.prefix)
        if garbage.what == "leftover" and self.store.root:
            (self.store.root / garbage.prefix).unlink(missing_ok=True)
        # The manifests of checkpoints first, so that what is half deleted does not exist.
        for item in sorted(items, key=lambda item: not item.path.endswith("/manifest.json")):
            self.store.delete(item.path)
        return True

    def _is_needed(self, garbage: Garbage) -> bool:
        """Whether an alias reaches a version by now, or something comes from it: it has stayed, or is new."""
        version = garbage.version
        assert version is not None  # noqa: S101 - only versions are asked about
        return version.id in self._aliased_of(version.kind, version.name) or bool(
            descendants(version, self.registry, self._made_from)
        )

    def _is_wanted(self, garbage: Garbage, items: list[ObjectInfo]) -> bool:
        """Whether anybody has completed it, or written anything there, since it was found."""
        before = self._idle_before if garbage.what == "run" else self._before
        completed = garbage.what == "leftover" and any(
            item.path == f"{garbage.prefix}/manifest.json" for item in items
        )
        return completed or any(item.modified >= before for item in items)

    # ------------------------------------------------------------------ what is reached

    def _folders(self, kind: Kind) -> dict[str, list[ObjectInfo]]:
        """Every object of every version and would-be version, by its folder."""
        folders: dict[str, list[ObjectInfo]] = defaultdict(list)
        for item in self.store.list(kind):
            parts = item.path.split("/")
            if len(parts) > 3 and re.fullmatch(VERSION_PATTERN, parts[2]):
                folders["/".join(parts[:3])].append(item)
        return folders

    def _reached(
        self,
        folders: dict[Kind, dict[str, list[ObjectInfo]]],
        versions: dict[str, Version],
        kinds: Sequence[Kind],
    ) -> set[str]:
        """The folders of what is kept."""
        kept = set(bases_of_unfinished(self.store).values())
        of_name: dict[tuple[Kind, str], list[str]] = defaultdict(list)
        for prefix, version in versions.items():
            of_name[version.kind, version.name].append(prefix)
        for (kind, name), prefixes in of_name.items():
            kept |= {*(prefixes if kind not in kinds else prefixes[-max(self.rules.newest, 1) :])}
            kept |= {f"{kind}/{name}/{version}" for version in self._aliased_of(kind, name)}
        for kind in KINDS:
            kept |= {prefix for prefix, items in folders[kind].items() if _modified(items) >= self._before}
        return kept | set(_ancestors(kept, self._made_from))

    def _aliased_of(self, kind: Kind, name: str) -> set[str]:
        """The ids that a name's aliases point to, or pointed to in their last moves."""
        return {
            move.version
            for alias in self.registry.aliases(kind, name)
            for move in self.registry.history(kind, name, alias)[-max(self.rules.history, 1) :]
        }

    # ------------------------------------------------------------------ runs and unfinished files

    def _idle_runs(self) -> Iterator[Garbage]:
        runs: dict[str, list[ObjectInfo]] = defaultdict(list)
        for item in self.store.list("runs"):
            runs["/".join(item.path.split("/")[:2])].append(item)
        for prefix, items in runs.items():
            modified = _modified(items)
            if modified < self._idle_before:
                size = sum(item.size for item in items)
                why = f"idle for {(now() - modified).days} days"
                yield Garbage("run", prefix, size, modified, why)

    def _staged(self, kinds: Sequence[Kind]) -> Iterator[Garbage]:
        """Files that killed writers of a local store have left half written: 'name#1'. No listing shows them."""
        root = self.store.root
        tops = [*kinds, *(["runs"] if "models" in kinds else [])]
        for top in tops if root else ():
            for folder, _, names in os.walk(Path(str(root), top)):
                for path in (Path(folder, name) for name in names if "#" in name):
                    try:
                        status = path.stat()
                    except FileNotFoundError:
                        continue  # its writer has completed it
                    modified = datetime.fromtimestamp(status.st_mtime, tz=self._before.tzinfo)
                    if modified < self._before:
                        prefix = path.relative_to(str(root)).as_posix()
                        yield Garbage("leftover", prefix, status.st_size, modified, "half written")


def every_version(
    registry: Registry, kinds: Sequence[Kind] = KINDS, *, but: Container[str] = ()
) -> Iterator[Version]:
    """All versions of a store, name by name, the newest of each last; none that is deleted meanwhile.

    Args:
        registry: Where they are.
        kinds: Of which kinds.
        but: Folders of versions that are left out, and not read.

    Raises:
        CorruptObjectError: A manifest cannot be read.
        StoreError: The store failed.
    """
    for kind in kinds:
        for name in registry.names(kind):
            for id_ in registry.versions(kind, name):
                if f"{kind}/{name}/{id_}" in but:
                    continue
                try:
                    version = registry.resolve(kind, f"{name}/{id_}")
                except NotFoundError:
                    continue  # deleted since it was listed
                yield version


def descendants(version: Version, registry: Registry, known: Mapping[str, Sequence[str]] = {}) -> list[str]:
    """The folders in the store of what comes from a version itself: other versions, and runs that go on.

    Args:
        version: The version.
        registry: Where it is.
        known: What versions were made from, by folder, as far as it was read before: manifests do not change.

    Raises:
        CorruptObjectError: A manifest or a run's state cannot be read.
        StoreError: The store failed.
    """
    made = [
        prefix
        for prefix, made_from in known.items()
        if version.prefix in made_from and registry.store.exists(f"{prefix}/manifest.json")
    ]
    new = every_version(registry, but=known)
    made += [each.prefix for each in new if version.prefix in parents(each, registry)]
    begun = bases_of_unfinished(registry.store).items()
    return made + [f"runs/{run}" for run, base in begun if base == version.prefix]


def _ancestors(kept: set[str], made_from: dict[str, list[str]]) -> Iterator[str]:
    """What kept versions were made from, and what that was made from."""
    waiting, seen = list(kept), set(kept)
    while waiting:
        for parent in made_from.get(waiting.pop(), ()):
            if parent not in seen:
                seen.add(parent)
                waiting.append(parent)
                yield parent


def _modified(items: Sequence[ObjectInfo]) -> datetime:
    """When anything of it was last written."""
    return max(item.modified for item in items)


def parents(version: Version, registry: Registry) -> list[str]:
    """The folders in the store of the versions that one was made from: the model of a voice, the base of a model.

    Training names the version. Before it did, manifests were written with what the user had typed: a base by alias
    is the version that the alias pointed to when the model was published; one by its name alone, where there was no
    alias ``latest``, the newest version of then.
    """
    found = list(version.manifest.made_from)
    name, _, alias = str(version.manifest.lineage.get("base", "")).partition("@")
    if re.fullmatch(NAME_PATTERN, name) and (not alias or re.fullmatch(NAME_PATTERN, alias)):
        ids = _pointed_to(registry, name, alias or "latest", version)
        if not ids and not alias:
            ids = _newest_of(registry, name, version)
        found += [f"models/{name}/{id_}" for id_ in ids]
    return found


def _pointed_to(registry: Registry, name: str, alias: str, before: Version) -> list[str]:
    """The version that an alias pointed to before another was published, if it is known."""
    try:
        moves = registry.history("models", name, alias)
    except NotFoundError:
        return []
    return [move.version for move in moves if move.created <= before.manifest.created][-1:]


def _newest_of(registry: Registry, name: str, before: Version) -> list[str]:
    """The newest version of a name when another was begun: an id starts with its second."""
    begun = before.id.partition("-")[0]
    earlier = [id_ for id_ in registry.versions("models", name) if id_.partition("-")[0] <= begun]
    return [id_ for id_ in earlier if id_ != before.id][-1:]
