"""What a training run can be told, and what each key means.

The keys are those of ``finetune-hf-vits`` with their meanings and defaults, so that its JSON files run
unchanged, followed by the suite's own. Every wrong key and value of a configuration is reported at
once. Where a configuration comes from is in ``config_sources``; what becomes of the remaining keys of
``transformers`` in ``hf_arguments``.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from services.training.data.augmentation import (
    MAX_SEMITONES,
    MAX_SPEED_CHANGE,
    MIN_NOISE_SNR_DB,
    Augmentation,
)
from services.training.hf_arguments import KNOWN, screen
from shared.addresses import is_address
from shared.errors import ConfigError, nearest

#: Keys that are never shown and never written, and the environment variables that they should come from.
SECRETS: dict[str, str] = {"token": "HF_TOKEN", "hub_token": "HUB_TOKEN"}

_FOLDER = "it is a folder of this machine, and no address"

#: Keys of what lies on this machine, with what to do for one who gives an address such as ``s3://…``.
_LOCAL: dict[str, str] = {
    "model_name_or_path": "give a folder, a model of the store (name@alias) or a name on the hub",
    "config_name": _FOLDER,
    "tokenizer_name": _FOLDER,
    "cache_dir": _FOLDER,
    "dataset_name": "give a folder of this machine, where the bucket is mounted or copied to, or a name on the hub "
    "(owner/name)",
    "output_dir": f"{_FOLDER}; checkpoints and the model go to an object store as well: give its address as store, or "
    "$VITS_STORE",
    "resume_from_checkpoint": f"{_FOLDER}; a run in the store is found by run_name",
}

#: What of a run's title is in its name in the store, which may have 100 characters.
_LONGEST_TITLE = 90
#: What an evaluation measures, for choosing the best checkpoints; of each, less is better.
METRICS = ("loss", "mel", "kl", "duration", "generator", "feature_maps", "discriminator", "mel_distance")

#: Frames a second of the slowest usual model (16 kHz, a hop of 256 samples).
_FEWEST_FRAMES_PER_SECOND = 62.5

_METRIC_ALIASES = {"gen": "generator", "fmaps": "feature_maps", "disc": "discriminator"}


def _list(value: object) -> object:
    """``"a,b"`` and ``'["a", "b"]'`` → ``["a", "b"]``; ``"none"`` → ``[]``."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return value
    if isinstance(value, str):
        value = value.split(",") if value else []
    return [] if value == ["none"] else value


def _names(value: object) -> object:
    """A list of names, of which some may be numbers; or one name."""
    listed = _list([value] if isinstance(value, int) else value)
    return [str(name).strip() for name in listed] if isinstance(listed, list) else listed


def _object(value: object) -> object:
    """A JSON object as the command line has it."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return {} if value == "none" else value


def _from_to(value: tuple[int, int]) -> tuple[int, int]:
    if not 0 <= value[0] < value[1]:
        raise ValueError(f"[{value[0]}, {value[1]}] is not from one step to a later one")
    return value


def _texts(value: object) -> object:
    """One text, which may have commas in it, or a JSON list of texts."""
    return [value] if isinstance(value, str) and not value.startswith("[") else _list(value)


def _whole_steps(value: object) -> object:
    """Refuse the shares of a run that ``transformers`` takes for a number of steps."""
    if isinstance(value, float) and 0 < value < 1:
        raise ValueError("a share of the run is not offered: give a number of steps")
    return value


def _not_none_at_all(value: int) -> int:
    """Refuse ``max_steps`` 0, of which ``transformers`` makes "not set"."""
    if value == 0:
        raise ValueError("give -1 to train for num_train_epochs, or do_train false to train not at all")
    return value


def _metric_name(value: object) -> object:
    """``mel``, ``eval_loss``, ``val_loss_fmaps`` and the like → one of ``METRICS``."""
    name = re.sub(r"^(eval_|val_)?(loss_)?", "", str(value))
    name = _METRIC_ALIASES.get(name, name)
    if name not in METRICS:
        raise ValueError(f"there is no such measure{nearest(name, METRICS)} (of {', '.join(METRICS)})")
    return name


def _optimizer_name(value: object) -> object:
    """Every AdamW of ``transformers`` is PyTorch's."""
    is_adamw = isinstance(value, str) and value.removeprefix("paged_").startswith("adamw_")
    return "adamw_torch" if is_adamw else value


