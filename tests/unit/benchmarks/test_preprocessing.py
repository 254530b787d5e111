"""The benchmark of preparing recordings: its table from given costs, and that all three ways run."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import preprocessing
from benchmarks.preprocessing import FORMS, WAYS, Cost, check, make_recordings, measure, table
from services.training.data import Recording, read_recordings


@pytest.fixture
def recordings(tmp_path: Path) -> list[Recording]:
    return read_recordings(make_recordings(tmp_path / "flac", 2, *FORMS["FLAC, 16 kHz mono"]), split="all")


def test_all_three_ways_keep_the_same_sound(recordings: list[Recording]) -> None:
    check(recordings[0])
    costs = measure(recordings, rounds=1)
    assert costs.keys() == WAYS.keys()
    assert costs["ours"].bytes_on_disk < costs["lean"].bytes_on_disk <= costs["stored"].bytes_on_disk


def test_the_table_is_of_recordings_and_hours_of_them(recordings: list[Recording]) -> None:
    costs = {
        "ours": Cost(1.0, 2.0, 10**6),
        "stored": Cost(6.0, 8.0, 40 * 10**6),
        "lean": Cost(2.0, 3.0, 20 * 10**6),
    }
    lines = table("flac", costs, recordings).splitlines()
    hours = sum(recording.duration_seconds or 0 for recording in recordings) / 3600
    assert lines[2].split() == ["ours", "2", "1", f"{1 / hours:.0f}"]
    assert lines[-2].strip() == (
        "ours against stored: 6.0 times as fast per core, 4.0 by the clock (wanted: 5); 1/40.0 of the disk"
    )
    assert lines[-1].strip() == (
        "ours against lean: 2.0 times as fast per core, 1.5 by the clock; 1/20.0 of the disk"
    )


def test_figures_are_medians_of_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([1, 5, 2])

    def write(_: object, folder: Path) -> None:
        (folder / "file").write_bytes(bytes(next(sizes)))

    monkeypatch.setattr(preprocessing, "WAYS", {"ours": write})
    assert measure([], rounds=3)["ours"].bytes_on_disk == 2
