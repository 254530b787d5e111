"""Saving in the background: what happens when something fails, is slow, or is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file
from transformers import VitsModel

from services.training import checkpoints, discriminator, publishing
from services.training.config import TrainingConfig, resolve
from services.training.publishing import Publisher, deliver
from services.training.session import Plan, Session
from services.training.steps import Steps, new_discriminator
from services.training.stopping import Stop
from services.training.tracking import Tracker
from shared.errors import (
    ConfigError,
    ConsentError,
    HubUnreachableError,
    LeaseLostError,
    ModelError,
    NotFoundError,
    StoreError,
    UserError,
)
from shared.modeling import VitsForTraining, load_model
from shared.provenance import Provenance
from shared.registry import Registry, Version
from shared.runs import Run
from shared.store import Digest, Progress, Store
from shared.text import FrontEnd
from shared.withdrawal import Withdrawals

REPOSITORY = Path(__file__).parents[4]
SMALL_SCALE, SMALL_PERIOD = (1, 4, 16, 64, 256), (1, 2, 4, 8, 16)


Networks = tuple[VitsForTraining, discriminator.Discriminator]


def new_networks(model: Path) -> Networks:
    """Both networks as training has them."""
    generator = load_model(model)
    generator.decoder.apply_weight_norm()
    return generator, new_discriminator(0)


class QuietTracker(Tracker):
    """Counts, and keeps what it says."""

    def __init__(self, folder: Path, lines: list[str], total: int) -> None:
        super().__init__(folder, enabled=False, tensorboard=False, total_steps=total, first_step=0)
        self.lines = lines

    def say(self, line: str) -> None:
        self.lines.append(line)

    def counted(self) -> dict[str, float]:
        """What Prometheus is told of checkpoints."""
        wanted = (
            "checkpoints_total",
            "checkpoint_failures_total",
            "checkpoint_step",
            "checkpoint_seconds_total",
        )
        return {
            name: sample.value
            for metric in self.metrics.registry.collect()
            for sample in metric.samples
            for name in wanted
            if sample.name.endswith(f"_{name}")
        }


class Trial:
    """A run without data: a session and optimisers, whose steps only change the weights."""

    def __init__(
        self,
        folder: Path,
        model: Path,
        store: Store | None = None,
        *,
        networks: Networks | None = None,
        total: int = 10,
        **changes: Any,
    ) -> None:
        self.output = folder / "output"
        self.output.mkdir(parents=True, exist_ok=True)
        values = {
            "model_name_or_path": str(model),
            "dataset_name": "recordings",
            "output_dir": str(self.output),
            "project_name": "voz",
            "run_name": "voz-output",
            "do_eval": True,
            **changes,
        }
        self.config: TrainingConfig = resolve(values, origin="the test")
        self.store = store or Store.open(str(folder / "store"))
        self.lines: list[str] = []
        self.tracker = QuietTracker(folder, self.lines, total)
        self.stop = Stop()
        generator, judge = networks or new_networks(model)
        accelerator = SimpleNamespace(is_main_process=True, scaler=None, wait_for_everyone=lambda: None)
        base = SimpleNamespace(
            untrained=(), folder=model, speakers={"ana": 0}, front_end=FrontEnd.from_folder(model)
        )
        parts: dict[str, Any] = dict.fromkeys(part.name for part in fields(Session))  # most are not looked at
        parts |= {
            "config": self.config,
            "accelerator": accelerator,
            "generator": generator,
            "discriminator": judge,
            "store": self.store,
            "base": base,
            "plan": Plan(joint=total, per_epoch=1),
            "provenance": Provenance(licence="CC0-1.0", sources=("nobody",)),
            "run": Run.acquire(self.store, self.config.run_id),
            "state": checkpoints.TrainerState(max_steps=total),
        }
        self.session = Session(**parts)
        optimizer = torch.optim.AdamW(generator.parameters())
        self.steps = cast("Steps", SimpleNamespace(optimizers=[optimizer]))

    def step(self, value: float | None = None) -> None:
        """One step; and its evaluation."""
        state = self.session.state
        state.global_step += 1
        for parameter in self.session.generator.parameters():
            parameter.grad = torch.full_like(parameter, float(state.global_step))
        self.steps.optimizers[0].step()
        if value is not None:
            state.log_history.append({"step": state.global_step, "eval_mel": value})

    def publisher(self) -> Publisher:
        return Publisher(self.session, self.tracker, self.stop)

    def saved(self) -> list[int]:
        """Steps with a complete checkpoint on the disk."""
        return [checkpoints.checkpoint_step(folder) or 0 for folder in checkpoints.checkpoints(self.output)]

    def stored(self) -> list[int]:
        """Steps with a complete checkpoint in the store."""
        assert self.session.run
        return self.session.run.checkpoints()

    def published(self) -> list[int]:
        """Steps whose model is in the store, in the order of their versions."""
        registry = Registry(self.store)
        versions = [registry.resolve("models", f"voz/{one}") for one in registry.versions("models", "voz")]
        return [cast("int", version.manifest.lineage["step"]) for version in versions]


def write_card(session: Session, folder: Path, step: int) -> Path:
    """Stands in for the model card, which tells of the data."""
    card = folder / "README.md"
    card.write_text(f"step {step}", encoding="utf-8")
    return card


MakeTrial = Callable[..., Trial]


@pytest.fixture
def make_trial(
    tmp_path: Path, spanish_model: Path, small_discriminator: None, monkeypatch: pytest.MonkeyPatch
) -> MakeTrial:
    monkeypatch.setattr(publishing, "write_model_card", write_card)
    return lambda store=None, **changes: Trial(tmp_path, spanish_model, store, **changes)


def run_once(trial: Trial) -> None:
    """A whole run of one step."""
    with trial.publisher() as publisher:
        trial.step()
        publisher.save(trial.steps)
        publisher.finish()


# -- All is well -----------------------------------------------------------------------------------


def test_a_save_ends_on_the_disk_and_in_the_store(make_trial: MakeTrial) -> None:
    trial = make_trial(save_total_limit=2)
    with trial.publisher() as publisher:
        for _ in range(4):
            trial.step()
            publisher.save(trial.steps)
            publisher.save(trial.steps)  # nothing is new
    assert trial.saved() == [3, 4]
    assert trial.stored() == [3, 4]
    assert trial.tracker.counted()["checkpoints_total"] == 4
    assert trial.published() == [1, 2, 3, 4]
    folder = trial.output / "checkpoint-4"
    _, report = cast("Any", VitsModel).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert json.loads((folder / "speakers.json").read_text(encoding="utf-8")) == {"ana": 0}
    assert not list(trial.output.glob("*.partial"))


def test_the_card_of_the_base_is_not_taken_for_the_models(make_trial: MakeTrial, tmp_path: Path) -> None:
    """The base may be under another licence. The final model has a card of its own."""
    trial = make_trial(total=2)
    base = shutil.copytree(trial.session.base.folder, tmp_path / "base")
    (base / "README.md").write_text("license: cc-by-nc-4.0", encoding="utf-8")
    trial.session.base.folder = base
    with trial.publisher() as publisher:
        for _ in range(2):
            trial.step()
            publisher.save(trial.steps)
        publisher.finish()
    assert not list(trial.output.glob("checkpoint-*/README.md"))
    registry = Registry(trial.store)
    first, final = (registry.resolve("models", f"voz/{one}") for one in registry.versions("models", "voz"))
    assert "README.md" not in {entry.path for entry in first.manifest.files}
    assert (registry.fetch(final) / "README.md").read_text(encoding="utf-8") == "step 2"


def test_a_resumed_run_does_not_save_where_it_begins(make_trial: MakeTrial) -> None:
    trial = make_trial()
    with trial.publisher() as publisher:
        trial.step()
        publisher.save(trial.steps)
    with trial.publisher() as publisher:
        publisher.save(trial.steps, wait=True)
    assert trial.published() == [1]


def test_the_other_processes_save_nothing(make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch) -> None:
    """finetune-hf-vits, defect 25: it pushes to the hub from every process."""
    monkeypatch.setattr(publishing, "HfApi", None)  # would raise
    trial = make_trial(push_to_hub=True, hub_model_id="me/voz")
    cast("Any", trial.session.accelerator).is_main_process = False
    with trial.publisher() as publisher:
        trial.step()
        publisher.save(trial.steps, wait=True)
        publisher.finish()
    assert list(trial.output.iterdir()) == []
    assert trial.stored() == []
    assert trial.published() == []


def test_the_moving_average_is_what_is_published(make_trial: MakeTrial) -> None:
    """And the weights themselves are what is gone on from."""
    trial = make_trial()
    shadow = {name: value + 1 for name, value in trial.session.generator.state_dict().items()}
    trial.session.ema = cast("Any", SimpleNamespace(shadow=shadow))
    with trial.publisher() as publisher:
        for _ in range(2):
            trial.step()
            publisher.save(trial.steps)
    folder = trial.output / "checkpoint-2"
    name = "text_encoder.embed_tokens.weight"
    assert torch.equal(load_file(folder / "model.safetensors")[name], shadow[name])
    saved = checkpoints.read_state(folder)
    assert torch.equal(saved["ema"][name], shadow[name])
    assert torch.equal(saved["generator"][name], trial.session.generator.state_dict()[name])


# -- Slow stores -----------------------------------------------------------------------------------


class Gate(Store):
    """Lets no upload through until it is opened."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.open_ = threading.Event()
        self.reached = threading.Event()

    def upload(self, path: str, local: Path, *, progress: Progress | None = None) -> Digest:
        self.reached.set()
        assert self.open_.wait(60)
        return super().upload(path, local)


