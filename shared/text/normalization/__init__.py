"""Numbers, dates, amounts, abbreviations and the like, as they are spoken.

Spanish and English have tables of their own, and French, German, Italian and Portuguese smaller ones beside what
``num2words`` knows of them. Of many other languages it knows the numbers and the money; the rest stays as it is.
"""

from __future__ import annotations

import re
from functools import lru_cache

from shared.text.normalization.english import English
from shared.text.normalization.european import French, German, Italian, Portuguese
from shared.text.normalization.language import Language
from shared.text.normalization.rules import Rule, rules_of
from shared.text.normalization.spanish import Spanish
from shared.text.units import Reading

_LANGUAGES: dict[str, type[Language]] = {
    "de": German, "en": English, "es": Spanish, "fr": French, "it": Italian, "pt": Portuguese,
}  # fmt: skip

#: MMS names languages by ISO 639-3; ``num2words`` and everybody else by ISO 639-1.
_THREE_LETTERS = {
    "eng": "en", "spa": "es", "fra": "fr", "deu": "de", "ita": "it", "por": "pt", "nld": "nl", "rus": "ru",
    "pol": "pl", "ces": "cs", "slk": "sk", "slv": "sl", "hrv": "hr", "srp": "sr", "ukr": "uk", "bel": "be",
    "bul": "bg", "ron": "ro", "hun": "hu", "fin": "fi", "swe": "sv", "nor": "no", "nob": "no", "dan": "da",
    "isl": "is", "tur": "tr", "ara": "ar", "heb": "he", "fas": "fa", "hin": "hi", "ben": "bn", "tel": "te",
    "kan": "kn", "tam": "ta", "tha": "th", "vie": "vi", "ind": "id", "zlm": "ms", "kor": "ko", "jpn": "ja",
    "cmn": "zh", "zho": "zh", "cat": "ca", "glg": "gl", "eus": "eu", "lit": "lt", "lav": "lv", "est": "et",
    "ell": "el", "amh": "am", "azj": "az", "aze": "az", "kaz": "kz", "kk": "kz", "epo": "eo", "cym": "cy", "tet": "tet",
    "tgk": "tg", "che": "ce", "nn": "no", "nb": "no",
}  # fmt: skip


def primary(code: str) -> str:
    """The language of a code, without region or script: ``es`` for ``es-MX``, ``spa`` and ``es_419``."""
    first = re.split(r"[-_]", code.strip().lower(), maxsplit=1)[0]
    return _THREE_LETTERS.get(first, first)


@lru_cache(maxsize=64)
def language_of(code: str) -> Language:
    """What is known of a language, by ``es``, ``es-MX``, ``spa``, ``en_GB``…; never fails."""
    parts = re.split(r"[-_]", code.strip())
    region = next((part.upper() for part in parts[1:] if len(part) == 2 or part == "419"), "")
    name = primary(code)
    return _LANGUAGES.get(name, Language)(name, region)


@lru_cache(maxsize=64)
def _rules(code: str) -> tuple[Rule, ...]:
    return tuple(rules_of(language_of(code), lambda text: normalize(text, code)))


def readings(text: str, language: str, taken: bytearray | None = None) -> list[Reading]:
    """What of a text is spoken otherwise than it is written, in order.

    Args:
        text: A cleaned text.
        language: Its language's code.
        taken: A byte for each character; those that are not zero are left alone.
    """
    claimed: list[Reading] = []
    taken = bytearray(len(text)) if taken is None else taken
    has_digits = any(character.isdecimal() for character in text)
    for rule in _rules(language):
        if rule.digits and not has_digits:
            continue
        for match in rule.pattern.finditer(text):
            start, end = match.span()
            if start == end or any(taken[start:end]):
                continue
            answer = rule.speak(match)
            if answer is None:
                continue
            spoken, end = answer if isinstance(answer, tuple) else (answer, end)
            taken[start:end] = b"\x01" * (end - start)
            claimed.append(Reading(start, end, spoken.strip().replace("\u00a0", " ")))
    return sorted(claimed, key=lambda reading: reading.start)


def normalize(text: str, language: str) -> str:
    """A text as it is spoken, its words and punctuation left as they are.

    Args:
        text: Any text.
        language: Its language's code: ``es``, ``es-MX``, ``spa``, ``en``…
    """
    pieces: list[str] = []
    position = 0
    for reading in readings(text, language):
        before = text[position : reading.start]
        pieces.append(before)
        if _touch(before or (pieces[-2] if len(pieces) > 1 else "")):
            pieces.append(" ")
        pieces.append(reading.spoken)
        position = reading.end
        if position < len(text) and text[position].isalnum():
            pieces.append(" ")
    return "".join([*pieces, text[position:]])


def _touch(before: str) -> bool:
    return bool(before) and before[-1].isalnum()


#: What ``say-as`` may ask for.
SAY_AS = (
    "cardinal", "number", "ordinal", "digits", "telephone", "characters", "spell-out", "verbatim", "date", "time",
    "currency", "unit", "fraction",
)  # fmt: skip


def say_as(text: str, kind: str, form: str, language: str) -> str | None:
    """A text read as what the user says it is.

    Args:
        text: The text.
        kind: One of `SAY_AS`.
        form: For a date, the order of its parts: ``dmy``, ``mdy``, ``ymd``, ``dm``, ``md``, ``my``, ``y``.
        language: Its language's code.

    Returns:
        What is spoken; nothing if the text is nothing of the kind.
    """
    tables = language_of(language)
    digits = "".join(str(int(character)) for character in text if character.isdecimal())
    match kind:
        case "characters" | "spell-out" | "verbatim":
            return tables.spell(text) or None
        case "digits":
            return (
                tables.digit_by_digit(digits)
                if digits and len(digits) == len(re.sub(r"\W", "", text))
                else None
            )
        case "telephone":
            groups = [tables.digit_by_digit(group) for group in re.findall(r"[0-9]+", text)]
            plus = tables.symbols.get("+", "") if text.startswith("+") else ""
            return f"{plus} {', '.join(groups)}".strip() if groups else None
        case "cardinal" | "number":
            is_number = re.fullmatch(r"[-−+]?[0-9][0-9.,\s]*", text) and text[-1].isdecimal()
            return tables.number(tables.parse(re.sub(r"\s", "", text))) if is_number else None
        case "ordinal":
            return tables.ordinal(int(digits)) if 0 < len(digits) < 13 else None
        case "date":
            return _date(text, form, tables) if form else _if_changed(text, language)
        case "time" | "currency" | "unit" | "fraction":
            return _if_changed(text, language)
    return None


def _if_changed(text: str, language: str) -> str | None:
    spoken = normalize(text, language)
    return spoken if spoken != text else None


def _date(text: str, form: str, tables: Language) -> str | None:
    """A date whose parts are numbers, in the order that is given."""
    parts = re.findall(r"[0-9]{1,4}", text)
    if not form or set(form) - set("dmy") or len(parts) != len(form):
        return None
    values = {letter: int(part) for letter, part in zip(form, parts, strict=True)}
    if "m" not in values:
        return tables.year(values["y"]) if "y" in values else None
    return tables.date(values.get("y"), values["m"], values.get("d"))
