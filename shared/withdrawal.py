"""When a speaker withdraws consent: every version made from their recordings is found by lineage and deleted.

Versions name the recordings that they were trained on (``dataset``), their run and their base, and voices name their
model. From what is asked for, the search goes up to the recordings, and from these down to everything made of them.
What is about to be deleted is written down first, as an object below ``audit/`` that nothing ever replaces and that
keeps it from being published again (`shared.consent`), and what became of it in a second one at the end. Only one store
can be reached from here: `UNREACHED` says what else there is.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from shared.cache import Cache
from shared.collection import parents
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
        runs: The runs whose state goes too.
        datasets: The recordings, as lineages name them. Of these nothing is published any more.
        aliases: Aliases that will point to nothing, as ``kind/name@alias``.
        undecided: Versions whose lineage does not name the recordings or that were never completed, and runs that no
            version names.
    """

    versions: dict[str, tuple[Version, str]] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What became of a plan.

    Attributes:
        audit: Addresses of the two records in the store.
        remaining: Objects that are still there; none when all went well.
    """

    audit: tuple[str, str]
    remaining: tuple[str, ...]


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
            CorruptObjectError: A manifest cannot be read.
            StoreError: The store failed.
        """
        versions = {version.prefix: version for version in self._all()}
        plan = Plan()
        for version, why in self._named(kind, references, datasets, sources, versions):
            plan.versions.setdefault(version.prefix, (version, why))
        self._add_same_recordings(plan, versions)
        self._add_descendants(plan, versions)
        self._complete(plan, versions)
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
            ),
            runs=tuple(plan.runs),
            datasets=tuple(plan.datasets),
            aliases=tuple(plan.aliases),
            undecided=tuple(plan.undecided),
        )
        begun = f"audit/{record.id}.json"
        self.store.create(begun, record.to_bytes(), nonce=record.nonce)
        prefixes = [*(f"runs/{run}" for run in plan.runs), *reversed(plan.versions)]
        # From the far end, so that the same words find what is left if this breaks off: states of runs, which versions
        # lead to; what was made of others before those; and what was named last.
        for prefix in prefixes:
            if prefix in plan.versions:
                self.registry.delete(plan.versions[prefix][0])
            self.registry.remove_leftovers(prefix)
            if self.store.root:  # what a killed writer left half written is in no listing
                shutil.rmtree(self.store.root / prefix, ignore_errors=True)
        staying = list(self._all())
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

    def _all(self) -> Iterator[Version]:
        for kind in KINDS:
            for name in self.registry.names(kind):
                for version in self.registry.versions(kind, name):
                    yield self.registry.resolve(kind, f"{name}/{version}")

    def _named(
        self,
        kind: Kind,
        references: Sequence[str],
        datasets: Sequence[str],
        sources: Sequence[str],
        versions: dict[str, Version],
    ) -> Iterator[tuple[Version, str]]:
        for reference in references:
            if "@" in reference or "/" in reference:
                yield self.registry.resolve(kind, reference), "named"
                continue
            self.registry.resolve(kind, f"{check_name(reference)}/{self._newest(kind, reference)}")
            for version in versions.values():
                if (version.kind, version.name) == (kind, reference):
                    yield version, "named"
        for dataset in datasets:
            yield from self._matching(dataset, versions, "dataset", _trained_on)
        for source in sources:
            yield from self._matching(source, versions, "source", _mentions)

    def _newest(self, kind: Kind, name: str) -> str:
        versions = self.registry.versions(kind, name)
        return versions[-1] if versions else self.registry.resolve(kind, name).id

    def _matching(
        self, word: str, versions: dict[str, Version], what: str, matches: Callable[[Version, str], bool]
    ) -> Iterator[tuple[Version, str]]:
        found = [version for version in versions.values() if matches(version, word)]
        if not found:
            known = sorted(
                {
                    str(each)
                    for version in versions.values()
                    if (each := version.manifest.lineage.get("dataset"))
                }
            )
            raise NotFoundError(
                f"nothing in {self.store.url} has the {what} {word!r}{nearest(word, known) or '.'} "
                f"Recordings that lineages name: {', '.join(known) or 'none'}"
            )
        yield from ((version, f"{what} {word}") for version in found)

    def _add_same_recordings(self, plan: Plan, versions: dict[str, Version]) -> None:
        """From what is named, by way of its recordings and runs, to all that was trained on them."""
        models = {prefix for prefix, (version, _) in plan.versions.items() if version.kind == "models"}
        for version, _ in plan.versions.values():
            if version.kind == "voices":
                models |= {prefix for prefix in parents(version, self.registry) if prefix in versions}
        for key in ("dataset", "run"):
            values = {versions[prefix].manifest.lineage.get(key) for prefix in models} - {None}
            if key == "dataset":
                plan.datasets = sorted(map(str, values))
            for version in versions.values():
                value = version.manifest.lineage.get(key)
                if value in values:
                    plan.versions.setdefault(version.prefix, (version, f"same {key}: {value}"))

    def _add_descendants(self, plan: Plan, versions: dict[str, Version]) -> None:
        grown = True
        while grown:
            grown = False
            names = {version.name for version, _ in plan.versions.values() if version.kind == "models"}
            for version in versions.values():
                if version.prefix in plan.versions:
                    continue
                made_from = [prefix for prefix in parents(version, self.registry) if prefix in plan.versions]
                base = str(version.manifest.lineage.get("base", ""))  # of old manifests, without the version
                if made_from or ("/" not in base and base.partition("@")[0] in names):
                    why = f"made from {made_from[0] if made_from else f'some version of {base}'}"
                    plan.versions[version.prefix] = (version, why)
                    grown = True

    def _complete(self, plan: Plan, versions: dict[str, Version]) -> None:
        runs = {str(version.manifest.lineage.get("run")) for version, _ in plan.versions.values()}
        stored = {item.path.split("/")[1] for item in self.store.list("runs")}
        plan.runs = sorted(runs & stored)
        for kind in KINDS:
            for name in sorted(
                {version.name for version, _ in plan.versions.values() if version.kind == kind}
            ):
                plan.aliases += [
                    f"{kind}/{name}@{alias}"
                    for alias, id_ in self.registry.aliases(kind, name).items()
                    if f"{kind}/{name}/{id_}" in plan.versions
                ]
        named = {str(version.manifest.lineage.get("run")) for version in versions.values()}
        plan.undecided = [
            f"{version.prefix}: its lineage names neither recordings nor a model"
            for version in versions.values()
            if version.prefix not in plan.versions
            and not version.manifest.lineage.get("dataset")
            and not any(prefix in versions for prefix in parents(version, self.registry))
        ]
        plan.undecided += [f"runs/{run}: no version names it" for run in sorted(stored - named)]
        for kind in KINDS:
            folders = {"/".join(item.path.split("/")[:3]) for item in self.store.list(kind)}
            plan.undecided += [
                f"{prefix}: never completed; 'vits {kind} gc' deletes it a day after its last write"
                for prefix in sorted(folders - set(versions))
            ]

    def _published_meanwhile(self, plan: Plan, staying: Sequence[Version]) -> Iterator[str]:
        """The manifests of what was published between the search and the record, which keeps more from coming."""
        for version in staying:
            made_from = plan.versions.keys() & parents(version, self.registry)
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


def _trained_on(version: Version, dataset: str) -> bool:
    return version.manifest.lineage.get("dataset") == dataset


def _mentions(version: Version, words: str) -> bool:
    texts = [*version.manifest.sources, version.manifest.consent or ""]
    return any(words.casefold() in text.casefold() for text in texts)
