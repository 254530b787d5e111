"""Piper's token layout: phonemes of espeak-ng between markers, a pad after each."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from shared.text.espeak import phonemes
from shared.text.specs import PiperSpec
from shared.text.tokens import Tokens, once_each, require_speakable

BEGIN, PAD, END = "^", "_", "$"

#: Control characters but for white space, and lone surrogates.
UNREADABLE = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")


def tokenize(spec: PiperSpec, text: str) -> Tokens:
    """Tokens of a text: ``^ _ p _ p _ … $``, one ``p`` for each code point of the decomposed phonemes.

    Decomposition (NFD) makes ``ç`` two tokens, ``c`` and the cedilla, as in Piper's symbol table.

    Raises:
        TextError: Nothing of the text can be spoken.
        MissingExtraError: The extra ``phonemes`` is not installed.
        ConfigError: espeak-ng has no such voice.
    """
    readable, unreadable = part_unreadable(text)
    if spec.lower_case:
        readable = readable.lower()
    points = unicodedata.normalize("NFD", phonemes(readable, spec.espeak_voice))
    known = [point for point in points if point in spec.vocab]
    unknown = once_each([*unreadable, *(point for point in points if point not in spec.vocab)])
    require_speakable(text, known, unknown)

    return lay_out(spec, known, unknown)[0]


def lay_out(spec: PiperSpec, known: Sequence[str], unknown: tuple[str, ...]) -> tuple[Tokens, list[int]]:
    """Tokens of phonemes that the vocabulary has, and the index of each phoneme's first token."""

    def together(*those: str) -> tuple[list[int], list[str]]:
        """The ids of some symbols one behind the other, and which each of them is."""
        pairs = [(token_id, symbol) for symbol in those for token_id in spec.vocab[symbol]]
        return [token_id for token_id, _ in pairs], [symbol for _, symbol in pairs]

    ids, symbols = together(BEGIN, PAD)
    each = {point: together(point, PAD) for point in set(known)}
    places = []
    for point in known:
        places.append(len(ids))
        its_ids, its_symbols = each[point]
        ids += its_ids
        symbols += its_symbols
    end_ids, end_symbols = together(END)
    return Tokens(ids=(*ids, *end_ids), symbols=(*symbols, *end_symbols), unknown=unknown), places


def part_unreadable(text: str) -> tuple[str, list[str]]:
    """A text without control characters and lone surrogates, which espeak-ng's C strings cannot hold; and those."""
    return UNREADABLE.sub("", text), UNREADABLE.findall(text)
