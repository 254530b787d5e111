"""Versions and aliases: what readers see while writers race, die and are lied to."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import shared.registry
from shared.cache import Cache, default_cache
from shared.errors import AlreadyExistsError, CorruptObjectError, NotFoundError, StoreError, UserError
from shared.manifests import SCHEMAS, new_version_id
from shared.registry import Registry, Version
from shared.store import Digest, Progress, Store


@pytest.fixture(params=["file", "memory"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    url = "memory://" if request.param == "memory" else str(tmp_path / "store")
    return Registry(Store.open(url), tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of three files, one of them below another folder and one empty."""
    folder = tmp_path / "model"
    (folder / "fp32").mkdir(parents=True)
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "empty.txt").touch()
    (folder / "fp32" / "decoder.onnx").write_bytes(b"weights" * 1000)
    return folder


def publish(registry: Registry, folder: Path, name: str = "joe") -> Version:
    return registry.publish(
        "models", name, folder, licence="MIT", sources=["corpus"], consent=None, lineage={"step": 3}
    )


def test_only_what_is_named_is_published(registry: Registry, folder: Path) -> None:
    def publish_only(*paths: str) -> Version:
        return registry.publish(
            "models", "joe", folder, licence="MIT", sources=[], consent=None, lineage={}, only=paths
        )

    version = publish_only("config.json", "fp32/decoder.onnx")
    assert [entry.path for entry in version.manifest.files] == ["config.json", "fp32/decoder.onnx"]
    with pytest.raises(UserError, match=r"does not hold nothing\.json"):
        publish_only("config.json", "nothing.json")
    assert registry.versions("models", "joe") == [version.id]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name not in {"manifest.json", "claim.json"}
    }


# ---------------------------------------------------------------------- publishing and finding


def test_a_published_folder_comes_back_equal(registry: Registry, folder: Path) -> None:
    version = publish(registry, folder)
    assert registry.resolve("models", "joe") == version
    assert registry.resolve("models", version.reference) == version
    assert [entry.path for entry in version.manifest.files] == [
        "config.json",
        "empty.txt",
        "fp32/decoder.onnx",
    ]
    assert version.manifest.total_bytes == 8 + 0 + 7000
    assert version.manifest.lineage == {"step": 3}
    seen: list[tuple[int, int]] = []
    fetched = registry.fetch(version, progress=lambda *now: seen.append(now))
    assert contents(fetched) == contents(folder)
    assert seen == sorted(seen)
    assert seen[0] == (8, 7008)
    assert seen[-1] == (7008, 7008)


def test_the_manifest_is_written_last_and_the_claim_first(folder: Path) -> None:
    order: list[str] = []

    class Recording(Store):
        def create(self, path: str, data: bytes, *, nonce: str | None = None) -> None:
            order.append(path.rpartition("/")[2])
            super().create(path, data, nonce=nonce)

        def upload(self, path: str, local: Path, *, progress: Progress | None = None) -> Digest:
            order.append(path.rpartition("/")[2])
            return super().upload(path, local, progress=progress)

    publish(Registry(Recording.open("memory://")), folder)
    assert order == ["claim.json", "config.json", "empty.txt", "decoder.onnx", "manifest.json"]


def test_hidden_files_and_old_records_stay_behind_and_links_are_followed(
    registry: Registry, folder: Path
) -> None:
    first = publish(registry, folder)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").touch()
    (folder / ".gitattributes").touch()
    (folder / "manifest.json").write_text("{}")
    (folder / "claim.json").write_text("{}")
    (folder / "fp32" / "manifest.json").write_text("a file of the model's own")
    (folder / "link.json").symlink_to(folder / "config.json")
    paths = [entry.path for entry in publish(registry, folder).manifest.files]
    assert paths == ["config.json", "empty.txt", "fp32/decoder.onnx", "fp32/manifest.json", "link.json"]
    again = publish(registry, registry.fetch(first), name="copy")
    assert again.manifest.files == first.manifest.files


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "Joe"}, "lowercase"),
        ({"name": "../joe"}, "lowercase"),
        ({"folder": "missing"}, "missing is not a folder"),
        ({"folder": "empty"}, "empty holds no files"),
        ({"folder": "odd"}, "Rename it"),
        ({"licence": ""}, "licence"),
        ({"lineage": {"x": object()}}, "lineage"),
    ],
)
def test_what_cannot_be_published_leaves_no_trace(
    registry: Registry, folder: Path, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "a#1").touch()
    arguments = {"name": "joe", "folder": folder.name, "licence": "MIT", "lineage": {}, **change}
    path = tmp_path / str(arguments.pop("folder"))
    with pytest.raises(UserError, match=words):
        registry.publish("models", folder=path, sources=[], consent=None, **arguments)  # type: ignore[arg-type]
    assert registry.store.list("") == []


