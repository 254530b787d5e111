"""Codes of languages, and the names that people write instead."""

from __future__ import annotations

import pytest

from services.evaluation.transcripts import _THREE_LETTERS as WHISPERS
from services.training.convert.mms_codes import FAMILIES, SEVERAL
from shared.errors import UserError
from shared.languages import language_code
from shared.text.ssml import ESPEAK_VOICES


@pytest.mark.parametrize(
    "code",
    [
        *("es", "es-MX", "es_419", "ES-mx", "spa", "eng", "kor", "guj", "und", "xyz"),
        *("uig-script_arabic", "quc-dialect_north", "zlm"),
        *("en-us", "en-gb-x-rp", "fr-be", "yue-latn-jyutping", "vi-vn-x-central", "fa-latn", "piqd", "py"),
    ],
)  # fmt: skip
def test_a_code_is_taken_as_it_stands(code: str) -> None:
    assert language_code(code) == code
    assert language_code(f" {code}\n") == code


def test_whatever_part_of_the_suite_has_a_code_for_it_is_taken() -> None:
    mms = {*SEVERAL, *FAMILIES, *(code for codes in SEVERAL.values() for code in codes)}
    for code in {*WHISPERS, *WHISPERS.values(), *ESPEAK_VOICES, *ESPEAK_VOICES.values(), *mms}:
        assert language_code(code) == code


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("espanol", "'es' (Spanish)?"), ("Español", "'es' (Spanish)?"), ("spanisch", "'es' (Spanish)?"),
        ("castellano", "'es' (Spanish)?"), ("english-us", "'en' (English)?"), ("Deutsch", "'de' (German)?"),
        ("portugues", "'pt' (Portuguese)?"), ("cantonese", "'yue' (Cantonese)?"), ("thay", "'th' (Thai)"),
    ],
)  # fmt: skip
def test_a_name_is_answered_with_its_code(name: str, nearest: str) -> None:
    with pytest.raises(UserError) as caught:
        language_code(name)
    assert f"--language {name}: no language has the code" in str(caught.value)
    assert f"did you mean {nearest}" in str(caught.value)


@pytest.mark.parametrize("code", ["", "xx", "mx", "qqqqqq", "e", "-es", "12"])
def test_what_is_like_nothing_is_refused_without_a_guess(code: str) -> None:
    with pytest.raises(UserError, match="ISO 639") as caught:
        language_code(code)
    assert "did you mean" not in str(caught.value)
