"""What a run tells."""

from __future__ import annotations

import importlib.util
import itertools
import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)

from services.training import tracking
from services.training.artefacts import Artefacts
from services.training.config import TrainingConfig
from services.training.plots import plot_alignment, plot_spectrograms
from services.training.session import Plan, Session
from services.training.tracking import Tracker, held_out_tags, short_duration, train_tags
from shared.errors import ConfigError, MissingExtraError


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


# -- Names -----------------------------------------------------------------------------------------


def test_curves_have_the_names_that_finetune_hf_vits_gave_them() -> None:
    losses = {"mel": 1.0, "kl": 2.0, "duration": 3.0, "generator": 4.0, "feature_maps": 5.0}
    assert train_tags(losses | {"discriminator": 6.0, "gradient_norm_generator": 7.0}) == {
        "train_loss_mel": 1.0,
        "train_loss_kl": 2.0,
        "train_loss_duration": 3.0,
        "train_loss_gen": 4.0,
        "train_loss_fmaps": 5.0,
        "train_loss_disc": 6.0,
        "train_summed_losses": 15.0,
        "train_gradient_norm_generator": 7.0,
    }
    assert held_out_tags({"mel": 1.0, "kl": 2.0, "discriminator": 6.0, "mel_distance": 8.0}) == {
        "val_loss_mel": 1.0,
        "val_loss_kl": 2.0,
        "val_loss_mel_kl": 3.0,
        "val_loss_disc": 6.0,
        "val_mel_distance": 8.0,
    }
    assert held_out_tags({}) == {}


def test_only_what_is_told_is_logged_and_steps_tell_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """finetune-hf-vits, defects 16 and 18: it logs, and so waits for the device, at every step."""
    with Tracker(tmp_path, enabled=True, tensorboard=True, total_steps=100, first_step=0) as tracker:
        for step in range(1, 101):
            tracker.step_done(step, 100)
            if step % 50 == 0:
                tracker.losses(step, {"mel": 0.5})
    assert [event.step for event in events(tmp_path).Scalars("train_loss_mel")] == [50, 100]


def test_an_evaluation_says_how_much_of_the_run_evaluations_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0.0, 100.0)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    with Tracker(tmp_path, enabled=True, tensorboard=False, total_steps=9, first_step=0) as tracker:
        tracker.evaluated(5, {"mel": 0.25}, 20.0)  # 100 s into the run
        tracker.evaluated(9, {"mel": 0.25}, 10.0)  # 200 s into the run
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "step 5: held out · mel 0.25 · 20.0 s, 20% of the run so far",
        "step 9: held out · mel 0.25 · 10.0 s, 15% of the run so far",
    ]


# -- Weights & Biases ------------------------------------------------------------------------------


