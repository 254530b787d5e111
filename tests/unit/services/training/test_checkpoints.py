"""Checkpoints: whole or not there, and everything in them comes back as it was."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jsonschema
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from services.training.checkpoints import (
    OPTIMIZERS_FILE,
    PRIVATE_FILES,
    STATE_FILE,
    Snapshot,
    TrainerState,
    checkpoint_step,
    checkpoints,
    prune,
    public_files,
    read_state,
    remove_partial,
    room_for,
    schema_text,
    take_snapshot,
    write_checkpoint,
    write_state,
)
from services.training.discriminator import Discriminator
from services.training.resuming import laid_out
from services.training.session import Plan, Session
from services.training.steps import Steps, new_discriminator
from shared.errors import ModelError, UserError
from shared.modeling import VitsForTraining, load_model
from shared.runs import TRAINER_FILE

SCHEMA = Path(__file__).parents[4] / "shared/schemas/training_state.json"


def fill(folder: Path, marker: float = 0.0) -> None:
    save_file({"generator.weight": torch.full((3,), marker)}, folder / STATE_FILE)
    (folder / OPTIMIZERS_FILE).write_text("null", encoding="utf-8")
    TrainerState(global_step=3).write(folder)
    (folder / "config.json").write_text("{}", encoding="utf-8")


def names(folder: Path) -> list[str]:
    return [found.name for found in checkpoints(folder)]


# -- Folders ---------------------------------------------------------------------------------------


def test_checkpoints_are_listed_by_number(tmp_path: Path) -> None:
    for step in (1000, 200, 30):
        write_checkpoint(tmp_path, step, fill)
    assert names(tmp_path) == ["checkpoint-30", "checkpoint-200", "checkpoint-1000"]
    assert checkpoint_step(tmp_path / "checkpoint-30") == 30
    assert checkpoint_step(tmp_path / "checkpoint-30.partial") is None


def test_only_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write_checkpoint(tmp_path, step, fill)
    prune(tmp_path, None)
    assert len(names(tmp_path)) == 4
    prune(tmp_path, 2, spare=[1])
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-3", "checkpoint-4"]


@pytest.mark.parametrize("lacking", sorted(PRIVATE_FILES))
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
    assert read_state(tmp_path / "checkpoint-5")["generator"]["weight"].tolist() == [1, 1, 1]
    (tmp_path / "final.partial").mkdir()
    (tmp_path / ".checkpoint-7.0a0b.part").mkdir()
    (tmp_path / "trainer_state.json.partial").touch()
    remove_partial(tmp_path)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["checkpoint-5"]


def no_room_for_tensors(folder: Path) -> None:
    """A file that may not grow: what safetensors says is its own error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        save_file({"generator.weight": torch.zeros(1 << 18)}, folder / STATE_FILE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def no_room_for_json(folder: Path) -> None:
    """What Python says on Linux's full device."""
    fill(folder)
    Path("/dev/full").write_text("{}", encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "free", "blamed"),
    [
        ("{here}/runs/events", 10**12, True),
        ("/proc/some", 0, False),
        (None, 1000, True),
        (None, 10**12, False),
    ],
)
def test_a_disk_is_blamed_only_where_it_is_the_one_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str | None, free: int, blamed: bool
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    name = [] if file is None else [file.format(here=tmp_path)]
    with pytest.raises(UserError if blamed else OSError), room_for("what is logged", tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device", *name)


@pytest.mark.parametrize("write", [no_room_for_tensors, no_room_for_json])
def test_full_disk_names_the_folder_and_the_bytes_and_keeps_the_last_good_state(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    write_checkpoint(tmp_path, 5, fill)
    before = (tmp_path / "checkpoint-5" / STATE_FILE).read_bytes()
    for step in (5, 6):
        with pytest.raises(UserError, match=f"checkpoint-{step} needs 123456 bytes") as caught:
            write_checkpoint(tmp_path, step, write, needed=123456)
        assert str(tmp_path) in str(caught.value)
        assert "Complete checkpoints: checkpoint-5" in str(caught.value)
    assert [found.name for found in tmp_path.iterdir()] == ["checkpoint-5"]
    assert (tmp_path / "checkpoint-5" / STATE_FILE).read_bytes() == before


@pytest.mark.parametrize(
    "command", ["the same command", "the same command, but without overwrite_output_dir,"]
)
def test_full_disk_says_what_goes_on_and_from_where(tmp_path: Path, command: str) -> None:
    """It said "start the run again", which one with overwrite_output_dir would have taken at its word."""
    with pytest.raises(UserError, match=f"; then {command} goes on from the beginning. Complete"):
        write_checkpoint(tmp_path, 5, no_room_for_json, command=command)
    kept = write_checkpoint(tmp_path, 5, fill)
    elsewhere = (
        f"; with an --output_dir on another disk and --resume_from_checkpoint {kept}, it goes on there"
    )
    with pytest.raises(UserError) as caught:
        write_checkpoint(tmp_path, 6, no_room_for_json, command=command)
    assert f"; then {command} goes on from checkpoint-5{elsewhere}. Complete" in str(caught.value)
    with pytest.raises(UserError, match="; then the same command tries again"):
        write_checkpoint(tmp_path, 6, no_room_for_json)


def test_another_failure_of_the_disk_is_not_called_full(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "no")

    with pytest.raises(PermissionError):
        write_checkpoint(tmp_path, 5, write)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 5, lambda folder: (folder / "old").touch())
    write_checkpoint(tmp_path, 5, fill)
    assert not (tmp_path / "checkpoint-5" / "old").exists()


def test_the_public_part_is_the_model(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 1, fill)
    assert public_files(folder) == ["config.json"]


# -- Where a run stands ----------------------------------------------------------------------------


def some_state() -> TrainerState:
    return TrainerState(
        global_step=7,
        max_steps=10,
        warm_up_steps=2,
        epoch=0.5,
        log_history=[{"step": 1, "mel": 0.25, "stage": "training"}],
        sampler_epoch=1,
        sampler_batch=3,
        best=[{"step": 5, "value": 0.5, "version": "20260102T030405-89abcdef"}],
        evaluation_seconds=1.5,
        scaler={"scale": 65536.0},
        final_files={"config.json": "0" * 64},
    )


def test_trainer_states_go_round(tmp_path: Path) -> None:
    assert TrainerState.read(tmp_path) is None
    some_state().write(tmp_path)
    assert TrainerState.read(tmp_path) == some_state()
    assert [found.name for found in tmp_path.iterdir()] == [TRAINER_FILE]


def test_the_committed_schema_is_current() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == schema_text(), (
        "write services.training.checkpoints.schema_text() into it"
    )
    validator = jsonschema.Draft202012Validator(json.loads(schema_text()))
    validator.validate(asdict(some_state()))
    assert not validator.is_valid(asdict(some_state()) | {"best_metric": 1})


@pytest.mark.parametrize("content", ["{", "[]", '{"best_metric": 1}', '{"global_step": "many"}'])
def test_a_foreign_trainer_state_is_named(tmp_path: Path, content: str) -> None:
    """Such as the one that ``transformers`` leaves in a folder that the ancestor trained into."""
    (tmp_path / TRAINER_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=TRAINER_FILE):
        TrainerState.read(tmp_path)


# -- The whole state -------------------------------------------------------------------------------


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("file", [STATE_FILE, OPTIMIZERS_FILE])
def test_state_is_never_unpickled(tmp_path: Path, file: str) -> None:
    """Pickled files under the names of ours are refused, and nothing in them runs."""
    folder = write_checkpoint(tmp_path, 1, fill)
    (folder / file).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(ModelError, match="checkpoint-1"):
        read_state(folder)
    torch.save({"generator": Bomb(tmp_path / "exploded")}, folder / file)
    with pytest.raises(ModelError, match="checkpoint-1"):
        read_state(folder)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "rest",
    [
        "{}",
        "[{}]",
        '[{"param_groups": [], "state": {}}]',
        '[{"param_groups": [], "state": {"a": {}}}]',
        "[]",
        "7",
    ],
)
def test_damaged_optimizers_are_named(tmp_path: Path, rest: str) -> None:
    folder = write_checkpoint(tmp_path, 1, fill)
    save_file({"optimizers.0.state.0.exp_avg": torch.ones(1)}, folder / STATE_FILE)
    (folder / OPTIMIZERS_FILE).write_text(rest, encoding="utf-8")
    with pytest.raises(ModelError, match="checkpoint-1"):
        read_state(folder)


