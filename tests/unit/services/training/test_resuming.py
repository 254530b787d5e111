"""Going on, going back, starting over, and stopping when told to."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from services.cli import exit_code
from services.training import checkpoints, resuming, stopping
from services.training.base import find_base
from services.training.checkpoints import TrainerState, take_snapshot, write_state
from services.training.config import resolve
from services.training.resuming import already_finished, find_origin, resume
from services.training.sampler import BucketSampler
from services.training.session import Plan, Session
from services.training.stopping import catch_sigterm
from shared.errors import ConfigError, CorruptObjectError, StoreError, UserError, VitsError
from shared.runs import Run
from shared.store import Store
from shared.text import FrontEnd

REPOSITORY = Path(__file__).parents[4]
RUN = "voz-output"
FRONT_END = FrontEnd.from_spec({"kind": "characters", "vocab": {"_": 0, "a": 1}})


class Disk:
    """A run's output folder and store, with small checkpoints in them."""

    def __init__(self, root: Path, store: str | None = None) -> None:
        self.output = root / "output"
        self.output.mkdir(parents=True, exist_ok=True)
        self.store = Store.open(store or str(root / "store"))

    def session(self, accelerator: object | None = None, **changes: Any) -> Session:
        """A session that begins, with one weight in each network, evaluated over what ``held_out`` stands for."""
        held_out = changes.pop("held_out", None)
        config = resolve(
            {
                "model_name_or_path": "base",
                "dataset_name": "recordings",
                "project_name": "voz",
                "run_name": RUN,
                "output_dir": str(self.output),
                "store": self.store.url,
                "max_steps": 100,
                **changes,
            },
            origin="the test",
        )
        one = SimpleNamespace(is_main_process=True, num_processes=1, scaler=None)
        parts = {
            "config": config,
            "accelerator": accelerator or one,
            "generator": nn.Linear(1, 1, bias=False),
            "discriminator": nn.Linear(1, 1, bias=False),
            "base": SimpleNamespace(
                resumed_optimizers=None, speakers={}, front_end=FRONT_END, reference="base/now", untrained=()
            ),
            "plan": Plan(joint=config.max_steps, per_epoch=10),
            "store": self.store,
            "state": TrainerState(),
            "run": None,
            "ema": None,
            "evaluation": SimpleNamespace(digest=lambda: held_out),
            "sampler": BucketSampler([9] * 100, batch_size=config.per_device_train_batch_size, seed=42),
        }
        return cast("Session", _Session(**parts))

    def checkpoint(
        self, step: int, *, on_disk: bool = True, stored: bool = True, mark: float = 0.0, **state: Any
    ) -> Path:
        """Write a checkpoint whose weights are its step's number (and a mark)."""
        folder = checkpoints.write_checkpoint(
            self.output, step, lambda inside: self._fill(inside, step, mark, **state)
        )
        if stored:
            Run.acquire(self.store, RUN).save_checkpoint(step, folder)
        if not on_disk:
            shutil.rmtree(folder)
        return folder

    def move_to_the_store(self, step: int) -> None:
        """Have a checkpoint in the store alone, as it is on the disk."""
        folder = self.output / f"checkpoint-{step}"
        run = Run.acquire(self.store, RUN)
        run.clear()
        run.save_checkpoint(step, folder)
        shutil.rmtree(folder)

    def _fill(self, folder: Path, step: int, mark: float, **state: Any) -> None:
        weight = torch.full((1, 1), step + mark)
        save_file(
            {"generator.weight": weight, "discriminator.weight": -weight, "ema.weight": weight + 0.25},
            folder / checkpoints.STATE_FILE,
        )
        (folder / checkpoints.OPTIMIZERS_FILE).write_text(
            '[{"param_groups": [], "state": {}, "parameters": {}}]', encoding="utf-8"
        )
        TrainerState(global_step=step, max_steps=100, **state).write(folder)
        FRONT_END.save(folder)
        self.configure(folder)

    def configure(self, folder: Path, **changes: Any) -> None:
        values = {"model_name_or_path": "base", "dataset_name": "recordings", "seed": 42, **changes}
        (folder / checkpoints.CONFIG_FILE).write_text(json.dumps(values), encoding="utf-8")

    def on_disk(self) -> list[str]:
        return sorted(folder.name for folder in self.output.glob("checkpoint-*"))

    def stored(self) -> list[int]:
        return Run(self.store, RUN, 0).checkpoints()


