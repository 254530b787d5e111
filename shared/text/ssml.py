"""A subset of SSML: pauses, rate, readings, languages. Everything else is refused by name and line.

The parser is expat with handlers that refuse document types, entities and processing instructions; depth and
number of elements are limited.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NoReturn
from xml.parsers import expat

from shared.errors import ConfigError, RequestError, nearest
from shared.text import espeak
from shared.text.cleaning import clean
from shared.text.front_end import FrontEnd
from shared.text.normalization import SAY_AS, normalize, primary, say_as
from shared.text.units import Reading

MAX_DEPTH = 16
MAX_ELEMENTS = 2_000
#: One break, and all of a text together, in seconds.
MAX_BREAK = 10.0
MAX_BREAKS = 60.0
SLOWEST, FASTEST = 0.25, 4.0

STRENGTHS = {"none": 0.0, "x-weak": 0.1, "weak": 0.25, "medium": 0.5, "strong": 0.75, "x-strong": 1.5}
RATES = {"x-slow": 0.5, "slow": 0.75, "medium": 1.0, "default": 1.0, "fast": 1.25, "x-fast": 1.6}

#: The elements and the attributes that each may have.
ELEMENTS = {
    "speak": ("version", "xmlns", "xml:lang", "xmlns:xsi", "xsi:schemaLocation"),
    "p": (),
    "s": (),
    "break": ("time", "strength"),
    "prosody": ("rate",),
    "say-as": ("interpret-as", "format", "detail"),
    "sub": ("alias",),
    "phoneme": ("alphabet", "ph"),
    "lang": ("xml:lang",),
}
#: Elements whose text is spoken as they say; no element may be inside.
READ = ("say-as", "sub", "phoneme")

#: espeak-ng's names of voices where they are not the code itself.
ESPEAK_VOICES = {
    "en": "en-us",
    "fr": "fr-fr",
    "zh": "cmn",
    "en-uk": "en-gb",
    "es-mx": "es-419",
    "es-us": "es-419",
}


@dataclass(frozen=True)
class Pause:
    """A silence that was asked for, or the end of a sentence or paragraph (no seconds)."""

    position: int
    seconds: float | None


@dataclass
class Marked:
    """A text and what SSML says of it. Positions are in ``text``.

    Attributes:
        text: What is between the tags, cleaned.
        origins: Where each character, and the end, is in the source.
        dropped: Control characters, escaped.
        readings: Stretches with a reading of their own, in order.
        pauses: In order.
        rates: From which position on which speaking rate holds.
        languages: The same for language codes; none for the voice's own.
    """

    text: str = ""
    origins: Sequence[int] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    pauses: list[Pause] = field(default_factory=list)
    rates: list[tuple[int, float]] = field(default_factory=lambda: [(0, 1.0)])
    languages: list[tuple[int, str | None]] = field(default_factory=lambda: [(0, None)])


def parse_ssml(text: str, front_end: FrontEnd, *, language: str) -> Marked:
    """Read SSML.

    Args:
        text: One ``<speak>`` element.
        front_end: The voice's, which decides what ``phoneme`` and ``lang`` can do.
        language: The language of the text.

    Raises:
        RequestError: It is not well-formed, too deep, or asks for what this voice cannot do; names the element
            and its line.
    """
    return _Reader(text, front_end, language).read()


@dataclass
class _Open:
    """An element that has not ended yet."""

    name: str
    attributes: Mapping[str, str]
    line: int
    start: int
    rate: float
    language: str | None
    part: int


class _Reader:
    def __init__(self, text: str, front_end: FrontEnd, language: str) -> None:
        #: expat takes no lone surrogates; this stand-in is reported like any character without a sound.
        self._source = re.sub(r"[\ud800-\udfff]", "\ufffd", text)
        self._front_end = front_end
        self._language = language
        self._marked = Marked()
        self._origins: list[int] = []
        self._parts: list[str] = []
        self._length = 0
        self._open: list[_Open] = []
        self._elements = 0
        self._silence = 0.0
        self._starts = (
            None
            if self._source.isascii()
            else [0, *accumulate(len(character.encode()) for character in self._source)]
        )
        self._parser = parser = expat.ParserCreate("UTF-8")
        parser.buffer_text = False
        parser.ordered_attributes = False
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.StartDoctypeDeclHandler = self._refuse("A document type (<!DOCTYPE …>)")
        parser.EntityDeclHandler = self._refuse("An entity declaration (<!ENTITY …>)")
        parser.ExternalEntityRefHandler = self._refuse("An external entity")
        parser.SkippedEntityHandler = self._refuse("An entity")
        parser.ProcessingInstructionHandler = self._refuse("A processing instruction (<?…?>)")

    def read(self) -> Marked:
        try:
            self._parser.Parse(self._source.encode("utf-8"), True)
        except expat.ExpatError as error:
            reason = expat.errors.messages.get(error.code, "not well-formed")
            raise RequestError(
                f"The SSML cannot be read: {reason} (line {error.lineno}, column {error.offset + 1}). "
                "It must be one <speak> element, with & written as &amp; and < as &lt;.",
                param="input",
            ) from error
        self._marked.text = "".join(self._parts)
        self._marked.origins = self._origins
        self._origins.append(len(self._source))
        return self._marked

    # -- handlers

    def _refuse(self, what: str) -> Callable[..., NoReturn]:
        def handler(*_: object) -> NoReturn:
            raise self._error(f"{what} is not allowed. Remove it.")

        return handler

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._elements += 1
        self._check(name, attributes)
        outer = self._open[-1] if self._open else None
        element = _Open(
            name,
            attributes,
            self._line,
            self._length,
            outer.rate if outer else 1.0,
            outer.language if outer else None,
            len(self._parts),
        )
        self._open.append(element)
        match name:
            case "p" | "s":
                self._boundary(Pause(self._length, None))
            case "break":
                self._break(attributes)
            case "prosody":
                element.rate *= self._rate(attributes["rate"])
                if not SLOWEST <= element.rate <= FASTEST:
                    raise self._error(
                        f"<prosody> asks for {element.rate:g} times the rate; {SLOWEST} to {FASTEST} is possible."
                    )
                self._marked.rates.append((self._length, element.rate))
            case "lang" | "speak" if "xml:lang" in attributes:
                element.language = self._other_language(name, attributes["xml:lang"])
                self._marked.languages.append((self._length, element.language))

    def _end(self, name: str) -> None:
        element = self._open.pop()
        outer = self._open[-1] if self._open else None
        match name:
            case "p" | "s":
                self._boundary(Pause(self._length, None))
            case "prosody":
                self._marked.rates.append((self._length, outer.rate if outer else 1.0))
            case "lang":
                self._marked.languages.append((self._length, outer.language if outer else None))
            case "say-as" | "sub" | "phoneme":
                self._reading(element)

    def _characters(self, data: str) -> None:
        start = self._position(self._parser.CurrentByteIndex)
        cleaned = clean(data)
        self._marked.dropped += cleaned.dropped
        one_to_one = self._source.startswith(data, start)
        for index in range(len(cleaned.text)):
            self._origins.append(start + cleaned.source(index) if one_to_one else start)
        self._append(cleaned.text)

    # -- parts

    def _append(self, text: str) -> None:
        self._parts.append(text)
        self._length += len(text)

    def _separate(self) -> None:
        """Keep what is before a tag apart from what is behind it."""
        self._origins.append(self._position(self._parser.CurrentByteIndex))
        self._append("\n")

    def _boundary(self, pause: Pause) -> None:
        self._marked.pauses.append(pause)
        self._separate()

    def _check(self, name: str, attributes: Mapping[str, str]) -> None:
        if name not in ELEMENTS:
            known = ", ".join(ELEMENTS)
            raise self._error(
                f"<{_short(name)}> is not supported{nearest(name, list(ELEMENTS)) or '.'} Supported are {known}."
            )
        if not self._open and name != "speak":
            raise self._error(f"SSML begins with <speak>, and this with <{name}>.")
        if self._open and name == "speak":
            raise self._error("<speak> may not be inside another element.")
        if self._open and self._open[-1].name in (*READ, "break"):
            raise self._error(f"<{name}> may not be inside <{self._open[-1].name}>.")
        if len(self._open) >= MAX_DEPTH:
            raise self._error(f"<{name}> is more than {MAX_DEPTH} elements deep.")
        if self._elements > MAX_ELEMENTS:
            raise self._error(f"There are more than {MAX_ELEMENTS:,} elements.")
        for attribute in attributes:
            if attribute not in ELEMENTS[name]:
                known = ", ".join(ELEMENTS[name]) or "none"
                raise self._error(
                    f"<{name}> has no attribute {_short(attribute)!r} here; supported: {known}."
                )
        needed = {
            "prosody": "rate",
            "say-as": "interpret-as",
            "sub": "alias",
            "phoneme": "ph",
            "lang": "xml:lang",
        }
        if name in needed and needed[name] not in attributes:
            raise self._error(f"<{name}> needs the attribute {needed[name]!r}.")

    def _break(self, attributes: Mapping[str, str]) -> None:
        if "time" in attributes:
            match = re.fullmatch(
                r"\+?(\d{1,6}(?:\.\d{1,6})?|\.\d{1,6})(ms|s)", attributes["time"].strip(), re.ASCII
            )
            if match is None:
                raise self._error(
                    f"<break> has time={_short(attributes['time'])!r}; write seconds or milliseconds, "
                    "such as 0.5s or 500ms."
                )
            seconds = float(match[1]) / (1000 if match[2] == "ms" else 1)
        else:
            strength = attributes.get("strength", "medium")
            if strength not in STRENGTHS:
                raise self._error(
                    f"<break> has strength={_short(strength)!r}; it may be {', '.join(STRENGTHS)}."
                )
            seconds = STRENGTHS[strength]
        self._silence += seconds
        if seconds > MAX_BREAK or self._silence > MAX_BREAKS:
            raise self._error(
                f"<break> asks for too much silence: at most {MAX_BREAK:g} s at once and {MAX_BREAKS:g} s in a text."
            )
        if seconds:
            self._boundary(Pause(self._length, seconds))

    def _rate(self, rate: str) -> float:
        rate = rate.strip()
        if rate in RATES:
            return RATES[rate]
        match = re.fullmatch(r"([+-]?)(\d{1,4}(?:\.\d{1,4})?)(%?)", rate, re.ASCII)
        if match is None or (match[1] and not match[3]):
            raise self._error(
                f"<prosody> has rate={_short(rate)!r}; it may be {', '.join(RATES)}, a factor such as 1.2, or a "
                "percentage such as 80% or +10%."
            )
        value = float(match[2]) / (100 if match[3] else 1)
        value = {"+": 1 + value, "-": 1 - value, "": value}[match[1]]
        if not SLOWEST <= value <= FASTEST:
            raise self._error(f"<prosody> has rate={rate!r}; {SLOWEST:g} to {FASTEST:g} times is possible.")
        return value

    def _reading(self, element: _Open) -> None:
        text = "".join(self._parts[element.part :])
        written = text.strip()
        start = element.start + len(text) - len(text.lstrip())
        if not written:
            raise self._error(f"<{element.name}> is empty.", line=element.line)
        language = element.language or self._language
        phonemes = None
        match element.name:
            case "sub":
                spoken = normalize(clean(element.attributes["alias"]).text, language)
                if not spoken.strip():
                    raise self._error("<sub> has an empty alias.", line=element.line)
            case "say-as":
                kind = element.attributes["interpret-as"].strip()
                answer = say_as(written, kind, element.attributes.get("format", ""), language)
                if answer is None:
                    raise self._error(
                        f"<say-as> cannot read {_short(written)!r} as {_short(kind)!r}; it knows "
                        f"{', '.join(SAY_AS)}.",
                        line=element.line,
                    )
                spoken = answer
            case _:
                spoken, phonemes = written, self._phonemes(element)
        self._marked.readings.append(Reading(start, start + len(written), spoken.strip(), phonemes))

    def _phonemes(self, element: _Open) -> str:
        alphabet = element.attributes.get("alphabet", "ipa")
        if alphabet != "ipa":
            raise self._error(
                f"<phoneme> has alphabet={_short(alphabet)!r}; only ipa is supported.", line=element.line
            )
        if not self._front_end.speaks_phonemes:
            raise self._error(
                "<phoneme> needs a voice that speaks from phonemes, and this one speaks from letters; "
                "use <sub> with a spelling that sounds right.",
                line=element.line,
            )
        phonemes = clean(element.attributes["ph"]).text.strip()
        if not phonemes:
            raise self._error("<phoneme> has an empty ph.", line=element.line)
        return phonemes

    def _other_language(self, name: str, code: str) -> str | None:
        """The language of an element, if the voice can speak it; none if it is the voice's own."""
        if not re.fullmatch(r"[A-Za-z]{2,8}(?:[-_][A-Za-z0-9]{1,8}){0,3}", code):
            raise self._error(
                f"<{name}> has xml:lang={_short(code)!r}; write a code such as es, en-US or fr."
            )
        if primary(code) == primary(self._language):
            return None
        if not self._front_end.speaks_phonemes:
            raise self._error(
                f"<{name}> asks for {code!r}, and this voice speaks only {primary(self._language)!r}: it reads "
                "letters, not phonemes."
            )
        try:
            espeak.read_clauses("a", espeak_voice(code))
        except ConfigError as error:
            raise self._error(f"<{name}> asks for {code!r}, which espeak-ng does not know.") from error
        return code

    # -- places

    def _position(self, byte: int) -> int:
        return byte if self._starts is None else bisect_right(self._starts, byte) - 1

    @property
    def _line(self) -> int:
        return self._parser.CurrentLineNumber

    def _error(self, message: str, *, line: int | None = None) -> RequestError:
        return RequestError(f"SSML, line {line or self._line}: {message}", param="input")


def espeak_voice(code: str) -> str:
    """espeak-ng's name for a language."""
    code = code.lower().replace("_", "-")
    if code in ESPEAK_VOICES:
        return ESPEAK_VOICES[code]
    if code in ("en-gb", "en-us", "es-419", "fr-be", "fr-ch", "pt-br", "zh-yue", "vi-vn-x-central"):
        return code
    return ESPEAK_VOICES.get(primary(code), primary(code))


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"
