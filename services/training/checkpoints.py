"""Checkpoints: complete or not there at all.

On the disk a run keeps ``checkpoint-N/`` folders as users of ``finetune-hf-vits`` know them: a loadable Hugging
Face model and its discriminator, and beside them what only its own run has a use for:

- ``training_state.safetensors``: every tensor of the state under a name that says what it is, such as
  ``generator.decoder.conv_pre.bias``, ``ema.…``, ``discriminator.…`` and ``optimizers.0.state.12.exp_avg``;
- ``optimizers.json``: the rest of the optimisers' state, or ``null`` where a stage's optimisers are done with;
- ``trainer_state.json``: where the run stands; its schema is ``shared/schemas/training_state.json``.

Each folder is written under another name and then renamed, so that one which can be seen is whole.
Nothing is ever pickled.
"""

from __future__ import annotations

import copy
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict, TypeVar

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from services.training.discriminator import Discriminator
from shared.errors import ModelError, UserError
from shared.modeling import VitsForTraining
from shared.runs import CONFIG_FILE as CONFIG_FILE
from shared.runs import TRAINER_FILE

if TYPE_CHECKING:
    from services.training.session import Session
    from services.training.steps import Steps

STATE_FILE = "training_state.safetensors"
OPTIMIZERS_FILE = "optimizers.json"
#: Files of a checkpoint that only its own run has a use for; they are not part of a published model.
PRIVATE_FILES = frozenset({STATE_FILE, OPTIMIZERS_FILE, TRAINER_FILE})
_PARTIAL = ".partial"
#: What a file system answers when nothing more may be written.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

#: More bytes than logs and a report ever take: a disk that has them is not full.
_ROOM = 10**9

Network = TypeVar("Network", bound=nn.Module)


# -- Where a run stands ----------------------------------------------------------------------------


@dataclass
class TrainerState:
    """Where a run stands. Its fields are called as in ``transformers``' file of the same name."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", title="TrainerState", ser_json_inf_nan="constants"
    )

    base: str | None = None
    """What the run began from: a version of the store, or a folder or the hub's name; nothing in older states."""
    global_step: int = 0
    max_steps: int = 0
    warm_up_steps: int = 0
    """Steps before joint training: after those of the first stage, ``reconstruction_steps`` and ``text_steps``."""
    reconstruction_steps: int = 0
    text_steps: int = 0
    epoch: float = 0.0
    finished: bool = False
    log_history: list[dict[str, Any]] = field(default_factory=list)
    sampler_epoch: int = 0
    """The epoch whose batches are being drawn, and how many of them have been."""
    sampler_batch: int = 0
    sampler_settings: dict[str, Any] | None = None
    """What the batches follow from that are counted; nothing in older states."""
    sampler_left: list[int] | None = None
    """The recordings that the counted batches are made of, where the epoch was begun with others; else all."""
    curriculum_epoch: int = 0
    """The sampler's epoch with which joint training began; a curriculum counts from it."""
    best: list[dict[str, Any]] = field(default_factory=list)
    """The best checkpoints, the best first: ``step``, ``value`` of the metric at the step ``evaluated``, which may
    be an earlier one, and ``version`` once published."""
    held_out: str | None = None
    """Digest of what evaluations are over; nothing in older states, and before there are any."""
    held_out_from: int = 0
    """The first step whose evaluation was over that; those before were over something else."""
    evaluation_seconds: float = 0.0
    evaluation_owed: bool = False
    """Whether the step is still to be evaluated, for which a stop left no time."""
    findings: list[dict[str, Any]] = field(default_factory=list)
    """What was told about the run's health: ``name``, ``step``, ``what`` and ``remedy``."""
    scaler: dict[str, float] | None = None
    """State of float16's loss scaler."""
    final_files: dict[str, str] = field(default_factory=dict)
    """The finished model's files in the output folder, with their SHA-256."""
    final_version: str | None = None
    """The finished model's version in the store, once it is there."""
    pushed_to: str | None = None
    """The repository on the hub that the finished model was pushed to."""

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
            return TypeAdapter(cls).validate_json(path.read_bytes())
        except ValidationError as error:
            raise ModelError(f"{path} cannot be read: {error}. Remove it to start over.") from error


