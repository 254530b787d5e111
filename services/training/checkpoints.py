"""Checkpoints: complete or not there at all, on the disk and in the store.

On the disk a run keeps ``checkpoint-N/`` folders as users of ``finetune-hf-vits`` know them: a loadable Hugging
Face model, its discriminator, and beside them ``training_state.pt`` (optimisers and raw weights, read
back with weights-only loading) and ``trainer_state.json``. Each is written under another name and then
renamed, so that one which can be seen is whole.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from shared.errors import ModelError

STATE_FILE = "training_state.pt"
TRAINER_FILE = "trainer_state.json"
CONFIG_FILE = "training_config.json"
#: Files of a checkpoint that only its own run has a use for; they are not part of a published model.
PRIVATE_FILES = (STATE_FILE, TRAINER_FILE)
_PARTIAL = ".partial"


@dataclass
class TrainerState:
    """Where a run stands. Its fields are called as in ``transformers``' file of the same name."""

    global_step: int = 0
    max_steps: int = 0
    warm_up_steps: int = 0
    epoch: float = 0.0
    finished: bool = False
    log_history: list[dict[str, Any]] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write ``trainer_state.json``, at once or not at all."""
        partial = folder / (TRAINER_FILE + _PARTIAL)
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        partial.replace(folder / TRAINER_FILE)

    @classmethod
    def read(cls, folder: Path) -> TrainerState | None:
        """Read ``trainer_state.json``, or nothing where there is none.

        Raises:
            ModelError: It is there and is not ours.
        """
        path = folder / TRAINER_FILE
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ModelError(f"{path} cannot be read: {error}. Remove it to start over.") from error


def checkpoint_step(folder: Path) -> int | None:
    """The step of a ``checkpoint-N`` folder, or nothing for another folder."""
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match[1]) if match else None


def checkpoints(output_dir: Path) -> list[Path]:
    """Every complete checkpoint of a run that can be resumed from, oldest first."""
    found = [
        folder
        for folder in output_dir.glob("checkpoint-*")
        if checkpoint_step(folder) is not None
        and (folder / STATE_FILE).is_file()
        and (folder / TRAINER_FILE).is_file()
    ]
    return sorted(found, key=lambda folder: checkpoint_step(folder) or 0)


def write_checkpoint(output_dir: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Write ``checkpoint-<step>`` whole, by way of a folder of another name.

    Args:
        output_dir: The run's folder.
        step: Names the checkpoint; one of the same step is replaced.
        write: Fills a folder.
    """
    final = output_dir / f"checkpoint-{step}"
    partial = final.with_name(final.name + _PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    return final


def remove_partial(output_dir: Path) -> None:
    """Clear away what a killed run left half-written."""
    for leftover in [*output_dir.glob(f"*{_PARTIAL}"), *output_dir.glob(".checkpoint-*.part")]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def prune(output_dir: Path, keep: int | None) -> None:
    """Keep only the newest ``keep`` checkpoints."""
    if keep is not None:
        for folder in checkpoints(output_dir)[:-keep]:
            shutil.rmtree(folder)


def read_state(folder: Path) -> dict[str, Any]:
    """A checkpoint's tensors, by weights-only loading.

    Raises:
        ModelError: They cannot be read.
    """
    try:
        state: dict[str, Any] = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its reader meets
        raise ModelError(f"{folder / STATE_FILE} cannot be read: {error}") from error
    return state


def copy_public_files(source: Path, target: Path) -> None:
    """Copy a checkpoint's model, without what only its run has a use for."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*PRIVATE_FILES, f"*{_PARTIAL}"))
