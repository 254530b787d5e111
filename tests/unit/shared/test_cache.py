"""The cache of verified copies: its limit, its locks, and a disk that is full."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import shared.cache
from shared.cache import Cache, default_limit
from shared.errors import CorruptObjectError, StoreError, UserError
from shared.manifests import FileEntry
from shared.store import Store

KILOBYTE = 1000


@pytest.fixture
def store() -> Store:
    store = Store.open("memory://")
    for name in "abcd":
        store.write(f"models/{name}/w", name.encode() * KILOBYTE)
    return store


def entry(name: str) -> FileEntry:
    data = name.encode() * KILOBYTE
    return FileEntry(path="w", bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def provide(cache: Cache, store: Store, name: str) -> Path:
    return cache.provide(f"models/{name}/1", (entry(name),), store, f"models/{name}")


def let_go(cache: Cache, name: str) -> None:
    """As if the process that used a folder had ended."""
    os.close(shared.cache._in_use.pop(cache.folder / "models" / name / "1"))


def held(cache: Cache) -> set[str]:
    return {path.parts[-3] for path in cache.folder.glob("models/*/1/w")}


def test_what_was_used_longest_ago_goes_first(tmp_path: Path, store: Store) -> None:
    cache = Cache(tmp_path, limit=3 * KILOBYTE)
    for age, name in enumerate("abc"):
        provide(cache, store, name)
        let_go(cache, name)
        os.utime(cache._lock_path(f"models~{name}~1"), (age, age))
    provide(cache, store, "a")  # used again
    provide(cache, store, "d")
    assert held(cache) == {"a", "c", "d"}
    assert cache._size() == 3 * KILOBYTE
    assert len(list(tmp_path.glob("blobs/*/*"))) == 3


def test_what_is_in_use_stays_even_beyond_the_limit(tmp_path: Path, store: Store) -> None:
    cache = Cache(tmp_path, limit=KILOBYTE)
    code = """
import pathlib, sys
from shared.cache import Cache
cache = Cache(pathlib.Path(sys.argv[1]))
cache._use(cache.folder / "models" / "a" / "1")
print("in use", flush=True)
sys.stdin.read()
"""
    provide(cache, store, "a")
    let_go(cache, "a")
    root = Path(shared.cache.__file__).parents[1]
    user = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with user:
        assert user.stdout
        user.stdout.readline()
        provide(cache, store, "b")
        assert held(cache) == {"a", "b"}
        user.kill()
    provide(cache, store, "c")
    assert held(cache) == {"b", "c"}


FETCHES = """
import pathlib, sys
import shared.store
from shared.cache import Cache
from shared.manifests import FileEntry
from shared.store import Store

shared.store.CHUNK_BYTES = 100
read_range, locked = Store._read_range, Cache._locked

def tell(word):
    print(word, flush=True)

def watched(self, path, start, length):
    if start == 500:
        tell("reads")
        sys.stdin.readline()
    return read_range(self, path, start, length)

def told(self, name):
    tell("asks")
    return locked(self, name)

