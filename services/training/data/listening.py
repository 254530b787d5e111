"""What preparing data may ask of the judges, without knowing them.

``services.evaluation`` has the judges, and training never imports it (docs/adr/0008). Whoever runs a command joins the
two: ``services/data.py`` hands over an :class:`Ears`. What is not installed is None, and the reason stands in
``missing``.

Shapes: S samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from shared.audio import Samples

#: What they all hear.
EAR_RATE = 16_000


@dataclass(frozen=True)
class Ears:
    """The judges that are installed, as plain functions of [S] samples at 16 kHz.

    Attributes:
        speech: Where somebody speaks: (start, end) in seconds, in order.
        transcribe: What is said.
        transcriber: Names the recogniser and its language; its results are kept under this name.
        character_errors: The character error rate of (reference, hypothesis).
        naturalness: A mean opinion score from 1 to 5, DNSMOS's.
        missing: What was asked for and is not here: why, and what to do.
    """

    speech: Callable[[Samples], Sequence[tuple[float, float]]] | None = None
    transcribe: Callable[[Samples], str] | None = None
    transcriber: str = ""
    character_errors: Callable[[str, str], float] | None = None
    naturalness: Callable[[Samples], float] | None = None
    missing: Mapping[str, str] = field(default_factory=dict)


class Listeners(Protocol):
    """Finds the judges."""

    def __call__(self, *, language: str | None, recogniser: Path | None, wanted: Sequence[str]) -> Ears:
        """The judges that are installed.

        Args:
            language: What is spoken, as BCP 47; guessed for each recording where None.
            recogniser: A local faster-whisper folder; the packaged one where None.
            wanted: Of ``speech``, ``recognition``, ``naturalness``.

        Raises:
            UserError: ``recogniser`` is no such folder.
        """
        ...


def nobody(*, language: str | None, recogniser: Path | None, wanted: Sequence[str]) -> Ears:
    """No judges at all."""
    return Ears(missing=dict.fromkeys(wanted, "no judges here: start this with 'vits data'"))
