"""Withdrawn consent: everything made of the recordings goes, nothing else does, and the record says so."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

import shared.withdrawal
from shared.collection import every_version
from shared.consent import withdrawals
from shared.copying import copy_version
from shared.errors import ConsentError, NotFoundError, StoreError
from shared.manifests import Kind, Manifest, Withdrawal, WithdrawalOutcome, new_nonce, parse
from shared.registry import Registry, Version
from shared.runs import CONFIG_FILE, TRAINER_FILE, Run
from shared.store import Store, digest_file
from shared.withdrawal import Plan, Withdrawals


@pytest.fixture(params=["file", "memory"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    url = "memory://" if request.param == "memory" else str(tmp_path / "store")
    return Registry(Store.open(url), tmp_path / "cache")


@pytest.fixture
def family(registry: Registry, tmp_path: Path) -> dict[str, Version]:
    """Ana's two models, what was made of them, and Luis's, with a base and a voice from elsewhere."""
    folder = tmp_path / "folder"
    folder.mkdir()

    def publish(kind: Kind, name: str, consent: str | None = None, **lineage: object) -> Version:
        (folder / "weights").write_bytes(new_nonce().encode())
        return registry.publish(
            kind,
            name,
            folder,
            licence="MIT",
            sources=[f"{name} corpus"],
            consent=consent,
            lineage=lineage,  # type: ignore[arg-type]
        )

    def of(model: Version) -> dict[str, str]:
        return {"name": model.name, "version": model.id}

    base = publish("models", "base", dataset="corpus")
    luis = publish("models", "luis", base="base", dataset="luis.csv", run="luis")
    ana = publish("models", "ana", "Ana, 1 May", base="base", dataset="ana.csv", run="ana", step=1)
    again = publish("models", "second", base="base", dataset="ana.csv", run="second", step=9)
    registry.move_alias("models", "ana", "latest", ana.id)
    child = publish("models", "child", base="ana@latest", dataset="other.csv", run="child")
    family = {"base": base, "luis": luis, "ana": ana, "again": again, "child": child}
    for name in list(family):
        family[f"{name} voice"] = publish("voices", family[name].name, model=of(family[name]))
    family["unknown"] = publish("voices", "unknown", folder="/somewhere")
    for run in ("ana", "luis", "stray"):
        Run.acquire(registry.store, run).save_checkpoint(1, folder)
    registry.move_alias("voices", "ana", "production", family["ana voice"].id)
    registry.store.write(f"{CRASHED}/weights", b"of a publisher that died")
    return family


CRASHED = "models/ana/20260102T030405-89abcdef"
ANAS = {"ana", "again", "child", "ana voice", "again voice", "child voice"}


def names(family: dict[str, Version], plan: Plan) -> set[str]:
    return {name for name, version in family.items() if version.prefix in plan.versions}


@pytest.mark.parametrize(
    ("kind", "references", "options"),
    [
        ("models", ["ana"], {}),
        ("voices", ["ana@production"], {}),
        ("voices", ["second"], {}),
        ("models", [], {"datasets": ["ana.csv"]}),
        ("models", [], {"sources": ["ANA, 1 may"]}),
    ],
)
def test_everything_made_of_the_recordings_is_found_from_any_end(
    registry: Registry,
    family: dict[str, Version],
    kind: Kind,
    references: list[str],
    options: dict[str, list[str]],
) -> None:
    plan = Withdrawals(registry).plan(kind, references, **options)
    assert names(family, plan) == ANAS
    assert plan.runs == ["ana"]
    assert plan.datasets == ["ana.csv"]  # not Luis's, on which a model went on from Ana's
    assert set(plan.aliases) == {"models/ana@latest", "voices/ana@production"}
    left = [line.partition(":")[0] for line in plan.undecided]
    assert left == [family["unknown"].prefix, "runs/stray", CRASHED]


@pytest.mark.parametrize("asked", ["ana", "ana/version"])
def test_what_was_made_from_a_version_that_is_gone_is_found_by_its_name(
    registry: Registry, family: dict[str, Version], tmp_path: Path, asked: str
) -> None:
    ana = family["ana"]
    registry.delete(ana)
    purges = Withdrawals(registry)
    plan = purges.plan("models", [asked.replace("version", ana.id)])
    assert names(family, plan) == {"child", "child voice", "ana voice"}
    assert plan.gone == [ana.prefix]
    assert plan.undecided[0].startswith(f"{ana.prefix}: not there any more")
    outcome = purges.carry_out(plan, reason="letter")
    assert outcome.remaining == ()
    with pytest.raises(ConsentError, match=ana.reference):
        again(registry, tmp_path, base=ana.reference)


def test_what_may_come_from_the_recordings_by_way_of_a_version_that_is_gone_is_told(
    registry: Registry, family: dict[str, Version]
) -> None:
    registry.delete(family["ana"])
    plan = Withdrawals(registry).plan("models", datasets=["ana.csv"])
    assert names(family, plan) == {"again", "again voice"}
    for name in ("child", "ana voice"):
        (line,) = (line for line in plan.undecided if line.startswith(f"{family[name].prefix}: made from"))
        assert f"{family['ana'].prefix}, which is not there" in line
        assert f"vits models delete {family['ana'].reference} --purge" in line


@pytest.mark.parametrize("options", [{"datasets": ["ana.csv"]}, {"sources": ["Ana, 1 May"]}])
def test_where_nothing_is_of_the_recordings_any_more_it_is_told_what_may_be(
    registry: Registry, family: dict[str, Version], options: dict[str, list[str]]
) -> None:
    """Their models are gone, and a voice is left."""
    for name in ("ana", "again"):
        registry.delete(family[name])
    with pytest.raises(NotFoundError, match="nothing in") as raised:
        Withdrawals(registry).plan("models", **options)
    for line in (f"{family['ana voice'].prefix}: made from {family['ana'].prefix}", "runs/stray: no version"):
        assert f"\n  - {line}" in str(raised.value)


def test_voices_of_a_model_that_is_gone_are_found_from_one_another(
    registry: Registry, family: dict[str, Version], tmp_path: Path
) -> None:
    ana = family["ana"]
    second = again(registry, tmp_path, "voices", model={"name": "ana", "version": ana.id})
    registry.delete(ana)
    plan = Withdrawals(registry).plan("voices", ["again"])
    assert set(plan.versions) == {
        second.prefix,
        *(family[n].prefix for n in ("ana voice", "child", "child voice")),
    }
    assert plan.gone == [ana.prefix]


def test_a_run_that_began_from_what_goes_loses_its_state(
    registry: Registry, family: dict[str, Version], tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir()
    state = {"base": family["child"].reference, "global_step": 1, "max_steps": 2}
    (tmp_path / "state" / TRAINER_FILE).write_text(json.dumps(state))
    Run.acquire(registry.store, "further").save_checkpoint(1, tmp_path / "state")
    plan = Withdrawals(registry).plan("models", ["ana"])
    assert plan.runs == ["ana", "further"]
    assert not any("further" in line for line in plan.undecided)


def save_run(registry: Registry, tmp_path: Path, run: str, dataset: str, **state: object) -> None:
    folder = tmp_path / run
    folder.mkdir()
    (folder / TRAINER_FILE).write_text(json.dumps({"global_step": 1, "max_steps": 2, **state}))
    configuration = {"dataset_name": dataset, "max_steps": None, "seed": 42}
    (folder / CONFIG_FILE).write_text(json.dumps(configuration))
    Run.acquire(registry.store, run).save_checkpoint(1, folder)


@pytest.mark.parametrize("step", [1, 2])
def test_a_run_that_is_trained_on_the_recordings_loses_its_state(
    registry: Registry, family: dict[str, Version], tmp_path: Path, step: int
) -> None:
    """It has published nothing, or that was collected; its base is no version of the store. Luis's stays."""
    save_run(registry, tmp_path, "third", "ana.csv", global_step=step, base="facebook/mms-tts-spa")
    save_run(registry, tmp_path, "luis-again", "luis.csv", base="facebook/mms-tts-spa")
    plan = Withdrawals(registry).plan("models", ["ana"])
    assert plan.runs == ["ana", "third"]
    assert not any("third" in line or "luis-again" in line for line in plan.undecided)


