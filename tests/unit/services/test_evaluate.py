"""``vits evaluate`` as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.cli import main as vits
from services.evaluate import main, parser, read_sentences
from shared.audio import write_wav
from shared.errors import DataError, UserError
from tests.unit.services.evaluation.conftest import (  # noqa: F401 - fixtures
    RATE,
    fake_judges,
    spoken_dataset,
    tone,
)

MakeDataset = Callable[..., Path]


def read(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "evaluation.json").read_text())
    return found


def test_a_model_beside_recordings(
    fake_judges: dict[str, str],  # noqa: F811
    spanish_model: Path,
    spoken_dataset: MakeDataset,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = spoken_dataset(["hola", "buenos días", "la casa"])
    arguments = [
        "evaluate",
        str(spanish_model),
        "--data",
        str(data),
        "--limit",
        "2",
        "--output",
        str(tmp_path / "out"),
    ]
    assert vits(arguments) == 0
    printed = capsys.readouterr().out
    assert "2 sentences, 3 words" in printed
    assert "real-time factor" in printed
    result = read(tmp_path / "out")
    assert set(result["rows"]) == {"system", "recordings"}
    assert result["rows"]["system"]["wer"] == result["rows"]["recordings"]["wer"]
    assert "data:audio/flac" in (tmp_path / "out" / "evaluation.html").read_text()


def test_sentences_of_a_file(
    fake_judges: dict[str, str],  # noqa: F811
    spanish_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "texts.txt").write_text("hola\n\n  buenos días \n", encoding="utf-8")
    assert [one.text for one in read_sentences(tmp_path / "texts.txt")] == ["hola", "buenos días"]
    output = tmp_path / "out"
    main(
        [str(spanish_model), "--sentences", str(tmp_path / "texts.txt"), "--output", str(output), "--no-page"]
    )
    assert "not measured: speaker likeness: there are no recordings" in capsys.readouterr().out
    assert [file.name for file in output.iterdir()] == ["evaluation.json"]


def test_recordings_beside_the_real_ones(
    fake_judges: dict[str, str],  # noqa: F811
    spoken_dataset: MakeDataset,  # noqa: F811
    tmp_path: Path,
) -> None:
    data = spoken_dataset(["hola", "buenos días"])
    made = tmp_path / "made"
    made.mkdir()
    write_wav(made / "clip1.wav", tone(130, seconds=0.5), RATE)
    main([str(made), "--data", str(data), "--output", str(tmp_path / "out"), "--no-page"])
    result = read(tmp_path / "out")
    assert result["sentences"] == 1
    assert "f0_error" in result["rows"]["system"]
    assert "real_time_factor" in result["not_measured"]
    main([str(made), "--output", str(tmp_path / "out"), "--no-page"])
    assert set(read(tmp_path / "out")["rows"]["system"]) == {"dnsmos", "distillmos"}
    write_wav(made / "stranger.wav", tone(130, seconds=0.5), RATE)
    with pytest.raises(DataError, match="1 recording of 2 have no text"):
        main([str(made), "--data", str(data)])


def test_a_dataset_is_recordings_too(
    fake_judges: dict[str, str],  # noqa: F811
    spoken_dataset: MakeDataset,  # noqa: F811
    tmp_path: Path,
) -> None:
    data, same = spoken_dataset(["hola", "adiós"]), spoken_dataset(["hola", "adiós"], name="same")
    main([str(data), "--output", str(tmp_path / "out"), "--no-page"])
    assert "wer" in read(tmp_path / "out")["rows"]["system"]
    main([str(same), "--data", str(data), "--output", str(tmp_path / "out"), "--no-page"])
    assert set(read(tmp_path / "out")["rows"]) == {"system", "recordings"}
    other = spoken_dataset(["hola", "hasta luego", "gracias"], name="other")
    with pytest.raises(DataError) as caught:
        main([str(other), "--data", str(data)])
    assert len(caught.value.problems) == 2
    assert "it says 'hasta luego'" in str(caught.value)
    assert "no sentence of that id" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Nothing to say"),
        (["--data", "x", "--sentences", "y"], "--data and --sentences"),
        (["--sentences", "nowhere.txt"], r"nowhere\.txt cannot be read"),
        (["--data", "./nowhere"], "There is no dataset"),
        (["--data", "x", "--limit", "0"], "--limit is 0"),
        (["--data", "x", "--threads", "-1"], "--threads is -1"),
        (["--data", "x", "--players", "-1"], "--players is -1"),
        (["--data", "x", "--output", "{model}/config.json"], "which is a file"),
        (["--data", "x", "--output", "{model}/config.json/out"], "give another --output"),
        (["--sentences", "{model}/config.json", "--judges", "dnsmos,pesq"], "no judge pesq"),
    ],
)
def test_arguments_that_cannot_be(
    arguments: list[str], message: str, spanish_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        main([str(spanish_model), *(one.format(model=spanish_model) for one in arguments)])
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_and_an_empty_text(tmp_path: Path, spanish_model: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no recordings"):
        main([str(tmp_path / "empty")])
    (tmp_path / "texts.txt").write_text("\n \n")
    with pytest.raises(UserError, match="are empty"):
        main([str(spanish_model), "--sentences", str(tmp_path / "texts.txt")])
    (tmp_path / "texts.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read"):
        main([str(spanish_model), "--sentences", str(tmp_path / "texts.txt")])


def test_the_help_names_every_measure_and_judge() -> None:
    from services.evaluation.evaluating import MEASURES
    from services.evaluation.judges import JUDGES

    text = parser().format_help()
    assert all(title.lower() in text.lower() for title, _, _ in MEASURES.values())
    assert ",".join(JUDGES) in text