@pytest.fixture
def networks(spanish_model: Path, small_discriminator: None) -> tuple[VitsForTraining, Discriminator]:
    generator = load_model(spanish_model)
    generator.decoder.apply_weight_norm()
    return generator, new_discriminator(0)


def session(generator: nn.Module, discriminator: nn.Module, **more: Any) -> Session:
    """As much of a session as a snapshot looks at."""
    parts = {
        "generator": generator,
        "discriminator": discriminator,
        "accelerator": SimpleNamespace(scaler=None),
        "base": SimpleNamespace(untrained=("posterior_encoder",)),
        "plan": Plan(joint=9, per_epoch=9),
        "state": TrainerState(global_step=3),
        "ema": None,
        **more,
    }
    return cast("Session", SimpleNamespace(**parts, step=cast("TrainerState", parts["state"]).global_step))


def trained(
    network: nn.Module, kind: Callable[..., torch.optim.Optimizer], **settings: Any
) -> torch.optim.Optimizer:
    """An optimiser after two steps over a network."""
    optimizer = kind(network.parameters(), lr=1e-3, **settings)
    for seed in range(2):
        torch.manual_seed(seed)
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def with_optimizers(*optimizers: torch.optim.Optimizer) -> Steps:
    return cast("Steps", SimpleNamespace(optimizers=list(optimizers)))


