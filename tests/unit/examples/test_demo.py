"""What the demo promises about itself: its bar, and that nothing it started outlives it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from examples.demo import __main__ as demo
from examples.demo.compare import Comparison, as_long_as_the_longest, compare, mel_between
from examples.demo.page import plot_curves, write_page
from examples.stages import Stage, Stages, child
from shared.errors import ModelError, QualityError


def comparison(*, mel_after: float = 0.8, mos_after: float = 3.0) -> Comparison:
    return Comparison(
        mel_before=1.0,
        mel_between=0.9,
        mel_after=mel_after,
        mos_recordings=2.9,
        mos_before=3.2,
        mos_after=mos_after,
        sentences=14,
        steps=80,
        warm_up_steps=40,
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
    with pytest.raises(KeyboardInterrupt), child(arguments) as process:
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
        for axis in plot_curves(history, warm_up_steps=0).axes
        for line in axis.lines
    }
    assert drawn["held out"] == [[0.0, 4.0]]
    assert drawn["discriminator"] == [[2.0, 3.0]]


def test_the_second_stage_begins_where_the_first_ends_not_at_the_next_entry_of_the_log() -> None:
    history: list[dict[str, float]] = [{"step": 40, "mel": 1.9}, {"step": 45, "mel": 1.0}]
    border, *others = plot_curves(history, warm_up_steps=40).axes[0].lines[::-1]
    assert np.asarray(border.get_xdata()).tolist() == [40, 40]
    assert len(others) == 1
    assert len(plot_curves(history, warm_up_steps=0).axes[0].lines) == 1


def test_the_first_stage_is_told_apart() -> None:
    history: list[dict[str, float]] = [
        {"step": 0, "eval_mel": 2.0},
        {"step": 1, "mel": 1.9},
        {"step": 40, "eval_mel": 1.2},
        {"step": 80, "eval_mel": 1.0},
    ]
    assert mel_between(history, 0) == 2.0
    assert mel_between(history, 40) == 1.2


def test_spectrograms_are_shown_whole() -> None:
    mels = {"short": np.ones((80, 3), np.float32), "long": np.ones((80, 5), np.float32)}
    mels["short"][0, 0] = -7.0
    shown = as_long_as_the_longest(mels)
    assert {mel.shape for mel in shown.values()} == {(80, 5)}
    assert (shown["short"][:, :3] == mels["short"]).all()
    assert (shown["short"][:, 3:] == -7.0).all()
    assert (shown["long"] == mels["long"]).all()


def test_what_an_earlier_run_made_is_told_from_what_this_one_made(tmp_path: Path) -> None:
    stages, made = Stages(), tmp_path / "model"
    with stages.stage("first", makes=made):
        made.write_text("made")
    with stages.stage("second", makes=made):
        pass
    with stages.stage("third", makes=made):
        os.utime(made, ns=(0, 0))
    with stages.stage("fourth") as stage:
        stage.reused = True
    with stages.stage("fifth"):
        pass
    assert [stage.reused for stage in stages.done] == [False, True, False, True, False]


def test_the_page_says_what_was_reused_and_links_the_report(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    report, wav = tmp_path / "demo" / "report.html", tmp_path / "demo.wav"
    wav.write_bytes(b"RIFF")
    stages = [Stage("recordings", 5.2, reused=True), Stage("training", 275.4)]

    def page() -> str:
        write_page(tmp_path / "demo.html", comparison(), stages, wav, report)
        return " ".join((tmp_path / "demo.html").read_text().split())

    assert "report.html" not in page()
    report.write_text("<html>")
    text = page()
    assert "<td>recordings<td>reused</tr>" in text
    assert "<td>training<td>275 s</tr>" in text
    assert 'href="demo/report.html"' in text
    assert "after 80 steps" in text


def test_a_folder_without_a_training_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no finished training"):
        compare(tmp_path, tmp_path, tmp_path, "hola")
