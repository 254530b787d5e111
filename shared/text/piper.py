"""Piper's token layout: phonemes of espeak-ng between markers, a pad after each."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from shared.text.espeak import phonemes
from shared.text.specs import PiperSpec
from shared.text.tokens import Tokens, once_each, require_speakable

BEGIN, PAD, END = "^", "_", "$"


def tokenize(spec: PiperSpec, text: str) -> Tokens:
    """Tokens of a text: ``^ _ p _ p _ … $``, one ``p`` for each code point of the decomposed phonemes.

    Decomposition (NFD) makes ``ç`` two tokens, ``c`` and the cedilla, as in Piper's symbol table.

    Raises:
        TextError: Nothing of the text can be spoken.
        MissingExtraError: The extra ``phonemes`` is not installed.
        ConfigError: espeak-ng has no such voice.
    """
    unreadable = [character for character in text if is_unreadable(character)]
    readable = "".join(character for character in text if not is_unreadable(character))
    if spec.lower_case:
        readable = readable.lower()
    points = unicodedata.normalize("NFD", phonemes(readable, spec.espeak_voice))
    known = [point for point in points if point in spec.vocab]
    unknown = once_each([*unreadable, *(point for point in points if point not in spec.vocab)])
    require_speakable(text, known, unknown)

    return lay_out(spec, known, unknown)[0]


def lay_out(spec: PiperSpec, known: Sequence[str], unknown: tuple[str, ...]) -> tuple[Tokens, list[int]]:
    """Tokens of phonemes that the vocabulary has, and the index of each phoneme's first token."""
    ids = [*spec.vocab[BEGIN], *spec.vocab[PAD]]
    symbols = [*[BEGIN] * len(spec.vocab[BEGIN]), *[PAD] * len(spec.vocab[PAD])]
    places = []
    for point in known:
        places.append(len(ids))
        for symbol in (point, PAD):
            ids += spec.vocab[symbol]
            symbols += [symbol] * len(spec.vocab[symbol])
    ids += spec.vocab[END]
    symbols += [END] * len(spec.vocab[END])
    return Tokens(ids=tuple(ids), symbols=tuple(symbols), unknown=unknown), places


def is_unreadable(character: str) -> bool:
    """Control characters and lone surrogates: espeak-ng's C strings cannot hold them."""
    return unicodedata.category(character) in {"Cc", "Cs"} and not character.isspace()