def test_recordings_of_which_nothing_was_published_are_withdrawn_with_their_run(
    registry: Registry, family: dict[str, Version], tmp_path: Path
) -> None:
    save_run(registry, tmp_path, "eva", "eva.csv")
    plan = Withdrawals(registry).plan("models", datasets=["eva.csv"])
    assert (plan.runs, plan.datasets, plan.folders) == (["eva"], ["eva.csv"], set())
    assert Withdrawals(registry).carry_out(plan, reason="letter").remaining == ()
    assert registry.store.list("runs/eva") == []
    with pytest.raises(ConsentError, match=r"eva\.csv"):
        again(registry, tmp_path, dataset="eva.csv")


@pytest.mark.parametrize("step", [1, 2])
def test_a_run_that_began_from_a_version_that_is_gone_is_told_of_and_found_by_it(
    registry: Registry, family: dict[str, Version], tmp_path: Path, step: int
) -> None:
    gone = "eva/20260102T030405-89abcdef"
    save_run(registry, tmp_path, "further", "other.csv", base=gone, global_step=step)
    plan = Withdrawals(registry).plan("models", ["ana"])
    (line,) = (line for line in plan.undecided if line.startswith("runs/further"))
    assert f"vits models delete {gone} --purge" in line
    plan = Withdrawals(registry).plan("models", [gone])
    assert (plan.runs, plan.gone) == (["further"], [f"models/{gone}"])


