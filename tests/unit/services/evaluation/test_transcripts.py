"""What counts as a word, and how many edits lie between two texts."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.evaluation.transcripts import (
    Errors,
    character_errors,
    edit_distance,
    normalise,
    whisper_code,
    word_errors,
)

WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=8)


def slow_distance(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """By its definition."""

    @cache
    def between(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        changed = between(i - 1, j - 1) + (one[i - 1] != other[j - 1])
        return min(between(i - 1, j) + 1, between(i, j - 1) + 1, changed)

    return between(len(one), len(other))


@given(WORDS, WORDS)
def test_the_distance_is_the_fewest_edits(one: list[str], other: list[str]) -> None:
    assert edit_distance(one, other) == slow_distance(tuple(one), tuple(other)) == edit_distance(other, one)


@pytest.mark.parametrize(
    ("meant", "heard", "edits", "total"),
    [
        ("la casa azul", "la casa azul", 0, 3),
        ("la casa azul", "La casa, ¡azul!", 0, 3),
        ("la casa azul", "la masa azul", 1, 3),
        ("la casa azul", "casa", 2, 3),
        ("la casa azul", "", 3, 3),
        ("la casa", "la gran casa azul", 2, 2),
        ("", "", 0, 0),
        ("…", "hola", 1, 0),
    ],
)
def test_word_errors_of_known_pairs(meant: str, heard: str, edits: int, total: int) -> None:
    assert word_errors(meant, heard) == Errors(edits, total)


def test_rates() -> None:
    assert Errors(1, 4).rate == 0.25
    assert Errors(5, 4).rate == 1.25
    assert Errors(0, 0).rate == 0.0
    assert Errors(2, 0).rate == 1.0


def test_character_errors_count_the_space_between_words() -> None:
    assert character_errors("el sol", "elsol") == Errors(1, 6)
    assert character_errors("El  sol!", "el sol") == Errors(0, 6)


@pytest.mark.parametrize(
    ("text", "language", "words"),
    [
        ("Está bien, señor", None, ["esta", "bien", "senor"]),
        ("tengo 21 años", "es", ["tengo", "veintiuno", "anos"]),
        ("tengo 21", "es-419", ["tengo", "veintiuno"]),
        ("tengo 21", "spa", ["tengo", "veintiuno"]),
        ("room 21", "en-us", ["room", "twenty", "one"]),
        ("tengo 21", None, ["tengo", "21"]),
        ("tengo 21", "quc", ["tengo", "21"]),
        ("don't 'quote' l’été", None, ["don't", "quote", "l'ete"]),
        ("a-b_c", None, ["a", "b", "c"]),
        ("ﬁn Straße", None, ["fin", "strasse"]),
        ("नमस्ते", None, ["नमस्ते"]),
        ("9" * 30, "es", ["9" * 30]),
        ("¡!", "es", []),
    ],
)
def test_normalisation(text: str, language: str | None, words: list[str]) -> None:
    assert normalise(text, language) == words


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert normalise(" ".join(once)) == once


@pytest.mark.parametrize(
    ("tag", "code"),
    [
        ("es", "es"),
        ("es-419", "es"),
        ("spa", "es"),
        ("en-US", "en"),
        ("eng_latn", "en"),
        ("yue", "yue"),
        ("quc", None),
    ],
)
def test_languages_by_whispers_code(tag: str, code: str | None) -> None:
    assert whisper_code(tag) == code