Positive = Annotated[int, Field(gt=0)]
Steps = Annotated[int, Field(gt=0), BeforeValidator(_whole_steps)]
Text = Annotated[str, Field(min_length=1)]
Weight = Annotated[float, Field(ge=0)]
Strategy = Literal["no", "steps", "epoch"]
Module = Literal["text_encoder", "duration_predictor", "flow", "posterior_encoder", "decoder"]
Preset = Literal["small-encoder", "light-decoder"]
#: From one step to before another.
StepRange = Annotated[tuple[int, int], AfterValidator(_from_to)]
Destination = Literal["tensorboard", "wandb", "all"]
#: What a run consists of, in order.
Stage = Literal["new_modules", "reconstruction", "text", "joint"]

#: The parts of the generator that can be frozen.
MODULES: tuple[str, ...] = get_args(Module)

#: Samples of the slice that is decoded in training, as in original VITS.
SEGMENT_SAMPLES = 8192

#: Those that learn in the reconstruction stage.
RECONSTRUCTION_STAGE: tuple[Module, ...] = ("posterior_encoder", "decoder")

#: Those that learn in the text stage.
TEXT_STAGE: tuple[Module, ...] = ("text_encoder", "flow", "duration_predictor")

#: The sections of the schema, each with its first key.
SECTIONS: dict[str, str] = {
    "Model": "model_name_or_path",
    "Data": "project_name",
    "Training": "output_dir",
    "Losses": "weight_disc",
    "Logging, evaluation, checkpoints": "logging_strategy",
    "Hub": "push_to_hub",
    "Store": "store",
}


