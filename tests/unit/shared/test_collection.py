"""Garbage collection: what must stay stays, whatever else happens at the same moment."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest

import shared.collection
from shared.collection import Collector, Garbage, Rules, every_version
from shared.errors import CorruptObjectError, NotFoundError, StoreError
from shared.manifests import Checkpoint, Kind, Manifest, new_nonce, now
from shared.registry import Registry, Version
from shared.runs import TRAINER_FILE, Run, bases_of_unfinished
from shared.store import Store


@pytest.fixture(params=["file", "memory"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    url = "memory://" if request.param == "memory" else str(tmp_path / "store")
    return Registry(Store.open(url), tmp_path / "cache")


def publish(
    registry: Registry, tmp_path: Path, kind: Kind = "models", name: str = "joe", **lineage: object
) -> Version:
    (tmp_path / "folder").mkdir(exist_ok=True)
    (tmp_path / "folder" / "weights").write_bytes(new_nonce().encode())
    return registry.publish(
        kind,
        name,
        tmp_path / "folder",
        licence="MIT",
        sources=[],
        consent=None,
        lineage=lineage,  # type: ignore[arg-type]
    )


def pass_time(monkeypatch: pytest.MonkeyPatch, **time: int) -> None:
    later = now() + timedelta(**time)
    monkeypatch.setattr(shared.collection, "now", lambda: later)


def collect(registry: Registry, rules: Rules | None = None) -> list[str]:
    collector = Collector(registry, rules)
    found = collector.find()
    assert all(collector.delete(garbage) for garbage in found)
    return [garbage.prefix for garbage in found]


def test_aliases_their_history_the_newest_and_what_these_were_made_from_stay(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, *moved, loose, newest = (publish(registry, tmp_path) for _ in range(6))
    voice = publish(registry, tmp_path, "voices", model={"name": "joe", "version": base.id})
    for version in moved:
        registry.move_alias("models", "joe", "production", version.id)
    pass_time(monkeypatch, days=2)
    rules = Rules(history=2, newest=1)
    assert sorted(collect(registry, rules)) == sorted([moved[0].prefix, loose.prefix])
    for version in [base, *moved[1:], newest]:
        registry.resolve("models", version.reference)
    registry.resolve("voices", voice.reference)
    assert collect(registry, rules) == []
    assert not [item for item in registry.store.list("models") if loose.id in item.path]


def test_a_base_named_by_alias_is_the_version_that_it_pointed_to_then(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = publish(registry, tmp_path)
    registry.move_alias("models", "joe", "best", base.id)
    publish(registry, tmp_path, base="joe@best")
    other = publish(registry, tmp_path)
    registry.move_alias("models", "joe", "best", other.id)
    child = publish(registry, tmp_path, base=f"joe/{other.id}")
    registry.move_alias("models", "joe", "best", child.id)
    pass_time(monkeypatch, days=2)
    gone = collect(registry, Rules(history=1, newest=1))
    assert base.prefix in gone  # its child is garbage too
    assert other.prefix not in gone


def test_a_base_named_without_an_alias_was_the_newest_version(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, base = publish(registry, tmp_path), publish(registry, tmp_path)
    publish(registry, tmp_path, name="ana", base="joe")
    later = f"{now() + timedelta(minutes=1):%Y%m%dT%H%M%S}-89abcdef"
    monkeypatch.setattr("shared.registry.new_version_id", lambda: later)
    publish(registry, tmp_path)
    pass_time(monkeypatch, days=2)
    assert collect(registry, Rules(newest=1)) == [older.prefix]
    registry.resolve("models", base.reference)


@pytest.mark.parametrize("rules", [Rules(age=timedelta(0), newest=1), Rules(age=timedelta(days=7), newest=1)])
def test_what_is_younger_than_a_day_stays_whatever_is_asked(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules: Rules
) -> None:
    for _ in range(2):
        publish(registry, tmp_path)
    registry.store.write("models/joe/20260102T030405-89abcdef/claim.json", b"a crashed writer's")
    pass_time(monkeypatch, hours=23)
    assert collect(registry, rules) == []
    pass_time(monkeypatch, days=8)
    assert len(collect(registry, rules)) == 2


def test_what_a_crashed_publisher_left_goes_with_its_claim_first(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = publish(registry, tmp_path)
    crashed = "models/joe/20260102T030405-89abcdef"
    for file in ("claim.json", "a", "manifest.jsonl"):
        registry.store.write(f"{crashed}/{file}", b"1")
    deleted: list[str] = []
    monkeypatch.setattr(Store, "delete", lambda _, path: deleted.append(path))
    pass_time(monkeypatch, days=2)
    assert collect(registry) == [crashed]
    assert deleted[0] == f"{crashed}/claim.json"
    assert set(deleted) == {f"{crashed}/{file}" for file in ("claim.json", "a", "manifest.jsonl")}
    registry.resolve("models", whole.reference)


def test_what_is_left_of_trying_a_store_is_no_damage_and_is_collected(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On S3, who may write need not be allowed to delete."""

    def refused(store: Store, path: str) -> None:
        raise StoreError(f"could not delete {path}: access was refused")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete", refused)
        registry.check_writable("voices", "joe")
    (left,) = registry.store.list("")
    assert registry.names("voices") == []
    assert list(every_version(registry)) == []
    assert collect(registry) == []
    pass_time(monkeypatch, days=2)
    assert collect(registry) == [left.path.removesuffix("/claim.json")]
    assert registry.store.list("") == []


