"""An error on one process ends all; here the processes are threads, which share the store that processes share."""

from __future__ import annotations

import threading

import pytest
from torch._C._distributed_c10d import HashStore

from services.training import together
from services.training.together import Together
from shared.errors import DataError, DivergenceError, StoreError


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "_INTERVAL", 0.01)


class Ended(threading.Thread):
    """A process that waits for another one, and is broken off by an error or never."""

    def __init__(self, store: HashStore, world: int = 2, *, by: BaseException | None = None) -> None:
        super().__init__(daemon=True)
        self.broken_off, self.left = threading.Event(), threading.Event()
        self.codes: list[int] = []
        self.raised: BaseException | None = None
        self._by = by
        self._together = Together(store, 1, world, self._leave)
        self.start()

    def _leave(self, code: int) -> None:
        self.codes.append(code)
        self.left.set()

    def run(self) -> None:
        try:
            with self._together:
                (self.broken_off if self._by else self.left).wait(30)
                if self._by:
                    raise self._by
        except BaseException as error:
            self.raised = error


def fail(store: HashStore, error: Exception, world: int = 2) -> None:
    with pytest.raises(type(error)), Together(store, 0, world):
        raise error


@pytest.mark.parametrize(
    "consequence", [RuntimeError("Connection closed by peer"), SystemExit(143)], ids=["connection", "SIGTERM"]
)
def test_what_comes_of_another_process_end_is_told_as_its_failure(
    consequence: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    store = HashStore()
    other = Ended(store, by=consequence)
    fail(store, DataError("The cache is spoiled:", ["clip01"]))
    other.broken_off.set()
    other.join(30)
    assert isinstance(other.raised, SystemExit)
    assert other.raised.code == 2
    assert other.codes == []
    told = "vits train: stopped, as process 0 did: The cache is spoiled:\n  - clip01\n"
    assert capsys.readouterr().err == told


def test_a_process_that_nothing_breaks_off_is_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where it waits for a GPU, which waits for another's."""
    monkeypatch.setattr(together, "_GRACE", 0.05)
    store = HashStore()
    other = Ended(store)
    fail(store, RuntimeError("a fault of the program's"))
    assert other.left.wait(30)
    assert other.codes == [1]
    assert "as process 0 did: RuntimeError: a fault of the program's" in capsys.readouterr().err


def test_all_end_with_the_exit_code_of_the_one_that_failed() -> None:
    """By it an orchestrator tells what is worth another try, and it may see any of them first."""
    store = HashStore()
    other = Ended(store, by=RuntimeError("Connection closed by peer"))
    fail(store, StoreError("s3://vits does not answer"))
    other.broken_off.set()
    other.join(30)
    assert isinstance(other.raised, SystemExit)
    assert other.raised.code == 4


def test_what_all_find_is_told_by_each_as_its_own() -> None:
    store = HashStore()
    other = Ended(store, by=DivergenceError("Training has diverged", ["mel is nan"]))
    other.broken_off.set()
    fail(store, DivergenceError("Training has diverged", ["mel is nan"]))
    other.join(30)
    assert isinstance(other.raised, DivergenceError)


def test_one_that_has_ended_need_not_hear_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is the failing one held up by it, which would wait for as long as the test may take."""
    monkeypatch.setattr(together, "_PATIENCE", 3600.0)
    store = HashStore()
    with Together(store, 1, 2):
        pass
    fail(store, DataError("the last upload", []))


def test_nobody_waits_for_ever_for_one_that_was_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "_PATIENCE", 0.05)
    fail(HashStore(), DataError("the cache is spoiled", []))


def test_being_stopped_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """SIGTERM stops all of them, and one may still be saving."""
    store = HashStore()
    other = Ended(store, by=SystemExit(143))
    with pytest.raises(SystemExit), Together(store, 0, 2):
        raise SystemExit(143)
    other.broken_off.set()
    other.join(30)
    assert isinstance(other.raised, SystemExit)
    assert other.raised.code == 143
    assert capsys.readouterr().err == ""