def test_a_purge_deletes_what_was_planned_and_leaves_a_record(
    registry: Registry, family: dict[str, Version]
) -> None:
    for version in family.values():
        registry.fetch(version)
    if registry.store.root:
        half = registry.store.root / family["ana"].prefix / "weights#1"
        half.write_bytes(b"half of Ana's")
    purges = Withdrawals(registry)
    plan = purges.plan("models", ["ana"])
    outcome = purges.carry_out(plan, reason="letter of 3 May")
    assert outcome.remaining == ()
    for name, version in family.items():
        if name in ANAS:
            assert registry.store.list(version.prefix) == []
            assert not (registry.store.root and (registry.store.root / version.prefix).exists())
        else:
            registry.fetch(registry.resolve(version.kind, version.reference))
    assert {item.path.split("/")[1] for item in registry.store.list("runs")} == {"luis", "stray"}
    first, last = (registry.store.read(item.path) for item in reversed(registry.store.list("audit")))
    record = Withdrawal.model_validate_json(first)
    assert record.reason == "letter of 3 May"
    assert {version.version for version in record.versions} == {family[name].id for name in ANAS}
    assert WithdrawalOutcome.model_validate_json(last).id == record.id
    gone = {entry.sha256 for name in ANAS for entry in family[name].manifest.files}
    cached = {path.name for path in registry.cache.glob("blobs/*/*")}
    assert not gone & cached
    weights = list(registry.cache.rglob("weights"))
    assert len(weights) == (0 if registry.store.root else len(family) - len(ANAS))


