"""Characters as tokens: the same ids as ``transformers.VitsTokenizer``, without ``transformers``.

Two deliberate differences. A line break or tab counts as a space where the vocabulary lacks it, so that
words do not run together. A character without an id is reported; it gets the unknown token's id only if
the vocabulary has that token (``transformers`` gives an id beyond the embedding table otherwise).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from shared.text import espeak
from shared.text.specs import CharacterSpec
from shared.text.tokens import Tokens, once_each, require_speakable


@cache
def _uroman() -> Any:
    """The romaniser: six seconds to load, so once in a process, and only when a text needs it."""
    import uroman

    return uroman.Uroman()


@lru_cache(maxsize=8192)
def romanise(text: str) -> str:
    """A text in Latin letters."""
    return str(_uroman().romanize_string(text))


def _lower_outside_vocabulary(spec: CharacterSpec, text: str) -> str:
    """Lower-case all but the stretches that are vocabulary entries as they stand, earliest entry first."""
    entries = spec.entries
    if not any(entry in text for entry in spec.long_entries):
        if text == text.lower():
            return text
        return "".join(
            character if character in entries and character in entries[character] else character.lower()
            for character in text
        )
    pieces: list[str] = []
    position = 0
    while position < len(text):
        candidates = entries.get(text[position], ())
        found = next((entry for entry in candidates if text.startswith(entry, position)), None)
        pieces.append(text[position].lower() if found is None else found)
        position += 1 if found is None else len(found)
    return "".join(pieces)


def prepare(spec: CharacterSpec, text: str, *, strip: bool = True) -> tuple[str, tuple[str, ...]]:
    """The text as its characters will be looked up, and the characters that were left out on the way.

    Args:
        spec: The front end.
        text: A text, or a part of one.
        strip: Remove the spaces around it; not for a part.
    """
    if spec.lower_case:
        text = text.lower()
    if " " in spec.vocab and not text.isprintable():
        text = "".join(" " if c.isspace() and c not in spec.vocab else c for c in text)
    if spec.normalize:
        text = _lower_outside_vocabulary(spec, text)
    if spec.language == "ron":
        text = text.replace("ț", "ţ")
    if spec.is_uroman and not text.isascii():
        text = romanise(text)
    if spec.phonemize:
        return espeak.phonemes_like_transformers(text), ()
    if spec.normalize and not spec.vocab.keys() >= set(text):
        unknown = once_each(character for character in text if character not in spec.vocab)
        text = "".join(character for character in text if character in spec.vocab)
        return text.strip() if strip else text, unknown
    return text.strip() if spec.normalize and strip else text, ()


def _segments(spec: CharacterSpec, text: str) -> list[str]:
    """Cut a text around its special tokens.

    ``transformers`` sets blanks inside each segment, not across them. It shows where the pad token is an
    ordinary letter, as in MMS vocabularies: two of it in a row have no blank in between.
    """
    special = sorted({spec.pad_token, spec.unk_token} - {""}, key=len, reverse=True)
    if not special:
        return [text]
    pattern = "|".join(map(re.escape, special))
    return [segment for segment in re.split(f"({pattern})", text) if segment]


class _KeptLengths(dict[str, int]):
    """How many characters each character becomes in the prepared text, where each stands for itself."""

    def __init__(self, spec: CharacterSpec) -> None:
        super().__init__()
        self._spec = spec

    def __missing__(self, character: str) -> int:
        length = len(prepare(self._spec, character, strip=False)[0])
        if len(self) < 20_000:
            self[character] = length
        return length


def kept_lengths(spec: CharacterSpec) -> dict[str, int]:
    """How many characters of `prepare`'s text come of each character, made when first asked for."""
    lengths: dict[str, int] | None = spec.__dict__.get("_kept_lengths")
    return lengths if lengths is not None else spec.__dict__.setdefault("_kept_lengths", _KeptLengths(spec))


@dataclass(frozen=True)
class Placed:
    """A text's tokens, and where each character of the prepared text went.

    Attributes:
        tokens: The tokens.
        prepared: What `prepare` made of the text.
        places: For each character of ``prepared``, the index of its token; of the next one if it has none.
        spoken: The symbols that the vocabulary has.
    """

    tokens: Tokens
    prepared: str
    places: list[int]
    spoken: list[str]


def place(spec: CharacterSpec, text: str) -> Placed:
    """Tokens of a text, which may be none, token 0 between all of them when ``add_blank``.

    Raises:
        MissingExtraError: ``phonemize`` is set and the extra ``phonemes`` is not installed.
    """
    prepared, left_out = prepare(spec, text)
    vocab = spec.vocab
    blank = next((symbol for symbol, token_id in vocab.items() if token_id == 0), "")
    special = {spec.pad_token, spec.unk_token}
    has_unknown_token = spec.unk_token in vocab
    symbols: list[str] = []
    spoken: list[str] = []
    places: list[int] = []
    unknown: list[str] = list(left_out)
    for segment in _segments(spec, prepared):
        blanks = spec.add_blank and segment not in special
        before = len(symbols)
        for token in [segment] if segment in special else segment:
            known = token in vocab
            (spoken if known else unknown).append(token)
            kept = known or has_unknown_token
            if kept and blanks:
                symbols.append(blank)
            if len(token) == 1:
                places.append(len(symbols))
            else:
                places += [len(symbols)] * len(token)
            if kept:
                symbols.append(token)
        if blanks and len(symbols) > before:
            symbols.append(blank)

    fallback = vocab.get(spec.unk_token, 0)
    tokens = Tokens(
        ids=tuple(vocab.get(symbol, fallback) for symbol in symbols),
        symbols=tuple(symbols),
        unknown=once_each(unknown),
    )
    return Placed(tokens, prepared, places, spoken)


def tokenize(spec: CharacterSpec, text: str) -> Tokens:
    """Tokens of a text, token 0 between all of them when ``add_blank``.

    Raises:
        TextError: Nothing of the text can be spoken.
        MissingExtraError: ``phonemize`` is set and the extra ``phonemes`` is not installed.
    """
    placed = place(spec, text)
    require_speakable(text, placed.spoken, placed.tokens.unknown)
    return placed.tokens
