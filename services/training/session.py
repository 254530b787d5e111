"""What a run is made of, and how it begins: base, data, plan, and the state it goes on from."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator

from services.training import checkpoints as ckpt
from services.training.base import Base, load_base
from services.training.config import TrainingConfig
from services.training.data import read_recordings
from services.training.data.card import read_card
from services.training.dataset import Batch, Dropped, Examples, keep_speaker, prepare, speaker_map
from services.training.discriminator import Discriminator
from services.training.features import FeatureSettings
from services.training.steps import new_discriminator
from shared.errors import ConfigError, DataError
from shared.modeling import VitsForTraining
from shared.provenance import Provenance
from shared.registry import default_cache
from shared.runs import Run
from shared.store import Store, default_store_url

#: A change to one of these makes a checkpoint another run's.
_IDENTITY = (
    "model_name_or_path",
    "dataset_name",
    "dataset_config_name",
    "train_split_name",
    "espeak_voice",
    "seed",
)


@dataclass
class Plan:
    """How many steps of which kind."""

    warm_up: int
    """Steps of the first stage, which trains only what is new."""
    joint: int
    """Steps of the second."""
    per_epoch: int

    @property
    def total(self) -> int:
        """Steps of both stages."""
        return self.warm_up + self.joint


@dataclass
class Session:
    """Everything that a run holds on to."""

    config: TrainingConfig
    accelerator: Accelerator
    base: Base
    generator: VitsForTraining
    discriminator: Discriminator
    settings: FeatureSettings
    train: Examples
    evaluation: list[Batch]
    plan: Plan
    provenance: Provenance
    store: Store
    run: Run | None = None
    state: ckpt.TrainerState = field(default_factory=ckpt.TrainerState)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.state.global_step


def precision(config: TrainingConfig) -> str:
    """The mixed precision to use; float16 needs a GPU."""
    if config.fp16 and not torch.cuda.is_available():
        has_bf16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        precision = "bf16" if has_bf16 else "no"
        print(f"fp16 needs a GPU and there is none: using {'bf16' if has_bf16 else 'float32'} instead.")
        return precision
    return "fp16" if config.fp16 else "bf16" if config.bf16 else "no"


def begin(config: TrainingConfig, accelerator: Accelerator) -> Session:
    """Load the base, read and prepare the data, plan the steps."""
    store = Store.open(config.store or default_store_url())
    base = load_base(config, store)
    model = base.model
    settings = FeatureSettings(
        sampling_rate=model.config.sampling_rate,
        hop_length=model.hop_length,
        n_fft=2 * (model.config.spectrogram_bins - 1),
    )
    with accelerator.main_process_first():
        training, evaluation = _prepare_data(config, base, settings, accelerator)
    if config.gradient_checkpointing:
        cast("Any", model).activation_checkpointing_enable()
    model.decoder.apply_weight_norm()
    discriminator = new_discriminator(config.seed)
    if base.discriminator is not None:
        discriminator.load_folded(base.discriminator)
    return Session(
        config=config,
        accelerator=accelerator,
        base=base,
        generator=model.to(accelerator.device),
        discriminator=discriminator.to(accelerator.device),
        settings=settings,
        train=training,
        evaluation=evaluation,
        plan=_plan(config, len(training), accelerator.num_processes, bool(base.untrained)),
        provenance=base.provenance.joined(data_provenance(str(config.dataset_name))),
        store=store,
    )


def data_provenance(dataset: str) -> Provenance:
    """Where the recordings come from: by the dataset's card, or else only its name."""
    folder = Path(dataset)
    card = read_card(folder) if folder.is_dir() else None
    if card is None:
        return Provenance(sources=(dataset,))
    return Provenance(licence=card.licence, sources=tuple(filter(None, (*card.sources, card.attribution))))


def _prepare_data(
    config: TrainingConfig, base: Base, settings: FeatureSettings, accelerator: Accelerator
) -> tuple[Examples, list[Batch]]:
    """Both splits: the training examples, and the evaluation's batches, which never change."""
    reading: dict[str, Any] = {
        "config_name": config.dataset_config_name,
        "audio_column": config.audio_column_name,
        "text_column": config.text_column_name,
        "speaker_column": config.speaker_id_column_name,
        "cache_dir": config.cache_dir,
        "token": config.token,
    }
    splits = {"training": (config.train_split_name, config.max_train_samples)}
    if config.do_eval:
        splits["evaluation"] = (config.eval_split_name, config.max_eval_samples)
    recordings = {
        role: keep_speaker(
            read_recordings(str(config.dataset_name), split=split, **reading), config.filter_on_speaker_id
        )
        for role, (split, _) in splits.items()
    }
    speakers: dict[str, int] = {}
    if base.model.config.num_speakers > 1:
        known = {} if config.override_speaker_embeddings else base.speakers
        speakers = speaker_map(recordings["training"], known)
        if max(speakers.values(), default=0) >= base.model.config.num_speakers:
            raise DataError(
                f"The base has {base.model.config.num_speakers} speakers, which is too few for this dataset.",
                [
                    f"{len(speakers)} speakers are needed: keep one with filter_on_speaker_id, or choose another base"
                ],
            )
        base.speakers = speakers
    examples: dict[str, Examples] = {}
    for role, (_, limit) in splits.items():
        examples[role], dropped = prepare(
            recordings[role],
            base.front_end,
            settings,
            config,
            speakers=speakers,
            cache=default_cache() / "pcm16",
            limit=limit,
        )
        if accelerator.is_main_process:
            _report_data(role, examples[role], dropped)
    if not len(examples["training"]):
        raise DataError("No recording is left to train on; the list above says why each was left out.", [])
    held_out = examples.get("evaluation")
    if held_out is None:
        return examples["training"], []
    order = sorted(range(len(held_out)), key=lambda index: held_out.frames(held_out[index]))
    size = config.per_device_eval_batch_size
    batches = [
        held_out.collate([held_out[index] for index in order[start : start + size]])
        for start in range(0, len(order), size)
    ]
    return examples["training"], batches