def test_training_does_not_wait_for_the_store(make_trial: MakeTrial) -> None:
    store = Gate.open("memory://")
    trial = make_trial(store)
    with trial.publisher() as publisher:
        trial.step()
        publisher.save(trial.steps)
        assert store.reached.wait(60)
        assert trial.saved() == [1]
        assert trial.stored() == []
        trial.step()  # goes on
        store.open_.set()
        publisher.save(trial.steps)  # waits for the first
        assert trial.stored() == [1]
    assert trial.stored() == [1, 2]


@pytest.mark.parametrize("limit", [None, 1])
def test_sigterm_saves_on_the_disk_before_it_waits_for_the_store(
    make_trial: MakeTrial, limit: int | None
) -> None:
    """And removes no checkpoint that is still being sent."""
    store = Gate.open("memory://")
    trial = make_trial(store, save_total_limit=limit)
    with trial.publisher() as publisher:
        trial.step()
        publisher.save(trial.steps)
        assert store.reached.wait(60)
        trial.step()
        expected = trial.session.generator.state_dict()["text_encoder.embed_tokens.weight"].clone()
        seen: list[list[int]] = []

        def look() -> None:
            while 2 not in trial.saved():
                threading.Event().wait(0.01)
            threading.Event().wait(0.2)  # for whatever is done right after it
            seen.append(trial.stored())
            store.open_.set()

        watcher = threading.Thread(target=look)
        watcher.start()
        publisher.save(trial.steps, wait=True)
        watcher.join()
        assert seen == [[]]
        assert trial.stored() == [1, 2]
    assert trial.saved() == ([2] if limit else [1, 2])
    back = checkpoints.read_state(trial.output / "checkpoint-2")["generator"]
    assert torch.equal(back["text_encoder.embed_tokens.weight"], expected)