class _Session(SimpleNamespace):
    comparable_from = Session.comparable_from

    @property
    def judged_from(self) -> int:
        return Session.judged_from.__get__(self)  # type: ignore[no-any-return]

    @property
    def step(self) -> int:
        return cast("int", self.state.global_step)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def went_on(session: Session) -> float:
    """Resume; the weight that the generator has then."""
    resume(session)
    return cast("nn.Linear", session.generator).weight.item()


# -- Going on --------------------------------------------------------------------------------------

#: Evaluations of three steps: by mel the first is the best, by kl the second.
EVALUATED = [
    {"step": step, "eval_mel": mel, "eval_kl": kl, "eval_duration": 0.0, "eval_generator": 0.0}
    | {"eval_feature_maps": 0.0, "eval_loss": 35 * mel + 1.5 * kl}
    for step, mel, kl in [(1, 5.0, 9.0), (2, 6.0, 7.0), (3, 7.0, 8.0)]
]


def ranked(disk: Disk, **changes: Any) -> list[tuple[int, float]]:
    """The best of a run of three evaluated steps, of which step 1 was the best by mel, as it goes on."""
    best = [{"step": 1, "value": 5.0, "evaluated": 1, "version": "one"}]
    for step in (1, 2, 3):
        disk.checkpoint(step, best=best, log_history=EVALUATED[:step], held_out="before")
    settings: dict[str, Any] = {"do_eval": True, "keep_best": 1, "held_out": "before"}
    session = disk.session(**settings | changes)
    resume(session)
    assert [entry["version"] for entry in session.state.best if entry["step"] == 1] in ([], ["one"])
    return [(entry["step"], entry["value"]) for entry in session.state.best]


def test_a_run_that_goes_on_unchanged_keeps_its_best_and_says_nothing(
    disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ranked(disk) == [(1, 5.0)]
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "best"),
    [
        ({"metric_for_best_model": "kl"}, [(2, 7.0)]),
        ({"metric_for_best_model": "kl", "keep_best": 2}, [(2, 7.0), (3, 8.0)]),
        ({"metric_for_best_model": "loss"}, [(1, 188.5)]),
        (
            {"metric_for_best_model": "loss", "weight_mel": 0.0},
            [(2, 10.5)],
        ),  # not what was logged as the loss
        ({"metric_for_best_model": "mel_distance"}, []),
    ],
)
def test_a_run_that_goes_on_by_another_measure_ranks_by_it_what_it_has_saved(
    disk: Disk, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], best: list[tuple[int, float]]
) -> None:
    """A mel loss of 5.39 was taken for a whole loss, which is never as low: no later step could be the best."""
    assert ranked(disk, **changes) == best
    listed = ", ".join(f"checkpoint-{step} ({value:.4g})" for step, value in best) or "none yet"
    said = capsys.readouterr().out.splitlines()[1:]
    assert said[0] == f"the best checkpoints by {changes['metric_for_best_model']} are now: {listed}"
    stays = 1 in dict(best)
    gone = "no longer one of them, so that save_total_limit may remove it: checkpoint-1"
    assert said[1:] == ([] if stays else [gone])


@pytest.mark.parametrize("owed", [False, True])
def test_evaluations_over_other_recordings_are_not_compared(
    disk: Disk, capsys: pytest.CaptureFixture[str], owed: bool
) -> None:
    assert ranked(disk, held_out="other") == []
    assert "from step 4 on are not compared with the earlier ones" in capsys.readouterr().out
    disk.checkpoint(4, log_history=EVALUATED, held_out="before", evaluation_owed=owed)
    session = disk.session(do_eval=True, held_out="other")
    resume(session)
    first = 4 if owed else 5  # what is owed is made up for over the recordings of now
    assert session.comparable_from("mel") == session.comparable_from("loss") == first
    assert session.state.held_out == "other"