def test_weights_and_biases_offline_holds_curves_pictures_and_sound(
    tmp_path: Path, make_config: Callable[..., TrainingConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, because a run that goes on logs once more."""
    pytest.importorskip("wandb", reason="the extra 'wandb' is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = make_config(report_to=["wandb"], wandb_project="voces", **dict.fromkeys(["token"], "hf_geheim"))
    for first in (0, 2):
        with Tracker(
            tmp_path, enabled=True, tensorboard=False, total_steps=9, first_step=first, config=config
        ) as tracker:
            tracker.losses(3, {"mel": 0.5}, seconds_per_step=2.0)
            tracker.scalars(3, {"train/learning_rate": 0.5})
            tracker.evaluated(3, {"mel": 0.75}, 1.0)
            tracker.figure(3, "alignments", plot_alignment(np.array([1, 2], np.int32)), title="one")
            tracker.audio(3, "full_generation_sample0", np.zeros(1600, np.float32), 16000, title="hola")
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    for folder in folders:
        (file,) = folder.glob("run-*.wandb")
        logged = file.read_bytes()
        for tag in ("train_loss_mel", "val_loss_mel", "lr", "alignments", "full_generation_sample0", "voces"):
            assert tag.encode() in logged
        assert b"geheim" not in logged
        assert len(list((folder / "files" / "media").rglob("*.png"))) == 1
        assert len(list((folder / "files" / "media").rglob("*.wav"))) == 1


def test_weights_and_biases_gets_no_code_no_statistics_and_reports_no_errors(
    tmp_path: Path, make_config: Callable[..., TrainingConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """finetune-hf-vits, defect 26: telemetry is on by default."""
    wandb = pytest.importorskip("wandb", reason="the extra 'wandb' is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_ERROR_REPORTING", raising=False)
    asked: dict[str, Any] = {}
    real = wandb.init

    def init(**options: Any) -> Any:
        asked.update(options)
        return real(**options)

    monkeypatch.setattr(wandb, "init", init)
    config = make_config(report_to=["wandb"])
    with Tracker(tmp_path, enabled=True, tensorboard=False, total_steps=9, first_step=0, config=config):
        assert not wandb.env.error_reporting_enabled()
    assert asked["settings"].disable_code
    assert asked["settings"].x_disable_stats
    assert asked["settings"].console == "off"


def test_a_missing_weights_and_biases_is_named_with_its_extra(
    tmp_path: Path, make_config: Callable[..., TrainingConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"vits-suite\[wandb\]"):
        Tracker(
            tmp_path, enabled=True, tensorboard=False, total_steps=9, first_step=0,
            config=make_config(report_to=["wandb"]),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("report_to", "installed", "logs"),
    [
        ("none", True, []),
        ("tensorboard", True, ["TensorBoard"]),
        ("tensorboard,wandb", True, ["TensorBoard", "WeightsAndBiases"]),
        ("all", True, ["TensorBoard", "WeightsAndBiases"]),
        ("all", False, ["TensorBoard"]),
    ],
)
def test_report_to_chooses_the_logs(
    tmp_path: Path,
    make_config: Callable[..., TrainingConfig],
    monkeypatch: pytest.MonkeyPatch,
    report_to: str,
    installed: bool,
    logs: list[str],
) -> None:
    class Fake(Artefacts):
        def __init__(self, folder: Path, *_: Any) -> None:
            super().__init__(folder, 0)

    for name in ("TensorBoard", "WeightsAndBiases"):
        monkeypatch.setattr(tracking, name, type(name, (Fake,), {}))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: installed or None)
    config = make_config(report_to=report_to)
    tracker = Tracker.of(cast("Session", _Beginning(config)))
    assert [type(log).__name__ for log in tracker._logs] == [*logs, "Artefacts"]


class _Beginning:
    """As much of a session as a tracker asks for."""

    step = 0
    train = range(40)
    accelerator = SimpleNamespace(is_main_process=True)
    plan = Plan(joint=100, per_epoch=5)

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config


# -- Prometheus ------------------------------------------------------------------------------------


def test_prometheus_is_told_where_the_run_stands(
    tmp_path: Path, make_config: Callable[..., TrainingConfig]
) -> None:
    tracker = Tracker.of(cast("Session", _Beginning(make_config(report_to="none", metrics_port=0))))
    with tracker:
        tracker.step_done(7, 100)
        tracker.losses(7, {"mel": 0.5, "gradient_norm_generator": 3.0}, seconds_per_step=2.0)
        tracker.scalars(
            7, {"train/learning_rate": 1e-4, "train/discriminator_learning_rate": 2e-4, "train/epoch": 1.4}
        )
        tracker.waiting(7, 0.25)
        tracker.evaluated(7, {"mel": 0.75}, 4.0)
        tracker.checkpoint_saved(6, 1.5)
        tracker.checkpoint_failed()
        assert tracker.metrics_address is not None
        host, port = tracker.metrics_address
        assert host == "127.0.0.1"
        with urllib.request.urlopen(f"http://{host}:{port}/metrics") as reply:
            told = dict(line.rsplit(" ", 1) for line in reply.read().decode().splitlines() if line[0] != "#")
    values = {name: float(value) for name, value in told.items() if not name.endswith("_created")}
    assert values == {
        "vits_training_step": 7,
        "vits_training_planned_steps": 100,
        "vits_training_epoch": 1.4,
        'vits_training_loss{loss="mel",split="train"}': 0.5,
        'vits_training_loss{loss="mel",split="held_out"}': 0.75,
        'vits_training_gradient_norm{network="generator"}': 3.0,
        'vits_training_learning_rate{network="generator"}': 1e-4,
        'vits_training_learning_rate{network="discriminator"}': 2e-4,
        "vits_training_step_seconds": 2.0,
        "vits_training_samples_per_second": 4.0,  # 8 recordings a step
        "vits_training_evaluations_total": 1,
        "vits_training_evaluation_seconds_total": 4.0,
        "vits_training_checkpoints_total": 1,
        "vits_training_checkpoint_seconds_total": 1.5,
        "vits_training_checkpoint_step": 6,
        "vits_training_checkpoint_failures_total": 1,
        "vits_training_data_wait_ratio": 0.25,
    }
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind((host, port))  # the port is given back


def test_a_taken_port_is_named(tmp_path: Path, make_config: Callable[..., TrainingConfig]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"metrics_port: 127.0.0.1:{port} cannot be listened on"):
            Tracker.of(cast("Session", _Beginning(make_config(report_to="none", metrics_port=port))))


def test_there_is_no_port_unless_it_is_asked_for(make_config: Callable[..., TrainingConfig]) -> None:
    with Tracker.of(cast("Session", _Beginning(make_config(report_to="none")))) as tracker:
        assert tracker.metrics_address is None
