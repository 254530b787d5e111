"""What voices say when they are calibrated and when they are judged, one list a language, written for this.

The sentences that the gate scores are never those that calibrated. A language without a list here is spoken from
a text file of one's own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from services.evaluation.transcripts import normalise
from shared.errors import TextError, UserError
from shared.text import FrontEnd
from shared.text.script import plan_script

#: The gate wants at least so many words, or an error rate says too little.
GATE_WORDS = 2000

#: Of a text file, every so manieth sentence calibrates, and the others are the gate's, until there are enough.
CALIBRATION_EVERY = 6
CALIBRATION_SENTENCES = 32

#: ISO 639-3 codes, which MMS voices carry, of the languages with a list.
LANGUAGES = {"en": "en", "eng": "en", "es": "es", "spa": "es"}


@dataclass(frozen=True)
class Sentences:
    """What to say.

    Attributes:
        calibration: Sentences that calibrate and tune.
        gate: Sentences that the gate scores; none of the former, however it is written.
        source: Where they are from, for the report.
    """

    calibration: tuple[str, ...]
    gate: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        calibrating = {_said(sentence) for sentence in self.calibration}
        if shared := sorted(sentence for sentence in self.gate if _said(sentence) in calibrating):
            raise UserError(
                f"{self.source}: {len(shared)} sentences would calibrate and be judged too, the first "
                f"{shared[0]!r}. Leave each in once."
            )

    def in_segments(self, front_end: FrontEnd, language: str) -> Sentences:
        """The same in pieces that a voice speaks at once, for a piece is what calibrates and is judged.

        Args:
            front_end: The voice's.
            language: What it speaks.

        Raises:
            UserError: The voice cannot speak one of them.
        """
        pieces = [
            list(dict.fromkeys(piece for line in lines for piece in self._pieces(line, front_end, language)))
            for lines in (self.calibration, self.gate)
        ]
        calibration, gate = pieces
        return replace(
            self,
            calibration=tuple(calibration),
            gate=_others(gate, calibration),
        )

    def _pieces(self, line: str, front_end: FrontEnd, language: str) -> list[str]:
        try:
            segments = plan_script(line, front_end, language=language).segments
        except TextError as error:
            raise UserError(f"{self.source}: the voice cannot speak {line!r}. {error}") from error
        spoken = [segment.text for segment in segments if segment.tokens.ids]
        return spoken if len(segments) > 1 else [line]


class Line(NamedTuple):
    """What one speaker of a voice says."""

    text: str
    speaker: int


def shared_out(sentences: Sequence[str], speakers: int) -> list[Line]:
    """Sentences, each said by one of so many speakers, in turn."""
    return [Line(sentence, number % speakers) for number, sentence in enumerate(sentences)]


def words(sentences: Sequence[str], language: str | None = None) -> int:
    """How many words sentences have, as error rates count them."""
    return sum(len(normalise(sentence, language)) for sentence in sentences)


def _said(sentence: str) -> tuple[str, ...]:
    """What is heard of a sentence, whatever its capitals and marks."""
    return tuple(normalise(sentence, None))


def _others(sentences: Sequence[str], taken: Sequence[str]) -> tuple[str, ...]:
    """Those sentences that none of others says."""
    known = {_said(sentence) for sentence in taken}
    return tuple(sentence for sentence in sentences if _said(sentence) not in known)


def sentences_for(language: str) -> Sentences | None:
    """The list of a language, given as BCP 47 or ISO 639-3 tag; None where there is none."""
    name = LANGUAGES.get(language.replace("_", "-").split("-")[0].lower())
    if name is None:
        return None
    lists = json.loads((Path(__file__).parent / f"{name}.json").read_text(encoding="utf-8"))
    return Sentences(tuple(lists["calibration"]), tuple(lists["gate"]), f"the list for {name!r}")


def read_sentences(path: Path) -> Sentences:
    """Sentences of a text file, one a line, shared out between calibration and gate.

    Raises:
        UserError: It cannot be read, or is too short for the gate.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from error
    every = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    calibration = tuple(every[::CALIBRATION_EVERY][:CALIBRATION_SENTENCES])
    gate = _others(every, calibration)
    if words(gate) < GATE_WORDS:
        raise UserError(
            f"{path} leaves {words(gate)} words for the gate, beside {len(calibration)} sentences that calibrate; "
            f"the gate needs {GATE_WORDS}. Add sentences, one a line."
        )
    return Sentences(calibration, gate, str(path))
