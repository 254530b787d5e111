"""The units that a text is read as: words, punctuation marks and pauses, each knowing where it came from."""

from __future__ import annotations

import re
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
        + '¡¿"«»‹›“”„‟‘‚()[]{}<>/\\|*_~`^=+#•·―‒'
        + "「」『』【】〈〉《》〔〕（）［］｛｝・〜"
    )
)

_MARK = re.escape(MARKS)
#: A word may hold apostrophes and hyphens, and may not begin or end with a hyphen.
_SCAN = re.compile(rf"[^\s{_MARK}'’\-]+(?:['’\-‐‑]+[^\s{_MARK}'’\-]+)*['’]?|[{_MARK}'’\-]|\n[^\S\n]*\n\s*")


@dataclass(frozen=True)
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
        language: Of a stretch in another language than the rest.
        seconds: How long a break is.
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


def read_plain(text: str) -> list[Unit]:
    """Words and marks of a text as they stand."""
    units = []
    position = 0
    for match in _SCAN.finditer(text):
        found = match.group()
        if found[0] == "\n":
            units.append(Unit("paragraph", "", *match.span()))
        else:
            is_mark = len(found) == 1 and (found in MARKS or found in "'’-")
            units.append(
                Unit("mark" if is_mark else "word", found, *match.span(), spaced=match.start() > position)
            )
        position = match.end()
    return units
