"""What is an address, such as ``s3://bucket/prefix``, and what a path of this machine."""

from __future__ import annotations

import re

#: An address of a store whose ``://`` is incomplete: its scheme, and the rest.
_MISTYPED = re.compile(r"(s3|gs|az|file|memory)(?::(?!//)|//)(.*)", re.IGNORECASE)


def mistyped(text: str) -> tuple[str, str] | None:
    """Scheme and rest of what was meant as a store's address: ``s3:/bucket``, ``s3:bucket`` or ``s3//bucket``."""
    found = _MISTYPED.fullmatch(text)
    return found and (found[1].lower(), found[2])


def is_address(text: str) -> bool:
    """Whether a text is an address, or was meant as one. As a path it would be a folder ``s3:`` here."""
    return "://" in text or mistyped(text) is not None


def why_no_path(text: str) -> str | None:
    """Why a text is no path of this machine, with what to do; None where it is one."""
    if not is_address(text):
        return None
    meant = f" (./{text} is one)" if mistyped(text) else ""
    return f"{text!r} is an address; give a path on this machine{meant}"
