"""Threads for what may take long or for ever, such as asking a store, and a limit on how much of it waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, InvalidStateError
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from shared.errors import OverloadedError
from shared.voice.runtime import stopping

P = ParamSpec("P")
T = TypeVar("T")

#: When those are to come back who found no place.
RETRY_AFTER_SECONDS = 5.0


class BoundedExecutor(Executor):
    """Threads whose work cannot be stopped, so that nobody may be made to wait for it without end.

    What is submitted has a place until a thread is done with it, even if whoever wanted it has gone away. The threads
    do not hold up the end of the process.

    Args:
        name: What the threads are called.
        threads: How many there are.
        places: How many works may wait or be under way.
        waiting_for: What those wait for who have the places, in words for who finds none.
    """

    def __init__(self, name: str, *, threads: int, places: int, waiting_for: str) -> None:
        self._most = places
        self._refusal = (
            f"{places} others wait for {waiting_for} already. Try again in {RETRY_AFTER_SECONDS:.0f} s"
        )
        self._lock = threading.Lock()
        self._places: set[Future[Any]] = set()
        self._ended = False
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have some work done in its turn.

        Raises:
            OverloadedError: There is no place.
            StoppingError: The server is stopping.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._ended:
                raise stopping()
            if len(self._places) >= self._most:
                raise OverloadedError(self._refusal, retry_after_seconds=RETRY_AFTER_SECONDS)
            self._places.add(future)
        self._queue.put((future, partial(fn, *args, **kwargs)))
        return future

    def _run(self) -> None:
        while self._do_next():
            pass

    def _do_next(self) -> bool:
        """Do what is next; say whether there was anything. Nothing of it is kept while the thread waits."""
        item = self._queue.get()
        if item is None:
            return False
        future, work = item
        tell = _do(future, work) if self._begins(future) else None
        # Who is told may come at once with something else, and is to find the place.
        with self._lock:
            self._places.remove(future)
        if tell:
            with suppress(InvalidStateError):  # its end has been told otherwise
                tell()
        return True

    def _begins(self, future: Future[Any]) -> bool:
        """Whether a work is still wanted now that its turn has come; from then on it cannot be cancelled."""
        with self._lock:
            return not self._ended and future.set_running_or_notify_cancel()

    def end(self) -> None:
        """Take nothing more, and tell who waits that the server stops; what is under way is not waited for."""
        with self._lock:
            self._ended = True
            waiting = list(self._places)
        for future in waiting:
            with suppress(InvalidStateError):
                future.set_exception(stopping())
        for _ in self._threads:
            self._queue.put(None)

    def join(self, timeout_seconds: float) -> bool:
        """Wait, once it has ended, for what is under way; say whether that is over."""
        until = time.monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(min(max(0.0, until - time.monotonic()), threading.TIMEOUT_MAX))
        return not any(thread.is_alive() for thread in self._threads)


def _do(future: Future[Any], work: Callable[[], Any]) -> Callable[[], None]:
    """Do a work; what tells what came of it."""
    try:
        return partial(future.set_result, work())
    except BaseException as error:  # whatever it is, the caller is answered and the thread lives
        return partial(future.set_exception, error)
