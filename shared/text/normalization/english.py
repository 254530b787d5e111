"""English."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from shared.text.normalization.language import Currency, Language, Noun, Number

_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["", "", *["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]]
_SCALES = ["", "thousand", "million", "billion", "trillion"]
_ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip
_DENOMINATORS = {
    2: "half",
    3: "third",
    4: "quarter",
    5: "fifth",
    6: "sixth",
    8: "eighth",
    10: "tenth",
    16: "sixteenth",
    32: "thirty-second",
    100: "hundredth",
}
#: Words that a year may be followed by: it is no number of them.
_NOT_COUNTED = frozenset(["is", "was", "has", "does", "as", "this", "its", "his", "across"])
_COUNTED = frozenset(["people", "men", "women", "children"])
_DAY_FIRST = frozenset(["GB", "UK", "AU", "NZ", "IE", "IN", "ZA"])


def _below_thousand(number: int) -> str:
    hundreds, rest = divmod(number, 100)
    words = [f"{_ONES[hundreds]} hundred"] if hundreds else []
    if 0 < rest < 20:
        words.append(_ONES[rest])
    elif rest:
        tens, ones = divmod(rest, 10)
        words.append(_TENS[tens] + (f"-{_ONES[ones]}" if ones else ""))
    return " ".join(words)


class English(Language):
    """English, American unless the region says otherwise."""

    grouping = ","
    groups_by_space = False
    streets: ClassVar[Mapping[str, str]] = {"St": "street", "Dr": "drive"}
    letter_words = "AIO"
    digits = tuple(_ONES[:10])
    minus, to, by, percent, permille, of, number_sign = (
        "minus",
        "to",
        "by",
        "percent",
        "per mille",
        "",
        "number",
    )
    letters: ClassVar[Mapping[str, str]] = dict(
        zip(
            "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
            [
                "ay",
                "bee",
                "see",
                "dee",
                "ee",
                "eff",
                "gee",
                "aitch",
                "eye",
                "jay",
                "kay",
                "el",
                "em",
                "en",
                "oh",
                "pee",
                "cue",
                "ar",
                "ess",
                "tee",
                "you",
                "vee",
                "double-you",
                "ex",
                "why",
                "zee",
            ],
            strict=True,
        )
    )
    months = (
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    )
    month_abbreviations: ClassVar[Mapping[str, int]] = {
        "Jan": 1, "Feb": 2, "Mar": 3, "Apr": 4, "Jun": 6, "Jul": 7, "Aug": 8, "Sep": 9, "Sept": 9, "Oct": 10,
        "Nov": 11, "Dec": 12,
    }  # fmt: skip
    units: ClassVar[Mapping[str, Noun]] = {
        "km/h": Noun("kilometer per hour", "kilometers per hour"),
        "mph": Noun("mile per hour", "miles per hour"),
        "m/s": Noun("meter per second", "meters per second"),
        "km²": Noun("square kilometer", "square kilometers"), "km2": Noun("square kilometer",
        "square kilometers"),
        "m²": Noun("square meter", "square meters"), "m2": Noun("square meter", "square meters"),
        "cm²": Noun("square centimeter", "square centimeters"),
        "m³": Noun("cubic meter", "cubic meters"), "m3": Noun("cubic meter", "cubic meters"),
        "km": Noun("kilometer", "kilometers"), "m": Noun("meter", "meters"), "cm": Noun("centimeter",
        "centimeters"),
        "mm": Noun("millimeter", "millimeters"), "nm": Noun("nanometer", "nanometers"),
        "kg": Noun("kilogram", "kilograms"), "g": Noun("gram", "grams"), "mg": Noun("milligram",
        "milligrams"),
        "lb": Noun("pound", "pounds"), "lbs": Noun("pound", "pounds"), "oz": Noun("ounce", "ounces"),
        "ft": Noun("foot", "feet"), "mi": Noun("mile", "miles"), "yd": Noun("yard", "yards"),
        "l": Noun("liter", "liters"), "L": Noun("liter", "liters"), "ml": Noun("milliliter", "milliliters"),
        "mL": Noun("milliliter", "milliliters"),
        "°C": Noun("degree Celsius", "degrees Celsius"), "°F": Noun("degree Fahrenheit",
        "degrees Fahrenheit"),
        "°": Noun("degree", "degrees"),
        "h": Noun("hour", "hours"), "hr": Noun("hour", "hours"), "hrs": Noun("hour", "hours"),
        "min": Noun("minute", "minutes"), "mins": Noun("minute", "minutes"), "s": Noun("second", "seconds"),
        "sec": Noun("second", "seconds"), "ms": Noun("millisecond", "milliseconds"),
        "Hz": Noun("hertz", "hertz"), "kHz": Noun("kilohertz", "kilohertz"), "MHz": Noun("megahertz",
        "megahertz"),
        "GHz": Noun("gigahertz", "gigahertz"),
        "W": Noun("watt", "watts"), "kW": Noun("kilowatt", "kilowatts"), "MW": Noun("megawatt", "megawatts"),
        "kWh": Noun("kilowatt hour", "kilowatt hours"), "V": Noun("volt", "volts"),
        "KB": Noun("kilobyte", "kilobytes"), "kB": Noun("kilobyte", "kilobytes"), "MB": Noun("megabyte",
        "megabytes"),
        "GB": Noun("gigabyte", "gigabytes"), "TB": Noun("terabyte", "terabytes"),
        "Mbps": Noun("megabit per second", "megabits per second"), "dB": Noun("decibel", "decibels"),
        "ha": Noun("hectare", "hectares"), "kcal": Noun("kilocalorie", "kilocalories"), "px": Noun("pixel",
        "pixels"),
    }  # fmt: skip
    _dollar = Currency(Noun("dollar", "dollars"), Noun("cent", "cents"))
    _euro = Currency(Noun("euro", "euros"), Noun("cent", "cents"))
    _pound = Currency(Noun("pound", "pounds"), Noun("penny", "pence"))
    currencies: ClassVar[Mapping[str, Currency]] = {
        "$": _dollar, "US$": Currency(Noun("US dollar", "US dollars"), Noun("cent", "cents")),
        "USD": Currency(Noun("US dollar", "US dollars"), Noun("cent", "cents")),
        "€": _euro, "EUR": _euro, "£": _pound, "GBP": _pound,
        "¥": Currency(Noun("yen", "yen")), "JPY": Currency(Noun("yen", "yen")),
        "₹": Currency(Noun("rupee", "rupees"), Noun("paisa", "paise")),
        "MXN": Currency(Noun("Mexican peso", "Mexican pesos"), Noun("centavo", "centavos")),
        "CHF": Currency(Noun("Swiss franc", "Swiss francs"), Noun("centime", "centimes")),
        "₿": Currency(Noun("bitcoin", "bitcoins")),
        "¢": Currency(Noun("cent", "cents")),
    }  # fmt: skip
    scales: ClassVar[Mapping[str, str]] = {
        "thousand": "thousand", "million": "million", "billion": "billion", "trillion": "trillion",
        "K": "thousand", "k": "thousand", "M": "million", "B": "billion", "bn": "billion", "m": "million",
    }  # fmt: skip
    abbreviations: ClassVar[Mapping[str, str]] = {
        "Mr": "mister", "Mrs": "missus", "Ms": "miz", "Dr": "doctor", "Prof": "professor", "St": "saint",
        "Sr": "senior", "Jr": "junior", "Gen": "general", "Col": "colonel", "Capt": "captain",
        "Lt": "lieutenant",
        "Sgt": "sergeant", "Rev": "reverend", "Hon": "honorable", "Gov": "governor", "Sen": "senator",
        "Rep": "representative", "Pres": "president",
        "Ave": "avenue", "Blvd": "boulevard", "Rd": "road", "Apt": "apartment", "Dept": "department",
        "etc": "et cetera", "e.g": "for example", "i.e": "that is", "vs": "versus", "approx": "approximately",
        "Inc": "incorporated", "Ltd": "limited", "Co": "company", "Corp": "corporation", "est": "established",
        "No": "number", "Nos": "numbers", "vol": "volume", "Vol": "volume", "ch": "chapter", "Ch": "chapter",
        "p": "page", "pp": "pages", "Fig": "figure", "fig": "figure", "cf": "compare", "al": "al",
        "Mt": "mount", "Ft": "fort", "min": "minutes", "max": "maximum", "tel": "telephone",
        "Tel": "telephone",
        "Jan": "January", "Feb": "February", "Aug": "August", "Sept": "September", "Oct": "October",
        "Nov": "November", "Dec": "December", "Mon": "Monday", "Tue": "Tuesday", "Tues": "Tuesday",
        "Wed": "Wednesday", "Thu": "Thursday", "Thurs": "Thursday", "Fri": "Friday",
        "a.m": "ay em", "p.m": "pee em", "B.C": "bee see", "A.D": "ay dee", "Ph.D": "pee aitch dee",
    }  # fmt: skip
    closing = frozenset(
        [
            "etc",
            "Inc",
            "Ltd",
            "Co",
            "Corp",
            "Jr",
            "Sr",
            "a.m",
            "p.m",
            "al",
            "B.C",
            "A.D",
            "Ph.D",
            "Ave",
            "Blvd",
            "Rd",
        ]
    )
    #: Read only with a number behind them, or they would swallow the end of a sentence.
    needs_number = frozenset(
        ["No", "Nos", "p", "pp", "vol", "Vol", "ch", "Ch", "Fig", "fig", "min", "max", "est"]
    )
    acronyms: ClassVar[Mapping[str, str]] = {
        "NASA": "", "NATO": "", "UNESCO": "", "UNICEF": "", "OPEC": "", "AIDS": "", "COVID": "", "LASER": "",
        "RADAR": "", "SCUBA": "", "PIN": "", "SIM": "", "RAM": "", "ROM": "", "JPEG": "jay peg", "GIF": "",
        "OK": "okay",
        "ASAP": "", "FIFA": "", "NASDAQ": "", "SWAT": "", "NAFTA": "", "FEMA": "", "NO": "", "YES": "",
        "THE": "",
        "AND": "", "NOT": "", "ALL": "", "YOU": "", "ARE": "", "FOR": "", "NEW": "", "BIG": "", "STOP": "",
        "WARNING": "",
        "IN": "", "ON": "", "AT": "", "TO": "", "OF": "", "BY": "", "IS": "", "IT": "", "WE": "", "ME": "",
        "MY": "", "SO": "",
        "DO": "", "GO": "", "IF": "", "OR": "", "AS": "", "AN": "", "BE": "", "HE": "", "UP": "", "WHAT": "",
        "WHY": "", "HOW": "",
        "PhD": "pee aitch dee", "TV": "tee vee", "IEEE": "eye triple ee", "NAACP": "en double-ay see pee",
        "SQL": "sequel",
    }  # fmt: skip
    symbols: ClassVar[Mapping[str, str]] = {
        "&": "and", "@": "at", "%": "percent", "+": "plus", "=": "equals", "×": "times", "÷": "divided by",
        "±": "plus or minus", "<": "less than", ">": "greater than", "≤": "less than or equal to",
        "≥": "greater than or equal to", "≠": "is not equal to", "≈": "approximately", "°": "degrees",
        "©": "copyright", "®": "registered", "™": "trademark", "§": "section", "€": "euros", "$": "dollars",
        "£": "pounds", "¥": "yen", "²": "squared", "³": "cubed", "∞": "infinity", "√": "square root of",
        "→": "to", "µ": "micro", "π": "pi",
    }  # fmt: skip
    fractions: ClassVar[Mapping[str, str]] = {
        "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8",
        "⅞": "7/8",
        "⅕": "1/5", "⅖": "2/5",
    }  # fmt: skip
    roman_contexts: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            [
                "Chapter",
                "chapter",
                "Part",
                "part",
                "Book",
                "book",
                "Volume",
                "volume",
                "Act",
                "act",
                "Scene",
                "scene",
                "Section",
                "section",
                "Article",
                "article",
                "Phase",
                "phase",
                "Type",
                "type",
                "Stage",
                "stage",
                "Level",
                "level",
                "Class",
                "class",
                "Title",
                "title",
                "Appendix",
                "appendix",
                "War",
                "Mark",
                "Rocky",
                "Bowl",
                "Grade",
                "Figure",
                "Table",
                "Apollo",
                "Windows",
                "Final",
                "Fantasy",
            ],
            "cardinal",
        ),
        **dict.fromkeys(
            [
                "Henry",
                "Louis",
                "Elizabeth",
                "Charles",
                "George",
                "Edward",
                "Richard",
                "William",
                "James",
                "Philip",
                "Francis",
                "Napoleon",
                "Pope",
                "Paul",
                "Benedict",
                "Pius",
                "Leo",
                "Gregory",
                "Clement",
                "Innocent",
                "Alexander",
                "Catherine",
                "Nicholas",
                "Frederick",
                "Ivan",
                "Peter",
                "Mary",
                "Ferdinand",
                "Alfonso",
                "Wilhelm",
                "Ptolemy",
                "Ramses",
                "Rameses",
                "Darius",
                "Xerxes",
                "John",
                "Felipe",
                "Carlos",
                "Juan",
                "Otto",
                "Umberto",
                "Victor",
                "Emmanuel",
                "Margaret",
                "Anne",
                "Stephen",
                "Haakon",
                "Harald",
                "Gustav",
            ],
            "ordinal",
        ),
    }
    address: ClassVar[Mapping[str, str]] = {
        "www": "double-you double-you double-you", ".": "dot", "/": "slash", "-": "dash", "_": "underscore",
        "@": "at", ":": "colon", "?": "question mark",
        "=": "equals", "&": "and", "#": "hash", "+": "plus", "%": "percent", "*": "star", "~": "tilde",
    }  # fmt: skip

    @property
    def day_first(self) -> bool:
        """Outside North America."""
        return self.region in _DAY_FIRST

    def cardinal(self, number: int, *, feminine: bool | None = None) -> str:
        """See `Language.cardinal`; hundreds and tens are not joined by *and*."""
        if not number:
            return "zero"
        groups = []
        for scale in _SCALES:
            number, group = divmod(number, 1000)
            if group:
                groups.append(f"{_below_thousand(group)} {scale}".strip())
        return " ".join(reversed(groups))

    def ordinal(self, number: int, *, feminine: bool = False) -> str:
        """See `Language.ordinal`."""
        head, joint, last = _split_last(self.cardinal(number))
        if last in _ORDINALS:
            return head + joint + _ORDINALS[last]
        return head + joint + (f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th")

    def regnal(self, number: int, name: str) -> str:
        """*Henry the eighth*."""
        return f"the {self.ordinal(number)}"

    def year(self, number: int) -> str:
        """*Nineteen ninety-nine*, *two thousand five*, *twenty twenty-four*."""
        century, rest = divmod(number, 100)
        if not 1000 <= number <= 2099 or number % 1000 < 10:
            return self.cardinal(number)
        if not rest:
            return f"{self.cardinal(century)} hundred"
        return f"{self.cardinal(century)} {f'oh {_ONES[rest]}' if rest < 10 else self.cardinal(rest)}"

    def decade(self, digits: str) -> str | None:
        """*Nineteen nineties*."""
        number = int(digits)
        spoken = self.year(number) if number >= 100 else self.cardinal(number)
        return f"{spoken[:-1]}ies" if spoken.endswith("y") else f"{spoken}s"

    def mark_word(self, mark: str) -> str:
        """See `Language.mark_word`."""
        return "point"

    def plain_number(self, number: Number, following: str) -> str:
        """Four digits without a comma are a year unless something is counted."""
        is_year = len(number.whole) == 4 and not number.fraction and not number.negative
        if is_year and 1100 <= int(number.whole) <= 2099:
            plural = following.endswith("s") and following not in _NOT_COUNTED
            if not plural and following not in _COUNTED:
                return self.year(int(number.whole))
        return self.number(number)

    def join_money(self, major: str, minor: str) -> str:
        """See `Language.join_money`."""
        return f"{major} and {minor}"

    def time(self, hour: int, minute: int, second: int | None, meridiem: str) -> str | None:
        """*Ten thirty*, *ten oh five*, *ten o'clock*."""
        if hour > 24 or minute > 59 or (second or 0) > 59:
            return None
        words = [self.cardinal(hour)]
        if minute or second is not None:
            words.append(f"oh {_ONES[minute]}" if minute < 10 else self.cardinal(minute))
        elif not meridiem:
            words.append("o'clock" if 0 < hour < 13 else "hundred")
        if second is not None:
            words.append(f"and {self.counted(Number(str(second)), Noun('second', 'seconds'))}")
        if meridiem:
            words.append("ay em" if meridiem == "a" else "pee em")
        return " ".join(words)

    def date(
        self, year: int | None, month: int, day: int | None, *, article: bool = False, before: str = ""
    ) -> str | None:
        """*March fifteenth, twenty twenty-four*, or *the fifteenth of March*."""
        if not 1 <= month <= 12 or (day is not None and not 1 <= day <= 31):
            return None
        name = self.months[month - 1]
        if day is None:
            words = name
        else:
            words = (
                f"the {self.ordinal(day)} of {name}"
                if article or self.day_first
                else f"{name} {self.ordinal(day)}"
            )
        if year is None:
            return words
        return f"{words}{',' if day is not None else ''} {self.year(year)}"

    def simple_fraction(self, above: int, below: int) -> str | None:
        """*One half*, *three quarters*."""
        if below not in _DENOMINATORS or not 0 < above < below:
            return None
        name = _DENOMINATORS[below]
        plural = "halves" if below == 2 else f"{name}s"
        return f"{self.cardinal(above)} {name if above == 1 else plural}"

    def mixed_fraction(self, whole: int, above: int, below: int) -> str | None:
        """*Two and a half*."""
        fraction = self.simple_fraction(above, below)
        if fraction is None:
            return None
        return f"{self.cardinal(whole)} and {'a' + fraction.removeprefix('one') if above == 1 else fraction}"


def _split_last(words: str) -> tuple[str, str, str]:
    """The last word of a number, and what is before it."""
    cut = max(words.rfind(" "), words.rfind("-"))
    return (words[:cut], words[cut], words[cut + 1 :]) if cut >= 0 else ("", "", words)
