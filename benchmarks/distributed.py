"""What do two processes gain over one, and what does it gain to sum gradients beside the backward pass?

`python -m benchmarks.distributed` takes joint steps of a model of MMS's size with random weights, as `vits train`
does, on one process and on two (torchrun, gloo, the loopback device), each process on one thread with a batch of its
own: weak scaling. Two processes sum their gradients once with and once without overlap. Beside them stands one process
on two threads with the whole batch, which is what two cores can also be used for. Every measurement is a launch of its
own; repetitions go through all cases in turn. Efficiency is the recordings a second of two processes over twice those
of one.

Two processes share the machine's memory bandwidth and its caches, so this says less of two machines or two GPUs than of
this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.training import Case, our_step, prepare


@dataclass(frozen=True)
class Way:
    """One way to use the machine."""

    name: str
    processes: int
    threads: int
    batch: int
    """Recordings of a process's batch, in units of ``--batch``."""
    overlapped: bool = True


WAYS = (
    Way("1 process, 1 thread", 1, 1, 1),
    Way("1 process, 2 threads, whole batch", 1, 2, 2),
    Way("2 processes, sums beside the backward pass", 2, 1, 1),
    Way("2 processes, sums after it", 2, 1, 1, overlapped=False),
)


def main() -> None:
    """Measure, and print a table."""
    options = _parser().parse_args()
    if options.worker:
        print(_measure(options, Path(options.worker)))
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        seconds: dict[Way, list[float]] = {way: [] for way in WAYS}
        for _ in range(options.repetitions):
            for way in WAYS:
                seconds[way].append(_launch(way, options, Path(folder)))
    print(f"{options.batch} recordings of {options.frames} frames a process, bf16 where the processor has it")
    print(table(seconds, options.batch))


def table(seconds: Mapping[Way, Sequence[float]], batch: int) -> str:
    """Medians, recordings a second, and efficiency: of two processes over twice the first way, one process.

    Args:
        seconds: Of a step, in each launch of each way.
        batch: What the ways' batches are in units of.
    """
    medians = {way: statistics.median(taken) for way, taken in seconds.items()}
    rates = {way: way.processes * way.batch * batch / taken for way, taken in medians.items()}
    one = rates[WAYS[0]]
    lines = [f"{'':<45}{'s/step':>8}{'recordings/s':>14}{'efficiency':>12}"]
    for way, rate in rates.items():
        efficiency = f"{rate / (2 * one):.0%}" if way is not WAYS[0] else ""
        lines.append(f"{way.name:<45}{medians[way]:>8.2f}{rate:>14.2f}{efficiency:>12}")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.distributed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batch", type=int, default=2, help="recordings of a process (default: 2)")
    parser.add_argument("--frames", type=int, default=200, help="frames of each (default: 200)")
    parser.add_argument("--steps", type=int, default=2, help="steps on the clock in each launch (default: 2)")
    parser.add_argument("--repetitions", type=int, default=2, help="launches of each case (default: 2)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # how this program measures: by running itself
    parser.add_argument("--after", action="store_true", help=argparse.SUPPRESS)
    return parser


def _launch(way: Way, options: argparse.Namespace, folder: Path) -> float:
    """Seconds a step of the slowest process."""
    launcher = [
        "-m", "torch.distributed.run", "--nproc-per-node", str(way.processes), "--rdzv-backend", "c10d",
        "--rdzv-endpoint", "127.0.0.1:0", "-m",
    ]  # fmt: skip
    command = [sys.executable, *(launcher if way.processes > 1 else ["-m"]), "benchmarks.distributed"]
    command += ["--worker", str(folder), "--batch", str(way.batch * options.batch)]
    command += ["--frames", str(options.frames), "--steps", str(options.steps)]
    command += [] if way.overlapped else ["--after"]
    environment = os.environ | {"OMP_NUM_THREADS": str(way.threads), "GLOO_SOCKET_IFNAME": "lo"}
    environment["VITS_CACHE"] = str(folder / "cache")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise SystemExit(f"a measurement failed: {' '.join(command)}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("seconds ")]
    return max(float(line.split()[1]) for line in lines)


def _measure(options: argparse.Namespace, folder: Path) -> str:
    """In a process of a measurement: a step to warm up, some on the clock."""
    step = our_step(Case(options.batch, options.frames, "bf16"), folder)
    with _summed_after() if options.after else contextlib.nullcontext():
        step(0)
        start = time.perf_counter()
        for number in range(options.steps):
            step(1 + number)
    return f"seconds {(time.perf_counter() - start) / options.steps}"


@contextlib.contextmanager
def _summed_after() -> Iterator[None]:
    """Let nobody listen to the backward pass, so that all sums come after it."""
    from services.training.reducing import Reducer

    listening = Reducer.overlapped
    Reducer.overlapped = lambda _: contextlib.nullcontext()  # type: ignore[assignment,method-assign,return-value]
    try:
        yield
    finally:
        Reducer.overlapped = listening  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