@pytest.mark.parametrize(("before", "now"), [(None, "now"), ("before", None)])
def test_a_run_of_an_older_release_and_one_without_evaluations_change_nothing(
    disk: Disk, before: str | None, now: str | None
) -> None:
    disk.checkpoint(4, log_history=EVALUATED, held_out=before)
    session = disk.session(do_eval=now is not None, held_out=now)
    resume(session)
    assert session.comparable_from("mel") == 0
    assert session.state.held_out == (now or before)


def test_a_run_keeps_the_base_that_it_began_from(disk: Disk) -> None:
    """Its alias may have moved when the run goes on."""
    session = disk.session()
    resume(session)
    assert session.state.base == "base/now"
    disk.checkpoint(7, base="base/then")
    session = disk.session()
    resume(session)
    assert session.state.base == "base/then"


@pytest.mark.parametrize(
    ("on_disk", "stored", "expected"),
    [([1, 2], [1], 2), ([1], [1, 2], 2), ([], [1, 2], 2), ([1, 2], [], 2), ([2], [2], 2)],
)
def test_the_newest_complete_state_of_disk_and_store_is_gone_on_from(
    disk: Disk, on_disk: list[int], stored: list[int], expected: int
) -> None:
    """finetune-hf-vits, defect 15: it says that it resumes, and does not."""
    for step in sorted({*on_disk, *stored}):
        disk.checkpoint(step, on_disk=step in on_disk, stored=step in stored)
    (disk.output / "checkpoint-9").mkdir()  # half-written: no state in it
    session = disk.session()
    assert went_on(session) == expected
    assert session.step == expected
    assert cast("nn.Linear", session.discriminator).weight.item() == -expected
    assert session.base.resumed_optimizers == [{"param_groups": [], "state": {}}]


@pytest.mark.parametrize(
    ("key", "was", "now", "is_another"),
    [
        ("learning_rate", 1e-3, 1e-4, False),
        ("weight_mel", 45.0, 10.0, False),
        ("dataset_name", "others", "recordings", True),
        ("seed", 7, 8, True),
    ],
)
def test_a_state_of_another_configuration_is_not_gone_on_from_unasked(
    disk: Disk, key: str, was: object, now: object, is_another: bool
) -> None:
    """Where only the store has it: a run of that name took its weights, trained nothing, and published them."""
    disk.configure(disk.checkpoint(3), **{key: was})
    disk.move_to_the_store(3)
    looks = (lambda session: find_origin(session.config, session.accelerator), resume)
    for look, asked in itertools.product(looks, [None, "true"] if is_another else [None]):
        with pytest.raises(ConfigError, match=rf"state of step 3.*--run_name.*\n.*{key}: was") as told:
            look(disk.session(**{key: now}, resume_from_checkpoint=asked))
        assert ("--resume_from_checkpoint true" in str(told.value)) is not is_another
        assert disk.on_disk() == []  # or else it would be gone on from the next time
    assert disk.stored() == [3]
    begun = disk.session(**{key: now}, run_name="voz-other")
    weight = cast("nn.Linear", begun.generator).weight.item()
    assert went_on(begun) == weight
    went_on(disk.session(**{key: now}, overwrite_output_dir=True))
    assert disk.stored() == []


@pytest.mark.parametrize(
    "changes", [{"max_steps": 3}, {"save_steps": 9, "metrics_port": 9100, "run_name": None}]
)
def test_a_state_of_the_same_training_is_gone_on_from(disk: Disk, changes: dict[str, Any]) -> None:
    """However long, and however it is told of."""
    disk.configure(disk.checkpoint(3), **changes)
    disk.move_to_the_store(3)
    assert went_on(disk.session(max_steps=6)) == 3


def test_a_damaged_state_in_the_store_is_said(disk: Disk) -> None:
    (disk.checkpoint(3) / checkpoints.CONFIG_FILE).write_text("{", encoding="utf-8")
    disk.move_to_the_store(3)
    with pytest.raises(CorruptObjectError, match=r"checkpoint 3 of the run.*is damaged"):
        resume(disk.session())


