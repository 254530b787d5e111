"""Several processes end together: an error on one of them ends the others too, and they say what it was.

A process that waits for the others in a collective operation is not told why one of them does not come: gloo only
notices that a connection has gone, and NCCL waits for its time-out. So a process that fails leaves word in the store
through which the processes have found each other, and a thread of each of the others looks there.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from accelerate import Accelerator
from torch.distributed import distributed_c10d

from services.cli import EXIT_CODES
from shared.errors import VitsError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

#: Where the first failure is, and how many processes need not hear of it any more.
_FAILURE, _HEARD = "vits/failure", "vits/heard"
#: Seconds from one look to the next.
_INTERVAL = 0.5
#: Seconds that a process that has failed waits for the others to hear of it: the store may end with it.
_PATIENCE = 10.0
#: Seconds that the others have to end by themselves, as they do once what they wait for breaks off: torchrun gives
#: them as many before it kills them.
_GRACE = 30.0
#: What a process answers the shell with that fails by an error that is not ours, as Python has it.
_UNKNOWN = 1


def same_failure(error: Exception) -> type[VitsError]:
    """What other processes raise because one has failed: an error that ends them with the same exit code."""
    return next((kind for kind in EXIT_CODES if isinstance(error, kind)), VitsError)


def ending_together(accelerator: Accelerator) -> AbstractContextManager[object]:
    """While inside, an error on one process ends all of them, with the exit code that it ends the one with.

    Raises:
        SystemExit: Another process has failed; which, and why, has been told.
    """
    if accelerator.num_processes == 1:
        return nullcontext()
    # A connection of its own: over the other, something may be waited for.
    store: Store = cast("Any", distributed_c10d._get_default_store()).clone()
    return Together(store, accelerator.process_index, accelerator.num_processes)


class Together:
    """One of several processes.

    Args:
        store: All of them have it.
        rank: Which of them this is.
        world: How many they are.
        leave: Ends the process at once, with an exit code.
    """

    def __init__(
        self, store: Store, rank: int, world: int, leave: Callable[[int], object] = os._exit
    ) -> None:
        self._store, self._rank, self._world, self._leave = store, rank, world, leave
        self._over = threading.Event()
        self._elsewhere = self._has_heard = False
        self._code = _UNKNOWN
        self._thread = threading.Thread(target=self._look, name="looking for failures", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        with suppress(RuntimeError):  # the store is gone, and with it the process that had it
            if isinstance(error, Exception) and not self._elsewhere:
                self._announce(error)
            self._hear()
        # What comes of the other's end alone says nothing: a connection that has gone, or the launcher's SIGTERM.
        if self._elsewhere and isinstance(error, Exception | SystemExit) and not isinstance(error, VitsError):
            raise SystemExit(self._code) from error

    def _announce(self, error: Exception) -> None:
        """Leave word of a failure, and give the others time to hear of it; or tell of the one that came before it."""
        code = EXIT_CODES[same_failure(error)]
        what = str(error) if isinstance(error, VitsError) else f"{type(error).__name__}: {error}"
        said = self._store.compare_set(_FAILURE, "", f"{self._rank} {code} {what}").decode()
        if not isinstance(error, VitsError):
            self._tell(said)
        self._hear()
        until = time.monotonic() + _PATIENCE
        while self._store.add(_HEARD, 0) < self._world and time.monotonic() < until:
            time.sleep(_INTERVAL / 10)

    def _look(self) -> None:
        """In a thread: hear of a failure elsewhere, and end the process where nothing else does."""
        with suppress(RuntimeError):
            while not self._store.check([_FAILURE]):
                if self._over.wait(_INTERVAL):
                    return
            self._tell(self._store.get(_FAILURE).decode())
            self._hear()
        if self._elsewhere and not self._over.wait(_GRACE):
            self._leave(self._code)

    def _hear(self) -> None:
        """Count as one that need not be waited for, once."""
        if not self._has_heard:
            self._has_heard = True
            self._store.add(_HEARD, 1)

    def _tell(self, said: str) -> None:
        """Say what another process has failed of."""
        rank, code, what = said.split(" ", 2)
        if int(rank) != self._rank:
            self._elsewhere, self._code = True, int(code)
            print(f"vits train: stopped, as process {rank} did: {what}", file=sys.stderr, flush=True)
