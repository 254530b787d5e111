"""How fast does training run and how much memory does it take, against the plain step of VITS trainers?

`python -m benchmarks.training` measures a model of MMS's size with random weights. Every measurement is a fresh
process: it sets training up (ours as `vits train` does, from a model folder and recordings; the plain step of
`benchmarks.plain` over the same model), takes two steps to warm up and a few on the clock, and reports its
high-water mark of memory. A machine is not as fast in one minute as in the next: so the plain step and ours of one
size take their steps in turns, in processes that wait for one another (21 GB for the largest three), and what is said
of one over the other is the median over pairs of steps. Other cases are by themselves, and the order changes. The
figures of a case are the median of its steps and the largest of its marks.

Then one step at a time for longer and longer utterances: what memory they take, and how many frames a batch may have.

Let nothing else run meanwhile: two busy cores more make these figures meaningless.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

RATE, HOP = 16000, 256
ALPHABET = "_ abcdefghijklmnopqrstuvwxyzáéíñóúü'-–"
#: Tokens of speech are about half as many as its frames, the blanks between characters counted.
FRAMES_PER_TOKEN = 2
#: Batch and frames: where the project asks for this much, checkpointing's saving at the second.
SIZES = [(4, 300), (16, 400)]
FASTER = {"fp32": 1.3, "bf16": 2.0}
MEMORY_SHARE = 0.75
CHECKPOINTING_SAVES = 0.30
LENGTHS = (100, 200, 400, 800, 1200, 1600, 2000)


@dataclass(frozen=True)
class Case:
    """One thing that is measured."""

    batch: int
    """Recordings in the batch."""
    frames: int
    """Frames of every recording."""
    precision: str = "fp32"
    plain: bool = False
    checkpointing: bool = False
    compiled: bool = False

    @property
    def name(self) -> str:
        """What the tables call it."""
        if self.plain:
            return "plain step, fp32"
        ways = {"checkpointing": self.checkpointing, "compiled": self.compiled}
        return ", ".join([f"ours, {self.precision}", *(way for way, taken in ways.items() if taken)])


@dataclass
class Result:
    """What was measured of a case."""

    seconds: list[float]
    """Of every step on the clock."""
    peak_bytes: int

    @property
    def step(self) -> float:
        """The median step."""
        return statistics.median(self.seconds)

    def times_as_fast_as(self, other: Result) -> float:
        """The median over steps of one and of the other that were taken in turns."""
        return statistics.median(
            theirs / own for theirs, own in zip(other.seconds, self.seconds, strict=True)
        )


Results = dict[Case, Result]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, and prints tables."""
    options = _parser().parse_args(argv)
    if options.prepare:
        prepare(options.prepare)
        return 0
    if options.case:
        with contextlib.redirect_stdout(sys.stderr):
            taken = measure(Case(**json.loads(options.case)), options.folder)
            for _, result in zip(sys.stdin, taken, strict=False):
                print(json.dumps(asdict(result)), file=sys.__stdout__, flush=True)
        return 0
    sizes = [(2, 64)] if options.quick else SIZES
    lengths = (64, 96, 128) if options.quick else LENGTHS
    repetitions = 1 if options.quick else options.repetitions
    steps = 1 if options.quick else options.steps
    machine = describe_machine()
    print(machine)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run("--prepare", str(folder))
        report: dict[str, Any] = {"machine": machine, "repetitions": repetitions, "steps": steps, "cases": []}
        if "speed" in options.parts:
            results = repeat(
                speed_cases(sizes, full=options.full and not options.quick), folder, repetitions, steps
            )
            print(speed_table(results))
            report["cases"] += _as_json(results)
        if "lengths" in options.parts:
            by_length = repeat(length_cases(lengths), folder, 1, 1)
            print(length_table(by_length))
            report["cases"] += _as_json(by_length)
    if options.quick:
        print("\nquick: it runs; the figures mean nothing")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repetitions", type=int, default=3, help="processes of each case (default: 3)")
    parser.add_argument("--steps", type=int, default=2, help="steps on the clock in each (default: 2)")
    parser.add_argument(
        "--full", action="store_true", help="batches of 32, of 8 with checkpointing, and torch_compile, too"
    )
    parser.add_argument(
        "--quick", action="store_true", help="two recordings of 64 frames: does it run at all?"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=("speed", "lengths"),
        default=("speed", "lengths"),
        help="what to measure (default: both)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    for own in ("--case", "--folder", "--prepare"):  # how this program measures: by running itself
        parser.add_argument(own, type=str if own == "--case" else Path, help=argparse.SUPPRESS)
    return parser


# --- What is measured ------------------------------------------------------------------------------


def speed_cases(sizes: Sequence[tuple[int, int]], *, full: bool) -> list[Case]:
    """The plain step and ours at every size, and checkpointing at the largest."""
    cases = []
    for batch, frames in sizes:
        cases += [Case(batch, frames, plain=True), Case(batch, frames), Case(batch, frames, "bf16")]
    cases += [Case(*sizes[-1], precision, checkpointing=True) for precision in FASTER]
    if full:
        cases += [Case(32, 400, "bf16"), Case(8, 400, "bf16"), Case(8, 400, "bf16", checkpointing=True)]
        cases += [Case(*size, "bf16", compiled=True) for size in sizes]
    return cases


def length_cases(lengths: Sequence[int]) -> list[Case]:
    """Four recordings of every length, in bfloat16, with checkpointing and without."""
    return [Case(4, frames, "bf16", checkpointing=saving) for frames in lengths for saving in (False, True)]


def repeat(cases: Sequence[Case], folder: Path, repetitions: int, steps: int) -> Results:
    """Each case in a fresh process, as often as asked, in an order that changes; what is compared takes turns."""
    results = {case: Result([], 0) for case in cases}
    shuffle = random.Random(0).shuffle  # noqa: S311 - an order, not a secret
    for _ in range(repetitions):
        groups = in_turns(cases)
        shuffle(groups)
        for group in groups:
            for case, told in zip(group, run_in_turns(group, folder, steps), strict=True):
                results[case].seconds += told.seconds
                results[case].peak_bytes = max(results[case].peak_bytes, told.peak_bytes)
                print(f"{case.batch} × {case.frames}, {case.name}: {told.seconds}", file=sys.stderr)
    return results


def in_turns(cases: Sequence[Case]) -> list[list[Case]]:
    """The plain step of each size with ours that are held against it; every other case by itself."""
    groups: dict[object, list[Case]] = {}
    for case in cases:
        alone = case.checkpointing or case.compiled or Case(case.batch, case.frames, plain=True) not in cases
        groups.setdefault(case if alone else (case.batch, case.frames), []).append(case)
    return list(groups.values())


def run_in_turns(cases: Sequence[Case], folder: Path, steps: int) -> list[Result]:
    """Each case in a process of its own, one step at a time.

    Raises:
        SystemExit: One of them failed; its errors have been shown.
    """
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(tempfile.TemporaryFile("w+"))
        processes = []
        for case in cases:
            arguments = command("--case", json.dumps(asdict(case)), "--folder", str(folder))
            process = stack.enter_context(
                subprocess.Popen(
                    arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
                )
            )
            stack.callback(process.kill)
            processes.append(process)

        def take(process: subprocess.Popen[str]) -> Result:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                print(file=process.stdin, flush=True)
            line = process.stdout.readline()
            if not line:
                errors.seek(0)
                sys.stderr.write(errors.read())
                raise SystemExit(f"a measurement failed: {process.args!r}")
            return Result(**json.loads(line))

        results = [take(process) for process in processes]  # of setting up, which is not on the clock
        for _ in range(steps):
            for process, result in zip(processes, results, strict=True):
                step = take(process)
                result.seconds += step.seconds
                result.peak_bytes = step.peak_bytes
    return results


def run(*arguments: str) -> str:
    """Run this program with other arguments in a process of its own; what it printed.

    Raises:
        SystemExit: It failed; its errors have been shown.
    """
    done = subprocess.run(command(*arguments), capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise SystemExit(f"a measurement failed: {' '.join(arguments)}")
    return done.stdout


def command(*arguments: str) -> list[str]:
    """This program with other arguments."""
    return [sys.executable, "-m", "benchmarks.training", *arguments]


# --- Inside a measurement's process ----------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Write a model of MMS's size with random weights, and one recording for training to begin with."""
    import torch
    from transformers import VitsConfig

    from shared.audio import write_wav
    from shared.modeling import VitsForTraining, save_model
    from shared.modeling.initialization import initialize
    from shared.provenance import Provenance

    torch.manual_seed(0)
    model: Any = VitsForTraining(VitsConfig(vocab_size=len(ALPHABET)))
    initialize(model)
    with torch.no_grad():  # trained weights are not 0, which a weight norm could not divide by
        for coupling in model.flow.flows:
            coupling.conv_post.weight.normal_(0.0, 0.01)
    model_folder = folder / "model"
    save_model(model, model_folder)
    vocabulary = {symbol: number for number, symbol in enumerate(ALPHABET)}
    (model_folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    tokenizer = {
        "add_blank": True,
        "normalize": True,
        "is_uroman": False,
        "phonemize": False,
        "language": "spa",
    }
    tokenizer |= {"tokenizer_class": "VitsTokenizer", "pad_token": "_", "unk_token": "_"}
    (model_folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    Provenance(licence="CC0-1.0", sources=("random weights",)).write(model_folder)
    data = folder / "data"
    data.mkdir()
    write_wav(data / "one.wav", recording(64, 0).numpy(), RATE)
    (data / "metadata.csv").write_text("file_name,text\none.wav,hola\n", encoding="utf-8")


def recording(frames: int, seed: int) -> Tensor:
    """[S] noise at the loudness of speech."""
    import torch

    return 0.1 * torch.randn(frames * HOP, generator=torch.Generator().manual_seed(seed)).clamp(-9, 9)


def tokens(frames: int, seed: int) -> list[int]:
    """Random tokens, as many as speech has in so many frames."""
    return random.Random(seed).choices(range(1, len(ALPHABET)), k=frames // FRAMES_PER_TOKEN)  # noqa: S311


def measure(case: Case, folder: Path) -> Iterator[Result]:
    """Set a case up and take two steps that do not count; then a step on the clock each time, with the mark so far.

    Two, as a run takes thousands: the first makes what lasts, and the second still asks the system for memory.
    """
    os.environ["VITS_CACHE"] = str(folder / "cache")
    step = (plain_step if case.plain else our_step)(case, folder)
    step(0)
    for number in itertools.count(1):
        start = time.perf_counter()
        losses = step(number)
        seconds = time.perf_counter() - start
        assert all(map(math.isfinite, losses.values())), losses
        yield Result([seconds] if number > 1 else [], peak_bytes())


def our_step(case: Case, folder: Path) -> Callable[[int], dict[str, float]]:
    """A joint step as `vits train` takes it, from the waveform on."""
    import numpy as np
    import torch
    from accelerate import Accelerator

    from services.training.config import resolve
    from services.training.dataset import Example, Examples
    from services.training.loop import build_steps, set_learning_rates
    from services.training.session import begin, precision
    from services.training.steps import Seen
    from shared.audio import to_pcm16

    config = resolve(
        {
            "model_name_or_path": str(folder / "model"),
            "dataset_name": str(folder / "data"),
            "output_dir": str(folder / "output"),
            "store": f"file://{folder / 'store'}",
            "max_steps": 1000,
            "bf16": case.precision == "bf16",
            "gradient_checkpointing": case.checkpointing,
            "torch_compile": case.compiled,
        },
        origin="the benchmark",
    )
    # Without being told, Accelerate starts no process group on machines that have only processors.
    cpu = not torch.accelerator.is_available()
    session = begin(config, Accelerator(mixed_precision=precision(config), cpu=cpu))
    steps = build_steps(session)
    set_learning_rates(session, steps)
    pcm = [to_pcm16(recording(case.frames, row).numpy()) for row in range(case.batch)]
    length = case.frames * HOP
    examples = Examples(
        [
            Example(
                id=str(row),
                text="",
                token_ids=tuple(tokens(case.frames, row)),
                speaker_id=0,
                index=row,
                start=row * length,
                samples=length,
            )
            for row in range(case.batch)
        ],
        np.concatenate(pcm),
        session.settings,
    )

    def step(number: int) -> dict[str, float]:
        batch = examples.collate(examples.examples)
        seen = Seen.of(batch, session.settings, session.accelerator.device)
        return {name: float(loss) for name, loss in steps.joint([seen], number).items()}

    return step


def plain_step(case: Case, folder: Path) -> Callable[[int], dict[str, float]]:
    """The plain step over the same model; its spectrograms were computed before, as that trainer does."""
    import torch
    from transformers import VitsModel

    from benchmarks import plain

    model = VitsModel.from_pretrained(folder / "model").eval()
    plain.apply_weight_norm(model)
    torch.manual_seed(1)
    discriminator = plain.PlainDiscriminator()
    analysis = plain.Analysis(RATE, HOP)
    by_generator, by_discriminator = (
        torch.optim.AdamW(network.parameters(), lr=2e-5, betas=(0.8, 0.99))
        for network in (model, discriminator)
    )
    step = plain.PlainStep(model, discriminator, by_generator, by_discriminator, analysis, plain.Weights())
    batch = plain.collate(
        [recording(case.frames, row) for row in range(case.batch)],
        [tokens(case.frames, row) for row in range(case.batch)],
        analysis,
    )

    def take(number: int) -> dict[str, float]:
        torch.manual_seed(number)
        noise = plain.Noise(
            posterior=torch.randn(case.batch, model.config.flow_size, case.frames),
            duration=torch.randn(case.batch, 2, batch.input_ids.shape[1]),
            slice_starts=torch.randint(case.frames - analysis.segment_frames + 1, (case.batch,)),
        )
        return step(batch, noise)

    return take


def peak_bytes() -> int:
    """This process's high-water mark of resident memory.

    ``ru_maxrss`` counts what the parent held when it forked, so Linux's own mark is read where there is one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# --- What is printed -------------------------------------------------------------------------------


def speed_table(results: Results) -> str:
    """Samples a second and memory of each case, and the ratios to the plain step, with their targets."""
    lines = []
    sizes = list(dict.fromkeys((case.batch, case.frames) for case in results))
    for batch, frames in sizes:
        here = {
            case: result for case, result in results.items() if (case.batch, case.frames) == (batch, frames)
        }
        lines += ["", f"batch {batch} of {frames} frames ({frames * HOP / RATE:.1f} s each)"]
        lines.append(f"{'':<28}{'s a step':>10}{'(fastest)':>11}{'samples/s':>11}{'peak GB':>9}")
        for case, result in here.items():
            lines.append(
                f"{case.name:<28}{result.step:>10.2f}{min(result.seconds):>11.2f}{batch / result.step:>11.2f}"
                f"{result.peak_bytes / 1e9:>9.2f}"
            )
        lines += [f"  {line}" for line in _verdicts((batch, frames), here)]
    return "\n".join(lines)


def _verdicts(size: tuple[int, int], results: Results) -> list[str]:
    """Ratios at one size; with their targets, where the project sets some."""

    def judged(met: bool, target: str, *, asked: bool) -> str:
        return f" (target: {target}: {'met' if met else 'MISSED'})" if asked else ""

    lines = []
    by_name = {case.name: result for case, result in results.items()}
    plainly = by_name.get("plain step, fp32")
    for precision, target in FASTER.items():
        ours = by_name.get(f"ours, {precision}")
        if ours and plainly:
            faster, share = ours.times_as_fast_as(plainly), ours.peak_bytes / plainly.peak_bytes
            wanted = judged(faster >= target, f"{target} times", asked=size in SIZES)
            lines.append(f"{precision}: {faster:.2f} times as fast as the plain step{wanted}")
            asked = size in SIZES and precision == "bf16"
            wanted = judged(share <= MEMORY_SHARE, f"at most {MEMORY_SHARE:.0%}", asked=asked)
            lines.append(f"{precision}: {share:.0%} of the plain step's memory{wanted}")
        saving = by_name.get(f"ours, {precision}, checkpointing")
        if ours and saving:
            saved, slower = 1 - saving.peak_bytes / ours.peak_bytes, saving.step / ours.step
            least = f"at least {CHECKPOINTING_SAVES:.0%}"
            wanted = judged(saved >= CHECKPOINTING_SAVES, least, asked=size == SIZES[-1])
            lines.append(
                f"{precision}: checkpointing saves {saved:.0%} of memory, {slower:.2f} times the time{wanted}"
            )
        compiled = by_name.get(f"ours, {precision}, compiled")
        if ours and compiled:
            lines.append(f"{precision}: compiled {ours.step / compiled.step:.2f} times as fast")
    return lines


def length_table(results: Results) -> str:
    """Peak memory by utterance length, and what follows for the batches that a machine can take."""
    batch = next(iter(results)).batch
    lines = [
        "",
        f"peak GB of a step in bf16, batch {batch}",
        f"{'frames':>8}{'seconds':>9}{'as it is':>10}{'checkpointing':>15}",
    ]
    peaks: dict[bool, dict[int, int]] = {False: {}, True: {}}
    for case, result in results.items():
        peaks[case.checkpointing][case.frames] = result.peak_bytes
    for frames, peak in peaks[False].items():
        lines.append(
            f"{frames:>8}{frames * HOP / RATE:>9.1f}{peak / 1e9:>10.2f}{peaks[True][frames] / 1e9:>15.2f}"
        )
    lines.append("")
    for checkpointing, by_frames in peaks.items():
        fixed, slope = line_through({batch * frames: peak for frames, peak in by_frames.items()})
        lines.append(
            f"{'with checkpointing' if checkpointing else 'as it is'}: {fixed / 1e9:.1f} GB and "
            f"{slope * 1000 / 1e9:.2f} GB for every 1,000 frames of a batch; max_frames_per_batch may be about "
            + ", ".join(
                f"{max(0, int((0.9 * size * 1e9 - fixed) / max(slope, 1) // 100 * 100)):,} in {size} GB"
                for size in (8, 16, 24)
            )
        )
    lines.append(
        "Long utterances: set max_frames_per_batch to that (a batch then closes early when utterances are long), "
        "group_by_length so that little of it is padding, and gradient_checkpointing where one utterance "
        "alone does not fit; max_duration_in_seconds leaves out what still does not."
    )
    return "\n".join(lines)


def line_through(points: dict[int, int]) -> tuple[float, float]:
    """Intercept and slope of the least-squares line."""
    slope, intercept = statistics.linear_regression(list(points), list(points.values()))
    return intercept, slope


def _as_json(results: Results) -> list[dict[str, Any]]:
    return [
        asdict(case)
        | {
            "name": case.name,
            "seconds_per_step": result.seconds,
            "median_seconds": result.step if result.seconds else None,
            "samples_per_second": case.batch / result.step if result.seconds else None,
            "peak_bytes": result.peak_bytes,
        }
        for case, result in results.items()
    ]


def describe_machine() -> str:
    """Processor, threads, memory and versions, in one line."""
    from benchmarks.alignment import cpu_name

    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    has = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers"))
    return (
        f"{cpu_name()} ({', '.join(has) or 'no AVX-512'}), {os.cpu_count()} cores, {memory:.0f} GiB, "
        f"{platform.system()}, Python {platform.python_version()}, {versions}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
