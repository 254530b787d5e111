"""The batch-size finder: what a step really needs, measured with the longest recordings, and what fits.

Every measurement is a process of its own, so that none inherits another's peak and one that is killed takes nobody
along. On a processor a peak is the process's largest resident set, on a GPU what PyTorch had allocated at most.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.training.config import SECRETS, TrainingConfig
from services.training.data.augmentation import Augmentation, Change
from services.training.plots import curves_svg
from services.training.tuning import page
from shared.errors import ConfigError
from shared.wording import counted

if TYPE_CHECKING:
    from services.training.dataset import Example, Examples

#: Batches that are measured, for a line through their peaks.
_SIZES = (1, 2, 4)
#: Share of the memory that may be filled: allocators leave holes.
_FILLED = 0.9
#: A batch below this makes a GAN's step noisy: rather compute activations twice.
_SMALL = 4

#: Peak bytes of a step on so many recordings, with or without checkpointing; None where there was no room.
Measure = Callable[[int, bool], "int | None"]


@dataclass(frozen=True)
class Measurement:
    """One process's peak."""

    batch: int
    checkpointing: bool
    peak: int | None
    """Bytes, or None where there was no room."""


@dataclass(frozen=True)
class Suggestion:
    """What fits.

    Attributes:
        batch: Recordings of a batch; None where not even one fits.
        accumulation: Batches of a step, which together are as many recordings as the configuration asks for.
        checkpointing: Whether activations are computed twice.
        measured: Everything that was measured on the way.
        limit: Bytes that may be used.
    """

    batch: int | None
    accumulation: int
    checkpointing: bool
    measured: tuple[Measurement, ...]
    limit: int

    @property
    def layer(self) -> dict[str, Any]:
        """The keys to set."""
        if self.batch is None:
            return {}
        return {
            "per_device_train_batch_size": self.batch,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_checkpointing": self.checkpointing,
        }


