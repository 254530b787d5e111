"""The machine and what is installed on it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.cli import SUBCOMMANDS
from services.doctor.finding import Finding, fail, note, ok
from shared.errors import UserError
from shared.folders import check_writable

PACKAGE = "vits-suite"
#: Python versions that the suite is made for, the last of them excluded.
PYTHONS = (3, 11), (3, 13)
#: What `versions` tells, where it is installed.
TOLD = ("torch", "transformers", "onnxruntime", "openvino", "bentoml", "grpcio", "numpy", "obstore")
#: Extras that no command depends on, or that stand in for another.
NOT_ASKED = {"dev", "demo", "wandb", "client", "serve-gpu"}
#: What else an extra is for, beside the commands that name it.
ALSO = {
    "phonemes": "voices that speak from phonemes (Piper's)",
    "ray": "'vits synthesize --engine ray'",
    "judges": "the gate of 'vits export'",
}
#: Gigabytes that speaking and training want at least.
SPEAKING_GB, TRAINING_GB = 1.5, 6.0
DISK_GB = 5.0
#: Of the alignment search that is timed: batch, tokens, frames; the reference gets the first of the batch.
SEARCH_SHAPE = 8, 80, 400
#: A kernel that is not so many times as fast as NumPy was built without optimisation.
LEAST_KERNEL_GAIN = 5.0
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16")


def versions() -> Iterator[Finding]:
    """Python, the suite, and what it stands on."""
    least, most = PYTHONS
    current = ".".join(map(str, sys.version_info[:3]))
    told = [f"Python {current}", f"{PACKAGE} {_version(PACKAGE) or 'not installed, run from its source'}"]
    told += [f"{name} {found}" for name in TOLD if (found := _version(name))]
    if least <= sys.version_info[:2] < most:
        yield ok("versions", ", ".join(told))
    else:
        wanted = " or ".join(f"3.{minor}" for minor in range(least[1], most[1]))
        yield fail(
            "versions", ", ".join(told), f"use Python {wanted}: make install PYTHON=python3.{least[1]}"
        )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def can_train() -> bool:
    """Whether torch is installed, without which nothing here trains, and what only training needs is not missed."""
    return _version("torch") is not None


def extras() -> Iterator[Finding]:
    """Which extras are installed whole, and which commands need those that are not."""
    wanted = _requirements()
    if not wanted:
        yield note(
            "extras", f"{PACKAGE} is not installed as a package", "make install, or pip install -e '.[train]'"
        )
        return
    whole = []
    for extra, names in wanted.items():
        missing = [name for name in names if _version(name) is None]
        if not missing:
            whole.append(extra)
            continue
        commands = [f"'vits {name}'" for name, command in SUBCOMMANDS.items() if command.extra == extra]
        commands += [ALSO[extra]] if extra in ALSO else []
        yield note(
            f"extra {extra}",
            f"not whole: {', '.join(missing)} missing; needed by {', '.join(commands)}",
            f"pip install '{PACKAGE}[{extra}]'",
        )
    if whole:
        yield ok("extras", f"{', '.join(whole)}: installed")


def _requirements() -> dict[str, list[str]]:
    """The packages of each extra, by the installed distribution; those for other platforms left out."""
    try:
        lines = requires(PACKAGE) or []
    except PackageNotFoundError:
        return {}
    found: dict[str, list[str]] = {}
    for line in lines:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"""extra == ['"]([\w-]+)['"]""", marker)
        elsewhere = "platform_machine" in marker and os.uname().machine not in marker
        name = re.match(r"[\w.-]+", requirement)
        if extra and name and not elsewhere and extra[1] not in NOT_ASKED:
            found.setdefault(extra[1], []).append(name[0])
    return found


def kernel() -> Iterator[Finding]:
    """Whether the alignment search is built, right, and fast."""
    if not can_train():
        yield ok("kernel", "not needed here: only training aligns, and torch is not installed")
        return
    build = (
        "with a C compiler installed (Debian, Ubuntu: build-essential, python3-dev), "
        "pip install --force-reinstall --no-deps -e ."
    )
    try:
        search = importlib.import_module("monotonic_align")
    except ImportError as error:
        yield fail("kernel", f"the alignment search cannot be loaded ({error}); 'vits train' needs it", build)
        return
    reference = importlib.import_module("monotonic_align.reference")
    batch, tokens, frames = SEARCH_SHAPE
    scores = np.random.default_rng(0).standard_normal((batch, frames, tokens), dtype=np.float32)
    lengths = np.full(batch, tokens, np.int32), np.full(batch, frames, np.int32)
    found, fast = _timed(lambda: search.maximum_path(scores, *lengths, threads=1))
    wanted, slow = _timed(lambda: reference.reference_durations(scores[:1], lengths[0][:1], lengths[1][:1]))
    gain = slow * batch / fast
    if not np.array_equal(found[0], wanted[0]):
        yield fail("kernel", "the alignment search finds other paths than its reference", build)
    elif gain < LEAST_KERNEL_GAIN:
        yield note("kernel", f"built, but only {gain:.1f} times as fast as NumPy", build)
    else:
        yield ok(
            "kernel",
            f"built; {batch} × {tokens} tokens × {frames} frames in {1000 * fast:.2f} ms, "
            f"{gain:.0f} times as fast as NumPy",
        )


