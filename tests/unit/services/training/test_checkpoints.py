"""Checkpoints on the disk: whole or not there."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from services.training.checkpoints import (
    PRIVATE_FILES,
    STATE_FILE,
    TRAINER_FILE,
    TrainerState,
    checkpoint_step,
    checkpoints,
    copy_public_files,
    prune,
    read_state,
    remove_partial,
    write_checkpoint,
)
from shared.errors import ModelError


def fill(folder: Path, **state: Any) -> None:
    torch.save({"generator": {"weight": torch.ones(3)}, **state}, folder / STATE_FILE)
    TrainerState(global_step=3).write(folder)
    (folder / "config.json").write_text("{}", encoding="utf-8")


def names(folder: Path) -> list[str]:
    return [found.name for found in checkpoints(folder)]


def test_checkpoints_are_listed_by_number(tmp_path: Path) -> None:
    for step in (1000, 200, 30):
        write_checkpoint(tmp_path, step, fill)
    assert names(tmp_path) == ["checkpoint-30", "checkpoint-200", "checkpoint-1000"]
    assert checkpoint_step(tmp_path / "checkpoint-30") == 30
    assert checkpoint_step(tmp_path / "checkpoint-30.partial") is None
    prune(tmp_path, None)
    assert len(names(tmp_path)) == 3
    prune(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-200", "checkpoint-1000"]


@pytest.mark.parametrize("lacking", [STATE_FILE, TRAINER_FILE])
def test_an_incomplete_folder_is_no_checkpoint(tmp_path: Path, lacking: str) -> None:
    (write_checkpoint(tmp_path, 5, fill) / lacking).unlink()
    assert names(tmp_path) == []


def test_an_interrupted_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> None:
        fill(folder)
        raise KeyboardInterrupt

    write_checkpoint(tmp_path, 5, lambda folder: fill(folder, marker=1))
    for step in (5, 6):
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(tmp_path, step, interrupted)
    assert names(tmp_path) == ["checkpoint-5"]
    assert read_state(tmp_path / "checkpoint-5")["marker"] == 1
    (tmp_path / "final.partial").mkdir()
    (tmp_path / ".publish.partial").mkdir()
    (tmp_path / ".checkpoint-7.0a0b.part").mkdir()
    (tmp_path / "trainer_state.json.partial").touch()
    remove_partial(tmp_path)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["checkpoint-5"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 5, lambda folder: (folder / "old").touch())
    write_checkpoint(tmp_path, 5, fill)
    assert not (tmp_path / "checkpoint-5" / "old").exists()


def test_trainer_states_go_round(tmp_path: Path) -> None:
    assert TrainerState.read(tmp_path) is None
    state = TrainerState(7, 10, 2, 0.5, True, [{"step": 1, "mel": 0.25}])
    state.write(tmp_path)
    assert TrainerState.read(tmp_path) == state
    assert [found.name for found in tmp_path.iterdir()] == [TRAINER_FILE]


@pytest.mark.parametrize("content", ["{", "[]", '{"best_metric": 1}'])
def test_a_foreign_trainer_state_is_named(tmp_path: Path, content: str) -> None:
    """Such as the one that ``transformers`` leaves in a folder that the ancestor trained into."""
    (tmp_path / TRAINER_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=TRAINER_FILE):
        TrainerState.read(tmp_path)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("/tmp/never").touch, ())  # noqa: S108 - never run


def test_state_is_never_unpickled(tmp_path: Path) -> None:
    """Resumable state is read with weights-only loading."""
    torch.save({"generator": Bomb()}, tmp_path / STATE_FILE)
    with pytest.raises(ModelError, match=STATE_FILE):
        read_state(tmp_path)
    (tmp_path / STATE_FILE).write_bytes(pickle.dumps({"generator": 1}) + b"rest")
    with pytest.raises(ModelError, match=STATE_FILE):
        read_state(tmp_path)
    with pytest.raises(ModelError, match=STATE_FILE):
        read_state(tmp_path / "nowhere")


def test_optimizer_states_survive(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.sum().backward()
    optimizer.step()
    folder = write_checkpoint(tmp_path, 1, lambda folder: fill(folder, optimizers=[optimizer.state_dict()]))
    again = torch.optim.AdamW([parameter], lr=0.5)
    again.load_state_dict(read_state(folder)["optimizers"][0])
    assert torch.equal(again.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])
    assert int(again.state[parameter]["step"]) == 1


def test_the_public_part_is_the_model(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 1, fill)
    copy_public_files(folder, tmp_path / "public")
    assert [found.name for found in (tmp_path / "public").iterdir()] == ["config.json"]
    assert not set(PRIVATE_FILES) & {found.name for found in (tmp_path / "public").iterdir()}
