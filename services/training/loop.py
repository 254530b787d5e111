"""The training run, from a configuration to a published model. This file sequences; ``steps`` computes."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NoReturn, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils.data import DataLoader

from services.training import checkpoints as ckpt
from services.training import evaluation, report
from services.training.config import (
    MODULES,
    RECONSTRUCTION_STAGE,
    TEXT_STAGE,
    Stage,
    TrainingConfig,
)
from services.training.dataset import Batch
from services.training.diagnosis import (
    Diagnosis,
    Size,
    evaluation_remedies,
    is_out_of_memory,
    largest,
    remedies,
)
from services.training.early_stopping import out_of_patience
from services.training.latents import Latents
from services.training.optimizers import AdamW
from services.training.publishing import Publisher
from services.training.resuming import already_finished, check_store, find_origin, resume
from services.training.session import Session, begin, check_strategy, command_to_go_on, precision
from services.training.steps import Seen, Steps
from services.training.stopping import TERMINATED, Stop, catch_sigterm
from services.training.together import ending_together
from services.training.tracking import Tracker
from shared.errors import ConfigError, DivergenceError
from shared.folders import check_writable, writing
from shared.wording import counted

#: On GPUs, after how many steps several processes agree whether to stop: for that message each waits for its device.
_AGREE_EVERY = 10
_OUTPUT_REMEDY = "give another --output_dir"
#: What a run is doing in a stage.
_DOING: dict[Stage, str] = {
    "new_modules": "warming up",
    "reconstruction": "learning to repeat",
    "text": "learning to read",
    "joint": "training",
}
_PRECISIONS = {
    "no": "float32",
    "bf16": "bfloat16 where it does no harm",
    "fp16": "float16 where it does no harm",
}


def train(config: TrainingConfig) -> Path:
    """Run a configuration.

    Returns:
        The output folder, which holds the final model.

    Raises:
        UserError: The configuration, the data or the base cannot be used; the message says what to do.
        StoreError: The store failed.
        SystemExit: SIGTERM came, and what was reached is saved; or another process has failed.
    """
    if config.full_determinism:
        _be_deterministic()
    with writing(config.output_dir, _OUTPUT_REMEDY):
        config.output_dir.mkdir(parents=True, exist_ok=True)
    # Without being told, Accelerate starts no process group on machines that have only processors.
    cpu = config.use_cpu or not torch.accelerator.is_available()
    # A little more: Accelerate does not pass on what is its own default, which is not PyTorch's everywhere.
    patience = InitProcessGroupKwargs(timeout=timedelta(seconds=config.ddp_timeout, microseconds=1))
    accelerator = Accelerator(mixed_precision=precision(config), cpu=cpu, kwargs_handlers=[patience])
    with ending_together(accelerator):
        _train(config, accelerator)
    return config.output_dir


def _train(config: TrainingConfig, accelerator: Accelerator) -> None:
    """Run a configuration on this process."""
    origin = None
    trains = config.do_train and not config.preprocessing_only
    if trains and accelerator.is_main_process:  # or else it may be what a run beside this one is writing
        ckpt.remove_partial(config.output_dir)
    if trains and already_finished(config, accelerator):
        return
    check_writable(config.output_dir, _OUTPUT_REMEDY)
    if trains:
        check_store(config, accelerator)
        origin = find_origin(config, accelerator)
    session = begin(config, accelerator, origin)
    if config.preprocessing_only:
        if accelerator.is_main_process:
            print("preprocessing_only: the cache is filled; stopping here.")
        return
    if not config.do_train:
        with ckpt.room_for("the evaluation", config.output_dir), Tracker.of(session) as tracker:
            try:
                figures = evaluation.run(session, tracker)
            except (RuntimeError, MemoryError) as error:
                if is_out_of_memory(error):
                    raise _no_room_to_evaluate(config, "") from error
                raise
        if accelerator.is_main_process:
            print(json.dumps(figures))
        return
    check_strategy(session)
    resume(session)
    with (
        ckpt.room_for("what the run logs and reports", config.output_dir, command=command_to_go_on(config)),
        catch_sigterm() as stop,
        Tracker.of(session) as tracker,
        Publisher(session, tracker, stop) as publisher,
    ):
        if session.step == 0:
            tracker.say(_announcement(session))
        try:
            Course(session, tracker, publisher, stop).run()
        except KeyboardInterrupt:
            publisher.settle()
            complete = ckpt.checkpoints(config.output_dir)
            start = complete[-1].name if complete else "the beginning"
            tracker.say(f"stopped at step {session.step}; {command_to_go_on(config)} goes on from {start}")
            raise
        publisher.finish()
        if accelerator.is_main_process:
            report.write(session)


def _announcement(session: Session) -> str:
    """What a run is about to do."""
    accelerator, plan = session.accelerator, session.plan
    count = accelerator.num_processes
    processes = "1 process" if count == 1 else f"{count} processes"
    told = (
        f"{processes}, {_PRECISIONS[accelerator.mixed_precision]}; {counted(plan.joint, 'step')}, "
        f"{plan.per_epoch} an epoch"
    )
    if plan.new_modules:
        told += f", after {plan.new_modules} that train only what the base lacks"
    if plan.reconstruction:
        told += f", after {plan.reconstruction} that train posterior encoder and decoder alone"
    if plan.text:
        told += f", after {plan.text} that train text and durations alone"
    return told


def _be_deterministic() -> None:
    """Let torch use only algorithms that give the same to the bit every time."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


