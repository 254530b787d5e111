"""Sentences, the pauses between them, and the cutting of what is too long for one segment."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from shared.text.alignment import Readings, Span, read_ahead, speak
from shared.text.espeak import Clause
from shared.text.front_end import FrontEnd
from shared.text.tokens import Tokens, once_each
from shared.text.units import CLAUSE_MARKS, FULL_STOPS, STOPS, Unit

#: Seconds of silence after a segment, by what ended it. The last segment of a text has none.
SENTENCE_PAUSE = 0.3
PARAGRAPH_PAUSE = 0.7
CLAUSE_PAUSE = 0.15
LONG_CLAUSE_PAUSE = 0.2

#: A clause is a segment of its own only in a voice that knows no comma, and if so many characters are on
#: either side of the mark: a voice speaks very short texts badly.
LEAST_CLAUSE = 24

#: How much worse it is to cut a long sentence between two words than at a mark, in shares of a segment.
CUT_BETWEEN_WORDS = 0.5

#: A part of a long sentence may fill so much of a segment: read apart, it may have a few tokens more.
FILL = 0.9

#: The first part of a text that begins with a sentence too long for one segment has no more ids than about
#: this, for somebody waits for it in silence. A sentence that fits a segment is never cut for it.
FIRST_TOKENS = 64

#: A segment that is spoken at less than this rate has fewer ids, since each of them lasts the longer.
SLOW = 2 / 3

#: A sentence of so many characters for each token of a segment is cut before it is read.
LONG = 4


@dataclass(frozen=True)
class Piece:
    """A segment in the making.

    Attributes:
        text: As it is spoken.
        tokens: Its tokens.
        spans: The words and their tokens, if they were asked for.
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
    """Units that are spoken without a stop, and the silence after them.

    Attributes:
        units: Words and marks.
        pause_seconds: Silence after them.
        asked: Whether the user asked for that silence, so that the end of the text does not cut it short.
    """

    units: tuple[Unit, ...]
    pause_seconds: float
    asked: bool = False


def arrange(
    units: Sequence[Unit],
    front_end: FrontEnd,
    *,
    max_tokens: int,
    speaking_rate: float = 1.0,
    timed: bool = True,
) -> tuple[list[Piece], tuple[str, ...]]:
    """Group units into segments.

    Args:
        units: What to speak, in order.
        front_end: The voice's.
        max_tokens: No segment has more ids, and none that is spoken slowly lasts longer than so many would at `SLOW`.
        speaking_rate: The request's.
        timed: Whether it is asked where each word is.

    Returns:
        The segments, and what of the units could not be spoken.

    Raises:
        MissingExtraError: The voice needs phonemes, and the extra ``phonemes`` is not installed.
        ConfigError: espeak-ng has no such voice.
    """
    stretches = [
        part
        for stretch in sentences(units)
        for part in ([stretch] if front_end.hears_commas else _clauses(stretch))
    ]
    read = dict(_read_ahead(stretches, front_end, max_tokens))
    pieces: list[Piece] = []
    unknown: list[str] = []
    asked = False
    for stretch in stretches:
        rate = speaking_rate * (stretch.units[0].speaking_rate if stretch.units else 1.0)
        most = int(max_tokens * min(1.0, rate / SLOW))
        cutter = _Cutter(front_end, most, timed, read)
        for piece in cutter.fit(stretch, most if pieces else min(FIRST_TOKENS, most)):
            unknown += piece.tokens.unknown
            if piece.tokens.ids or (piece.pause_seconds and stretch.asked):
                pieces.append(piece)
                asked = stretch.asked
            elif piece.pause_seconds and pieces and not asked:
                last = pieces[-1]
                pieces[-1] = replace(last, pause_seconds=max(last.pause_seconds, piece.pause_seconds))
    if pieces and not asked:
        pieces[-1] = replace(pieces[-1], pause_seconds=0.0)
    return pieces, once_each(unknown)


# ----------------------------------------------------------------------------------------- sentences


class _Gathered:
    """Units that are being gathered into a stretch, and what their end says of the next one.

    Kept as they come, since a text may be thousands of marks.

    Attributes:
        units: So far.
        stop: The mark that ended a sentence, if only closing marks follow it; an ellipsis for several points.
        has_word: Whether there is a word among them.
    """

    def __init__(self) -> None:
        self.units: list[Unit] = []
        self.stop = ""
        self.has_word = False

    def add(self, unit: Unit) -> None:
        """Take in the next unit."""
        if unit.kind != "mark" or unit.spoken in CLAUSE_MARKS:
            self.stop = ""
        elif unit.spoken == ".":
            again = bool(self.units) and self.units[-1].kind == "mark" and self.units[-1].spoken == "."
            self.stop = "…" if again else "."
        elif unit.spoken in STOPS:
            self.stop = unit.spoken
        self.has_word = self.has_word or unit.kind == "word"
        self.units.append(unit)

    def pause_before(self, unit: Unit) -> float | None:
        """The silence between them and the next unit; nothing if they belong together."""
        if not self.units:
            return None
        starts = unit.spaced or self.stop in FULL_STOPS or unit.spoken in ("¿", "¡")
        if self.stop and starts and self.has_word:
            goes_on = self.stop != "." and self.stop not in FULL_STOPS and unit.spoken[:1].islower()
            if not goes_on:
                return SENTENCE_PAUSE
        return None if unit.speaking_rate == self.units[-1].speaking_rate else 0.0


