"""The learning-rate finder and the batch-size finder."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from services.training.config import TrainingConfig
from services.training.session import begin
from services.training.steps import Steps
from services.training.tuning import batch_size, cli, learning_rate
from services.training.tuning.batch_size import find_batch_size
from services.training.tuning.learning_rate import Curve, find_learning_rate
from shared.errors import ConfigError, UserError

MakeConfig = Callable[..., TrainingConfig]
GB = 2**30


# -- Learning rate ---------------------------------------------------------------------------------


def test_the_suggestion_is_a_tenth_of_where_the_loss_is_lowest() -> None:
    rates = tuple(10 ** (-7 + 5 * at / 50) for at in range(51))
    losses = tuple(2 + (math.log10(rate) + 3) ** 2 for rate in rates)  # lowest at 1e-3
    assert Curve(rates, losses).suggestion == pytest.approx(1e-4)


def test_where_the_loss_never_falls_nothing_is_suggested(make_config: MakeConfig) -> None:
    flat = Curve((1e-6, 1e-5, 1e-4), (2.0, 1.995, 2.5))
    assert flat.suggestion is None
    assert "keep the learning_rate" in learning_rate.describe(flat, make_config())[-1]
    assert Curve((), ()).suggestion is None


def test_the_finder_leaves_the_run_as_it_was(make_config: MakeConfig) -> None:
    config = make_config()
    config.output_dir.mkdir()
    session = begin(config, Accelerator(cpu=True))
    networks = (session.generator, session.discriminator)
    before = [copy.deepcopy(network.state_dict()) for network in networks]
    state = copy.deepcopy(session.state)
    random = torch.get_rng_state()
    curve = find_learning_rate(session, lowest=1e-6, highest=10.0, ramp=20)
    assert len(curve.rates) < 20  # it ends where the loss has gone
    assert curve.rates[0] == 1e-6
    for network, weights in zip(networks, before, strict=True):
        assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
        assert all(value.grad is None for value in network.parameters())
    assert session.state == state
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("what", ["lr", "batch"])
def test_a_folder_that_cannot_be_written_is_said_before_anything_is_measured(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr("services.training.session.begin", lambda *_: pytest.fail("it was measured"))
    monkeypatch.setattr(batch_size, "find_batch_size", lambda *_: pytest.fail("it was measured"))
    path = tmp_path / "config.json"
    path.write_text(make_config().model_dump_json(), encoding="utf-8")
    (tmp_path / "output").mkdir()
    (tmp_path / "output/tune").symlink_to("/proc")  # is there, and nobody may write in it
    with pytest.raises(UserError, match=r"/tune cannot be written \(.*\): give another --output_dir"):
        cli.main([what, "--config", str(path)])


def test_vits_tune_lr_writes_a_layer_and_a_page(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    path.write_text(make_config().model_dump_json(), encoding="utf-8")
    assert cli.main(["lr", "--config", str(path), "--ramp", "20", "--lowest", "1e-5", "--highest", "1"]) == 0
    folder = tmp_path / "output" / "tune"
    suggested = json.loads((folder / "learning-rate.json").read_text())["learning_rate"]
    assert 1e-5 < suggested < 0.1
    assert f"learning_rate {suggested:g}" in capsys.readouterr().out
    page = (folder / "learning-rate.html").read_text()
    assert 'class="boundary"' in page  # the line at the suggestion
    assert not (tmp_path / "store").exists()
    assert not list((tmp_path / "output").rglob("*.safetensors"))


# -- Batch size ------------------------------------------------------------------------------------


class Machine:
    """A step that takes so much and so much more for each recording; half as much with checkpointing."""

    def __init__(self, fixed: float, each: float, *, dies_above: float = math.inf) -> None:
        self.fixed, self.each, self.dies_above = fixed, each, dies_above
        self.asked: list[tuple[int, bool]] = []

    def __call__(self, size: int, checkpointing: bool) -> int | None:
        self.asked.append((size, checkpointing))
        peak = self.fixed + size * self.each * (0.5 if checkpointing else 1)
        return None if peak > self.dies_above else round(peak * GB)


@pytest.mark.parametrize(
    ("limit", "batch", "accumulation", "checkpointing"),
    [
        (20, 16, 1, False),  # 2 + 16
        (12, 8, 2, False),  # 2 + 8
        (7, 4, 4, False),  # 2 + 4
        (5, 4, 4, True),  # 2 + 2: rather than batches of two without it
        (3.5, 2, 8, True),
        (2.9, 1, 16, True),
    ],
)
def test_the_largest_batch_that_fits_is_found(
    limit: float, batch: int, accumulation: int, checkpointing: bool
) -> None:
    machine = Machine(2, 1)
    found = find_batch_size(16, round(limit * GB), machine)
    assert (found.batch, found.accumulation, found.checkpointing) == (batch, accumulation, checkpointing)
    assert (batch, checkpointing) in machine.asked  # measured, not only predicted
    assert found.layer["per_device_train_batch_size"] * found.layer["gradient_accumulation_steps"] == 16


def test_what_cannot_fit_is_not_measured() -> None:
    machine = Machine(2, 1)
    find_batch_size(64, 12 * GB, machine)
    assert max(size for size, _ in machine.asked) == 8


def test_a_process_that_is_killed_is_no_room() -> None:
    found = find_batch_size(8, 100 * GB, Machine(2, 1, dies_above=7))
    assert (found.batch, found.accumulation) == (4, 2)


def test_where_nothing_fits_that_is_said(make_config: MakeConfig) -> None:
    found = find_batch_size(8, GB, Machine(2, 1))
    assert found.batch is None
    assert found.layer == {}
    assert "Not even one" in batch_size.describe(found, 8)[0]


@pytest.mark.parametrize("find", ["rate", "peak"])
def test_finders_take_joint_steps_of_a_base_that_has_stages_before_them(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, find: str
) -> None:
    """Counted from 0 they would lie before joint training: with no judge that learns, and a negative weight of KL."""
    config = make_config(text_stage_steps=50, kl_annealing_steps=4)
    config.output_dir.mkdir()
    taken: list[tuple[bool, float]] = []
    joint = Steps.joint

    def watched(steps: Steps, seen: Any, step: int) -> dict[str, torch.Tensor]:
        losses = joint(steps, seen, step)
        taken.append(("discriminator" in losses, float(steps._weighted({"kl": torch.tensor(1.0)}, step))))
        return losses

    monkeypatch.setattr(Steps, "joint", watched)
    if find == "rate":
        find_learning_rate(begin(config, Accelerator(cpu=True)), lowest=1e-6, highest=1e-5, ramp=2)
    else:
        assert batch_size._measure_here(config, 1) > 0
    assert [learns for learns, _ in taken] == [True, True]
    assert all(weight > 0 for _, weight in taken)


def test_what_is_measured_is_the_most_that_a_batch_may_come_to(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a budget a few long recordings and many short ones; and each as slow as an epoch may make it."""
    budget = 600
    config = make_config(max_frames_per_batch=budget, max_duration_in_seconds=5, augment_speed=0.1)
    config.output_dir.mkdir()
    taken: list[tuple[int, int]] = []
    joint = Steps.joint

    def watched(steps: Steps, seen: Any, step: int) -> dict[str, torch.Tensor]:
        taken.append((len(seen[0].batch.ids), int(seen[0].batch.frame_lengths.max())))
        return joint(steps, seen, step)

    monkeypatch.setattr(Steps, "joint", watched)
    batch_size._measure_here(config, 8)
    examples = begin(config, Accelerator(cpu=True)).train
    longest = max(map(examples.most_frames, examples.examples))
    (few, frames), (many, shorter) = taken[:2]
    assert taken == 2 * [(few, frames), (many, shorter)]
    assert frames == pytest.approx(longest, abs=1)  # of a length that is rounded once more
    assert frames > 1.1 * max(map(examples.frames, examples.examples))
    assert few * longest <= budget < (few + 1) * longest
    assert few < many <= 8
    assert many * shorter <= budget


