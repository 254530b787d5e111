"""When a speaker withdraws consent: every version made from their recordings is found by lineage and deleted.

Versions name the recordings that they were trained on (``dataset``), their run and their base, and voices name their
model. From what is asked for, the search goes up to the recordings, and from these down to everything made of them.
A version that is not there leads to what was made from it all the same, but not to its own recordings. So none is
deleted while something comes from it (`shared.collection`); where one is missing nevertheless, the user is told.
What is about to be deleted is written down first, as an object below ``audit/`` that nothing ever replaces and that
keeps it from being published again (`shared.consent`), and what became of it in a second one at the end. A withdrawal
that breaks off lacks that one; the next by the same words goes on from its first. Only one store can be reached from
here: `UNREACHED` says what else there is.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field

from shared.cache import Cache
from shared.collection import every_version, parents
from shared.consent import withdrawals
from shared.errors import NotFoundError, StoreError, nearest
from shared.manifests import (
    KINDS,
    Kind,
    Withdrawal,
    WithdrawalOutcome,
    WithdrawnVersion,
    check_name,
    new_nonce,
    new_version_id,
    now,
    parse,
    this_writer,
)
from shared.registry import Registry, Version
from shared.runs import origins

#: What no program that has this store's address alone can delete.
UNREACHED = (
    "the recordings themselves, wherever they lie",
    "models whose lineage names the same recordings otherwise (another path, a cleaned copy): add --dataset for each",
    "output folders of training (checkpoints, logs, samples) and caches of decoded recordings ($VITS_CACHE/pcm16)",
    "copies in other stores, in folders that 'vits export --output' or --format wrote, and on model hubs",
    "caches of other machines ($VITS_CACHE), and servers that run: they keep what they have loaded until they restart",
    "older versions of objects and replicas that the bucket keeps by itself, its unfinished uploads, and backups",
)


@dataclass
class Plan:
    """What is to be deleted, and what cannot be told.

    Attributes:
        asked: What was asked for, in words.
        begun: The records of withdrawals by the same words that did not come to their end: this one goes on from there.
        versions: By folder in the store: the version, and why it is among them.
        gone: Folders of versions that are not there any more: others were made from them, or a record names them.
        runs: The runs whose state goes too.
        datasets: The recordings, as lineages name them. Of these nothing is published any more.
        aliases: Aliases that will point to nothing, as ``kind/name@alias``.
        undecided: Versions whose lineage does not name the recordings, or names a version that is not there;
            what was never completed, and runs of which the same is true.
    """

    asked: tuple[str, ...] = ()
    begun: list[Withdrawal] = field(default_factory=list)
    versions: dict[str, tuple[Version, str]] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)

    @property
    def folders(self) -> set[str]:
        """The folders of all versions, there or not."""
        return {*self.versions, *self.gone}

    @property
    def recorded(self) -> dict[str, WithdrawnVersion]:
        """The versions of records to go on from, by folder."""
        return {each.prefix: each for record in self.begun for each in record.versions}


@dataclass(frozen=True)
class Outcome:
    """What became of a plan.

    Attributes:
        audit: Addresses of the two records in the store.
        remaining: Objects that are still there; none when all went well.
    """

    audit: tuple[str, str]
    remaining: tuple[str, ...]


class _Family:
    """The versions of a store, and which was made from which.

    Attributes:
        versions: By folder in the store.
        parents: The folders of what each was made from.
        runs: What runs are made of, by run.
        gone: The folders of what versions were made from, or runs began from, and is not there.
    """

    def __init__(self, registry: Registry) -> None:
        self.versions = {version.prefix: version for version in every_version(registry)}
        self.parents = {prefix: parents(version, registry) for prefix, version in self.versions.items()}
        self.runs = origins(registry.store)
        made_from = {each for found in self.parents.values() for each in found}
        began_from = {origin.base for origin in self.runs.values() if origin.base}
        self.gone = (made_from | began_from) - self.versions.keys()

    @property
    def datasets(self) -> set[str]:
        """The recordings that versions and runs name."""
        of_versions = (version.manifest.lineage.get("dataset") for version in self.versions.values())
        of_runs = (origin.dataset for origin in self.runs.values())
        return {str(each) for each in (*of_versions, *of_runs) if each}


class Withdrawals:
    """Finds and deletes what was made of somebody's recordings in one store."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.store = registry.store

    def plan(
        self,
        kind: Kind,
        references: Sequence[str] = (),
        *,
        datasets: Sequence[str] = (),
        sources: Sequence[str] = (),
    ) -> Plan:
        """Find everything that was made of the same recordings as what is named.

        What a withdrawal by the same words has recorded and not come to the end of belongs to it too.

        Args:
            kind: What the references name.
            references: ``name`` (all its versions), ``name@alias`` or ``name/version``.
            datasets: Recordings, as the lineage of models names them.
            sources: Parts of what manifests list as sources, or of the consent that they record.

        Raises:
            NotFoundError: One of them names nothing; the message lists what there is.
            CorruptObjectError: A manifest or a run's state cannot be read.
            StoreError: The store failed.
        """
        family = _Family(self.registry)
        searches = {
            **{f"{kind} {each}": self._named(kind, each, family) for each in references},
            **{f"dataset {each}": self._matching(each, family, "dataset", _trained_on) for each in datasets},
            **{f"source {each}": self._matching(each, family, "source", _mentions) for each in sources},
        }
        plan = Plan(asked=tuple(searches), begun=self._begun(searches))
        for search in searches.values():
            # What was deleted before a withdrawal broke off is found in its record alone.
            with suppress(NotFoundError) if plan.begun else nullcontext():
                for prefix, why in search:
                    self._add(plan, family, prefix, why)
        plan.datasets = [*datasets, *(each for record in plan.begun for each in record.datasets)]
        self._add_same_recordings(plan, family)
        # Not before: what went on from such models may be trained on the recordings of others.
        for prefix, version in plan.recorded.items():
            self._add(plan, family, prefix, version.why)
        self._add_descendants(plan, family)
        self._complete(plan, family)
        return plan

    def carry_out(self, plan: Plan, *, reason: str) -> Outcome:
        """Delete what was planned, between two records in the store that stay.

        Args:
            plan: What to delete.
            reason: Why, for whoever reads the record.

        Raises:
            CorruptObjectError: A manifest cannot be read.
            StoreError: The store failed, or this machine's cache. The first record says what was to go: do it again.
        """
        record = Withdrawal(
            id=new_version_id(),
            nonce=new_nonce(),
            writer=this_writer(),
            created=now(),
            reason=reason,
            asked=plan.asked,
            versions=tuple(
                WithdrawnVersion(
                    kind=version.kind,
                    name=version.name,
                    version=version.id,
                    why=why,
                    bytes=version.manifest.total_bytes,
                )
                for version, why in plan.versions.values()
            )
            + tuple(plan.recorded.get(prefix) or _already_gone(prefix) for prefix in plan.gone),
            runs=tuple(plan.runs),
            datasets=tuple(plan.datasets),
            aliases=tuple(plan.aliases),
            undecided=tuple(plan.undecided),
        )
        begun = f"audit/{record.id}.json"
        self.store.create(begun, record.to_bytes(), nonce=record.nonce)
        staying = [each for each in every_version(self.registry) if each.prefix not in plan.versions]
        late = [*self._published_meanwhile(plan, staying)]
        self._forget(plan, staying)  # while the manifests are there that name the files
        prefixes = [*(f"runs/{run}" for run in plan.runs), *reversed(plan.versions), *plan.gone]
        # From the far end, so that other words find what is left too if this breaks off: states of runs, which versions
        # lead to; what was made of others before those; and what was named last.
        for prefix in prefixes:
            if prefix in plan.versions:
                self.registry.delete(plan.versions[prefix][0])
            self.registry.remove_leftovers(prefix)
            if self.store.root:  # what a killed writer left half written is in no listing
                shutil.rmtree(self.store.root / prefix, ignore_errors=True)
        remaining = (
            *(item.path for prefix in prefixes for item in self.store.list(prefix)),
            *(path for path in late if self.store.exists(path)),
        )
        outcome = WithdrawalOutcome(id=record.id, nonce=new_nonce(), created=now(), remaining=remaining)
        done = f"audit/{record.id}-done.json"
        self.store.create(done, outcome.to_bytes(), nonce=outcome.nonce)
        return Outcome((self.store.address(begun), self.store.address(done)), remaining)

    # ------------------------------------------------------------------ finding

    def _begun(self, asked: Collection[str]) -> list[Withdrawal]:
        """The records of withdrawals by the same words since the last of them that left nothing behind."""
        begun: list[Withdrawal] = []
        for record in sorted(withdrawals(self.store), key=lambda record: record.created):
            if {*record.asked} == {*asked}:
                begun = [] if self._is_done(record) else [*begun, record]
        return begun

    def _is_done(self, record: Withdrawal) -> bool:
        path = f"audit/{record.id}-done.json"
        try:
            return not parse(WithdrawalOutcome, self.store.read(path), self.store.address(path)).remaining
        except NotFoundError:
            return False

    def _add(self, plan: Plan, family: _Family, prefix: str, why: str) -> None:
        if prefix in family.versions:
            plan.versions.setdefault(prefix, (family.versions[prefix], why))
        elif prefix not in plan.gone:
            plan.gone.append(prefix)

    def _named(self, kind: Kind, reference: str, family: _Family) -> Iterator[tuple[str, str]]:
        """The folders of versions that a reference names, and why each goes."""
        if f"{kind}/{reference}" in family.gone:
            yield f"{kind}/{reference}", "named"
        elif "@" in reference or "/" in reference:
            yield self.registry.resolve(kind, reference).prefix, "named"
        else:
            folder = f"{kind}/{check_name(reference)}/"
            found = [prefix for prefix in (*family.versions, *family.gone) if prefix.startswith(folder)]
            if not found:
                self.registry.resolve(kind, reference)  # which says what there is
            yield from ((prefix, "named") for prefix in found)

    def _matching(
        self, word: str, family: _Family, what: str, matches: Callable[[Version, str], bool]
    ) -> Iterator[tuple[str, str]]:
        """The folders of versions that have a word, and why each goes."""
        found = [version for version in family.versions.values() if matches(version, word)]
        if not found and not (what == "dataset" and word in family.datasets):  # of runs it may be
            known = sorted(family.datasets)
            undecided = "".join(f"\n  - {line}" for line in self._undecided(Plan(), family))
            raise NotFoundError(
                f"nothing in {self.store.url} has the {what} {word!r}{nearest(word, known) or '.'} "
                f"Recordings that lineages and runs name: {', '.join(known) or 'none'}"
                + (undecided and f". Cannot be told; look at each:{undecided}")
            )
        yield from ((version.prefix, f"{what} {word}") for version in found)

    def _add_same_recordings(self, plan: Plan, family: _Family) -> None:
        """From what is named, by way of its recordings and runs, to all that was trained on them."""
        models = {prefix for prefix, (version, _) in plan.versions.items() if version.kind == "models"}
        for prefix, (version, _) in plan.versions.items():
            if version.kind == "voices":
                models.update(family.parents[prefix])
        plan.gone = sorted({*plan.gone, *(models & family.gone)})
        for key in ("dataset", "run"):
            values = {family.versions[each].manifest.lineage.get(key) for each in models - family.gone}
            values.discard(None)
            if key == "dataset":
                values |= {*plan.datasets}
                plan.datasets = sorted(map(str, values))
            for version in family.versions.values():
                value = version.manifest.lineage.get(key)
                if value in values:
                    plan.versions.setdefault(version.prefix, (version, f"same {key}: {value}"))

    def _add_descendants(self, plan: Plan, family: _Family) -> None:
        grown = True
        while grown:
            grown = False
            names = {prefix.split("/")[1] for prefix in plan.folders if prefix.startswith("models/")}
            for prefix, version in family.versions.items():
                if prefix in plan.versions:
                    continue
                made_from = [parent for parent in family.parents[prefix] if parent in plan.folders]
                base = str(version.manifest.lineage.get("base", ""))  # of old manifests, without the version
                if made_from or ("/" not in base and base.partition("@")[0] in names):
                    why = f"made from {made_from[0] if made_from else f'some version of {base}'}"
                    plan.versions[prefix] = (version, why)
                    grown = True

    def _complete(self, plan: Plan, family: _Family) -> None:
        runs = {str(version.manifest.lineage.get("run")) for version, _ in plan.versions.values()}
        runs |= {run for record in plan.begun for run in record.runs}
        plan.runs = sorted(
            run
            for run, origin in family.runs.items()
            if run in runs or origin.base in plan.folders or origin.dataset in plan.datasets
        )
        for kind in KINDS:
            for name in sorted(
                {folder.split("/")[1] for folder in plan.folders if folder.startswith(f"{kind}/")}
            ):
                plan.aliases += [
                    f"{kind}/{name}@{alias}"
                    for alias, id_ in self.registry.aliases(kind, name).items()
                    if f"{kind}/{name}/{id_}" in plan.folders
                ]
        plan.undecided = [*self._undecided(plan, family)]

    def _undecided(self, plan: Plan, family: _Family) -> Iterator[str]:
        for prefix in sorted({*plan.gone} - plan.recorded.keys()):
            yield f"{prefix}: not there any more, so that its recordings and its base are not known; name them too"
        for prefix, version in family.versions.items():
            if prefix in plan.versions:
                continue
            missing = [parent for parent in family.parents[prefix] if parent in family.gone]
            if missing:
                yield _made_from_missing(prefix, missing[0])
            elif not version.manifest.lineage.get("dataset") and not family.parents[prefix]:
                yield f"{prefix}: its lineage names neither recordings nor a model"
        named = {str(version.manifest.lineage.get("run")) for version in family.versions.values()}
        for run, origin in family.runs.items():
            if run in plan.runs:
                continue
            if origin.base in family.gone:
                yield _made_from_missing(f"runs/{run}", str(origin.base))
            elif run not in named and not origin.dataset:
                yield f"runs/{run}: no version names it, and no state of it names its recordings"
        for kind in KINDS:
            folders = {"/".join(item.path.split("/")[:3]) for item in self.store.list(kind)}
            yield from (
                f"{prefix}: never completed; 'vits {kind} gc' deletes it a day after its last write"
                for prefix in sorted(folders - {*family.versions, *plan.gone})
            )

    def _published_meanwhile(self, plan: Plan, staying: Sequence[Version]) -> Iterator[str]:
        """The manifests of what was published between the search and the record, which keeps more from coming."""
        for version in staying:
            made_from = plan.folders.intersection(parents(version, self.registry))
            if made_from or version.manifest.lineage.get("dataset") in plan.datasets:
                yield f"{version.prefix}/manifest.json"

    def _forget(self, plan: Plan, staying: Sequence[Version]) -> None:
        """Remove the files from this machine's cache, unless a version that stays has the same."""
        kept = {entry.sha256 for version in staying for entry in version.manifest.files}
        cache = Cache(self.registry.cache)
        for version, _ in plan.versions.values():
            for entry in version.manifest.files:
                if entry.sha256 not in kept:
                    try:
                        cache.forget(entry)
                    except OSError as error:
                        raise StoreError(
                            f"{version.prefix} cannot be removed from this machine's cache {self.registry.cache}, so "
                            f"nothing was deleted yet: {error}. Check the permissions there, and purge again"
                        ) from error


def _already_gone(prefix: str) -> WithdrawnVersion:
    """How the record names a version that was deleted before."""
    _, name, version = prefix.split("/")
    return WithdrawnVersion(
        kind="models", name=name, version=version, why="named, not there any more", bytes=0
    )


def _made_from_missing(folder: str, missing: str) -> str:
    return (
        f"{folder}: made from {missing}, which is not there; if that was made of these recordings, "
        f"'vits models delete {missing.removeprefix('models/')} --purge' deletes what comes from it"
    )


def _trained_on(version: Version, dataset: str) -> bool:
    return version.manifest.lineage.get("dataset") == dataset


def _mentions(version: Version, words: str) -> bool:
    texts = [*version.manifest.sources, version.manifest.consent or ""]
    return any(words.casefold() in text.casefold() for text in texts)
