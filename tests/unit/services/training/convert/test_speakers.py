"""Single to multi-speaker, and more speakers for a model that has some."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import VitsModel

from services.cli import main
from services.training.convert.speakers import convert
from shared.errors import ModelError
from shared.modeling import load_model, synthesize
from shared.text import FrontEnd
from tests.conftest import write_small_model

IDS = torch.tensor([0, 5, 0, 7, 0, 9, 0])


def speak(folder: Path, speaker: int | None) -> torch.Tensor:
    return torch.tensor(synthesize(load_model(folder), IDS, seed=3, speaker_id=speaker).samples)


def test_every_new_speaker_sounds_as_the_only_voice(spanish_model: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(spanish_model, source)
    save_file({"x": torch.ones(2)}, source / "discriminator.safetensors")
    ids = convert(source, tmp_path / "two", ["ana", "luis"], embedding_size=6)
    assert ids == {"ana": 0, "luis": 1}
    assert json.loads((tmp_path / "two/speakers.json").read_text()) == ids
    before = speak(source, None)
    for number in ids.values():
        torch.testing.assert_close(speak(tmp_path / "two", number), before, rtol=1e-5, atol=1e-7)
    config = load_model(tmp_path / "two").config
    assert (config.num_speakers, config.speaker_embedding_size) == (2, 6)
    assert load_file(tmp_path / "two/discriminator.safetensors")["x"].tolist() == [1.0, 1.0]
    assert FrontEnd.from_folder(tmp_path / "two") == FrontEnd.from_folder(source)
    _, report = cast("Any", VitsModel).from_pretrained(tmp_path / "two", output_loading_info=True)
    assert not report["missing_keys"]


@pytest.mark.parametrize("named", [True, False])
def test_speakers_that_it_has_keep_their_voices(named: bool, tmp_path: Path) -> None:
    source = write_small_model(tmp_path / "source", num_speakers=2)
    if named:
        (source / "speakers.json").write_text('{"luis": 1, "ana": 0}')
    ids = convert(source, tmp_path / "more", ["eva"])
    assert ids == ({"luis": 1, "ana": 0, "eva": 2} if named else {"0": 0, "1": 1, "eva": 2})
    for number in (0, 1):
        assert torch.equal(speak(tmp_path / "more", number), speak(source, number))
    assert load_model(tmp_path / "more").config.num_speakers == 3


@pytest.mark.parametrize(
    ("names", "count", "known", "message"),
    [
        (["ana"], 1, None, "speaks with one voice; name all speakers"),
        ([], 1, None, "speaks with one voice"),
        (["ana", "ana"], 1, None, "'ana' cannot be added"),
        (["ana", " "], 1, None, "'' cannot be added"),
        (["ana"], 2, '{"ana": 0, "eva": 1}', "has ana, eva already"),
        ([], 2, None, "--speakers"),
        (["leo"], 2, "[1]", "is not of the form"),
        (["leo"], 2, '{"ana": 7}', "has ids beyond the model's 2 speakers"),
    ],
)  # fmt: skip
def test_names_that_do_not_do(
    names: list[str], count: int, known: str | None, message: str, tmp_path: Path
) -> None:
    source = write_small_model(tmp_path / "source", num_speakers=count)
    if known:
        (source / "speakers.json").write_text(known)
    with pytest.raises(ModelError, match=re.escape(message)):
        convert(source, tmp_path / "out", names)
    assert not (tmp_path / "out").exists()


def test_command_line(spanish_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "convert",
        "multi-speaker",
        str(spanish_model),
        "--output",
        str(tmp_path / "two"),
        "--speakers",
    ]
    assert main([*command, "ana, luis"]) == 0
    assert "ana (0), luis (1)" in capsys.readouterr().out
    assert main([*command, "ana"]) == 2
    assert load_model(tmp_path / "two").config.speaker_embedding_size == 256
