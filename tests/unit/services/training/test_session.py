"""How a run begins: what of its configuration reaches what it is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from accelerate import Accelerator

from services.training.checkpoints import TrainerState
from services.training.config import TrainingConfig
from services.training.data.cache import decode
from services.training.session import Plan, Session, begin, command_to_go_on
from shared.audio import write_wav
from shared.errors import DataError

MakeConfig = Callable[..., TrainingConfig]


@pytest.fixture(autouse=True)
def surroundings(small_discriminator: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))


def test_batches_and_decoding_are_what_the_configuration_says(
    make_config: MakeConfig,
    make_dataset: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """``group_by_length``, ``max_frames_per_batch`` and ``preprocessing_num_workers``, each by what comes of it."""
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
    tmp_path: Path,
    trains: bool,
) -> None:
    """A run would never have been evaluated, an evaluation alone printed nothing, and a search ended in a KeyError."""
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


def test_what_is_held_out_of_a_dataset_without_splits_is_said(
    make_config: MakeConfig,
    make_dataset: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And is the same whether it is evaluated or not: what a run has learnt must not be evaluated when it goes on."""
    folder = make_dataset(20)
    table = folder / "metadata.csv"
    rows = [line.split(",") for line in table.read_text(encoding="utf-8").splitlines()]
    lines = [",".join([*row[:-2], row[-1]]) for row in rows]
    (tmp_path / "output").mkdir()

    def begun(**changes: Any) -> tuple[set[str], str]:
        session = begin(make_config(dataset_name=str(folder), **changes), Accelerator(cpu=True))
        return {example.id for example in session.train.examples}, capsys.readouterr().out

    assert "held out" not in begun()[1]
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    trained, told = begun()
    assert len(trained) == 18
    assert (
        "no splits but train: 2 of 20 recordings held out (1 as test, 1 as validation; nothing evaluates now)"
        in told
    )
    assert "--train_split_name all" in told
    evaluating, told = begun(do_eval=True, eval_split_name="validation")
    assert evaluating == trained
    assert "1 as validation; validation is evaluated)" in told
    everything, told = begun(train_split_name="all")
    assert len(everything) == 20
    assert "held out" not in told
    who = {"speaker_id_column_name": "speaker"}
    assert "1 of 10 recordings held out (1 as test;" in begun(filter_on_speaker_id="luis", **who)[1]
    assert "1 of 10 recordings held out (1 as validation;" in begun(filter_on_speaker_id="ana", **who)[1]


def test_recordings_in_which_nothing_is_heard_are_said(
    make_config: MakeConfig,
    make_dataset: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Such as of a microphone that was off, or of two channels that cancel each other."""
    folder = make_dataset(6)
    files = sorted(folder.rglob("*.wav"))
    rate = soundfile.info(files[0]).samplerate
    noise = np.random.default_rng(0).uniform(-1, 1, rate)
    soundfile.write(files[0], np.zeros(rate), rate)
    soundfile.write(files[1], 0.002 * noise, rate)
    soundfile.write(files[2], np.stack([noise, -noise], axis=1), rate)
    soundfile.write(files[3], 0.02 * noise, rate)  # quiet, and heard
    (tmp_path / "output").mkdir()
    begin(make_config(dataset_name=str(folder), train_split_name="all"), Accelerator(cpu=True))
    (told,) = (line for line in capsys.readouterr().out.splitlines() if "as good as silent" in line)
    assert told.startswith(
        "Warning: training: 3 recordings as good as silent, nowhere louder than -50 dBFS: "
    )
    assert [f"({file.stem})" in told for file in files[:4]] == [True, True, True, False]


def test_digits_that_nobody_will_speak_are_said_by_row_and_of_sample_sentences(
    make_config: MakeConfig,
    make_dataset: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, output = make_dataset(6), tmp_path / "output"
    table = folder / "metadata.csv"
    lines = table.read_text(encoding="utf-8").splitlines()
    file = lines[2].partition(",")[0]
    lines[2] = f"{file},tengo 3 gatos,train,ana"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    output.mkdir()
    changes: dict[str, Any] = {"dataset_name": str(folder), "full_generation_sample_text": "a las 7, hola"}
    begin(make_config(**changes), Accelerator(cpu=True))
    told = capsys.readouterr().out
    assert f"'3' (1); all listed in {output / 'unspoken.csv'}" in told
    assert "metadata.csv:3 (" in told
    assert "vits data clean" in told
    assert "Warning: the sample sentence 'a las 7, hola' is spoken without '7'" in told
    assert "tengo 3 gatos" in (output / "unspoken.csv").read_text(encoding="utf-8")
    (output / "unspoken.csv").write_text("the run's", encoding="utf-8")
    begin(make_config(**changes, do_train=False, do_eval=True), Accelerator(cpu=True))
    assert "unspoken.csv" not in capsys.readouterr().out
    assert (output / "unspoken.csv").read_text(encoding="utf-8") == "the run's"
