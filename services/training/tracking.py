"""What a run tells: a progress bar on a terminal, plain lines elsewhere, TensorBoard in both cases."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch.utils.tensorboard import SummaryWriter

#: Steps that are thrown away, and steps that are measured, before the first estimate of the time left.
_UNMEASURED_STEPS, _MEASURED_STEPS = 2, 5


def short_duration(seconds: float) -> str:
    """``42 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Tracker:
    """Reports a run. On any process but the main one it does nothing.

    Use it as a context manager, so that the bar and the log file are closed whatever happens.
    """

    def __init__(
        self, log_dir: Path, *, enabled: bool, tensorboard: bool, total_steps: int, first_step: int
    ) -> None:
        self.enabled = enabled
        self.console = Console(quiet=not enabled, highlight=False, soft_wrap=True)
        self.total_steps = total_steps
        self.writer = (
            SummaryWriter(str(log_dir), purge_step=first_step or None) if enabled and tensorboard else None
        )
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (enabled and self.console.is_terminal),
        )
        self._task = self._bar.add_task("training", total=total_steps, completed=first_step, losses="")
        self._marks: list[float] = []

    def __enter__(self) -> Tracker:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
        if self.writer:
            self.writer.close()

    def say(self, line: str) -> None:
        """Print one line, above the bar if there is one."""
        self.console.print(line, markup=False)

    def begin_stage(self, name: str) -> None:
        """Name the bar, and measure the time of a step anew."""
        self._bar.update(self._task, description=name)
        self._marks = []

    def step_done(self, step: int, stage_end: int) -> None:
        """Advance the bar; after the first measured steps of a stage, say how long the rest of it will take."""
        self._bar.update(self._task, completed=step)
        if len(self._marks) > _UNMEASURED_STEPS + _MEASURED_STEPS:
            return
        self._marks.append(time.perf_counter())
        if len(self._marks) == _UNMEASURED_STEPS + _MEASURED_STEPS + 1:
            seconds = (self._marks[-1] - self._marks[_UNMEASURED_STEPS]) / _MEASURED_STEPS
            self.say(
                f"{seconds:.2f} s a step: about {short_duration(seconds * (stage_end - step))} left in this stage, "
                "evaluations and checkpoints apart"
            )

    def losses(
        self, step: int, values: Mapping[str, float], *, seconds_per_step: float | None = None
    ) -> None:
        """Log the losses of a step."""
        text = " ".join(f"{name} {value:.3g}" for name, value in values.items() if "/" not in name)
        speed = "" if seconds_per_step is None else f" · {seconds_per_step:.2f} s/step"
        self._bar.update(self._task, losses=text + speed)
        if not self.console.is_terminal:
            self.say(f"step {step}/{self.total_steps} · {text}{speed}")
        self.scalars(step, {f"train/{name}": value for name, value in values.items()})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers to TensorBoard."""
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Log a picture to TensorBoard."""
        if self.writer:
            self.writer.add_figure(name, figure, step)

    def audio(self, step: int, name: str, samples: NDArray[np.float32], sampling_rate: int) -> None:
        """Log sound to TensorBoard."""
        if self.writer:
            self.writer.add_audio(name, samples[None], step, sample_rate=sampling_rate)
