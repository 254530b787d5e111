"""Runs: one owner at a time, and only complete checkpoints."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import shared.runs
from shared.errors import CorruptObjectError, LeaseLostError, NotFoundError, StoreError, UserError
from shared.runs import Run
from shared.store import Digest, Progress, Store


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store.open("memory://" if request.param == "memory" else str(tmp_path / "store"))


def state(tmp_path: Path, text: str) -> Path:
    folder = tmp_path / f"state-{text}"
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "optimiser.bin").write_text(f"optimiser {text}")
    (folder / "model" / "config.json").write_text(f"model {text}")
    return folder


def fetched(run: Run, step: int, into: Path) -> dict[str, str]:
    run.fetch_checkpoint(step, into)
    return {file.relative_to(into).as_posix(): file.read_text() for file in into.rglob("*") if file.is_file()}


def expected(text: str) -> dict[str, str]:
    return {"optimiser.bin": f"optimiser {text}", "model/config.json": f"model {text}"}


def test_checkpoints_come_back_and_are_listed_by_number(store: Store, tmp_path: Path) -> None:
    run = Run.acquire(store, "joe")
    for step in [100, 9, 20]:
        run.save_checkpoint(step, state(tmp_path, str(step)))
    assert run.checkpoints() == [9, 20, 100]
    assert fetched(run, 20, tmp_path / "into") == expected("20")
    later = Run.acquire(store, "joe")
    assert later.checkpoints() == [9, 20, 100]
    assert Run.acquire(store, "maria").checkpoints() == []


def test_the_newer_owner_writes_and_the_older_stops(store: Store, tmp_path: Path) -> None:
    old = Run.acquire(store, "joe")
    old.check()
    old.save_checkpoint(1, state(tmp_path, "1"))
    new = Run.acquire(store, "joe")
    assert new.sequence == old.sequence + 1
    new.check()
    with pytest.raises(LeaseLostError, match=f"taken over by .*:{os.getpid()} at"):
        old.check()
    with pytest.raises(LeaseLostError):
        old.save_checkpoint(2, state(tmp_path, "2"))
    with pytest.raises(LeaseLostError):
        old.prune(1)
    newest = Run.acquire(store, "joe")
    for owner in [old, new]:
        with pytest.raises(LeaseLostError):
            owner.check()
    newest.check()
    assert newest.checkpoints() == [1]


def test_of_many_who_acquire_at_once_exactly_one_keeps_the_run(store: Store) -> None:
    start = threading.Barrier(8)

    def acquire(_: int) -> Run:
        start.wait()
        return Run.acquire(store, "joe")

    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(acquire, range(8)))
    assert sorted(run.sequence for run in runs) == list(range(1, 9))
    for run in runs:
        if run.sequence == 8:
            run.check()
        else:
            with pytest.raises(LeaseLostError):
                run.check()


def test_a_complete_checkpoint_stays_as_it_is(store: Store, tmp_path: Path) -> None:
    run = Run.acquire(store, "joe")
    first = run.save_checkpoint(5, state(tmp_path, "first"))
    assert run.save_checkpoint(5, state(tmp_path, "second")) == first
    assert fetched(run, 5, tmp_path / "into") == expected("first")


class Interrupts(Store):
    """Lets some uploads through, then calls ``interrupt``, once."""

    left = 10**9

    def upload(self, path: str, local: Path, *, progress: Progress | None = None) -> Digest:
        self.left -= 1
        if self.left < 0:
            self.left = 10**9
            self.interrupt()
        return super().upload(path, local)

    def interrupt(self) -> None:
        raise StoreError("connection reset")


def test_a_half_written_checkpoint_does_not_exist_and_is_replaced(tmp_path: Path) -> None:
    store = Interrupts.open("memory://")
    run = Run.acquire(store, "joe")
    run.save_checkpoint(1, state(tmp_path, "1"))
    store.left = 1
    with pytest.raises(StoreError, match="reset"):
        run.save_checkpoint(2, state(tmp_path, "2"))
    assert any("0000000002" in item.path for item in store.list("runs/joe/checkpoints"))
    assert run.checkpoints() == [1]
    with pytest.raises(NotFoundError, match="Complete: 1"):
        run.fetch_checkpoint(2, tmp_path / "into")
    assert not (tmp_path / "into").exists()
    run = Run.acquire(store, "joe")
    run.save_checkpoint(2, state(tmp_path, "again"))
    assert run.checkpoints() == [1, 2]
    assert fetched(run, 2, tmp_path / "into") == expected("again")


def test_an_owner_that_is_overtaken_in_mid_upload_completes_nothing(tmp_path: Path) -> None:
    class Overtaken(Interrupts):
        def interrupt(self) -> None:
            Run.acquire(self, "joe")

    store = Overtaken.open("memory://")
    old = Run.acquire(store, "joe")
    store.left = 1
    with pytest.raises(LeaseLostError):
        old.save_checkpoint(7, state(tmp_path, "old"))
    assert Run.acquire(store, "joe").checkpoints() == []


def test_an_owner_that_is_overtaken_in_mid_upload_spoils_nothing(tmp_path: Path) -> None:
    """It was suspended between two files; its successor has finished the same step before it wakes up."""

    class Overtaken(Interrupts):
        def interrupt(self) -> None:
            Run.acquire(self, "joe").save_checkpoint(7, state(tmp_path, "new"))

    store = Overtaken.open("memory://")
    old = Run.acquire(store, "joe")
    store.left = 1
    with pytest.raises(LeaseLostError):
        old.save_checkpoint(7, state(tmp_path, "old"))
    run = Run.acquire(store, "joe")
    assert run.checkpoints() == [7]
    assert fetched(run, 7, tmp_path / "into") == expected("new")


KILLED = """
import pathlib, sys, time
from shared.runs import Run
from shared.store import Store

