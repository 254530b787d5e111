"""The units that a text is read as: words, punctuation marks and pauses, each knowing where it came from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

#: Marks that end a sentence, whatever follows.
FULL_STOPS = "。！？｡।॥؟۔։።፧"
#: Marks that end one when a space follows.
STOPS = ".?!…" + FULL_STOPS
#: Marks that end a clause.
CLAUSE_MARKS = ",;:–—،؛、，；："
#: Every mark: no part of a word, and silent but for the pause that it makes.
MARKS = "".join(
    dict.fromkeys(
        STOPS
        + CLAUSE_MARKS
        + "¡¿\"«»‹›“”„‟‘’‚'-‐‑−()[]{}<>/\\|*_~`´^=+#•·―‒‖†‡"
        + "「」『』【】〈〉《》〔〕（）［］｛｝・〜"
    )
)

_CLASS = re.escape(MARKS)
#: A word may hold apostrophes and hyphens inside; an empty line ends a paragraph.
_SCAN = re.compile(rf"[^\s{_CLASS}]+(?:['’\-‐‑·][^\s{_CLASS}]+)*|[{_CLASS}]|\n[^\S\n]*\n\s*")


@dataclass(frozen=True, slots=True)
class Unit:
    """A word, a mark, or a pause.

    Attributes:
        kind: Which of them; ``paragraph`` is an empty line.
        spoken: What is given to the front end: may be several words for one of the user's.
        start: Its first character in the source text.
        end: The character after its last.
        spaced: Whether white space comes before it.
        phonemes: IPA in place of what the front end would make of ``spoken``.
        speaking_rate: Multiplies the request's.
        language: espeak-ng's code, for a stretch in another language than the voice's.
        seconds: How long a break is.
        as_written: Whether ``spoken`` is the text itself, character for character.
    """

    kind: Literal["word", "mark", "paragraph", "break"]
    spoken: str
    start: int
    end: int
    spaced: bool = False
    phonemes: str | None = None
    speaking_rate: float = 1.0
    language: str | None = None
    seconds: float = 0.0
    as_written: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """A stretch of a text that is spoken otherwise than it is written.

    Attributes:
        start: Its first character.
        end: The character after its last.
        spoken: What is spoken for it.
        phonemes: IPA in place of that.
    """

    start: int
    end: int
    spoken: str
    phonemes: str | None = None


def read_units(text: str, readings: Sequence[Reading] = ()) -> list[Unit]:
    """Words and marks of a text.

    Args:
        text: A cleaned text.
        readings: Stretches with a reading of their own, in order and apart: each is one word.
    """
    units: list[Unit] = []
    position = 0
    for reading in readings:
        _scan(text, position, reading.start, units)
        if reading.spoken or reading.phonemes:
            spaced = _is_spaced(text, reading.start, units)
            units.append(Unit("word", reading.spoken, reading.start, reading.end, spaced, reading.phonemes))
        position = reading.end
    _scan(text, position, len(text), units)
    return units


def _is_spaced(text: str, start: int, units: list[Unit]) -> bool:
    """Whether a word must be set apart: after a space, and always after another word."""
    return bool(start and text[start - 1].isspace()) or bool(units and units[-1].kind == "word")


def _scan(text: str, start: int, end: int, units: list[Unit]) -> None:
    """Append the units of ``text[start:end]``, which has no readings."""
    for match in _SCAN.finditer(text, start, end):
        found = match.group()
        first, last = match.span()
        if found[0] == "\n":
            units.append(Unit("paragraph", "", first, last))
        elif found in MARKS:
            units.append(Unit("mark", found, first, last, bool(first and text[first - 1].isspace())))
        else:
            units.append(Unit("word", found, first, last, _is_spaced(text, first, units), as_written=True))