class TrainingConfig(BaseModel):
    """One training run."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    # -- Model ---------------------------------------------------------------------------------------
    model_name_or_path: str = Field(
        description="base model: a folder, a store reference (name@alias) or a hub name"
    )
    config_name: str | None = Field(
        None, description="folder whose config.json is used instead of the model's"
    )
    tokenizer_name: str | None = Field(
        None, description="folder whose tokenizer is used instead of the model's"
    )
    cache_dir: str | None = Field(None, description="where downloads from the hub are kept")
    model_revision: str = Field("main", description="branch, tag or commit on the hub")
    token: str | None = Field(None, repr=False, description="hub token; rather the environment's HF_TOKEN")
    override_speaker_embeddings: bool = Field(False, description="start with fresh speaker embeddings")
    override_vocabulary_embeddings: bool = Field(False, description="start with fresh token embeddings")
    vocabulary_additions: Annotated[list[Text], BeforeValidator(_texts)] = Field(
        [], description="symbols to add to the vocabulary; known ones keep their embeddings"
    )
    espeak_voice: str | None = Field(
        None, description="phonemise by this espeak-ng voice instead of the model's"
    )
    allow_missing_weights: bool = Field(
        False,
        description="warm start: initialise afresh, and list, what the base lacks or has in another shape",
    )
    train_from_scratch: bool = Field(
        False,
        description="take only the architecture (of config_name or of the base), with VITS's own initialisation",
    )
    sampling_rate: Positive | None = Field(
        None, description="rate of the new model in Hz; only with train_from_scratch"
    )
    model_presets: Annotated[list[Preset], BeforeValidator(_list)] = Field(
        [],
        description="smaller networks, with train_from_scratch or allow_missing_weights: small-encoder (hidden size "
        "128, 4 layers, feed-forward 512), light-decoder (HiFi-GAN's smaller residual blocks)",
    )
    noise_scale: float | None = Field(
        None,
        ge=0,
        description="how much the model's speech varies unless asked otherwise, instead of the base's (VITS: 0.667); "
        "less of it is understood better where training was short",
    )
    noise_scale_duration: float | None = Field(
        None, ge=0, description="how much its rhythm varies, instead of the base's (VITS: 0.8)"
    )
    discriminator_periods: Annotated[list[Positive], BeforeValidator(_list)] = Field(
        [2, 3, 5, 7, 11],
        min_length=1,
        description="periods of the discriminator's networks; fewer are faster",
    )
    stft_discriminator: bool = Field(
        False,
        description="three more discriminator networks, which judge spectrograms at three resolutions (UnivNet's)",
    )
    freeze: Annotated[list[Module], BeforeValidator(_list)] = Field(
        [], description="modules that do not learn"
    )
    freeze_schedule: Annotated[dict[Module, StepRange], BeforeValidator(_object)] = Field(
        {},
        description="modules that do not learn from one step of joint training to before another, such as "
        '{"decoder": [0, 500]}',
    )

    # -- Data ----------------------------------------------------------------------------------------
    project_name: str = Field("vits_finetuning", description="names the model, where nothing else does")
    dataset_name: str | None = Field(
        None, description="a folder with audio and metadata, or a dataset on the hub (required)"
    )
    dataset_config_name: str | None = Field(None, description="configuration of a hub dataset")
    train_split_name: str = Field(
        "train",
        description="split to train on; where the dataset names none, train is all but 5 % held out as validation and "
        "5 % as test, whether they are evaluated or not, and all is everything",
    )
    eval_split_name: str = Field("test", description="split to evaluate on")
    audio_column_name: str = Field("audio", description="column with the recordings")
    text_column_name: str = Field("text", description="column with the transcripts")
    speaker_id_column_name: str | None = Field(
        None, description="column with the speakers; one speaker when left out"
    )
    filter_on_speaker_id: int | str | None = Field(None, description="keep only this speaker")
    max_train_samples: Positive | None = Field(
        None, description="train on the first N usable recordings only"
    )
    max_eval_samples: Positive | None = Field(None, description="evaluate on the first N recordings only")
    max_tokens_length: Positive = Field(450, description="leave out longer transcripts")
    max_duration_in_seconds: float = Field(20.0, gt=0, description="leave out longer recordings")
    min_duration_in_seconds: float = Field(0.0, ge=0, description="leave out shorter recordings")
    do_lower_case: bool = Field(False, description="lower-case every text, the sample texts included")
    do_normalize: bool = Field(
        False, description="scale every recording to the same RMS level; loudness goes before it"
    )
    loudness: float | None = Field(
        None, ge=-70, lt=0, description="bring every recording to this loudness in LUFS, such as -23"
    )
    trim_silence: bool = Field(False, description="cut silence from both ends of every recording")
    augment_pitch: float = Field(
        0.0,
        ge=0,
        le=MAX_SEMITONES,
        description="vary pitch by up to so many semitones, anew each epoch; this and the next can hurt if overdone",
    )
    augment_speed: float = Field(
        0.0, ge=0, le=MAX_SPEED_CHANGE, description="vary speed by up to this share: 0.1 is 0.9 to 1.1"
    )
    augment_noise_snr: float | None = Field(
        None,
        ge=MIN_NOISE_SNR_DB,
        le=80,
        description="add white noise so many decibels below the speech, or up to 10 dB less; 30 is light",
    )
    augment_probability: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the recordings that an epoch varies, where anything varies them",
    )
    full_generation_sample_text: str | None = Field(None, description="spoken at every evaluation")
    eval_sample_texts: Annotated[list[Text], BeforeValidator(_texts)] = Field(
        [], description="more texts to speak at every evaluation"
    )
    eval_speakers: Annotated[list[Text], BeforeValidator(_names)] = Field(
        [],
        description="names of the speakers that they are spoken by; the first four that are trained on when left out",
    )
    preprocessing_num_workers: Positive | None = Field(None, description="threads that decode audio")
    preprocessing_only: bool = Field(False, description="fill the cache and stop")
    group_by_length: bool = Field(False, description="batch recordings of similar length together")
    max_frames_per_batch: Positive | None = Field(
        None,
        description="frames of a batch on one device, padding included; a batch closes at this many or at "
        "per_device_train_batch_size recordings, whichever comes first",
    )
    curriculum: Literal["length", "difficulty"] | None = Field(
        None,
        description="begin with the recordings that are shortest, or easiest: short, and spoken at a usual rate",
    )
    curriculum_epochs: Positive = Field(
        5,
        description="epochs of joint training over which the others join them; an epoch has as many batches as ever",
    )
    curriculum_start: float = Field(
        0.3, gt=0, lt=1, description="share of the recordings that the first epoch has"
    )
    dataloader_num_workers: int = Field(0, ge=0, description="processes that read batches ahead")
    dataloader_pin_memory: bool = Field(True, description="stage batches for the GPU in pinned memory")

    # -- Training ------------------------------------------------------------------------------------
    output_dir: Path = Field(Path("./output"), description="final model, checkpoint-N/ and runs/")
    overwrite_output_dir: bool = Field(False, description="start over even if output_dir has checkpoints")
    resume_from_checkpoint: str | bool | None = Field(
        None, description="a checkpoint folder; by default the newest complete one in output_dir"
    )
    do_train: bool = Field(True, description="train")
    do_eval: bool = Field(False, description="evaluate on eval_split_name")
    num_train_epochs: float = Field(3.0, gt=0, description="passes over the recordings, in joint training")
    max_steps: Annotated[int, AfterValidator(_not_none_at_all)] = Field(
        -1, ge=-1, description="steps of joint training; overrides num_train_epochs unless -1"
    )
    per_device_train_batch_size: Positive = Field(8, description="recordings of a batch on one device")
    per_device_eval_batch_size: Positive = Field(8, description="the same in evaluation")
    gradient_accumulation_steps: Positive = Field(
        1, description="batches of one step, as good as a larger batch"
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute instead of remembering: slower, less memory"
    )
    learning_rate: float = Field(2e-5, gt=0, description="of both networks, where nothing else is said")
    discriminator_learning_rate: float | None = Field(None, gt=0, description="learning_rate when left out")
    optim: Annotated[Literal["adamw_torch", "sgd"], BeforeValidator(_optimizer_name)] = Field(
        "adamw_torch", description="optimiser; every AdamW of transformers is read as adamw_torch"
    )
    adam_beta1: float = Field(0.8, ge=0, lt=1, description="AdamW's first decay")
    adam_beta2: float = Field(0.99, ge=0, lt=1, description="AdamW's second decay")
    adam_epsilon: float = Field(1e-9, gt=0, description="AdamW's epsilon")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay")
    max_grad_norm: float = Field(1.0, ge=0, description="clips each network's gradient; 0 for no clipping")
    discriminator_max_grad_norm: float | None = Field(None, ge=0, description="max_grad_norm when left out")
    do_step_schedule_per_epoch: bool = Field(
        True, description="decay by lr_decay each epoch, not by lr_scheduler_type"
    )
    lr_decay: float = Field(0.999875, gt=0, le=1, description="the learning rate's factor each epoch")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="course of the learning rate if do_step_schedule_per_epoch is false"
    )
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="share of all steps over which the rate rises")
    warmup_steps: int = Field(0, ge=0, description="overrides warmup_ratio")
    warm_up_new_modules_steps: int | None = Field(
        None,
        ge=0,
        description="first stage, for a base whose posterior encoder is new: steps that train only what is new "
        "(by default a quarter as many again as the joint steps, or none if a reconstruction stage is to teach it)",
    )
    new_modules_learning_rate: float = Field(5e-4, gt=0, description="learning rate of that first stage")
    new_modules_weight_kl: float | None = Field(
        None,
        ge=0,
        description="weight of the divergence in that first stage (by default weight_kl); little of it where the base "
        "speaks another language, whose text encoder the new posterior encoder is not to please",
    )
    reconstruction_stage_steps: int = Field(
        0,
        ge=0,
        description="reconstruction stage, before the text stage: steps in which posterior encoder and decoder alone "
        "learn to say again what was recorded, by mel loss, without text or discriminator; for a base that speaks with "
        "another voice; each takes a fraction of a joint step",
    )
    reconstruction_stage_learning_rate: float = Field(
        1e-3, gt=0, description="learning rate of the reconstruction stage, from which it falls to nothing"
    )
    reconstruction_stage_weight_kl: float = Field(
        1e-3,
        ge=0,
        description="weight, in the reconstruction stage, of the posterior's divergence from a standard normal, which "
        "keeps latents as small and as smooth as copies allow",
    )
    text_stage_steps: int = Field(
        0,
        ge=0,
        description="text stage, before joint training: steps that train text encoder, flow and duration predictor to "
        "expect the recordings' latents, while nothing is decoded or judged; each takes a fraction of a joint step",
    )
    text_stage_learning_rate: float = Field(
        5e-4, gt=0, description="learning rate of the text stage, from which it falls to nothing"
    )
    discriminator_start_step: int = Field(
        0,
        ge=0,
        description="step of joint training from which there is a discriminator; before it the generator learns by "
        "mel, divergence and duration losses alone, at a fraction of a step's time",
    )
    frozen_discriminator_steps: int = Field(
        0,
        ge=0,
        description="steps from there on in which the discriminator judges and does not learn",
    )
    alignment_noise: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="noise on the likelihood that recordings are aligned by, in its standard deviations, so that early "
        "alignments do not settle too soon (VITS2: 0.01); it fades over alignment_noise_steps",
    )
    alignment_noise_steps: Positive = Field(
        5000, description="steps of joint training over which it fades to nothing"
    )
    early_stopping_patience: Positive | None = Field(
        None,
        description="end the run, as if it were complete, after so many evaluations in a row without progress in "
        "metric_for_best_model; never when left out",
    )
    early_stopping_min_delta: float = Field(
        0.001, ge=0, lt=1, description="what counts as progress: a fall by this share of the best so far"
    )
    early_stopping_smoothing: float = Field(
        0.6, ge=0, lt=1, description="share of the past in the moving average that progress is looked for in"
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="keep a moving average of the generator, such as 0.999, which is evaluated and published",
    )
    seed: int = Field(42, ge=0, description="decides everything that is drawn")
    full_determinism: bool = Field(
        False, description="deterministic algorithms only: slower, and the same to the bit every time"
    )
    fp16: bool = Field(False, description="mixed precision; without a GPU bf16 or fp32 takes its place")
    bf16: bool = Field(False, description="mixed precision, on GPUs and processors that have it")
    torch_compile: bool = Field(
        False, description="compile decoder and posterior encoder; takes minutes at first"
    )
    use_cpu: bool = Field(False, description="leave GPUs alone")
    ddp_timeout: Positive = Field(
        1800,
        description="seconds that processes wait for each other, as all do at first while the main one decodes the "
        "recordings",
    )

    # -- Losses --------------------------------------------------------------------------------------
    weight_disc: Weight = Field(
        3.0,
        description="weight of the discriminator's loss; AdamW undoes it, so set discriminator_learning_rate instead",
    )
    weight_gen: Weight = Field(1.0, description="weight of the adversarial loss")
    weight_fmaps: Weight = Field(1.0, description="weight of the feature-matching loss")
    weight_kl: Weight = Field(1.5, description="weight of the divergence of posterior and prior")
    kl_annealing_steps: int = Field(
        0, ge=0, description="steps of joint training over which weight_kl rises from nothing"
    )
    weight_duration: Weight = Field(1.0, description="weight of the duration loss")
    weight_mel: Weight = Field(35.0, description="weight of the mel-spectrogram loss")
    segment_size: int = Field(
        SEGMENT_SAMPLES,
        ge=2048,
        description="samples of the slice of each recording that is decoded and judged; a longer one teaches the "
        "decoder more in each step, costs more, and leaves out recordings that are shorter",
    )

    # -- Logging, evaluation, checkpoints ------------------------------------------------------------
    logging_strategy: Strategy = Field(
        "steps", description="log losses every logging_steps, once an epoch, or never"
    )
    logging_steps: Steps = Field(10, description="log losses every N steps")
    report_to: Annotated[list[Destination], BeforeValidator(_list)] = Field(
        ["tensorboard"], description="where curves go; none for nowhere"
    )
    wandb_project: str | None = Field(
        None, description="project at Weights & Biases; project_name when left out"
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="serve vits_training_* metrics to Prometheus on this port"
    )
    metrics_host: str = Field("127.0.0.1", description="address of metrics_port")
    eval_strategy: Strategy | None = Field(
        None, description="evaluate every eval_steps, once an epoch, or never; by eval_steps when left out"
    )
    eval_steps: Steps | None = Field(None, description="evaluate every N steps; once an epoch when left out")
    max_eval_share: float | None = Field(
        None, gt=0, lt=1, description="most of the run's time for evaluations; past it they become rarer"
    )
    save_strategy: Strategy = Field(
        "steps", description="write checkpoints every save_steps, once an epoch, or only at the end"
    )
    save_steps: Steps = Field(500, description="write a checkpoint every N steps")
    save_total_limit: Positive | None = Field(
        None, description="keep only the newest N checkpoint folders, and keep_best"
    )
    keep_best: int = Field(0, ge=0, description="keep the N best checkpoints as well as the newest")
    metric_for_best_model: Annotated[str, BeforeValidator(_metric_name)] = Field(
        "mel", description=f"what best means: {', '.join(METRICS)}"
    )
    greater_is_better: bool | None = Field(None, description="false for every measure there is")
    load_best_model_at_end: bool = Field(
        False, description="publish the best checkpoint's model instead of the last one"
    )

    # -- Hub -----------------------------------------------------------------------------------------
    push_to_hub: bool = Field(False, description="push the final model to the Hugging Face hub")
    hub_model_id: str | None = Field(None, description="its name there, such as my-name/my-voice")
    hub_token: str | None = Field(
        None,
        repr=False,
        description="token that may write there; rather the environment's HUB_TOKEN or HF_TOKEN",
    )
    hub_private_repo: bool = Field(False, description="keep it private")

    # -- Store ---------------------------------------------------------------------------------------
    store: str | None = Field(
        None, description="object store that every checkpoint is published to; $VITS_STORE when left out"
    )
    model_name: str | None = Field(
        None, description="the model's name in the store; from hub_model_id or project_name when left out"
    )
    run_name: str | None = Field(
        None, description="the run's name; from the model's name and output_dir's place when left out"
    )
    alias: str = Field("latest", description="alias that is moved to the final model")

    @field_validator(*_LOCAL, mode="before")
    @classmethod
    def _on_this_machine(cls, value: object, info: ValidationInfo) -> object:
        """Refuse an address."""
        if is_address(str(value)):
            raise ValueError(_LOCAL[str(info.field_name)])
        return value

    @model_validator(mode="before")
    @classmethod
    def _evaluate_if_asked_when(cls, values: Any) -> Any:
        """A strategy is a wish to evaluate, as in ``transformers``."""
        if (
            isinstance(values, dict)
            and values.get("eval_strategy") in ("steps", "epoch")
            and "do_eval" not in values
        ):
            return values | {"do_eval": True}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        problems = [
            *self._problems_of_the_task(),
            *self._problems_of_the_model(),
            *self._problems_of_the_data(),
            *self._problems_of_the_steps(),
            *self._problems_of_the_strategy(),
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _problems_of_the_task(self) -> list[str]:
        problems = []
        if not (self.do_train or self.do_eval or self.preprocessing_only):
            problems.append("do_train, do_eval and preprocessing_only are all false: there is nothing to do")
        if self.fp16 and self.bf16:
            problems.append("fp16 and bf16 are both true: choose one")
        if self.push_to_hub and not self.hub_model_id:
            problems.append("push_to_hub needs hub_model_id, such as 'my-name/my-voice'")
        return problems

    def _problems_of_the_model(self) -> list[str]:
        problems = []
        if set(self.freeze) == set(MODULES):
            problems.append("freeze names every module, so that nothing could learn: leave one out")
        if self.freeze and self.train_from_scratch:
            problems.append(
                "freeze would keep modules as random as train_from_scratch makes them: choose one"
            )
        if self.text_stage_steps and self.train_from_scratch and not self.reconstruction_stage_steps:
            problems.append(
                "text_stage_steps needs a posterior encoder that knows speech, and train_from_scratch takes none: drop "
                "one of them, or teach one first by reconstruction_stage_steps"
            )
        for steps, learns in (
            ("reconstruction_stage_steps", RECONSTRUCTION_STAGE),
            ("text_stage_steps", TEXT_STAGE),
        ):
            if getattr(self, steps) and set(learns) <= set(self.freeze):
                problems.append(
                    f"freeze names {', '.join(learns)}, so that {steps} has nothing to teach: drop one of them"
                )
        if self.sampling_rate and not self.train_from_scratch:
            problems.append(
                "sampling_rate needs train_from_scratch: a trained model speaks at the rate it was trained at, and "
                "recordings are resampled to it"
            )
        if self.model_presets and not (self.train_from_scratch or self.allow_missing_weights):
            problems.append(
                f"model_presets {', '.join(self.model_presets)} changes shapes, so that the base's weights do not fit: "
                "set train_from_scratch, or allow_missing_weights to keep those that do"
            )
        if len(set(self.discriminator_periods)) < len(self.discriminator_periods):
            problems.append(f"discriminator_periods {self.discriminator_periods} names a period twice")
        return problems

    def _problems_of_the_data(self) -> list[str]:
        problems = []
        if self.dataset_name is None:
            problems.append(
                "dataset_name is missing: a folder with audio and metadata, or a dataset on the hub"
            )
        if self.min_duration_in_seconds >= self.max_duration_in_seconds:
            problems.append(
                f"min_duration_in_seconds {self.min_duration_in_seconds} is not below max_duration_in_seconds "
                f"{self.max_duration_in_seconds}: no recording could pass"
            )
        if self.filter_on_speaker_id is not None and self.speaker_id_column_name is None:
            problems.append(
                f"filter_on_speaker_id {self.filter_on_speaker_id!r} needs speaker_id_column_name, the column that "
                "names the speakers"
            )
        longest = int(self.max_duration_in_seconds * _FEWEST_FRAMES_PER_SECOND)
        if self.max_frames_per_batch and self.max_frames_per_batch < longest:
            problems.append(
                f"max_frames_per_batch {self.max_frames_per_batch} has no room for one recording of "
                f"max_duration_in_seconds {self.max_duration_in_seconds}, which is {longest} frames or more: raise the "
                f"one or lower the other to {longest_duration(self.max_frames_per_batch):g}"
            )
        return problems

    def _problems_of_the_steps(self) -> list[str]:
        problems = []
        if 0 < self.max_steps < self.warmup_steps:
            problems.append(
                f"warmup_steps {self.warmup_steps} is beyond max_steps {self.max_steps}: the learning rate would never "
                "arrive"
            )
        if self.eval_strategy in {"steps", "epoch"} and not self.do_eval:
            problems.append(
                f"eval_strategy {self.eval_strategy!r} contradicts do_eval false: drop one of them"
            )
        if self.eval_strategy == "steps" and self.eval_steps is None:
            problems.append("eval_strategy 'steps' needs eval_steps")
        problems += [
            f"{key} needs evaluations to tell which is best: set do_eval, and no eval_strategy 'no'"
            for key in ("load_best_model_at_end", "keep_best")
            if getattr(self, key) and not self.evaluates
        ]
        if self.load_best_model_at_end and self.save_strategy == "no":
            problems.append(
                "load_best_model_at_end needs checkpoints to choose from: drop save_strategy 'no'"
            )
        if self.greater_is_better:
            problems.append(
                f"greater_is_better contradicts metric_for_best_model {self.metric_for_best_model!r}, of which less is "
                "better: drop it"
            )
        return problems

    def _problems_of_the_strategy(self) -> list[str]:
        problems = []
        if self.early_stopping_patience and not self.evaluates:
            problems.append(
                "early_stopping_patience needs evaluations to judge by: set do_eval, and no eval_strategy 'no'"
            )
        if self.curriculum and self.max_steps < 0 and self.curriculum_epochs >= self.num_train_epochs:
            problems.append(
                f"curriculum_epochs {self.curriculum_epochs} is not below num_train_epochs {self.num_train_epochs:g}: "
                "the run would never see all recordings"
            )
        if self.max_steps > 0 and self.judge_stands_still(self.max_steps):
            problems.append(
                f"frozen_discriminator_steps {self.frozen_discriminator_steps}, from discriminator_start_step "
                f"{self.discriminator_start_step} on, do not end before max_steps {self.max_steps}: the discriminator "
                "would never learn"
            )
        if self.frozen_discriminator_steps and self.train_from_scratch:
            problems.append(
                "frozen_discriminator_steps needs a discriminator that knows speech, and train_from_scratch takes "
                "none: drop one of them"
            )
        problems += [
            f"{name} is in freeze, which is for the whole run, and in freeze_schedule: keep one"
            for name in sorted(set(self.freeze) & set(self.freeze_schedule))
        ]
        if self.freeze_schedule and self.train_from_scratch:
            problems.append(
                "freeze_schedule would keep modules as random as train_from_scratch makes them: choose one"
            )
        problems += [
            f"freeze_schedule and freeze leave nothing to learn at step {start}: let a module learn"
            for start in sorted({start for start, _ in self.freeze_schedule.values()})
            if self.frozen_modules(start) == set(MODULES)
        ]
        return problems

    @property
    def evaluates(self) -> bool:
        """Whether held-out recordings are listened to while it trains."""
        return self.do_eval and self.eval_strategy != "no"

    def judge_stands_still(self, joint: int) -> bool:
        """Whether a discriminator that is to judge before it learns would not learn in so many joint steps."""
        frozen = self.frozen_discriminator_steps
        return frozen > 0 and self.discriminator_start_step + frozen >= joint

    def frozen_modules(self, step: int) -> set[str]:
        """What of the generator does not learn at a step of joint training, from 0."""
        scheduled = {name for name, (start, end) in self.freeze_schedule.items() if start <= step < end}
        return {*self.freeze, *scheduled}

    def evaluation_interval(self, steps_per_epoch: int) -> int | None:
        """Steps from one evaluation to the next; None if there is none during training."""
        if self.eval_strategy == "no":
            return None
        return steps_per_epoch if self.eval_strategy == "epoch" else self.eval_steps or steps_per_epoch

    def save_interval(self, steps_per_epoch: int) -> int | None:
        """Steps from one checkpoint to the next; None if there is none during training."""
        return {"no": None, "epoch": steps_per_epoch, "steps": self.save_steps}[self.save_strategy]

    def logging_interval(self, steps_per_epoch: int) -> int | None:
        """Steps from one line of losses to the next; None if there is none."""
        return {"no": None, "epoch": steps_per_epoch, "steps": self.logging_steps}[self.logging_strategy]

    @property
    def augmentation(self) -> Augmentation:
        """How training's recordings are varied; false where they are not."""
        return Augmentation(
            self.augment_pitch, self.augment_speed, self.augment_noise_snr, self.augment_probability
        )

    @property
    def published_name(self) -> str:
        """The model's name in the store."""
        return self.model_name or slug((self.hub_model_id or self.project_name).rpartition("/")[2])

    @property
    def sample_texts(self) -> list[str]:
        """What is spoken at every evaluation."""
        return [*filter(None, [self.full_generation_sample_text, *self.eval_sample_texts])]

    @property
    def title(self) -> str:
        """What the run is called."""
        return self.run_name or f"{self.published_name}-{slug(self.output_dir.name)}"

    @property
    def run_id(self) -> str:
        """The run's name in the store: another folder's run is another, whatever both folders are called."""
        folder = hashlib.sha256(str(self.output_dir.resolve()).encode()).hexdigest()
        return self.run_name or f"{self.title[:_LONGEST_TITLE]}-{folder[:8]}"