def test_a_peak_is_the_processs_own() -> None:
    """``ru_maxrss`` begins with what the parent held when it started the process."""
    code = "from services.training.tuning.batch_size import _peak; print(_peak())"
    before = int(subprocess.check_output([sys.executable, "-c", code], text=True))
    held = bytearray(b"1") * 2**29  # of this process
    after = int(subprocess.check_output([sys.executable, "-c", code], text=True))
    assert len(held) == 2**29
    assert after < before + 2**28


def test_a_real_step_is_measured_in_a_process_of_its_own(make_config: MakeConfig) -> None:
    measure = batch_size.measure_in_a_process(make_config())
    peak = measure(2, False)
    assert peak is not None
    assert 0.1 * GB < peak < 8 * GB


@pytest.mark.parametrize(
    ("code", "said", "room"),
    [(-9, "", True), (1, "RuntimeError: CUDA out of memory.", True), (2, "vits: no such model", False)],
)
def test_how_a_measurement_ended_is_understood(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, code: int, said: str, room: bool
) -> None:
    ended = subprocess.CompletedProcess([], code, "", said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    measure = batch_size.measure_in_a_process(make_config())
    if room:
        assert measure(1, False) is None
    else:
        with pytest.raises(ConfigError, match="no such model"):
            measure(1, False)
