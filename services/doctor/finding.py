"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: What it was, in a word or two.
        status: ``ok``; ``note`` for what some commands lack, or will miss; ``fail`` for what has to be mended.
        said: What was found.
        remedy: What to do; empty where all is well, or `said` says it.
    """

    check: str
    status: Status
    said: str
    remedy: str = ""


def ok(check: str, said: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", said)


def note(check: str, said: str, remedy: str) -> Finding:
    """Something can be done without, or will be missed."""
    return Finding(check, "note", said, remedy)


def fail(check: str, said: str, remedy: str) -> Finding:
    """Something has to be mended."""
    return Finding(check, "fail", said, remedy)
