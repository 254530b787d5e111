"""Copies between stores: several at once, and others at work on the same version."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import shared.store
from shared.copying import copy_version, damage
from shared.errors import CorruptObjectError, StoreError
from shared.registry import Registry, Version
from shared.store import Store

PIECE = 1000


@pytest.fixture
def source(tmp_path: Path) -> Registry:
    return Registry(Store.open(str(tmp_path / "source")))


@pytest.fixture(params=["file", "memory"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    return Registry(Store.open("memory://" if request.param == "memory" else str(tmp_path / "target")))


@pytest.fixture
def version(source: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Version:
    """One of a small file and one of three pieces."""
    monkeypatch.setattr(shared.store, "CHUNK_BYTES", PIECE)
    folder = tmp_path / "voice"
    folder.mkdir()
    (folder / "decoder.onnx").write_bytes(bytes(range(250)) * 10)
    (folder / "voice.json").write_text("{}")
    return source.publish("voices", "joe", folder, licence="MIT", sources=[], consent=None, lineage={})


class Meanwhile(Store):
    """A store during the reading of whose last file something happens."""

    act: Callable[[], object]
    replacement = b""

    def pieces(self, path: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        for piece in super().pieces(path, start=start, end=end):
            if path.endswith("voice.json"):
                self.act()
            yield self.replacement or piece


def meanwhile(source: Registry, act: Callable[[], object]) -> Meanwhile:
    store = Meanwhile.open(source.store.url)
    store.act = act
    return store


def assert_whole(registry: Registry, version: Version) -> None:
    assert registry.resolve("voices", version.reference) == version
    assert damage(registry.store, version) == []


def test_of_two_copies_at_once_both_end_well(source: Registry, target: Registry, version: Version) -> None:
    other: list[bool] = []
    slow = meanwhile(source, lambda: other.append(copy_version(source.store, version, target)))
    assert copy_version(slow, version, target)
    assert other == [True]
    assert_whole(target, version)
    assert not copy_version(source.store, version, target)


def test_a_copy_that_reads_damaged_bytes_takes_nothing_from_another_that_is_sound(
    source: Registry, target: Registry, version: Version
) -> None:
    damaged = meanwhile(source, lambda: copy_version(source.store, version, target))
    damaged.replacement = b"[]"
    with pytest.raises(CorruptObjectError, match=r"voice\.json"):
        copy_version(damaged, version, target)
    assert_whole(target, version)


def test_damaged_bytes_are_never_to_be_seen(
    source: Registry, target: Registry, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where other pieces of the file had been sent."""
    monkeypatch.setattr(Store, "delete", lambda _, path: pytest.fail(f"{path} had to be deleted"))
    path = f"{version.prefix}/decoder.onnx"
    source.store.write(path, source.store.read(path)[:-1] + b"!")
    with pytest.raises(CorruptObjectError, match=r"decoder\.onnx.*Publish it again"):
        copy_version(source.store, version, target)
    assert [item.path for item in target.store.list("")] == [f"{version.prefix}/claim.json"]


@pytest.mark.parametrize("when", ["claim.json", "manifest.json"])
def test_a_version_that_is_deleted_while_it_is_copied_again_does_not_come_back_in_part(
    source: Registry, target: Registry, version: Version, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """It goes after the second copy's look for it, or after its very last one."""
    create, seen = Store.create, [0]

    def then_deleted(self: Store, path: str, data: bytes, *, nonce: str) -> None:
        if self is target.store and path.endswith(when):
            monkeypatch.setattr(Store, "create", create)
            copy_version(source.store, version, target)
            target.delete(version)
            seen[0] += 1
        create(self, path, data, nonce=nonce)

    monkeypatch.setattr(Store, "create", then_deleted)
    if when == "claim.json":
        assert copy_version(source.store, version, target)
        assert_whole(target, version)
    else:
        with pytest.raises(StoreError, match=r"claim\.json is gone.*copy it again"):
            copy_version(source.store, version, target)
        assert target.store.list("") == []
    assert seen == [1]


def test_a_deletion_that_a_copy_overtakes_leaves_nothing_in_part(
    source: Registry, target: Registry, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy's last look at the claim comes before that goes."""
    copy_version(source.store, version, target)
    delete = Store.delete

    def then_completed(self: Store, path: str) -> None:
        if path.endswith("claim.json"):
            monkeypatch.setattr(Store, "delete", delete)
            target.complete(version.manifest)
        delete(self, path)

    monkeypatch.setattr(Store, "delete", then_completed)
    assert target.delete(version)
    assert target.store.list("") == []


def test_a_copy_that_begins_while_a_deletion_ends_stays(
    source: Registry, target: Registry, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim has gone, and the deletion's last request is on its way for minutes."""
    copy_version(source.store, version, target)
    delete = Store.delete

    def then_copied(self: Store, path: str) -> None:
        delete(self, path)
        if path.endswith("claim.json"):
            monkeypatch.setattr(Store, "delete", delete)
            assert copy_version(source.store, version, target)

    monkeypatch.setattr(Store, "delete", then_copied)
    assert target.delete(version)
    assert_whole(target, version)


def test_what_an_earlier_attempt_left_and_a_collection_takes_meanwhile_is_missed(
    source: Registry, target: Registry, version: Version
) -> None:
    path = f"{version.prefix}/decoder.onnx"
    target.store.write(path, source.store.read(path))
    slow = meanwhile(source, lambda: target.store.delete(path))
    with pytest.raises(StoreError, match=r"decoder\.onnx was removed.*Copy it again"):
        copy_version(slow, version, target)
    assert target.names("voices") == []
    assert copy_version(source.store, version, target)
    assert_whole(target, version)
