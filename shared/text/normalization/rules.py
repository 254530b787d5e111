"""How what is not a word is read: one rule for each kind of it, in order of precedence.

A rule is a pattern and a function that says what is spoken for a match, or that it is not its business. A
rule claims what it reads; later rules read the rest. The language's tables fill the patterns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from shared.text.normalization.language import CURRENCY_CODES, Language, Number

#: What is spoken, and optionally where the match ends instead; none if the rule does not apply.
Answer = str | tuple[str, int] | None

_TOP_LEVEL = "com|org|net|edu|gov|gob|info|io|ai|dev|app|es|mx|ar|co|cl|pe|uk|us|eu|de|fr|it|pt|br|tv|me"
_ROMAN = re.compile(r"M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})")
_ROMAN_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
_SPANISH_ENDINGS = (
    "er",
    "ero",
    "era",
    "ra",
    "ro",
    "do",
    "da",
    "to",
    "ta",
    "mo",
    "ma",
    "vo",
    "va",
    "no",
    "na",
)
_VOWELS = frozenset("AEIOUÁÉÍÓÚÜY")


@dataclass(frozen=True)
class Rule:
    """A pattern, and what is spoken for what it matches.

    Attributes:
        name: For messages and tests.
        pattern: What it is about.
        speak: Gives the spoken text, or nothing where the rule does not apply after all.
        digits: Whether it can only match where there are digits.
    """

    name: str
    pattern: re.Pattern[str]
    speak: Callable[[re.Match[str]], Answer]
    digits: bool = True


def rules_of(language: Language, normalize: Callable[[str], str]) -> list[Rule]:
    """The rules of a language, first come first served.

    Args:
        language: Its tables.
        normalize: Reads a part of a match in turn.
    """
    return _Rules(language, normalize).all()


class _Rules:
    """Builds the patterns from a language's tables."""

    def __init__(self, language: Language, normalize: Callable[[str], str]) -> None:
        self.language = language
        self.normalize = normalize
        spaces = r"|\d{1,3}(?:\x20\d{3})+(?![\d])(?:[.,]\d+)?" if language.groups_by_space else ""
        self.number = rf"(?:\d{{1,3}}(?:[.,]\d{{3}})+(?![\d])(?:[.,]\d+)?{spaces}|\d+(?:[.,]\d+)?)"
        self.units = _either(language.units)
        self.currencies = _either(language.currencies)
        self.scales = _either(language.scales)
        self.months = _either([*language.months, *language.month_abbreviations])

    def all(self) -> list[Rule]:
        """Every rule that this language has words for, in order."""
        makers = [
            self.addresses, self.dates, self.written_dates, self.times, self.decades, self.amounts, self.telephones,
            self.ranges, self.percents, self.measures, self.ordinals, self.numbered, self.fractions, self.sums,
            self.romans, self.abbreviations, self.mixed, self.acronyms, self.numbers, self.initials, self.signs,
        ]  # fmt: skip
        return [rule for maker in makers for rule in maker()]

    def rule(
        self,
        name: str,
        pattern: str,
        speak: Callable[[re.Match[str]], Answer],
        *,
        flags: int = 0,
        digits: bool = True,
    ) -> Rule:
        return Rule(name, re.compile(pattern, flags), speak, digits)

    # -- addresses

    def addresses(self) -> Iterable[Rule]:
        if not self.language.address:
            return
        mail = r"[\w.+-]{1,64}@\w[\w-]*(?:\.\w[\w-]*)+"
        web = r"(?:https?://|www\.)[^\s<>\"«»]*[\w/]"
        domain = rf"(?:[a-zA-Z0-9][\w-]*\.)+(?:{_TOP_LEVEL})(?:/[^\s<>\"«»]*[\w/]|/)?(?![\w@])"
        yield self.rule("address", rf"(?<![\w@.])(?:{mail}|{web}|{domain})", self._address, digits=False)

    def _address(self, match: re.Match[str]) -> Answer:
        text = re.sub(r"^https?://", "", match.group()).rstrip("/")
        words = []
        for part in re.findall(r"\d+|[^\W\d_]+|.", text):
            if part.isdecimal():
                words.append(self._digits_or_number(part))
            elif part in self.language.address:
                words.append(self.language.address[part])
            elif part[0].isalpha():
                spelled = len(part) < 4 and not _VOWELS & set(part.upper())
                words.append(self.language.spell(part) if spelled else part)
        return " ".join(words)

    # -- dates and times

    def dates(self) -> Iterable[Rule]:
        yield self.rule("ISO date", r"(?<![\w/-])(\d{4})-(\d{2})-(\d{2})(?![\w/-])", self._iso_date)
        yield self.rule(
            "date", r"(?<![\w/.-])(\d{1,2})([/.-])(\d{1,2})\2(\d{4}|\d{2})(?![\w/-]|\.\d)", self._date
        )

    def _iso_date(self, match: re.Match[str]) -> Answer:
        year, month, day = map(int, match.groups())
        return self.language.date(year, month, day, before=_word_before(match))

    def _date(self, match: re.Match[str]) -> Answer:
        first, second, year = int(match[1]), int(match[3]), int(match[4])
        if len(match[4]) == 2:
            if match[2] != "/":
                return None
            year += 1900 if year > 50 else 2000
        day, month = (first, second) if self.language.day_first else (second, first)
        if month > 12:
            day, month = month, day
        return self.language.date(year, month, day, before=_word_before(match))

    def written_dates(self) -> Iterable[Rule]:
        if not self.months:
            return
        language = self.language
        if language.code != "en":
            of_year = rf"(?:,?\s{language.before_year}(\d{{4}})\b)?"
            point = rf"(?:\.(?=,?\s{language.before_year}\d))?"
            yield self.rule(
                "date in words",
                rf"(?<![\w/.,-])(\d{{1,2}}){language.day_mark}\s{language.before_month}({self.months})\b{point}{of_year}",
                lambda m: language.date(_int(m[3]), self._month(m[2]), int(m[1]), before=_word_before(m)),
                flags=re.IGNORECASE,
            )
            return
        year = r"(?:,?\s(\d{4})\b)?"
        yield self.rule(
            "month and day",
            rf"\b({self.months})\b\.?\s(\d{{1,2}})(?:st|nd|rd|th)?\b(?![:.,/]\d){year}",
            lambda m: self.language.date(_int(m[3]), self._month(m[1]), int(m[2])),
        )
        yield self.rule(
            "day and month",
            rf"(?<![\w/.,-])(?:[Tt]he\s)?(\d{{1,2}})(?:st|nd|rd|th)?\s(?:of\s)?({self.months})\b(?:\.(?=,?\s\d))?{year}",
            lambda m: self.language.date(_int(m[3]), self._month(m[2]), int(m[1]), article=True),
        )
        yield self.rule(
            "month and year",
            rf"\b({self.months})\b\.?,?\s(\d{{4}})\b",
            lambda m: self.language.date(int(m[2]), self._month(m[1]), None),
        )

    def _month(self, name: str) -> int:
        language = self.language
        for index, month in enumerate(language.months, 1):
            if month.lower() == name.lower():
                return index
        lowered = {short.lower(): index for short, index in language.month_abbreviations.items()}
        return lowered.get(name.lower(), 0)

    def times(self) -> Iterable[Rule]:
        meridiem = rf"(?:\s?({self.language.meridiem_forms}))"
        yield self.rule(
            "time",
            rf"(?<![\w:.,])(\d{{1,2}}):([0-5]\d)(?::([0-5]\d))?(?![\d:])(?:{meridiem}|\s?{self.language.hour_words})?",
            self._time,
            flags=re.IGNORECASE,
        )
        yield self.rule(
            "hour", rf"(?<![\w:.,])(\d{{1,2}})()(){meridiem}(?!\w)", self._time, flags=re.IGNORECASE
        )

    def _time(self, match: re.Match[str]) -> Answer:
        half = (match[4] or "")[:1].lower()
        if half and int(match[1]) > 12:
            half = ""
        spoken = self.language.time(int(match[1]), int(match[2] or 0), _int(match[3]), half)
        return None if spoken is None else _before_closing_point(match, spoken)

    # -- money and measures

    def amounts(self) -> Iterable[Rule]:
        if not self.currencies:
            yield from self.coded_amounts()
            return
        scale = rf"(?:\s?({self.scales})\b)?" if self.scales else "()"
        yield self.rule(
            "amount",
            rf"(?<![\w])([-−]?)({self.currencies})\s?({self.number}){scale}(?!\w|[.,]\d)",
            lambda m: self._money(m[1] + m[3], m[2], m[4]),
        )
        of = rf"(?:\s?{self.language.of})?" if self.language.of else ""
        yield self.rule(
            "amount",
            rf"(?<![\w.,])([-−]?{self.number})(?:{scale}{of})?\s?({self.currencies})(?!\w)",
            lambda m: self._money(m[1], m[3], m[2]),
        )

    def _money(self, number: str, currency: str, scale: str | None) -> str:
        parsed = self.language.parse(number)
        return self.language.money(parsed, self.language.currencies[currency], scale or "")

    def coded_amounts(self) -> Iterable[Rule]:
        """Amounts of a language that has no table of currencies: ``num2words`` may have one."""
        codes = _either(CURRENCY_CODES)

        def speak(number: str, written: str) -> Answer:
            return self.language.coded_money(self.language.parse(number), CURRENCY_CODES[written])

        yield self.rule(
            "amount", rf"(?<![\w])({codes})\s?({self.number})(?!\w|[.,]\d)", lambda m: speak(m[2], m[1])
        )
        yield self.rule(
            "amount", rf"(?<![\w.,])({self.number})\s?({codes})(?!\w)", lambda m: speak(m[1], m[2])
        )

    def ranges(self) -> Iterable[Rule]:
        if not self.language.to:
            return
        suffix = rf"(?:\s?(?:%|{self.units or '%'}|{self.currencies or '%'})(?!\w))?"
        yield self.rule(
            "range",
            rf"(?<![\w.,/-])({self.number})(?:[-–—]|\s[-–—]\s)({self.number}{suffix})(?![\w]|[-–/.,]\d)",
            lambda m: f"{self._bare(m[1])} {self.language.to} {self.normalize(m[2])}",
        )
        yield self.rule(
            "ratio",
            r"(?<![\w:.,])(\d{1,4}):(\d{1,4})(?![\w:])",
            lambda m: f"{self._bare(m[1])} {self.language.ratio or self.language.to} {self._bare(m[2])}",
        )

    def _bare(self, number: str) -> str:
        return self.language.plain_number(self.language.parse(number), "")

    def percents(self) -> Iterable[Rule]:
        if self.language.percent:
            yield self.rule(
                "percent",
                rf"(?<![\w.,])((?:(?<!\d)[-−])?{self.number})\s?([%‰])",
                lambda m: " ".join(
                    [
                        self.language.number(self.language.parse(m[1])),
                        self.language.percent if m[2] == "%" else self.language.permille,
                    ]
                ),
            )

    def measures(self) -> Iterable[Rule]:
        if self.units:
            yield self.rule(
                "measure",
                rf"(?<![\w.,])((?:(?<!\d)[-−])?{self.number})\s?({self.units})(?![\w²³/°'’])",
                self._measure,
            )

    def _measure(self, match: re.Match[str]) -> Answer:
        noun = self.language.units[match[2]]
        return self.language.counted(self.language.parse(match[1]), noun)

    # -- numbers of other kinds

    def telephones(self) -> Iterable[Rule]:
        shapes = [
            r"\+\d{1,3}(?:[\s.-]?\(?\d{1,5}\)?){2,5}",
            r"\(\d{2,4}\)\s?\d{3,4}[\s.-]?\d{3,4}",
            r"1-\d{3}-\d{3}-\d{4}",
            r"\d{3}[.\s-]\d{3}[.\s-]\d{4}",
            r"\d{3}-\d{4}",
        ]
        if self.language.groups_by_space:
            shapes += [
                r"[679]\d{2}[\s.-]\d{3}[\s.-]\d{3}",
                r"[679]\d{2}(?:[\s.-]\d{2}){3}",
                r"\d{2}[\s-]\d{4}[\s-]\d{4}",
            ]
            shapes += [r"[679]\d{8}"]
        yield self.rule(
            "telephone", rf"(?<![\w.,+/-])(?:{'|'.join(shapes)})(?![\w]|[-/.,]\d)", self._telephone
        )

    def _telephone(self, match: re.Match[str]) -> Answer:
        groups = re.findall(r"\d+", match.group())
        if not 7 <= sum(map(len, groups)) <= 15:
            return None
        if len(groups) == 1 and not match.group().startswith("+"):
            groups = [groups[0][at : at + 3] for at in range(0, len(groups[0]), 3)]
        spoken = ", ".join(map(self.language.digit_by_digit, groups))
        plus = self.language.symbols.get("+", "")
        return f"{plus} {spoken}".strip() if match.group()[0] == "+" else spoken

    def decades(self) -> Iterable[Rule]:
        if self.language.code == "en":
            yield self.rule(
                "decade",
                r"(?<![\w.,])(?:['’]|(?<=the\s))?((?:(?<=['’])|(?<=the\s))[2-9]0|1\d\d0|20\d0)['’]?s\b",
                lambda m: self.language.decade(m[1]),
            )

    def ordinals(self) -> Iterable[Rule]:
        if self.language.code == "en":
            yield self.rule(
                "ordinal",
                r"(?<![\w.,])(\d{1,3}(?:,\d{3})+|\d+)(?:st|nd|rd|th)\b",
                lambda m: self._ordinal(m[1].replace(",", "")),
                flags=re.IGNORECASE,
            )
        if self.language.code == "es":
            endings = "|".join(rf"{ending}\b" for ending in _SPANISH_ENDINGS)
            yield self.rule(
                "ordinal", rf"(?<![\w.,])(\d{{1,3}})\s?\.?\s?(º|ª|{endings})", self._spanish_ordinal
            )

        if self.language.ordinal_mark:
            yield self.rule(
                "ordinal",
                rf"(?<![\w.,])(\d{{1,4}})({self.language.ordinal_mark})(?!\w)",
                lambda m: self.language.ordinal(
                    int(m[1]), feminine=bool(re.search(self.language.feminine_mark, m[2]))
                ),
            )

    def _ordinal(self, digits: str) -> Answer:
        return self.language.ordinal(int(digits)) if len(digits) < 13 else None

    def _spanish_ordinal(self, match: re.Match[str]) -> Answer:
        number = int(match[1])
        if match[2][0] in "rdtmvn" and re.search(r"\s", match.group()):
            return None
        spoken = self.language.ordinal(number, feminine=match[2][-1] in "ªa")
        return spoken[:-1] if match[2] == "er" and spoken.endswith(("primero", "tercero")) else spoken

    def numbered(self) -> Iterable[Rule]:
        if self.language.number_sign:
            yield self.rule(
                "numbered",
                r"(?<!\w)#\s?(\d+)\b",
                lambda m: f"{self.language.number_sign} {self._digits_or_number(m[1])}",
            )
            yield self.rule("hashtag", r"(?<!\w)#(?=[^\W\d])", lambda m: "hashtag", digits=False)

    def fractions(self) -> Iterable[Rule]:
        vulgar = "".join(self.language.fractions)
        if not vulgar:
            return
        yield self.rule(
            "vulgar fraction", rf"(?:(?<!\d)(\d{{1,4}})\s?)?([{vulgar}])", self._vulgar, digits=False
        )
        yield self.rule(
            "mixed fraction",
            r"(?<![\w.,/])(\d{1,4})\s(\d{1,2})/(\d{1,3})(?![\w/]|[.,]\d)",
            lambda m: self.language.mixed_fraction(int(m[1]), int(m[2]), int(m[3])),
        )
        yield self.rule("fraction", r"(?<![\w.,/])(\d{1,4})/(\d{1,4})(?![\w/]|[.,]\d)", self._fraction)

    def _vulgar(self, match: re.Match[str]) -> Answer:
        above, below = map(int, self.language.fractions[match[2]].split("/"))
        if match[1]:
            return self.language.mixed_fraction(int(match[1]), above, below)
        return self.language.simple_fraction(above, below)

    def _fraction(self, match: re.Match[str]) -> Answer:
        above, below = int(match[1]), int(match[2])
        spoken = self.language.simple_fraction(above, below)
        return spoken or f"{self._bare(match[1])} {self._bare(match[2])}"

    def sums(self) -> Iterable[Rule]:
        if self.language.by:
            yield self.rule(
                "dimensions",
                rf"(?<![\w.,])({self.number})\s?[x×]\s?(?={self.number})",
                lambda m: f"{self._bare(m[1])} {self.language.by}",
            )
            yield self.rule(
                "plus or minus",
                rf"(?<![\w.,])({self.number})\s?([+±÷]|\s[-−]\s|=)\s?(?={self.number})",
                lambda m: f"{self._bare(m[1])} {self._operator(m[2].strip())}",
            )

    def _operator(self, sign: str) -> str:
        return self.language.minus if sign in "-−" else self.language.symbols[sign]

    def romans(self) -> Iterable[Rule]:
        contexts = self.language.roman_contexts
        if contexts:
            yield self.rule(
                "Roman numeral",
                r"(?<=\w\s)(?<!\w)([IVXLCDM]+)\b(?![.'’]\w)",
                self._roman,
                digits=False,
            )

    def _roman(self, match: re.Match[str]) -> Answer:
        before = re.search(r"(\w+)\s$", match.string[max(0, match.start() - 24) : match.start()])
        kind = self.language.roman_contexts.get(before[1]) if before else None
        if kind is None or not _ROMAN.fullmatch(match[1]):
            return None
        if match[1] in self.language.letter_words and kind == "ordinal" and _goes_on(match):
            return None
        values = [_ROMAN_VALUES[letter] for letter in match[1]]
        number = sum(-v if v < w else v for v, w in zip(values, [*values[1:], 0], strict=True))
        if kind == "cardinal":
            return self.language.cardinal(number)
        assert before is not None  # noqa: S101 (kind came from it)
        return self.language.regnal(number, before[1])

    # -- letters

    def abbreviations(self) -> Iterable[Rule]:
        language = self.language
        if not language.abbreviations:
            return
        pointed = _either(a for a in language.abbreviations if a not in language.without_point)
        bare = _either(language.without_point)
        yield self.rule("abbreviation", rf"(?<![\w.])({pointed})\.(?!\w)", self._abbreviation, digits=False)
        if bare:
            yield self.rule(
                "abbreviation",
                rf"(?<![\w.])({bare})(?!\w)\.?",
                lambda m: language.abbreviations[m[1]],
                digits=False,
            )

    def _abbreviation(self, match: re.Match[str]) -> Answer:
        language = self.language
        if match[1] in language.needs_number and not re.match(
            r"\s?\d", match.string[match.end() : match.end() + 2]
        ):
            return None
        if (
            len(match[1]) == 1
            and match[1].isupper()
            and not re.match(r"\s[A-ZÁÉÍÓÚÑ]\w", match.string[match.end() : match.end() + 3])
        ):
            return None
        street = language.streets.get(match[1])
        if street and re.search(r"[A-Z]\w+\s$", match.string[max(0, match.start() - 24) : match.start()]):
            return _before_closing_point(match, street)
        spoken = language.abbreviations[match[1]]
        return _before_closing_point(match, spoken) if match[1] in language.closing else spoken

    def mixed(self) -> Iterable[Rule]:
        if self.language.letters:
            yield self.rule(
                "letters and digits",
                r"(?<![\w])(?=[^\W_]*\d)(?=[^\W_]*[^\W\d_])[^\W_]+(?!\w)",
                self._mixed,
            )

    def _mixed(self, match: re.Match[str]) -> Answer:
        if len(match.group()) > 40:
            return None
        words = []
        for part in re.findall(r"\d+|[^\W\d]+", match.group()):
            if part.isdecimal():
                words.append(self._digits_or_number(part))
            elif part.isupper() or len(part) == 1:
                words.append(self._acronym_word(part))
            else:
                words.append(part)
        return " ".join(words)

    def _digits_or_number(self, digits: str) -> str:
        if not digits.isascii() or len(digits) > 4 or (len(digits) > 1 and digits[0] == "0"):
            return self.language.digit_by_digit("".join(str(int(digit)) for digit in digits))
        return self.language.plain_number(Number(digits), "")

    def acronyms(self) -> Iterable[Rule]:
        language = self.language
        if not language.letters:
            return
        yield self.rule(
            "dotted acronym",
            r"(?<![\w.])(?:[A-ZÑ]\.){1,5}[A-ZÑ]\.(?!\w)",
            lambda m: _before_closing_point(m, language.spell(re.sub(r"[.\s]", "", m.group()))),
            digits=False,
        )
        yield self.rule(
            "acronym", r"(?<![\w.])([A-ZÁÉÍÓÚÜÑ]{2,}|PhD)(['’]?s)?(?![\w])", self._acronym, digits=False
        )

    def _acronym(self, match: re.Match[str]) -> Answer:
        word = match[1]
        plural = bool(match[2])
        if word in self.language.acronyms:
            spoken = self.language.acronyms[word]
            return f"{spoken}s" if spoken and plural else spoken or None
        if _shouted(match) or self._is_pronounceable(word):
            return None
        return self.language.spell(word) + ("s" if plural else "")

    def _acronym_word(self, letters: str) -> str:
        if letters in self.language.acronyms or self._is_pronounceable(letters):
            return self.language.acronyms.get(letters) or letters
        return self.language.spell(letters)

    def _is_pronounceable(self, word: str) -> bool:
        """Whether an acronym without an entry is read as a word: long, with vowels in between."""
        if len(word) < 4:
            return False
        clusters = re.findall(r"[^AEIOUÁÉÍÓÚÜY]+", word)
        vowels = len(word) - sum(map(len, clusters))
        longest = max(map(len, clusters), default=0)
        return vowels >= len(word) / 3 and (longest < 3 if len(word) < 6 else longest < 4)

    def initials(self) -> Iterable[Rule]:
        language = self.language
        if not language.letters:
            return
        yield self.rule(
            "initial",
            r"(?<![\w.])([A-ZÑ])\.(?=\s?[A-ZÁÉÍÓÚÑ][\w.])",
            lambda m: language.letters[m[1]] if m[1] not in language.letter_words or _is_initial(m) else None,
            digits=False,
        )
        consonants = "".join(letter for letter in language.letters if letter not in language.letter_words)
        yield self.rule(
            "letter",
            rf"(?<![\w'’.])([{consonants}])(?![\w'’&]|\.\S)",
            lambda m: language.letters[m[1]],
            digits=False,
        )

    # -- what is left

    def numbers(self) -> Iterable[Rule]:
        yield self.rule(
            "number",
            rf"(?:(?<![\w)])[-−])?({self.number})(?!\d)(?=(?:\s([^\W\d_]+))?)",
            self._number,
        )

    def _number(self, match: re.Match[str]) -> Answer:
        number = self.language.parse(match.group())
        return self.language.plain_number(number, (match[2] or "").lower())

    def signs(self) -> Iterable[Rule]:
        signs = {s: word for s, word in self.language.symbols.items() if s not in "+=<>"}
        if signs:
            yield self.rule(
                "sign",
                rf"[{re.escape(''.join(signs))}]",
                lambda m: self.language.symbols[m.group()],
                digits=False,
            )
            yield self.rule(
                "operator",
                r"(?<=\s)[+=<>](?=\s)|(?<!\S)[+](?=\d)|[+=](?=\d)|(?<=\d)[+]",
                lambda m: self.language.symbols.get(m.group()),
                digits=False,
            )


