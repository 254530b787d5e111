"""What users paste: other forms of the same letters, invisible characters, and what no text should hold.

Every character of the cleaned text remembers where it came from.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from shared.text.front_end import FrontEnd
from shared.text.specs import CharacterSpec
from shared.text.tokens import ascii_safe

#: Nothing to do for these: what most texts are made of.
_PLAIN = "\t\n -~¡§«°´-·»¿À-ÖØ-öø-ĲĴ-ĿŁ-ňŊ-žΆ-ώЀ-ӿא-ת،؛؟ء-ي“”„–—€"
#: A letter with marks that may compose, or one character that needs a look.
_ATTENTION = re.compile(rf"[^\W\d_][\u0300-\u036f]+|[^{_PLAIN}]")

#: Kinds of compatibility forms that are the same letters in other clothes. Superscripts and fractions are
#: not among them: ``x²`` is not ``x2``.
_SAME_LETTERS = frozenset(
    f"<{kind}>"
    for kind in (
        *("wide", "narrow", "compat", "font", "circle", "noBreak", "vertical", "small"),
        *("isolated", "initial", "medial", "final"),
    )
)

#: Stand-ins that Unicode does not know, for typography and letters whose sound another letter has.
_TYPOGRAPHY = {
    "‘": "'", "’": "'", "‚": "'", "‛": "'", "ʼ": "'", "´": "'", "`": "'", "′": "'", "＇": "'",
    "“": '"', "”": '"', "„": '"', "‟": '"', "«": '"', "»": '"', "″": '"',
    "‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "-", "―": "-", "−": "-",
    "…": "...", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ß": "ss", "ẞ": "SS", "ø": "o", "Ø": "O",
    "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "TH", "ı": "i", "ħ": "h",
    "Ħ": "H", "ŋ": "ng", "Ŋ": "NG", "ĸ": "k", "ŧ": "t", "Ŧ": "T", "ĳ": "ij", "Ĳ": "IJ", "ſ": "s",
    "ª": "a", "º": "o", "ə": "e", "Ə": "E",
}  # fmt: skip

#: Scripts whose accents may be left off: in others a mark is a vowel.
_ACCENTED = ("LATIN", "GREEK", "CYRILLIC")

#: Joiners that change how letters of some scripts are read; other invisible characters mean nothing.
_JOINERS = "\u200c\u200d"


@dataclass(frozen=True)
class Cleaned:
    """A text as it is read.

    Attributes:
        text: The text.
        origins: Where each character of it, and its end, is in what the user sent; nothing if nothing moved.
        dropped: Control characters and lone surrogates, each escaped.
    """

    text: str
    origins: Sequence[int] | None
    dropped: tuple[str, ...]

    def source(self, position: int) -> int:
        """Where a position of the text is in what the user sent."""
        return position if self.origins is None else self.origins[position]


def clean(text: str) -> Cleaned:
    """Compose accents, unfold compatibility forms, and remove what has neither sound nor meaning."""
    if text.isascii() and text.isprintable():
        return Cleaned(text, None, ())
    pieces: list[str] = []
    origins: list[int] = []
    dropped: list[str] = []
    position = 0
    for match in _ATTENTION.finditer(text):
        found = match.group()
        instead = _instead(found)
        if instead == found:
            continue
        if not instead and unicodedata.category(found[0]) in ("Cc", "Cs", "Cn", "Co"):
            dropped.append(_escaped(found))
        pieces += (text[position : match.start()], instead)
        origins += range(position, match.start())
        origins += [match.start()] * len(instead)
        position = match.end()
    if not position:
        return Cleaned(text, None, ())
    pieces.append(text[position:])
    origins += range(position, len(text) + 1)
    return Cleaned("".join(pieces), origins, tuple(dict.fromkeys(dropped)))


def _escaped(character: str) -> str:
    """A character that no terminal or header should be sent, as its number."""
    return f"U+{ord(character[0]):04X}"


@lru_cache(maxsize=16384)
def _instead(found: str) -> str:
    """What is read for one character, or for a letter with marks."""
    if len(found) > 1:
        return unicodedata.normalize("NFC", found)
    category = unicodedata.category(found)
    if found.isspace():
        return "\n" if found in "\n\v\f\x1c\x1d\x1e\x85\u2028\u2029" else " "
    if category in ("Cc", "Cs", "Cn", "Co"):
        return ""
    if category == "Cf" or "\ufe00" <= found <= "\ufe0f":
        return found if found in _JOINERS else ""
    if found == "`":
        return found
    kind = unicodedata.decomposition(found).split(" ", 1)[0]
    if kind in _SAME_LETTERS:
        unfolded = unicodedata.normalize("NFKC", found)
        return found if unfolded[:1].isspace() or found == "…" else unfolded
    return unicodedata.normalize("NFC", found)


@cache
def _strip_accents(character: str) -> str:
    """The letter under the accents, where that is the same letter to a reader who knows no accents."""
    if not unicodedata.name(character, "").startswith(_ACCENTED):
        return character
    return "".join(c for c in unicodedata.normalize("NFD", character) if not unicodedata.combining(c))


def fit_vocabulary(front_end: FrontEnd, spoken: str) -> str:
    """A text with stand-ins for the characters that a voice lacks, where there are safe ones.

    ``é`` becomes ``e`` and a typographic apostrophe a plain one, in a vocabulary that has only those. What
    has no stand-in is left: the front end reports it. Phonemes and romanised voices read any letter.
    """
    spec = front_end.definition
    if not isinstance(spec, CharacterSpec) or spec.phonemize or spec.is_uroman:
        return spoken
    vocab = spec.vocab
    if vocab.keys() >= set(spoken):
        return spoken
    lowers = spec.normalize or spec.lower_case
    return "".join(
        c if c in vocab or (lowers and c.lower() in vocab) else _stand_in(c, vocab, lowers) for c in spoken
    )


def _stand_in(character: str, vocab: dict[str, int], lowers: bool) -> str:
    def known(text: str) -> bool:
        return bool(text) and all(c in vocab or (lowers and c.lower() in vocab) for c in text)

    if character.isascii():
        return character
    lower = character.lower()
    candidates = [
        unicodedata.normalize("NFD", character),
        _TYPOGRAPHY.get(character, ""),
        _strip_accents(character),
        _TYPOGRAPHY.get(_strip_accents(character), ""),
        unicodedata.normalize("NFKC", character),
        lower,
    ]
    return next((candidate for candidate in candidates if known(candidate)), character)


def report(symbol: str) -> str:
    """A symbol that cannot be spoken, as any protocol can carry it."""
    if len(symbol) == 1 and unicodedata.category(symbol) in ("Cc", "Cs", "Cn", "Co"):
        return _escaped(symbol)
    return ascii_safe(symbol)