class Blocking(Store):
    def upload(self, path, local, *, progress=None):
        digest = super().upload(path, local)
        if "0000000002" in path:
            print(path, flush=True)
            time.sleep(600)
        return digest

run = Run.acquire(Blocking.open(sys.argv[1]), "joe")
run.save_checkpoint(1, pathlib.Path(sys.argv[2]))
run.save_checkpoint(2, pathlib.Path(sys.argv[3]))
"""


def test_a_killed_trainer_leaves_its_last_complete_state_to_the_next(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    arguments = [store.url, str(state(tmp_path, "1")), str(state(tmp_path, "2"))]
    root = Path(shared.runs.__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, *arguments],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    ) as trainer:
        assert trainer.stdout
        assert "0000000002" in trainer.stdout.readline()
        trainer.kill()
        assert trainer.wait() == -signal.SIGKILL
    run = Run.acquire(store, "joe")
    assert run.sequence == 2
    assert run.checkpoints() == [1]
    assert fetched(run, 1, tmp_path / "into") == expected("1")
    run.save_checkpoint(2, state(tmp_path, "2"))
    assert fetched(run, 2, tmp_path / "into-2") == expected("2")


def test_prune_keeps_the_newest_and_removes_what_is_older(store: Store, tmp_path: Path) -> None:
    run = Run.acquire(store, "joe")
    store.write("runs/joe/config.json", b"{}")
    store.write("runs/joe/checkpoints/0000000002/0000000001/half.bin", b"half-written, and older")
    store.write("runs/joe/checkpoints/0000000099/0000000001/half.bin", b"half-written, and newer")
    for step in [1, 3, 4, 5]:
        run.save_checkpoint(step, state(tmp_path, str(step)))
    run.prune(keep=2)
    assert run.checkpoints() == [4, 5]
    left = {item.path.split("/")[3] for item in store.list("runs/joe/checkpoints")}
    assert left == {"0000000004", "0000000005", "0000000099"}
    assert store.exists("runs/joe/config.json")
    assert fetched(run, 4, tmp_path / "into") == expected("4")
    run.prune(keep=9)
    assert run.checkpoints() == [4, 5]
    with pytest.raises(ValueError, match="at least one"):
        run.prune(keep=0)


@pytest.mark.parametrize(
    ("after", "deleted", "left"), [(-1, [1, 3, 4], []), (1, [3, 4], [1]), (4, [], [1, 3, 4])]
)
def test_clear_deletes_what_comes_after(
    store: Store, tmp_path: Path, after: int, deleted: list[int], left: list[int]
) -> None:
    run = Run.acquire(store, "joe")
    store.write("runs/joe/config.json", b"{}")
    store.write("runs/joe/checkpoints/0000000005/0000000001/half.bin", b"half-written")
    for step in [1, 3, 4]:
        run.save_checkpoint(step, state(tmp_path, str(step)))
    assert run.clear(after=after) == deleted
    assert run.checkpoints() == left
    assert {int(item.path.split("/")[3]) for item in store.list("runs/joe/checkpoints")} == set(left)
    assert store.exists("runs/joe/config.json")
    Run.acquire(store, "joe")
    with pytest.raises(LeaseLostError):
        run.clear()


def test_a_checkpoint_says_what_it_consists_of(store: Store, tmp_path: Path) -> None:
    run = Run.acquire(store, "joe")
    run.save_checkpoint(1, state(tmp_path, "1"))
    checkpoint = run.checkpoint(1)
    assert {entry.path for entry in checkpoint.files} == {"optimiser.bin", "model/config.json"}
    assert checkpoint.total_bytes == len("optimiser 1") + len("model 1")
    with pytest.raises(NotFoundError, match="Complete: 1"):
        run.checkpoint(2)


def test_prune_deletes_the_manifest_first(tmp_path: Path) -> None:
    class Dying(Store):
        def delete(self, path: str) -> None:
            super().delete(path)
            raise StoreError("killed after one deletion")

    store = Dying.open("memory://")
    run = Run.acquire(store, "joe")
    for step in [1, 2]:
        run.save_checkpoint(step, state(tmp_path, str(step)))
    with pytest.raises(StoreError, match="killed"):
        run.prune(keep=1)
    assert run.checkpoints() == [2]
    assert any("0000000001/0000000001" in item.path for item in store.list("runs/joe/checkpoints"))
    same = Store(store._client, store.url)
    Run.acquire(same, "joe").prune(keep=1)
    assert not [item for item in store.list("runs/joe/checkpoints") if "/0000000001/manifest" in item.path]
    assert not store.list("runs/joe/checkpoints/0000000001")


def test_a_corrupt_checkpoint_is_named_and_leaves_no_folder(store: Store, tmp_path: Path) -> None:
    run = Run.acquire(store, "joe")
    run.save_checkpoint(1, state(tmp_path, "1"))
    path = "runs/joe/checkpoints/0000000001/0000000001/optimiser.bin"
    store.write(path, b"optimiser 2")
    with pytest.raises(CorruptObjectError, match=r"optimiser\.bin does not match its manifest"):
        run.fetch_checkpoint(1, tmp_path / "out" / "into")
    store.delete(path)
    with pytest.raises(CorruptObjectError, match=r"optimiser\.bin.*though checkpoint 1 lists it"):
        run.fetch_checkpoint(1, tmp_path / "out" / "into")
    assert list((tmp_path / "out").iterdir()) == []


def test_fetching_never_mixes_with_what_is_there(store: Store, tmp_path: Path) -> None:
    run = Run.acquire(store, "joe")
    run.save_checkpoint(1, state(tmp_path, "1"))
    into = tmp_path / "into"
    into.mkdir()
    assert fetched(run, 1, into) == expected("1")
    with pytest.raises(UserError, match="in the way"):
        run.fetch_checkpoint(1, into)


def test_pickles_pass_through_unopened(store: Store, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.mkdir, (str(tmp_path / "exploded"),))

    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "bomb.pt").write_bytes(pickle.dumps(Bomb()))
    run = Run.acquire(store, "joe")
    run.save_checkpoint(1, tmp_path / "state")
    run.fetch_checkpoint(1, tmp_path / "into")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["", "../x", "a/b", "A"])
def test_bad_run_names_are_refused(store: Store, name: str) -> None:
    with pytest.raises(UserError, match="cannot be a run"):
        Run.acquire(store, name)
