"""What the demo promises about itself: its bar, and that nothing it started outlives it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from examples.demo import __main__ as demo
from examples.demo.compare import Comparison, mel_between
from examples.demo.page import plot_curves
from shared.errors import QualityError


def comparison(*, mel_after: float = 0.8, mos_after: float = 3.0) -> Comparison:
    return Comparison(
        mel_before=1.0,
        mel_between=0.9,
        mel_after=mel_after,
        mos_recordings=2.9,
        mos_before=3.2,
        mos_after=mos_after,
        sentences=14,
        heard=[],
        history=[],
        alignment=Figure(),
        spectrograms=Figure(),
    )


def test_the_bar_is_where_it_was_promised() -> None:
    demo.judge(comparison(mel_after=0.799, mos_after=3.001))


@pytest.mark.parametrize(
    "bad", [{"mel_after": 0.81}, {"mel_after": 0.95}, {"mos_after": 2.99}, {"mos_after": float("nan")}]
)
def test_a_training_that_did_no_good_fails_the_demo(bad: dict[str, float]) -> None:
    with pytest.raises(QualityError, match="did not do good"):
        demo.judge(comparison(**bad))


def test_an_interrupted_stage_leaves_no_process(tmp_path: Path) -> None:
    arguments = ("serve", "--store", tmp_path, "--http-port", "0", "--grpc-port", "0")
    with pytest.raises(KeyboardInterrupt), demo._child(arguments) as process:
        raise KeyboardInterrupt
    assert process.poll() is not None


def test_the_curves_are_drawn_from_the_log() -> None:
    history: list[dict[str, float]] = [
        {"step": 0, "eval_mel": 2.0, "eval_kl": 600.0, "eval_duration": 4.0},
        {"step": 1, "mel": 1.9, "kl": 500.0, "duration": 4.1, "stage": 1},
        {
            "step": 2,
            "mel": 1.0,
            "kl": 5.0,
            "duration": 2.0,
            "generator": 1.5,
            "discriminator": 3.0,
            "stage": 2,
        },
    ]
    drawn = {
        line.get_label(): np.asarray(line.get_xydata()).tolist()
        for axis in plot_curves(history).axes
        for line in axis.lines
    }
    assert drawn["held out"] == [[0.0, 4.0]]
    assert drawn["discriminator"] == [[2.0, 3.0]]


def test_the_first_stage_is_told_apart() -> None:
    history: list[dict[str, float]] = [
        {"step": 0, "eval_mel": 2.0},
        {"step": 1, "mel": 1.9, "stage": 1},
        {"step": 40, "eval_mel": 1.2},
    ]
    assert mel_between(history) == 2.0
    assert mel_between([*history, {"step": 41, "mel": 1.1, "stage": 2}, {"step": 80, "eval_mel": 1.0}]) == 1.2
