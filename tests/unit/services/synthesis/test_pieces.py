"""A text in pieces: the same sentences however it is cut up."""

from __future__ import annotations

import re
from itertools import pairwise
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.synthesis.pieces import MAX_SENTENCE_CHARACTERS, Pieces


def sentences(*given_pieces: str) -> list[str]:
    pieces = Pieces()
    return [sentence for piece in given_pieces for sentence in pieces.add(piece)] + pieces.flush()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n ", []),
        ("Hola", ["Hola"]),
        ("Hola. ¿Qué tal? Bien", ["Hola.", "¿Qué tal?", "Bien"]),
        ("Cuesta 3.5 euros. Vale.", ["Cuesta 3.5 euros.", "Vale."]),
        ("El Sr. García y la Dra. J. Ruiz. Fin", ["El Sr. García y la Dra. J. Ruiz.", "Fin"]),
        ("«¡Ya está!» Y se fue... O no", ["«¡Ya está!»", "Y se fue...", "O no"]),
        ("uno\ndos\n\ntres", ["uno", "dos", "tres"]),
        ("你好。再见", ["你好。", "再见"]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_a_sentence_is_given_as_soon_as_its_end_is_sure() -> None:
    pieces = Pieces()
    assert pieces.add("Hola.") == []  # "Hola.com"?
    assert pieces.add(" ") == ["Hola."]
    assert pieces.waiting == 0
    assert pieces.add("y a") == []
    assert pieces.waiting == 3
    assert pieces.flush() == ["y a"]
    assert pieces.flush() == []


@given(
    text=st.text(alphabet="ab .!?,\n…»1。」", max_size=60) | st.text(max_size=60),
    cuts=st.lists(st.integers(0, 60)),
)
@settings(deadline=None)
def test_how_it_is_cut_up_does_not_matter_and_nothing_is_lost(text: str, cuts: list[int]) -> None:
    places = sorted({0, *(cut for cut in cuts if cut < len(text)), len(text)})
    pieces = [text[start:end] for start, end in pairwise(places)]
    for limit in (MAX_SENTENCE_CHARACTERS, 12):
        with patch("services.synthesis.pieces.MAX_SENTENCE_CHARACTERS", limit):
            assert sentences(*pieces) == sentences(*text)
    assert re.sub(r"\s", "", "".join(sentences(*pieces))) == re.sub(r"\s", "", text)


@pytest.mark.parametrize("text", ["palabra " * 200, "x" * 3000, "uno, " * 500, "a " + "x" * 2000])
def test_what_does_not_end_is_cut(text: str) -> None:
    pieces = Pieces()
    found = pieces.add(text)
    assert len(found) > 1
    assert all(0 < len(sentence) <= MAX_SENTENCE_CHARACTERS for sentence in found)
    assert pieces.waiting <= MAX_SENTENCE_CHARACTERS
    assert "".join([*found, *pieces.flush()]).replace(" ", "") == text.replace(" ", "")
    assert sentences("uno, " * 500)[0].endswith(",")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("mark", [".", "…!", "。"])
def test_a_text_of_marks_takes_no_longer_than_another(mark: str) -> None:
    """Every run of marks was looked at from each of its marks: the event loop stood still for minutes."""
    text = mark * (500_000 // len(mark))
    assert "".join(sentences(text + "a")) == text + "a"