def test_a_state_of_another_configuration_is_gone_on_from_where_that_is_asked(
    disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    disk.configure(disk.checkpoint(3), learning_rate=1e-3, max_steps=3)
    disk.move_to_the_store(3)
    session = disk.session(learning_rate=1e-4, resume_from_checkpoint="true")
    assert went_on(session) == 3
    (told,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("set otherwise"))
    assert set(told.partition("on: ")[2].split("; ")) == {
        "learning_rate: was 0.001, is 0.0001",
        "max_steps: was 3, is 100",
    }


def test_a_new_run_begins_at_its_beginning(disk: Disk) -> None:
    session = disk.session()
    weight = cast("nn.Linear", session.generator).weight.item()
    assert went_on(session) == weight
    assert (session.step, session.state.max_steps) == (0, 100)
    assert session.run is not None
    session.run.check()


def test_everything_that_is_not_a_weight_comes_back_too(disk: Disk) -> None:
    """Position of the sampler, moving average, float16's loss scaler, where the stages meet."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(1))
    state = dict(scaler.state_dict(), scale=256.0)
    disk.checkpoint(7, sampler_epoch=3, sampler_batch=2, warm_up_steps=5, scaler=state, finished=True)
    accelerator = SimpleNamespace(is_main_process=True, num_processes=1, scaler=scaler)
    session = disk.session(accelerator)
    cast("Any", session).ema = SimpleNamespace(shadow={"weight": torch.zeros(1, 1)})
    resume(session)
    assert (session.state.sampler_epoch, session.state.sampler_batch) == (3, 2)
    assert scaler.get_scale() == 256.0
    assert cast("Any", session).ema.shadow["weight"].item() == 7.25
    assert session.plan.warm_up == 5
    assert not session.state.finished
    assert session.state.max_steps == 105


@pytest.mark.parametrize(
    ("before", "batch", "left", "told"),
    [
        (4, 3, None, ""),
        (16, 3, 52, "(per_device_train_batch_size): it goes on with the 52 recordings that it has left"),
        (16, 0, None, ""),  # none of the epoch has been seen
    ],
)
def test_what_an_epoch_has_left_comes_in_the_batches_of_now(
    disk: Disk, capsys: pytest.CaptureFixture[str], before: int, batch: int, left: int | None, told: str
) -> None:
    settings = BucketSampler([9] * 100, batch_size=before, seed=42).settings
    disk.checkpoint(3, sampler_epoch=2, sampler_batch=batch, sampler_settings=settings)
    session = disk.session(per_device_train_batch_size=4)
    resume(session)
    state = session.state
    assert (state.sampler_epoch, state.sampler_batch) == (2, 0 if told else batch)
    assert (None if state.sampler_left is None else len(state.sampler_left)) == left
    assert state.sampler_settings == session.sampler.settings
    said = capsys.readouterr().out.splitlines()[1:]
    assert said == [f"the batches have changed in the midst of an epoch {told}"] * bool(told)


def test_an_epoch_of_other_recordings_begins_anew(disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    settings = BucketSampler([9] * 90, batch_size=4, seed=42).settings
    disk.checkpoint(3, sampler_epoch=2, sampler_batch=3, sampler_settings=settings, sampler_left=[5, 6])
    session = disk.session(per_device_train_batch_size=4)
    resume(session)
    assert (session.state.sampler_batch, session.state.sampler_left) == (0, None)
    assert "in the midst of an epoch (recordings): it begins anew" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"reconstruction_stage_steps": 3, "warm_up_new_modules_steps": 2}, ""),
        (
            {"reconstruction_stage_steps": 9, "text_stage_steps": 4},
            "reconstruction_stage_steps 3 (not 9), text_stage_steps 0 (not 4)",
        ),
        (
            {"reconstruction_stage_steps": 3, "warm_up_new_modules_steps": 5},
            "warm_up_new_modules_steps 2 (not 5)",
        ),
    ],
)
def test_stages_stay_as_the_run_began_with_them_and_that_is_said(
    disk: Disk, capsys: pytest.CaptureFixture[str], changes: dict[str, int], told: str
) -> None:
    """Where they end is part of what was saved; two of five steps taught what the base lacked."""
    disk.checkpoint(4, warm_up_steps=5, reconstruction_steps=3)
    session = disk.session(**changes)
    resume(session)
    assert (session.plan.new_modules, session.plan.reconstruction, session.plan.text) == (2, 3, 0)
    said = capsys.readouterr().out.splitlines()[1:]
    assert said == [f"the run keeps the stages that it began with, as its state is of them: {told}"] * bool(
        told
    )


def convolution_of(layout: torch.memory_format) -> nn.Conv2d:
    convolution = nn.Conv2d(4, 4, 3)
    convolution.weight.data = convolution.weight.data.contiguous(memory_format=layout)
    return convolution


@pytest.mark.parametrize("after", [torch.channels_last, torch.contiguous_format])
def test_optimizers_go_on_whatever_the_layout_of_the_weights(disk: Disk, after: torch.memory_format) -> None:
    """Fused ones read weights and moments side by side in memory, wherever their elements are."""
    torch.manual_seed(0)
    convolution = convolution_of(torch.channels_last)
    session = disk.session()
    cast("Any", session).generator = convolution
    session.state.global_step, session.plan.joint = 1, 2
    cast("Any", session).base.untrained = ()

    def step(optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
        for parameter in network.parameters():
            parameter.grad = (parameter.detach() * 3 + 1).clone(memory_format=torch.preserve_format)
        optimizer.step()

    optimizer = torch.optim.AdamW(convolution.parameters(), lr=0.1, fused=True)
    step(optimizer, convolution)
    snapshot = take_snapshot(session, cast("Any", SimpleNamespace(optimizers=[optimizer])))
    folder = checkpoints.write_checkpoint(disk.output, 1, lambda inside: write_state(snapshot, inside))
    FRONT_END.save(folder)
    disk.configure(folder)
    step(optimizer, convolution)

    resumed = disk.session()
    again = convolution_of(after)
    cast("Any", resumed).generator = again
    resume(resumed)
    second = torch.optim.AdamW(again.parameters(), lr=0.1, fused=True)
    assert resumed.base.resumed_optimizers is not None
    second.load_state_dict(resumed.base.resumed_optimizers[0])
    step(second, again)
    for one, other in zip(convolution.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_moving_average_that_is_new_begins_with_the_weights(disk: Disk) -> None:
    disk.checkpoint(7)
    tensors = {"generator.weight": torch.full((1, 1), 7.0), "discriminator.weight": torch.zeros(1, 1)}
    save_file(tensors, disk.output / "checkpoint-7" / checkpoints.STATE_FILE)
    session = disk.session()
    cast("Any", session).ema = SimpleNamespace(shadow={"weight": torch.zeros(1, 1)})
    resume(session)
    assert cast("Any", session).ema.shadow["weight"].item() == 7.0


def test_full_disk_while_a_checkpoint_is_fetched_is_named(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.checkpoint(7, on_disk=False)

    def full(*_: object, **__: object) -> None:
        Path("/dev/full").write_bytes(b"x")

    monkeypatch.setattr(Store, "download", full)
    with pytest.raises(UserError, match=r"is full: checkpoint-7 needs \d{3,} bytes"):
        resume(disk.session())
    assert list(disk.output.iterdir()) == []
    assert disk.stored() == [7]


@pytest.mark.parametrize("change", [{"seed": 1}, {"dataset_name": "other"}, {"filter_on_speaker_id": "ana"}])
def test_another_runs_checkpoint_is_refused(disk: Disk, change: dict[str, Any]) -> None:
    disk.checkpoint(7)
    disk.configure(disk.output / "checkpoint-7", filter_on_speaker_id=None)
    for explicit in ({}, {"resume_from_checkpoint": "checkpoint-7"}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            resume(disk.session(**change, **explicit))
    assert disk.on_disk() == ["checkpoint-7"]
    assert disk.stored() == [7]


# -- Going back, starting over ---------------------------------------------------------------------


def test_going_back_sets_aside_what_came_after(disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    """A later start, which does not name the checkpoint any more, must not take them."""
    for step in (1, 2, 3):
        disk.checkpoint(step)
    TrainerState(global_step=3, finished=True).write(disk.output)
    assert went_on(disk.session(resume_from_checkpoint="checkpoint-1")) == 1
    assert disk.on_disk() == ["checkpoint-1", "checkpoint-2.aside", "checkpoint-3.aside"]
    assert disk.stored() == [1]
    assert TrainerState.read(disk.output) is None
    said = capsys.readouterr().out
    assert "checkpoint-3.aside" in said
    assert "the state of step 3 is removed" in said
    assert went_on(disk.session()) == 1
    disk.checkpoint(2, mark=0.5)
    assert went_on(disk.session()) == 2.5


def test_going_back_to_a_checkpoint_from_elsewhere_brings_it_here(disk: Disk, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        disk.checkpoint(step)
    elsewhere = Disk(tmp_path / "elsewhere")
    elsewhere.checkpoint(2, mark=0.5)
    asked = str(elsewhere.output / "checkpoint-2")
    assert went_on(disk.session(resume_from_checkpoint=asked)) == 2.5
    aside = [f"checkpoint-{step}.aside" for step in (1, 2, 3)]  # they may be another run's
    assert disk.on_disk() == sorted(["checkpoint-2", *aside])
    assert disk.stored() == [1]
    assert went_on(disk.session()) == 2.5
    assert elsewhere.on_disk() == ["checkpoint-2"]


def test_a_checkpoint_that_is_not_there_names_those_that_are(disk: Disk) -> None:
    disk.checkpoint(2)
    with pytest.raises(ConfigError, match="checkpoint-2"):
        resume(disk.session(resume_from_checkpoint="checkpoint-3"))


@pytest.mark.parametrize("over", [{"overwrite_output_dir": True}, {"resume_from_checkpoint": False}])
def test_starting_over_leaves_nothing_to_go_on_from(
    disk: Disk, over: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """And says what it has removed: who gives a stopped run's command again may have meant to go on."""
    for step in (1, 2):
        disk.checkpoint(step)
    TrainerState(global_step=2, finished=True).write(disk.output)
    session = disk.session(**over, seed=1)
    resume(session)
    assert capsys.readouterr().out == (
        f"starting over: removed checkpoint-1, checkpoint-2 from {disk.output}; the state of step 1, "
        f"the state of step 2 from {disk.store.url}\n"
    )
    resume(disk.session(**over, seed=1))
    assert capsys.readouterr().out == ""  # there is nothing left
    assert session.step == 0
    assert disk.on_disk() == []
    assert disk.stored() == []
    assert TrainerState.read(disk.output) is None


# -- Finished --------------------------------------------------------------------------------------

ALONE = cast("Any", SimpleNamespace(is_main_process=True, num_processes=1))


@pytest.mark.parametrize(
    ("changes", "finished"),
    [
        ({"max_steps": 100}, True),
        ({"max_steps": 50}, True),
        ({"max_steps": 101}, False),
        ({"max_steps": -1, "num_train_epochs": 10}, True),
        ({"max_steps": -1, "num_train_epochs": 10.1}, False),
        ({"max_steps": 100, "overwrite_output_dir": True}, False),
        ({"max_steps": 100, "resume_from_checkpoint": "checkpoint-5"}, False),
    ],
)
def test_a_finished_run_goes_on_only_if_more_is_asked_for(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], finished: bool
) -> None:
    """Of 10 steps an epoch: 20 of warming up and 100 of joint training are done."""
    delivered: list[TrainerState] = []
    monkeypatch.setattr(resuming, "deliver", lambda config, store, state, say: delivered.append(state))
    disk.checkpoint(5)
    TrainerState(global_step=120, max_steps=120, warm_up_steps=20, epoch=12.0, finished=True).write(
        disk.output
    )
    disk.configure(disk.output)
    assert already_finished(disk.session(**changes).config, ALONE) == finished
    assert len(delivered) == finished