def _either(words: Iterable[str] | Mapping[str, object]) -> str:
    """A pattern for any of some words, longest first."""
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


def _word_before(match: re.Match[str]) -> str:
    found = re.search(r"(\w+)\s$", match.string[max(0, match.start() - 24) : match.start()])
    return found[1] if found else ""


def _int(text: str | None) -> int | None:
    return int(text) if text else None


def _before_closing_point(match: re.Match[str], spoken: str) -> Answer:
    """Leave the point of an abbreviation to the sentence that it ends."""
    if not match.group().endswith(".") or _goes_on(match):
        return spoken
    return spoken, match.end() - 1


def _goes_on(match: re.Match[str]) -> bool:
    """Whether the sentence goes on behind a match: a small letter, a digit or a mark comes next."""
    following = match.string[match.end() : match.end() + 3].lstrip(" ")
    return bool(following) and not following[0].isupper() and following[0] not in '¿¡"“«(\n'


def _is_initial(match: re.Match[str]) -> bool:
    """Whether a letter and a point are of a name: it begins the text, or a name or an initial is before it."""
    before = match.string[max(0, match.start() - 24) : match.start()].split()
    return (
        not before
        or (before[-1][0].isupper() and not before[-1].endswith((".", "?", "!")))
        or len(before[-1]) == 2
    )


def _shouted(match: re.Match[str]) -> bool:
    """Whether a word in capitals stands among others: the writer shouts."""
    text = match.string
    before = re.search(r"(\w+)\W+$", text[max(0, match.start() - 24) : match.start()])
    after = re.match(r"\W+(\w+)", text[match.end() : match.end() + 24])
    return any(
        neighbour is not None and len(neighbour[1]) > 2 and neighbour[1].isupper() and neighbour[1].isalpha()
        for neighbour in (before, after)
    )
