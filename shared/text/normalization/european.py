"""French, German, Italian and Portuguese: small tables, and the rest as ``num2words`` says it.

Numbers, money and ordinals are the library's. What it lacks is here: dates, times, signs, common units, and how
an ordinal agrees with what it stands before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from shared.text.normalization.language import Currency, Language, Noun, Number


class _European(Language):
    """What the four have in common: the day first, months without capitals, a word for one before a noun."""

    grouping = ".,"
    #: The number one before a noun, where it is another word than when it stands alone.
    one: ClassVar[str] = ""
    #: Before the month and before the year of a date.
    of: ClassVar[str] = ""
    #: What a time of day counts.
    hour: ClassVar[Noun]
    #: Between hours and minutes.
    and_minutes: ClassVar[str] = ""

    def counted(self, number: Number, noun: Noun) -> str:
        """See `Language.counted`."""
        return f"{self.one} {noun.one}" if self.one and number.is_one else super().counted(number, noun)

    def time(self, hour: int, minute: int, second: int | None, meridiem: str) -> str | None:
        """See `Language.time`; seconds are left to the numbers."""
        if hour > 24 or second is not None or meridiem:
            return None
        words = [self.counted(Number(str(hour)), self.hour).strip()]
        return " ".join([*words, *([self.and_minutes, self.cardinal(minute)] if minute else [])]).replace(
            "  ", " "
        )

    def day(self, number: int, before: str) -> str:
        """The day of a month; ``before`` is the word before it."""
        return self.ordinal(1) if number == 1 else self.cardinal(number)

    def date(
        self, year: int | None, month: int, day: int | None, *, article: bool = False, before: str = ""
    ) -> str | None:
        """See `Language.date`."""
        if not 1 <= month <= 12 or day is None or not 1 <= day <= 31:
            return None
        words = [self.day(day, before), self.of, self.months[month - 1]]
        if year is not None:
            words += [self.of, self.year(year)]
        return " ".join(word for word in words if word)


class French(_European):
    """*Le premier mars deux mille vingt-quatre*, *dix heures trente*, *cinq euros et cinquante centimes*."""

    months = (
        "janvier", "février", "mars", "avril", "mai", "juin", "juillet", "août", "septembre", "octobre", "novembre",
        "décembre",
    )  # fmt: skip
    day_mark = r"(?:\s?er)?"
    ordinal_mark = r"\s?(?:ers?|res?|ères?|e|es|ème|èmes|eme|nd|nde|nds)"
    feminine_mark = r"(?:re|ère|nde)s?$"
    hour = Noun("heure", "heures", feminine=True)
    minus, to, percent, permille, ratio = "moins", "à", "pour cent", "pour mille", "à"
    symbols: ClassVar[Mapping[str, str]] = {
        "&": "et", "+": "plus", "=": "égale", "@": "arobase", "<": "inférieur à", ">": "supérieur à",
    }  # fmt: skip
    units: ClassVar[Mapping[str, Noun]] = {
        "km/h": Noun("kilomètre par heure", "kilomètres par heure"), "km": Noun("kilomètre", "kilomètres"),
        "m²": Noun("mètre carré", "mètres carrés"), "m": Noun("mètre", "mètres"),
        "cm": Noun("centimètre", "centimètres"),
        "mm": Noun("millimètre", "millimètres"),
        "kg": Noun("kilogramme", "kilogrammes"), "g": Noun("gramme", "grammes"),
        "l": Noun("litre", "litres"), "°C": Noun("degré Celsius", "degrés Celsius"), "°": Noun("degré", "degrés"),
    }  # fmt: skip

    def counted(self, number: Number, noun: Noun) -> str:
        """*Une heure*, *vingt et une heures*: one agrees with its noun."""
        spoken = super().counted(number, noun)
        words = self.number(number)
        return f"{words}e{spoken.removeprefix(words)}" if noun.feminine and words.endswith("un") else spoken

    def ordinal(self, number: int, *, feminine: bool = False) -> str:
        """See `Language.ordinal`."""
        if feminine and number in (1, 2):
            return "première" if number == 1 else "seconde"
        return super().ordinal(number)


class German(_European):
    """*Am fünfzehnten März*, *zehn Uhr dreißig*, *fünf Euro und fünfzig Cent*; an ordinal alone is ambiguous."""

    months = (
        "Januar", "Februar", "März", "April", "Mai", "Juni", "Juli", "August", "September", "Oktober", "November",
        "Dezember",
    )  # fmt: skip
    day_mark = r"\."
    hour = Noun("Uhr", "Uhr")
    hour_words = r"(?:Uhr|h)\b"
    one = "ein"
    minus, to, percent, permille, ratio = "minus", "bis", "Prozent", "Promille", "zu"
    symbols: ClassVar[Mapping[str, str]] = {
        "&": "und", "+": "plus", "=": "gleich", "@": "at", "<": "kleiner als", ">": "größer als",
    }  # fmt: skip
    units: ClassVar[Mapping[str, Noun]] = {
        "km/h": Noun("Kilometer pro Stunde", "Kilometer pro Stunde"), "km": Noun("Kilometer", "Kilometer"),
        "m²": Noun("Quadratmeter", "Quadratmeter"), "m": Noun("Meter", "Meter"), "cm": Noun("Zentimeter", "Zentimeter"),
        "mm": Noun("Millimeter", "Millimeter"), "kg": Noun("Kilogramm", "Kilogramm"), "g": Noun("Gramm", "Gramm"),
        "l": Noun("Liter", "Liter"), "°C": Noun("Grad Celsius", "Grad Celsius"), "°": Noun("Grad", "Grad"),
    }  # fmt: skip
    #: Behind these a day is *fünfzehnten*, behind *der* it is *fünfzehnte*.
    _oblique = frozenset(["am", "vom", "zum", "dem", "den", "des", "ab", "bis", "seit", "im", "beim"])

    def day(self, number: int, before: str) -> str:
        """See `_European.day`."""
        ending = "n" if before.lower() in self._oblique else "" if before.lower() in ("der", "die") else "r"
        return self.ordinal(number) + ending

    def plain_number(self, number: Number, following: str) -> str:
        """Four digits without a point are read in hundreds, as years are."""
        if len(number.whole) == 4 and not number.fraction and 1100 <= int(number.whole) <= 1999:
            return " ".join([*([self.minus] if number.negative else []), self.year(int(number.whole))])
        return self.number(number)

    def year(self, number: int) -> str:
        """*Neunzehnhundertneunundneunzig*, *zweitausendvierundzwanzig*."""
        return self.by_library(number, "year")


class Italian(_European):
    """*Il primo marzo duemilaventiquattro*, *le dieci e trenta*, *cinque euro e cinquanta centesimi*."""

    months = (
        "gennaio", "febbraio", "marzo", "aprile", "maggio", "giugno", "luglio", "agosto", "settembre", "ottobre",
        "novembre", "dicembre",
    )  # fmt: skip
    day_mark = r"\s?[º°]?"
    ordinal_mark = r"\s?[º°ª]"
    and_minutes = "e"
    one = "un"
    minus, to, percent, permille, ratio = "meno", "a", "per cento", "per mille", "a"
    symbols: ClassVar[Mapping[str, str]] = {
        "&": "e", "+": "più", "=": "uguale", "@": "chiocciola", "<": "minore di", ">": "maggiore di",
    }  # fmt: skip
    units: ClassVar[Mapping[str, Noun]] = {
        "km/h": Noun("chilometro all'ora", "chilometri all'ora"), "km": Noun("chilometro", "chilometri"),
        "m²": Noun("metro quadrato", "metri quadrati"), "m": Noun("metro", "metri"),
        "cm": Noun("centimetro", "centimetri"),
        "mm": Noun("millimetro", "millimetri"), "kg": Noun("chilogrammo", "chilogrammi"), "g": Noun("grammo", "grammi"),
        "l": Noun("litro", "litri"), "°C": Noun("grado Celsius", "gradi Celsius"), "°": Noun("grado", "gradi"),
    }  # fmt: skip

    def ordinal(self, number: int, *, feminine: bool = False) -> str:
        """See `Language.ordinal`."""
        spoken = super().ordinal(number)
        return f"{spoken[:-1]}a" if feminine and spoken.endswith("o") else spoken

    def time(self, hour: int, minute: int, second: int | None, meridiem: str) -> str | None:
        """*Dieci e trenta*; the hour is named by its number alone."""
        if hour > 24 or second is not None or meridiem:
            return None
        return f"{self.cardinal(hour)} e {self.cardinal(minute)}" if minute else self.cardinal(hour)


class Portuguese(_European):
    """*Quinze de março de dois mil e vinte e quatro*, *dez horas e trinta*; *dezesseis* in ``pt-BR``."""

    months = (
        "janeiro", "fevereiro", "março", "abril", "maio", "junho", "julho", "agosto", "setembro", "outubro", "novembro",
        "dezembro",
    )  # fmt: skip
    day_mark = r"\s?(?:\.?º|°)?"
    before_month = r"(?:de\s)?"
    before_year = r"(?:de\s)?"
    ordinal_mark = r"\s?\.?[ºª]"
    of = "de"
    hour = Noun("hora", "horas", feminine=True)
    and_minutes = "e"
    minus, to, percent, permille, ratio = "menos", "a", "por cento", "por mil", "para"
    symbols: ClassVar[Mapping[str, str]] = {
        "&": "e", "+": "mais", "=": "igual a", "@": "arroba", "<": "menor que", ">": "maior que",
    }  # fmt: skip
    # num2words knows no reais beside euros.
    _euro = Currency(Noun("euro", "euros"), Noun("cêntimo", "cêntimos"))
    _real = Currency(Noun("real", "reais"), Noun("centavo", "centavos"))
    _dollar = Currency(Noun("dólar", "dólares"), Noun("cêntimo", "cêntimos"))
    currencies: ClassVar[Mapping[str, Currency]] = {
        "€": _euro, "EUR": _euro, "R$": _real, "BRL": _real, "US$": _dollar, "$": _dollar, "USD": _dollar,
        "£": Currency(Noun("libra", "libras", feminine=True), Noun("péni", "pence")),
    }  # fmt: skip
    units: ClassVar[Mapping[str, Noun]] = {
        "km/h": Noun("quilómetro por hora", "quilómetros por hora"), "km": Noun("quilómetro", "quilómetros"),
        "m²": Noun("metro quadrado", "metros quadrados"), "m": Noun("metro", "metros"),
        "cm": Noun("centímetro", "centímetros"), "mm": Noun("milímetro", "milímetros"),
        "kg": Noun("quilograma", "quilogramas"), "g": Noun("grama", "gramas"), "l": Noun("litro", "litros"),
        "°C": Noun("grau Celsius", "graus Celsius"), "°": Noun("grau", "graus"),
    }  # fmt: skip

    def counted(self, number: Number, noun: Noun) -> str:
        """*Uma hora*, *duas horas*: one and two agree with their noun."""
        spoken = super().counted(number, noun)
        if not noun.feminine:
            return spoken
        words = self.number(number)
        agreed = {"um": "uma", "dois": "duas"}.get(words.rpartition(" ")[2])
        return (
            f"{words.rpartition(' ')[0]} {agreed}{spoken.removeprefix(words)}".strip() if agreed else spoken
        )

    def join_money(self, major: str, minor: str) -> str:
        """See `Language.join_money`."""
        return f"{major} e {minor}"

    def ordinal(self, number: int, *, feminine: bool = False) -> str:
        """See `Language.ordinal`; each of its words agrees."""
        spoken = super().ordinal(number)
        if not feminine:
            return spoken
        return " ".join(f"{word[:-1]}a" if word.endswith("o") else word for word in spoken.split())

    def day(self, number: int, before: str) -> str:
        """*Primeiro de maio* in Brazil, *um de maio* elsewhere."""
        return super().day(number, before) if self.region == "BR" else self.cardinal(number)