def test_a_half_written_file_of_a_killed_writer_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(Store.open(str(tmp_path / "store")))
    version = publish(registry, tmp_path)
    half = tmp_path / "store" / version.prefix / "weights#1"
    half.write_bytes(b"half")
    assert collect(registry) == []
    pass_time(monkeypatch, days=2)
    assert collect(registry) == [f"{version.prefix}/weights#1"]
    assert not half.exists()
    registry.fetch(version)


def test_a_writer_that_completes_its_file_meanwhile_is_no_trouble(tmp_path: Path) -> None:
    registry = Registry(Store.open(str(tmp_path / "store")))
    version = publish(registry, tmp_path)
    # It is in the folder's listing, and cannot be found when it is looked at.
    (tmp_path / "store" / version.prefix / "weights#1").symlink_to("renamed")
    assert Collector(registry).find() == []


def test_idle_runs_go_and_others_stay(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "optimiser").write_bytes(b"1")
    Run.acquire(registry.store, "old").save_checkpoint(1, tmp_path / "state")
    pass_time(monkeypatch, days=29)
    assert collect(registry) == []
    pass_time(monkeypatch, days=31)
    found = Collector(registry).find()
    assert [garbage.prefix for garbage in found] == ["runs/old"]
    assert Collector(registry).find(["voices"]) == []
    assert collect(registry) == ["runs/old"]
    assert registry.store.list("runs") == []


def save_state(registry: Registry, tmp_path: Path, step: int, **state: object) -> None:
    folder = tmp_path / "state"
    folder.mkdir(exist_ok=True)
    (folder / TRAINER_FILE).write_text(json.dumps({"global_step": step, "max_steps": 2, **state}))
    Run.acquire(registry.store, "ana").save_checkpoint(step, folder)


