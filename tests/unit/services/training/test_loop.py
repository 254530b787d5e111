"""The loop: what ends a run, what learns in a stage, and what the options change."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from services.training import checkpoints, evaluation, loop, report
from services.training.artefacts import Artefacts
from services.training.base import Origin
from services.training.config import TrainingConfig
from services.training.dataset import Batch, Examples
from services.training.ema import Ema
from services.training.loop import build_steps, set_learning_rates
from services.training.publishing import Publisher
from services.training.ranking import total_loss
from services.training.session import Session, begin, precision
from services.training.steps import Seen, Steps, align
from services.training.tracking import TensorBoard
from shared.errors import ConfigError, ConsentError, DivergenceError, StoreError, UserError
from shared.manifests import Checkpoint
from shared.modeling import load_model
from shared.provenance import Provenance
from shared.registry import Registry, Version
from shared.runs import Run
from shared.store import Store
from shared.withdrawal import Withdrawals
from tests.conftest import write_small_model

MakeConfig = Callable[..., TrainingConfig]


@pytest.fixture(autouse=True)
def surroundings(small_discriminator: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))


def begun(config: TrainingConfig) -> Session:
    config.output_dir.mkdir(exist_ok=True)
    return begin(config, Accelerator(cpu=True))


def part(session: Session) -> Seen:
    return Seen.of(session.train.collate([session.train[0], session.train[1]]), session.settings)


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def counted_evaluations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps at which evaluations begin."""
    begun: list[int] = []
    run = evaluation.run

    def count(session: Session, *arguments: Any) -> dict[str, float]:
        begun.append(session.step)
        return run(session, *arguments)

    monkeypatch.setattr(evaluation, "run", count)
    return begun


# -- What is read ----------------------------------------------------------------------------------


