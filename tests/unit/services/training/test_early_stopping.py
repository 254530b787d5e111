"""Early stopping: it waits while a noisy measure still falls, and ends what no longer improves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from services.training import loop
from services.training.checkpoints import TrainerState
from services.training.config import TrainingConfig
from services.training.early_stopping import out_of_patience, without_progress
from services.training.publishing import Publisher
from services.training.session import Plan, Session
from shared.errors import ConfigError

MakeConfig = Callable[..., TrainingConfig]
PATIENCE = 5


def ended(values: list[float], *, smoothing: float = 0.6, min_delta: float = 0.001) -> int | None:
    """After how many evaluations a run would have ended."""
    for count in range(1, len(values) + 1):
        if without_progress(values[:count], min_delta=min_delta, smoothing=smoothing) >= PATIENCE:
            return count
    return None


def falling(slope: float, noise: float, count: int, seed: int) -> list[float]:
    drawn = np.random.default_rng(seed).normal(0, noise, count)
    return [float(1.0 - slope * at + one) for at, one in enumerate(drawn)]


@pytest.mark.parametrize("seed", range(10))
def test_noise_on_a_run_that_still_improves_does_not_end_it(seed: int) -> None:
    """The noise is larger than what an evaluation gains."""
    assert ended(falling(0.01, 0.015, 40, seed)) is None


def test_without_smoothing_the_same_noise_would_end_runs() -> None:
    """So the smoothing is what saves them."""
    runs = [falling(0.01, 0.015, 40, seed) for seed in range(10)]
    assert any(ended(run, smoothing=0.0) for run in runs)


def with_a_plateau(seed: int) -> list[float]:
    """Down, three evaluations longer than patience on a plateau with a little noise, and down again."""
    down = [1 - 0.05 * at for at in range(8)]
    plateau = 0.65 + np.random.default_rng(seed).normal(0, 0.004, PATIENCE + 3)
    return [*down, *plateau.tolist(), *(0.65 - 0.05 * at for at in range(1, 6))]


@pytest.mark.parametrize("seed", range(10))
def test_a_noisy_plateau_on_the_way_down_does_not_end_it(seed: int) -> None:
    assert ended(with_a_plateau(seed)) is None


def test_without_smoothing_such_plateaus_would_end_runs() -> None:
    assert sum(ended(with_a_plateau(seed), smoothing=0.0) is not None for seed in range(10)) >= 3


def test_one_lucky_evaluation_sets_no_bar() -> None:
    values = [1 - 0.02 * at for at in range(20)]
    lucky = [*values[:4], 0.8, *values[4:]]
    assert ended(lucky) is None
    assert ended(lucky, smoothing=0.0) == 5 + PATIENCE


@pytest.mark.parametrize("seed", range(5))
def test_what_gets_worse_is_ended(seed: int) -> None:
    """Overfitting: a measure that has turned."""
    noise = np.random.default_rng(seed).normal(0, 0.01, 30)
    values = (
        1 - 0.05 * np.minimum(np.arange(30), 10) + 0.02 * np.maximum(np.arange(30) - 10, 0) + noise
    ).tolist()
    end = ended(values)
    assert end is not None
    assert 11 + PATIENCE <= end <= 13 + 2 * PATIENCE


def test_a_fall_below_min_delta_is_no_progress() -> None:
    values = [1 - 0.0001 * at for at in range(20)]
    assert ended(values) == PATIENCE + 1
    assert ended(values, min_delta=0.0) is None
    assert ended([-2.0 - 0.05 * at for at in range(20)]) is None  # a KL of one sample can be negative


def test_a_run_ends_early_and_is_complete(
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Any,
    small_discriminator: None,
) -> None:
    """Its last step is saved, the model is whole, and starting it again finds nothing left to do."""
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("services.training.evaluation.held_out_losses", lambda *_: {"mel": 1.0})
    config = make_config(do_eval=True, eval_steps=1, max_steps=20, save_steps=100, early_stopping_patience=2)
    folder = loop.train(config)
    state = TrainerState.read(folder)
    assert state is not None
    assert state.finished
    assert state.global_step == 2  # the first evaluation is before the first step
    assert (folder / "model.safetensors").is_file()
    assert (folder / "checkpoint-2").is_dir()
    assert (
        "step 2: mel has made no progress in 2 evaluations (early_stopping_patience)"
        in capsys.readouterr().out
    )
    loop.train(config)
    assert "nothing left to do" in capsys.readouterr().out


def test_a_run_that_was_killed_after_its_early_end_has_ended(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, small_discriminator: None
) -> None:
    """Between the last checkpoint and the final model: it does not train on until the next evaluation."""
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("services.training.evaluation.held_out_losses", lambda *_: {"mel": 1.0})
    config = make_config(do_eval=True, eval_steps=1, max_steps=20, save_steps=100, early_stopping_patience=2)
    with monkeypatch.context() as killed:
        killed.setattr(Publisher, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            loop.train(config)
    state = TrainerState.read(loop.train(config))
    assert state is not None
    assert (state.finished, state.global_step) == (True, 2)


def test_evaluations_of_the_first_stage_do_not_count(make_config: MakeConfig) -> None:
    config = make_config(do_eval=True, eval_steps=1, early_stopping_patience=2)
    history = [{"step": step, "eval_mel": 1.0} for step in range(6)]
    assert out_of_patience(config, history, 4) is None
    assert out_of_patience(config, history, 3)
    assert out_of_patience(make_config(do_eval=True, eval_steps=1), history, 0) is None


@pytest.mark.parametrize(
    ("metric", "reconstruction", "start"), [("mel", 3, 0), ("mel", 3, 9), ("loss", 2, 1)]
)
def test_what_is_evaluated_before_all_of_the_model_learns_is_no_bar(
    make_config: MakeConfig, metric: str, reconstruction: int, start: int
) -> None:
    """Neither the reconstruction stage's last evaluation, nor a loss that has no discriminator in it yet."""
    config = make_config(
        do_eval=True,
        metric_for_best_model=metric,
        early_stopping_patience=2,
        early_stopping_smoothing=0.0,
        discriminator_start_step=start,
    )
    values = {2: 0.1, 3: 0.2, 4: 0.9, 5: 0.8}
    names = ("mel", "kl", "duration", "generator", "feature_maps", "loss")

    def evaluated(step: int, value: float) -> dict[str, float]:
        return {"step": step, **{f"eval_{name}": value for name in names}}

    history = [evaluated(step, value) for step, value in values.items()]
    parts: dict[str, Any] = dict.fromkeys(part.name for part in fields(Session))
    parts |= {"config": config, "plan": Plan(joint=8, per_epoch=1, reconstruction=reconstruction)}
    parts |= {"state": TrainerState(log_history=history, warm_up_steps=reconstruction)}
    course: Any = SimpleNamespace(session=Session(**parts))
    assert loop.Course._enough(course) is None
    history += [evaluated(step, 0.8) for step in (6, 7)]
    assert loop.Course._enough(course)


def test_without_evaluations_there_is_no_early_stopping(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="early_stopping_patience needs evaluations"):
        make_config(early_stopping_patience=3)
