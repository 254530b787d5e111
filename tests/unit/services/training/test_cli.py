"""``vits train`` at the command line, up to where the training begins."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services import cli as vits
from services.training import cli, loop
from services.training.config import SECRETS, SECTIONS, TrainingConfig
from services.training.config_help import markdown
from services.training.config_sources import load
from services.training.hf_arguments import KNOWN

REPOSITORY = Path(__file__).parents[4]
MINIMAL = {"model_name_or_path": "base", "dataset_name": "data"}


def test_help_lists_every_key_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert vits.main(["train", "--help"]) == 0
    told = capsys.readouterr().out
    for name in TrainingConfig.model_fields:
        assert f"\n  --{name} " in told
    assert "--model_name_or_path TEXT (required)" in told
    assert "--max_tokens_length N (450)" in told
    for title in SECTIONS:
        assert f"\n{title} (default):\n" in told
    for name, row in KNOWN.items():
        if row.fate in {"ignored", "refused"}:
            assert name in told


def test_the_help_is_quick(tmp_path: Path) -> None:
    """Nothing heavy is imported before there is something to train."""
    code = (
        "import sys; from services.training.cli import main; main(['--help']); "
        "print({'torch', 'transformers', 'accelerate', 'datasets'} & sys.modules.keys())"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert told.stdout.endswith("\nset()\n")


def test_every_key_says_what_it_means_and_stands_in_a_section() -> None:
    names = list(TrainingConfig.model_fields)
    assert names[0] == next(iter(SECTIONS.values()))
    assert [name for name in names if name in SECTIONS.values()] == list(SECTIONS.values())
    assert [name for name, field in TrainingConfig.model_fields.items() if not field.description] == []


def test_the_page_of_all_keys_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    """Mend it with ``vits train --help-markdown > docs/configuration.md``."""
    assert vits.main(["train", "--help-markdown"]) == 0
    page = capsys.readouterr().out
    assert page == markdown()
    assert page == (REPOSITORY / "docs/configuration.md").read_text(encoding="utf-8")
    for name in (*TrainingConfig.model_fields, *KNOWN):
        assert f"\n| `{name}` |" in page


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
    assert load([second], {})[0] == load([first], {"bf16": True})[0].model_copy(update=without)


def test_a_printed_configuration_says_what_its_defaults_come_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def resolved(**values: object) -> dict[str, str]:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(MINIMAL | values), encoding="utf-8")
        assert cli.main([str(path), "--print-config"]) == 0
        printed: dict[str, str] = json.loads(capsys.readouterr().out)["_resolved"]
        return printed

    plain = resolved()
    assert plain["evaluation"] == "sample texts only"
    assert plain["checkpoints"] == "every 500 steps; the last step always"
    assert plain["learning rate"] == "generator 2e-05, discriminator 2e-05; times 0.999875 each epoch"
    assert plain["steps of joint training"] == "3 times those of an epoch"
    assert plain["precision"] == "fp32"
    assert plain["best model"] == "not kept"
    other = resolved(
        do_eval=True, save_strategy="no", logging_strategy="epoch", do_step_schedule_per_epoch=False, fp16=True,
        warmup_steps=30, discriminator_learning_rate=1e-4, gradient_accumulation_steps=4, max_steps=70, keep_best=2,
        hub_model_id="me/ana", push_to_hub=True, store="s3://voices", warm_up_new_modules_steps=9,
    )  # fmt: skip
    assert other["evaluation"] == other["log"] == "once an epoch"
    assert other["checkpoints"] == "never; the last step always"
    assert (
        other["learning rate"] == "generator 2e-05, discriminator 0.0001; rising over 30 steps, then linear"
    )
    assert other["recordings of a step"] == "32 on each device"
    assert other["steps of joint training"] == "70"
    assert other["steps of the first stage"] == "9, if the base has new modules"
    assert other["best model"] == "by mel"
    assert other["hub"] == "me/ana"
    assert other["model in the store"] == "ana@latest in s3://voices"


def test_a_layer_goes_over_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, layer = tmp_path / "base.json", tmp_path / "layer.json"
    base.write_text(json.dumps(MINIMAL | {"seed": 1, "fp16": True}), encoding="utf-8")
    layer.write_text('{"seed": 2}', encoding="utf-8")
    assert cli.main(["--config", str(base), "--config", str(layer), "--print-config"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["seed"], printed["fp16"]) == (2, True)


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
    assert "max_tokens_length on the command line: 'x'" in told
    assert "Traceback" not in told


def test_only_the_main_process_remarks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--model_name_or_path",
        "base",
        "--dataset_name",
        "data",
        "--uroman_path",
        "x",
        "--print-config",
    ]
    monkeypatch.setenv("RANK", "1")
    assert cli.main(arguments) == 0
    assert not capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    assert cli.main(arguments) == 0
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_gpus_are_hidden_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "train", lambda config: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    arguments = ["--model_name_or_path", "base", "--dataset_name", "data"]
    assert cli.main(arguments) == 0
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert cli.main([*arguments, "--no_cuda"]) == 0
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_sigterm_ends_a_run_that_has_nothing_to_save_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As process 1 of a container, Python would otherwise not hear it."""

    def told_to_stop(_config: TrainingConfig) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(loop, "train", told_to_stop)
    path = tmp_path / "voice.json"
    path.write_text(json.dumps(MINIMAL | {"output_dir": str(tmp_path / "output")}), encoding="utf-8")
    with pytest.raises(SystemExit, match="143"):
        cli.main(["--config", str(path)])
    assert signal.getsignal(signal.SIGTERM) is before
