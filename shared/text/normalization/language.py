"""What a language brings to the rules: its tables, and how its numbers are spoken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

#: Longer runs of digits are read digit by digit.
LONGEST_NUMBER = 15


@dataclass(frozen=True)
class Noun:
    """What is counted.

    Attributes:
        one: After the number one.
        many: After any other.
        feminine: Its gender, for numbers that agree with it.
    """

    one: str
    many: str
    feminine: bool = False


@dataclass(frozen=True)
class Currency:
    """A currency and its hundredth; none for a currency that is not divided."""

    major: Noun
    minor: Noun | None = None


@dataclass(frozen=True)
class Number:
    """A number as written.

    Attributes:
        whole: Its digits before the decimal mark, grouping removed.
        fraction: Its digits after it.
        mark: The decimal mark.
        negative: Whether a minus sign is before it.
    """

    whole: str
    fraction: str = ""
    mark: str = ""
    negative: bool = False

    @property
    def is_one(self) -> bool:
        """Whether it is exactly one."""
        return self.whole == "1" and not self.fraction and not self.negative


class Language:
    """A language that nothing is known of but what ``num2words`` can do: the ground for the others.

    Subclasses override the tables; a rule whose table is empty never applies.
    """

    #: Which marks separate groups of three digits where one alone could be either.
    grouping: str = ",."
    #: Names of the letters, by capital letter.
    letters: ClassVar[Mapping[str, str]] = {}
    #: Single letters that are words.
    letter_words: ClassVar[str] = ""
    digits: ClassVar[tuple[str, ...]] = ()
    months: ClassVar[tuple[str, ...]] = ()
    month_abbreviations: ClassVar[Mapping[str, int]] = {}
    units: ClassVar[Mapping[str, Noun]] = {}
    currencies: ClassVar[Mapping[str, Currency]] = {}
    #: Words after an amount: "3 million dollars".
    scales: ClassVar[Mapping[str, str]] = {}
    #: Abbreviations with a point, without it; those in ``closing`` may end a sentence.
    abbreviations: ClassVar[Mapping[str, str]] = {}
    closing: ClassVar[frozenset[str]] = frozenset()
    #: Those that are read only before a number, and those that are written without a point.
    needs_number: ClassVar[frozenset[str]] = frozenset()
    without_point: ClassVar[frozenset[str]] = frozenset()
    #: Abbreviations that mean something else behind a name.
    streets: ClassVar[Mapping[str, str]] = {}
    #: Whether groups of three digits may be separated by spaces.
    groups_by_space: ClassVar[bool] = True
    #: Acronyms with a reading of their own; an empty one is read as a word.
    acronyms: ClassVar[Mapping[str, str]] = {}
    symbols: ClassVar[Mapping[str, str]] = {}
    fractions: ClassVar[Mapping[str, str]] = {}
    #: Words before a Roman numeral, and how it is read then: "ordinal" or "cardinal".
    roman_contexts: ClassVar[Mapping[str, str]] = {}
    minus: ClassVar[str] = ""
    to: ClassVar[str] = ""
    #: As `to`, in the ratio 3:1.
    ratio: ClassVar[str] = ""
    by: ClassVar[str] = ""
    percent: ClassVar[str] = ""
    permille: ClassVar[str] = ""
    of: ClassVar[str] = ""
    number_sign: ClassVar[str] = ""
    #: How parts of an address are read.
    address: ClassVar[Mapping[str, str]] = {}
    meridiem_forms: ClassVar[str] = r"[ap]\.?\s?m\b\.?"
    #: What may follow a time of day, as a pattern, and is not spoken once more.
    hour_words: ClassVar[str] = r"(?:h|hs|hrs)\b\.?"
    #: In a date: what may follow the day, and what may stand before month and year, as patterns.
    day_mark: ClassVar[str] = ""
    before_month: ClassVar[str] = ""
    before_year: ClassVar[str] = ""
    #: What makes a number an ordinal, as a pattern, and which of those is feminine.
    ordinal_mark: ClassVar[str] = ""
    feminine_mark: ClassVar[str] = "ª"

    def __init__(self, code: str, region: str = "") -> None:
        self.code = code
        self.region = region

    @property
    def day_first(self) -> bool:
        """Whether 3/4 is the third of April."""
        return True

    # -- numbers

    def cardinal(self, number: int, *, feminine: bool | None = None) -> str:
        """A whole number in words.

        Args:
            number: The number.
            feminine: Gender of the noun behind it; none if it stands alone.
        """
        return _num2words(self.code, self.region, number, "cardinal")

    def ordinal(self, number: int, *, feminine: bool = False) -> str:
        """A rank in words."""
        return self.by_library(number, "ordinal")

    def by_library(self, number: int, to: str) -> str:
        """What ``num2words`` says of a number; ``to`` is its name of the form."""
        return _num2words(self.code, self.region, number, to)

    def regnal(self, number: int, name: str) -> str:
        """The number of a king or a pope."""
        return self.cardinal(number)

    def year(self, number: int) -> str:
        """A year in words."""
        return self.cardinal(number)

    def digit_by_digit(self, text: str) -> str:
        """Digits one at a time."""
        names = self.digits or tuple(self.cardinal(digit) for digit in range(10))
        return " ".join(names[int(digit)] for digit in text)

    def fraction_digits(self, fraction: str) -> str:
        """What follows the decimal mark."""
        return self.digit_by_digit(fraction)

    def mark_word(self, mark: str) -> str:
        """The decimal mark in words."""
        spoken = _num2words(self.code, self.region, 1.5, "cardinal").split()
        return " ".join(spoken[1:-1])

    def number(self, number: Number, *, feminine: bool | None = None) -> str:
        """A number in words, with sign and decimals."""
        if len(number.whole) > LONGEST_NUMBER or (len(number.whole) > 1 and number.whole[0] == "0"):
            words = self.digit_by_digit(number.whole)
        else:
            words = self.cardinal(int(number.whole), feminine=None if number.fraction else feminine)
        if number.fraction:
            words += f" {self.mark_word(number.mark)} {self.fraction_digits(number.fraction)}"
        return f"{self.minus} {words}" if number.negative and self.minus else words

    def plain_number(self, number: Number, following: str) -> str:
        """A number in a text, given the word behind it."""
        return self.number(number)

    def parse(self, text: str) -> Number:
        """Tell grouping from decimals: ``1,234.5``, ``1.234,5``, ``1 234,5``."""
        negative = text[:1] in "-−"
        text = (
            text.lstrip("-−+").replace(" ", "").replace("\u00a0", "").replace("\u202f", "").replace("'", "")
        )
        marks = [character for character in text if character in ",."]
        if not marks:
            return Number(text, negative=negative)
        last = marks[-1]
        head, _, tail = text.rpartition(last)
        if len(set(marks)) == 1:
            groups = len(tail) == 3 and len(head) <= 3 and head[0] != "0" and last in self.grouping
            if len(marks) > 1 or groups:
                return Number(text.replace(last, ""), negative=negative)
        whole = head.replace(",", "").replace(".", "")
        return Number(whole, tail, last, negative)

    # -- what is built from numbers; a language without words for it leaves it to the numbers

    def coded_money(self, number: Number, code: str) -> str | None:
        """An amount of a currency that is known by its code alone, as ``num2words`` says it."""
        return _coded_money(self.code, number, code)

    def money(self, number: Number, currency: Currency, scale: str) -> str:
        """An amount."""
        noun = currency.major
        if scale:
            return f"{self.number(number)} {self._scaled(number, scale)} {self.of} {noun.many}".replace(
                "  ", " "
            )
        if currency.minor is None or not 0 < len(number.fraction) < 3:
            return self.counted(number, noun)
        cents = int(number.fraction.ljust(2, "0"))
        minor = self.counted(Number(str(cents)), currency.minor)
        if not int(number.whole):
            return minor
        major = self.counted(Number(number.whole, negative=number.negative), noun)
        return self.join_money(major, minor) if cents else major

    def _scaled(self, number: Number, scale: str) -> str:
        return self.scales[scale]

    def join_money(self, major: str, minor: str) -> str:
        """Whole and hundredths together."""
        return f"{major} {minor}"

    def counted(self, number: Number, noun: Noun) -> str:
        """A number and what is counted."""
        return f"{self.number(number, feminine=noun.feminine)} {noun.one if number.is_one else noun.many}"

    def time(self, hour: int, minute: int, second: int | None, meridiem: str) -> str | None:
        """A time of day; ``meridiem`` is ``a``, ``p`` or nothing."""
        return None

    def date(
        self, year: int | None, month: int, day: int | None, *, article: bool = False, before: str = ""
    ) -> str | None:
        """A date.

        Args:
            year: The year, where it is said.
            month: From 1.
            day: The day of the month, where it is said.
            article: Whether it is written with one.
            before: The word before it.
        """
        return None

    def simple_fraction(self, above: int, below: int) -> str | None:
        """Such as three quarters; none if it is not read so."""
        return None

    def mixed_fraction(self, whole: int, above: int, below: int) -> str | None:
        """Such as two and a half."""
        return None

    def decade(self, digits: str) -> str | None:
        """``1990s`` and ``90s``."""
        return None

    def spell(self, text: str) -> str:
        """Letters by their names, digits as digits, the rest left out."""
        spoken = []
        for character in text:
            if character.isdecimal() and character.isascii():
                spoken.append(self.digit_by_digit(character))
            elif character.isalnum():
                spoken.append(self.letters.get(character.upper(), character))
            elif character in self.address:
                spoken.append(self.address[character])
        return " ".join(spoken)


#: Codes of currencies by what else they are written as.
CURRENCY_CODES: Mapping[str, str] = {
    "€": "EUR", "$": "USD", "£": "GBP", "¥": "JPY", "EUR": "EUR", "USD": "USD", "GBP": "GBP", "JPY": "JPY",
    "CNY": "CNY", "CHF": "CHF", "PLN": "PLN", "SEK": "SEK", "NOK": "NOK", "RUB": "RUB", "₽": "RUB", "UAH": "UAH",
    "₴": "UAH",
}  # fmt: skip

#: Between whole and hundredths, so that the hundredths can be left out where there are none.
_SEPARATOR = "\x1f"

#: What ``num2words`` raises where it does not know a language, a form or a number of this size.
_UNKNOWN = (NotImplementedError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError)


@lru_cache(maxsize=4096)
def _coded_money(language: str, number: Number, code: str) -> str | None:
    """What ``num2words`` says, or nothing where it does not know the language's word for the currency."""
    import num2words

    converter = num2words.CONVERTER_CLASSES.get(language)
    if (
        code not in getattr(converter, "CURRENCY_FORMS", {})
        or len(number.fraction) > 2
        or len(number.whole) > LONGEST_NUMBER
        or number.negative
    ):
        return None
    cents = int(number.fraction.ljust(2, "0"))
    value = float(number.whole) + cents / 100
    more = {} if cents else {"separator": _SEPARATOR}
    try:
        spoken = str(num2words.num2words(value, lang=language, to="currency", currency=code, **more))
    except _UNKNOWN:
        return None
    return spoken.partition(_SEPARATOR)[0].strip()


@lru_cache(maxsize=4096)
def _num2words(code: str, region: str, number: float, to: str) -> str:
    """What ``num2words`` says, or the digits where it does not know the language or the form."""
    import num2words

    name = f"{code}_{region}" if f"{code}_{region}" in num2words.CONVERTER_CLASSES else code
    try:
        return str(num2words.num2words(number, lang=name, to=to)).strip() or str(number)
    except _UNKNOWN:
        return str(number)
