"""Threads for what may hang: a limit on who waits, everybody answered, and nobody held up by it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import pytest

from services.synthesis.bounded import BoundedExecutor
from shared.errors import OverloadedError, StoppingError, StoreError


@pytest.fixture
def executor() -> BoundedExecutor:
    return BoundedExecutor("test", threads=1, places=3, waiting_for="a test")


@contextmanager
def hanging(executor: BoundedExecutor) -> Iterator[Future[str]]:
    """A work that is under way, until the end of a block."""
    begun, gate = threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        assert gate.wait(10)
        return "done"

    future = executor.submit(work)
    assert begun.wait(10)
    try:
        yield future
    finally:
        gate.set()


def test_results_and_errors_come_back(executor: BoundedExecutor) -> None:
    def fail() -> None:
        raise StoreError("gone")

    async def scene() -> int:
        loop = asyncio.get_running_loop()
        with pytest.raises(StoreError, match="gone"):
            await loop.run_in_executor(executor, fail)
        return await loop.run_in_executor(executor, int, "7")

    assert asyncio.run(scene()) == 7


def test_who_finds_no_place_is_told_when_to_come_back(executor: BoundedExecutor) -> None:
    with hanging(executor) as first:
        waiting = [executor.submit(int, number) for number in (1, 2)]
        with pytest.raises(
            OverloadedError, match=r"3 others wait for a test already\. Try again in 5 s"
        ) as full:
            executor.submit(int)
        assert full.value.retry_after_seconds == 5
        # Whoever goes away leaves a place behind that cannot be used yet, or a hanging store would fill the memory.
        assert waiting[0].cancel()
        with pytest.raises(OverloadedError):
            executor.submit(int)
    assert first.result(10) == "done"
    assert waiting[1].result(10) == 2
    executor.end()
    assert executor.join(10)


def test_what_nobody_wants_any_more_is_not_done(executor: BoundedExecutor) -> None:
    done: list[int] = []
    with hanging(executor):
        executor.submit(done.append, 1).cancel()
        last = executor.submit(done.append, 2)
    last.result(10)
    assert done == [2]


def test_the_end_is_told_to_all_and_waits_for_nobody(executor: BoundedExecutor) -> None:
    done: list[int] = []
    with hanging(executor) as running:
        waiting, left = executor.submit(done.append, 1), executor.submit(done.append, 2)
        left.cancel()
        executor.end()
        for future in (running, waiting):
            with pytest.raises(StoppingError):
                future.result(10)
        with pytest.raises(StoppingError):
            executor.submit(done.append, 3)
        assert not executor.join(0)
    assert executor.join(10)
    assert done == []


def test_who_is_told_finds_the_place_free() -> None:
    executor = BoundedExecutor("test", threads=1, places=1, waiting_for="others")
    told: Future[Future[int]] = Future()
    gate = threading.Event()
    first = executor.submit(gate.wait, 10)
    first.add_done_callback(lambda _: told.set_result(executor.submit(int, "7")))
    gate.set()
    assert told.result(10).result(10) == 7
    executor.end()
