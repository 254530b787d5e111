"""``vits train`` from a configuration to a published model, as a user meets it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)
from torch.utils.data import DataLoader
from transformers import VitsModel, pipeline

from services import cli
from services.training import checkpoints, discriminator, loop, publishing
from services.training.config import resolve
from services.training.steps import Steps
from shared.modeling.loading import DISCRIMINATOR_FILE
from shared.registry import Registry
from shared.runs import Run
from shared.store import Store

REPOSITORY = Path(__file__).parents[2]
SMALL_SCALE, SMALL_PERIOD = (1, 4, 16, 64, 256), (1, 2, 4, 8, 16)

#: Runs ``vits train`` with a small discriminator, and sends itself a signal just before the N-th call of a function.
SIGNALLED_TRAINER = f"""
import importlib, os, signal, sys
from services import cli
from services.training import discriminator

discriminator._SCALE_CHANNELS, discriminator._PERIOD_CHANNELS = {SMALL_SCALE}, {SMALL_PERIOD}
where, count, sent, *arguments = sys.argv[1:]
if where:
    module, owner, name = where.split(":")
    holder = getattr(importlib.import_module(module), owner)
    original, left = getattr(holder, name), int(count)

    def dying(*args, **kwargs):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), int(sent))
        return original(*args, **kwargs)

    setattr(holder, name, dying)
sys.exit(cli.main(["train", *arguments]))
"""


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A small discriminator, a cache that the tests share, and no hub."""
    monkeypatch.setattr(discriminator, "_SCALE_CHANNELS", SMALL_SCALE)
    monkeypatch.setattr(discriminator, "_PERIOD_CHANNELS", SMALL_PERIOD)
    monkeypatch.setenv("VITS_CACHE", str(tmp_path_factory.getbasetemp() / "vits-cache"))
    monkeypatch.delenv("VITS_STORE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture
def configuration(tmp_path: Path, spanish_model: Path, recordings_folder: Path) -> dict[str, Any]:
    """A run of a few steps, of which nothing but the model and the data is needed."""
    return {
        "project_name": "voz",
        "model_name_or_path": str(spanish_model),
        "dataset_name": str(recordings_folder),
        "output_dir": str(tmp_path / "output"),
        "store": f"file://{tmp_path / 'store'}",
        "max_steps": 4,
        "save_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "seed": 456,
    }


def train(folder: Path, configuration: dict[str, Any], *arguments: str) -> int:
    """``vits train`` in this process."""
    path = folder / "config.json"
    path.write_text(json.dumps(configuration), encoding="utf-8")
    return cli.main(["train", "--config", str(path), *arguments])


def run_of(configuration: dict[str, Any]) -> str:
    """Its run's name in the store."""
    return resolve(configuration, origin="the test").run_id


def weights(folder: Path) -> dict[str, torch.Tensor]:
    both = load_file(folder / "model.safetensors")
    return both | {f"judge {name}": value for name, value in load_file(folder / DISCRIMINATOR_FILE).items()}


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


class Stopped(Exception):  # noqa: N818 - not an error of the suite's
    """What ends a run half-way."""


def stopped(folder: Path, configuration: dict[str, Any], step: int) -> None:
    """Train up to a checkpoint, and no further."""
    save = publishing.Publisher.save

    def stop(publisher: publishing.Publisher, steps: Steps, *, wait: bool = False) -> None:
        save(publisher, steps, wait=True)
        if publisher._session.step == step:
            raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publishing.Publisher, "save", stop)
        with pytest.raises(Stopped):
            train(folder, configuration)


def assert_same_state(one: Path, other: Path) -> None:
    """Two checkpoints are the same byte for byte, but for what they tell of time and place."""
    for file in ("training_state.safetensors", "optimizers.json", "model.safetensors", DISCRIMINATOR_FILE):
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
    states = [checkpoints.TrainerState.read(folder) for folder in (one, other)]
    first, second = [
        (state.global_step, state.epoch, state.sampler_epoch, state.sampler_batch, state.warm_up_steps)
        for state in states
        if state
    ]
    assert first == second


