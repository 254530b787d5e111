"""From a user's text to what a voice speaks: segments of tokens, pauses, and where each word came from.

::

    text ─▶ SSML or plain ─▶ clean ─▶ lexicon, numbers, abbreviations ─▶ sentences ─▶ tokens
            (ssml.py)      (cleaning.py)    (normalization/)          (segmentation.py)  (alignment.py)

The same text always gives the same script. Training does not come through here: it tokenizes transcripts as
they are, with `FrontEnd.tokenize`.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter
from typing import Literal

from shared.errors import RequestError, TextError
from shared.text.cleaning import clean, fit_vocabulary, report
from shared.text.front_end import FrontEnd
from shared.text.lexicon import Lexicon
from shared.text.normalization import normalize
from shared.text.normalization import readings as normalized
from shared.text.segmentation import arrange
from shared.text.ssml import FASTEST, SLOWEST, Marked, espeak_voice, parse_ssml
from shared.text.tokens import Tokens, once_each, require_speakable
from shared.text.units import MARKS, Reading, Unit, read_units

#: A segment has at most so many ids: nobody waits behind a longer one.
MAX_TOKENS = 200

#: Not reported when a vocabulary lacks them: they are heard as pauses, or not at all.
SILENT = frozenset([*MARKS, " ", "\n", "\t", "\u200c", "\u200d"])

#: A longer text is refused here whatever a door allows: it would take hours to speak.
MAX_CHARACTERS = 500_000


@dataclass(frozen=True)
class Word:
    """One word of the user's text, and the tokens that speak it.

    A number is one word however many are spoken for it. A word that no segment could hold whole, such as a
    very long number, appears once in each segment that it was cut into.

    Attributes:
        text: As the user wrote it.
        start: Its first character in the source text.
        end: The character after its last.
        first_token: Its first id in the segment.
        last_token: The id after its last.
    """

    text: str
    start: int
    end: int
    first_token: int
    last_token: int


@dataclass(frozen=True)
class Segment:
    """What the model is given at once: a sentence, or a part of a long one.

    Attributes:
        text: As it is spoken, numbers and abbreviations written out.
        tokens: For the model; no ids for a pause alone.
        pause_seconds: Silence after it.
        speaking_rate: Multiplies the request's.
        words: In order; none where their places were not asked for.
    """

    text: str
    tokens: Tokens
    pause_seconds: float
    speaking_rate: float = 1.0
    words: tuple[Word, ...] = ()

    def pause_samples(self, sampling_rate: int) -> int:
        """The silence after it in samples; timestamps count with the same."""
        return round(self.pause_seconds * sampling_rate)


@dataclass(frozen=True)
class Script:
    """A whole text, ready to be spoken.

    Attributes:
        segments: In the order in which they are spoken.
        unknown: What the voice cannot speak, each once: characters or phonemes outside its vocabulary that
            have no safe stand-in. Punctuation is not among them: it is heard as a pause.
    """

    segments: tuple[Segment, ...]
    unknown: tuple[str, ...]

    @cached_property
    def token_count(self) -> int:
        """Ids of all segments."""
        return sum(len(segment.tokens.ids) for segment in self.segments)


def plan_script(
    text: str,
    front_end: FrontEnd,
    *,
    language: str,
    ssml: bool = False,
    lexicon: Lexicon | None = None,
    max_tokens: int = MAX_TOKENS,
    speaking_rate: float = 1.0,
    timed: bool = True,
) -> Script:
    """Plan how a text is spoken.

    Args:
        text: What the user sent.
        front_end: The voice's.
        language: The voice's, or what the request asks for: ``es``, ``es-MX``, ``spa``, ``eng``…
        ssml: Whether the text is SSML; see ``docs/text.md`` for the elements.
        lexicon: The voice's own words.
        max_tokens: No segment has more ids, and one that is spoken slowly has fewer.
        speaking_rate: The request's; SSML multiplies it.
        timed: Whether it is asked where each word is. In a voice of phonemes that takes longer than all the rest.

    Raises:
        TextError: Nothing of the text can be spoken, or it is too long.
        RequestError: The SSML is not well-formed or asks for what this voice cannot do, and says where; or rates that
            are too slow or too fast together.
        MissingExtraError: The voice needs phonemes, and the extra ``phonemes`` is not installed.
        ConfigError: espeak-ng lacks the voice's language.
    """
    if len(text) > MAX_CHARACTERS:
        raise TextError(
            f"The text has {len(text):,} characters, and at most {MAX_CHARACTERS:,} are spoken at once. Split it."
        )
    marked = parse_ssml(text, front_end, language=language) if ssml else _plain(text)
    units = [
        _placed(unit, fit_vocabulary(front_end, unit.spoken), marked.origins, text)
        for unit in _units(marked, front_end, language, lexicon or Lexicon())
    ]
    for unit in units:
        _check_rate(speaking_rate, unit.speaking_rate)
    pieces, unspoken = arrange(
        units,
        front_end,
        max_tokens=max_tokens,
        speaking_rate=max(SLOWEST, speaking_rate),
        timed=timed,
    )
    segments = tuple(
        Segment(
            text=piece.text,
            tokens=piece.tokens,
            pause_seconds=piece.pause_seconds,
            speaking_rate=piece.speaking_rate,
            words=tuple(
                Word(text[span.start : span.end], span.start, span.end, span.first_token, span.last_token)
                for span in piece.spans
            ),
        )
        for piece in pieces
    )
    unknown = once_each(map(report, [*marked.dropped, *(s for s in unspoken if s not in SILENT)]))
    require_speakable(text, (s for segment in segments for s in segment.tokens.symbols), unknown)
    return Script(segments, unknown)


def _check_rate(speaking_rate: float, prosody: float) -> None:
    rate = speaking_rate * prosody
    if prosody != 1.0 and not SLOWEST <= round(rate, 6) <= FASTEST:
        raise RequestError(
            f"The speed of {speaking_rate:g} times the <prosody> rate of {prosody:g} is {rate:g}; "
            f"{SLOWEST:g} to {FASTEST:g} is possible in all.",
            param="speaking_rate",
        )


def _placed(unit: Unit, spoken: str, origins: Sequence[int], source: str) -> Unit:
    """A unit as the voice can speak it, and with its place in the source text."""
    if spoken == unit.spoken and isinstance(origins, range):
        return unit
    limit = origins[unit.end]
    if unit.end == unit.start:
        return replace(unit, spoken=spoken, start=limit, end=limit)
    end = origins[unit.end - 1] + 1
    while end < limit and unicodedata.combining(source[end]):
        end += 1
    if source[end - 1] == "&" and ";" in source[end:limit]:
        end = source.index(";", end) + 1
    return replace(unit, spoken=spoken, start=origins[unit.start], end=end)


def _plain(text: str) -> Marked:
    """A text without any markup."""
    cleaned = clean(text)
    origins = range(len(text) + 1) if cleaned.origins is None else cleaned.origins
    return Marked(cleaned.text, origins, list(cleaned.dropped))


def _units(marked: Marked, front_end: FrontEnd, language: str, lexicon: Lexicon) -> list[Unit]:
    """Words, marks and pauses of a text, readings applied."""
    readings = _readings(marked, front_end, language, lexicon)
    units = read_units(marked.text, readings)
    if len(marked.rates) > 1 or len(marked.languages) > 1:
        units = [_spoken_as(unit, marked) for unit in units]
    for pause in reversed(marked.pauses):
        at = bisect_left(units, pause.position, key=lambda unit: unit.start)
        kind: Literal["break", "paragraph"] = "paragraph" if pause.seconds is None else "break"
        units.insert(at, Unit(kind, "", pause.position, pause.position, seconds=pause.seconds or 0.0))
    return units


def _spoken_as(unit: Unit, marked: Marked) -> Unit:
    """A unit with the rate and language that hold where it is."""
    rate = marked.rates[bisect_right(marked.rates, unit.start, key=itemgetter(0)) - 1][1]
    code = marked.languages[bisect_right(marked.languages, unit.start, key=itemgetter(0)) - 1][1]
    return replace(unit, speaking_rate=rate, language=code and espeak_voice(code))


def _readings(marked: Marked, front_end: FrontEnd, language: str, lexicon: Lexicon) -> list[Reading]:
    """What is not spoken as it is written: as the markup says, else the lexicon, else the language's rules."""
    text = marked.text
    taken = bytearray(len(text))
    readings = list(marked.readings)
    for reading in readings:
        taken[reading.start : reading.end] = b"\x01" * (reading.end - reading.start)
    for start, end, entry in lexicon.find(text):
        if any(taken[start:end]) or (entry.text is None and not front_end.speaks_phonemes):
            continue
        spoken = text[start:end] if entry.text is None else normalize(entry.text, language)
        readings.append(Reading(start, end, spoken, entry.phonemes))
        taken[start:end] = b"\x01" * (end - start)
    starts = [start for start, _ in marked.languages]
    for (start, code), end in zip(marked.languages, [*starts[1:], len(text)], strict=True):
        if start < end:
            found = normalized(text[start:end], code or language, taken[start:end])
            readings += [replace(r, start=r.start + start, end=r.end + start) for r in found]
    return sorted(readings, key=lambda reading: reading.start)