def _report_data(role: str, examples: Examples, dropped: Sequence[Dropped]) -> None:
    """Say what a split came to, and name everything that was left out."""
    print(f"{role}: {len(examples)} recordings, {examples.hours * 60:.1f} min; {len(dropped)} left out")
    for item in dropped:
        print(f"  left out {item.id}: {item.reason}")


def _plan(config: TrainingConfig, examples: int, processes: int, has_new_modules: bool) -> Plan:
    """How many steps: an epoch means the same on one process and on several."""
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps * processes
    per_epoch = max(1, math.ceil(examples / per_step))
    joint = config.max_steps if config.max_steps >= 0 else math.ceil(config.num_train_epochs * per_epoch)
    warm_up = config.warm_up_new_modules_steps
    if warm_up is None:
        warm_up = math.ceil(joint / 4)
    return Plan(warm_up=warm_up if has_new_modules else 0, joint=joint, per_epoch=per_epoch)


def resume(session: Session) -> None:
    """Take the run's lease, and go on from its newest complete state, wherever that is."""
    config = session.config
    if session.accelerator.is_main_process:
        session.run = Run.acquire(session.store, config.run_id)
    session.state.max_steps, session.state.warm_up_steps = session.plan.total, session.plan.warm_up
    folder = _newest_checkpoint(session)
    session.accelerator.wait_for_everyone()
    if folder is None:
        return
    check_same_run(config, folder)
    state = ckpt.read_state(folder)
    session.generator.load_state_dict(state["generator"])
    session.discriminator.load_state_dict(state["discriminator"])
    session.state = ckpt.TrainerState.read(folder) or session.state
    # Where the stages meet is part of the state: with another length of training it would move.
    session.plan.warm_up = session.state.warm_up_steps
    session.state.max_steps, session.state.finished = session.plan.total, False
    session.base.resumed_optimizers = state["optimizers"]
    print(f"going on from step {session.step} of {session.plan.total}, as saved in {folder}")


def _newest_checkpoint(session: Session) -> Path | None:
    """The checkpoint to go on from: the one asked for, or the newest of disk and store, or none."""
    config, run = session.config, session.run
    asked = config.resume_from_checkpoint
    if isinstance(asked, str) and asked.lower() not in {"true", "false"}:
        folder = Path(asked) if Path(asked).is_dir() else config.output_dir / asked
        if folder not in ckpt.checkpoints(folder.parent):
            complete = ", ".join(found.name for found in ckpt.checkpoints(config.output_dir)) or "none"
            raise ConfigError(
                f"resume_from_checkpoint: {asked} is not a complete checkpoint.",
                [f"complete ones in {config.output_dir}: {complete}"],
            )
        return folder
    go_on = str(asked).lower()
    if go_on == "false" or (config.overwrite_output_dir and go_on != "true"):
        if run:
            _discard_checkpoints(config.output_dir, run)
        return None
    local = ckpt.checkpoints(config.output_dir)
    stored = run.checkpoints() if run else []
    if run and stored and (not local or (ckpt.checkpoint_step(local[-1]) or 0) < stored[-1]):
        target = config.output_dir / f"checkpoint-{stored[-1]}"
        shutil.rmtree(target, ignore_errors=True)
        print(f"fetching the state of step {stored[-1]} from {session.store.url}")
        run.fetch_checkpoint(stored[-1], target)
        return target
    return local[-1] if local else None


def _discard_checkpoints(output_dir: Path, run: Run) -> None:
    """Make a run begin at its beginning: nothing on the disk or in the store is left to go on from."""
    (output_dir / ckpt.TRAINER_FILE).unlink(missing_ok=True)  # it would call the new run finished
    for stale in ckpt.checkpoints(output_dir):
        shutil.rmtree(stale)
    stored = [item.path for item in run.store.list(f"{run.prefix}/checkpoints")]
    for path in sorted(stored, key=lambda path: not path.endswith("/manifest.json")):  # manifests first
        run.store.delete(path)


def check_same_run(config: TrainingConfig, folder: Path) -> None:
    """Refuse to go on with another run's checkpoint.

    Raises:
        ConfigError: Base, data or seed have changed since it was written.
    """
    path = folder / ckpt.CONFIG_FILE
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    now = config.model_dump(mode="json")
    changed = [
        f"{key}: was {before[key]!r}, is {now[key]!r}"
        for key in _IDENTITY
        if key in before and before[key] != now[key]
    ]
    if changed:
        raise ConfigError(
            f"{folder} belongs to a run of another configuration. Name another --output_dir, or start over with "
            "--overwrite_output_dir.",
            changed,
        )
