"""``vits train`` at the command line, up to where the training begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services import cli as vits
from services.training import cli, loop
from services.training.config import IGNORED, SECRETS, TrainingConfig, load

MINIMAL = {"model_name_or_path": "base", "dataset_name": "data"}


def test_help_lists_every_key_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert vits.main(["train", "--help"]) == 0
    told = capsys.readouterr().out
    for name in TrainingConfig.model_fields:
        assert f"\n  --{name} " in told
    assert "--model_name_or_path TEXT (required)" in told
    assert "--max_tokens_length N (450)" in told
    for name in IGNORED:
        assert name in told


def test_no_arguments_show_the_help_and_fail(capsys: pytest.CaptureFixture[str]) -> None:
    assert vits.main(["train"]) == 2
    assert "usage: vits train" in capsys.readouterr().out


def test_printed_configurations_go_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = tmp_path / "first.json"
    values = MINIMAL | {"token": "hf_secret", "hub_token": "hf_secret", "uroman_path": "x", "seed": 7}
    first.write_text(json.dumps(values), encoding="utf-8")
    assert cli.main(["--config", str(first), "--print-config", "--bf16"]) == 0
    told = capsys.readouterr()
    assert "hf_secret" not in told.out + told.err
    second = tmp_path / "second.json"
    second.write_text(told.out, encoding="utf-8")
    without = dict.fromkeys(SECRETS)
    assert load(second, {}) == load(first, {"bf16": True}).model_copy(update=without)


def test_the_file_may_stand_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the ancestor's command."""
    trained: list[TrainingConfig] = []
    monkeypatch.setattr(loop, "train", trained.append)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(MINIMAL), encoding="utf-8")
    assert cli.main([str(path), "--uroman_path", "/opt/uroman", "--seed", "3"]) == 0
    assert [config.seed for config in trained] == [3]
    assert "uroman_path is not needed" in capsys.readouterr().err


def test_mistakes_end_with_code_2_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vits.main(["train", "--config", str(tmp_path / "none.json")]) == 2
    assert vits.main(["train", "--sed", "1", "--max_tokens_length", "x"]) == 2
    told = capsys.readouterr().err
    assert "did you mean 'seed'?" in told
    assert "max_tokens_length: 'x'" in told
    assert "Traceback" not in told
