"""How far a long export is: lines for logs, bars with an estimate of the time left for terminals."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: A log is told of a long piece of work so many times.
TELLINGS = 10

#: Seconds of work before anything is said of how long the rest will take.
ENOUGH_TO_TELL = 10.0

#: A step is done; what comes next, where there is something to say of it.
Step = Callable[[str], None]


class Progress:
    """Tells of each step by a line.

    Args:
        say: Called with each line; by default nobody hears.
    """

    def __init__(self, say: Callable[[str], None] = lambda line: None) -> None:
        self.say = say

    def __call__(self, line: str) -> None:
        """Tell a line."""
        self.say(line)

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Step]:
        """A piece of work of so many steps.

        Args:
            what: What is done, such as "Calibrating".
            total: How many steps it has.

        Yields:
            What to call after each step, with a word about it.
        """
        started, done = time.monotonic(), 0

        def step(about: str = "") -> None:
            nonlocal done
            done += 1
            if done == total or done * TELLINGS // total > (done - 1) * TELLINGS // total:
                left = (time.monotonic() - started) / done * (total - done)
                rest = f", about {_duration(left)} left" if left > ENOUGH_TO_TELL else ""
                self.say(f"{what}: {done} of {total}{f' ({about})' if about else ''}{rest}")

        yield step


class Terminal(Progress):
    """Bars on the standard error, and lines above them; lines alone where it is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        super().__init__(lambda line: print(line, flush=True))
        self._console = Console(stderr=True)

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Step]:
        """See `Progress.bar`."""
        if not self._console.is_terminal:
            with super().bar(what, total) as step:
                yield step
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(what, total=total)

            def step(about: str = "") -> None:
                bars.update(task, advance=1, description=f"{what}: {about}" if about else what)

            yield step


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes else f"{round(seconds)} s"
