"""What a run tells."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)

from services.training.plots import plot_alignment, plot_spectrograms
from services.training.tracking import Tracker, short_duration


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (42, "42 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert short_duration(seconds) == text


def test_sound_pictures_and_numbers_reach_tensorboard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Tracker(tmp_path, enabled=True, tensorboard=True, total_steps=9, first_step=0) as tracker:
        tracker.losses(3, {"mel": 0.5, "kl": 1.25}, seconds_per_step=2.0)
        tracker.scalars(3, {"train/learning_rate": 0.75})
        tracker.figure(3, "alignments", plot_alignment(np.array([2, 0, 3], np.int32), ("a", "b", "c")))
        mel = np.random.default_rng(0).normal(size=(80, 12)).astype(np.float32)
        tracker.figure(3, "spectrogram", plot_spectrograms(recording=mel, decoded=mel))
        tracker.audio(3, "sample", np.zeros(1600, np.float32), 16000)
    found = events(tmp_path)
    assert [(event.step, event.value) for event in found.Scalars("train_loss_mel")] == [(3, 0.5)]
    assert found.Scalars("lr")[0].value == 0.75
    assert set(found.Tags()["images"]) == {"alignments", "spectrogram"}
    assert found.Audio("sample")[0].sample_rate == 16000
    assert "step 3/9 · mel 0.5 kl 1.25 · 2.00 s/step" in capsys.readouterr().out


def test_other_processes_say_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Tracker(tmp_path / "runs", enabled=False, tensorboard=True, total_steps=9, first_step=0) as tracker:
        tracker.begin_stage("training")
        for step in range(1, 10):
            tracker.step_done(step, 9)
        tracker.losses(3, {"mel": 0.5})
        tracker.say("a line")
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "runs").exists()


def test_tensorboard_can_be_left_out(tmp_path: Path) -> None:
    with Tracker(tmp_path / "runs", enabled=True, tensorboard=False, total_steps=9, first_step=0) as tracker:
        tracker.scalars(1, {"x": 1.0})
    assert not (tmp_path / "runs").exists()


def test_the_time_left_is_said_once_a_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a stage of 100 steps of 2 s, after its first slow ones; a second stage is measured anew."""
    clock = itertools.chain([0.0, 50.0, 60.0], itertools.count(62.0, 2.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    with Tracker(tmp_path, enabled=True, tensorboard=False, total_steps=200, first_step=0) as tracker:
        for stage_end in (100, 200):
            tracker.begin_stage("a stage")
            for step in range(stage_end - 99, stage_end - 79):
                tracker.step_done(step, stage_end)
    told = [line for line in capsys.readouterr().out.splitlines() if "a step" in line]
    assert len(told) == 2
    assert told[0].startswith("2.00 s a step: about 3 min 4 s left in this stage")


def test_a_resumed_run_takes_back_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    for first, values in ((0, {3: 1.0, 6: 1.0}), (4, {5: 2.0})):
        with Tracker(tmp_path, enabled=True, tensorboard=True, total_steps=9, first_step=first) as tracker:
            for step, value in values.items():
                tracker.scalars(step, {"x": value})
    found = events(tmp_path).Scalars("x")
    assert [(event.step, event.value) for event in found] == [(3, 1.0), (5, 2.0)]


def test_no_picture_is_too_small() -> None:
    plot_alignment(np.array([0], np.int32))
    plot_spectrograms(one=np.zeros((80, 1), np.float32))
