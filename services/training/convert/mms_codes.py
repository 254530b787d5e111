"""Language codes of MMS-TTS: ISO 639-3, with a script or a dialect where a language has several models."""

from __future__ import annotations

import unicodedata

from shared.errors import NotFoundError, nearest


def _variants(kind: str, names: dict[str, str]) -> dict[str, tuple[str, ...]]:
    return {code: tuple(f"{code}-{kind}_{name}" for name in given.split()) for code, given in names.items()}


#: Codes that stand for no model of their own, and those to choose from instead.
SEVERAL: dict[str, tuple[str, ...]] = {
    **_variants(
        "script",
        {
            "azj": "cyrillic latin",
            "bcc": "arabic latin",
            "cmo": "khmer latin",
            "crk": "latin syllabics",
            "gag": "cyrillic latin",
            "gof": "latin",
            "kff": "telugu",
            "kmr": "arabic cyrillic latin",
            "ojb": "latin syllabics",
            "rif": "arabic latin",
            "rmc": "cyrillic latin",
            "rmy": "cyrillic latin",
            "tuk": "arabic latin",
            "ttq": "tifinagh",
            "uig": "arabic cyrillic",
            "urd": "arabic devanagari latin",
            "uzb": "cyrillic",
            "wal": "ethiopic latin",
        },
    ),
    **_variants(
        "dialect",
        {
            "cac": "sanmateoixtatan sansebastiancoatan",
            "cak": "central santamariadejesus santodomingoxenacoj southcentral western yepocapa",
            "dnj": "blowowest gweetaawueast",
            "hus": "centralveracruz westernpotosino",
            "ixl": "sangasparchajul sanjuancotzal santamarianebaj",
            "maa": "sanantonio sanjeronimo",
            "mam": "central northern southern western",
            "poh": "eastern western",
            "quc": "central east north",
            "tzh": "bachajon tenejapa",
            "tzj": "eastern western",
            "tzo": "chamula chenalho",
        },
    ),
    # Quechua has no model under the name of the family, but one for each language of it.
    "que": (
        *("qub", "quf", "quh", "qul", "quw", "quy", "quz", "qvc", "qve", "qvh", "qvm"),
        *("qvn", "qvo", "qvs", "qvw", "qvz", "qwh", "qxh", "qxl", "qxn", "qxo", "qxr"),
    ),
}
#: Names of families whose members are listed above.
FAMILIES = {"aze": "azj", "bal": "bcc", "cre": "crk", "kur": "kmr", "oji": "ojb"}


def resolve(code: str) -> str:
    """The code that MMS-TTS's models are filed under: accents left out, and no choice left open.

    Raises:
        NotFoundError: The code stands for several models or for none that is known; it lists them.
    """
    decomposed = unicodedata.normalize("NFD", code.strip())
    plain = "".join(character for character in decomposed if not unicodedata.combining(character))
    language = plain.partition("-")[0]
    language = FAMILIES.get(language, language)
    choice = SEVERAL.get(language)
    if choice is None or plain in choice:
        return plain
    if plain in {*SEVERAL, *FAMILIES}:
        several = "several models" if len(choice) > 1 else "a model under another name"
        raise NotFoundError(
            f"--language_code {code}: MMS-TTS has {several} for it. Choose the one that is written and spoken as "
            f"your recordings are: {', '.join(choice)}"
        )
    raise NotFoundError(
        f"--language_code {code}: MMS-TTS has no such model{nearest(plain, choice) or '.'} It has {', '.join(choice)}"
    )