class Saver(Protocol):
    """What a run saves itself with: a ``Publisher``, or nothing at all where a run is only a trial."""

    def check(self) -> None:
        """Raise what went wrong in the background."""

    def save(self, steps: Steps, *, wait: bool = False) -> None:
        """Save the state after the step that was just done."""

    def rank(self) -> None:
        """Rank the checkpoint that the run goes on from by an evaluation that was still owed there."""

    def settle(self) -> None:
        """Wait until what was saved is on the disk."""


class Unsaved:
    """Saves nothing: for runs that are only looked at."""

    def check(self) -> None:
        """Nothing can have gone wrong."""

    def save(self, steps: Steps, *, wait: bool = False) -> None:
        """Nothing is kept."""

    def rank(self) -> None:
        """Nothing is there."""

    def settle(self) -> None:
        """Nothing is under way."""


class Course:
    """A run on its way: its stages, and what is due between its steps.

    Args:
        session: The run.
        tracker: Told of it.
        publisher: Saves it.
        stop: Whether it has been told to stop.
        heed: Told each evaluation's step and figures; what it raises ends the run.
    """

    def __init__(
        self,
        session: Session,
        tracker: Tracker,
        publisher: Saver,
        stop: Stop,
        heed: Callable[[int, Mapping[str, float]], None] | None = None,
    ) -> None:
        self.session = session
        self.tracker = tracker
        self.publisher = publisher
        self.stop = stop
        self.heed = heed
        config, per_epoch = session.config, session.plan.per_epoch
        self.evaluations = evaluation.Schedule(config, per_epoch)
        self.save_interval = config.save_interval(per_epoch)
        self.logging_interval = config.logging_interval(per_epoch)
        self.batches = batches(session)
        self.diagnosis = Diagnosis(session, tracker)
        self._tried: list[Size] = []
        self._fitted: Size | None = None
        self._evaluating = False

    def run(self) -> None:
        """All stages, from where the run stands.

        Raises:
            DivergenceError: A loss is not a number.
            ConfigError: There is not enough memory.
        """
        try:
            self._run()
        except DivergenceError as error:
            self._failed("divergence", error)
            raise
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.publisher.settle()  # what the run goes on from may only be on its way there
            wrong = self._out_of_memory()
            self._failed("out_of_memory", wrong)
            raise wrong from error

    def _failed(self, name: str, error: Exception) -> None:
        """Have a failure in the report, which is all that is still written."""
        self.diagnosis.failed(name, error)
        if self.session.accelerator.is_main_process:
            report.write(self.session)

    def _out_of_memory(self) -> ConfigError:
        session = self.session
        complete = ckpt.checkpoints(session.config.output_dir)
        command = command_to_go_on(session.config).capitalize()
        start = f" {command} goes on from {complete[-1].name}." if complete else ""
        if self._evaluating:
            return _no_room_to_evaluate(session.config, f" at step {session.step}.{start}")
        tried = largest(self._tried) if self._tried else Size(session.config.per_device_train_batch_size, 1)
        frame_seconds = session.settings.hop_length / session.settings.sampling_rate
        return ConfigError(
            f"There was no room in memory at step {session.step}.{start} In the order in which to try them:",
            remedies(session.config, tried, self._fitted, frame_seconds=frame_seconds),
        )

    def _run(self) -> None:
        session, plan = self.session, self.session.plan
        if session.step == 0 or session.state.evaluation_owed:
            self._evaluate_before_all()
        for stage, span in plan.stages().items():
            if stage != "joint" and session.step < span.stop:
                self._stage(stage)
        # A run that was killed between its early end and its final model has ended all the same.
        enough = self._enough() if plan.warm_up < session.step < plan.total else None
        if enough:
            self.tracker.say(f"step {session.step}: {enough}")
        elif session.step < plan.total:
            if session.step == plan.warm_up and session.config.curriculum:
                self._begin_curriculum()
            self._stage("joint")

    def _evaluate_before_all(self) -> None:
        """Evaluate what the run begins with, or make up for what a stop left no time for."""
        if not self._evaluate():
            command = command_to_go_on(self.session.config)
            self._stopped(f"step {self.session.step} is still to be evaluated, which {command} does first")
        if self.session.state.evaluation_owed:
            self.session.state.evaluation_owed = False
            self.publisher.rank()

    def _stopped(self, where: str) -> NoReturn:
        """End the process, as it was told to; not before all are done, as torchrun ends those that are left."""
        self.session.accelerator.wait_for_everyone()
        self.tracker.say(f"told to stop: {where}")
        raise SystemExit(TERMINATED)

    def _begin_curriculum(self) -> None:
        """Leave the epoch that other stages have begun: a curriculum is joint training's, from its first step on."""
        state = self.session.state
        state.curriculum_epoch = state.sampler_epoch + (state.sampler_batch > 0)
        state.sampler_epoch, state.sampler_batch, state.sampler_left = state.curriculum_epoch, 0, None
        self.batches = batches(self.session)

    def _stage(self, stage: Stage) -> None:
        """One stage, or what is left of it."""
        session, config, tracker = self.session, self.session.config, self.tracker
        joint, name, end = stage == "joint", _DOING[stage], session.plan.span(stage).stop
        steps = build_steps(session, stage)
        frozen = None
        losses: dict[str, Tensor] = {}
        tracker.begin_stage(name)
        self.diagnosis.begin_stage(stage)
        begun, first = time.perf_counter(), session.step
        while session.step < end:
            self.publisher.check()
            tick = time.perf_counter()
            rates = set_learning_rates(session, steps)
            if config.freeze_schedule and joint:
                frozen = freeze(session, frozen)
            drawn = [self._next_batch() for _ in range(config.gradient_accumulation_steps)]
            self._tried = [Size(len(batch.ids), int(batch.frame_lengths.max())) for batch in drawn]
            seen = [Seen.of(batch, session.settings, session.accelerator.device) for batch in drawn]
            losses = self._take(steps, seen, losses)
            self._fitted = largest([*self._tried, *filter(None, [self._fitted])])
            if session.ema:
                session.ema.update(session.generator, session.step)
            session.state.global_step += 1
            batches = session.step * config.gradient_accumulation_steps
            session.state.epoch = batches / session.sampler.batches_per_epoch
            tracker.step_done(session.step, end)

            step, last = session.step, session.step == end
            log = self.logging_interval and (step % self.logging_interval == 0 or step == 1 or last)
            evaluate = self.evaluations.due(step) or (last and self.evaluations.interval is not None)
            save = last or (self.save_interval and step % self.save_interval == 0)
            stop = self._told_to_stop()
            if log or evaluate or save or stop:  # a diverged model is worth neither of these
                values = read_losses(session, losses)
            self.diagnosis.stepped(time.perf_counter() - tick)
            if log:
                self._log(name, values, rates, steps=step - first, seconds=time.perf_counter() - begun)
            if evaluate:
                # It may take longer than a stop may: then it is left to the run that goes on from here.
                stop = session.state.evaluation_owed = stop or not self._evaluate()
                enough = self._enough() if joint and not (last or stop) else None
                if enough:
                    tracker.say(f"step {step}: {enough}")
                    self._save(steps, stop=False)
                    return
            if save or stop:
                self._save(steps, stop=stop)
            if log or evaluate or save:
                begun, first = time.perf_counter(), step

    def _save(self, steps: Steps, *, stop: bool) -> None:
        """Save the step that was just done.

        Args:
            steps: Whose optimisers belong to the state.
            stop: Whether the run has been told to stop. While it waits for an earlier save to be sent, it may still be.

        Raises:
            SystemExit: It has been told to stop, and the step is saved.
        """
        if not stop:
            self.publisher.save(steps)
            stop = self.stop.agreed(self.session.accelerator)
        if stop:
            self.publisher.save(steps, wait=True)
            command = command_to_go_on(self.session.config)
            self._stopped(f"step {self.session.step} is saved, and {command} goes on from there")

    def _take(self, steps: Steps, seen: Sequence[Seen], before: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take a step.

        Args:
            steps: The stage's.
            seen: The step's micro-batches.
            before: The losses of the step before it, if the stage has had one.

        Raises:
            DivergenceError: It cannot be taken. Where the step before has spoilt the weights, it names that one's
                losses.
        """
        try:
            return steps.take(seen, self.session.step)
        except DivergenceError as error:
            # This process's share of them: the others may be elsewhere, and none waits for another here.
            broken = _broken(self.session, {name: float(loss) for name, loss in before.items()})
            if broken:
                raise _diverged(self.session.step, broken) from error
            raise _diverged(self.session.step + 1, error.problems) from error

    @record_function("vits:data")
    def _next_batch(self) -> Batch:
        begun = time.perf_counter()
        batch = next(self.batches)
        self.diagnosis.waited(time.perf_counter() - begun)
        return batch

    @record_function("vits:logging")
    def _log(
        self,
        stage: str,
        values: Mapping[str, float],
        rates: Mapping[str, float],
        *,
        steps: int,
        seconds: float,
    ) -> None:
        """Tell of the step that was just done, the last of ``steps`` that took so many seconds."""
        session, step, rate = self.session, self.session.step, rates["train/learning_rate"]
        self.tracker.losses(step, values, seconds_per_step=seconds / steps)
        self.tracker.scalars(step, {**rates, "train/epoch": session.state.epoch})
        session.state.log_history.append({"step": step, "stage": stage, "learning_rate": rate, **values})
        self.diagnosis.logged(values)

    def _evaluate(self) -> bool:
        """Evaluate, where that is wanted; whether it came to its end before the run was told to stop."""
        if self.evaluations.interval is None:
            return True
        self._evaluating = True
        values: dict[str, float] | None = None
        with contextlib.suppress(evaluation.Abandoned):
            values = evaluation.run(self.session, self.tracker, self.evaluations, self.stop)
        self._evaluating = False
        if values is None:
            return False
        self.diagnosis.evaluated(values)
        if self.heed:
            self.heed(self.session.step, values)
        return True

    def _enough(self) -> str | None:
        """Why to end here; the same on every process, as evaluations are."""
        session, config = self.session, self.session.config
        first = session.comparable_from(config.metric_for_best_model)
        return out_of_patience(config, session.state.log_history, first)

    def _told_to_stop(self) -> bool:
        """Whether SIGTERM has come, to any of the processes."""
        accelerator = self.session.accelerator
        waits = accelerator.num_processes > 1 and accelerator.device.type != "cpu"
        if waits and self.session.step % _AGREE_EVERY:
            return False
        return self.stop.agreed(accelerator)


# -- Its parts -------------------------------------------------------------------------------------


def _no_room_to_evaluate(config: TrainingConfig, where: str) -> ConfigError:
    """What to say of an evaluation that ran out of memory."""
    return ConfigError(
        f"There was no room in memory for the evaluation{where or '.'} In the order in which to try them:",
        evaluation_remedies(config),
    )


def read_losses(session: Session, losses: Mapping[str, Tensor]) -> dict[str, float]:
    """A step's losses as numbers, over all processes.

    It waits for the device. But for this, a step waits only where the processor searches for alignments, and in a text
    stage where it is given a recording's latents to keep.

    Raises:
        DivergenceError: One of them is not a number, so going on would spoil the model.
    """
    names = [name for name in losses if not name.startswith("gradient_norm")]
    shares = torch.stack([losses[name].float() for name in names])
    norms = {name: losses[name].float() for name in losses if name not in names}
    totals = torch.cat([session.accelerator.reduce(shares, "sum"), torch.stack([*norms.values()])])
    values = dict(zip([*names, *norms], totals.tolist(), strict=True))
    broken = _broken(session, values)
    if broken:
        raise _diverged(session.step, broken)
    return values


def _broken(session: Session, values: Mapping[str, float]) -> list[str]:
    """Which of a step's losses are not numbers."""
    skips = session.accelerator.scaler is not None  # steps whose norm is not finite, as float16 needs it
    return [
        f"{name} is {value}"
        for name, value in values.items()
        if not math.isfinite(value) and not (skips and name.startswith("gradient_norm"))
    ]


def _diverged(step: int, problems: Iterable[str]) -> DivergenceError:
    return DivergenceError(
        f"Training has diverged at step {step}; the last checkpoint is untouched. Try a lower "
        "learning_rate, bf16 or float32 instead of fp16, or look for a broken recording with 'vits data inspect'.",
        problems,
    )


def build_steps(session: Session, stage: Stage = "joint") -> Steps:
    """Choose what learns in a stage, and make optimisers for it."""
    config, generator = session.config, session.generator
    learns: dict[Stage, Iterable[str]] = {
        "new_modules": session.base.untrained,
        "reconstruction": RECONSTRUCTION_STAGE,
        "text": TEXT_STAGE,
        "joint": MODULES,
    }
    joint = stage == "joint"
    generator.requires_grad_(joint).train(joint)
    for name in learns[stage]:
        generator.get_submodule(name).requires_grad_(True).train()
    for name in config.freeze:
        generator.get_submodule(name).requires_grad_(False).train(False)
    optimizers = [_optimizer(config, generator)]
    if joint:
        session.discriminator.requires_grad_(True).train()
        optimizers.append(_optimizer(config, session.discriminator))
    if session.base.resumed_optimizers is not None:
        for optimizer, state in zip(optimizers, session.base.resumed_optimizers, strict=True):
            settings = [dict(group) for group in optimizer.param_groups]
            optimizer.load_state_dict(state)
            for group, wanted in zip(
                optimizer.param_groups, settings, strict=True
            ):  # the configuration's, not its
                group.update({key: value for key, value in wanted.items() if key != "params"})
        session.base.resumed_optimizers = None
    networks = (session.discriminator, optimizers[1]) if joint else ()
    return Steps(
        session.accelerator,
        config,
        session.settings,
        generator,
        optimizers[0],
        *networks,
        stage=stage,
        first_step=session.plan.span(stage).start,
        latents=Latents(generator, session.settings, keep=not config.augmentation)
        if stage == "text"
        else None,
    )


def freeze(session: Session, before: set[str] | None) -> set[str]:
    """Let the generator's modules learn, or not, as ``freeze_schedule`` has it for the step to come.

    Args:
        session: The run.
        before: What did not learn at the step before; None at a stage's first.

    Returns:
        What does not learn now.
    """
    frozen = session.config.frozen_modules(session.step - session.plan.warm_up)
    if frozen != before:
        for name in MODULES:
            learns = name not in frozen
            session.generator.get_submodule(name).requires_grad_(learns).train(learns)
    return frozen


def _optimizer(config: TrainingConfig, network: nn.Module) -> torch.optim.Optimizer:
    """An optimiser of what learns; its rate is set before every step."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if config.optim == "sgd":
        return torch.optim.SGD(
            learning, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
    return AdamW(
        learning,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
        fused=True,
    )


def set_learning_rates(session: Session, steps: Steps) -> dict[str, float]:
    """The learning rates of the step to come, as a function of its number alone; under their logs' names."""
    config, plan, done = session.config, session.plan, session.step - steps.first_step
    rising = min(1.0, (done + 1) / 10)
    if steps.stage == "new_modules":
        rates = [config.new_modules_learning_rate * rising]
    elif steps.stage == "reconstruction":
        rates = [config.reconstruction_stage_learning_rate * rising * (1 - done / plan.reconstruction)]
    elif steps.stage == "text":
        rates = [config.text_stage_learning_rate * rising * (1 - done / plan.text)]
    else:
        factor = schedule(config, done, plan.joint, plan.per_epoch)
        rates = [
            config.learning_rate * factor,
            (config.discriminator_learning_rate or config.learning_rate) * factor,
        ]
    for optimizer, rate in zip(steps.optimizers, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
    return dict(zip(("train/learning_rate", "train/discriminator_learning_rate"), rates, strict=False))


def schedule(config: TrainingConfig, step: int, total: int, per_epoch: int) -> float:
    """What the learning rate is multiplied with at a step of joint training, from 0."""
    warm_up = config.warmup_steps or math.ceil(config.warmup_ratio * total)
    rising = min(1.0, (step + 1) / warm_up) if warm_up else 1.0
    if config.do_step_schedule_per_epoch:
        return rising * config.lr_decay ** (step // per_epoch)
    done = max(0, step - warm_up) / max(1, total - warm_up)
    if config.lr_scheduler_type == "linear":
        return rising * (1 - done)
    if config.lr_scheduler_type == "cosine":
        return rising * 0.5 * (1 + math.cos(math.pi * done))
    return rising


def batches(session: Session) -> Iterator[Batch]:
    """Batches from where the run stands, for ever; the position is part of the run's state."""
    config, dataset, state = session.config, session.train, session.state
    while True:
        plan = session.sampler.epoch(
            state.sampler_epoch,
            session.accelerator.process_index,
            first=None if session.step < session.plan.warm_up else state.curriculum_epoch,
            of=state.sampler_left,
        )
        for batch in DataLoader(
            dataset,
            batch_sampler=plan[state.sampler_batch :],
            collate_fn=functools.partial(dataset.collate, epoch=state.sampler_epoch),
            num_workers=config.dataloader_num_workers,
            pin_memory=config.dataloader_pin_memory and session.accelerator.device.type == "cuda",
        ):
            state.sampler_batch += 1
            yield batch
        state.sampler_epoch, state.sampler_batch, state.sampler_left = state.sampler_epoch + 1, 0, None
