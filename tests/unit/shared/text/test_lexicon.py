"""A voice's own words, and that their file may change at any time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shared.errors import ConfigError
from shared.text import FrontEnd
from shared.text.lexicon import Entry, Lexicon, LexiconFile
from shared.text.script import plan_script


def spoken(text: str, front_end: FrontEnd, lexicon: Lexicon, language: str = "es") -> str:
    return " ".join(s.text for s in plan_script(text, front_end, language=language, lexicon=lexicon).segments)


def test_json_and_tsv_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"Nguyen": "nuyen", "GIF": {"phonemes": "dʒˈɪf"}}', encoding="utf-8")
    (tmp_path / "a.tsv").write_text("# mine\n\nNguyen\tnuyen\nGIF\t/dʒˈɪf/\n", encoding="utf-8")
    expected = {"Nguyen": Entry(text="nuyen"), "GIF": Entry(phonemes="dʒˈɪf")}
    assert Lexicon.read(tmp_path / "a.json").entries == expected
    assert Lexicon.read(tmp_path / "a.tsv").entries == expected


def test_entries_come_before_the_rules_and_match_whole_words(mms: FrontEnd) -> None:
    lexicon = Lexicon({"ONU": Entry("naciones unidas"), "Dr.": Entry("doc"), "New York": Entry("niu iork")})
    assert (
        spoken("La ONU, la onu y la MONUA", mms, lexicon)
        == "La naciones unidas, la naciones unidas y la MONUA"
    )
    assert spoken("El Dr. Ruiz de new york", mms, lexicon) == "El doc Ruiz de niu iork"


def test_the_very_same_capitals_win(mms: FrontEnd) -> None:
    lexicon = Lexicon({"US": Entry("u ese"), "us": Entry("nos")})
    assert spoken("US us Us", mms, lexicon) == "u ese nos u ese"


def test_phonemes_are_spoken_as_they_are(english_phonemes: FrontEnd) -> None:
    lexicon = Lexicon({"GIF": Entry(phonemes="dʒˈɪf")})
    script = plan_script("A GIF here", english_phonemes, language="en", lexicon=lexicon)
    assert "dʒˈɪf" in "".join(script.segments[0].tokens.symbols).replace("_", "")
    assert [word.text for word in script.segments[0].words] == ["A", "GIF", "here"]


def test_every_bad_row_is_told(tmp_path: Path, mms: FrontEnd) -> None:
    path = tmp_path / "bad.tsv"
    path.write_text(
        "uno\n\tdos\ntres\t\nok\tbien\nok\tmal\nG\t/dʒ/\n" + "x" * 300 + "\ty\n", encoding="utf-8"
    )
    with pytest.raises(ConfigError) as caught:
        Lexicon.read(path, mms)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "line 1", "line 2", "line 3", "line 5", "line 6", "line 7",
    ]  # fmt: skip


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b'{"a": 1}', b'{"a": {"x": "b"}}', b"[" * 100_000])
def test_unusable_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be used"):
        Lexicon.read(path)


def test_a_changed_file_is_read_again_and_a_broken_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    file = LexiconFile(path)
    assert file.current() == Lexicon()

    def write(content: str, time: int) -> None:
        path.write_text(content, encoding="utf-8")
        os.utime(path, ns=(time, time))

    write('{"a": "b"}', 1)
    assert file.current().entries == {"a": Entry("b")}
    assert file.current() is file.current()
    write('{"a": ', 2)
    assert file.current().entries == {"a": Entry("b")}
    assert "not JSON" in (file.problem or "")
    write('{"a": "c"}', 3)
    assert file.current().entries == {"a": Entry("c")}
    assert not file.problem
    path.unlink()
    assert file.current() == Lexicon()


def test_a_file_that_is_broken_from_the_start_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError):
        LexiconFile(path)