def test_a_store_is_tried_before_long_work_and_left_as_it_was(registry: Registry, folder: Path) -> None:
    registry.check_writable("models", "joe")
    assert registry.store.list("") == []
    assert registry.store.root is None or not registry.store.root.exists()
    version = publish(registry, folder)
    before = registry.store.list("")
    registry.check_writable("models", "joe")
    assert registry.store.list("") == before
    assert registry.versions("models", "joe") == [version.id]
    with pytest.raises(UserError, match="lowercase"):
        registry.check_writable("models", "Joe")


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(errno.EACCES, "access was refused .*Check "), (errno.EROFS, "Mount it so that it can be written")],
)
def test_a_store_that_cannot_be_written_is_found_out_with_the_remedy(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(obstore, "put", refused)
    with pytest.raises(StoreError, match=rf"could not create .*/voices/joe/.*claim\.json: .*{remedy}"):
        registry.check_writable("voices", "joe")


def test_models_and_voices_do_not_mix(registry: Registry, folder: Path) -> None:
    version = publish(registry, folder)
    assert registry.names("models") == ["joe"]
    assert registry.names("voices") == []
    assert registry.versions("models", "joe") == [version.id]
    assert registry.versions("voices", "joe") == []
    with pytest.raises(NotFoundError, match=r"holds no voices yet.*'vits export' publishes"):
        registry.resolve("voices", "joe")


def test_the_newest_version_is_the_one_published_last_even_within_a_second(
    registry: Registry, folder: Path
) -> None:
    published = [publish(registry, folder).id for _ in range(8)]
    assert registry.versions("models", "joe") == published
    assert registry.resolve("models", "joe").id == published[-1]


def test_latest_goes_before_newest(registry: Registry, folder: Path) -> None:
    old, new = publish(registry, folder), publish(registry, folder)
    assert registry.resolve("models", "joe") == new
    registry.move_alias("models", "joe", "production", old.id)
    assert registry.resolve("models", "joe") == new
    registry.move_alias("models", "joe", "latest", old.id)
    assert registry.resolve("models", "joe") == old
    assert registry.resolve("models", "joe@production") == old


def test_what_is_not_there_is_answered_with_what_is(registry: Registry, folder: Path) -> None:
    version = publish(registry, folder)
    publish(registry, folder, "maria")
    registry.move_alias("models", "joe", "production", version.id)
    with pytest.raises(NotFoundError, match=r"did you mean 'maria'.*Its models: joe, maria"):
        registry.resolve("models", "mario")
    with pytest.raises(NotFoundError, match=r"did you mean 'production'.*Its aliases: production"):
        registry.resolve("models", "joe@prodcution")
    with pytest.raises(NotFoundError, match="It has no aliases"):
        registry.resolve("models", "maria@production")
    with pytest.raises(
        NotFoundError, match=f"Its versions: {version.id}.*Write joe for its newest"
    ) as caught:
        registry.resolve("models", "joe@latest")
    assert f"'vits models promote {version.reference} latest --store {registry.store.url}'" in str(
        caught.value
    )
    assert "joe@latest" not in str(caught.value), "what was typed is no remedy"
    with pytest.raises(NotFoundError, match=f"Its versions: {version.id}"):
        registry.resolve("models", "joe/20200101T000000-00000000")
    with pytest.raises(NotFoundError, match="no version"):
        registry.move_alias("models", "joe", "production", "20200101T000000-00000000")
    with pytest.raises(NotFoundError, match="no version"):
        registry.resolve("models", f"joe/../joe/{version.id}")
    for reference in ["", "Joe", "../joe/x", "@production", "joe@Prod", "joe@../x"]:
        with pytest.raises(UserError):
            registry.resolve("models", reference)


def test_a_taken_id_is_left_to_its_owner(
    registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = publish(registry, folder)
    ids = [taken.id, taken.id, new_version_id()]
    wanted = ids[-1]
    monkeypatch.setattr(shared.registry, "new_version_id", lambda: ids.pop(0))
    before = registry.store.read(f"{taken.prefix}/claim.json")
    version = publish(registry, folder)
    assert version.id == version.manifest.version == wanted
    assert registry.store.read(f"{taken.prefix}/claim.json") == before
    assert json.loads(registry.store.read(f"{version.prefix}/claim.json"))["nonce"] == version.manifest.nonce


def test_two_publishers_at_once_both_publish(registry: Registry, folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        published = list(pool.map(lambda _: publish(registry, folder), range(16)))
    assert set(registry.versions("models", "joe")) == {version.id for version in published}
    assert len({version.id for version in published}) == 16
    for version in published:
        registry.fetch(version)


# ---------------------------------------------------------------------- writers that die

DIES = """
import os, pathlib, sys
from shared.registry import Registry
from shared.store import Store

left = int(sys.argv[3])

class Dying(Store):
    def write(self, path, data):
        self.step(); super().write(path, data)
    def _create_once(self, path, data):
        self.step(); super()._create_once(path, data)
    def step(self):
        global left
        left -= 1
        if left < 0:
            os._exit(9)

Registry(Dying.open(sys.argv[1])).publish(
    "models", "joe", pathlib.Path(sys.argv[2]), licence="MIT", sources=[], consent=None, lineage={})
"""

BLOCKS = """
import pathlib, sys, time
from shared.registry import Registry
from shared.store import Store

class Blocking(Store):
    def upload(self, path, local, *, progress):
        digest = super().upload(path, local)
        print(path, flush=True)
        time.sleep(600)

Registry(Blocking.open(sys.argv[1])).publish(
    "models", "joe", pathlib.Path(sys.argv[2]), licence="MIT", sources=[], consent=None, lineage={})
"""

PROMOTES = """
import sys
from shared.registry import Registry
from shared.store import Store

registry = Registry(Store.open(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(25):
    registry.move_alias("models", "joe", "production", sys.argv[2])
"""


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    root = Path(shared.registry.__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def assert_old_is_whole_and_new_can_come(registry: Registry, old: Version, folder: Path) -> None:
    assert registry.versions("models", "joe") == [old.id]
    assert registry.resolve("models", "joe") == old
    assert contents(registry.fetch(old)) == contents(folder)
    new = publish(registry, folder)
    assert registry.resolve("models", "joe") == new


def test_a_publisher_that_dies_before_any_write_leaves_the_store_as_it_was(
    tmp_path: Path, folder: Path
) -> None:
    """Writes: the claim, three files, the manifest."""
    for writes in range(5):
        registry = Registry(Store.open(str(tmp_path / f"store-{writes}")))
        old = publish(registry, folder)
        with python(DIES, registry.store.url, folder, writes) as writer:
            assert writer.wait() == 9
        assert len(registry.store.list("")) == 5 + writes
        assert_old_is_whole_and_new_can_come(registry, old, folder)
    with python(DIES, registry.store.url, folder, 5) as writer:
        assert writer.wait() == 0


def test_a_publisher_killed_outright_leaves_the_store_as_it_was(tmp_path: Path, folder: Path) -> None:
    registry = Registry(Store.open(str(tmp_path / "store")))
    old = publish(registry, folder)
    with python(BLOCKS, registry.store.url, folder) as writer:
        assert writer.stdout
        assert writer.stdout.readline().endswith("config.json\n")
        writer.kill()
        assert writer.wait() == -signal.SIGKILL
    assert_old_is_whole_and_new_can_come(registry, old, folder)


def test_an_interrupted_publisher_removes_what_it_uploaded(tmp_path: Path, folder: Path) -> None:
    registry = Registry(Store.open(str(tmp_path / "store")))
    old = publish(registry, folder)
    before = registry.store.list("")
    with python(BLOCKS, registry.store.url, folder) as writer:
        assert writer.stdout
        writer.stdout.readline()
        writer.send_signal(signal.SIGINT)
        assert writer.wait() == -signal.SIGINT
    assert registry.store.list("") == before
    assert len(list((tmp_path / "store" / "models" / "joe").iterdir())) == 1
    assert_old_is_whole_and_new_can_come(registry, old, folder)


def test_after_the_manifest_may_be_there_nothing_is_removed(folder: Path) -> None:
    class LosesEverything(Store):
        """The manifest is written, but neither its reply nor any later read comes through."""

        broken = False

        def _create_once(self, path: str, data: bytes) -> None:
            super()._create_once(path, data)
            if path.endswith("manifest.json"):
                self.broken = True
                raise StoreError("connection reset")

        def read(self, path: str) -> bytes:
            if self.broken:
                raise StoreError("connection reset")
            return super().read(path)

    store = LosesEverything.open("memory://")
    with pytest.raises(StoreError, match="reset"):
        publish(Registry(store), folder)
    store.broken = False
    registry = Registry(store)
    assert len(registry.versions("models", "joe")) == 1
    registry.resolve("models", "joe")
    assert len(store.list("")) == 5


def test_lost_replies_do_not_publish_twice(tmp_path: Path, folder: Path) -> None:
    class LostReply(Store):
        def _create_once(self, path: str, data: bytes) -> None:
            super()._create_once(path, data)
            raise AlreadyExistsError("the client retried, and met its own write")

    registry = Registry(LostReply.open("memory://"), tmp_path / "cache")
    version = publish(registry, folder)
    registry.move_alias("models", "joe", "latest", version.id)
    assert registry.versions("models", "joe") == [version.id]
    assert [move.sequence for move in registry.history("models", "joe", "latest")] == [1]


# ---------------------------------------------------------------------- aliases


def test_two_processes_that_move_an_alias_lose_no_move(tmp_path: Path, folder: Path) -> None:
    registry = Registry(Store.open(str(tmp_path / "store")))
    versions = [publish(registry, folder).id for _ in range(2)]
    writers = [python(PROMOTES, registry.store.url, version) for version in versions]
    for writer in writers:
        assert writer.stdout
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        with writer:
            assert writer.wait() == 0
    moves = registry.history("models", "joe", "production")
    assert [move.sequence for move in moves] == list(range(1, 51))
    assert [sum(move.version == version for move in moves) for version in versions] == [25, 25]
    assert len({move.nonce for move in moves}) == 50
    assert registry.alias("models", "joe", "production") == moves[-1].version


def test_threads_that_move_an_alias_lose_no_move(registry: Registry, folder: Path) -> None:
    versions = [publish(registry, folder).id for _ in range(4)]
    start = threading.Barrier(4)

    def move(version: str) -> list[int]:
        start.wait()
        return [registry.move_alias("models", "joe", "latest", version).sequence for _ in range(10)]

    with ThreadPoolExecutor(4) as pool:
        sequences = list(pool.map(move, versions))
    assert sorted(number for own in sequences for number in own) == list(range(1, 41))
    by_sequence = {one.sequence: one.version for one in registry.history("models", "joe", "latest")}
    for version, own in zip(versions, sequences, strict=True):
        assert own == sorted(own)
        assert {by_sequence[sequence] for sequence in own} == {version}


def test_the_tenth_move_goes_before_the_ninth(registry: Registry, folder: Path) -> None:
    versions = [publish(registry, folder).id for _ in range(2)]
    for count in range(12):
        registry.move_alias("models", "joe", "latest", versions[count % 2])
    assert registry.alias("models", "joe", "latest") == versions[1]
    assert registry.store.exists("aliases/models/joe/latest/0000000012.json")


class Aliases(RuleBasedStateMachine):
    """Any sequence of moves, by two registries on one store, reads like a list of moves per alias."""

    @initialize()
    def begin(self) -> None:
        store = Store.open("memory://")
        self.registries = [Registry(store), Registry(store)]
        self.versions: dict[str, list[str]] = {"joe": [], "maria": []}
        for name, ids in self.versions.items():
            for _ in range(3):
                version = self.registries[0].publish(
                    "voices", name, SCHEMAS, licence="MIT", sources=[], consent=None, lineage={}
                )
                ids.append(version.id)
        self.moves: dict[tuple[str, str], list[str]] = {}

    @rule(
        who=st.integers(0, 1),
        name=st.sampled_from(["joe", "maria"]),
        alias=st.sampled_from(["latest", "production"]),
        which=st.integers(0, 2),
    )
    def move(self, who: int, name: str, alias: str, which: int) -> None:
        version = self.versions[name][which]
        moves = self.moves.setdefault((name, alias), [])
        assert self.registries[who].move_alias("voices", name, alias, version).sequence == len(moves) + 1
        moves.append(version)

    @precondition(lambda self: self.moves)
    @rule(who=st.integers(0, 1), data=st.data())
    def roll_back(self, who: int, data: st.DataObject) -> None:
        name, alias = data.draw(st.sampled_from(sorted(self.moves)))
        history = self.registries[who].history("voices", name, alias)
        previous = history[max(0, len(history) - 2)].version
        self.registries[who].move_alias("voices", name, alias, previous)
        self.moves[name, alias].append(previous)

    @invariant()
    def reads_like_the_model(self) -> None:
        for registry in getattr(self, "registries", []):
            for name, ids in self.versions.items():
                expected = {alias: moves[-1] for (of, alias), moves in self.moves.items() if of == name}
                assert registry.aliases("voices", name) == expected
                assert registry.resolve("voices", name).id == expected.get("latest", ids[-1])
            for (name, alias), moves in self.moves.items():
                assert [move.version for move in registry.history("voices", name, alias)] == moves
                assert registry.resolve("voices", f"{name}@{alias}").id == moves[-1]


TestAliases = Aliases.TestCase
TestAliases.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)


# ---------------------------------------------------------------------- lies and damage


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: data[:-1] + b"!", lambda data: data + b"!", lambda data: b""],
)
def test_a_corrupt_object_is_named_and_never_used(
    registry: Registry, folder: Path, damage: Callable[[bytes], bytes]
) -> None:
    version = publish(registry, folder)
    path = f"{version.prefix}/fp32/decoder.onnx"
    registry.store.write(path, damage(registry.store.read(path)))
    with pytest.raises(CorruptObjectError, match=r"fp32/decoder.onnx does not match its manifest"):
        registry.fetch(version)
    blobs = registry.cache / "blobs"
    assert not any(file.stat().st_size > 1000 for file in blobs.rglob("*") if file.is_file())
    assert not list((registry.cache / "tmp").glob("*"))
    registry.store.delete(path)
    with pytest.raises(CorruptObjectError, match=r"fp32/decoder.onnx.*though its manifest lists it"):
        registry.fetch(version)


def test_a_manifest_that_climbs_out_is_refused(registry: Registry, folder: Path, tmp_path: Path) -> None:
    version = publish(registry, folder)
    path = f"{version.prefix}/manifest.json"
    good = registry.store.read(path)
    for bad in ["../../../../evil", "/tmp/evil", "a/../../evil", "..", "C:\\\\evil"]:  # noqa: S108
        registry.store.write(path, good.replace(b'"config.json"', f'"{bad}"'.encode()))
        with pytest.raises(CorruptObjectError, match=r"manifest.json is no manifest"):
            registry.resolve("models", "joe")
    assert not list(tmp_path.rglob("evil"))


def test_a_manifest_of_another_version_is_refused(registry: Registry, folder: Path) -> None:
    one, other = publish(registry, folder), publish(registry, folder)
    registry.store.write(f"{one.prefix}/manifest.json", registry.store.read(f"{other.prefix}/manifest.json"))
    with pytest.raises(CorruptObjectError, match=f"is the manifest of models/joe/{other.id}"):
        registry.resolve("models", one.reference)


def test_a_damaged_alias_is_named(registry: Registry, folder: Path) -> None:
    version = publish(registry, folder)
    registry.move_alias("models", "joe", "latest", version.id)
    registry.store.write("aliases/models/joe/latest/0000000002.json", b"{")
    with pytest.raises(CorruptObjectError, match=r"latest/0000000002\.json is no alias"):
        registry.resolve("models", "joe")


# ---------------------------------------------------------------------- the cache


class Counting(Store):
    """Counts the files that are downloaded."""

    downloads = 0

    def resume_download(self, path: str, part: Path, *, progress: Progress | None = None) -> Digest:
        self.downloads += 1
        return super().resume_download(path, part, progress=progress)


@pytest.fixture
def cached(tmp_path: Path) -> tuple[Counting, Registry]:
    store = Counting.open("memory://")
    return store, Registry(store, tmp_path / "cache")


def test_the_cache_is_used_and_shared_between_versions(
    cached: tuple[Counting, Registry], folder: Path
) -> None:
    store, registry = cached
    first = publish(registry, folder)
    (folder / "config.json").write_text('{"a": 2}')
    second = publish(registry, folder)
    registry.fetch(first)
    assert store.downloads == 3
    assert contents(registry.fetch(second)) == contents(folder)
    assert store.downloads == 4
    assert contents(Registry(store, registry.cache).fetch(second)) == contents(folder)
    assert store.downloads == 4
    assert not list((registry.cache / "tmp").iterdir())


def test_a_corrupt_cached_copy_is_fetched_again(cached: tuple[Counting, Registry], folder: Path) -> None:
    store, registry = cached
    version = publish(registry, folder)
    fetched = registry.fetch(version)
    weights = fetched / "fp32" / "decoder.onnx"
    weights.chmod(0o644)
    weights.write_bytes(b"W" + weights.read_bytes()[1:])
    assert contents(registry.fetch(version)) == contents(folder)
    assert store.downloads == 4
    weights.unlink()
    assert contents(registry.fetch(version)) == contents(folder)
    assert store.downloads == 4


def test_placing_a_file_that_another_process_has_just_placed_leaves_no_litter(
    cached: tuple[Counting, Registry], folder: Path
) -> None:
    """Renaming onto another link to the same file does nothing at all."""
    _, registry = cached
    version = publish(registry, folder)
    target = registry.fetch(version) / "config.json"
    cache = Cache(registry.cache)
    cache._place(cache._blob(version.manifest.files[0].sha256), target)
    assert not list((registry.cache / "tmp").iterdir())


def test_where_hard_links_fail_files_are_copied(
    cached: tuple[Counting, Registry], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    _, registry = cached
    assert contents(registry.fetch(publish(registry, folder))) == contents(folder)


def test_readers_at_once_each_get_a_whole_folder(cached: tuple[Counting, Registry], folder: Path) -> None:
    store, registry = cached
    version = publish(registry, folder)
    with ThreadPoolExecutor(8) as pool:
        fetched = list(
            pool.map(lambda _: contents(Registry(store, registry.cache).fetch(version)), range(16))
        )
    assert all(one == contents(folder) for one in fetched)


def test_a_local_store_is_read_in_place(tmp_path: Path, folder: Path) -> None:
    registry = Registry(Store.open(str(tmp_path / "store")), tmp_path / "cache")
    version = publish(registry, folder)
    assert registry.fetch(version) == tmp_path / "store" / version.prefix
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_explained(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "file").touch()
    registry = Registry(Store.open("memory://"), tmp_path / "file")
    with pytest.raises(StoreError, match="VITS_CACHE"):
        registry.fetch(publish(registry, folder))


def test_the_cache_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITS_CACHE", "/somewhere/else")
    assert default_cache() == Path("/somewhere/else")
    monkeypatch.delenv("VITS_CACHE")
    assert default_cache() == Path.home() / ".cache" / "vits"


@pytest.mark.parametrize("address", ["s3://bucket/cache", "s3:/bucket/cache"])
def test_a_cache_is_a_folder_of_this_machine(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """An address would be a folder ``s3:`` in the working directory."""
    monkeypatch.setenv("VITS_CACHE", address)
    told = f"VITS_CACHE cannot be used: '{address}' is an address; give a path on this machine"
    with pytest.raises(UserError, match=f"{told}.*VITS_STORE"):
        default_cache()