# -- One whole run ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, spanish_model: Path, recordings_folder: Path
) -> tuple[Path, dict[str, Any], str]:
    """A run that went through: its working folder, its configuration, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    configuration = {
        "project_name": "voz",
        "model_name_or_path": str(spanish_model),
        "dataset_name": str(recordings_folder),
        "output_dir": str(folder / "output"),
        "store": f"file://{folder / 'store'}",
        "do_eval": True,
        "full_generation_sample_text": "hola, ¿qué tal?",
        "max_steps": 10,
        "save_steps": 5,
        "eval_steps": 5,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "seed": 456,
        "hub_token": "hf_secret",
        "token": "hf_secret",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discriminator, "_SCALE_CHANNELS", SMALL_SCALE)
        patch.setattr(discriminator, "_PERIOD_CHANNELS", SMALL_PERIOD)
        patch.setenv("VITS_CACHE", str(tmp_path_factory.getbasetemp() / "vits-cache"))
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        patch.setattr("services.training.tracking.Tracker.say", lambda self, line: printed.append(line))
        assert train(folder, configuration) == 0
    return folder, configuration, "\n".join(printed)


def test_the_stock_pipeline_speaks_from_the_output_folder(
    finished: tuple[Path, dict[str, Any], str], capfd: pytest.CaptureFixture[str]
) -> None:
    output = finished[0] / "output"
    speak = cast("Any", pipeline)("text-to-speech", str(output))
    assert type(speak.model) is VitsModel
    spoken = speak("hola, buenos días")
    assert spoken["sampling_rate"] == 16000
    assert np.isfinite(spoken["audio"]).all()
    assert spoken["audio"].size >= 256
    assert "newly initialized" not in capfd.readouterr().err


def test_training_changed_the_model(finished: tuple[Path, dict[str, Any], str], spanish_model: Path) -> None:
    before, after = load_file(spanish_model / "model.safetensors"), weights(finished[0] / "output")
    assert before.keys() == {name for name in after if not name.startswith("judge ")}
    moved = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"text_encoder", "flow", "decoder", "duration_predictor", "posterior_encoder"}


def test_checkpoints_are_models_with_state(finished: tuple[Path, dict[str, Any], str]) -> None:
    output = finished[0] / "output"
    assert [folder.name for folder in checkpoints.checkpoints(output)] == ["checkpoint-5", "checkpoint-10"]
    _, report = cast("Any", VitsModel).from_pretrained(output / "checkpoint-5", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert (output / "checkpoint-5" / "vocab.json").is_file()
    optimizers = checkpoints.read_state(output / "checkpoint-5")["optimizers"]
    assert optimizers is not None
    assert len(optimizers) == 2


def test_tensorboard_hears_and_sees(finished: tuple[Path, dict[str, Any], str]) -> None:
    events = EventAccumulator(str(finished[0] / "output" / "runs")).Reload()
    tags = events.Tags()
    assert {"held_out", "held_out_recording"} <= set(tags["audio"])
    assert [event.step for event in events.Scalars("train_loss_mel")] == list(range(1, 11))
    assert [event.step for event in events.Scalars("val_loss_mel")] == [0, 5, 10]
    losses = {
        f"{split}_loss_{name}"
        for split in ("train", "val")
        for name in ("kl", "duration", "disc", "gen", "fmaps")
    }
    assert losses | {"lr", "epoch"} <= set(tags["scalars"])
    assert tags["images"]


def test_every_checkpoint_and_the_final_model_are_in_the_store(
    finished: tuple[Path, dict[str, Any], str],
) -> None:
    folder, configuration, _ = finished
    registry = Registry(Store.open(configuration["store"]))
    versions = [registry.resolve("models", f"voz/{one}") for one in registry.versions("models", "voz")]
    assert [version.manifest.lineage["step"] for version in versions] == [5, 10]
    assert registry.alias("models", "voz", "latest") == versions[-1].id
    assert versions[-1].manifest.licence == "CC-BY-NC-4.0 AND CC0-1.0"
    assert "Babble, by nobody" in versions[-1].manifest.sources
    fetched = registry.fetch(versions[-1])
    assert_same_weights(fetched, folder / "output")
    assert not {file.name for file in fetched.iterdir()} & set(checkpoints.PRIVATE_FILES)
    assert not list((folder / "output").glob("*.partial"))


def test_no_secret_is_written_or_printed(finished: tuple[Path, dict[str, Any], str]) -> None:
    folder, _, printed = finished
    assert "hf_secret" not in printed
    for root in (folder / "output", folder / "store"):
        files = [file for file in root.rglob("*") if file.is_file()]
        assert files
        assert not [file for file in files if b"hf_secret" in file.read_bytes()]


def test_the_time_left_is_estimated(finished: tuple[Path, dict[str, Any], str]) -> None:
    assert "s a step: about" in finished[2]
    assert "left in this stage" in finished[2]


def test_a_second_call_has_nothing_left_to_do(
    finished: tuple[Path, dict[str, Any], str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, configuration, _ = finished
    before = (folder / "output" / "model.safetensors").stat().st_mtime_ns
    assert train(folder, configuration) == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert (folder / "output" / "model.safetensors").stat().st_mtime_ns == before


def test_a_finished_folder_is_not_taken_for_another_run(
    finished: tuple[Path, dict[str, Any], str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert train(tmp_path, finished[1] | {"seed": 1}) == 2
    assert "seed: was 456, is 1" in capsys.readouterr().err


def test_a_finished_model_is_the_base_of_the_next(
    finished: tuple[Path, dict[str, Any], str], configuration: dict[str, Any], tmp_path: Path
) -> None:
    """From the store, by name, its discriminator included."""
    again = configuration | {"model_name_or_path": "voz@latest", "store": finished[1]["store"]}
    again |= {"learning_rate": 1e-12, "max_steps": 1, "model_name": "otra", "weight_decay": 0}
    assert train(tmp_path, again) == 0
    before, after = weights(finished[0] / "output"), weights(tmp_path / "output")
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-6)
    registry = Registry(Store.open(again["store"]))
    manifest = registry.resolve("models", "otra@latest").manifest
    # The version itself: its alias may move.
    assert manifest.lineage["base"] == registry.resolve("models", "voz@latest").reference


def test_evaluation_comes_once_an_epoch_when_not_told(configuration: dict[str, Any], tmp_path: Path) -> None:
    """finetune-hf-vits, defect 16: without eval_steps it evaluates at every step. And at the end, of course."""
    assert train(tmp_path, configuration | {"do_eval": True, "max_steps": 6}) == 0
    state = checkpoints.TrainerState.read(tmp_path / "output")
    assert state is not None
    assert [entry["step"] for entry in state.log_history if "eval_mel" in entry] == [0, 4, 6]
    assert [entry["step"] for entry in state.log_history if "mel" in entry] == [1, 2, 3, 4, 5, 6]


def test_evaluation_alone(
    configuration: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """finetune-hf-vits, defect 20."""
    assert train(tmp_path, configuration | {"do_eval": True, "do_train": False}) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {
        "mel",
        "kl",
        "duration",
        "generator",
        "feature_maps",
        "discriminator",
        "mel_distance",
    } <= told.keys()
    assert not checkpoints.checkpoints(tmp_path / "output")
    assert Registry(Store.open(configuration["store"])).names("models") == []


def test_a_name_that_no_store_could_have_is_looked_for_on_the_hub(
    configuration: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    spanish_model: Path,
) -> None:
    """Such as one with capitals; of the store's own references, what is there is listed."""
    asked: list[str] = []

    def fetch(repository: str, **_: object) -> Path:
        asked.append(repository)
        return spanish_model

    monkeypatch.setattr("services.training.base.fetch_from_hub", fetch)
    assert train(tmp_path, configuration | {"model_name_or_path": "Someone/A_Voice", "max_steps": 1}) == 0
    assert asked == ["Someone/A_Voice"]
    for reference in ("voz@production", "Voz", "./nowhere"):
        again = configuration | {"model_name_or_path": reference, "output_dir": str(tmp_path / "other")}
        assert train(tmp_path, again) == 2
        assert reference.partition("@")[0] in capsys.readouterr().err
    assert asked == ["Someone/A_Voice"]


