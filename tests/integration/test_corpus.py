"""Cleaning and preparing, with the real judges, on some of the recordings that ``vits data fetch asterisk-es`` gets."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from services import cli, data
from services.evaluation.transcripts import character_errors
from services.training.data import Recording, read_recordings
from shared.audio import Samples, write_flac

pytestmark = [pytest.mark.corpus, pytest.mark.judges]

CORPUS = Path(os.environ.get("VITS_CORPUS") or Path(__file__).parents[2] / "data/asterisk-es")
COUNT = 16
RATE = 16_000


@pytest.fixture(scope="module")
def recordings() -> list[Recording]:
    """The first ones of 3 to 8 seconds."""
    if not CORPUS.is_dir():
        pytest.skip(f"no {CORPUS}: vits data fetch asterisk-es --output {CORPUS}, or name it in VITS_CORPUS")
    ears = data.listeners(language="es", recogniser=None, wanted=["speech", "recognition", "naturalness"])
    if ears.missing:
        pytest.skip("; ".join(ears.missing.values()))
    found = read_recordings(CORPUS, split="all")
    return [recording for recording in found if 3 < (recording.duration_seconds or 0) < 8][:COUNT]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for both tests, in which nothing has been heard before them."""
    monkeypatch.setenv("VITS_CACHE", str(tmp_path_factory.getbasetemp() / "heard-by-corpus-tests"))


def with_faults(recordings: list[Recording], root: Path) -> None:
    """A dataset of them: 00 has its neighbour's transcript, 02 silence around it, 03 is clipped, 04 noisy, and
    ``again`` is a quieter 05."""
    (root / "audio").mkdir(parents=True)
    rows = [["file_name", "text"]]

    def add(name: str, samples: Samples, text: str) -> None:
        write_flac(root / f"audio/{name}.flac", samples, RATE)
        rows.append([f"audio/{name}.flac", text])

    for number, recording in enumerate(recordings):
        text, samples = recording.text, recording.audio(RATE).samples
        if number == 0:
            text = recordings[1].text
        elif number == 2:
            samples = np.pad(samples, (2 * RATE, 3 * RATE))
        elif number == 3:
            samples = np.clip(samples / np.abs(samples).max() * 6, -1, 1)
        elif number == 4:
            noise = np.random.default_rng(0).standard_normal(len(samples), dtype=np.float32)
            samples = samples + 0.5 * np.sqrt(np.mean(samples**2)) * noise
        add(f"{number:02d}", samples, text)
    add("again", np.pad(0.4 * recordings[5].audio(RATE).samples, (2000, 700)), recordings[5].text)
    with (root / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def test_planted_faults_are_found_among_real_recordings(recordings: list[Recording], tmp_path: Path) -> None:
    with_faults(recordings, tmp_path / "planted")
    assert cli.main(["data", "clean", str(tmp_path / "planted"), "--language", "es", "--no-page"]) == 0
    with (tmp_path / "planted-cleaning/decisions.csv").open(encoding="utf-8-sig", newline="") as file:
        found = {Path(row["id"]).name: row for row in csv.DictReader(file)}
    for name, kind in {"00": "transcript", "03": "clipped", "04": "noise"}.items():
        assert found[name]["decision"] == "drop", found[name]
        assert kind in found[name]["reasons"], found[name]
    assert found["02"]["decision"] == "trim"
    assert float(found["02"]["start"]) > 1.5
    # Of two equal ones the one that was understood worse is left out, and either may be.
    doubles = [name for name in ("05", "again") if "duplicate" in found[name]["reasons"]]
    assert len(doubles) == 1
    assert found[doubles[0]]["decision"] == "drop"
    sound = [row for name, row in found.items() if name not in {"00", "02", "03", "04", *doubles}]
    assert sum(row["decision"] == "drop" for row in sound) <= 2, sound


def test_bare_speech_is_recovered(recordings: list[Recording], tmp_path: Path) -> None:
    """All of them in one file, with a second of silence after each."""
    pause = np.zeros(RATE, np.float32)
    whole = [part for recording in recordings for part in (recording.audio(RATE).samples, pause)]
    write_flac(tmp_path / "whole.flac", np.concatenate(whole), RATE)
    output = tmp_path / "prepared"
    assert cli.main(
        ["data", "prepare", str(tmp_path / "whole.flac"), "--output", str(output), "--language", "es",
         "--licence", "CC-BY-SA-3.0", "--source", "Asterisk", "--consent", "published"]
    ) == 0  # fmt: skip
    pieces = read_recordings(output, split="all")
    lengths = [piece.audio().duration_seconds for piece in pieces]
    assert all(1 <= seconds <= 15.01 for seconds in lengths)
    assert 0.75 < sum(lengths) / sum(r.duration_seconds or 0 for r in recordings) < 1.1
    said, heard = (" ".join(one.text for one in some) for some in (recordings, pieces))
    assert character_errors(said, heard, "es").rate < 0.15