def test_batches_that_a_worker_reads_are_those_that_the_run_would_read(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that reads ahead varies recordings by the epoch, too, and the position is that of what was used."""
    collate = Examples.collate

    def signed(examples: Examples, *arguments: Any, **options: Any) -> Batch:
        batch = collate(examples, *arguments, **options)
        return replace(batch, ids=(str(os.getpid()), *batch.ids))

    monkeypatch.setattr(Examples, "collate", signed)
    read, positions = [], []
    for workers in (0, 1):
        session = begun(make_config(dataloader_num_workers=workers, augment_speed=0.1, augment_probability=1))
        reading = loop.batches(session)
        read.append([next(reading) for _ in range(3)])
        reading.close()  # type: ignore[attr-defined]
        positions.append((session.state.sampler_epoch, session.state.sampler_batch))
    for own, ahead in zip(*read, strict=True):
        assert own.ids[0] == str(os.getpid()) != ahead.ids[0]
        assert own.ids[1:] == ahead.ids[1:]
        assert torch.equal(own.padded_waveform, ahead.padded_waveform)
    assert positions[0] == positions[1]


def test_what_is_left_of_an_epoch_is_read_and_then_whole_ones(make_config: MakeConfig) -> None:
    session = begun(make_config(per_device_train_batch_size=4))
    session.state = replace(session.state, sampler_epoch=3, sampler_left=[1, 6, 4])
    reading = loop.batches(session)
    assert sorted(next(reading).index.tolist()) == [1, 4, 6]
    assert (session.state.sampler_batch, session.state.sampler_left) == (1, [1, 6, 4])
    assert sorted(index for _ in range(2) for index in next(reading).index.tolist()) == [*range(8)]
    assert (session.state.sampler_epoch, session.state.sampler_batch, session.state.sampler_left) == (
        4,
        2,
        None,
    )


def test_a_run_that_goes_on_with_another_measure_publishes_the_best_by_that(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Step 2 has the lowest mel loss, which is lower than any whole loss; step 4 has the lowest of these."""
    names = ("mel", "kl", "duration", "generator", "feature_maps", "discriminator")

    def losses(session: Session, *_: object) -> dict[str, float]:
        mel, kl = {0: (9.0, 9e9), 2: (5.0, 900.0)}.get(session.step, (6.0, 0.0))
        values = dict.fromkeys(names, 0.0) | {"mel": mel, "kl": kl}
        return values | {"loss": total_loss(session.config, values)}

    monkeypatch.setattr(evaluation, "held_out_losses", losses)
    changes: dict[str, Any] = {
        "do_eval": True,
        "eval_steps": 2,
        "save_steps": 2,
        "keep_best": 1,
        "report_to": [],
    }
    loop.train(make_config(**changes, max_steps=2))
    changes |= {"max_steps": 4, "metric_for_best_model": "loss", "load_best_model_at_end": True}
    output = loop.train(make_config(**changes))
    state = checkpoints.TrainerState.read(output)
    assert state is not None
    assert [(best["step"], best["value"]) for best in state.best] == [(4, 210.0)]
    assert "the final model is the best checkpoint's, of step 4: loss 210" in capsys.readouterr().out


# -- What ends a run -------------------------------------------------------------------------------


@pytest.mark.parametrize("term", ["mel", "kl", "discriminator"])
def test_a_loss_that_becomes_nan_stops_the_run_and_says_which(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, term: str
) -> None:
    """The last good state stays, and nothing that came after it is saved."""
    config = make_config(max_steps=6, save_steps=2, logging_steps=1)
    joint = Steps.joint

    def diverge(steps: Steps, seen: Any, step: int) -> dict[str, Tensor]:
        losses = joint(steps, seen, step)
        return losses | ({term: torch.tensor(float("nan"))} if step == 3 else {})

    monkeypatch.setattr(Steps, "joint", diverge)
    with pytest.raises(DivergenceError) as raised:
        loop.train(config)
    assert raised.value.problems == (f"{term} is nan",)
    assert "step 4" in str(raised.value)
    assert [folder.name for folder in checkpoints.checkpoints(config.output_dir)] == ["checkpoint-2"]
    assert not (config.output_dir / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("spoilt", "named"), [("decoder", "mel is nan"), ("text_encoder", "log_likelihood is NaN")]
)
def test_weights_that_become_nan_between_log_lines_stop_the_run_and_say_by_what(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, spoilt: str, named: str
) -> None:
    """The alignment search meets them first: a ValueError of its own, which ended the run with a traceback."""
    config = make_config(max_steps=6, save_steps=2, logging_steps=100, report_to=[])
    joint = Steps.joint

    def spoil(steps: Steps, seen: Any, step: int) -> dict[str, Tensor]:
        if step == 2:
            next(steps.generator.get_submodule(spoilt).parameters()).data.fill_(float("nan"))
        return joint(steps, seen, step)

    monkeypatch.setattr(Steps, "joint", spoil)
    with pytest.raises(DivergenceError) as raised:
        loop.train(config)
    assert any(named in problem for problem in raised.value.problems)
    assert "diverged at step 3" in str(raised.value)
    assert "diverged at step 3" in (config.output_dir / "report.html").read_text()
    (last,) = checkpoints.checkpoints(config.output_dir)
    assert last.name == "checkpoint-2"
    kept = checkpoints.read_state(last)
    assert all(
        value.isfinite().all() for value in [*kept["generator"].values(), *kept["discriminator"].values()]
    )


def test_a_diverged_model_is_not_evaluated(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(max_steps=4, logging_strategy="no", do_eval=True, eval_steps=2, report_to=[])
    nothing = {"mel": torch.tensor(float("nan")), "gradient_norm_generator": torch.tensor(1.0)}
    monkeypatch.setattr(Steps, "joint", lambda *_: nothing)
    evaluated = counted_evaluations(monkeypatch)
    with pytest.raises(DivergenceError, match="mel is nan"):
        loop.train(config)
    assert evaluated == [0]


@pytest.mark.parametrize("folder", ["/proc/self", "/proc/self/output"])
def test_an_output_that_cannot_be_written_is_said_before_anything_is_prepared(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """One that was there was first written at the first checkpoint."""
    monkeypatch.setattr(loop, "begin", lambda *_: pytest.fail("the data were prepared"))
    with pytest.raises(UserError, match=rf"{folder} cannot be written \(.*\): give another --output_dir"):
        loop.train(make_config(output_dir=folder, max_steps=1))


def test_a_loss_that_is_not_logged_is_looked_at_before_it_is_saved(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(max_steps=4, save_steps=2, logging_strategy="no")
    nothing = {"mel": torch.tensor(float("inf")), "gradient_norm_generator": torch.tensor(1.0)}
    monkeypatch.setattr(Steps, "joint", lambda *_: nothing)
    with pytest.raises(DivergenceError, match="mel is inf"):
        loop.train(config)
    assert checkpoints.checkpoints(config.output_dir) == []


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({}, "the same command"),
        ({"overwrite_output_dir": True}, "the same command, but without overwrite_output_dir,"),
    ],
)
def test_ctrl_c_says_where_the_run_will_go_on(
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    command: str,
) -> None:
    """And with what: the very command may remove all that there is to go on from."""
    config = make_config(max_steps=6, save_steps=2, **changes)
    joint = Steps.joint

    def interrupt(steps: Steps, seen: Any, step: int) -> dict[str, Tensor]:
        if step == 3:
            raise KeyboardInterrupt
        return joint(steps, seen, step)

    monkeypatch.setattr(Steps, "joint", interrupt)
    with pytest.raises(KeyboardInterrupt):
        loop.train(config)
    assert f"stopped at step 3; {command} goes on from checkpoint-2" in capsys.readouterr().out


def test_a_step_that_was_stopped_at_is_ranked_by_its_own_evaluation_alone(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not by the one before it, too, which would take two of the places."""
    changes: dict[str, Any] = {
        "max_steps": 2, "save_steps": 2, "do_eval": True, "eval_steps": 1, "keep_best": 2, "report_to": []
    }  # fmt: skip
    whole = make_config(**changes, output_dir=str(tmp_path / "whole"))
    loop.train(whole)
    config, joint = make_config(**changes), Steps.joint

    def stop(steps: Steps, seen: Any, step: int) -> dict[str, Tensor]:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return joint(steps, seen, step)

    with monkeypatch.context() as patch:
        patch.setattr(Steps, "joint", stop)
        with pytest.raises(SystemExit):
            loop.train(config)
    loop.train(config)
    ranked = [
        [(best["step"], best["value"], best["evaluated"]) for best in state.best]
        for state in (checkpoints.TrainerState.read(one.output_dir) for one in (whole, config))
        if state
    ]
    assert ranked[0] == ranked[1]
    assert [step for step, _, _ in ranked[0]] == [2]


def test_a_stop_leaves_its_evaluation_to_the_run_that_goes_on(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """There is no time for it before the save. Once it is made up for, all is as if the run had never been stopped:
    what is logged, what is best, the weights to the bit.
    """
    changes: dict[str, Any] = {
        "max_steps": 4,
        "save_steps": 2,
        "do_eval": True,
        "eval_steps": 2,
        "per_device_eval_batch_size": 1,
        "per_device_train_batch_size": 2,
        "load_best_model_at_end": True,
        "learning_rate": 1e-3,
        "report_to": [],
    }
    whole = make_config(**changes, output_dir=str(tmp_path / "whole"))
    loop.train(whole)
    config = make_config(**changes)
    batches: list[int] = []
    of_step, of_batch = Steps.joint, evaluation._batch_losses

    def stopped(where: str, at: int) -> list[int | None]:
        """Train until a stop, in a step or in the evaluation after it; the steps that are saved then."""

        def tell(here: str, step: int) -> None:
            if (here, step) == (where, at):
                os.kill(os.getpid(), signal.SIGTERM)

        def in_step(steps: Steps, seen: Any, step: int) -> dict[str, Tensor]:
            tell("step", step + 1)
            return of_step(steps, seen, step)

        def in_evaluation(session: Session, seen: Seen) -> Any:
            tell("evaluation", session.step)
            batches.append(session.step)
            return of_batch(session, seen)

        batches.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Steps, "joint", in_step)
            patch.setattr(evaluation, "_batch_losses", in_evaluation)
            with pytest.raises(SystemExit) as ended:
                loop.train(config)
        assert ended.value.code == 143
        assert batches.count(at) == (where == "evaluation")  # of two
        return [checkpoints.checkpoint_step(folder) for folder in checkpoints.checkpoints(config.output_dir)]

    assert stopped("evaluation", 0) == []
    assert stopped("evaluation", 2) == [2]
    assert stopped("evaluation", 2) == [2]  # which was to be made up for
    assert stopped("step", 4) == [2, 4]
    assert loop.train(config) == config.output_dir

    states = [checkpoints.TrainerState.read(one.output_dir) for one in (whole, config)]
    first, second = [
        (one.log_history, [(best["step"], best["value"], best["evaluated"]) for best in one.best])
        for one in states
        if one
    ]
    assert first == second
    for file in ("model.safetensors", "checkpoint-4/training_state.safetensors"):
        assert (whole.output_dir / file).read_bytes() == (config.output_dir / file).read_bytes(), file


@pytest.mark.parametrize("last", [4, 6])
def test_a_stop_does_not_wait_for_what_is_being_sent(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    """A slow store let a save wait until the grace period was over, with the step on no disk."""
    config = make_config(max_steps=last, save_steps=2, report_to=[])
    sending, go_on = threading.Event(), threading.Event()
    send, save = Run.save_checkpoint, Publisher.save

    def slowly(run: Run, step: int, folder: Path) -> Checkpoint:
        sending.set()
        assert go_on.wait(60)
        return send(run, step, folder)

    def saved(publisher: Publisher, steps: Steps, *, wait: bool = False) -> None:
        if publisher._session.step == 4 and not wait:  # the second save, which finds the first being sent
            assert sending.wait(60)
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        elif wait:
            threading.Timer(0.2, go_on.set).start()
        save(publisher, steps, wait=wait)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_checkpoint", slowly)
        patch.setattr(Publisher, "save", saved)
        with pytest.raises(SystemExit) as ended:
            loop.train(config)
    assert ended.value.code == 143
    complete = checkpoints.checkpoints(config.output_dir)
    assert [checkpoints.checkpoint_step(folder) for folder in complete] == [2, 4]
    assert loop.train(config) == config.output_dir


@pytest.mark.parametrize("where", ["report", "artefacts", "tensorboard"])
def test_a_disk_that_is_full_at_an_evaluation_is_said(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    config = make_config(
        max_steps=4, save_steps=2, do_eval=True, eval_steps=1, report_to=["tensorboard"], logging_steps=1
    )
    place, name = {
        "report": (report, "write"),
        "artefacts": (Artefacts, "_add"),
        "tensorboard": (TensorBoard, "scalars"),
    }[where]
    real = getattr(place, name)

    def full(*arguments: Any) -> Any:
        if checkpoints.checkpoints(config.output_dir):
            raise OSError(errno.ENOSPC, "No space left on device", str(config.output_dir / "runs/some"))
        return real(*arguments)

    told = r"The disk of .* is full: what the run logs and reports needs more room and \d+ are free.*goes on from"
    with monkeypatch.context() as patch:
        patch.setattr(place, name, full)
        with pytest.raises(UserError, match=told):
            loop.train(config)
    assert loop.train(config) == config.output_dir


def test_a_disk_that_is_full_at_an_evaluation_alone_is_said(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(do_train=False, do_eval=True, eval_split_name="train", report_to=[])

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(config.output_dir / "evaluation/some"))

    monkeypatch.setattr(Artefacts, "_add", full)
    with pytest.raises(
        UserError, match=r"is full: the evaluation needs more room .*the same command tries again"
    ):
        loop.train(config)


def test_an_evaluation_alone_touches_nothing_of_a_run_beside_it(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which may be writing just then. A run that trains is alone there, and clears away what a killed one has left."""
    monkeypatch.setattr(evaluation, "run", lambda *_: {"mel": 1.0})
    config = make_config(do_train=False, do_eval=True, max_duration_in_seconds=1.78, report_to=[])
    partial, dropped = config.output_dir / "checkpoint-3.partial", config.output_dir / "dropped.csv"
    partial.mkdir(parents=True)
    dropped.write_text("the run's", encoding="utf-8")
    loop.train(config)
    assert partial.is_dir()
    assert dropped.read_text(encoding="utf-8") == "the run's"
    assert "listed in" not in capsys.readouterr().out
    loop.train(make_config(max_steps=1, report_to=[]))
    assert not partial.exists()
    assert not dropped.exists()


@pytest.mark.parametrize(("device", "steps"), [("cpu", [*range(1, 21)]), ("cuda", [10, 20])])
def test_how_often_several_processes_agree_whether_to_stop(device: str, steps: list[int]) -> None:
    """On GPUs each agreement waits for the device; on processors a step waits for itself."""
    accelerator = SimpleNamespace(num_processes=2, device=torch.device(device))
    asked = []
    for step in range(1, 21):
        session = SimpleNamespace(accelerator=accelerator, step=step)
        course: Any = SimpleNamespace(session=session, stop=SimpleNamespace(agreed=lambda _: True))
        if loop.Course._told_to_stop(course):
            asked.append(step)
    assert asked == steps


@pytest.mark.parametrize("changes", [{}, {"ddp_timeout": 600}, {"ddp_timeout": 7200}])
def test_processes_wait_for_each_other_as_long_as_they_are_told(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int]
) -> None:
    """The main one may decode for longer than PyTorch would wait, which is 600 s on GPUs."""
    heard: dict[str, Any] = {}

    def begin(**options: Any) -> Accelerator:
        heard.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "Accelerator", begin)
    with pytest.raises(KeyboardInterrupt):
        loop.train(make_config(**changes))
    (handler,) = heard["kwargs_handlers"]
    passed_on = handler.to_kwargs()["timeout"].total_seconds()
    assert passed_on == pytest.approx(changes.get("ddp_timeout", 1800))


def test_a_store_that_cannot_be_written_is_said_before_the_data_are_prepared(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(loop, "begin", lambda *_: pytest.fail("the data were prepared first"))
    (tmp_path / "store").mkdir()
    (tmp_path / "store/models").touch()  # in the way of any model
    with pytest.raises(StoreError, match=r"could not create .*/models/.*/claim\.json"):
        loop.train(make_config(max_steps=1))


def test_the_smallest_share_of_an_epoch_is_a_step(make_config: MakeConfig) -> None:
    assert begun(make_config(num_train_epochs=1e-7)).plan.joint == 1


def test_only_so_many_recordings_are_trained_on_and_evaluated(make_config: MakeConfig) -> None:
    limits = {"max_train_samples": 3, "max_eval_samples": 2, "per_device_eval_batch_size": 1}
    session = begun(make_config(**limits, do_eval=True, eval_split_name="train"))
    assert (len(session.train), len(session.evaluation)) == (3, 2)


# -- What learns -----------------------------------------------------------------------------------


def test_optimisers_are_set_as_the_configuration_says(make_config: MakeConfig) -> None:
    asked = {"adam_beta1": 0.7, "adam_beta2": 0.98, "adam_epsilon": 1e-5, "weight_decay": 0.02}
    for optimizer in build_steps(begun(make_config(**asked))).optimizers:
        (group,) = optimizer.param_groups
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.7, 0.98), 1e-5, 0.02)