def longest_duration(frames: int) -> float:
    """The largest ``max_duration_in_seconds``, in hundredths, that ``max_frames_per_batch`` has room for."""
    return math.floor(100 * frames / _FEWEST_FRAMES_PER_SECOND) / 100


def slug(text: str) -> str:
    """A name that the store accepts: lower case, digits, and single dashes for everything else."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"


def resolve(
    values: Mapping[str, Any], *, origin: str, typed: Collection[str] = (), options: Sequence[str] = ()
) -> TrainingConfig:
    """Check a configuration.

    Args:
        values: The keys as given. Null is the same as left out.
        origin: Where they came from, for the message.
        typed: Those of them that the command line gave.
        options: What else that command line takes, to name what a misspelt key is nearest to.

    Raises:
        ConfigError: Anything is wrong; it lists everything that is.
    """
    screened = screen(values)
    problems = screened.problems
    try:
        config = TrainingConfig.model_validate(screened.values)
    except ValidationError as error:
        problems += _problems_in(error, screened.values, typed, options)
    else:
        if not problems:
            return config
    # Outside of "except": the original error would show the values of secrets in a traceback.
    raise ConfigError(f"{origin} cannot be used:", list(dict.fromkeys(problems)))


def _problems_in(
    error: ValidationError, values: Mapping[str, Any], typed: Collection[str], options: Sequence[str]
) -> list[str]:
    """What pydantic found, and what it did not look for because it had found that."""
    describe = partial(_describe, values=values, typed=typed, options=options)
    problems = [line for problem in error.errors() for line in describe(problem)]
    wrong = {problem["loc"][0] for problem in error.errors() if problem["loc"]}
    if not wrong:
        return problems
    # Contradictions between keys are looked for only when every single value is right.
    stand_ins = {key: "stand-in" for key in ("model_name_or_path", "dataset_name") if key in wrong}
    try:
        TrainingConfig.model_validate({key: values[key] for key in values if key not in wrong} | stand_ins)
    except ValidationError as contradictions:
        problems += [line for problem in contradictions.errors() for line in describe(problem)]
    return problems


def _describe(
    problem: Mapping[str, Any], values: Mapping[str, Any], typed: Collection[str], options: Sequence[str]
) -> list[str]:
    """One pydantic problem in a user's words."""
    key = ".".join(str(part) for part in problem["loc"][:1])
    here = " on the command line" if key in typed else ""
    if problem["type"] == "extra_forbidden":
        known = [*TrainingConfig.model_fields, *KNOWN, *(options if here else ())]
        return [f"unknown key {key!r}{here}{nearest(key, known)}"]
    if problem["type"] == "missing":
        return [f"{key} is missing: {TrainingConfig.model_fields[key].description}"]
    if not problem["loc"]:
        return str(problem["ctx"]["error"]).splitlines()
    value = "the value" if key in SECRETS else repr(values.get(key))
    reason = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else problem["msg"].lower()
    return [f"{key}{here}: {value} will not do: {reason}"]