def test_what_an_unfinished_run_began_from_stays_until_it_has_ended(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it publishes next names a base by which it has to be found when a speaker withdraws consent."""
    base, _ = publish(registry, tmp_path), publish(registry, tmp_path)
    save_state(registry, tmp_path, 1, base=base.reference)
    pass_time(monkeypatch, days=2)
    rules = Rules(newest=1)
    assert collect(registry, rules) == []
    save_state(registry, tmp_path, 2, base=base.reference)
    assert collect(registry, rules) == [base.prefix]


@pytest.mark.parametrize("base", [None, "./joe", "facebook/mms-tts-spa", "joe/20260102T030405-89abcdef"])
def test_a_run_that_began_elsewhere_keeps_nothing(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str | None
) -> None:
    old, _ = publish(registry, tmp_path), publish(registry, tmp_path)
    save_state(registry, tmp_path, 1, base=base)
    pass_time(monkeypatch, days=2)
    assert collect(registry, Rules(newest=1)) == [old.prefix]


@pytest.mark.parametrize("content", ["{", "[]", '{"global_step": null}', '{"base": 5}', None])
def test_nothing_is_collected_where_a_runs_state_cannot_be_read(
    registry: Registry, tmp_path: Path, content: str | None
) -> None:
    save_state(registry, tmp_path, 1)
    (path,) = (item.path for item in registry.store.list("runs") if item.path.endswith(TRAINER_FILE))
    if content is None:
        registry.store.delete(path)
    else:
        registry.store.write(path, content.encode())
    with pytest.raises(
        CorruptObjectError, match=rf"{path} (is damaged|does not exist, though).*Remove this state"
    ):
        Collector(registry).find()


def test_a_run_that_saves_and_prunes_while_it_is_read_keeps_its_base(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_state(registry, tmp_path, 1, base="joe/20260102T030405-89abcdef", max_steps=9)
    checkpoint = Run.checkpoint

    def too_late(run: Run, step: int) -> Checkpoint:
        if step == 1:
            save_state(registry, tmp_path, 2, base="joe/20260102T030405-89abcdef", max_steps=9)
            Run.acquire(registry.store, "ana").prune(keep=1)
        return checkpoint(run, step)

    monkeypatch.setattr(Run, "checkpoint", too_late)
    assert bases_of_unfinished(registry.store) == {"ana": "models/joe/20260102T030405-89abcdef"}


def test_the_model_of_a_voice_that_is_not_collected_now_stays(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = publish(registry, tmp_path), publish(registry, tmp_path)
    voice = publish(registry, tmp_path, "voices", model={"name": "joe", "version": model.id})
    publish(registry, tmp_path, "voices")
    pass_time(monkeypatch, days=2)
    collector = Collector(registry, Rules(newest=1))
    assert collector.find(["models"]) == []
    assert [garbage.prefix for garbage in collector.find()] == [voice.prefix, model.prefix]


def test_what_was_made_from_a_version_goes_before_it_or_both_stay(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever they are called; and somebody promotes the child between the search and the deletion."""
    base = publish(registry, tmp_path, name="a")
    child = publish(registry, tmp_path, name="b", base=base.reference)
    for name in "ab":
        publish(registry, tmp_path, name=name)
    pass_time(monkeypatch, days=2)
    collector = Collector(registry, Rules(newest=1))
    found = collector.find()
    assert [garbage.prefix for garbage in found] == [child.prefix, base.prefix]
    assert not collector.delete(found[1])  # the other way round
    registry.move_alias("models", "b", "production", child.id)
    assert not any(collector.delete(garbage) for garbage in found)
    for version in (base, child):
        registry.fetch(registry.resolve("models", version.reference))


def of(model: Version) -> dict[str, str]:
    return {"name": model.name, "version": model.id}


def test_what_something_was_made_from_since_it_was_found_stays(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A voice, and a run that has saved its first state."""
    first, second, _ = (publish(registry, tmp_path) for _ in range(3))
    pass_time(monkeypatch, days=2)
    collector = Collector(registry, Rules(newest=1))
    found = collector.find()
    assert {garbage.prefix for garbage in found} == {first.prefix, second.prefix}
    publish(registry, tmp_path, "voices", model=of(first))
    save_state(registry, tmp_path, 1, base=second.reference)
    assert not any(collector.delete(garbage) for garbage in found)
    for version in (first, second):
        registry.fetch(registry.resolve("models", version.reference))


@pytest.mark.parametrize("when", ["weights", "manifest.json"])
def test_what_is_made_from_a_version_that_is_collected_meanwhile_is_not_published(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """While its files are uploaded; or after the collector's last look, and before the manifest is there."""
    monkeypatch.setattr("shared.registry.time.sleep", lambda _: None)
    old, _ = publish(registry, tmp_path), publish(registry, tmp_path)
    write = {"weights": "upload", "manifest.json": "create"}[when]
    original = getattr(Store, write)

    def then_collected(self: Store, path: str, *arguments: object, **options: object) -> object:
        if path.startswith("voices/") and path.endswith(when):
            monkeypatch.setattr(Store, write, original)
            pass_time(monkeypatch, days=2)
            collector = Collector(registry, Rules(newest=1))
            assert [collector.delete(garbage) for garbage in collector.find(["models"])] == [True]
        return original(self, path, *arguments, **options)

    monkeypatch.setattr(Store, write, then_collected)
    with pytest.raises(StoreError, match=rf"{old.prefix} was deleted meanwhile.*an alias keeps"):
        publish(registry, tmp_path, "voices", model=of(old))
    assert registry.store.list("voices") == []


def test_a_voice_whose_model_was_collected_while_it_was_exported_is_not_published(
    registry: Registry, tmp_path: Path
) -> None:
    """A run that goes on without its base is another matter: its checkpoint has all that came of it."""
    model = publish(registry, tmp_path)
    registry.delete(model)
    with pytest.raises(StoreError, match=rf"{model.prefix} was deleted meanwhile"):
        publish(registry, tmp_path, "voices", model=of(model))
    assert registry.store.list("voices") == []
    publish(registry, tmp_path, base=model.reference)


def test_a_publisher_waits_for_what_is_put_back(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector saw the voice's manifest, and the publisher looks while the model's is away."""
    model = publish(registry, tmp_path)
    path = f"{model.prefix}/manifest.json"
    complete = registry.complete

    def and_away(manifest: Manifest) -> Version:
        version = complete(manifest)
        registry.store.delete(path)
        return version

    def put_back(pause: float) -> None:
        if pause:
            registry.store.write(path, model.manifest.to_bytes())

    monkeypatch.setattr(registry, "complete", and_away)
    monkeypatch.setattr("shared.registry.time.sleep", put_back)
    voice = publish(registry, tmp_path, "voices", model=of(model))
    assert registry.resolve("voices", voice.reference) == voice


def test_what_a_copy_of_today_was_made_from_stays_however_old_both_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(Store.open(str(tmp_path / "store")))
    with monkeypatch.context() as long_ago:
        before = now() - timedelta(days=9)
        long_ago.setattr("shared.registry.now", lambda: before)
        base = publish(registry, tmp_path)
        child = publish(registry, tmp_path, base=base.reference)
        publish(registry, tmp_path)
    for file in (tmp_path / "store" / base.prefix).iterdir():
        os.utime(file, (before.timestamp(), before.timestamp()))
    assert collect(registry, Rules(newest=1)) == []
    registry.resolve("models", child.reference)


def test_a_version_that_is_promoted_while_it_is_deleted_stays(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _ = publish(registry, tmp_path), publish(registry, tmp_path)
    pass_time(monkeypatch, days=2)
    collector = Collector(registry, Rules(newest=1))
    (garbage,) = collector.find()
    aliases = registry.aliases

    def then_promoted(kind: Kind, name: str) -> dict[str, str]:
        found = aliases(kind, name)
        if not found:
            registry.move_alias(kind, name, "production", old.id)
        return found

    monkeypatch.setattr(registry, "aliases", then_promoted)
    assert not collector.delete(garbage)
    assert registry.resolve("models", "joe@production") == old
    registry.fetch(old)


def test_a_version_that_was_promoted_since_it_was_found_is_not_touched(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers of the alias would be without it for a moment, and for good if the collector were killed in it."""
    old, _ = publish(registry, tmp_path), publish(registry, tmp_path)
    pass_time(monkeypatch, days=2)
    collector = Collector(registry, Rules(newest=1))
    (garbage,) = collector.find()
    registry.move_alias("models", "joe", "production", old.id)
    monkeypatch.setattr(Store, "delete", lambda _, path: pytest.fail(f"{path} was deleted"))
    assert not collector.delete(garbage)


def test_a_version_stays_where_the_aliases_cannot_be_read_again(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store fails, or the collector is stopped, after the manifest has gone."""
    old, _ = publish(registry, tmp_path), publish(registry, tmp_path)
    pass_time(monkeypatch, days=2)
    collector = Collector(registry, Rules(newest=1))
    (garbage,) = collector.find()

    aliases, looks = registry.aliases, [0]

    def away(kind: Kind, name: str) -> dict[str, str]:
        looks[0] += 1
        if looks[0] > 1:
            raise StoreError("the store is away")
        return aliases(kind, name)

    with monkeypatch.context() as broken:
        broken.setattr(registry, "aliases", away)
        with pytest.raises(StoreError, match="away"):
            collector.delete(garbage)
    assert registry.resolve("models", old.reference) == old
    registry.fetch(old)


def test_a_promotion_of_a_version_that_is_being_deleted_changes_nothing(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is deleted between the promotion's first look and its move."""
    monkeypatch.setattr("shared.registry.time.sleep", lambda _: None)
    old, new = publish(registry, tmp_path), publish(registry, tmp_path)
    registry.move_alias("models", "joe", "production", new.id)
    append = registry._append_move

    def late(*arguments: object) -> object:
        if old.id in arguments:
            registry.delete(old)
        return append(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(registry, "_append_move", late)
    for alias in ("production", "canary"):
        with pytest.raises(NotFoundError, match=r"deleted meanwhile|no version"):
            registry.move_alias("models", "joe", alias, old.id)
    assert registry.aliases("models", "joe") == {"production": new.id}


def test_a_promotion_that_comes_to_nothing_leaves_a_later_one_alone(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the one finds that its version was deleted, somebody else promotes a third."""
    first, doomed, later = (publish(registry, tmp_path) for _ in range(3))
    registry.move_alias("models", "joe", "production", first.id)
    outlives = registry._outlives_its_deletion

    def meanwhile(prefix: str) -> bool:
        monkeypatch.setattr(registry, "_outlives_its_deletion", outlives)
        registry.move_alias("models", "joe", "production", later.id)
        return False

    monkeypatch.setattr(registry, "_outlives_its_deletion", meanwhile)
    with pytest.raises(NotFoundError, match="deleted meanwhile"):
        registry.move_alias("models", "joe", "production", doomed.id)
    assert registry.aliases("models", "joe") == {"production": later.id}


def test_a_publisher_that_was_taken_for_crashed_completes_nothing(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(registry, tmp_path)
    check = registry.check_claim

    def after_the_collector(claim: object) -> None:
        pass_time(monkeypatch, days=2)
        collect(registry)
        check(claim)  # type: ignore[arg-type]

    monkeypatch.setattr(registry, "check_claim", after_the_collector)
    with pytest.raises(Exception, match="Publish or copy it again"):
        publish(registry, tmp_path)
    assert len(registry.versions("models", "joe")) == 1


def test_a_publisher_that_pauses_before_its_last_write_completes_nothing_that_was_collected(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that sleeps for days between the last look at the claim and the manifest."""
    create = Store.create

    def after_the_collector(self: Store, path: str, data: bytes, *, nonce: str) -> None:
        if path.endswith("manifest.json"):
            pass_time(monkeypatch, days=2)
            assert len(collect(registry)) == 1
        create(self, path, data, nonce=nonce)

    monkeypatch.setattr(Store, "create", after_the_collector)
    with pytest.raises(StoreError, match=r"claim\.json is gone.*Publish or copy it again"):
        publish(registry, tmp_path)
    assert registry.store.list("models") == []


def test_a_version_that_is_completed_while_it_is_collected_stays(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is complete after the collector's look for its manifest, and before the claim goes."""
    version = publish(registry, tmp_path)
    manifest = f"{version.prefix}/manifest.json"
    registry.store.delete(manifest)
    pass_time(monkeypatch, days=2)
    collector = Collector(registry)
    (garbage,) = collector.find()
    is_wanted = collector._is_wanted

    def then_completed(*arguments: object) -> bool:
        found = is_wanted(*arguments)  # type: ignore[arg-type]
        registry.complete(version.manifest)
        return found

    monkeypatch.setattr(collector, "_is_wanted", then_completed)
    assert not collector.delete(garbage)
    registry.fetch(version)
    registry.check_claim(version.manifest)


def test_of_two_collections_neither_takes_what_is_completed_meanwhile(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has taken the claim; the second finds none, and does all its work before the first looks further."""
    version = publish(registry, tmp_path)
    path = f"{version.prefix}/manifest.json"
    registry.store.delete(path)
    other = Registry(registry.store)
    delete = Store.delete

    def then_completed(self: Store, path_: str) -> None:
        delete(self, path_)
        monkeypatch.setattr(Store, "delete", delete)
        registry.store.write(path, version.manifest.to_bytes())
        assert not other.remove_given_up(version.prefix)

    monkeypatch.setattr(Store, "delete", then_completed)
    assert not registry.remove_given_up(version.prefix)
    registry.check_claim(version.manifest)
    registry.fetch(registry.resolve("models", version.reference))


def test_a_version_that_is_deleted_between_listing_and_reading_is_left_out(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another collection, or a purge."""
    first, deleted, last = (publish(registry, tmp_path) for _ in range(3))
    resolve = registry.resolve

    def too_late(kind: Kind, reference: str) -> Version:
        if reference == deleted.reference:
            registry.delete(deleted)
        return resolve(kind, reference)

    monkeypatch.setattr(registry, "resolve", too_late)
    assert [*every_version(registry)] == [first, last]
    monkeypatch.setattr(registry, "resolve", resolve)
    registry.store.write(f"{last.prefix}/manifest.json", b"{")
    with pytest.raises(CorruptObjectError):
        [*every_version(registry)]


def test_what_was_completed_since_it_was_found_stays(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = publish(registry, tmp_path)
    pass_time(monkeypatch, days=2)
    leftover = Garbage("leftover", version.prefix, 1, now(), "never completed")
    assert not Collector(registry).delete(leftover)
    registry.fetch(version)


def test_nothing_is_collected_where_a_manifest_cannot_be_read(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(4):
        version = publish(registry, tmp_path)
    registry.store.write(f"{version.prefix}/manifest.json", b"{")
    pass_time(monkeypatch, days=2)
    with pytest.raises(CorruptObjectError, match=r"manifest\.json"):
        Collector(registry).find()
