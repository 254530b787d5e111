"""What the processor is and can do."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path


@cache
def cpu_features(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What the CPU can do, as Linux names it; nothing where the file is not there."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    # x86 says "flags", ARM "Features".
    return frozenset(
        word
        for line in lines
        if line.partition(":")[0].strip() in ("flags", "Features")
        for word in line.partition(":")[2].split()
    )


def cpu_model(path: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model, as Linux names it; the kind of machine where it does not."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