def test_the_record_is_written_before_anything_is_deleted(
    registry: Registry, family: dict[str, Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        assert len(registry.store.list("audit")) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "delete", broken)
    purges = Withdrawals(registry)
    with pytest.raises(KeyboardInterrupt):
        purges.carry_out(purges.plan("models", ["ana"]), reason="letter")
    (record,) = registry.store.list("audit")
    assert "letter" in json.loads(registry.store.read(record.path))["reason"]


WORDS = [(["ana"], {}), ([], {"datasets": ["ana.csv"]}), ([], {"sources": ["Ana, 1 May"]})]


def assert_ended(registry: Registry, family: dict[str, Version]) -> None:
    """Everything of Ana's is gone, nothing else is, and the last record says that it was carried out."""
    there = {version.prefix for version in every_version(registry)}
    assert there == {version.prefix for name, version in family.items() if name not in ANAS}
    assert not [item for name in ANAS for item in registry.store.list(family[name].prefix)]
    assert {item.path.split("/")[1] for item in registry.store.list("runs")} == {"luis", "stray"}
    last = max(withdrawals(registry.store), key=lambda record: record.created)
    assert {each.prefix for each in last.versions} == {family[name].prefix for name in ANAS}
    assert last.datasets == ("ana.csv",)  # not those of what went on from hers
    done = registry.store.read(f"audit/{last.id}-done.json")
    assert WithdrawalOutcome.model_validate_json(done).remaining == ()
    gone = {entry.sha256 for name in ANAS for entry in family[name].manifest.files}
    assert not gone & {digest_file(path).sha256 for path in registry.cache.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("references", "options"), WORDS)
def test_a_purge_that_breaks_off_again_and_again_comes_to_its_end(
    registry: Registry,
    family: dict[str, Version],
    references: list[str],
    options: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After every object that it deletes."""
    delete, broken = Store.delete, [0]

    def and_breaks(store: Store, path: str) -> None:
        delete(store, path)
        broken[0] += 1
        raise StoreError("the store is away")

    for version in family.values():
        registry.fetch(version)
    monkeypatch.setattr(Store, "delete", and_breaks)
    for _ in range(100):
        plan = Withdrawals(registry).plan("models", references, **options)
        with contextlib.suppress(StoreError):
            Withdrawals(registry).carry_out(plan, reason="letter")
            break
    assert broken[0] >= len(ANAS)
    assert_ended(registry, family)
    with pytest.raises(NotFoundError):
        Withdrawals(registry).plan("models", references, **options)


@pytest.mark.parametrize(("references", "options"), WORDS)
@pytest.mark.parametrize("where", ["every_version", "create", "list"])
def test_a_purge_that_breaks_off_between_its_records_goes_on_when_it_is_run_again(
    registry: Registry,
    family: dict[str, Version],
    references: list[str],
    options: dict[str, list[str]],
    where: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While it looks for what stays, after the last deletion, and just before the second record."""
    for version in family.values():
        registry.fetch(version)
    plan = Withdrawals(registry).plan("models", references, **options)

    def breaks(*arguments: Any, **_: object) -> Any:
        broken = {
            "create": lambda: str(arguments[1]).endswith("-done.json"),
            "list": lambda: not registry.store.exists(f"{family['ana'].prefix}/claim.json"),
        }
        if where not in broken or broken[where]():
            raise StoreError("the store is away")
        return original(*arguments, **_)

    owner = shared.withdrawal if where == "every_version" else Store
    original = getattr(owner, where)
    with monkeypatch.context() as away:
        away.setattr(owner, where, breaks)
        with pytest.raises(StoreError, match="away"):
            Withdrawals(registry).carry_out(plan, reason="letter")
    plan = Withdrawals(registry).plan("models", references, **options)
    assert [record.reason for record in plan.begun] == ["letter"]
    assert Withdrawals(registry).carry_out(plan, reason="letter").remaining == ()
    assert_ended(registry, family)
    with pytest.raises(NotFoundError):
        Withdrawals(registry).plan("models", references, **options)


def test_what_cannot_be_removed_from_the_cache_stops_a_purge_before_it_deletes(
    registry: Registry, family: dict[str, Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr("shared.cache.Cache.forget", refuse)
    plan = Withdrawals(registry).plan("models", ["ana"])
    with pytest.raises(StoreError, match=r"cache.*nothing was deleted yet.*not yours.*purge again"):
        Withdrawals(registry).carry_out(plan, reason="letter")
    assert {version.prefix for version in every_version(registry)} == {v.prefix for v in family.values()}


def again(registry: Registry, tmp_path: Path, kind: Kind = "models", **lineage: object) -> Version:
    folder = tmp_path / "folder"
    return registry.publish(
        kind,
        "again",
        folder,
        licence="MIT",
        sources=[],
        consent=None,
        lineage=lineage,  # type: ignore[arg-type]
    )


def purge(registry: Registry) -> str:
    """Withdraw Ana's recordings; the address of the record."""
    purges = Withdrawals(registry)
    plan = purges.plan("models", datasets=["ana.csv"])
    return purges.carry_out(plan, reason="letter").audit[0]


def test_nothing_made_of_what_was_withdrawn_is_published_any_more(
    registry: Registry, family: dict[str, Version], tmp_path: Path
) -> None:
    elsewhere = Registry(Store.open("memory://"), tmp_path / "elsewhere")
    for name in ("ana", "ana voice"):
        copy_version(registry.store, family[name], elsewhere)
    record, before = purge(registry), registry.store.list("models")
    for kind, lineage in (
        ("models", {"dataset": "ana.csv", "run": "new"}),
        ("models", {"dataset": "new.csv", "base": family["child"].reference}),
        ("voices", {"model": {"name": "ana", "version": family["ana"].id}}),
    ):
        with pytest.raises(ConsentError, match=rf"withdrawn \({record}\)"):
            again(registry, tmp_path, kind, **lineage)  # type: ignore[arg-type]
    for name in ("ana", "ana voice"):
        with pytest.raises(ConsentError, match=rf"withdrawn \({record}\)"):
            copy_version(elsewhere.store, family[name], registry)
    assert registry.store.list("models") == before
    # What only shares a base or a part of a name with it does.
    again(registry, tmp_path, dataset="ana.csv.2", base=family["luis"].reference)
    again(registry, tmp_path, dataset="other.csv")


def test_what_is_withdrawn_just_as_it_is_published_is_deleted_again(
    registry: Registry, family: dict[str, Version], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record comes after the publisher has looked for one, and the search ends before its manifest is there."""
    create = Store.create

    def then_withdrawn(self: Store, path: str, data: bytes, *, nonce: str) -> None:
        if path.startswith("models/again/") and path.endswith("manifest.json"):
            monkeypatch.setattr(Store, "create", create)
            purge(registry)
        create(self, path, data, nonce=nonce)

    monkeypatch.setattr(Store, "create", then_withdrawn)
    with pytest.raises(ConsentError):
        again(registry, tmp_path, dataset="ana.csv")
    assert registry.store.list("models/again") == []


def test_a_publisher_looks_for_consent_before_its_last_look_at_the_claim(
    registry: Registry, family: dict[str, Version], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading the records takes its time, and a claim may go in it: what it guards would be visible without files."""
    check_consent, claims = registry.check_consent, []

    def and_collected(manifest: Manifest) -> None:
        check_consent(manifest)
        claims.append(f"models/again/{manifest.version}/claim.json")
        registry.store.delete(claims[0])

    monkeypatch.setattr(registry, "check_consent", and_collected)
    monkeypatch.setattr(registry, "complete", lambda _: pytest.fail("it was completed"))
    with pytest.raises(StoreError, match="is gone"):
        again(registry, tmp_path, dataset="new.csv")
    assert registry.store.list("models/again") == []


def test_a_copy_that_outlasts_the_consent_does_not_become_visible(
    registry: Registry, family: dict[str, Version], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = Registry(Store.open("memory://"), tmp_path / "elsewhere")
    copy_version(registry.store, family["ana"], elsewhere)
    purge(registry)
    looks, check_consent = [0], registry.check_consent

    def not_at_first(manifest: Manifest) -> None:
        looks[0] += 1
        if looks[0] > 1:
            check_consent(manifest)

    monkeypatch.setattr(registry, "check_consent", not_at_first)
    monkeypatch.setattr(registry, "complete", lambda _: pytest.fail("it was completed"))
    with pytest.raises(ConsentError, match="withdrawn"):
        copy_version(elsewhere.store, family["ana"], registry)


def test_what_is_published_between_the_search_and_the_record_is_told(
    registry: Registry, family: dict[str, Version], tmp_path: Path
) -> None:
    purges = Withdrawals(registry)
    plan = purges.plan("models", ["ana"])
    late = [again(registry, tmp_path, dataset="ana.csv"), again(registry, tmp_path, base="ana@latest")]
    outcome = purges.carry_out(plan, reason="letter")
    assert sorted(outcome.remaining) == sorted(f"{version.prefix}/manifest.json" for version in late)
    plan = purges.plan("models", ["ana"])  # of that name there is nothing any more
    assert {*plan.versions} == {version.prefix for version in late}
    assert purges.carry_out(plan, reason="letter").remaining == ()
    assert registry.versions("models", "again") == []


def test_a_record_of_before_recordings_were_named_is_read() -> None:
    record = {
        "schema_version": 1,
        "id": "20260102T030405-89abcdef",
        "nonce": "0" * 32,
        "writer": "host:1",
        "created": "2026-01-02T03:04:05Z",
        "reason": "letter",
        "asked": ["models ana"],
        "versions": [],
        "runs": ["ana"],
        "aliases": [],
        "undecided": [],
    }
    assert parse(Withdrawal, json.dumps(record).encode(), "audit/1.json").datasets == ()


@pytest.mark.parametrize("options", [{"datasets": ["anna.csv"]}, {"sources": ["nobody"]}])
def test_what_names_nothing_is_answered_with_what_there_is(
    registry: Registry, family: dict[str, Version], options: dict[str, list[str]]
) -> None:
    with pytest.raises(NotFoundError, match=r"ana\.csv"):
        Withdrawals(registry).plan("models", **options)
