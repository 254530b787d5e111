"""Sentences, the pauses between them, and the cutting of what is too long for one segment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from shared.text.alignment import Span, tokenize
from shared.text.front_end import FrontEnd
from shared.text.tokens import Tokens
from shared.text.units import CLAUSE_MARKS, FULL_STOPS, STOPS, Unit

#: Seconds of silence after a segment, by what ended it. The last segment of a text has none.
SENTENCE_PAUSE = 0.3
PARAGRAPH_PAUSE = 0.7
CLAUSE_PAUSE = 0.15


@dataclass(frozen=True)
class Piece:
    """A segment in the making.

    Attributes:
        text: As it is spoken.
        tokens: Its tokens.
        spans: The words and their tokens.
        pause_seconds: Silence after it.
        speaking_rate: Multiplies the request's.
    """

    text: str
    tokens: Tokens
    spans: tuple[Span, ...]
    pause_seconds: float
    speaking_rate: float


@dataclass(frozen=True)
class Stretch:
    """Units that are spoken without a stop, and the silence after them."""

    units: tuple[Unit, ...]
    pause_seconds: float


def arrange(units: Sequence[Unit], front_end: FrontEnd, *, max_tokens: int) -> list[Piece]:
    """Group units into segments of at most ``max_tokens`` ids."""
    pieces = [
        piece
        for stretch in sentences(units)
        for piece in _fit(stretch, front_end, max_tokens)
        if piece.tokens.ids or piece.pause_seconds
    ]
    return [*pieces[:-1], replace(pieces[-1], pause_seconds=0.0)] if pieces else []


def sentences(units: Sequence[Unit]) -> Iterator[Stretch]:
    """Cut at the ends of sentences and at empty lines."""
    current: list[Unit] = []
    for index, unit in enumerate(units):
        following = units[index + 1] if index + 1 < len(units) else None
        if unit.kind == "paragraph":
            yield Stretch(tuple(current), PARAGRAPH_PAUSE)
            current = []
            continue
        current.append(unit)
        ended = any(u.kind == "mark" and u.spoken in STOPS for u in current[-3:])
        if ended and (
            following is None
            or (following.spaced and following.kind == "word")
            or (following.spaced and following.spoken in '¿¡"“«(')
            or unit.spoken in FULL_STOPS
        ):
            yield Stretch(tuple(current), SENTENCE_PAUSE)
            current = []
    yield Stretch(tuple(current), 0.0)


def _fit(stretch: Stretch, front_end: FrontEnd, max_tokens: int) -> list[Piece]:
    """A stretch as one piece, or as several when it is too long for one."""
    units = stretch.units
    if not units:
        return []
    text, tokens, spans = tokenize(front_end, units)
    if len(tokens.ids) <= max_tokens:
        return [Piece(text, tokens, spans, stretch.pause_seconds, units[0].speaking_rate)]
    middle = len(units) // 2
    if not middle:
        halves = _halves(units[0])
        return [piece for half in halves for piece in _fit(Stretch((half,), 0.0), front_end, max_tokens)]
    at_clauses = [i for i in range(1, len(units)) if units[i - 1].spoken in CLAUSE_MARKS]
    near = [i for i in at_clauses if len(units) // 4 < i < 3 * len(units) // 4]
    cut = min(near, key=lambda i: abs(i - middle), default=middle)
    pause = CLAUSE_PAUSE if near else 0.0
    return [
        *_fit(Stretch(units[:cut], pause), front_end, max_tokens),
        *_fit(Stretch(units[cut:], stretch.pause_seconds), front_end, max_tokens),
    ]


def _halves(unit: Unit) -> tuple[Unit, Unit]:
    middle = len(unit.spoken) // 2
    return replace(unit, spoken=unit.spoken[:middle]), replace(unit, spoken=unit.spoken[middle:])
