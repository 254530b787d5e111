"""``vits train --profile``: an account of a step by its parts, a trace, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services import cli
from services.training import profiling
from services.training.profiling import Part, parts, table
from shared.errors import ConfigError, UserError


@pytest.fixture(autouse=True)
def surroundings(small_discriminator: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))


def test_a_real_profile_accounts_for_the_parts_of_a_step(
    make_config: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of each stage that the run has: here, of the text stage and of joint training."""
    accounts: list[dict[str, Part]] = []

    def keep(events: Any, steps: int) -> dict[str, Part]:
        accounts.append(parts(events, steps))
        return accounts[-1]

    monkeypatch.setattr(profiling, "parts", keep)
    config = make_config(max_steps=1, logging_steps=1, text_stage_steps=24)
    folder = profiling.run(config, 2)
    reading, account = accounts
    told = capsys.readouterr().out
    for stage in ("text stage", "joint training"):
        assert f"{stage}: 2 steps, after 2 that do not count" in told
        assert f"{stage}, milliseconds a step" in told
    assert "first stage" not in told
    for name in ("text encoder", "flow", "duration predictor"):
        assert reading[name].backward > 0, name
    assert {"decoder", "discriminators"} & reading.keys() == set()
    assert reading["posterior encoder"].forward > 0  # latents, in the stage's first epoch
    both_ways = {
        "text encoder",
        "posterior encoder",
        "flow",
        "duration predictor",
        "decoder",
        "discriminators",
    }
    for name in both_ways:
        assert account[name].forward > 0, name
        assert account[name].backward > 0, name
    for name in ("alignment", "data", "logging", "spectrograms", "clipping and optimisers", "losses"):
        assert account[name].forward > 0, name
    whole = sum(part.forward + part.backward for part in account.values())
    rest = account["everything else"]
    assert rest.forward + rest.backward < 0.5 * whole
    text = (folder / "profile.txt").read_text()
    assert all(name in text for name in both_ways)
    traces = {
        stage: json.loads((folder / f"trace-{stage}.json").read_text())["traceEvents"]
        for stage in ("text", "joint")
    }
    decodes = {
        stage: any(event.get("name") == "vits:decoder" for event in events)
        for stage, events in traces.items()
    }
    assert decodes == {"text": False, "joint": True}
    assert sorted(path.name for path in config.output_dir.iterdir()) == ["profile"]
    assert not list(Path(str(config.store).removeprefix("file://")).rglob("*.json"))


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_cannot_be_written_is_said_before_anything_is_profiled(
    make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    monkeypatch.setattr(profiling, "begin", lambda *_: pytest.fail("it was profiled"))
    (tmp_path / "output").mkdir()
    if there:
        (tmp_path / "output/profile").symlink_to("/proc")  # is there, and nobody may write in it
    else:
        (tmp_path / "output/profile").write_text("a file")
    with pytest.raises(UserError, match=r"/profile cannot be written \(.*\): give another --output_dir"):
        profiling.run(make_config(), 1)


def event(
    name: str, *, parent: Any = None, number: int = -1, microseconds: float = 0.0, forward_thread: int = 0
) -> Any:
    return SimpleNamespace(
        name=name,
        cpu_parent=parent,
        sequence_nr=number,
        thread=1,
        fwd_thread=forward_thread,
        self_cpu_time_total=microseconds,
        self_device_time_total=0.0,
    )


def test_time_goes_to_the_innermost_part_and_a_gradient_to_its_operations_part() -> None:
    step = event("vits:losses", microseconds=10)
    decoder = event("vits:decoder", parent=step, microseconds=20)
    convolution = event("aten::conv1d", parent=decoder, number=7, microseconds=3000)
    backward = event("autograd::engine::evaluate_function: ConvolutionBackward0", number=7, forward_thread=1)
    inner = event("aten::convolution_backward", parent=backward, microseconds=5000)
    alone = event("aten::add", microseconds=1000)
    account = parts([step, decoder, convolution, backward, inner, alone], 2)
    assert account["decoder"] == Part(forward=1.51, backward=2.5)
    assert account["losses"].forward == pytest.approx(0.005)
    assert account["everything else"] == Part(forward=0.5)
    lines = table(account, 2).splitlines()
    assert lines[2].startswith("decoder")
    assert lines[-1].split()[-1] == "4.5"


@pytest.mark.parametrize("value", ["soon", "0", "-1"])
def test_a_profile_of_no_steps_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--model_name_or_path", "x", "--dataset_name", "y", f"--profile={value}"]) == 2
    assert "is no number of steps" in capsys.readouterr().err


def test_several_processes_are_not_profiled(monkeypatch: pytest.MonkeyPatch) -> None:
    from services.training.cli import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="profiles one process"):
        main(["--model_name_or_path", "x", "--dataset_name", "y", "--profile"])