def _timed(call: Callable[[], NDArray[np.int32]]) -> tuple[NDArray[np.int32], float]:
    """What a call gives, and the seconds that it takes at best."""
    taken = []
    for _ in range(5):
        begun = time.perf_counter()
        result = call()
        taken.append(time.perf_counter() - begun)
    return result, min(taken)


def processor() -> Iterator[Finding]:
    """Cores, and what speeds variants up."""
    from shared.processor import cpu_features, cpu_model

    features = cpu_features()
    cores = len(os.sched_getaffinity(0))
    there = [name for name in FEATURES if name in features]
    said = f"{cpu_model()}, {cores} cores to use, {', '.join(there) or 'nothing special'}"
    if not {"avx2", "asimd"} & features:
        yield note(
            "processor", said, "without AVX2 or NEON everything is several times as slow: use another machine"
        )
    elif not {"avx512_bf16", "amx_bf16", "bf16"} & features:
        yield note(
            "processor",
            f"{said}: no bfloat16",
            "the variants bf16 and int8-bf16 do not run here, and bf16 does not speed training up: use fp32-openvino "
            "or int8, or a CPU with avx512_bf16 or AMX",
        )
    else:
        yield ok("processor", said)


def gpu(proc: Path = Path("/proc/driver/nvidia/version")) -> Iterator[Finding]:
    """Whether there is an NVIDIA GPU, and whether what is installed can use it."""
    program = shutil.which("nvidia-smi")
    if not proc.exists() and program is None:
        yield ok("GPU", "none; everything runs on the CPU")
        return
    names = _gpu_names(program)
    if not names:
        yield fail(
            "GPU",
            "the driver is there and answers nothing",
            "nvidia-smi says why; restart, or mend the driver",
        )
        return
    said = ", ".join(names)
    torch, runtime = _version("torch"), _version("onnxruntime-gpu")
    if torch and torch.endswith("+cpu"):
        yield note(
            "GPU",
            f"{said}; torch {torch} cannot use it",
            "install a CUDA build: make install TORCH_INDEX=URL (README)",
        )
    elif not runtime:
        yield note(
            "GPU", f"{said}; ONNX Runtime is the CPU's", f"to serve on it: pip install '{PACKAGE}[serve-gpu]'"
        )
    else:
        yield ok("GPU", said)


def _gpu_names(program: str | None) -> list[str]:
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def memory(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup/memory.max")
) -> Iterator[Finding]:
    """Memory that this process may have."""
    free = memory_free(meminfo, cgroup)
    said = f"{free:.1f} GB free"
    if free < SPEAKING_GB:
        yield fail(
            "memory",
            said,
            f"speaking wants {SPEAKING_GB:g} GB and training {TRAINING_GB:g}: end other programs, "
            "or raise the container's limit",
        )
    elif free < TRAINING_GB and can_train():
        yield note("memory", said, "enough to speak; to train, see configs/low-memory.json")
    else:
        yield ok("memory", said)


def memory_free(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup/memory.max")
) -> float:
    """Gigabytes that are free: of the machine, or below the container's limit."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
        free = int(found[1]) * 1024 if found else float("inf")
    except OSError:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    try:
        limit, used = cgroup.read_text().strip(), cgroup.with_name("memory.current").read_text().strip()
    except OSError:
        limit = used = ""
    if limit.isdigit() and used.isdigit():
        free = min(free, int(limit) - int(used))
    return free / 1e9


def disk(places: Mapping[str, Path]) -> Iterator[Finding]:
    """Room for what is written, by what it is."""
    for what, place in places.items():
        there = next(path for path in (place, *place.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free / 1e9
        said = f"{free:.1f} GB free for {what} in {place}"
        remedy = "give another place, or its permissions"
        try:
            check_writable(place, remedy)
        except UserError as error:
            yield note(f"disk: {what}", str(error).removesuffix(f": {remedy}"), remedy)
            continue
        if free < DISK_GB:
            yield note(
                f"disk: {what}", said, "a checkpoint takes 1.3 GB: free some space, or give another place"
            )
        else:
            yield ok(f"disk: {what}", said)


def phonemizer() -> Iterator[Finding]:
    """Whether espeak-ng speaks."""
    from shared.errors import VitsError
    from shared.text.espeak import phonemes

    try:
        said = phonemes("hola", "es-419")
    except VitsError as error:
        yield note(
            "phonemizer",
            str(error).partition(". ")[0],
            f"for Piper's voices: pip install '{PACKAGE}[phonemes]'",
        )
        return
    if "ˈ" in said:
        yield ok("phonemizer", f"espeak-ng says 'hola' as {said}")
    else:
        yield fail(
            "phonemizer",
            f"espeak-ng says 'hola' as {said!r}",
            f"pip install --force-reinstall '{PACKAGE}[phonemes]'",
        )


def codecs() -> Iterator[Finding]:
    """Audio formats that can be written."""
    from shared.audio_encoding import FORMATS, available_formats

    missing = set(FORMATS) - set(available_formats())
    if missing:
        yield note(
            "audio",
            f"{', '.join(sorted(missing))} cannot be written",
            "install PyAV with its own FFmpeg: pip install --force-reinstall av",
        )
    else:
        yield ok("audio", f"{', '.join(available_formats())} can be written")
