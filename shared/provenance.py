"""Where a model or a dataset comes from, and what may be done with it.

It travels as ``provenance.json`` beside the files, from data and base model to the trained model, and
from there into every manifest.
"""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.errors import ModelError

PROVENANCE_FILE = "provenance.json"
UNKNOWN_LICENCE = "unknown"
_NON_COMMERCIAL = re.compile(r"\bNC\b|non-?\s?commercial", re.IGNORECASE)


def _outside_parentheses(expression: str) -> str:
    """A licence expression with everything in parentheses blanked out, of the same length."""
    depth, outside = 0, []
    for character in expression:
        depth += character == "("
        outside.append(" " if depth else character)
        depth -= character == ")" and depth > 0
    return "".join(outside)


def _has_choice(expression: str) -> bool:
    """Whether a licence expression is a choice, ``A OR B``, at its top."""
    return " OR " in _outside_parentheses(expression)


def _conjuncts(expression: str) -> list[str]:
    """The licences that all apply: ``A AND (B OR C)`` → ``A``, ``B OR C``; a choice is one of them."""
    outside = _outside_parentheses(expression)
    if " OR " in outside:
        return [expression]
    starts = [0, *(match.end() for match in re.finditer(" AND ", outside))]
    ends = [*(match.start() for match in re.finditer(" AND ", outside)), len(expression)]
    parts = (expression[start:end] for start, end in zip(starts, ends, strict=True))
    return [
        part[1:-1] if part.startswith("(") and not _outside_parentheses(part).strip() else part
        for part in parts
    ]


def forbids_commercial_use(licence: str) -> bool:
    """Whether a licence expression leaves no way to use what is under it commercially (``CC-BY-NC-4.0``, as MMS is).

    Of a choice, ``A OR B``, every side has to forbid it.
    """
    for conjunct in _conjuncts(licence):
        sides = conjunct.strip("()").split(" OR ")
        if all(_NON_COMMERCIAL.search(side) for side in sides):
            return True
    return False


def commercial_warning(name: str, licence: str) -> str | None:
    """What to say of something whose licence forbids commercial use; None where it does not."""
    if not forbids_commercial_use(licence):
        return None
    return f"{name} is under {licence}: neither it nor what is made from it may be used commercially"


class Provenance(BaseModel):
    """Licence, sources and the speaker's consent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    licence: str = UNKNOWN_LICENCE
    """An SPDX expression where one fits, or a sentence; several sources are joined by ``AND``."""
    sources: tuple[str, ...] = ()
    """What it was made from, with the attribution that a licence asks for."""
    consent: str | None = None
    """How the speaker agreed to their voice being used, where that is known."""

    def joined(self, other: Provenance) -> Provenance:
        """What is made from both: all licences, all sources, and every consent."""
        licences = list(dict.fromkeys([*_conjuncts(self.licence), *_conjuncts(other.licence)]))
        licences.sort(key=lambda licence: licence == UNKNOWN_LICENCE)  # unknown comes last
        if len(licences) > 1:  # AND binds tighter than OR
            licences = [f"({licence})" if _has_choice(licence) else licence for licence in licences]
        given = "; ".join(filter(None, [self.consent, other.consent]))
        return Provenance(
            licence=" AND ".join(licences),
            sources=tuple(dict.fromkeys([*self.sources, *other.sources])),
            consent="; ".join(dict.fromkeys(given.split("; "))) or None,
        )

    def write(self, folder: Path) -> None:
        """Write ``provenance.json`` into a folder."""
        (folder / PROVENANCE_FILE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Provenance:
        """Read a folder's ``provenance.json``; unknown where it has none.

        Raises:
            ModelError: The file is there and is not of this form.
        """
        path = folder / PROVENANCE_FILE
        if not path.is_file():
            return cls()
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, UnicodeDecodeError) as error:
            raise ModelError(f"{path} is not a provenance file: {error}") from error
