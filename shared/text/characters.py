"""Characters as tokens: the same ids as ``transformers.VitsTokenizer``, without ``transformers``.

Two deliberate differences. A line break or tab counts as a space where the vocabulary lacks it, so that
words do not run together. A character without an id is reported; it gets the unknown token's id only if
the vocabulary has that token (``transformers`` gives an id beyond the embedding table otherwise).
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from shared.text import espeak
from shared.text.specs import CharacterSpec
from shared.text.tokens import Tokens, once_each, require_speakable


@cache
def _uroman() -> Any:
    """The romaniser: six seconds to load, so once in a process, and only when a text needs it."""
    import uroman

    return uroman.Uroman()


def _lower_outside_vocabulary(spec: CharacterSpec, text: str) -> str:
    """Lower-case all but the stretches that are vocabulary entries as they stand, earliest entry first."""
    entries: dict[str, list[str]] = {}
    for entry in once_each([*spec.vocab, spec.unk_token, spec.pad_token]):
        entries.setdefault(entry[0], []).append(entry)
    pieces: list[str] = []
    position = 0
    while position < len(text):
        candidates = entries.get(text[position], ())
        found = next((entry for entry in candidates if text.startswith(entry, position)), None)
        pieces.append(text[position].lower() if found is None else found)
        position += 1 if found is None else len(found)
    return "".join(pieces)


def prepare(spec: CharacterSpec, text: str) -> tuple[str, tuple[str, ...]]:
    """The text as its characters will be looked up, and the characters that were left out on the way."""
    if spec.lower_case:
        text = text.lower()
    if " " in spec.vocab:
        text = "".join(" " if c.isspace() and c not in spec.vocab else c for c in text)
    if spec.normalize:
        text = _lower_outside_vocabulary(spec, text)
    if spec.language == "ron":
        text = text.replace("ț", "ţ")
    if spec.is_uroman and not text.isascii():
        text = _uroman().romanize_string(text)
    if spec.phonemize:
        return espeak.phonemes_like_transformers(text), ()
    if spec.normalize:
        unknown = once_each(character for character in text if character not in spec.vocab)
        return "".join(character for character in text if character in spec.vocab).strip(), unknown
    return text, ()


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


def tokenize(spec: CharacterSpec, text: str) -> Tokens:
    """Tokens of a text, token 0 between all of them when ``add_blank``.

    Raises:
        TextError: Nothing of the text can be spoken.
        MissingExtraError: ``phonemize`` is set and the extra ``phonemes`` is not installed.
    """
    prepared, left_out = prepare(spec, text)
    blank = next((symbol for symbol, token_id in spec.vocab.items() if token_id == 0), "")
    special = {spec.pad_token, spec.unk_token}
    has_unknown_token = spec.unk_token in spec.vocab
    symbols: list[str] = []
    spoken: list[str] = []
    unknown: list[str] = list(left_out)
    for segment in _segments(spec, prepared):
        tokens = [segment] if segment in special else list(segment)
        missing = [token for token in tokens if token not in spec.vocab]
        unknown += missing
        if not has_unknown_token:
            tokens = [token for token in tokens if token in spec.vocab]
        spoken += [token for token in tokens if token in spec.vocab]
        if spec.add_blank and segment not in special and tokens:
            tokens = [symbol for token in tokens for symbol in (blank, token)] + [blank]
        symbols += tokens
    require_speakable(text, spoken, unknown)

    fallback = spec.vocab.get(spec.unk_token, 0)
    return Tokens(
        ids=tuple(spec.vocab.get(symbol, fallback) for symbol in symbols),
        symbols=tuple(symbols),
        unknown=once_each(unknown),
    )
