"""What a front end gives back, and the rules that every front end shares."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from shared.errors import TextError

#: Unicode's punctuation, symbol, separator and "other" groups: nothing in them has a sound of its own.
SILENT_GROUPS = frozenset("PSZC")


@dataclass(frozen=True)
class Tokens:
    """One text as a model takes it.

    Attributes:
        ids: Token ids, ``[T]``, blanks and markers included.
        symbols: The symbol behind each id, ``[T]``.
        unknown: Characters or phonemes that the vocabulary lacks, each once, in order of appearance. They
            are not in ``ids`` (unless the vocabulary has a token for the unknown), and are reported, never
            silently lost.
    """

    ids: tuple[int, ...]
    symbols: tuple[str, ...]
    unknown: tuple[str, ...]


def once_each(symbols: Iterable[str]) -> tuple[str, ...]:
    """The distinct symbols in order of first appearance."""
    return tuple(dict.fromkeys(symbols))


def is_speakable(symbol: str) -> bool:
    """Whether a symbol has a sound: letters, marks, numbers and phonemes have one, punctuation has none."""
    return any(unicodedata.category(character)[0] not in SILENT_GROUPS for character in symbol)


def require_speakable(text: str, symbols: Iterable[str], unknown: Iterable[str]) -> None:
    """Refuse a text of which nothing remains to be spoken.

    Raises:
        TextError: Says what was left out, if anything was.
    """
    if any(map(is_speakable, symbols)):
        return
    if not text.strip():
        raise TextError("The text is empty. Give at least one word to speak.")
    lost = [character for character in unknown if is_speakable(character)]
    if lost:
        raise TextError(
            f"Nothing in the text {shorten(text)} can be spoken: this voice does not know "
            f"{ascii_safe(', '.join(map(repr, lost[:20])))}. "
            "Use a voice of the text's language, or write it in that voice's alphabet."
        )
    raise TextError(f"The text {shorten(text)} has no letters or digits. Give at least one word to speak.")


def shorten(text: str, limit: int = 60) -> str:
    """A text quoted for a message, cut at ``limit`` characters."""
    return ascii_safe(repr(text if len(text) <= limit else f"{text[: limit - 1]}…"))


def ascii_safe(text: str) -> str:
    """Escape lone surrogates, which no encoder would print."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
