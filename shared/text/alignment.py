"""Which tokens speak which word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.errors import TextError
from shared.text.front_end import FrontEnd
from shared.text.tokens import Tokens, once_each
from shared.text.units import Unit

NO_TOKENS = Tokens((), (), ())


@dataclass(frozen=True)
class Span:
    """A word of the source text and its tokens."""

    start: int
    end: int
    first_token: int
    last_token: int


def tokenize(front_end: FrontEnd, units: Sequence[Unit]) -> tuple[str, Tokens, tuple[Span, ...]]:
    """The spoken text of some units, its tokens, and the tokens of each word (in proportion to its letters)."""
    pieces: list[tuple[int, int]] = []
    text = ""
    for unit in units:
        text += " " if unit.spaced and text else ""
        pieces.append((len(text), len(text) + len(unit.spoken)))
        text += unit.spoken
    try:
        tokens = front_end.tokenize(text)
    except TextError:
        return text, Tokens((), (), once_each(text)), ()
    share = len(tokens.ids) / max(1, len(text))
    return (
        text,
        tokens,
        tuple(
            Span(unit.start, unit.end, int(first * share), int(last * share))
            for unit, (first, last) in zip(units, pieces, strict=True)
            if unit.kind == "word"
        ),
    )
