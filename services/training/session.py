"""What a run is made of, and how it begins: base, data, networks, plan."""

from __future__ import annotations

import contextlib
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import torch
from accelerate import Accelerator

from services.training import checkpoints as ckpt
from services.training.activations import remember_once
from services.training.attention import attend_to_neighbours
from services.training.base import Base, Origin, fit_speakers, load_base
from services.training.checkpointing import enable_gradient_checkpointing
from services.training.config import Stage, TrainingConfig
from services.training.data.augmentation import WARNING
from services.training.data.card import read_card
from services.training.data.inspection import SILENT_DBFS
from services.training.data.reading import Survey, survey
from services.training.data.recordings import Columns, canonical_split
from services.training.dataset import (
    Dropped,
    Examples,
    HeldOut,
    decoding_progress,
    describe_dropped,
    describe_unspoken,
    keep_speaker,
    normalise_text,
    prepare,
    unspoken,
    write_dropped,
    write_unspoken,
)
from services.training.diagnosis import is_out_of_memory, network_remedies
from services.training.discriminator import RESOLUTIONS, Discriminator
from services.training.ema import Ema
from services.training.features import FeatureSettings
from services.training.layout import (
    keep_freed_memory,
    use_channels_last,
    use_quick_dropout,
    use_tokens_of_channels,
)
from services.training.sampler import BucketSampler, Curriculum, difficulty
from services.training.steps import new_discriminator
from services.training.wavenet import waste_nothing
from shared.cache import default_cache
from shared.consent import refuse_withdrawn
from shared.errors import ConfigError, DataError, TextError, nearest
from shared.modeling import VitsForTraining
from shared.provenance import Provenance, commercial_warning
from shared.runs import Run
from shared.store import Store, default_store_url
from shared.text import FrontEnd
from shared.wording import counted

#: How many recordings a line of the console names.
_NAMED = 5
#: How many speakers sample sentences are spoken by, unless they are chosen.
MAX_SPEAKERS = 4
#: Measures that are the discriminator's verdict, or have it in them.
_JUDGED = frozenset({"loss", "generator", "feature_maps", "discriminator"})


@dataclass
class Plan:
    """How many steps of which stage."""

    joint: int
    """Steps of joint training."""
    per_epoch: int
    new_modules: int = 0
    """Steps of the first stage, which trains only what is new."""
    reconstruction: int = 0
    """Steps that train posterior encoder and decoder alone."""
    text: int = 0
    """Steps that train text encoder, flow and duration predictor alone."""

    @property
    def warm_up(self) -> int:
        """Steps before joint training."""
        return self.new_modules + self.reconstruction + self.text

    @property
    def total(self) -> int:
        """Steps of all stages."""
        return self.warm_up + self.joint

    def span(self, stage: Stage) -> range:
        """The steps of a stage."""
        stages = get_args(Stage)
        begin = sum(getattr(self, earlier) for earlier in stages[: stages.index(stage)])
        return range(begin, begin + getattr(self, stage))

    def stages(self) -> dict[Stage, range]:
        """The stages that have steps, in order, with their steps."""
        return {stage: span for stage in get_args(Stage) if (span := self.span(stage))}


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
    sampler: BucketSampler
    evaluation: HeldOut
    dropped: dict[str, list[Dropped]]
    """What was left out of each split, ``training`` and ``evaluation``."""
    plan: Plan
    provenance: Provenance
    store: Store
    ema: Ema | None = None
    run: Run | None = None
    state: ckpt.TrainerState = field(default_factory=ckpt.TrainerState)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.state.global_step

    @property
    def judged_from(self) -> int:
        """The first step after which there has been a discriminator; 0 where it is there from the beginning."""
        start = self.config.discriminator_start_step
        return self.plan.warm_up + start + 1 if start else 0

    def sample_speakers(self) -> list[tuple[str | None, int | None]]:
        """Who speaks the sample sentences: names and ids, None where there is none.

        Those that the configuration chooses, or else the first of those that are trained on: a base may know a hundred
        more, and nothing is learnt of them.
        """
        if self.generator.config.num_speakers <= 1:
            return [(None, None)]
        ids: dict[str, int] = self.base.speakers
        if self.config.eval_speakers:
            return [(name, ids[name]) for name in self.config.eval_speakers]
        trained = {example.speaker_id for example in self.train.examples}
        known = sorted((number, name) for name, number in ids.items() if number in trained)
        return [(name, number) for number, name in known[:MAX_SPEAKERS]] or [(None, 0)]

    def comparable_from(self, measure: str) -> int:
        """The first step whose evaluation tells how good the model is, compared with those of the end.

        In the stages before joint training only a part learns, and what is measured of it may be better than it ever
        is of the whole: posterior encoder and decoder alone repeat what no text can foretell. And what was measured on
        other recordings, before the run went on with these, says nothing.
        """
        joint = max(self.plan.warm_up + 1 if self.plan.warm_up else 0, self.state.held_out_from)
        return max(joint, self.judged_from) if measure in _JUDGED else joint


