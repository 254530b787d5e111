"""Inspection: planted faults are found, and sound rows are left alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from services.training.data.cli import main
from services.training.data.inspection import (
    inspect,
    longest_full_scale_run,
    measure,
    modified_z_scores,
)
from services.training.data.reading import survey
from services.training.data.recordings import Recording
from shared.audio import frame_levels, write_wav
from shared.errors import UserError
from shared.text import FrontEnd

Tone = Callable[..., np.ndarray]


class TestMeasures:
    def test_levels_are_those_of_the_definition(self, tone: Tone) -> None:
        levels = frame_levels(tone(1.0, 200, level=1.0), 16000)
        assert len(levels) == 50
        np.testing.assert_allclose(levels, -3.01, atol=0.05)  # a sine is 3 dB below a square wave
        assert frame_levels(np.zeros(1000, np.float32), 16000) == pytest.approx([-100.0] * 4)

    def test_silence_at_the_ends_does_not_count_as_speech(self, tmp_path: Path, tone: Tone) -> None:
        quiet = np.zeros
        samples = np.concatenate([quiet(8000), tone(1.0, 200, level=0.1), quiet(4000)]).astype(np.float32)
        write_wav(tmp_path / "a.wav", samples, 16000)
        one = measure(Recording("a", "Diez letras", path=tmp_path / "a.wav"), "train")
        assert one.leading_seconds == pytest.approx(0.5, abs=0.02)
        assert one.trailing_seconds == pytest.approx(0.25, abs=0.02)
        assert one.loudness_dbfs == pytest.approx(-23.0, abs=0.1)
        assert one.letters == 10
        assert one.speaking_rate == pytest.approx(10, rel=0.05)

    def test_runs_at_full_scale(self) -> None:
        assert longest_full_scale_run(np.array([0, 1, 1, 0, -1, 1, 1, 0], np.float32)) == 3
        assert longest_full_scale_run(np.array([1, 1], np.float32)) == 2
        assert longest_full_scale_run(np.array([0.5, 0.99], np.float32)) == 0

    def test_scores_are_robust_and_survive_equal_values(self) -> None:
        assert modified_z_scores([1, 2, 3, 4, 5])[-1] == pytest.approx(0.6745 * 2)
        assert modified_z_scores([5.0, 5.0, 5.0, 9.0]) == [0.0] * 4
        assert modified_z_scores([]) == []


@pytest.fixture
def faulty(tmp_path: Path, tone: Tone) -> Path:
    """Thirty sound rows, and one for every fault that inspection knows."""
    root = tmp_path / "set"
    root.mkdir()
    generator = np.random.default_rng(0)
    rows = []
    for number in range(30):
        seconds = 2 + number / 10
        name = f"good{number:02d}"
        write_wav(root / f"{name}.wav", tone(seconds, 200 + number, level=0.5), 16000)
        letters = "".join(
            generator.choice(list("abcdefg"), round(10 * seconds * generator.uniform(0.9, 1.1)))
        )
        rows.append((name, letters, "test" if number == 29 else "train"))
    planted = {
        "brief": (tone(0.5, 500), "cinco"),
        "long": (tone(25, 510), "x" * 250),
        "silent": (np.full(32000, 1e-5, np.float32), "x" * 20),
        "clipped": (np.clip(tone(2, 520, level=1.2), -1, 1), "y" * 20),
        "pause": (np.concatenate([np.zeros(32000, np.float32), tone(2, 530, level=0.5)]), "z" * 20),
        "faint": (tone(2, 540, level=0.02), "v" * 20),
        "wrong": (tone(2, 550), "w" * 90),
        "double": (tone(2, 200, level=0.5), "u" * 20),
        "leak": (tone(4.9, 570), rows[29][1].upper() + "!"),
    }
    for name, (samples, text) in planted.items():
        write_wav(root / f"{name}.wav", samples.astype(np.float32), 16000)
        rows.append((name, text, "train"))
    (root / "broken.wav").write_bytes(b"nothing")
    rows += [("broken", "rota", "train"), ("good00", "otra vez", "train")]
    table = "file_name,text,split\n" + "".join(f"{name},{text},{split}\n" for name, text, split in rows)
    (root / "metadata.csv").write_text(table, encoding="utf-8")
    return root


EXPECTED = {
    ("brief", "too short"), ("long", "too long"), ("silent", "silent"), ("clipped", "clipped"),
    ("pause", "silence"), ("faint", "loudness"), ("wrong", "speaking rate"), ("double", "duplicate"),
    ("leak", "in two splits"),
}  # fmt: skip


class TestSuspects:
    def test_each_planted_fault_is_found_and_nothing_else(self, faulty: Path) -> None:
        found = inspect(survey(faulty))
        assert {(one.id, one.kind) for one in found.suspects} == EXPECTED
        assert {problem.partition(" (")[2].partition(")")[0] for problem in found.problems} == {
            "broken",
            "good00",
        }
        assert found.rate_outliers == {"wrong"}
        assert len(found.measured) == 39

    def test_unknown_characters_are_counted(self, tmp_path: Path, tone: Tone) -> None:
        write_wav(tmp_path / "a.wav", tone(), 16000)
        write_wav(tmp_path / "b.wav", tone(pitch=300), 16000)
        (tmp_path / "metadata.csv").write_text("a|Año uno\nb|baño\n", encoding="utf-8")
        vocab = {character: number for number, character in enumerate("_abo un")}
        spec = {
            "kind": "characters", "vocab": vocab, "add_blank": True, "normalize": True, "is_uroman": False,
            "phonemize": False, "language": None, "pad_token": "_", "unk_token": "<unk>",
        }  # fmt: skip
        found = inspect(survey(tmp_path), front_end=FrontEnd.from_spec(spec))
        assert found.unknown == {"ñ": 2}
        assert found.characters["a"] == 2
        assert found.characters["u"] == 1


class TestCommand:
    def test_reports_and_draws(self, faulty: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["inspect", str(faulty)]) == 2
        said = capsys.readouterr().out
        assert "2 rows cannot be used" in said
        assert "metadata.csv:41 (broken)" in said
        for name, _ in EXPECTED:
            assert f"({name})" in said
        assert (faulty / "inspect.png").read_bytes().startswith(b"\x89PNG")

    def test_a_sound_dataset_passes(
        self, tmp_path: Path, tone: Tone, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for number in range(4):
            write_wav(tmp_path / f"{number}.wav", tone(2, 200 + 50 * number), 16000)
        lines = [
            "0|veinte letras aqui va",
            "1|otras veinte letras",
            "2|aun otras letras mas",
            "3|las ultimas letras",
        ]
        (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        picture = tmp_path / "pictures" / "set.png"
        assert main(["inspect", str(tmp_path), "--plots", str(picture)]) == 0
        said = capsys.readouterr().out
        assert "4 recordings" in said
        assert "No suspect rows" in said
        assert picture.is_file()
        assert main(["inspect", str(tmp_path), "--no-plots", "--split", "test"]) == 0
        assert "1 recording, " in capsys.readouterr().out

    def test_the_advice_names_the_columns_that_were_named(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_wav(tmp_path / "0.wav", np.full(8000, 0.1, np.float32), 16000)
        (tmp_path / "metadata.csv").write_text("file_name,phrase,who\n0,veinte letras aqui va,ana\n")
        read = ["--text-column", "phrase", "--speaker-column", "who"]
        assert main(["inspect", str(tmp_path), "--no-plots", *read]) == 0
        assert f"vits data clean {tmp_path} {' '.join(read)}\n" in capsys.readouterr().out

    def test_where_no_picture_can_be_written_the_rest_is_told(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """As where recordings are mounted read-only; only who asked for the picture is failed."""
        write_wav(tmp_path / "0.wav", np.full(16000, 0.1, np.float32), 16000)
        (tmp_path / "metadata.csv").write_text("0|veinte letras aqui va\n")
        taken = tmp_path / "inspect.png"
        taken.mkdir()
        assert main(["inspect", str(tmp_path)]) == 0
        assert "no picture: the picture cannot be written: " in capsys.readouterr().out
        with pytest.raises(UserError, match="Name another place with --plots"):
            main(["inspect", str(tmp_path), "--plots", str(taken)])

    def test_no_line_is_broken_by_hand(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Through a pipe a sentence must stay whole, however deep the folder is."""
        folder = tmp_path / ("a-long-name-" * 8)
        folder.mkdir()
        write_wav(folder / "0.wav", np.full(16000, 0.1, np.float32), 16000)
        (folder / "metadata.csv").write_text("0|veinte letras aqui va\n")
        assert main(["inspect", str(folder), "--no-plots"]) == 0
        assert (
            capsys.readouterr()
            .out.splitlines()[0]
            .startswith(f"{folder}: 1 recording, 0.00 hours (0.0 minutes)")
        )

    def test_reading_data_never_imports_torch(self) -> None:
        code = "import sys, services.training.data.cli, services.training.data; assert 'torch' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True)
