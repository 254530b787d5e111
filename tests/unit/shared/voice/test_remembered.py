"""Small files that several servers share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.voice.remembered import recall, remember


def test_who_reads_while_another_server_writes_has_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "layouts.json"
    remember(path, "ana", 1)
    with path.open() as reading:
        remember(path, "luis", 2)
        assert json.load(reading) == {"ana": 1}
    assert recall(path) == {"ana": 1, "luis": 2}


def test_what_was_known_outlives_a_disk_that_fills_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "layouts.json"
    remember(path, "ana", 1)

    def full(content: object, file: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(json, "dump", full)
    remember(path, "luis", 2)
    assert recall(path) == {"ana": 1}
    assert list(tmp_path.iterdir()) == [path], "nothing is left lying about"


@pytest.mark.parametrize("content", ["", "{", "[1]", "\xff"])
def test_a_damaged_file_is_measured_anew_and_mended(tmp_path: Path, content: str) -> None:
    path = tmp_path / "layouts.json"
    path.write_text(content, encoding="latin-1")
    assert recall(path) == {}
    remember(path, "ana", 1)
    assert recall(path) == {"ana": 1}
