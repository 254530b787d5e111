"""Small matters of English that several messages share."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """A number with its noun: ``1 row``, ``2 rows``. The noun forms its plural with an ``s``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