def find_batch_size(wanted: int, limit: int, measure: Measure) -> Suggestion:
    """The largest batch that divides the wanted step and fits; with checkpointing only where it would be small.

    A line through the peaks of small batches says what should fit, and then that is measured too.

    Args:
        wanted: Recordings of a step.
        limit: Bytes that there are.
        measure: Measures one.
    """
    room = round(_FILLED * limit)
    divisors = [size for size in range(wanted, 0, -1) if wanted % size == 0]
    measured: list[Measurement] = []
    found: dict[bool, int | None] = {}
    for checkpointing in (False, True):
        found[checkpointing] = _largest(divisors, room, checkpointing, measure, measured)
        if (found[checkpointing] or 0) >= min(_SMALL, wanted):
            break
    checkpointing = (found.get(True) or 0) > (found[False] or 0)
    batch = found[checkpointing]
    return Suggestion(batch, wanted // batch if batch else 1, checkpointing, tuple(measured), limit)


def _largest(
    divisors: Sequence[int],
    room: int,
    checkpointing: bool,
    measure: Measure,
    measured: list[Measurement],
) -> int | None:
    """The largest batch whose own peak was measured to fit."""
    peaks: dict[int, int | None] = {}

    def fits(size: int) -> bool:
        if size not in peaks:
            peaks[size] = measure(size, checkpointing)
            measured.append(Measurement(size, checkpointing, peaks[size]))
        peak = peaks[size]
        return peak is not None and peak <= room

    for size in _SIZES:
        if size > divisors[0] or not fits(size):
            break
    for size in divisors:
        known = {one: peak for one, peak in peaks.items() if peak is not None}
        if (size in peaks or _predicted(known, size) <= room) and fits(size):
            return size
    return None


def _predicted(peaks: Mapping[int, int], size: int) -> float:
    """The peak at a size, on the line through the smallest and the largest batch that were measured."""
    if not peaks:
        return float("inf")
    low, high = min(peaks), max(peaks)
    slope = (peaks[high] - peaks[low]) / (high - low) if high > low else 0.0
    return peaks[high] + slope * (size - high)


def available_memory(config: TrainingConfig) -> int:
    """Bytes that a training may use: a GPU's, or what is free on this machine within the process's own limits."""
    import torch

    if torch.cuda.is_available() and not config.use_cpu:
        return int(torch.cuda.mem_get_info()[0])
    meminfo = dict(
        line.split(":", 1)
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        if ":" in line
    )
    free = int(meminfo["MemAvailable"].split()[0]) * 1024
    try:  # a container's own limit
        cap = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        taken = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return free
    return min(free, int(cap) - taken) if cap.isdigit() else free


# -- One measurement -------------------------------------------------------------------------------


def measure_in_a_process(config: TrainingConfig) -> Measure:
    """Measures by running this module, which reads the configuration from its standard input."""
    told = config.model_dump_json(exclude=set(SECRETS))

    def measure(size: int, checkpointing: bool) -> int | None:
        command = [sys.executable, "-m", __name__, str(size), str(int(checkpointing))]
        done = subprocess.run(command, input=told, capture_output=True, text=True, check=False)  # noqa: S603 - ourselves
        if done.returncode == 0:
            return int(done.stdout.splitlines()[-1])
        # The kernel kills who takes too much; PyTorch says so itself.
        if done.returncode in {-9, 137} or any(word in done.stderr.lower() for word in _NO_ROOM):
            return None
        raise ConfigError(
            f"A step of {counted(size, 'recording')} could not be measured:",
            done.stderr.strip().splitlines()[-3:],
        )

    return measure


_NO_ROOM = ("out of memory", "can't allocate memory", "memoryerror")


@dataclass(frozen=True)
class _Slowest(Augmentation):
    """Every recording as long as an augmentation may make it."""

    def draw(self, seed: int, epoch: int, recording: str) -> Change | None:
        """The same for each."""
        return Change(speed=1 - self.speed) if self else None


def _heaviest(examples: Examples, size: int, budget: int | None) -> list[list[Example]]:
    """The batches of a configuration that may need most memory.

    Of every recording a slice is decoded, of whatever length it is. So within a budget of frames it is not only a
    batch of the longest recordings, but also one of as many as there may be.

    Args:
        examples: The recordings; again from the first where there are too few.
        size: Recordings of a batch at most.
        budget: ``max_frames_per_batch``.
    """
    frames = examples.most_frames
    longest = sorted(examples.examples, key=frames, reverse=True)
    if budget is None:
        return [list(islice(cycle(longest), size))]
    few, many = (max(1, min(size, budget // frames(one))) for one in (longest[0], longest[-1]))
    fitting = [one for one in longest if frames(one) * many <= budget] or longest[-1:]
    batches = [list(islice(cycle(longest), few)), list(islice(cycle(fitting), many))]
    return batches if few < many else batches[:1]


def _measure_here(config: TrainingConfig, size: int) -> int:
    """Peak bytes of joint steps on the heaviest batches of at most ``size`` recordings, twice on each: the first step
    makes the optimisers' state.
    """
    import torch
    from accelerate import Accelerator

    from services.training.loop import build_steps
    from services.training.session import begin, precision
    from services.training.steps import Seen

    session = begin(config, Accelerator(mixed_precision=precision(config), cpu=config.use_cpu))
    examples, varied = session.train, session.train.augmentation
    examples.augmentation = _Slowest(speed=varied.speed, probability=varied.probability)
    steps = build_steps(session)
    # Past its first steps, in which a discriminator that is frozen, or none, needs less.
    first = steps.first_step + config.discriminator_start_step + config.frozen_discriminator_steps
    for number, chosen in enumerate(2 * _heaviest(examples, size, config.max_frames_per_batch), first):
        batch = examples.collate(chosen, epoch=0)
        steps.joint([Seen.of(batch, session.settings, session.accelerator.device)], number)
    if session.accelerator.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return _peak()


def _peak() -> int:
    """This process's high-water mark of resident memory in bytes; ``ru_maxrss`` would count its parent's, too."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024


def main(argv: Sequence[str]) -> int:
    """Measure one batch of a configuration, and print its peak in bytes."""
    from services.training.config import resolve

    size, checkpointing = int(argv[0]), bool(int(argv[1]))
    values = json.loads(sys.stdin.read())
    values |= {key: os.environ.get(variable) for key, variable in SECRETS.items()}
    values |= {"gradient_checkpointing": checkpointing, "per_device_train_batch_size": size}
    print(_measure_here(resolve(values, origin="The configuration"), size))
    return 0


# -- What it says ----------------------------------------------------------------------------------


def describe(found: Suggestion, wanted: int) -> list[str]:
    """What was found, in sentences."""
    room = f"{found.limit / 2**30:.1f} GB, of which a tenth stays free"
    if found.batch is None:
        return [
            f"Not even one of the longest recordings fits into {room}, with gradient_checkpointing either.",
            "Set a smaller max_duration_in_seconds, bf16 or fp16, or train where there is more memory.",
        ]
    layer = ", ".join(f"{key} {str(value).lower()}" for key, value in found.layer.items())
    return [
        f"Into {room}, the heaviest batches of {counted(found.batch, 'recording')} fit.",
        f"Suggested, for steps of {counted(wanted, 'recording')}: {layer}.",
    ]


def suggestion_page(found: Suggestion, wanted: int, config: TrainingConfig) -> str:
    """The measurements as a page."""
    rows = [
        {
            "recordings": one.batch,
            "gradient_checkpointing": str(one.checkpointing).lower(),
            "peak": "no room" if one.peak is None else f"{one.peak / 2**30:.2f} GB",
        }
        for one in found.measured
    ]
    curves = [
        (style, [(one.batch, one.peak / 2**30) for one in sorted(found.measured, key=lambda one: one.batch)
                 if one.peak is not None and one.checkpointing is checkpointing])
        for style, checkpointing in (("train", False), ("points", True))
    ]  # fmt: skip
    drawn = [curve for curve in curves if curve[1]]
    title = "Peak memory in GB by recordings; the line without checkpointing, the marks with it"
    charts = [(title, curves_svg(drawn, label=title))] if drawn else []
    return page.page(f"{config.published_name} · batch size", describe(found, wanted), charts, rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
