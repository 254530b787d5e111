"""How a run begins: what of its configuration reaches what it is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator

from services.training.checkpoints import TrainerState
from services.training.config import TrainingConfig
from services.training.data.cache import decode
from services.training.session import Plan, Session, begin, command_to_go_on
from shared.audio import write_wav
from shared.errors import DataError

MakeConfig = Callable[..., TrainingConfig]


def test_batches_and_decoding_are_what_the_configuration_says(
    make_config: MakeConfig,
    make_dataset: Callable[..., Path],
    small_discriminator: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """``group_by_length``, ``max_frames_per_batch`` and ``preprocessing_num_workers``, each by what comes of it."""
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))
    recordings = str(make_dataset(34))
    threads: list[int | None] = []

    def watched(*arguments: Any, workers: int | None, **options: Any) -> Any:
        threads.append(workers)
        return decode(*arguments, workers=workers, **options)

    monkeypatch.setattr("services.training.dataset.decode", watched)

    def begun(**changes: Any) -> Session:
        config = make_config(
            dataset_name=recordings, per_device_train_batch_size=4, max_duration_in_seconds=2.0, **changes
        )
        config.output_dir.mkdir(exist_ok=True)
        return begin(config, Accelerator(cpu=True))

    def sizes(session: Session) -> list[list[int]]:
        """The frames of every recording, batch by batch."""
        frames = [session.train.frames(example) for example in session.train.examples]
        return [[frames[index] for index in batch] for batch in session.sampler.epoch(0)]

    def padding(batches: list[list[int]]) -> int:
        return sum(max(batch) * len(batch) - sum(batch) for batch in batches)

    plain, grouped = sizes(begun(preprocessing_num_workers=3)), sizes(begun(group_by_length=True))
    assert threads == [3, None]
    assert padding(grouped) < 0.7 * padding(plain)
    budget = 250
    assert max(max(batch) * len(batch) for batch in plain) > budget
    assert max(max(batch) * len(batch) for batch in grouped) > budget
    within = sizes(begun(max_frames_per_batch=budget))
    assert max(max(batch) * len(batch) for batch in within) <= budget


@pytest.mark.parametrize(
    ("stages", "start", "by_mel", "by_loss"),
    [
        ({}, 0, 0, 0),  # the base itself may be the best, and is the bar
        ({"reconstruction": 900}, 0, 901, 901),
        ({"reconstruction": 3, "text": 2, "new_modules": 1}, 0, 7, 7),
        ({}, 10, 0, 11),
        ({"reconstruction": 900}, 10, 901, 911),
    ],
)
def test_the_first_evaluation_that_can_be_compared(
    make_config: MakeConfig, stages: dict[str, int], start: int, by_mel: int, by_loss: int
) -> None:
    """Of the whole model, and where the measure is the discriminator's, once there is one."""
    parts: dict[str, Any] = dict.fromkeys(part.name for part in fields(Session))
    parts |= {"config": make_config(discriminator_start_step=start)}
    session = Session(**parts | {"plan": Plan(joint=1000, per_epoch=10, **stages), "state": TrainerState()})
    assert session.comparable_from("mel") == session.comparable_from("mel_distance") == by_mel
    assert session.comparable_from("loss") == session.comparable_from("feature_maps") == by_loss
    session.state.held_out_from = 950
    assert session.comparable_from("mel") == session.comparable_from("loss") == 950


@pytest.mark.parametrize(
    ("changes", "without"),
    [
        ({}, ""),
        ({"overwrite_output_dir": True}, ", but without overwrite_output_dir,"),
        ({"resume_from_checkpoint": False}, ", but without resume_from_checkpoint,"),
        ({"resume_from_checkpoint": "checkpoint-5"}, ", but without resume_from_checkpoint,"),
        (
            {"overwrite_output_dir": True, "resume_from_checkpoint": "checkpoint-5"},
            ", but without overwrite_output_dir and resume_from_checkpoint,",
        ),
        ({"overwrite_output_dir": True, "resume_from_checkpoint": True}, ""),
    ],
)
def test_the_command_that_goes_on_leaves_out_what_would_not(
    make_config: MakeConfig, changes: dict[str, Any], without: str
) -> None:
    assert command_to_go_on(make_config(**changes)) == f"the same command{without}"


@pytest.mark.parametrize("trains", [True, False])
def test_an_evaluation_split_with_nothing_usable_is_said_before_anything_is_trained(
    make_config: MakeConfig,
    make_dataset: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    trains: bool,
) -> None:
    """A run would never have been evaluated, an evaluation alone printed nothing, and a search ended in a KeyError."""
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))
    recordings = make_dataset(6, evaluation=3)
    write_wav(recordings / "clip03.wav", np.full(22050 * 3, 0.1, np.float32), 22050)
    for name in ("clip04.wav", "clip05.wav"):
        write_wav(recordings / name, np.full(5000, 0.1, np.float32), 22050)
    changes: dict[str, Any] = {"dataset_name": str(recordings), "max_duration_in_seconds": 2.5}
    (tmp_path / "output").mkdir()
    begin(make_config(**changes), Accelerator(cpu=True))  # nobody asks for the split
    with pytest.raises(DataError, match="No recording of the evaluation split 'test' can be used") as raised:
        begin(make_config(**changes, do_eval=True, do_train=trains), Accelerator(cpu=True))
    *counts, remedy = raised.value.problems
    assert counts == [
        "2 recordings left out: shorter than segment_size 8192",
        "1 recording left out: longer than max_duration_in_seconds 2.5",
    ]
    assert "--eval_split_name" in remedy
    assert ("--do_eval false" in remedy) == trains