Store._read_range, Cache._locked = watched, told
entry = FileEntry(path="w", bytes=1000, sha256=sys.argv[3])
folder = Cache(pathlib.Path(sys.argv[1])).provide("models/a/1", (entry,), Store.open(sys.argv[2]), "models/a")
tell((folder / "w").read_text()[:1])
"""


@pytest.mark.parametrize("dies", [False, True])
def test_of_two_processes_that_want_one_file_one_fetches_it(tmp_path: Path, dies: bool) -> None:
    """The other waits for it, and takes its place if it dies."""
    Store.open(str(tmp_path / "store")).write("models/a/w", b"a" * KILOBYTE)
    root = Path(shared.cache.__file__).parents[1]

    def begin() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", FETCHES, tmp_path / "cache", tmp_path / "store", entry("a").sha256],
            env={**os.environ, "PYTHONPATH": str(root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(process: subprocess.Popen[str], *words: str) -> None:
        assert process.stdout
        assert [process.stdout.readline().strip() for _ in words] == list(words)

    with begin() as first:
        hear(first, "asks", "reads")
        with begin() as second:
            hear(second, "asks")
            if dies:
                first.kill()
                hear(second, "reads")
                assert second.communicate("go on\n")[0] == "a\n"
            else:
                assert first.communicate("go on\n")[0] == "a\n"
                hear(second, "a")


def test_an_interrupted_download_goes_on_where_it_stopped(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared.store, "CHUNK_BYTES", 100)
    asked: list[int] = []
    read_range = Store._read_range

    def breaks(self: Store, path: str, start: int, length: int) -> bytes:
        if start >= 500 and not asked:
            raise StoreError("connection reset")
        return read_range(self, path, start, length)

    def counts(self: Store, path: str, start: int, length: int) -> bytes:
        asked.append(start)
        return read_range(self, path, start, length)

    monkeypatch.setattr(Store, "_read_range", breaks)
    with pytest.raises(StoreError, match="reset"):
        provide(Cache(tmp_path), store, "a")
    monkeypatch.setattr(Store, "_read_range", counts)
    assert (provide(Cache(tmp_path), store, "a") / "w").read_bytes() == b"a" * KILOBYTE
    assert sorted(asked) == [500, 600, 700, 800, 900]
    assert not list(tmp_path.glob("tmp/*"))


def test_a_rest_that_a_crash_has_spoilt_is_begun_again(tmp_path: Path, store: Store) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / f"{entry('a').sha256}.part").write_bytes(b"\0" * 500)
    assert (provide(Cache(tmp_path), store, "a") / "w").read_bytes() == b"a" * KILOBYTE


def test_a_damaged_object_leaves_nothing(tmp_path: Path, store: Store) -> None:
    store.write("models/a/w", b"b" * KILOBYTE)
    with pytest.raises(CorruptObjectError, match="models/a/w does not match"):
        provide(Cache(tmp_path), store, "a")
    assert held(Cache(tmp_path)) == set()
    assert not list(tmp_path.glob("tmp/*"))


def test_a_full_disk_is_cleared_of_what_nobody_uses_and_else_explained(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk holds two files."""
    cache = Cache(tmp_path)
    resume = Store.resume_download

    def full(self: Store, path: str, part: Path, **options: object) -> object:
        if cache._size() >= 2 * KILOBYTE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return resume(self, path, part, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "resume_download", full)
    for name in "ab":
        provide(cache, store, name)
    let_go(cache, "a")
    provide(cache, store, "c")
    assert held(cache) == {"b", "c"}
    with pytest.raises(StoreError, match=r"models/d of memory://.*No space left.*VITS_CACHE"):
        provide(cache, store, "d")
    assert (provide(cache, store, "b") / "w").read_bytes() == b"b" * KILOBYTE


@pytest.mark.parametrize("links", [True, False])
def test_what_is_forgotten_lies_nowhere(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """Where there are no hard links, a version's file is a copy, and stays when the blob is cleared away."""
    if not links:

        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", refuse)
    cache = Cache(tmp_path)
    for name in "ab":
        provide(cache, store, name)
    (tmp_path / "tmp" / f"{entry('a').sha256}.part").write_bytes(b"a")
    cache._remove_loose_files()
    cache.forget(entry("a"))
    assert held(cache) == {"b"}
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes()[:1] == b"a"]
    assert left == []


@pytest.mark.parametrize(
    ("text", "size"), [("", 20 * 10**9), ("512MiB", 512 << 20), ("1.5 GB", 1_500_000_000), ("1000", 1000)]
)
def test_the_limit_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    monkeypatch.setenv("VITS_CACHE_LIMIT", text)
    assert default_limit() == size


@pytest.mark.parametrize("text", ["much", "-1", "10 XB", "1e9"])
def test_a_limit_that_is_no_size_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("VITS_CACHE_LIMIT", text)
    with pytest.raises(UserError, match="20GB"):
        default_limit()
