"""Numbers, dates and abbreviations: golden tables for Spanish and English, laws for the rest."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.text.normalization import _LANGUAGES, _THREE_LETTERS, language_of, normalize, readings, say_as

GOLDEN = Path(__file__).parents[3] / "golden" / "normalization"

#: What Unicode calls symbols, punctuation, and numbers that are no digits, as ½; without the scripts of East Asia
#: and what comes after them.
SIGNS = [
    sign for sign in map(chr, range(0x3000)) if unicodedata.category(sign)[0] in "PS" or sign in "¹²³¼½¾"
]


def table(language: str) -> list[tuple[str, str]]:
    lines = (GOLDEN / f"{language}.tsv").read_text(encoding="utf-8").splitlines()
    return [(before, after) for before, _, after in (line.partition("\t") for line in lines[1:])]


@pytest.mark.parametrize(("written", "spoken"), table("es"))
def test_spanish(written: str, spoken: str) -> None:
    assert normalize(written, "es") == spoken


@pytest.mark.parametrize(("written", "spoken"), table("en"))
def test_english(written: str, spoken: str) -> None:
    assert normalize(written, "en") == spoken


@pytest.mark.parametrize(
    ("language", "written", "spoken"),
    [(language, *row) for language in ("fr", "de", "it", "pt") for row in table(language)],
)
def test_languages_with_smaller_tables(language: str, written: str, spoken: str) -> None:
    assert normalize(written, language) == spoken


def test_the_tables_are_long_enough() -> None:
    assert len(table("es")) >= 150
    assert len(table("en")) >= 150


@pytest.mark.parametrize(
    ("language", "written", "spoken"),
    [
        ("es-ES", "1 de mayo", "uno de mayo"),
        ("es-MX", "1,000 votos", "mil votos"),
        ("es-ES", "1,250 kg", "uno coma dos cinco cero kilogramos"),
        ("en-GB", "3/4/2024", "the third of April, twenty twenty-four"),
        ("eng", "21", "twenty-one"),
        ("spa", "21", "veintiuno"),
        ("fr", "J'ai 21 ans et 3,5 km", "J'ai vingt et un ans et trois virgule cinq kilomètres"),
        ("nl", "5,50 € en € 3", "vijf euro, vijftig cent en drie euro"),
        ("ru", "21 $", "двадцать один доллар"),
        ("sv", "5 €", "fem €"),
        ("pt-BR", "1º de maio de 2024", "primeiro de maio de dois mil e vinte e quatro"),
        ("deu", "21", "einundzwanzig"),
        ("pt-BR", "16", "dezesseis"),
        ("ar", "٢١", "واحد و عشرون"),
        ("tlh", "21 is 21", "21 is 21"),
    ],
)
def test_regions_and_other_languages(language: str, written: str, spoken: str) -> None:
    assert normalize(written, language) == spoken


@pytest.mark.parametrize(
    ("kind", "form", "text", "spoken"),
    [
        ("cardinal", "", "1,234", "one thousand two hundred thirty-four"),
        ("ordinal", "", "3", "third"),
        ("digits", "", "2024", "two zero two four"),
        ("telephone", "", "555-1234", "five five five, one two three four"),
        ("characters", "", "AB1", "ay bee one"),
        ("spell-out", "", "hi", "aitch eye"),
        ("date", "dmy", "3/4/2024", "April third, twenty twenty-four"),
        ("date", "ymd", "2024-04-03", "April third, twenty twenty-four"),
        ("date", "my", "4/2024", "April twenty twenty-four"),
        ("time", "", "10:30", "ten thirty"),
        ("currency", "", "$5", "five dollars"),
        ("cardinal", "", "five", None),
        ("digits", "", "a1", None),
        ("date", "dmy", "45/45/2024", None),
        ("nonsense", "", "1", None),
    ],
)
def test_say_as(kind: str, form: str, text: str, spoken: str | None) -> None:
    assert say_as(text, kind, form, "en") == spoken


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.text(max_size=80), st.text(st.sampled_from("0123456789.,:/-–€$%°º½²×+=#@ IVXamphsDrst\n'٣"), max_size=60)
    ),
    st.sampled_from(["es", "en", "fr", "de", "it", "pt-BR", "nl", "ru", "ja", "sv", "xx"]),
)  # fmt: skip
def test_readings_never_fail_and_do_not_overlap(text: str, language: str) -> None:
    position = 0
    for reading in readings(text, language):
        assert position <= reading.start < reading.end <= len(text)
        position = reading.end


@pytest.mark.parametrize("language", sorted({*_LANGUAGES, *_THREE_LETTERS.values()}))
def test_every_sign_can_be_written_in_every_language(language: str) -> None:
    # Languages without tables of their own have the same few rules, none of them for signs.
    for sign in SIGNS if language in _LANGUAGES else SIGNS[:64]:
        assert normalize(f"a {sign} b 2 {sign} 3 c 2{sign}3 d {sign}2 e 2{sign}, {sign}", language)


@given(st.integers(0, 10**15 - 1), st.sampled_from(["es", "en", "fr", "de", "it", "pt"]))
def test_numbers_leave_no_digits(number: int, language: str) -> None:
    spoken = language_of(language).cardinal(number)
    assert spoken.translate(str.maketrans("", "", " -,")).isalpha()


@pytest.mark.parametrize("language", ["es", "en"])
def test_numbers_agree_with_num2words(language: str) -> None:
    import num2words

    # Not 21,000: num2words says "veintiuno mil", which is no Spanish.
    for number in [*range(1100), 1999, 2000, 10_021, 100_000, 1_000_000, 2_345_678]:
        theirs = num2words.num2words(number, lang=language).replace(" and ", " ").replace(",", "")
        assert language_of(language).cardinal(number) == theirs