def schema_text() -> str:
    """The JSON Schema (2020-12) of ``trainer_state.json``, as committed in ``shared/schemas``."""
    schema = TypeAdapter(TrainerState).json_schema()
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


# -- A copy of the state in memory -----------------------------------------------------------------


@dataclass
class Snapshot:
    """A run's whole state after a step, in CPU memory of its own: training can go on while it is written.

    It takes as much memory as both networks, their optimisers and the moving average together.
    """

    generator: VitsForTraining
    """Copies of the networks: modules, so that a model can be written from them."""
    discriminator: Discriminator
    state: TrainerState
    untrained: tuple[str, ...] = ()
    """Modules that are still to be taught before the rest."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Optimisers and moving average, by their names in the file."""
    optimizers: list[dict[str, Any]] | None = None
    """What of the optimisers' state is no tensor."""

    @property
    def step(self) -> int:
        """The step that it was taken after."""
        return self.state.global_step

    def all_tensors(self) -> dict[str, Tensor]:
        """Everything that is written to ``training_state.safetensors``."""
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        weights = {
            f"{name}.{key}": value
            for name, network in networks.items()
            for key, value in network.state_dict().items()
        }
        return weights | self.tensors

    @property
    def nbytes(self) -> int:
        """About as much as the checkpoint takes on the disk: the state, and the networks as a model again."""
        model: int = sum(
            value.nbytes
            for one in (self.generator, self.discriminator)
            for value in one.state_dict().values()
        )
        rest: int = sum(value.nbytes for value in self.tensors.values())
        return 2 * model + rest


@torch.no_grad()
def take_snapshot(session: Session, steps: Steps, reuse: Snapshot | None = None) -> Snapshot:
    """Copy a run's state. This is all that training waits for at a save.

    Args:
        session: The run.
        steps: Whose optimisers belong to the state.
        reuse: An earlier snapshot of the same run that is done with; its memory is filled again.
    """
    if session.accelerator.scaler is not None:
        session.state.scaler = session.accelerator.scaler.state_dict()
    state = replace(
        session.state,
        log_history=list(session.state.log_history),
        best=[dict(entry) for entry in session.state.best],
        findings=[dict(entry) for entry in session.state.findings],
    )
    snapshot = reuse or Snapshot(_twin(session.generator), _twin(session.discriminator), state)
    snapshot.state = state
    snapshot.generator.load_state_dict(session.generator.state_dict())
    snapshot.discriminator.load_state_dict(session.discriminator.state_dict())
    still_new = session.base.untrained if session.step < session.plan.new_modules else ()
    snapshot.untrained = tuple(still_new)
    tensors: dict[str, Tensor] = {}
    if session.step in [span.stop for stage, span in session.plan.stages().items() if stage != "joint"]:
        snapshot.optimizers = None  # at the very end of a stage its optimisers are done with
    else:
        networks = {"generator": session.generator, "discriminator": session.discriminator}
        names = {
            id(parameter): f"{network}.{name}"
            for network, module in networks.items()
            for name, parameter in module.named_parameters()
        }
        tensors, snapshot.optimizers = _pack(steps.optimizers, names)
    if session.ema is not None:
        tensors |= {f"ema.{name}": value for name, value in session.ema.shadow.items()}
    _fill(snapshot.tensors, tensors)
    return snapshot


def _twin(network: Network) -> Network:
    """A module of the same kind on the CPU, its memory in the files' order, its weights still to be filled in."""
    memory = {
        id(value): nn.Parameter(torch.empty(value.shape, dtype=value.dtype), requires_grad=False)
        for value in network.parameters()
    }
    return copy.deepcopy(network, memory)


def _fill(kept: dict[str, Tensor], live: Mapping[str, Tensor]) -> None:
    """Copy tensors into CPU memory, into the same as the last time where they still fit."""
    for name in kept.keys() - live.keys():
        del kept[name]
    for name, value in live.items():
        if name not in kept or kept[name].shape != value.shape or kept[name].dtype != value.dtype:
            kept[name] = torch.empty(value.shape, dtype=value.dtype)
        kept[name].copy_(value)