def test_frozen_modules_stand_still_and_the_others_do_not(make_config: MakeConfig) -> None:
    frozen = ["decoder", "text_encoder"]
    session = begun(make_config(freeze=frozen, learning_rate=1e-3))
    steps = build_steps(session)
    assert not session.generator.decoder.training
    before = weights(session.generator)
    steps.joint([part(session)], 0)
    moved = {
        name.partition(".")[0]
        for name, value in weights(session.generator).items()
        if not torch.equal(before[name], value)
    }
    assert moved == {"flow", "posterior_encoder", "duration_predictor"}


def test_each_network_has_its_own_rate_and_its_own_clipping(make_config: MakeConfig) -> None:
    config = make_config(
        optim="sgd",
        learning_rate=1e-3,
        discriminator_learning_rate=0.5,
        max_grad_norm=0.1,
        discriminator_max_grad_norm=0.02,
        weight_decay=0,
        lr_decay=1.0,
    )
    session = begun(config)
    steps = build_steps(session)
    assert set_learning_rates(session, steps) == {
        "train/learning_rate": 1e-3,
        "train/discriminator_learning_rate": 0.5,
    }
    before = weights(session.generator), weights(session.discriminator)
    losses = steps.joint([part(session)], 0)
    for network, old, name, length in (
        (session.generator, before[0], "generator", 1e-3 * 0.1),
        (session.discriminator, before[1], "discriminator", 0.5 * 0.02),
    ):
        assert float(losses[f"gradient_norm_{name}"]) > 0.1  # so both are clipped
        squares = [(value - old[key]).square().sum() for key, value in weights(network).items()]
        assert float(torch.stack(squares).sum().sqrt()) == pytest.approx(length, rel=1e-2)