def written(snapshot: Snapshot, folder: Path) -> Path:
    return write_checkpoint(folder, snapshot.step, lambda inside: write_state(snapshot, inside))


OPTIMIZERS: list[tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.AdamW, {"betas": (0.8, 0.99)}),
    (torch.optim.AdamW, {"fused": True}),
    (torch.optim.SGD, {}),
    (torch.optim.SGD, {"momentum": 0.9}),
]


@pytest.mark.parametrize(("kind", "settings"), OPTIMIZERS)
def test_everything_comes_back_bit_for_bit(
    tmp_path: Path,
    networks: tuple[VitsForTraining, Discriminator],
    kind: Callable[..., torch.optim.Optimizer],
    settings: dict[str, Any],
) -> None:
    """finetune-hf-vits, defect 15: weights, optimisers and average, and the next step from them."""
    optimizers = [trained(network, kind, **settings) for network in networks]
    shadow = {name: value + 1 for name, value in networks[0].state_dict().items()}
    snapshot = take_snapshot(
        session(*networks, ema=SimpleNamespace(shadow=shadow)), with_optimizers(*optimizers)
    )
    saved = read_state(written(snapshot, tmp_path))
    for part, live in (
        ("generator", networks[0].state_dict()),
        ("discriminator", networks[1].state_dict()),
        ("ema", shadow),
    ):
        back = cast("dict[str, dict[str, torch.Tensor]]", saved)[part]
        assert back.keys() == live.keys()
        assert all(torch.equal(back[name], live[name]) for name in live)
    assert saved["optimizers"] is not None
    for optimizer, network, state in zip(optimizers, networks, saved["optimizers"], strict=True):
        assert state["param_groups"] == optimizer.state_dict()["param_groups"]
        again = kind(network.parameters(), lr=1.0, **settings)
        again.load_state_dict(laid_out(session(*networks), state))
        weights = [parameter.detach().clone() for parameter in network.parameters()]
        results = []
        for one in (optimizer, again):
            for parameter, weight in zip(network.parameters(), weights, strict=True):
                parameter.data.copy_(weight)
                parameter.grad = torch.ones_like(parameter)
            one.step()
            results.append([parameter.detach().clone() for parameter in network.parameters()])
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_tensors_are_named_after_what_they_are(
    tmp_path: Path, networks: tuple[VitsForTraining, Discriminator]
) -> None:
    optimizers = [trained(network, torch.optim.AdamW) for network in networks]
    folder = written(take_snapshot(session(*networks), with_optimizers(*optimizers)), tmp_path)
    tensors = load_file(folder / STATE_FILE)
    assert {"generator.text_encoder.embed_tokens.weight", "optimizers.1.state.12.exp_avg"} <= tensors.keys()
    assert {name.partition(".")[0] for name in tensors} == {"generator", "discriminator", "optimizers"}
    states = read_state(folder)["optimizers"]
    assert states is not None
    for number, network in enumerate(("generator", "discriminator")):
        for parameter, name in states[number]["parameters"].items():
            moment = tensors[f"optimizers.{number}.state.{parameter}.exp_avg"]
            assert name.startswith(f"{network}.")
            assert moment.shape == tensors[name].shape


