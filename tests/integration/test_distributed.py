"""Training on two processes is training on one with a batch of twice the size."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from services.training.checkpoints import TrainerState

STEPS = 20

#: ``vits train`` with a small discriminator, which keeps the gradients that the first step of each optimiser sees,
#: and whether they were sent to the other process inside of a backward pass.
TRAINER = """
import json, os, sys
import torch.distributed
from safetensors.torch import save_file
from torch.optim.optimizer import register_optimizer_step_pre_hook
from services import cli
from services.training import discriminator
from services.training.steps import Steps

discriminator._SCALE_CHANNELS, discriminator._PERIOD_CHANNELS = (1, 4, 16, 64, 256), (1, 2, 4, 8, 16)
seen, names, passes, sent_inside = [], {}, [], []

def apply(steps, optimizer, network, limit, plain=Steps._apply):
    names.update({parameter: name for name, parameter in network.named_parameters()})
    return plain(steps, optimizer, network, limit)

def backward(*tensors, plain=torch.autograd.backward, **options):
    passes.append(True)
    plain(*tensors, **options)
    passes.pop()

def all_reduce(*tensors, plain=torch.distributed.all_reduce, async_op=False, **options):
    if async_op:
        sent_inside.append(bool(passes))
    return plain(*tensors, async_op=async_op, **options)

def keep(optimizer, _arguments, _options):
    if optimizer not in seen:
        seen.append(optimizer)
        learning = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        path = os.path.join(sys.argv[1], f"{len(seen)}-{os.environ.get('RANK', '0')}")
        save_file({names[p]: p.grad.contiguous() for p in learning}, path + ".safetensors")
        with open(path + ".json", "w") as file:
            json.dump(sent_inside, file)
        sent_inside.clear()

Steps._apply, torch.autograd.backward, torch.distributed.all_reduce = apply, backward, all_reduce
register_optimizer_step_pre_hook(keep)
exec(os.environ.get("FAULT", ""))
sys.exit(cli.main(["train", *sys.argv[2:]]))
"""


@pytest.fixture(scope="module")
def still_model(spanish_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model without dropout."""
    folder = tmp_path_factory.mktemp("still") / "model"
    shutil.copytree(spanish_model, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {key: 0.0 for key in config if "dropout" in key}))
    return folder


def run(
    folder: Path, processes: int, configuration: dict[str, Any], fault: str = ""
) -> subprocess.CompletedProcess[str]:
    """Train in ``folder`` on so many processes, over gloo on the loopback device; each runs ``fault`` first."""
    folder.mkdir(exist_ok=True)
    (folder / "trainer.py").write_text(TRAINER, encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(configuration), encoding="utf-8")
    launcher = [
        "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--rdzv-backend", "c10d",
        "--rdzv-endpoint", "127.0.0.1:0",
    ]  # fmt: skip
    environment = os.environ | {
        "GLOO_SOCKET_IFNAME": "lo",
        "VITS_CACHE": str(folder.parent / "cache"),
        "FAULT": fault,
    }
    return subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), "trainer.py", str(folder), "--config", "config.json"],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )  # fmt: skip


def configuration(folder: Path, model: Path, dataset: Path, processes: int, **changes: Any) -> dict[str, Any]:
    return {
        "project_name": "voz",
        "model_name_or_path": str(model),
        "dataset_name": str(dataset),
        "output_dir": str(folder / "output"),
        "store": f"file://{folder / 'store'}",
        "do_eval": True,
        "eval_steps": 10,
        "max_train_samples": 4,  # every step sees all of them
        "per_device_train_batch_size": 4 // processes,
        "per_device_eval_batch_size": 1,
        "max_steps": STEPS,
        "save_steps": 10,
        "logging_steps": 1,
        "optim": "sgd",
        "learning_rate": 1e-2,
        "weight_decay": 0,
        "lr_decay": 1.0,
        **changes,
    }


