"""When a speaker withdraws consent: every version made from their recordings is found by lineage and deleted.

Versions name the recordings that they were trained on (``dataset``), their run and their base, and voices name their
model. From what is asked for, the search goes up to the recordings, and from these down to everything made of them.
A version that is not there leads to what was made from it all the same, but not to its own recordings. So none is
deleted while something comes from it (`shared.collection`); where one is missing nevertheless, the user is told.
What is about to be deleted is written down first, as an object below ``audit/`` that nothing ever replaces and that
keeps it from being published again (`shared.consent`), and what became of it in a second one at the end. Only one store
can be reached from here: `UNREACHED` says what else there is.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from shared.cache import Cache
from shared.collection import every_version, parents
from shared.errors import NotFoundError, nearest
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
    this_writer,
)
from shared.registry import Registry, Version
from shared.runs import bases_of_unfinished

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
        versions: By folder in the store: the version, and why it is among them.
        gone: Folders of versions that are not there any more, from which others were made that go.
        runs: The runs whose state goes too.
        datasets: The recordings, as lineages name them. Of these nothing is published any more.
        aliases: Aliases that will point to nothing, as ``kind/name@alias``.
        undecided: Versions whose lineage does not name the recordings, or names a version that is not there;
            what was never completed, and runs that no version names.
    """

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
        gone: The folders of what versions were made from and is not there.
        runs: The runs that have left something in the store.
    """

    def __init__(self, registry: Registry) -> None:
        self.versions = {version.prefix: version for version in every_version(registry)}
        self.parents = {prefix: parents(version, registry) for prefix, version in self.versions.items()}
        self.gone = {each for made_from in self.parents.values() for each in made_from} - self.versions.keys()
        self.runs = {item.path.split("/")[1] for item in registry.store.list("runs")}


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
        plan = Plan()
        for prefix, why in self._named(kind, references, datasets, sources, family):
            if prefix in family.gone:
                plan.gone.append(prefix)
            else:
                plan.versions.setdefault(prefix, (family.versions[prefix], why))
        self._add_same_recordings(plan, family)
        self._add_descendants(plan, family)
        self._complete(plan, family)
        return plan

    def carry_out(self, plan: Plan, *, asked: Sequence[str], reason: str) -> Outcome:
        """Delete what was planned, between two records in the store that stay.

        Args:
            plan: What to delete.
            asked: What was asked for, in words.
            reason: Why, for whoever reads the record.

        Raises:
            StoreError: The store failed. The first record says what was to go: do it again.
        """
        record = Withdrawal(
            id=new_version_id(),
            nonce=new_nonce(),
            writer=this_writer(),
            created=now(),
            reason=reason,
            asked=tuple(asked),
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
            + tuple(map(_already_gone, plan.gone)),
            runs=tuple(plan.runs),
            datasets=tuple(plan.datasets),
            aliases=tuple(plan.aliases),
            undecided=tuple(plan.undecided),
        )
        begun = f"audit/{record.id}.json"
        self.store.create(begun, record.to_bytes(), nonce=record.nonce)
        prefixes = [*(f"runs/{run}" for run in plan.runs), *reversed(plan.versions), *plan.gone]
        # From the far end, so that the same words find what is left if this breaks off: states of runs, which versions
        # lead to; what was made of others before those; and what was named last.
        for prefix in prefixes:
            if prefix in plan.versions:
                self.registry.delete(plan.versions[prefix][0])
            self.registry.remove_leftovers(prefix)
            if self.store.root:  # what a killed writer left half written is in no listing
                shutil.rmtree(self.store.root / prefix, ignore_errors=True)
        staying = list(every_version(self.registry))
        self._forget(plan, staying)
        remaining = (
            *(item.path for prefix in prefixes for item in self.store.list(prefix)),
            *self._published_meanwhile(plan, staying),
        )
        outcome = WithdrawalOutcome(id=record.id, nonce=new_nonce(), created=now(), remaining=remaining)
        done = f"audit/{record.id}-done.json"
        self.store.create(done, outcome.to_bytes(), nonce=outcome.nonce)
        return Outcome((self.store.address(begun), self.store.address(done)), remaining)

    # ------------------------------------------------------------------ finding

    def _named(
        self,
        kind: Kind,
        references: Sequence[str],
        datasets: Sequence[str],
        sources: Sequence[str],
        family: _Family,
    ) -> Iterator[tuple[str, str]]:
        """The folders of versions that are asked for, and why each is."""
        for reference in references:
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
        for dataset in datasets:
            yield from self._matching(dataset, family, "dataset", _trained_on)
        for source in sources:
            yield from self._matching(source, family, "source", _mentions)

    def _matching(
        self, word: str, family: _Family, what: str, matches: Callable[[Version, str], bool]
    ) -> Iterator[tuple[str, str]]:
        found = [version for version in family.versions.values() if matches(version, word)]
        if not found:
            known = sorted(
                {
                    str(each)
                    for version in family.versions.values()
                    if (each := version.manifest.lineage.get("dataset"))
                }
            )
            undecided = "".join(f"\n  - {line}" for line in self._undecided(Plan(), family))
            raise NotFoundError(
                f"nothing in {self.store.url} has the {what} {word!r}{nearest(word, known) or '.'} "
                f"Recordings that lineages name: {', '.join(known) or 'none'}"
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
        runs |= {run for run, base in bases_of_unfinished(self.store).items() if base in plan.folders}
        plan.runs = sorted(runs & family.runs)
        for kind in KINDS:
            for name in sorted(
                {version.name for version, _ in plan.versions.values() if version.kind == kind}
            ):
                plan.aliases += [
                    f"{kind}/{name}@{alias}"
                    for alias, id_ in self.registry.aliases(kind, name).items()
                    if f"{kind}/{name}/{id_}" in plan.versions
                ]
        plan.undecided = [*self._undecided(plan, family)]

    def _undecided(self, plan: Plan, family: _Family) -> Iterator[str]:
        for prefix in plan.gone:
            yield f"{prefix}: not there any more, so that its recordings and its base are not known; name them too"
        for prefix, version in family.versions.items():
            if prefix in plan.versions:
                continue
            missing = [parent for parent in family.parents[prefix] if parent in family.gone]
            if missing:
                yield (
                    f"{prefix}: made from {missing[0]}, which is not there; if that was made of these recordings, "
                    f"'vits models delete {missing[0].removeprefix('models/')} --purge' deletes what comes from it"
                )
            elif not version.manifest.lineage.get("dataset") and not family.parents[prefix]:
                yield f"{prefix}: its lineage names neither recordings nor a model"
        named = {str(version.manifest.lineage.get("run")) for version in family.versions.values()}
        yield from (f"runs/{run}: no version names it" for run in sorted(family.runs - named - {*plan.runs}))
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
                    cache.forget(entry)


def _already_gone(prefix: str) -> WithdrawnVersion:
    """How the record names a version that was deleted before."""
    _, name, version = prefix.split("/")
    return WithdrawnVersion(
        kind="models", name=name, version=version, why="named, not there any more", bytes=0
    )


def _trained_on(version: Version, dataset: str) -> bool:
    return version.manifest.lineage.get("dataset") == dataset


def _mentions(version: Version, words: str) -> bool:
    texts = [*version.manifest.sources, version.manifest.consent or ""]
    return any(words.casefold() in text.casefold() for text in texts)