def test_the_weight_of_the_discriminators_loss_weighs_where_nothing_undoes_it(
    make_config: MakeConfig,
) -> None:
    """finetune-hf-vits, defect 3: clipping and Adam undo it there; its learning rate is what counts under Adam."""

    def moved(**changes: Any) -> Tensor:
        settings = {"weight_decay": 0, "learning_rate": 1e-4, **changes}
        session = begun(make_config(**settings))
        steps = build_steps(session)
        set_learning_rates(session, steps)
        before = weights(session.discriminator)
        steps.joint([part(session)], 0)
        after = weights(session.discriminator)
        return torch.cat([(after[name] - before[name]).flatten() for name in before])

    plain = {"optim": "sgd", "max_grad_norm": 0, "learning_rate": 0.1}
    torch.testing.assert_close(
        moved(**plain, weight_disc=6), 2 * moved(**plain, weight_disc=3), rtol=1e-3, atol=2e-7
    )
    same = moved(weight_disc=3)
    faster = moved(weight_disc=3, discriminator_learning_rate=2e-4)
    torch.testing.assert_close(faster, 2 * same, rtol=1e-3, atol=1e-7)


# -- Averaged weights ------------------------------------------------------------------------------


def test_averaged_weights_follow_their_formula(spanish_model: Path) -> None:
    network = load_model(spanish_model)
    ema = Ema(network, 0.9)
    name = "decoder.conv_pre.weight"
    expected = network.state_dict()[name].clone()
    for step in range(200):
        with torch.no_grad():
            network.decoder.conv_pre.weight.add_(1.0)
        ema.update(network, step)
        keep = min(0.9, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * network.state_dict()[name]
    torch.testing.assert_close(ema.shadow[name], expected)
    last = network.state_dict()[name].clone()
    with ema.applied(network):
        assert torch.equal(network.state_dict()[name], ema.shadow[name])
    assert torch.equal(network.state_dict()[name], last)


def test_the_averaged_weights_are_published_and_the_last_ones_kept_to_go_on(make_config: MakeConfig) -> None:
    config = make_config(max_steps=3, ema_decay=0.99, learning_rate=1e-2)
    published = load_model(loop.train(config))
    state = checkpoints.read_state(config.output_dir / "checkpoint-3")
    name = "text_encoder.embed_tokens.weight"
    assert torch.equal(published.state_dict()[name], state["ema"][name])
    assert not torch.equal(published.state_dict()[name], state["generator"][name])


# -- Precision -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "has_bf16", "gets"),
    [
        ("fp16", True, "bf16"),
        ("fp16", False, "no"),
        ("bf16", True, "bf16"),
        ("bf16", False, "no"),
        (None, True, "no"),
    ],
)
def test_half_precision_is_what_the_processor_has(
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wanted: str | None,
    has_bf16: bool,
    gets: str,
) -> None:
    """Without a GPU; and whatever is used instead is said."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("services.training.session.has_bf16", lambda: has_bf16)
    assert precision(make_config(**({wanted: True} if wanted else {}))) == gets
    assert bool(capsys.readouterr().out) == (gets != (wanted or "no"))


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_losses_are_in_float32_under_any_precision(make_config: MakeConfig, mixed_precision: str) -> None:
    """finetune-hf-vits, defect 4: it computes the alignment's likelihood inside autocast."""
    config = make_config()
    config.output_dir.mkdir()
    session = begin(config, Accelerator(cpu=True, mixed_precision=mixed_precision))
    steps = build_steps(session)
    kinds: set[torch.dtype] = set()

    def keep(scores: Tensor, tokens: Tensor, frames: Tensor) -> Tensor:
        kinds.add(scores.dtype)
        return align(scores, tokens, frames)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("services.training.steps.align", keep)
        losses = steps.joint([part(session)], 0)
    assert kinds == {torch.float32}
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert all(bool(torch.isfinite(loss)) for loss in losses.values())


