"""A text that arrives in pieces, cut into sentences as their ends arrive: what an LLM's tokens are spoken by."""

from __future__ import annotations

import re

#: A sentence that does not end is cut at so many characters, so that whoever listens does not wait for ever.
MAX_SENTENCE_CHARACTERS = 400

#: The end of a sentence: stop marks, quotes and brackets that close behind them, and the space that shows that no
#: more of them come and that "3." was not the beginning of "3.5"; or a full-width stop; or the end of a line.
#: Each run of marks is looked at once, for a text may be nothing else.
_END = re.compile(
    r"""(?<![.!?…])[.!?…]++["'”’»)\]]*+(?=\s)|(?<![。！？])[。！？]++["'”’»」』）]*+(?=[^。！？"'”’»」』）])|(?=\n)"""
)

#: What a full stop is part of. A missing one makes a pause; one too many only makes a sentence wait.
_ABBREVIATIONS = re.compile(
    r"\b(?:\w|avda?|cap|cf|dra?|etc|excmo|fig|gral|ing|jr|lic|mrs?|ms|mtro|nro|núm|pág|prof|sr|sras?|sres|srta|sta|sto"
    r"|tel|uds?|vds?|vs)\.$",
    re.IGNORECASE,
)

#: Where a sentence is best cut that does not end.
_CLAUSE = re.compile(r"[,;:—–)]\s")


class Pieces:
    """Gathers pieces of a text and gives back its sentences.

    Put together, and but for the space between them, the sentences are the text.
    """

    def __init__(self) -> None:
        self._text = ""

    @property
    def waiting(self) -> int:
        """Characters of the sentence that has not ended."""
        return len(self._text)

    def add(self, piece: str) -> list[str]:
        """Take in a piece; give the sentences that are complete by it."""
        text, found, start = self._text + piece, [], 0
        for end in _END.finditer(text):
            if end.end() <= start or _ABBREVIATIONS.search(text, max(start, end.end() - 10), end.end()):
                continue
            found += _cut(text[start : end.end()].rstrip())
            start = end.end()
        *cut, self._text = _cut(text[start:])
        return [sentence for sentence in [*found, *cut] if sentence]

    def flush(self) -> list[str]:
        """Give what is left, ended or not."""
        left, self._text = self._text.strip(), ""
        return [left] if left else []


def _cut(text: str) -> list[str]:
    """A text in parts that are not too long, the last of which may go on."""
    parts, rest = [], text.lstrip()
    while len(rest) > MAX_SENTENCE_CHARACTERS:
        cut = _where_to_cut(rest)
        parts.append(rest[:cut].strip())
        rest = rest[cut:].lstrip()
    return [*parts, rest]


def _where_to_cut(text: str) -> int:
    """Behind the last mark within the limit; where there is none, at the last space; else at the limit."""
    within = text[:MAX_SENTENCE_CHARACTERS]
    marks = [mark.end() for mark in _CLAUSE.finditer(within)]
    if marks and marks[-1] > MAX_SENTENCE_CHARACTERS // 4:
        return marks[-1]
    space = max(within.rfind(" "), within.rfind("\t"))
    return space + 1 if space > 0 else MAX_SENTENCE_CHARACTERS