def test_an_unfinished_folder_is_not_finished(disk: Disk) -> None:
    assert not already_finished(disk.session().config, ALONE)
    TrainerState(global_step=3).write(disk.output)
    assert not already_finished(disk.session().config, ALONE)


# -- Stopping --------------------------------------------------------------------------------------


def test_sigterm_only_asks() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with catch_sigterm() as stop:
        assert not stop.agreed(ALONE)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        assert stop.agreed(ALONE)
        os.kill(os.getpid(), signal.SIGTERM)  # twice does no harm
    assert signal.getsignal(signal.SIGTERM) is before
    assert stopping.TERMINATED == 143


def test_signals_are_left_alone_outside_of_the_main_thread() -> None:
    seen: list[bool] = []

    def train() -> None:
        with catch_sigterm() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [False]


# -- Several processes -----------------------------------------------------------------------------


def together(tmp_path: Path, scenario: str) -> list[dict[str, Any]]:
    """What two processes say, each on a disk of its own, with one store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    surroundings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "WORLD_SIZE": "2"}
    surroundings |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path), scenario],
            cwd=REPOSITORY,
            # Each is the first process of its machine.
            env=surroundings | {"RANK": str(rank), "LOCAL_RANK": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0, 0], said
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


@pytest.mark.parametrize("scenario", ["stored", "base lost", "unsent", "refused", "away"])
def test_all_processes_go_on_from_the_main_ones_checkpoint(tmp_path: Path, scenario: str) -> None:
    """finetune-hf-vits, defect 25: state is saved on rank 0 only, and each rank looks for itself."""
    first, second = (
        Disk(tmp_path / "0", str(tmp_path / "store")),
        Disk(tmp_path / "1", str(tmp_path / "store")),
    )
    first.checkpoint(1)
    first.checkpoint(2, stored=scenario != "unsent", base="base/20260102T030405-89abcdef")
    second.checkpoint(2, stored=False, mark=0.5)  # of a run that was started over meanwhile
    second.checkpoint(3, stored=False)
    ours, theirs = together(tmp_path, scenario)
    if scenario == "stored":
        assert ours == theirs == {"weight": 2.0, "step": 2, "stop": True, "finished": False}
    elif scenario == "base lost":  # each begins with the checkpoint instead, and has it
        assert (ours["base"], theirs["base"]) == tuple(
            str(d.output / "checkpoint-2") for d in (first, second)
        )
        assert (ours["weight"], theirs["weight"]) == (2.0, 2.0)
    elif scenario == "unsent":
        assert "neither on this machine's disk nor in" in theirs["error"]
        assert "as another process did: the main process goes on from" in ours["error"]
    elif scenario == "away":  # an orchestrator may see either, and is to try again
        assert (ours["error"], ours["code"]) == ("s3://vits does not answer", 4)
        assert theirs == {"error": "stopped, as the main process did: s3://vits does not answer", "code": 4}
    else:
        assert "is not a complete checkpoint" in ours["error"]
        assert "is not a complete checkpoint" in theirs["error"]
        assert ours["code"] == theirs["code"] == 2


def _no_store(*_: object) -> NoReturn:
    raise StoreError("s3://vits does not answer")


def _one_of_two(root: Path, scenario: str) -> None:
    """The program of one process."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    asked: dict[str, Any] = {"resume_from_checkpoint": "checkpoint-8"} if scenario == "refused" else {}
    if rank:
        asked["run_name"] = "voz-elsewhere"  # as its output folder is
    session = Disk(root / str(rank), str(root / "store")).session(accelerator, **asked)
    try:
        if scenario == "away":
            resuming._begin_to_go_on = _no_store  # type: ignore[assignment]
        if scenario in {"refused", "away"}:
            resume(session)
        finished = already_finished(session.config, accelerator)
        told: dict[str, Any] = {}
        if scenario == "base lost":
            origin = find_origin(session.config, accelerator)
            told["base"] = str(find_base(session.config, session.store, origin)[0])
        told |= {"weight": went_on(session), "step": session.step, "finished": finished}
        with catch_sigterm() as stop:
            if rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            told["stop"] = stop.agreed(accelerator)
    except VitsError as error:
        told = {"error": str(error), "code": exit_code(error)}
    print(json.dumps(told), flush=True)
    os._exit(0)  # without the farewell of the process group, which the other may have left


if __name__ == "__main__":
    _one_of_two(Path(sys.argv[1]), sys.argv[2])
