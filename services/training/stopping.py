"""How a run stops when it is told to: by SIGTERM, to any of its processes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
from accelerate import Accelerator

#: What a process that SIGTERM has stopped answers its shell with; 0 means finished.
TERMINATED = 128 + signal.SIGTERM


@dataclass
class Stop:
    """Whether the run has been told to stop."""

    requested: bool = False

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any process has been told to; all of them have to ask at the same step."""
        if accelerator.num_processes == 1:
            return self.requested
        flag = torch.tensor(int(self.requested), device=accelerator.device)
        return bool(accelerator.reduce(flag, reduction="sum").item())


@contextmanager
def catch_sigterm() -> Iterator[Stop]:
    """While inside, SIGTERM only asks to stop: the loop finishes its step, saves, and exits with ``TERMINATED``."""
    stop = Stop()

    def ask(_signal: int, _frame: FrameType | None) -> None:
        stop.requested = True

    if threading.current_thread() is not threading.main_thread():  # signals reach only the main one
        yield stop
        return
    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