def test_a_save_that_waits_for_the_store_hears_sigterm(make_trial: MakeTrial) -> None:
    store = Gate.open("memory://")
    trial = make_trial(store)
    with trial.publisher() as publisher:
        trial.step()
        publisher.save(trial.steps)
        assert store.reached.wait(60)
        trial.step()
        threading.Timer(0.2, setattr, (trial.stop, "requested", True)).start()
        publisher.save(trial.steps)  # it would wait for ever
        assert trial.saved() == [1]
        stopping = threading.Thread(target=publisher.save, args=(trial.steps,), kwargs={"wait": True})
        stopping.start()
        deadline = time.monotonic() + 60
        while 2 not in trial.saved():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert trial.stored() == []
        store.open_.set()
        stopping.join()
        assert trial.stored() == [1, 2]


# -- Failures --------------------------------------------------------------------------------------


class Broken(Store):
    """Fails in the middle of every upload of a checkpoint while ``down``."""

    down = False
    left = 2

    def upload(self, path: str, local: Path, *, progress: Progress | None = None) -> Digest:
        if self.down:
            self.left -= 1
            if self.left < 0:
                raise StoreError("connection reset")
        return super().upload(path, local)


def test_store_that_fails_mid_upload_does_not_stop_training(make_trial: MakeTrial) -> None:
    """The checkpoint is complete on the disk, the failure is told, and the next one is sent."""
    store = Broken.open("memory://")
    trial = make_trial(store)
    with trial.publisher() as publisher:
        trial.step()
        store.down = True
        publisher.save(trial.steps, wait=True)
        publisher.check()
        assert trial.saved() == [1]
        assert trial.stored() == []
        (line,) = [line for line in trial.lines if "connection reset" in line]
        assert "checkpoint-1" in line
        assert "\n" not in line
        store.down = False
        trial.step()
        publisher.save(trial.steps)
    assert trial.stored() == [2]
    assert trial.published() == [2]
    counted = trial.tracker.counted()
    assert counted.pop("checkpoint_seconds_total") > 0
    assert counted == {"checkpoints_total": 1, "checkpoint_failures_total": 1, "checkpoint_step": 2}