@pytest.fixture(scope="module")
def one_and_two(
    still_model: Path, recordings_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The folders of the same run on one process and on two."""
    root = tmp_path_factory.mktemp("distributed")
    folders = root / "one", root / "two"
    for processes, folder in enumerate(folders, start=1):
        done = run(folder, processes, configuration(folder, still_model, recordings_folder, processes))
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("1 process," if processes == 1 else "2 processes,") in done.stdout
    return folders


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    """Relative to each tensor; the keys' biases in attention, whose gradient is 0 by design, to 1e-5 of all."""
    assert ours.keys() == theirs.keys()
    sizes = {name: float(value.double().norm()) for name, value in theirs.items()}
    sizes |= {name: 1e-5 * math.hypot(*sizes.values()) for name in sizes if name.endswith("k_proj.bias")}
    far = {name: float((ours[name] - value).double().norm()) for name, value in theirs.items()}
    assert {name: value for name, value in far.items() if value > tolerance * sizes[name]} == {}


@pytest.mark.parametrize("network", [1, 2], ids=["discriminator", "generator"])
def test_gradients_are_the_large_batchs(one_and_two: tuple[Path, Path], network: int) -> None:
    """On both processes the same, and within 1e-4 of those of one process that sees all recordings."""
    one, two = one_and_two
    alone = load_file(one / f"{network}-0.safetensors")
    first, second = (load_file(two / f"{network}-{rank}.safetensors") for rank in (0, 1))
    assert len(alone) > 20
    assert all(first[name].equal(second[name]) for name in first)
    assert_close(first, alone, 1e-4)


def test_micro_batches_on_two_processes_are_the_large_batch(
    one_and_two: tuple[Path, Path], still_model: Path, recordings_folder: Path, tmp_path: Path
) -> None:
    """Two recordings, one at a time, on each of two processes; their gradients are sent once a step, with the last."""
    alone = one_and_two[0]
    settings = configuration(tmp_path, still_model, recordings_folder, 2, do_eval=False, max_steps=10)
    settings |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "report_to": []}
    done = run(tmp_path, 2, settings)
    assert done.returncode == 0, done.stdout + done.stderr
    for network in (1, 2):
        first, second = (load_file(tmp_path / f"{network}-{rank}.safetensors") for rank in (0, 1))
        assert all(first[name].equal(second[name]) for name in first)
        assert_close(first, load_file(alone / f"{network}-0.safetensors"), 1e-4)
        assert json.loads((tmp_path / f"{network}-0.json").read_text()) == [True]
    ours, theirs = (
        load_file(folder / "output/checkpoint-10/training_state.safetensors") for folder in (tmp_path, alone)
    )
    assert_close(ours, theirs, 1e-4)
    state = TrainerState.read(tmp_path / "output")
    assert state is not None
    assert state.epoch == 10


@pytest.mark.parametrize("network", [1, 2], ids=["discriminator", "generator"])
@pytest.mark.parametrize("rank", [0, 1])
def test_gradients_are_sent_beside_the_backward_pass(
    one_and_two: tuple[Path, Path], network: int, rank: int
) -> None:
    """And not when it is over, where the sums would be the same and the step slower."""
    sent_inside = json.loads((one_and_two[1] / f"{network}-{rank}.json").read_text())
    assert sent_inside == [True]  # the small networks have one bucket each


@pytest.mark.parametrize("step", [10, STEPS])
def test_checkpoints_are_the_large_batchs(one_and_two: tuple[Path, Path], step: int) -> None:
    """Weights of both networks, after twenty steps of plain gradient descent at 1e-2."""
    states = [
        load_file(folder / "output" / f"checkpoint-{step}" / "training_state.safetensors")
        for folder in one_and_two
    ]
    assert any(name.startswith("discriminator.") for name in states[0])
    assert_close(states[1], states[0], 1e-4)