def command_to_go_on(config: TrainingConfig) -> str:
    """What goes on with a run that was stopped: its command, but without what would make it begin again or go back."""
    asked = config.resume_from_checkpoint
    if str(asked).lower() == "true":
        return "the same command"
    keys = {"overwrite_output_dir": config.overwrite_output_dir, "resume_from_checkpoint": asked is not None}
    named = " and ".join(key for key, is_set in keys.items() if is_set)
    return f"the same command, but without {named}," if named else "the same command"


def has_bf16() -> bool:
    """Whether this processor computes in bfloat16, instead of only storing it."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def precision(config: TrainingConfig) -> str:
    """The mixed precision to use: float16 needs a GPU, bfloat16 a processor that has it. What changes is said."""
    wanted = "fp16" if config.fp16 else "bf16" if config.bf16 else "no"
    if wanted == "no" or (torch.cuda.is_available() and not config.use_cpu):
        return wanted
    if wanted == "fp16":
        print(f"fp16 needs a GPU and there is none: using {'bf16' if has_bf16() else 'float32'} instead.")
    elif not has_bf16():
        print("bf16: this processor does not have it, which makes it slow: using float32 instead.")
    return "bf16" if has_bf16() else "no"


def begin(config: TrainingConfig, accelerator: Accelerator, origin: Origin | None = None) -> Session:
    """Load the base, read and prepare the data, plan the steps.

    Args:
        config: The configuration.
        accelerator: The processes.
        origin: Where a run comes from that goes on.

    Raises:
        UserError: The base or the data cannot be used, or must not be any more; the message says what to do.
        StoreError: The store failed.
    """
    store = Store.open(config.store or default_store_url())
    came_from = [f"models/{origin.reference}"] if origin else []
    refuse_withdrawn(store, dataset=str(config.dataset_name), versions=came_from)
    base = load_base(config, store, origin)
    model = base.model
    settings = FeatureSettings(
        sampling_rate=model.config.sampling_rate,
        hop_length=model.hop_length,
        n_fft=2 * (model.config.spectrogram_bins - 1),
    )
    with accelerator.main_process_first():
        examples, dropped = _prepare_data(config, base, settings, speaks=accelerator.is_main_process)
    if accelerator.is_main_process:
        for note in base.notes:
            print(note)
        _report_data(config, examples, dropped)
        _report_silent(examples)
        _report_unspoken(config, examples, base.front_end)
        if config.augmentation:
            print(f"Note: {WARNING}")
    if base.untrained and {name.partition(".")[0] for name in base.untrained} <= set(config.freeze):
        raise ConfigError(
            "The configuration leaves the first stage nothing to teach:",
            [f"freeze names {', '.join(base.untrained)}, which the base lacks: leave it out of freeze"],
        )
    if config.frozen_discriminator_steps and base.discriminator is None:
        raise ConfigError(
            "frozen_discriminator_steps needs a base with a discriminator:",
            ["this one has none, and a random one has nothing to teach: leave it out, or see 'vits convert'"],
        )
    training = examples["training"]
    if not len(training):
        raise DataError("No recording is left to train on; the list above says why each was left out.", [])
    if config.do_eval and not len(examples["evaluation"]):
        raise _nothing_held_out(config, dropped["evaluation"])
    provenance = _provenance(config, base)
    warning = commercial_warning(f"the model {config.published_name}", provenance.licence)
    if warning and accelerator.is_main_process:
        print(f"Warning: {warning}")
    try:
        discriminator = _prepare_networks(config, base, accelerator)
        ema = None if config.ema_decay is None else Ema(model, config.ema_decay)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise _no_room(config) from error
        raise
    sampler = BucketSampler(
        [training.most_frames(example) for example in training.examples],
        batch_size=config.per_device_train_batch_size,
        seed=config.seed,
        world=accelerator.num_processes,
        group_by_length=config.group_by_length,
        frame_budget=config.max_frames_per_batch,
        curriculum=_curriculum(config, training),
    )
    return Session(
        config=config,
        accelerator=accelerator,
        base=base,
        generator=model,
        discriminator=discriminator,
        settings=settings,
        train=training,
        sampler=sampler,
        evaluation=HeldOut(examples.get("evaluation"), config.per_device_eval_batch_size),
        dropped=dropped,
        plan=_plan(config, sampler.batches_per_epoch, has_new_modules=bool(base.untrained)),
        provenance=provenance,
        store=store,
        ema=ema,
    )


def check_strategy(session: Session) -> None:
    """Refuse what would never come to its end in so many steps, which are known only with the data.

    Raises:
        ConfigError: The discriminator would never learn, or some recordings never be seen.
    """
    config, joint = session.config, session.plan.joint
    problems = []
    if config.judge_stands_still(joint):
        problems.append(
            f"frozen_discriminator_steps {config.frozen_discriminator_steps}, from discriminator_start_step "
            f"{config.discriminator_start_step} on, do not end before the {counted(joint, 'step')} of joint training: "
            "the discriminator would never learn"
        )
    epochs = joint * config.gradient_accumulation_steps / session.sampler.batches_per_epoch
    if config.curriculum and config.curriculum_epochs >= epochs:
        problems.append(
            f"curriculum_epochs {config.curriculum_epochs} is not below the {epochs:.3g} epochs that the "
            f"{counted(joint, 'step')} of joint training are: the run would never see all recordings"
        )
    if problems:
        raise ConfigError("The configuration does not suit this many recordings:", problems)


def _curriculum(config: TrainingConfig, examples: Examples) -> Curriculum | None:
    """The order in which recordings come in, where the configuration asks for one."""
    if config.curriculum is None:
        return None
    frames = [examples.frames(example) for example in examples.examples]
    hard = tuple(map(float, frames))
    if config.curriculum == "difficulty":
        hard = difficulty(frames, [len(example.token_ids) for example in examples.examples])
    return Curriculum(hard, config.curriculum_epochs, config.curriculum_start)


def _prepare_networks(config: TrainingConfig, base: Base, accelerator: Accelerator) -> Discriminator:
    """Set both networks up for training, on the device; the discriminator, as the base is one already."""
    model = base.model
    model.decoder.apply_weight_norm()
    discriminator = new_discriminator(
        config.seed, config.discriminator_periods, RESOLUTIONS if config.stft_discriminator else ()
    )
    if base.discriminator is not None:
        discriminator.load_folded(base.discriminator)
    remember_once(model)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
        for network in (model.decoder, model.posterior_encoder, model.flow):
            use_channels_last(network)
        waste_nothing(model)
        use_tokens_of_channels(model.duration_predictor)
        use_quick_dropout(model)
        attend_to_neighbours(model.text_encoder)
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    if config.torch_compile:
        # Not the discriminator: its networks share code and run in three modes, more variants than are kept compiled.
        for part in (model.decoder, model.posterior_encoder.wavenet):
            part.compile()
    model.to(accelerator.device)
    return discriminator.to(accelerator.device)


def _provenance(config: TrainingConfig, base: Base) -> Provenance:
    """What the model will be made of; from scratch nothing of the base is in it."""
    data = data_provenance(str(config.dataset_name))
    return data if config.train_from_scratch else base.provenance.joined(data)


def data_provenance(dataset: str) -> Provenance:
    """Where the recordings come from: by the dataset's card, or else only its name."""
    folder = Path(dataset)
    card = read_card(folder) if folder.is_dir() else None
    if card is None:
        return Provenance(sources=(dataset,))
    return Provenance(
        licence=card.licence,
        sources=tuple(filter(None, (*card.sources, card.attribution))),
        consent=card.consent or None,
    )