# -- Going on with other data ----------------------------------------------------------------------


def with_speakers(folder: Path, names: list[str], root: Path) -> Path:
    """The recordings, spoken by these in turn."""
    shutil.copytree(folder, root, dirs_exist_ok=True)
    header, *rows = (root / "metadata.csv").read_text().splitlines()
    lines = [",".join([*row.split(",")[:3], names[at % len(names)]]) for at, row in enumerate(rows)]
    (root / "metadata.csv").write_text("\n".join([header, *lines]) + "\n")
    return root


@pytest.mark.parametrize("later", [["luis", "zoe"], ["ana", "luis", "mar"]], ids=["renamed", "one more"])
def test_a_run_does_not_go_on_with_other_speakers(
    make_config: MakeConfig, recordings_folder: Path, tmp_path: Path, later: list[str]
) -> None:
    """Nobody is given another's embedding without a word, and nothing crashes on its shape."""
    data = with_speakers(recordings_folder, ["ana", "luis"], tmp_path / "data")
    settings: dict[str, Any] = {"dataset_name": str(data), "speaker_id_column_name": "speaker"}
    loop.train(make_config(**settings, max_steps=1))
    with_speakers(recordings_folder, later, data)
    with pytest.raises(ConfigError, match=r"speakers: were ana \(0\), luis \(1\); are "):
        loop.train(make_config(**settings, max_steps=2))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, {"eva": 2, "ana": 0, "1": 1}),
        ({"override_speaker_embeddings": True}, None),
        ({"train_from_scratch": True}, None),
    ],
)
def test_a_model_names_no_speaker_whose_embedding_is_gone(
    make_config: MakeConfig, tmp_path: Path, changes: dict[str, Any], named: dict[str, int] | None
) -> None:
    """Where the data name none, either; and the run goes on, as its speakers are those that they were."""
    base = write_small_model(tmp_path / "several", num_speakers=3)
    (base / "speakers.json").write_text('{"eva": 2, "ana": 0}', encoding="utf-8")
    settings: dict[str, Any] = {"model_name_or_path": str(base), "report_to": [], **changes}
    loop.train(make_config(**settings, max_steps=1))
    folder = loop.train(make_config(**settings, max_steps=2))
    for path in (folder / "speakers.json", folder / "checkpoint-2/speakers.json"):
        assert (json.loads(path.read_text(encoding="utf-8")) if path.exists() else None) == named