def test_a_stage_that_is_over_leaves_no_optimizers(
    tmp_path: Path, networks: tuple[VitsForTraining, Discriminator]
) -> None:
    at_the_end = session(*networks, plan=Plan(joint=9, per_epoch=9, new_modules=3))
    snapshot = take_snapshot(at_the_end, with_optimizers(trained(networks[0], torch.optim.AdamW)))
    assert read_state(written(snapshot, tmp_path))["optimizers"] is None
    assert snapshot.untrained == ()
    text_is_next = session(*networks, plan=Plan(joint=9, per_epoch=9, new_modules=3, text=2))
    snapshot = take_snapshot(text_is_next, with_optimizers(trained(networks[0], torch.optim.AdamW)))
    assert snapshot.optimizers is None
    assert snapshot.untrained == ()
    before = session(*networks, plan=Plan(joint=9, per_epoch=9, new_modules=4))
    assert take_snapshot(before, with_optimizers()).untrained == ("posterior_encoder",)


def test_training_goes_on_while_a_snapshot_is_written(
    tmp_path: Path, networks: tuple[VitsForTraining, Discriminator]
) -> None:
    """Nothing that happens after it was taken shows in it."""
    optimizer = trained(networks[0], torch.optim.AdamW)
    run = session(*networks)
    run.state.best.append({"step": 3, "value": 0.5})
    snapshot = take_snapshot(run, with_optimizers(optimizer))
    expected = {name: value.clone() for name, value in snapshot.all_tensors().items()}
    with torch.no_grad():
        for network in networks:
            for parameter in network.parameters():
                parameter.add_(1)
        for values in optimizer.state.values():
            values["exp_avg"].add_(1)
            values["step"].add_(1)
    run.state.global_step = 4
    run.state.log_history.append({"step": 4})
    run.state.best[0]["version"] = "later"
    folder = written(snapshot, tmp_path)
    tensors = load_file(folder / STATE_FILE)
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())
    assert TrainerState.read(folder) == TrainerState(global_step=3, best=[{"step": 3, "value": 0.5}])


def test_memory_is_used_again(networks: tuple[VitsForTraining, Discriminator]) -> None:
    optimizer = trained(networks[0], torch.optim.AdamW)
    first = take_snapshot(session(*networks), with_optimizers(optimizer))
    places = {name: value.data_ptr() for name, value in first.all_tensors().items()}
    with torch.no_grad():
        networks[0].text_encoder.embed_tokens.weight.add_(1)
    second = take_snapshot(
        session(*networks, state=TrainerState(global_step=4)), with_optimizers(optimizer), first
    )
    assert second is first
    assert {name: value.data_ptr() for name, value in second.all_tensors().items()} == places
    assert second.step == 4
    weight = second.all_tensors()["generator.text_encoder.embed_tokens.weight"]
    assert torch.equal(weight, networks[0].text_encoder.embed_tokens.weight)
    # The next stage has other optimisers.
    third = take_snapshot(session(*networks), with_optimizers(trained(networks[1], torch.optim.SGD)), second)
    assert not [name for name in third.all_tensors() if name.startswith("optimizers")]


def test_the_scaler_of_float16_is_part_of_the_state(networks: tuple[VitsForTraining, Discriminator]) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(1))  # its state is there once it has been used
    run = session(*networks, accelerator=SimpleNamespace(scaler=scaler))
    snapshot = take_snapshot(run, with_optimizers())
    again = torch.amp.GradScaler("cpu")
    assert snapshot.state.scaler is not None
    again.load_state_dict(json.loads(json.dumps(snapshot.state.scaler)))
    assert again.get_scale() == 1024.0


def test_a_snapshot_knows_its_size(tmp_path: Path, networks: tuple[VitsForTraining, Discriminator]) -> None:
    snapshot = take_snapshot(session(*networks), with_optimizers(trained(networks[0], torch.optim.AdamW)))
    state = (written(snapshot, tmp_path) / STATE_FILE).stat().st_size
    assert state < snapshot.nbytes < 2 * state