def _prepare_data(
    config: TrainingConfig, base: Base, settings: FeatureSettings, *, speaks: bool
) -> tuple[dict[str, Examples], dict[str, list[Dropped]]]:
    """The usable examples of each split, ``training`` and ``evaluation``, and what was left out of each.

    The base is made one of the data's speakers on the way.
    """
    splits = {"training": (config.train_split_name, config.max_train_samples)}
    if config.do_eval:
        splits["evaluation"] = (config.eval_split_name, config.max_eval_samples)
    surveys = {role: _survey(config, split) for role, (split, _) in splits.items()}
    if speaks and config.do_train and (note := _held_out(config, surveys["training"])):
        print(note)
    recordings = {
        role: keep_speaker(
            surveys[role].only(split).recordings, config.filter_on_speaker_id, role=role, split=split
        )
        for role, (split, _) in splits.items()
    }
    names = [recording.speaker for recording in recordings["training"] if recording.speaker is not None]
    speakers = fit_speakers(base, names, config)
    _check_eval_speakers(config, speakers)
    examples: dict[str, Examples] = {}
    dropped: dict[str, list[Dropped]] = {}
    for role, (_, limit) in splits.items():
        with decoding_progress(speaks and sys.stderr.isatty(), f"decoding the {role} recordings") as progress:
            examples[role], dropped[role] = prepare(
                recordings[role],
                base.front_end,
                settings,
                config,
                speakers=speakers,
                trained=set(names),
                cache=default_cache() / "pcm16",
                limit=limit,
                progress=progress,
                augmentation=config.augmentation if role == "training" else None,
            )
    return examples, dropped


