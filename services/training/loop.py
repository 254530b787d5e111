"""The training run, from a configuration to a published model. This file sequences; ``steps`` computes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from torch import nn
from torch.utils.data import DataLoader

from services.training import checkpoints as ckpt
from services.training.config import TrainingConfig
from services.training.dataset import Batch, batch_plan
from services.training.features import log_mel_of
from services.training.plots import plot_alignment, plot_spectrograms
from services.training.publishing import finish, save_checkpoint
from services.training.session import Session, begin, check_same_run, precision, resume
from services.training.steps import Seen, Steps, align, evaluate
from services.training.tracking import Tracker
from shared.errors import DataError, TextError
from shared.modeling import synthesize

#: The sample sentence is always spoken from this seed, so that evaluations differ by the model alone.
_SAMPLE_SEED = 0


def train(config: TrainingConfig) -> Path:
    """Run a configuration.

    Returns:
        The output folder, which holds the final model.

    Raises:
        UserError: The configuration, the data or the base cannot be used; the message says what to do.
        StoreError: The store failed.
    """
    config.output_dir.mkdir(parents=True, exist_ok=True)
    ckpt.remove_partial(config.output_dir)
    finished = ckpt.TrainerState.read(config.output_dir)
    if finished and finished.finished and not config.overwrite_output_dir and config.do_train:
        check_same_run(config, config.output_dir)
        print(
            f"{config.output_dir} holds the finished model of {finished.global_step} steps: nothing left to do. "
            "Start over with --overwrite_output_dir, or name another --output_dir."
        )
        return config.output_dir
    accelerator = Accelerator(
        mixed_precision=precision(config),
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1, adjust_scheduler=False),
    )
    session = begin(config, accelerator)
    if config.preprocessing_only:
        print("preprocessing_only: the cache is filled; stopping here.")
        return config.output_dir
    if not config.do_train:
        print(json.dumps(evaluate(session.generator, session.evaluation, session.settings, accelerator)))
        return config.output_dir
    resume(session)
    with Tracker(
        config.output_dir / "runs",
        enabled=accelerator.is_main_process,
        tensorboard=bool(config.report_to),
        total_steps=session.plan.total,
        first_step=session.step,
    ) as tracker:
        _run(session, tracker)
        finish(session, tracker)
    return config.output_dir


# -- Running ---------------------------------------------------------------------------------------


def _run(session: Session, tracker: Tracker) -> None:
    """Both stages, from where the run stands."""
    plan = session.plan
    if session.step == 0:
        tracker.say(
            f"{session.accelerator.num_processes} process(es), {session.accelerator.mixed_precision} precision; "
            f"{plan.joint} steps of {plan.per_epoch} an epoch"
            + (f", after {plan.warm_up} that train only what the base lacks" if plan.warm_up else "")
        )
        _evaluate(session, tracker)
    if session.step < plan.warm_up:
        _stage(session, tracker, "warming up", plan.warm_up)
        session.base.resumed_optimizers = None
    if session.step < plan.total:
        _stage(session, tracker, "training", plan.total)


def _stage(session: Session, tracker: Tracker, name: str, end: int) -> None:
    """One stage, up to step ``end``."""
    config, plan, accelerator = session.config, session.plan, session.accelerator
    warming = end <= plan.warm_up
    steps = _build_steps(session, warming=warming)
    tracker.begin_stage(name)
    batches = _batches(session)
    evaluate_every = config.eval_steps or plan.per_epoch
    logged_at, logged_step = time.perf_counter(), session.step
    while session.step < end:
        rate = _set_learning_rates(session, steps, warming=warming)
        seen = [
            Seen.of(next(batches).to(accelerator.device), session.settings)
            for _ in range(config.gradient_accumulation_steps)
        ]
        losses = (steps.warm_up if warming else steps.joint)(seen, session.step)
        session.state.global_step += 1
        session.state.epoch = session.step / plan.per_epoch
        tracker.step_done(session.step, end)
        if session.step % config.logging_steps == 0 or session.step in {1, end}:
            values = _read_losses(losses)
            now = time.perf_counter()
            tracker.losses(
                session.step, values, seconds_per_step=(now - logged_at) / (session.step - logged_step)
            )
            tracker.scalars(session.step, {"train/learning_rate": rate, "train/epoch": session.state.epoch})
            session.state.log_history.append({"step": session.step, "stage": name} | values)
            logged_at, logged_step = time.perf_counter(), session.step
        if session.step % evaluate_every == 0 or session.step == end:
            _evaluate(session, tracker)
            logged_at, logged_step = time.perf_counter(), session.step
        if (session.step % config.save_steps == 0 or session.step == end) and session.step < plan.total:
            _read_losses(losses)  # a diverged model is not worth a checkpoint
            save_checkpoint(session, tracker, steps.optimizers)
            logged_at, logged_step = time.perf_counter(), session.step
    session.accelerator.free_memory()


def _read_losses(losses: dict[str, torch.Tensor]) -> dict[str, float]:
    """Losses as numbers: the one place where a step waits for the device.

    Raises:
        DataError: One of them is not a number, so going on would spoil the model.
    """
    names = list(losses)
    values = dict(zip(names, torch.stack([losses[name].float() for name in names]).tolist(), strict=True))
    broken = [
        f"{name} is {value}"
        for name, value in values.items()
        # Under float16 a norm that is not finite is a step that the loss scaler skips.
        if not math.isfinite(value) and not name.startswith("gradient_norm")
    ]
    if broken:
        raise DataError(
            "Training has diverged; the last checkpoint is untouched. Try a lower learning_rate, bf16 or float32 "
            "instead of fp16, or look for a broken recording with 'vits data inspect'.",
            broken,
        )
    return values


def _build_steps(session: Session, *, warming: bool) -> Steps:
    """Choose what learns in a stage, and make optimisers for it."""
    config, accelerator, generator = session.config, session.accelerator, session.generator
    generator.requires_grad_(not warming)
    generator.train(not warming)
    if warming:
        for name in session.base.untrained:
            generator.get_submodule(name).requires_grad_(True).train()

    def optimizer(network: nn.Module, rate: float) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            [parameter for parameter in network.parameters() if parameter.requires_grad],
            lr=rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
        )

    optimizers = [optimizer(generator, config.learning_rate)]
    networks: list[nn.Module] = [generator]
    if not warming:
        session.discriminator.requires_grad_(True)
        session.discriminator.train()
        optimizers.append(optimizer(session.discriminator, config.learning_rate))
        networks.append(session.discriminator)
    if session.base.resumed_optimizers is not None:
        for one, state in zip(optimizers, session.base.resumed_optimizers, strict=False):
            one.load_state_dict(state)
        session.base.resumed_optimizers = None
    prepared: list[Any] = list(accelerator.prepare(*networks, *optimizers))
    if warming:
        return Steps(accelerator, config, session.settings, prepared[0], prepared[1])
    return Steps(accelerator, config, session.settings, prepared[0], prepared[2], prepared[1], prepared[3])


def _set_learning_rates(session: Session, steps: Steps, *, warming: bool) -> float:
    """The learning rates of the step to come, as a function of its number alone."""
    config, plan = session.config, session.plan
    if warming:
        rates = [config.new_modules_learning_rate * min(1.0, (session.step + 1) / 10)]
    else:
        factor = schedule(config, session.step - plan.warm_up, plan.joint, plan.per_epoch)
        rates = [
            config.learning_rate * factor,
            (config.discriminator_learning_rate or config.learning_rate) * factor,
        ]
    for optimizer, rate in zip(steps.optimizers, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
    return rates[0]


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


def _batches(session: Session) -> Iterator[Batch]:
    """Batches from where the run stands, for ever."""
    config, accelerator, dataset = session.config, session.accelerator, session.train
    lengths = [dataset.frames(example) for example in dataset.examples]
    consumed = session.step * config.gradient_accumulation_steps
    epoch = 0
    while True:
        plan = batch_plan(
            lengths,
            config.per_device_train_batch_size,
            seed=config.seed,
            epoch=epoch,
            group_by_length=config.group_by_length,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )
        if consumed < len(plan):
            yield from DataLoader(
                dataset,
                batch_sampler=plan[consumed:],
                collate_fn=dataset.collate,
                num_workers=config.dataloader_num_workers,
                pin_memory=config.dataloader_pin_memory and accelerator.device.type == "cuda",
            )
        consumed = max(0, consumed - len(plan))
        epoch += 1


# -- Evaluating and saving -------------------------------------------------------------------------


def _evaluate(session: Session, tracker: Tracker) -> None:
    """Held-out losses, the sample sentence and pictures; everybody else waits."""
    if session.accelerator.is_main_process:
        modes = {name: module.training for name, module in session.generator.named_modules()}
        if session.evaluation:
            values = evaluate(session.generator, session.evaluation, session.settings, session.accelerator)
            tracker.say(
                f"step {session.step}: held out · " + " · ".join(f"{k} {v:.4g}" for k, v in values.items())
            )
            tracker.scalars(session.step, {f"eval/{name}": value for name, value in values.items()})
            session.state.log_history.append(
                {"step": session.step} | {f"eval_{name}": value for name, value in values.items()}
            )
            _draw(session, tracker)
        _speak_sample(session, tracker)
        for name, module in session.generator.named_modules():
            module.training = modes[name]
    session.accelerator.wait_for_everyone()


@torch.no_grad()
def _draw(session: Session, tracker: Tracker) -> None:
    """One held-out recording's alignment, and its spectrogram beside the decoded one."""
    model = session.generator
    batch = session.evaluation[0].to(session.accelerator.device)
    seen = Seen.of(batch, session.settings)
    model.train(False)
    with torch.random.fork_rng():
        output = model.training_forward(
            batch.input_ids, batch.token_lengths, seen.spectrogram, batch.frame_lengths,
            aligner=align, speaker_id=batch.speaker_id,
        )  # fmt: skip
    speaker = model.speaker_embedding(batch.speaker_id)
    latents, _ = model.posterior(seen.spectrogram, output.frame_mask, speaker)
    decoded = log_mel_of(
        model.decoder(latents[:1], speaker if speaker is None else speaker[:1])[:, 0], session.settings
    )
    tokens, frames = int(batch.token_lengths[0]), int(batch.frame_lengths[0])
    durations = output.durations[0, :tokens].cpu().numpy()
    tracker.figure(session.step, "eval/alignment", plot_alignment(durations))
    tracker.figure(
        session.step,
        "eval/spectrogram",
        plot_spectrograms(
            recording=seen.mel[0, :, :frames].cpu().numpy(), decoded=decoded[0, :, :frames].cpu().numpy()
        ),
    )


def _speak_sample(session: Session, tracker: Tracker) -> None:
    """Speak ``full_generation_sample_text`` into the log."""
    text = session.config.full_generation_sample_text
    if not text:
        return
    try:
        tokens = session.base.front_end.tokenize(text.lower() if session.config.do_lower_case else text)
    except TextError as error:
        tracker.say(f"full_generation_sample_text: {error}")
        return
    several = session.generator.config.num_speakers > 1
    ids = torch.tensor(tokens.ids, device=session.accelerator.device)
    spoken = synthesize(session.generator, ids, seed=_SAMPLE_SEED, speaker_id=0 if several else None)
    tracker.audio(session.step, "sample", spoken.samples, spoken.sampling_rate)