# -- Stopping and going on -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def new_posterior_model(spanish_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model as if its posterior encoder were new, like a converted one's."""
    folder = tmp_path_factory.mktemp("converted") / "model"
    shutil.copytree(spanish_model, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["untrained_modules"] = ["posterior_encoder"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture
def two_stages(configuration: dict[str, Any], new_posterior_model: Path) -> dict[str, Any]:
    """A run of two steps of warming up and three of joint training, in micro-batches."""
    return configuration | {
        "model_name_or_path": str(new_posterior_model),
        "warm_up_new_modules_steps": 2,
        "max_steps": 3,
        "save_steps": 1,
        "gradient_accumulation_steps": 2,
        "group_by_length": True,
    }


@pytest.fixture
def deterministic() -> Iterator[dict[str, Any]]:
    """Keys of a run that is the same to the bit every time; what it sets for the whole process is undone."""
    yield {"full_determinism": True, "ema_decay": 0.9}
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """So many threads for a sum, here and in the processes that are started."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


#: Every recording varied, anew in each epoch.
AUGMENTED = {"augment_pitch": 2, "augment_speed": 0.1, "augment_noise_snr": 30, "augment_probability": 1}


def test_going_on_is_as_if_never_stopped(
    two_stages: dict[str, Any], deterministic: dict[str, Any], tmp_path: Path
) -> None:
    """Byte for byte: in each of four stages, between them, in the middle of an epoch, and from the store's copy
    alone; weights, optimisers, moving average, position of the sampler, what augmentation draws.

    finetune-hf-vits, defect 15: no mid-epoch skip, and an extra step of the schedule.
    """
    two_stages |= deterministic | AUGMENTED | {"reconstruction_stage_steps": 2, "text_stage_steps": 2}
    whole = two_stages | {"output_dir": str(tmp_path / "whole")}
    assert train(tmp_path, whole) == 0
    for step in range(1, 7):
        stopped(tmp_path, two_stages, step)
    assert_same_state(tmp_path / "whole/checkpoint-6", tmp_path / "output/checkpoint-6")
    shutil.rmtree(tmp_path / "output")  # another machine
    stopped(tmp_path, two_stages, 8)
    assert train(tmp_path, two_stages) == 0
    for step in (8, 9):
        assert_same_state(tmp_path / f"whole/checkpoint-{step}", tmp_path / f"output/checkpoint-{step}")
    assert_same_weights(tmp_path / "whole", tmp_path / "output")


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # on one core
def test_batches_that_other_processes_read_ahead_are_the_same_ones_when_a_run_goes_on(
    configuration: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What they have read ahead of the stop is neither lost nor seen twice; over the end of an epoch too."""
    configuration |= AUGMENTED | {"max_steps": 6}
    assert train(tmp_path, configuration | {"output_dir": str(tmp_path / "whole")}) == 0
    workers: list[int] = []

    class Watched(DataLoader[Any]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            workers.append(options["num_workers"])
            super().__init__(*arguments, **options)

    monkeypatch.setattr(loop, "DataLoader", Watched)
    ahead = configuration | {"dataloader_num_workers": 2}
    stopped(tmp_path, ahead, 2)
    assert train(tmp_path, ahead) == 0
    assert set(workers) == {2}
    assert_same_state(tmp_path / "whole/checkpoint-6", tmp_path / "output/checkpoint-6")
    assert_same_weights(tmp_path / "whole", tmp_path / "output")


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.usefixtures("threads")
def test_sigterm_saves_and_exits_with_143_and_the_same_command_goes_on(
    configuration: dict[str, Any], deterministic: dict[str, Any], tmp_path: Path
) -> None:
    """In the middle of an epoch; then by SIGKILL, which loses at most one save interval. All as if never stopped."""
    configuration |= deterministic | {"gradient_accumulation_steps": 2, "save_steps": 2, "max_steps": 7}
    whole = configuration | {"output_dir": str(tmp_path / "whole")}
    assert train(tmp_path, whole) == 0
    path = tmp_path / "config.json"
    path.write_text(json.dumps(configuration), encoding="utf-8")
    joint = "services.training.steps:Steps:joint"

    process = trainer(path, joint, 3, signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert [folder.name for folder in checkpoints.checkpoints(tmp_path / "output")] == [
        "checkpoint-2",
        "checkpoint-3",
    ]
    assert Run(Store.open(configuration["store"]), run_of(configuration), 0).checkpoints() == [2, 3]

    process = trainer(path, joint, 3, signal.SIGKILL)  # in step 6
    said, _ = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, said
    assert "going on from step 3 of 7" in said
    newest = checkpoints.checkpoint_step(checkpoints.checkpoints(tmp_path / "output")[-1])
    assert newest in {3, 4}  # step 4's was still being written, or was not

    assert train(tmp_path, configuration) == 0
    assert_same_state(tmp_path / "whole/checkpoint-7", tmp_path / "output/checkpoint-7")
    assert_same_weights(tmp_path / "whole", tmp_path / "output")


def test_a_finished_run_of_which_more_is_asked_goes_on(configuration: dict[str, Any], tmp_path: Path) -> None:
    assert train(tmp_path, configuration | {"max_steps": 6, "output_dir": str(tmp_path / "whole")}) == 0
    assert train(tmp_path, configuration) == 0
    assert train(tmp_path, configuration | {"max_steps": 6}) == 0
    assert_same_state(tmp_path / "whole/checkpoint-6", tmp_path / "output/checkpoint-6")
    assert_same_weights(tmp_path / "whole", tmp_path / "output")
    state = checkpoints.TrainerState.read(tmp_path / "output")
    assert state is not None
    assert (state.global_step, state.finished) == (6, True)
    registry = Registry(Store.open(configuration["store"]))
    assert registry.resolve("models", "voz@latest").manifest.lineage["step"] == 6


def test_a_finished_run_whose_store_is_gone_is_published_again(
    configuration: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, configuration) == 0
    shutil.rmtree(tmp_path / "store")
    assert train(tmp_path, configuration) == 0
    assert "publishing it again" in capsys.readouterr().out
    registry = Registry(Store.open(configuration["store"]))
    assert_same_weights(registry.fetch(registry.resolve("models", "voz@latest")), tmp_path / "output")
    assert train(tmp_path, configuration) == 0
    assert "nothing left to do" in capsys.readouterr().out


def test_going_back_is_not_undone_by_a_later_start(configuration: dict[str, Any], tmp_path: Path) -> None:
    configuration |= {"save_steps": 1}
    stopped(tmp_path, configuration, 3)
    back = configuration | {"resume_from_checkpoint": "checkpoint-1"}
    stopped(tmp_path, back, 2)
    names = {folder.name for folder in (tmp_path / "output").glob("checkpoint-*")}
    assert names == {"checkpoint-1", "checkpoint-2", "checkpoint-2.aside", "checkpoint-3.aside"}
    assert_same_weights(tmp_path / "output/checkpoint-2", tmp_path / "output/checkpoint-2.aside")
    assert train(tmp_path, configuration) == 0
    assert Run(Store.open(configuration["store"]), run_of(configuration), 0).checkpoints() == [3, 4]


def test_the_final_model_is_the_best_checkpoints_if_wanted(
    configuration: dict[str, Any], tmp_path: Path
) -> None:
    """With a rate so high that the first evaluated steps are the best; they survive pruning."""
    configuration |= {
        "do_eval": True,
        "load_best_model_at_end": True,
        "save_total_limit": 1,
        "learning_rate": 0.1,
    }
    configuration |= {"save_steps": 1, "eval_steps": 1, "weight_decay": 0.0}
    assert train(tmp_path, configuration) == 0
    state = checkpoints.TrainerState.read(tmp_path / "output")
    assert state is not None
    values = {
        entry["step"]: entry["eval_mel"]
        for entry in state.log_history
        if "eval_mel" in entry and entry["step"]
    }
    best = min(values, key=lambda step: values[step])
    assert [entry["step"] for entry in state.best] == [best]
    kept = [checkpoints.checkpoint_step(folder) for folder in checkpoints.checkpoints(tmp_path / "output")]
    assert kept == sorted({best, 4})
    assert_same_weights(tmp_path / f"output/checkpoint-{best}", tmp_path / "output")


def test_the_first_stage_is_not_lived_twice(two_stages: dict[str, Any], tmp_path: Path) -> None:
    """A checkpoint knows what it still has to learn, and where its stages meet."""
    stopped(tmp_path, two_stages, 1)
    config = json.loads((tmp_path / "output/checkpoint-1/config.json").read_text(encoding="utf-8"))
    assert config["untrained_modules"] == ["posterior_encoder"]
    stopped(tmp_path, two_stages, 3)
    config = json.loads((tmp_path / "output/checkpoint-3/config.json").read_text(encoding="utf-8"))
    assert config["untrained_modules"] == []
    # A longer first stage than the one that is over changes nothing for this run.
    assert train(tmp_path, two_stages, "--warm_up_new_modules_steps", "9") == 0
    state = checkpoints.TrainerState.read(tmp_path / "output")
    assert state is not None
    assert (state.global_step, state.finished) == (5, True)


def test_another_dataset_is_another_run(
    configuration: dict[str, Any],
    make_dataset: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stopped(tmp_path, configuration, 2)
    before = weights(tmp_path / "output" / "checkpoint-2")
    other = configuration | {"dataset_name": str(make_dataset(4, evaluation=1))}
    assert train(tmp_path, other) == 2
    message = capsys.readouterr().err
    assert "dataset_name: was" in message
    assert "--overwrite_output_dir" in message
    assert weights(tmp_path / "output" / "checkpoint-2").keys() == before.keys()


def test_starting_over_forgets_the_old_run(configuration: dict[str, Any], tmp_path: Path) -> None:
    """On the disk and in the store; half-way through, nothing calls the new run finished."""
    assert train(tmp_path, configuration) == 0
    over = configuration | {"overwrite_output_dir": True, "seed": 1, "max_steps": 3, "save_steps": 1}
    stopped(tmp_path, over, 1)
    run = Run.acquire(Store.open(configuration["store"]), run_of(configuration))
    assert run.checkpoints() == [1]
    assert [folder.name for folder in checkpoints.checkpoints(tmp_path / "output")] == ["checkpoint-1"]
    assert train(tmp_path, over, "--overwrite_output_dir", "false") == 0
    state = checkpoints.TrainerState.read(tmp_path / "output")
    assert state is not None
    assert (state.global_step, state.finished) == (3, True)
    assert json.loads((tmp_path / "output/training_config.json").read_text(encoding="utf-8"))["seed"] == 1


def test_a_named_checkpoint_is_gone_on_from(
    configuration: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """finetune-hf-vits, defect 15: it says that it resumes, and does not."""
    stopped(tmp_path, configuration, 2)
    assert train(tmp_path, configuration, "--resume_from_checkpoint", "checkpoint-3") == 2
    assert "checkpoint-2" in capsys.readouterr().err
    again = ("--resume_from_checkpoint", "true", "--overwrite_output_dir")
    assert train(tmp_path, configuration, *again) == 0
    assert "going on from step 2 of 4" in capsys.readouterr().out


def trainer(
    configuration: Path, where: str = "", count: int = 1, sent: signal.Signals = signal.SIGKILL
) -> subprocess.Popen[str]:
    """``vits train`` in a process of its own, to which a signal is sent before the ``count``-th call of ``where``."""
    arguments = [where, str(count), str(int(sent)), "--config", str(configuration)]
    return subprocess.Popen(
        [sys.executable, "-c", SIGNALLED_TRAINER, *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def check_store(url: str) -> list[str]:
    """Every version that can be seen is whole; their ids."""
    registry = Registry(Store.open(url))
    versions = registry.versions("models", "voz")
    for version in versions:
        folder = registry.fetch(registry.resolve("models", f"voz/{version}"))
        VitsModel.from_pretrained(folder)
    return versions


def test_a_killed_trainer_leaves_a_readable_store_and_goes_on(
    configuration: dict[str, Any], tmp_path: Path
) -> None:
    """One run, killed by SIGKILL again and again, each time somewhere else."""
    configuration |= {"save_steps": 1}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(configuration), encoding="utf-8")
    whole = configuration | {"output_dir": str(tmp_path / "whole"), "store": f"file://{tmp_path / 'other'}"}
    assert train(tmp_path, whole) == 0
    path.write_text(json.dumps(configuration), encoding="utf-8")
    output, url = tmp_path / "output", configuration["store"]

    moments = [
        # The local checkpoint is written, and not yet renamed: nothing is visible.
        ("services.training.checkpoints:TrainerState:write", 1, [], 0),
        # In the middle of publishing the first checkpoint's model: its claim and some files are there.
        ("shared.store:Store:upload", 18, [1], 0),
        # The final model is published, and its alias is not moved.
        ("shared.registry:Registry:move_alias", 1, [1, 2, 3, 4], 3),
    ]
    for where, count, steps, published in moments:
        process = trainer(path, where, count)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, said
        complete = [checkpoints.checkpoint_step(folder) for folder in checkpoints.checkpoints(output)]
        assert complete == steps, (where, said)
        for folder in checkpoints.checkpoints(output):
            VitsModel.from_pretrained(folder)
        assert len(check_store(url)) == published, where
        claimed = [
            item.path for item in Store.open(url).list("models/voz") if item.path.endswith("claim.json")
        ]
        assert len(claimed) == published + (where != moments[0][0]), where
    assert Registry(Store.open(url)).aliases("models", "voz") == {}

    process = trainer(path)  # and once more, at whatever moment comes
    deadline = time.monotonic() + 120
    while not (output / "final.partial").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.communicate()
    check_store(url)

    assert train(tmp_path, configuration) == 0
    registry = Registry(Store.open(url))
    assert registry.alias("models", "voz", "latest") == check_store(url)[-1]
    assert not list(output.glob("*.partial"))
    assert_same_weights(tmp_path / "whole", output)


# -- Without the hub -------------------------------------------------------------------------------


@pytest.mark.parametrize("surrounding", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_without_the_hub_one_message_names_the_two_ways_to_go_on(
    surrounding: dict[str, str], tmp_path: Path
) -> None:
    """The command of the README, in a process of its own because the hub's client reads its settings once."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"} | surrounding
    arguments = ["--config", str(REPOSITORY / "configs/spa.json"), "--output_dir", str(tmp_path / "output")]
    arguments += ["--store", f"file://{tmp_path / 'store'}"]
    result = subprocess.run(
        [sys.executable, "-m", "services.cli", "train", *arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 8, result.stderr
    assert "ylacombe/mms-tts-spa-train" in result.stderr
    assert "a local folder" in result.stderr
    assert "a store" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("not be reached") == 1


def test_licence_source_and_consent_travel_from_recordings_to_voice(
    configuration: dict[str, Any], recordings_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a base that may not be used commercially, as MMS may not, is warned of at every stage."""
    data = shutil.copytree(recordings_folder, tmp_path / "data")
    card = {"name": "babble", "licence": "CC-BY-4.0", "sources": ["a studio"], "attribution": "By Ana."}
    (data / "dataset.json").write_text(json.dumps(card | {"consent": "signed"}), encoding="utf-8")
    clean = str(tmp_path / "clean")
    assert cli.main(["data", "clean", str(data), "--no-recogniser", "--min-snr", "0", "--min-seconds", "0.1",
                     "--min-naturalness", "0", "--no-page", "--output", clean]) == 0  # fmt: skip
    assert train(tmp_path, configuration | {"dataset_name": clean, "max_steps": 1}) == 0
    warning = "neither it nor what is made from it may be used commercially"
    assert warning in capsys.readouterr().out
    store = str(configuration["store"])
    registry = Registry(Store.open(store))
    assert cli.main(["export", "voz@latest", "--store", store, "--variants", "fp32"]) == 0
    assert warning in capsys.readouterr().out
    for kind in ("models", "voices"):
        manifest = registry.resolve(kind, "voz").manifest
        assert manifest.licence == "CC-BY-NC-4.0 AND CC-BY-4.0"
        assert manifest.sources[:2] == ("a small model", "a studio")
        assert manifest.sources[2].startswith("By Ana. Changed: ")
        assert manifest.consent == "signed"
        assert cli.main([kind, "list", "--store", store]) == 0
        assert warning in capsys.readouterr().out