def _check_eval_speakers(config: TrainingConfig, speakers: Mapping[str, int]) -> None:
    """Refuse sample sentences by speakers whom the model does not know.

    Raises:
        ConfigError: There is one.
    """
    unknown = [name for name in config.eval_speakers if name not in speakers]
    if unknown:
        known = ", ".join([*speakers][:20]) or "none by name: leave eval_speakers out"
        raise ConfigError(
            "eval_speakers names whom the model does not know:",
            [*(f"{name!r}{nearest(name, [*speakers])}" for name in unknown), f"its speakers: {known}"],
        )


def _survey(config: TrainingConfig, split: str) -> Survey:
    """The dataset, as far as it has to be read for one of its splits.

    Raises:
        DataError: A row cannot be read, or there is none.
    """
    columns = Columns(config.audio_column_name, config.text_column_name, config.speaker_id_column_name)
    found = survey(
        str(config.dataset_name), split=split, columns=columns, config_name=config.dataset_config_name,
        cache_dir=config.cache_dir, token=config.token, refuse_empty_texts=False,
    )  # fmt: skip
    found.raise_problems()
    return found


def _held_out(config: TrainingConfig, found: Survey) -> str | None:
    """What to say of recordings that are not trained on because the dataset names no splits, if there are any."""
    if not found.is_split_here or canonical_split(config.train_split_name) != "train":
        return None
    wanted = config.filter_on_speaker_id
    splits = Counter(
        split
        for recording, split in zip(found.recordings, found.splits, strict=True)
        if wanted is None or recording.speaker == str(wanted)
    )
    held = [f"{count} as {split}" for split, count in sorted(splits.items()) if split != "train"]
    if not held:
        return None
    evaluated = f"; {config.eval_split_name} is evaluated" if config.do_eval else "; nothing evaluates now"
    return (
        f"{config.dataset_name} has no splits but train: {splits.total() - splits['train']} of "
        f"{counted(splits.total(), 'recording')} held out ({', '.join(held)}{evaluated}). "
        "--train_split_name all trains on them too, and leaves none to measure the voice on."
    )