def in_store(config: TrainingConfig, model: Path) -> Version:
    """A model as the newest version of ``base``, under its alias."""
    registry = Registry(Store.open(str(config.store)))
    version = registry.publish("models", "base", model, licence="MIT", sources=[], consent=None, lineage={})
    registry.move_alias("models", "base", "latest", version.id)
    return version


def with_symbols_turned_round(model: Path, folder: Path) -> Path:
    """A model whose every symbol means something else, under another licence."""
    shutil.copytree(model, folder)
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    turned = dict(zip(vocabulary, reversed(vocabulary.values()), strict=True))
    (folder / "vocab.json").write_text(json.dumps(turned), encoding="utf-8")
    Provenance(licence="GPL-3.0-only").write(folder)
    return folder


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if file.is_file()}


@pytest.mark.parametrize("gone", [False, True], ids=["base there", "base and disk gone"])
def test_a_run_goes_on_from_the_version_that_it_began_from(
    make_config: MakeConfig, spanish_model: Path, tmp_path: Path, gone: bool
) -> None:
    """Wherever its alias points to by now; and without that version, if nobody has it any more."""
    settings: dict[str, Any] = {"model_name": "voz", "save_steps": 1, "save_total_limit": 1}
    config = make_config(**settings, model_name_or_path="base", max_steps=1)
    model = shutil.copytree(spanish_model, tmp_path / "model")
    (model / "preprocessor_config.json").write_text('{"sampling_rate": 16000}', encoding="utf-8")
    began_from = in_store(config, model)
    loop.train(config)
    in_store(config, with_symbols_turned_round(spanish_model, tmp_path / "other"))
    registry = Registry(Store.open(str(config.store)))
    if gone:
        registry.delete(began_from)
        shutil.rmtree(config.output_dir)
    ours = loop.train(make_config(**settings, model_name_or_path="base", max_steps=3))
    manifest = registry.resolve("models", "voz").manifest
    assert manifest.lineage["base"] == began_from.reference
    assert "GPL" not in manifest.licence
    # As a run that never stopped, with a base that never changed.
    settings |= {"model_name_or_path": str(model), "output_dir": str(tmp_path / "whole")}
    theirs = loop.train(make_config(**settings, max_steps=3))
    expected = load_model(theirs).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in load_model(ours).state_dict().items())
    assert (ours / "vocab.json").read_bytes() == (theirs / "vocab.json").read_bytes()
    assert files(ours) == files(theirs)