def test_store_that_stays_broken_fails_the_run_at_its_end_with_the_model_safe(make_trial: MakeTrial) -> None:
    store = Broken.open("memory://")
    trial = make_trial(store, total=1)
    store.down = True
    with pytest.raises(StoreError, match="connection reset"):
        run_once(trial)
    state = checkpoints.TrainerState.read(trial.output)
    assert state is not None
    assert (state.finished, state.final_version) == (True, None)
    VitsModel.from_pretrained(trial.output)
    store.down = False
    assert deliver(trial.config, store, state, trial.lines.append)
    assert trial.published() == [1]


def test_an_unsent_checkpoint_is_sent_at_the_end(make_trial: MakeTrial) -> None:
    store = Broken.open("memory://")
    trial = make_trial(store)
    with trial.publisher() as publisher:
        trial.step()
        store.down = True
        publisher.save(trial.steps, wait=True)
        store.down = False
        publisher.finish()
    assert trial.stored() == [1]


def test_a_run_that_was_taken_over_stops(make_trial: MakeTrial) -> None:
    trial = make_trial()
    publisher = trial.publisher()
    trial.step()
    publisher.save(trial.steps, wait=True)
    Run.acquire(trial.store, trial.config.run_id)
    trial.step()
    publisher.save(trial.steps)
    with pytest.raises(LeaseLostError):
        publisher.close()
    with pytest.raises(LeaseLostError):
        publisher.check()
    assert trial.stored() == [1]
    assert trial.published() == [1]
    assert trial.tracker.counted()["checkpoint_failures_total"] == 1