def _report_data(
    config: TrainingConfig, examples: Mapping[str, Examples], dropped: Mapping[str, Sequence[Dropped]]
) -> None:
    """Say what each split came to, and what was left out of it: listed in a file, unless a run's list is there that is
    only evaluated.
    """
    path = config.output_dir / "dropped.csv"
    writes = config.do_train or not path.exists()
    if writes:
        write_dropped(path, dropped)
    for role, usable in examples.items():
        listed = f", all listed in {path}" if writes and dropped[role] else ""
        minutes = usable.hours * 60
        print(
            f"{role}: {counted(len(usable), 'recording')}, {minutes:.1f} min; {len(dropped[role])} left out{listed}"
        )
        for line in describe_dropped(dropped[role]):
            print(f"  {line}")


def _report_silent(examples: Mapping[str, Examples]) -> None:
    """Name the recordings in which nothing can be heard, such as of a microphone that was off."""
    quietest = 10 ** (SILENT_DBFS / 20)
    for role, usable in examples.items():
        silent = [
            f"{example.row} ({example.id})" if example.row else example.id
            for example in usable.examples
            if usable.peak(example) < quietest
        ]
        if silent:
            more = f" and {len(silent) - _NAMED} more" if len(silent) > _NAMED else ""
            print(
                f"Warning: {role}: {counted(len(silent), 'recording')} as good as silent, nowhere louder than "
                f"{SILENT_DBFS:g} dBFS: {', '.join(silent[:_NAMED])}{more}\n"
                "  Record them again, or leave them out: there is nothing to learn there. 'vits data inspect' finds "
                "what else is wrong with recordings."
            )


def _report_unspoken(config: TrainingConfig, examples: Mapping[str, Examples], front_end: FrontEnd) -> None:
    """Name the transcripts and sample sentences that say more than the model has tokens for, such as digits; the
    transcripts are listed as :func:`_report_data` lists what was left out.
    """
    path = config.output_dir / "unspoken.csv"
    writes = config.do_train or not path.exists()
    if writes:
        write_unspoken(path, examples)
    lines = describe_unspoken(examples, f"; all listed in {path}" if writes else "")
    if lines:
        print("\n".join([f"Warning: {lines[0]}", *lines[1:]]))
        print(
            "  Write them as they are spoken, numbers in words: 'vits data clean' with --model FOLDER finds these rows "
            "and takes the text that you correct in its table. Letters of the language: --vocabulary_additions."
        )
    for text in config.sample_texts:
        with contextlib.suppress(TextError):  # the evaluation says of such a one that it cannot be spoken
            if lacking := unspoken(front_end.tokenize(normalise_text(text, config))):
                print(
                    f"Warning: the sample sentence {text!r} is spoken without {', '.join(map(repr, lacking))}"
                )


def _nothing_held_out(config: TrainingConfig, dropped: Sequence[Dropped]) -> DataError:
    """What to say where no recording of the evaluation split can be used."""
    kinds = Counter(item.kind for item in dropped).most_common()
    problems = [f"{counted(count, 'recording')} left out: {kind}" for kind, count in kinds]
    remedy = "change what leaves them out, or give another --eval_split_name"
    if config.do_train:
        remedy += ", or train without evaluations: --do_eval false"
    return DataError(
        f"No recording of the evaluation split {config.eval_split_name!r} can be used:", [*problems, remedy]
    )


def _no_room(config: TrainingConfig) -> ConfigError:
    """What to say where the networks alone find no room."""
    return ConfigError(
        "There was no room in memory for the networks, before any step. In the order in which to try them:",
        network_remedies(config),
    )


def _plan(config: TrainingConfig, batches: int, *, has_new_modules: bool) -> Plan:
    """How many steps: an epoch of so many batches a process means the same on one process and on several."""
    steps = batches / config.gradient_accumulation_steps
    per_epoch = math.ceil(steps)
    by_epochs = max(1, math.ceil(config.num_train_epochs * steps - 1e-6))
    joint = config.max_steps if config.max_steps >= 0 else by_epochs
    warm_up = config.warm_up_new_modules_steps
    if warm_up is None:
        warm_up = 0 if config.reconstruction_stage_steps else math.ceil(joint / 4)
    return Plan(
        joint=joint,
        per_epoch=per_epoch,
        new_modules=warm_up if has_new_modules else 0,
        reconstruction=config.reconstruction_stage_steps,
        text=config.text_stage_steps,
    )
