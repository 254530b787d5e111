"""Texts compared: what counts as a word, and how many edits lie between what was meant and what was heard."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from num2words import num2words

#: The rule, as reports state it.
NORMALISATION = (
    "Both texts are NFKD-decomposed and case-folded; accents written over Latin, Greek and Cyrillic letters "
    "(U+0300 to U+036F) are dropped; whole numbers become words of the language (where num2words knows it); "
    "an apostrophe inside a word stays, every other character that is no letter, mark or digit parts words."
)

_ACCENTS = re.compile("[\u0300-\u036f]")
_APOSTROPHES = re.compile("[\u2019\u02bc`´]")
#: More digits than these are a number that is spelt out, not said.
_MOST_DIGITS = 12


@dataclass(frozen=True)
class Errors:
    """Edits between a reference and a hypothesis.

    Attributes:
        edits: Substitutions, deletions and insertions: the fewest that make one the other.
        total: Words (or characters) of the reference.
    """

    edits: int
    total: int

    @property
    def rate(self) -> float:
        """Edits for each word (or character); above 1 where more is said than was meant."""
        return self.edits / self.total if self.total else float(self.edits > 0)


def normalise(text: str, language: str | None = None) -> list[str]:
    """The words of a text, as :data:`NORMALISATION` says.

    Args:
        text: As somebody wrote it or a recogniser heard it.
        language: ISO 639 code or BCP 47 tag of the words that numbers become; digits stay where it is not given.
    """
    text = _APOSTROPHES.sub("'", text)  # before NFKD, which makes a space and an accent of some of them
    folded = _ACCENTS.sub("", unicodedata.normalize("NFKD", text)).casefold()
    spoken = re.sub(r"\d+", lambda digits: f" {_said(digits[0], language)} ", folded)
    spoken = _ACCENTS.sub("", unicodedata.normalize("NFKD", spoken))
    # Letters, digits, and the marks that are vowels in Indic scripts, which \w leaves out.
    kept = "".join(
        character if character == "'" or unicodedata.category(character)[0] in "LMN" else " "
        for character in spoken
    )
    return [word for word in (part.strip("'") for part in kept.split()) if word]


@lru_cache(maxsize=4096)
def _said(digits: str, language: str | None) -> str:
    """A number in words, or its digits where nobody knows how."""
    if language is None or len(digits) > _MOST_DIGITS:
        return digits
    try:
        return str(num2words(int(digits), lang=whisper_code(language) or language)).casefold()
    except (NotImplementedError, OverflowError, ValueError):
        return digits


def word_errors(reference: str, hypothesis: str, language: str | None = None) -> Errors:
    """Edits between the words of two texts."""
    meant, heard = normalise(reference, language), normalise(hypothesis, language)
    return Errors(edit_distance(meant, heard), len(meant))


def character_errors(reference: str, hypothesis: str, language: str | None = None) -> Errors:
    """Edits between the characters of two texts; the words of each are joined by one space."""
    meant, heard = (" ".join(normalise(text, language)) for text in (reference, hypothesis))
    return Errors(edit_distance(meant, heard), len(meant))


def edit_distance(one: Sequence[str], other: Sequence[str]) -> int:
    """The fewest substitutions, insertions and deletions that make one sequence the other (Levenshtein 1966)."""
    numbers: dict[str, int] = {}
    a = np.array([numbers.setdefault(item, len(numbers)) for item in one], dtype=np.int64)
    b = np.array([numbers.setdefault(item, len(numbers)) for item in other], dtype=np.int64)
    columns = np.arange(len(b) + 1)
    row = columns.copy()
    for count, item in enumerate(a.tolist(), start=1):
        changed = np.minimum(row[1:] + 1, row[:-1] + (b != item))
        # Insertions run along the row: the least of (value - column) so far, plus the column.
        row = np.minimum.accumulate(np.concatenate([[count], changed]) - columns) + columns
    return int(row[-1])


#: Whisper's own codes of the languages it knows, by their ISO 639-3 codes, which MMS models have.
_THREE_LETTERS = {
    "afr": "af", "amh": "am", "ara": "ar", "arb": "ar", "asm": "as", "aze": "az", "azj": "az", "bak": "ba",
    "bel": "be", "bul": "bg", "ben": "bn", "bod": "bo", "bre": "br", "bos": "bs", "cat": "ca", "ces": "cs",
    "cym": "cy", "dan": "da", "deu": "de", "ell": "el", "eng": "en", "spa": "es", "est": "et", "eus": "eu",
    "fas": "fa", "pes": "fa", "fin": "fi", "fao": "fo", "fra": "fr", "glg": "gl", "guj": "gu", "hau": "ha",
    "haw": "haw", "heb": "he", "hin": "hi", "hrv": "hr", "hat": "ht", "hun": "hu", "hye": "hy", "ind": "id",
    "isl": "is", "ita": "it", "jpn": "ja", "jav": "jw", "kat": "ka", "kaz": "kk", "khm": "km", "kan": "kn",
    "kor": "ko", "lat": "la", "ltz": "lb", "lin": "ln", "lao": "lo", "lit": "lt", "lav": "lv", "lvs": "lv",
    "mlg": "mg", "mri": "mi", "mkd": "mk", "mal": "ml", "mon": "mn", "khk": "mn", "mar": "mr", "zlm": "ms",
    "msa": "ms", "mlt": "mt", "mya": "my", "nep": "ne", "npi": "ne", "nld": "nl", "nno": "nn", "nor": "no",
    "nob": "no", "oci": "oc", "pan": "pa", "pol": "pl", "pus": "ps", "por": "pt", "ron": "ro", "rus": "ru",
    "san": "sa", "snd": "sd", "sin": "si", "slk": "sk", "slv": "sl", "sna": "sn", "som": "so", "sqi": "sq",
    "srp": "sr", "sun": "su", "swe": "sv", "swh": "sw", "swa": "sw", "tam": "ta", "tel": "te", "tgk": "tg",
    "tha": "th", "tuk": "tk", "tgl": "tl", "tur": "tr", "tat": "tt", "ukr": "uk", "urd": "ur", "uzb": "uz",
    "uzn": "uz", "vie": "vi", "yid": "yi", "ydd": "yi", "yor": "yo", "cmn": "zh", "zho": "zh", "yue": "yue",
}  # fmt: skip


def whisper_code(language: str) -> str | None:
    """Whisper's code for a language given as BCP 47 or ISO 639 (``es-419``, ``spa``); None for one it lacks."""
    root = re.split(r"[-_]", language.lower())[0]
    return root if root in _THREE_LETTERS.values() else _THREE_LETTERS.get(root)
