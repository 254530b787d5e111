"""A model folder appears whole, nothing but an older one is ever replaced, and what cannot be written is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import ModelError, UserError
from shared.folders import check_writable, whole_folder, writing


def fill(folder: Path, text: str) -> None:
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text(text)


def test_whether_a_folder_can_be_written_is_told_without_a_trace(tmp_path: Path) -> None:
    check_writable(tmp_path / "a/deep/folder", "give another")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/folder"):
        with pytest.raises(UserError, match=rf"{folder} cannot be written \(.*\): give another"):
            check_writable(folder, "give another")


def test_a_reader_that_has_gone_is_not_taken_for_a_folder() -> None:
    """As of ``vits export … | head``, where a step is told while a folder is written."""
    with pytest.raises(BrokenPipeError), writing(Path("voice"), "give another"):
        raise BrokenPipeError


def test_it_appears_when_it_is_whole(tmp_path: Path) -> None:
    output = tmp_path / "deep/out"
    with whole_folder(output) as folder:
        fill(folder, "new")
        assert not output.exists()
    assert (output / "config.json").read_text() == "new"
    assert [path.name for path in output.parent.iterdir()] == ["out"]


def test_an_error_leaves_the_older_one_as_it_was(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with whole_folder(output) as folder:
        fill(folder, "old")

    def fail() -> None:
        with whole_folder(output) as folder:
            fill(folder, "new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (output / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_older_one_goes_with_all_its_files(tmp_path: Path) -> None:
    output = tmp_path / "out"
    (tmp_path / "out.partial").mkdir()  # of a process that was killed
    for text in ("old", "new"):
        with whole_folder(output) as folder:
            fill(folder, text)
            if text == "old":
                (folder / "stale").write_text("")
    assert sorted(path.name for path in output.iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("what", ["a file", "letters", "a source"])
def test_nothing_else_is_replaced(what: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    sources = []
    if what == "a file":
        output.write_text("dear")
    else:
        output.mkdir()
        (output / "letter").write_text("dear")
        if what == "a source":
            fill(output, "old")
            sources = [output / "letter"]
    with pytest.raises(ModelError), whole_folder(output, sources=sources):
        pytest.fail("the folder was opened for writing")
    assert (output if what == "a file" else output / "letter").read_text() == "dear"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out") as folder:
        fill(folder, "new")
    assert (tmp_path / "out/config.json").is_file()
