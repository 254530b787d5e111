"""How fast is the alignment search, against the dynamic programme that VITS trainers use?

`python -m benchmarks.alignment` compiles that baseline (`field_alignment.pyx`) with the flags of our kernel,
runs both on the same likelihoods in random order, and prints medians and ratios. Each run gets a likelihood
written just before, outside the clock, as it is in training. Needs a C compiler, Cython and torch.

Shapes: B batch, F frames, T tokens.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monotonic_align import _kernel, maximum_path
from monotonic_align.search import scratch

BASELINE = Path(__file__).with_name("field_alignment.pyx")
SETUP = """
from Cython.Build import cythonize
from setuptools import Extension, setup
flags = ["-O3", "-fopenmp"]
sources = ["field_alignment.pyx"]
extension = Extension("field_alignment", sources, extra_compile_args=flags, extra_link_args=["-fopenmp"])
setup(name="field_alignment", ext_modules=cythonize([extension], language_level=3))
"""
# What the project asks of the kernel at batch 16, 1024 frames and 256 tokens.
TARGETS = {"kernel": 4.0, "with copies": 8.0, "second thread": 1.7}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and prints its table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.alignment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batch", type=int, default=16, help="items (default: 16)")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of each item (default: 256)")
    parser.add_argument("--frames", type=int, default=1024, help="frames of each item (default: 1024)")
    parser.add_argument("--repetitions", type=int, default=60, help="timed runs of each (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the likelihoods and the order (default: 0)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        field = build_baseline(Path(folder))
        bench = Bench(field, options.batch, options.frames, options.tokens, options.seed)
        bench.check()
        seconds = bench.measure(options.repetitions, options.seed)
    print(
        f"{cpu_name()}, batch {options.batch}, F x T = {options.frames} x {options.tokens}, "
        f"{options.repetitions} runs each in random order"
    )
    print(table(seconds))
    return 0


def build_baseline(folder: Path) -> ModuleType:
    """Compiles and loads the baseline in `folder`."""
    (folder / BASELINE.name).write_bytes(BASELINE.read_bytes())
    (folder / "setup.py").write_text(SETUP)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    (library,) = folder.glob("field_alignment*.so")
    spec = importlib.util.spec_from_file_location("field_alignment", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Bench:
    """The two searches on one batch of full-length items, each with its buffers ready."""

    def __init__(self, field: ModuleType, batch: int, frames: int, tokens: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.field = field
        self.source_BFT = rng.normal(-100.0, 10.0, (batch, frames, tokens)).astype(np.float32)
        self.scores_BFT = self.source_BFT.copy()
        self.path_BFT = np.zeros_like(self.source_BFT, dtype=np.int32)
        self.tokens_B = np.full(batch, tokens, np.int32)
        self.frames_B = np.full(batch, frames, np.int32)
        self.durations_BT = np.zeros((batch, tokens), np.int32)
        self.bad_B = np.zeros(batch, np.uint8)
        self.scratch = {threads: scratch(threads, tokens, tokens * frames) for threads in (1, 2)}

    def refresh(self) -> None:
        """Clears what the kernels fill, then writes the likelihood anew (the baseline destroys it).

        torch writes it, with the threads of the run to come: so in training, where the likelihood is the last
        thing computed, and where torch's OpenMP threads, which are ours too, are awake.
        """
        self.path_BFT[:] = 0
        self.durations_BT[:] = 0
        torch.from_numpy(self.scores_BFT).copy_(torch.from_numpy(self.source_BFT))

    def field_kernel(self, threads: int) -> None:
        """The baseline's compiled search alone."""
        self.field.search(self.path_BFT, self.scores_BFT, self.frames_B, self.tokens_B, threads)

    def our_kernel(self, threads: int) -> None:
        """Our compiled search alone."""
        _kernel.search(
            self.scores_BFT,
            self.tokens_B,
            self.frames_B,
            *self.scratch[threads],
            self.durations_BT,
            self.bad_B,
        )

    def field_whole(self, threads: int) -> torch.Tensor:
        """The baseline as trainers call it: a copy in, a dense path out, its sum as durations."""
        scores_BFT = torch.from_numpy(self.scores_BFT)
        value_BFT = scores_BFT.data.cpu().numpy().astype(np.float32)
        path_BFT = np.zeros(value_BFT.shape, dtype=np.int32)
        self.field.search(path_BFT, value_BFT, self.frames_B, self.tokens_B, threads)
        return torch.from_numpy(path_BFT).to(device=scores_BFT.device, dtype=scores_BFT.dtype).sum(1)

    def our_whole(self, threads: int) -> torch.Tensor:
        """The public function, from tensor to tensor."""
        return maximum_path(
            torch.from_numpy(self.scores_BFT),
            torch.from_numpy(self.tokens_B),
            torch.from_numpy(self.frames_B),
            threads=threads,
        )

    def our_dense(self, threads: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The public function with its dense path."""
        return maximum_path(
            torch.from_numpy(self.scores_BFT),
            torch.from_numpy(self.tokens_B),
            torch.from_numpy(self.frames_B),
            dense=True,
            threads=threads,
        )

    def check(self) -> None:
        """Both must find the same durations, or the figures mean nothing; and two threads must be two."""
        expected_BT = self.field_whole(1).numpy()
        np.testing.assert_array_equal(self.our_whole(1).numpy(), expected_BT)
        values, moved = self.scratch[2]
        team = _kernel.search(
            self.scores_BFT, self.tokens_B, self.frames_B, values, moved, self.durations_BT, self.bad_B
        )
        np.testing.assert_array_equal(self.durations_BT, expected_BT)
        assert team == 2, "the kernel was built without OpenMP"

    def measure(self, repetitions: int, seed: int) -> dict[tuple[str, int], NDArray[np.float64]]:
        """Seconds of each run, by name and threads."""
        runs: dict[str, Callable[[int], Any]] = {
            "field kernel": self.field_kernel,
            "our kernel": self.our_kernel,
            "field with copies": self.field_whole,
            "ours with copies": self.our_whole,
            "ours, dense path too": self.our_dense,
        }
        order = [(name, threads) for name in runs for threads in (1, 2)]
        seconds: dict[tuple[str, int], list[float]] = {case: [] for case in order}
        shuffle = np.random.default_rng(seed).shuffle
        for _ in range(repetitions):
            shuffle(order)
            for name, threads in order:
                torch.set_num_threads(threads)
                self.refresh()
                start = time.perf_counter()
                runs[name](threads)
                seconds[name, threads].append(time.perf_counter() - start)
        return {case: np.array(values) for case, values in seconds.items()}


def table(seconds: dict[tuple[str, int], NDArray[np.float64]]) -> str:
    """Medians with the fastest run beside them, then the ratios that the targets speak of."""
    lines = [
        f"{'milliseconds':<24}{'1 thread':>18}{'2 threads':>18}",
        f"{'':<24}{'median (best)':>18}{'median (best)':>18}",
    ]
    for name in dict.fromkeys(name for name, _ in seconds):
        cells = [
            f"{np.median(seconds[name, threads]) * 1e3:.2f} ({seconds[name, threads].min() * 1e3:.2f})"
            for threads in (1, 2)
        ]
        lines.append(f"{name:<24}{cells[0]:>18}{cells[1]:>18}")
    pairs = {
        "kernel": (("field kernel", 1), ("our kernel", 1)),
        "with copies": (("field with copies", 1), ("ours with copies", 1)),
        "second thread": (("our kernel", 1), ("our kernel", 2)),
    }
    lines.append("")
    for name, (slow, fast) in pairs.items():
        by_median = float(np.median(seconds[slow]) / np.median(seconds[fast]))
        by_best = float(seconds[slow].min() / seconds[fast].min())
        ratios = f"{by_median:.2f} times by medians, {by_best:.2f} by best runs"
        lines.append(f"{name:<24}{ratios} (target {TARGETS[name]})")
    return "\n".join(lines)


def cpu_name() -> str:
    """The processor as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    raise SystemExit(main())