def sentences(units: Sequence[Unit]) -> Iterator[Stretch]:
    """Cut at the ends of sentences, at empty lines, at breaks, and where the speaking rate changes."""
    current = _Gathered()
    for unit in units:
        if unit.kind == "break":
            yield Stretch(tuple(current.units), unit.seconds, asked=True)
            current = _Gathered()
        elif unit.kind == "paragraph":
            if current.units:
                yield Stretch(tuple(current.units), PARAGRAPH_PAUSE)
            current = _Gathered()
        else:
            pause = current.pause_before(unit)
            if pause is not None:
                yield Stretch(tuple(current.units), pause)
                current = _Gathered()
            current.add(unit)
    if current.units:
        yield Stretch(tuple(current.units), 0.0)


def _clauses(stretch: Stretch) -> Iterator[Stretch]:
    """Cut a sentence at its clauses, for a voice that would run over their marks."""
    lengths = [len(unit.spoken) for unit in stretch.units]
    remaining = sum(lengths)
    begun, length = 0, 0
    for index, unit in enumerate(stretch.units):
        length += lengths[index]
        remaining -= lengths[index]
        following = stretch.units[index + 1] if index + 1 < len(stretch.units) else None
        at_mark = (
            unit.kind == "mark" and unit.spoken in CLAUSE_MARKS and following is not None and following.spaced
        )
        if at_mark and length >= LEAST_CLAUSE and remaining >= LEAST_CLAUSE:
            pause = CLAUSE_PAUSE if unit.spoken in ",،、，" else LONG_CLAUSE_PAUSE
            yield Stretch(stretch.units[begun : index + 1], pause)
            begun, length = index + 1, 0
    yield Stretch(stretch.units[begun:], stretch.pause_seconds, stretch.asked)


# ------------------------------------------------------------------------------------------- cutting