def test_full_disk_stops_the_run_with_its_last_good_state(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make_trial(save_total_limit=1)
    publisher = trial.publisher()
    trial.step()
    publisher.save(trial.steps, wait=True)

    def full(*_: object, **__: object) -> None:
        Path("/dev/full").write_bytes(b"x")

    monkeypatch.setattr(publishing, "save_file", full)
    trial.step()
    publisher.save(trial.steps)
    says = r"is full: checkpoint-2 needs \d+ bytes.* then the same command goes on from checkpoint-1;"
    with pytest.raises(UserError, match=says):
        publisher.close()
    assert [folder.name for folder in trial.output.iterdir()] == ["checkpoint-1"]
    assert trial.stored() == [1]
    with pytest.raises(UserError, match="is full"):
        publisher.save(trial.steps)
    assert trial.tracker.counted()["checkpoint_failures_total"] == 1
    assert trial.tracker.counted()["checkpoints_total"] == 1


def test_full_disk_at_the_very_end_keeps_the_last_checkpoint(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make_trial(total=1)

    def full(*_: object, **__: object) -> None:
        Path("/dev/full").write_bytes(b"x")

    monkeypatch.setattr(publishing, "write_model_card", full)
    says = r"is full: the final model needs \d+ bytes.* then the same command goes on from checkpoint-1;"
    with pytest.raises(UserError, match=says):
        run_once(trial)
    assert trial.saved() == [1]
    assert not (trial.output / "model.safetensors").exists()
    assert checkpoints.TrainerState.read(trial.output) is None


def test_an_error_of_the_loop_is_not_hidden_by_one_of_the_store(make_trial: MakeTrial) -> None:
    store = Broken.open("memory://")
    trial = make_trial(store)
    store.down = True

    def stop() -> None:
        with trial.publisher() as publisher:
            trial.step()
            publisher.save(trial.steps)
            raise SystemExit(143)

    with pytest.raises(SystemExit, match="143"):
        stop()
    assert trial.saved() == [1]


# -- The best --------------------------------------------------------------------------------------

VALUES = [5.0, 2.0, 3.0, 1.5, 4.0, 6.0]


def evaluated(step: int, value: float) -> dict[str, float]:
    """An evaluation of which every loss has one value."""
    names = ("mel", "kl", "duration", "generator", "feature_maps", "discriminator", "loss", "mel_distance")
    return {"step": step, **{f"eval_{name}": value for name in names}}


def run_through(trial: Trial) -> None:
    with trial.publisher() as publisher:
        for value in VALUES:
            trial.step(value)
            publisher.save(trial.steps)
        publisher.finish()


@pytest.mark.parametrize(
    ("changes", "best", "kept"),
    [
        ({"keep_best": 2}, [4, 2], [2, 4, 6]),
        ({"keep_best": 0}, [], [6]),
        ({"keep_best": 1, "metric_for_best_model": "kl"}, [], [6]),
    ],
)
def test_the_best_checkpoints_stay_beside_the_newest(
    make_trial: MakeTrial, changes: dict[str, Any], best: list[int], kept: list[int]
) -> None:
    trial = make_trial(save_total_limit=1, total=6, **changes)
    run_through(trial)
    assert [entry["step"] for entry in trial.session.state.best] == best
    assert trial.saved() == kept
    registry = Registry(trial.store)
    state = checkpoints.TrainerState.read(trial.output)
    assert state is not None
    for entry in state.best:
        if entry["step"] < len(VALUES):
            version = registry.resolve("models", f"voz/{entry['version']}")
            assert version.manifest.lineage["step"] == entry["step"]


def test_a_checkpoint_is_ranked_by_the_evaluation_since_the_one_before(make_trial: MakeTrial) -> None:
    trial = make_trial(keep_best=3)
    with trial.publisher() as publisher:
        trial.step(9.0)
        trial.step()
        publisher.save(trial.steps)  # by step 1's
        trial.step()
        publisher.save(trial.steps)  # not evaluated
        trial.step(float("nan"))
        publisher.save(trial.steps)
    best = trial.session.state.best
    assert [(entry["step"], entry["value"], entry["evaluated"]) for entry in best] == [(2, 9.0, 1)]


@pytest.mark.parametrize(
    ("metric", "changes", "ranked"),
    [
        ("mel", {}, [3, 4, 5]),
        ("loss", {}, [3, 4, 5]),
        ("mel", {"discriminator_start_step": 2}, [3, 4, 5]),
        ("loss", {"discriminator_start_step": 2}, [5]),
    ],
)
def test_what_is_evaluated_before_all_of_the_model_learns_is_never_the_best(
    make_trial: MakeTrial, metric: str, changes: dict[str, Any], ranked: list[int]
) -> None:
    """Posterior encoder and decoder alone have a lower mel loss than the whole model soon reaches."""
    trial = make_trial(keep_best=9, metric_for_best_model=metric, **changes)
    trial.session.plan = Plan(joint=8, per_epoch=1, reconstruction=2)
    with trial.publisher() as publisher:
        for step in range(1, 6):
            trial.step()
            trial.session.state.log_history.append(evaluated(step, float(step)))
            publisher.save(trial.steps)
    assert [entry["evaluated"] for entry in trial.session.state.best] == ranked


def test_a_best_checkpoint_that_was_not_evaluated_itself_says_so(make_trial: MakeTrial) -> None:
    trial = make_trial(load_best_model_at_end=True, total=2)
    with trial.publisher() as publisher:
        trial.step(9.0)
        trial.step()
        publisher.save(trial.steps)
        publisher.finish()
    assert any("of step 2: mel 9, as evaluated at step 1" in line for line in trial.lines)


@pytest.mark.parametrize("on_disk", [True, False])
def test_the_final_model_is_the_best_one_where_that_is_wanted(make_trial: MakeTrial, on_disk: bool) -> None:
    trial = make_trial(load_best_model_at_end=True, save_total_limit=1, total=6)
    with trial.publisher() as publisher:
        for value in VALUES:
            trial.step(value)
            publisher.save(trial.steps, wait=True)
            if trial.session.step == 4:
                best = load_file(trial.output / "checkpoint-4" / "model.safetensors")
        if not on_disk:
            shutil.rmtree(trial.output / "checkpoint-4")  # another machine: its published version is taken
        publisher.finish()
    final = load_file(trial.output / "model.safetensors")
    assert all(torch.equal(final[name], value) for name, value in best.items())
    assert any("step 4" in line and "mel 1.5" in line for line in trial.lines)
    assert not (trial.output / "manifest.json").exists()
    assert trial.saved()[-1] == 6  # and a longer training goes on from the last
    assert (trial.output / "README.md").read_text(encoding="utf-8") == "step 4"
    assert trial.published() == [1, 2, 3, 4, 5, 4]
    elsewhere = Store.open("memory://")
    assert delivered(trial, elsewhere)  # by a second start, which has but the files
    assert Registry(elsewhere).resolve("models", "voz").manifest.lineage["step"] == 4


def test_the_final_model_of_a_longer_run_is_not_the_shorter_ones_best(make_trial: MakeTrial) -> None:
    trial = make_trial(total=2)
    trial.session.state.best = [{"step": 1, "value": 0.5, "final": True}]
    with trial.publisher() as publisher:
        for _ in range(2):
            trial.step()
            publisher.save(trial.steps)
        publisher.finish()
    assert trial.published() == [1, 2]


def test_without_an_evaluation_the_final_model_is_the_last(make_trial: MakeTrial) -> None:
    trial = make_trial(load_best_model_at_end=True, total=1)
    with trial.publisher() as publisher:
        trial.step()
        publisher.save(trial.steps)
        publisher.finish()
    assert any("no saved step was evaluated by mel: the final" in line for line in trial.lines)
    VitsModel.from_pretrained(trial.output)


# -- The finished model ----------------------------------------------------------------------------


@pytest.fixture
def finished(make_trial: MakeTrial) -> Trial:
    trial = make_trial(total=1)
    run_once(trial)
    trial.lines.clear()
    return trial


def delivered(trial: Trial, store: Store | None = None, **changes: Any) -> bool:
    """What a second start does."""
    state = checkpoints.TrainerState.read(trial.output)
    assert state is not None
    config = trial.config.model_copy(update=changes)
    return deliver(config, store or trial.store, state, trial.lines.append)


def test_a_finished_model_is_sent_once(finished: Trial) -> None:
    assert finished.published() == [1]
    assert not delivered(finished)
    assert finished.published() == [1]
    assert finished.lines == []


def test_a_finished_model_whose_store_is_gone_is_published_again(finished: Trial, tmp_path: Path) -> None:
    empty = Store.open(str(tmp_path / "other"))
    assert delivered(finished, empty)
    registry = Registry(empty)
    version = registry.resolve("models", "voz@latest")
    fetched = registry.fetch(version)
    assert (fetched / "model.safetensors").read_bytes() == (
        finished.output / "model.safetensors"
    ).read_bytes()
    assert version.manifest.licence == "CC0-1.0"
    assert not set(checkpoints.PRIVATE_FILES) & {entry.path for entry in version.manifest.files}
    assert not delivered(finished, empty)


def test_a_model_whose_consent_was_withdrawn_is_not_published_again(finished: Trial) -> None:
    withdrawals = Withdrawals(Registry(finished.store))
    outcome = withdrawals.carry_out(withdrawals.plan("models", ["voz"]), reason="letter")
    with pytest.raises(ConsentError, match=rf"consent was withdrawn \({outcome.audit[0]}\).*Delete"):
        delivered(finished)
    assert finished.published() == []


def test_a_model_that_an_older_record_names_is_not_published_again(finished: Trial) -> None:
    """Records did not name the recordings once."""
    withdrawals = Withdrawals(Registry(finished.store))
    plan = withdrawals.plan("models", ["voz"])
    plan.datasets.clear()
    withdrawals.carry_out(plan, reason="letter")
    with pytest.raises(ConsentError, match=r"models/voz/.* was deleted because consent was withdrawn"):
        delivered(finished)


class WithdrawnOnItsWay(Store):
    """Its first upload of a model is overtaken by a withdrawal."""

    withdraw: Callable[[], object] | None = None

    def upload(self, path: str, local: Path, *, progress: Progress | None = None) -> Digest:
        if self.withdraw and path.startswith("models/"):
            withdraw, self.withdraw = self.withdraw, None
            withdraw()
        return super().upload(path, local, progress=progress)


@pytest.mark.parametrize("when", ["between two checkpoints", "on its way", "before the last"])
def test_an_unfinished_run_ends_when_its_recordings_are_withdrawn(make_trial: MakeTrial, when: str) -> None:
    """Neither a model nor the run's state comes back into the store, and the failure says why."""
    store = WithdrawnOnItsWay.open("memory://")
    trial = make_trial(store, total=2 if when == "before the last" else 10)
    publisher = trial.publisher()
    trial.step()
    publisher.save(trial.steps, wait=True)
    assert trial.published() == [1]
    withdrawals = Withdrawals(Registry(store))
    plan = withdrawals.plan("models", datasets=["recordings"])
    store.withdraw = lambda: withdrawals.carry_out(plan, reason="letter")
    if when != "on its way":
        store.withdraw()
    trial.step()
    with pytest.raises(ConsentError, match="recordings 'recordings' was withdrawn"):
        publisher.save(trial.steps, wait=True)
    assert trial.published() == []
    assert trial.stored() == []
    assert store.list("models") == []
    assert trial.saved() == [1, 2]


def test_a_model_names_the_version_that_its_run_began_from(make_trial: MakeTrial) -> None:
    """However often the alias has moved since, in a later start that only delivers it too."""
    trial = make_trial(total=2)
    trial.session.state.base = "base/20260102T030405-89abcdef"
    with trial.publisher() as publisher:
        for _ in range(2):
            trial.step()
            publisher.save(trial.steps)
        publisher.finish()
    registry, other = Registry(trial.store), Store.open("memory://")
    assert delivered(trial, other)
    versions = [registry.resolve("models", f"voz/{one}") for one in registry.versions("models", "voz")]
    for version in [*versions, Registry(other).resolve("models", "voz")]:
        assert version.manifest.lineage["base"] == "base/20260102T030405-89abcdef"
        assert version.manifest.made_from == ("models/base/20260102T030405-89abcdef",)


def published_by_another(registry: Registry, finished: Trial) -> Version:
    """A version of the same name that is not the finished run's."""
    return registry.publish(
        "models",
        "voz",
        finished.output / "checkpoint-1",
        licence="x",
        sources=[],
        consent=None,
        lineage={"step": 9},
    )


def test_an_alias_that_moved_on_meanwhile_stays(finished: Trial, tmp_path: Path) -> None:
    other = Store.open(str(tmp_path / "other"))
    registry = Registry(other)
    newer = published_by_another(registry, finished)
    registry.move_alias("models", "voz", "latest", newer.id)
    assert delivered(finished, other)
    assert registry.alias("models", "voz", "latest") == newer.id
    assert any("stays there" in line for line in finished.lines)
    assert not any(
        f"voz@latest ({finished.session.state.final_version}" in line for line in finished.lines[-1:]
    )


def test_what_an_alias_is_taken_from_is_said(finished: Trial) -> None:
    """It may be another folder's newer model."""
    registry = Registry(finished.store)
    ours = registry.alias("models", "voz", "latest")
    other = published_by_another(registry, finished)
    registry.move_alias("models", "voz", "production", other.id)
    assert delivered(finished, alias="production")
    assert f"as voz@production ({ours}, where {other.id} was)" in finished.lines[-1]


def test_an_alias_that_was_never_moved_is_moved(finished: Trial) -> None:
    """As after a kill between publishing and moving; one that was moved and taken away again is left alone."""
    registry = Registry(finished.store)
    version = registry.alias("models", "voz", "latest")
    assert delivered(finished, alias="production")
    assert registry.alias("models", "voz", "production") == version


def test_a_finished_folder_that_was_changed_is_not_published(finished: Trial, tmp_path: Path) -> None:
    (finished.output / "config.json").write_text("{}", encoding="utf-8")
    (finished.output / "vocab.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json, vocab\.json"):
        delivered(finished, Store.open(str(tmp_path / "other")))
    with pytest.raises(NotFoundError):
        Registry(Store.open(str(tmp_path / "other"))).resolve("models", "voz")


#: A hub token.
WORD = "hf_word"


class FakeHub:
    """As much of ``HfApi`` as is used."""

    def __init__(self) -> None:
        self.token: str | None = None
        self.down = True
        self.uploads: list[dict[str, Any]] = []

    def __call__(self, *, token: str | None) -> FakeHub:
        self.token = token
        return self

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> SimpleNamespace:
        return SimpleNamespace(repo_id=name)

    def upload_folder(self, **arguments: Any) -> None:
        if self.down:
            raise HfHubHTTPError(
                "503 Service Unavailable", response=cast("Any", SimpleNamespace(headers={}, request=None))
            )
        self.uploads.append(arguments)


def test_a_failed_push_is_made_up_for_when_the_run_is_started_again(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub()
    monkeypatch.setattr(publishing, "HfApi", hub)
    trial = make_trial(
        push_to_hub=True, hub_model_id="me/voz", total=1, hub_token=WORD, overwrite_output_dir=True
    )
    with pytest.raises(HubUnreachableError, match=r"503.* without overwrite_output_dir"):
        run_once(trial)
    assert trial.published() == [1]  # the store has it already
    hub.down = False
    assert delivered(trial)
    (upload,) = hub.uploads
    assert hub.token == WORD
    assert upload["repo_id"] == "me/voz"
    assert {"model.safetensors", "config.json", "discriminator.safetensors", "README.md"} <= set(
        upload["allow_patterns"]
    )
    assert not set(upload["allow_patterns"]) & set(checkpoints.PRIVATE_FILES)
    assert not delivered(trial)
    assert len(hub.uploads) == 1
    assert trial.published() == [1]
    assert not any(WORD.encode() in file.read_bytes() for file in trial.output.rglob("*") if file.is_file())


def test_a_name_that_the_hub_cannot_have_is_told_with_the_way_out(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a configuration whose placeholder was left in. The hub's own client refuses it before it connects."""
    trial = make_trial(
        push_to_hub=True, hub_model_id="vits-spanish-{speaker-name}", model_name="voz", total=1
    )
    with pytest.raises(ConfigError, match=r"cannot be a name there") as caught:
        run_once(trial)
    assert "vits-spanish-{speaker-name}" in str(caught.value)
    assert "--hub_model_id my-name/my-voice" in str(caught.value)
    hub = FakeHub()
    hub.down = False
    monkeypatch.setattr(publishing, "HfApi", hub)
    assert delivered(trial, hub_model_id="me/voz")
    assert [upload["repo_id"] for upload in hub.uploads] == ["me/voz"]
    assert trial.published() == [1]


# -- Killed at every moment ------------------------------------------------------------------------


def test_sigkill_at_every_moment_of_a_save_loses_that_save_at_most(
    tmp_path: Path, spanish_model: Path
) -> None:
    """Step 1 is saved. Then a process is killed before the first, the second, … operation of saving step 2."""
    result = subprocess.run(
        [sys.executable, __file__, str(tmp_path), str(spanish_model)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    moments = sorted(tmp_path.iterdir(), key=lambda folder: int(folder.name))
    assert len(moments) > 20
    outcomes = set()
    for moment in moments:
        run = Run.acquire(Store.open(str(moment / "store")), "voz-output")
        on_disk = [
            checkpoints.checkpoint_step(folder) for folder in checkpoints.checkpoints(moment / "output")
        ]
        stored = run.checkpoints()
        assert on_disk in ([1], [1, 2], [2]), moment
        assert stored in ([1], [1, 2], [2]), moment
        outcomes.add((on_disk[-1], stored[-1]))
        for folder in checkpoints.checkpoints(moment / "output"):
            check_checkpoint(folder)
        run.fetch_checkpoint(stored[-1], moment / "fetched")  # verifies every file
        check_checkpoint(moment / "fetched")
        registry = Registry(run.store)
        for version in registry.versions("models", "voz"):
            registry.fetch(registry.resolve("models", f"voz/{version}"))
    assert outcomes == {(1, 1), (2, 1), (2, 2)}


def check_checkpoint(folder: Path) -> None:
    """It is whole, and all of one step: the weights are what so many steps make of them."""
    state = checkpoints.TrainerState.read(folder)
    saved = checkpoints.read_state(folder)
    assert state is not None
    assert saved["optimizers"] is not None
    assert {int(values["step"]) for values in saved["optimizers"][0]["state"].values()} == {state.global_step}


def _killing(left: int) -> Iterator[None]:
    """Counts operations, and ends the process before the one whose turn it is."""
    for _ in range(left):
        yield
    os.kill(os.getpid(), signal.SIGKILL)


def _save_and_die(folder: Path, model: Path, networks: Networks, count: int) -> None:
    """Save step 1; then die before the ``count``-th operation of saving step 2."""
    trial = Trial(folder, model, networks=networks, save_total_limit=1)
    with trial.publisher() as publisher:
        trial.step()
        publisher.save(trial.steps, wait=True)
        operations = _killing(count)

        def counted(owner: Any, name: str) -> None:
            original = getattr(owner, name)

            def operation(*arguments: Any, **named: Any) -> Any:
                next(operations)
                return original(*arguments, **named)

            setattr(owner, name, operation)

        for owner, names in {
            Store: ("write", "create", "delete", "_upload_chunks"),
            Path: ("rename", "replace", "write_text", "unlink"),
            shutil: ("rmtree",),
            checkpoints: ("save_file",),
            publishing: ("save_file", "save_model"),
        }.items():
            for name in names:
                counted(owner, name)
        trial.step()
        publisher.save(trial.steps)


def _die_at_every_moment(root: Path, model: Path) -> None:
    """Each death in a process of its own. They are forked, for the imports take longer than all the rest."""
    discriminator._SCALE_CHANNELS, discriminator._PERIOD_CHANNELS = SMALL_SCALE, SMALL_PERIOD
    networks = new_networks(model)
    for count in range(200):
        child = os.fork()
        if not child:
            status = 1
            try:
                _save_and_die(root / str(count), model, networks, count)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            sys.exit(os.WEXITSTATUS(status))  # it got through: every moment has been tried
    sys.exit("a save has no end")


if __name__ == "__main__":
    _die_at_every_moment(Path(sys.argv[1]), Path(sys.argv[2]))
