"""A voice's own words: how names, brands and terms are spoken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Entry:
    """How one word is spoken: as another text, or as phonemes in IPA.

    Attributes:
        text: What is spoken in its place.
        phonemes: IPA, for voices that speak from phonemes.
    """

    text: str | None = None
    phonemes: str | None = None


@dataclass(frozen=True)
class Lexicon:
    """Words and how they are spoken; immutable.

    Attributes:
        entries: By the word as it is written.
    """

    entries: Mapping[str, Entry] = field(default_factory=dict)