@dataclass(frozen=True)
class _Cutter:
    """Makes segments of stretches, several where one would be too long.

    Attributes:
        front_end: The voice's.
        max_tokens: No segment has more ids.
        timed: Whether it is asked where each word is.
        read: What was read ahead.
    """

    front_end: FrontEnd
    max_tokens: int
    timed: bool
    read: dict[tuple[str, str], Sequence[Clause]]

    def fit(self, stretch: Stretch, first_tokens: int) -> Iterator[Piece]:
        """A stretch as one piece, or as several when it is too long for one.

        They are of about equal length, but for the first where ``first_tokens`` is less than ``max_tokens``.
        """
        units = stretch.units
        if not units:
            yield Piece("", Tokens((), (), ()), (), stretch.pause_seconds, 1.0)
            return
        if _is_long(stretch, self.max_tokens):
            yield from self._fit_each(self._shorter(stretch), first_tokens)
            return
        spoken = speak(self.front_end, units, timed=False, read=self.read)
        count = len(spoken.tokens.ids)
        if count <= self.max_tokens:
            spans = speak(self.front_end, units, read=self.read).spans if self.timed else ()
            yield Piece(spoken.text, spoken.tokens, spans, stretch.pause_seconds, units[0].speaking_rate)
            return
        if len(units) == 1:
            parts = _cut_unit(units[0], -(-count // self.max_tokens))
            if not parts:
                yield Piece("", Tokens((), (), (units[0].spoken,)), (), stretch.pause_seconds, 1.0)
                return
            *firsts, last = ([part] for part in parts)
            pauses = [0.0] * len(firsts)
        else:
            cuts = _cuts(units, count, self.max_tokens, first_tokens)
            *firsts, last = (list(units[a:b]) for a, b in zip([0, *cuts], [*cuts, len(units)], strict=True))
            pauses = [CLAUSE_PAUSE if units[cut - 1].spoken in CLAUSE_MARKS else 0.0 for cut in cuts]
        shorter = [Stretch(tuple(part), pause) for part, pause in zip(firsts, pauses, strict=True)]
        shorter.append(Stretch(tuple(last), stretch.pause_seconds, stretch.asked))
        yield from self._fit_each(shorter, first_tokens)

    def _fit_each(self, stretches: Sequence[Stretch], first_tokens: int) -> Iterator[Piece]:
        self.read.update(_read_ahead(stretches, self.front_end, self.max_tokens, self.read))
        for stretch in stretches:
            yield from self.fit(stretch, first_tokens)
            first_tokens = self.max_tokens

    def _shorter(self, stretch: Stretch) -> list[Stretch]:
        """A stretch that is surely far too long, cut by its characters: it would be slow to read as one."""
        most = LONG * self.max_tokens // 2
        units = [
            part
            for unit in stretch.units
            for part in (_cut_unit(unit, -(-len(unit.spoken) // most)) if len(unit.spoken) > most else [unit])
        ]
        shorter = []
        begun, length = 0, 0
        for index, unit in enumerate(units):
            if index > begun and length + len(unit.spoken) > most:
                shorter.append(Stretch(tuple(units[begun:index]), 0.0))
                begun, length = index, 0
            length += len(unit.spoken) + 1
        return [*shorter, Stretch(tuple(units[begun:]), stretch.pause_seconds, stretch.asked)]


def _is_long(stretch: Stretch, max_tokens: int) -> bool:
    return sum(len(unit.spoken) + 1 for unit in stretch.units) > LONG * max_tokens


def _read_ahead(
    stretches: Sequence[Stretch], front_end: FrontEnd, max_tokens: int, known: Container[tuple[str, str]] = ()
) -> Readings:
    """What is read of each, but for those that are cut before they are read, and for what is known."""
    texts = [stretch.units for stretch in stretches if stretch.units and not _is_long(stretch, max_tokens)]
    return read_ahead(front_end, texts, known)


def _cuts(units: Sequence[Unit], total: int, max_tokens: int, first_tokens: int) -> list[int]:
    """Where to cut units that are too long for a segment: at marks rather than between words.

    The parts have near equal lengths, but for a shorter first one where ``first_tokens`` says so. Where the tokens of
    a unit begin is taken from its share of the characters: to match phonemes and words would be slow, and what comes
    out too long is cut again.

    Args:
        units: What is cut.
        total: Their ids.
        max_tokens: Of a part.
        first_tokens: Of the first.
    """
    characters = [0, *accumulate(len(unit.spoken) + unit.spaced for unit in units)]
    starts = [total * before / max(1, characters[-1]) for before in characters]
    candidates = [index for index in range(1, len(units)) if _may_cut(units, index)] or [
        *range(1, len(units))
    ]
    most = max_tokens * FILL
    cuts: list[int] = []
    begun, at = 0.0, 0
    while total - begun > most and at < len(candidates):
        ideal = (total - begun) / -(-(total - begun) // most)
        if not cuts:
            ideal = min(ideal, first_tokens)
        best, least = at, float("inf")
        for position in range(at, len(candidates)):
            length = starts[candidates[position]] - begun
            if length > most and least < float("inf"):
                break
            after_mark = units[candidates[position] - 1].kind == "mark"
            # A long part is let pass rather than a short one: voices speak very short texts badly.
            off = (ideal - length) / ideal if length < ideal else (length - ideal) / most
            cost = off + (0.0 if after_mark else CUT_BETWEEN_WORDS)
            if length > 0 and cost < least:
                best, least = position, cost
        cuts.append(candidates[best])
        begun, at = starts[candidates[best]], best + 1
    return cuts or [candidates[len(candidates) // 2]]


def _may_cut(units: Sequence[Unit], index: int) -> bool:
    """Not inside what is written together, and not before a mark that closes."""
    return units[index].spaced or (units[index - 1].spoken in CLAUSE_MARKS and units[index].kind == "word")


def _cut_unit(unit: Unit, parts: int) -> list[Unit]:
    """A unit too long for a segment, in pieces; none if it cannot be cut."""
    if unit.phonemes is not None:
        halves = _cut_text(unit.phonemes, parts)
        spoken = _cut_text(unit.spoken, parts) or [unit.spoken]
        return [
            replace(unit, phonemes=half, spoken=spoken[min(index, len(spoken) - 1)])
            for index, half in enumerate(halves)
        ]
    as_written = unit.as_written and unit.end - unit.start == len(unit.spoken)
    cut = []
    position = unit.start
    for text in _cut_text(unit.spoken, parts):
        if as_written:
            cut.append(replace(unit, spoken=text.strip(), start=position, end=position + len(text)))
        else:
            cut.append(replace(unit, spoken=text.strip()))
        position += len(text)
    return cut


def _cut_text(text: str, parts: int) -> list[str]:
    """A text in at least two pieces, at spaces if they come often enough; none if it is one character."""
    if len(text) < 2:
        return []
    size = max(1, -(-len(text) // max(2, parts)))
    pieces = []
    while len(text) > size:
        space = text.rfind(" ", size // 2, size)
        cut = space + 1 if space > 0 else size
        pieces.append(text[:cut])
        text = text[cut:]
    return [*pieces, text]