def _pack(
    optimizers: Sequence[Optimizer], names: Mapping[int, str]
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Optimisers' states as named tensors, and JSON for the rest; with it the names of the numbered parameters."""
    tensors: dict[str, Tensor] = {}
    rest: list[dict[str, Any]] = []
    for number, optimizer in enumerate(optimizers):
        whole = optimizer.state_dict()
        others: dict[str, dict[str, Any]] = {}
        for parameter, values in whole["state"].items():
            others[str(parameter)] = {}
            for name, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizers.{number}.state.{parameter}.{name}"] = value
                else:
                    others[str(parameter)][name] = value
        groups = zip(whole["param_groups"], optimizer.param_groups, strict=True)
        parameters = {
            str(parameter): names[id(live)]
            for group, live_group in groups
            for parameter, live in zip(group["params"], live_group["params"], strict=True)
        }
        rest.append({"param_groups": whole["param_groups"], "state": others, "parameters": parameters})
    return tensors, rest


def _unpack(tensors: Mapping[str, Tensor], rest: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`_pack`'s way back: states that optimisers load, each with the names of its parameters by number."""
    states: list[dict[str, Any]] = []
    for part in rest:
        groups = [
            {
                key: tuple(value) if isinstance(value, list) and key != "params" else value
                for key, value in group.items()
            }
            for group in part["param_groups"]
        ]
        state = {int(parameter): dict(values) for parameter, values in part["state"].items()}
        names = {int(parameter): str(name) for parameter, name in part["parameters"].items()}
        states.append({"param_groups": groups, "state": state, "parameters": names})
    for path, tensor in tensors.items():
        match path.split("."):
            case ["optimizers", number, "state", parameter, name]:
                states[int(number)]["state"][int(parameter)][name] = tensor
    return states


# -- Files -----------------------------------------------------------------------------------------


def write_state(snapshot: Snapshot, folder: Path) -> None:
    """Write what makes a model folder a checkpoint.

    Raises:
        OSError, SafetensorError: It cannot be written.
    """
    save_file(snapshot.all_tensors(), folder / STATE_FILE)
    (folder / OPTIMIZERS_FILE).write_text(json.dumps(snapshot.optimizers) + "\n", encoding="utf-8")
    snapshot.state.write(folder)


class SavedState(TypedDict):
    """A checkpoint's tensors as they are read back, by the networks' and optimisers' own names."""

    generator: dict[str, Tensor]
    discriminator: dict[str, Tensor]
    ema: dict[str, Tensor]
    """Empty without a moving average."""
    optimizers: list[dict[str, Any]] | None
    """States to load, and under ``parameters`` what their numbered parameters are called, such as
    ``generator.decoder.conv_pre.bias``. None where the next stage begins with fresh ones."""


def read_state(folder: Path) -> SavedState:
    """A checkpoint's tensors.

    Raises:
        ModelError: They cannot be read.
    """
    try:
        tensors = load_file(folder / STATE_FILE)
        rest = json.loads((folder / OPTIMIZERS_FILE).read_text(encoding="utf-8"))
        optimizers = None if rest is None else _unpack(tensors, rest)
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(
            f"The state in {folder} cannot be read: {error}. Remove the folder to go on from the checkpoint "
            "before it."
        ) from error

    def part(name: str) -> dict[str, Tensor]:
        prefix = f"{name}."
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    return SavedState(
        generator=part("generator"),
        discriminator=part("discriminator"),
        ema=part("ema"),
        optimizers=optimizers,
    )


def checkpoint_step(folder: Path) -> int | None:
    """The step of a ``checkpoint-N`` folder, or nothing for another folder."""
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match[1]) if match else None


def is_complete(folder: Path) -> bool:
    """Whether a folder can be resumed from."""
    return all((folder / file).is_file() for file in PRIVATE_FILES)


def checkpoints(output_dir: Path) -> list[Path]:
    """Every complete checkpoint of a run, oldest first."""
    found = [
        folder
        for folder in output_dir.glob("checkpoint-*")
        if checkpoint_step(folder) is not None and is_complete(folder)
    ]
    return sorted(found, key=lambda folder: checkpoint_step(folder) or 0)


def write_checkpoint(
    output_dir: Path,
    step: int,
    write: Callable[[Path], None],
    *,
    needed: int = 0,
    command: str | None = None,
) -> Path:
    """Write ``checkpoint-<step>`` whole, by way of a folder of another name.

    Args:
        output_dir: The run's folder.
        step: Names the checkpoint; one of the same step is replaced.
        write: Fills a folder.
        needed: About how many bytes that takes, for the message when there is no room.
        command: What would go on with the run, for the same message; see `room_for`.

    Raises:
        UserError: The disk is full. What was written is removed again, and older checkpoints are as they were.
    """
    final = output_dir / f"checkpoint-{step}"
    partial = final.with_name(final.name + _PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    with room_for(final.name, output_dir, needed, command):
        try:
            partial.mkdir(parents=True)
            write(partial)
            _sync(partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    return final


@contextmanager
def room_for(
    what: str, output_dir: Path, needed: int | None = None, command: str | None = None
) -> Iterator[None]:
    """Say of a full disk where it is, how many bytes are needed, and how the run goes on.

    Args:
        what: What is written inside.
        output_dir: The run's folder.
        needed: About how many bytes that takes, where that is known.
        command: What goes on with the run from the newest checkpoint that is complete; None where the very command
            that was given would do again what has failed.

    Raises:
        UserError: The disk is full.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not _says_full(error) or (needed is None and _is_elsewhere(error, output_dir)):
            raise
        complete = checkpoints(output_dir)
        again = "the same command tries again"
        if command is not None:
            again = f"{command} goes on from {complete[-1].name if complete else 'the beginning'}"
            if complete:
                again += (
                    f"; with an --output_dir on another disk and --resume_from_checkpoint {complete[-1].resolve()}, "
                    "it goes on there"
                )
        left = ", ".join(folder.name for folder in complete) or "none"
        amount = "more room" if needed is None else f"{needed} bytes ({needed / 1e9:.2f} GB)"
        raise UserError(
            f"The disk of {output_dir} is full: {what} needs {amount} and "
            f"{shutil.disk_usage(output_dir).free} are free. Make room there (a smaller --save_total_limit "
            f"keeps fewer checkpoints); then {again}. Complete checkpoints: {left}"
        ) from error


def _sync(folder: Path) -> None:
    """Wait until a folder's files are on the disk, so that a machine which stops leaves them whole."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_elsewhere(error: Exception, output_dir: Path) -> bool:
    """Whether another disk than a folder's is full: by the file that could not be written, or as this one has room."""
    name = getattr(error, "filename", None)
    if name is None:
        return shutil.disk_usage(output_dir).free > _ROOM
    places = (place for place in Path(name).absolute().parents if place.exists())
    return next(places).stat().st_dev != output_dir.stat().st_dev


def _says_full(error: Exception) -> bool:
    """Whether a write failed because there is no room; safetensors says so in words only."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return any(f"(os error {number})" in str(error) for number in _FULL)


def remove_partial(output_dir: Path) -> None:
    """Clear away what a killed run left half-written."""
    for leftover in [*output_dir.glob(f"*{_PARTIAL}"), *output_dir.glob(".checkpoint-*.part")]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def prune(output_dir: Path, keep: int | None, spare: Collection[int] = ()) -> None:
    """Keep only the newest ``keep`` checkpoints, and those of the steps to spare."""
    if keep is not None:
        for folder in checkpoints(output_dir)[:-keep]:
            if checkpoint_step(folder) not in spare:
                shutil.rmtree(folder)


def public_files(folder: Path) -> list[str]:
    """The files of a checkpoint that make its model."""
    return sorted(file.name for file in folder.iterdir() if file.is_file() and file.name not in PRIVATE_FILES)