def test_evaluations_and_losses_are_the_large_batchs(one_and_two: tuple[Path, Path]) -> None:
    """finetune-hf-vits, defect 23: its evaluation on several processes crashes or never ends."""
    histories = []
    for folder in one_and_two:
        state = TrainerState.read(folder / "output")
        assert state is not None
        assert state.global_step == STEPS
        assert state.epoch == STEPS
        histories.append(state.log_history)
    assert [entry["step"] for entry in histories[0] if "eval_mel" in entry] == [0, 10, STEPS]
    for alone, shared in zip(*histories, strict=True):
        assert alone.keys() == shared.keys()
        for name, value in alone.items():
            expected = value if isinstance(value, str) else pytest.approx(value, rel=1e-3, abs=1e-5)
            assert shared[name] == expected, (alone["step"], name)


def test_two_processes_go_on_where_one_stopped(
    one_and_two: tuple[Path, Path], still_model: Path, recordings_folder: Path, tmp_path: Path
) -> None:
    """A run may change the number of processes; both take the main one's checkpoint."""
    folder = tmp_path / "more"
    shutil.copytree(one_and_two[0], folder)
    settings = configuration(folder, still_model, recordings_folder, 2, max_steps=STEPS + 2)
    done = run(folder, 2, settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"going on from step {STEPS} of {STEPS + 2}" in done.stdout
    state = TrainerState.read(folder / "output")
    assert state is not None
    assert state.global_step == STEPS + 2


#: One process is told to stop in the second step.
TOLD = """
import signal
from services.training.steps import Steps

def told(steps, seen, step, joint=Steps.joint):
    if os.environ["RANK"] == "1" and step == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return joint(steps, seen, step)

Steps.joint = told
"""


def test_a_stop_of_one_process_stops_both_in_that_step(
    still_model: Path, recordings_folder: Path, tmp_path: Path
) -> None:
    """They agreed at every tenth step."""
    settings = configuration(tmp_path, still_model, recordings_folder, 2, report_to=[])
    done = run(tmp_path, 2, settings, TOLD)
    assert "told to stop: step 2 is saved" in done.stdout
    exits = re.findall(r"exitcode +: (-?\d+)", done.stderr)
    assert "143" in exits
    assert set(exits) <= {"143", "-15"}  # the launcher ends the other, which may be at its very end by then
    assert TrainerState.read(tmp_path / "output/checkpoint-2") is not None


#: One process's cache of recordings is spoiled on the way.
BAD_DATA = """
from services.training import loop
from shared.errors import DataError

def spoiled(course, take=loop.Course._next_batch):
    if os.environ["RANK"] == "1" and course.session.step == 1:
        raise DataError("The cache is spoiled:", ["clip01 is not there"])
    return take(course)

loop.Course._next_batch = spoiled
"""

#: The disk of the process that saves is full at the first checkpoint.
FULL_DISK = """
from services.training import checkpoints
from shared.errors import UserError

def full(*_, **__):
    raise UserError("checkpoint-1: there is no room")

checkpoints.write_checkpoint = full
"""


@pytest.mark.parametrize(
    ("fault", "failed", "said"),
    [(BAD_DATA, 1, "The cache is spoiled:"), (FULL_DISK, 0, "checkpoint-1: there is no room")],
    ids=["data", "disk"],
)
def test_an_error_on_one_process_ends_both_and_is_told_by_both(
    still_model: Path, recordings_folder: Path, tmp_path: Path, fault: str, failed: int, said: str
) -> None:
    settings = configuration(
        tmp_path, still_model, recordings_folder, 2, save_steps=1, do_eval=False, report_to=[]
    )
    done = run(tmp_path, 2, settings, fault)
    assert done.returncode != 0
    assert f"vits train: {said}" in done.stderr
    assert f"vits train: stopped, as process {failed} did: {said}" in done.stderr
    assert "Connection closed" not in done.stderr  # what came of it says nothing
    exits = re.findall(r"exitcode +: (-?\d+)", done.stderr)  # the launcher may have sent SIGTERM first
    assert len(exits) == 2
    assert "0" not in exits
