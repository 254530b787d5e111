"""What ``constraints.txt`` pins."""

from __future__ import annotations

from pathlib import Path

from packaging.utils import canonicalize_name

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def pins() -> dict[str, str]:
    """The version of each package, by its canonical name."""
    lines = CONSTRAINTS.read_text().splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}