def test_a_run_whose_base_was_withdrawn_does_not_go_on_without_it(
    make_config: MakeConfig, spanish_model: Path
) -> None:
    config = make_config(max_steps=2)
    base, registry = in_store(config, spanish_model), Registry(Store.open(str(config.store)))
    withdrawals = Withdrawals(registry)
    withdrawals.carry_out(withdrawals.plan("models", ["base"]), reason="letter")
    with pytest.raises(ConsentError, match=base.reference):
        begin(config, Accelerator(cpu=True), Origin(base.reference, spanish_model))


def test_a_resumed_run_obeys_the_optimisers_settings_of_now(make_config: MakeConfig) -> None:
    loop.train(make_config(max_steps=1))
    folder = loop.train(make_config(max_steps=2, weight_decay=0.5, adam_beta1=0.5))
    (generator, _) = json.loads((folder / "checkpoint-2" / "optimizers.json").read_text())
    assert generator["param_groups"][0]["weight_decay"] == 0.5
    assert generator["param_groups"][0]["betas"] == [0.5, 0.99]


@pytest.mark.parametrize(("key", "value"), [("freeze", ["text_encoder"]), ("optim", "sgd")])
def test_a_run_does_not_go_on_with_another_optimiser(make_config: MakeConfig, key: str, value: Any) -> None:
    loop.train(make_config(max_steps=1))
    with pytest.raises(ConfigError, match=f"{key}: was"):
        loop.train(make_config(max_steps=2, **{key: value}))


def test_a_finished_run_says_which_changes_change_nothing(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    loop.train(make_config(max_steps=1))
    loop.train(make_config(max_steps=1, learning_rate=0.5))
    assert "changes nothing: learning_rate: was 2e-05, is 0.5" in capsys.readouterr().out


def test_a_first_stage_with_nothing_to_teach_is_refused(
    make_config: MakeConfig, spanish_model: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(spanish_model, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"untrained_modules": ["posterior_encoder"]}))
    with pytest.raises(ConfigError, match="leave it out of freeze"):
        loop.train(make_config(model_name_or_path=str(base), freeze=["posterior_encoder"]))


@pytest.mark.parametrize(("accumulation", "steps"), [(1, 12), (3, 4), (8, 2)])
def test_epochs_are_passes_over_the_recordings_however_many_batches_a_step_takes(
    make_config: MakeConfig, accumulation: int, steps: int
) -> None:
    config = make_config(
        num_train_epochs=3, per_device_train_batch_size=2, gradient_accumulation_steps=accumulation
    )
    assert begun(config).plan.joint == steps  # eight recordings: four batches an epoch
