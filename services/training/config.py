"""What a training run can be told, and what each key means.

The keys are those of ``finetune-hf-vits`` with their meanings and defaults, so that its JSON files run
unchanged, followed by the suite's own. Every wrong key and value of a configuration is reported at
once.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from shared.errors import ConfigError, nearest

#: Keys of ``transformers.TrainingArguments`` that old configurations carry and that change nothing here.
IGNORED: dict[str, str] = {
    "disable_tqdm": "progress is shown on a terminal and logged as lines elsewhere",
    "ddp_find_unused_parameters": "the wrappers are set up to need no search",
    "logging_dir": "logs go to OUTPUT_DIR/runs",
    "remove_unused_columns": "only the audio, text and speaker columns are read",
    "uroman_path": "uroman runs inside the process, without Perl",
    "overwrite_cache": "the cache is keyed by what the recordings are, so it is never stale",
    "logging_first_step": "the first step is always logged",
}

#: Older names of keys.
RENAMED: dict[str, str] = {"evaluation_strategy": "eval_strategy"}

#: Never shown and never written.
SECRETS = frozenset({"token", "hub_token"})


def _split_list(value: object) -> object:
    """``"a,b"`` and ``'["a", "b"]'`` → ``["a", "b"]``, and what means none → ``[]``."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return value
    if isinstance(value, str):
        value = value.split(",") if value else []
    return [] if value is None or value == ["none"] else value


#: What an evaluation measures, for choosing the best checkpoints; of each, less is better.
METRICS = ("mel", "kl", "duration", "generator", "feature_maps", "discriminator", "mel_distance")

_METRIC_ALIASES = {"loss": "mel", "gen": "generator", "fmaps": "feature_maps", "disc": "discriminator"}


def _metric_name(value: object) -> object:
    """``eval_loss``, ``val_loss_fmaps`` and the like → one of ``METRICS``."""
    if value is None:
        return "mel"
    if not isinstance(value, str):
        return value
    name = value.removeprefix("eval_").removeprefix("val_").removeprefix("loss_")
    return _METRIC_ALIASES.get(name, name)


def _optimizer_name(value: object) -> object:
    """Every AdamW of Transformers is PyTorch's."""
    is_adamw = isinstance(value, str) and value.removeprefix("paged_").startswith("adamw_")
    return "adamw_torch" if is_adamw else value


Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Strategy = Literal["no", "steps", "epoch"]
Module = Literal["text_encoder", "duration_predictor", "flow", "posterior_encoder", "decoder"]
Preset = Literal["small-encoder", "light-decoder"]
Tracker = Literal["tensorboard", "wandb", "all"]


class TrainingConfig(BaseModel):
    """One training run."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

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
    feature_extractor_name: str | None = Field(
        None, description="accepted; features follow the model's own rate"
    )
    cache_dir: str | None = Field(None, description="where downloads from the hub are kept")
    model_revision: str = Field("main", description="branch, tag or commit on the hub")
    token: str | None = Field(
        None, description="hub token; better given as the environment's HF_TOKEN", repr=False
    )
    override_speaker_embeddings: bool = Field(False, description="start with fresh speaker embeddings")
    override_vocabulary_embeddings: bool = Field(False, description="start with fresh token embeddings")
    espeak_voice: str | None = Field(
        None, description="phonemise by this espeak-ng voice instead of the model's"
    )
    train_from_scratch: bool = Field(
        False,
        description="take only the architecture (of config_name or of the base), with VITS's own initialisation",
    )
    allow_missing_weights: bool = Field(
        False,
        description="warm start: initialise afresh, and list, what the base lacks or has in another shape",
    )
    model_presets: Annotated[list[Preset], BeforeValidator(_split_list)] = Field(
        [],
        description="smaller networks: small-encoder (hidden size 128, 4 layers, feed-forward 512), light-decoder "
        "(HiFi-GAN's smaller residual blocks)",
    )
    discriminator_periods: Annotated[list[Positive], BeforeValidator(_split_list)] = Field(
        [2, 3, 5, 7, 11], description="periods of the discriminator's period networks; fewer are faster"
    )
    vocabulary_additions: Annotated[list[str], BeforeValidator(_split_list)] = Field(
        [], description="symbols to add to the vocabulary; known ones keep their embeddings"
    )
    freeze: Annotated[list[Module], BeforeValidator(_split_list)] = Field(
        [], description="modules that do not learn"
    )
    sampling_rate: Positive | None = Field(
        None, description="rate of the new model in Hz; only with train_from_scratch"
    )

    # -- Data ----------------------------------------------------------------------------------------
    project_name: str = Field("vits_finetuning", description="names the model, where nothing else does")
    dataset_name: str | None = Field(
        None, description="a folder with audio and metadata, or a dataset on the hub"
    )
    dataset_config_name: str | None = Field(None, description="configuration of a hub dataset")
    preprocessing_num_workers: Positive | None = Field(None, description="processes that decode audio")
    max_train_samples: Positive | None = Field(
        None, description="train on the first N usable recordings only"
    )
    max_eval_samples: Positive | None = Field(None, description="evaluate on the first N recordings only")
    audio_column_name: str = "audio"
    text_column_name: str = "text"
    speaker_id_column_name: str | None = None
    filter_on_speaker_id: int | str | None = Field(None, description="keep only this speaker")
    max_tokens_length: Positive = Field(450, description="leave out longer transcripts")
    max_duration_in_seconds: float = Field(20.0, gt=0, description="leave out longer recordings")
    min_duration_in_seconds: float = Field(0.0, ge=0, description="leave out shorter recordings")
    preprocessing_only: bool = Field(False, description="fill the cache and stop")
    train_split_name: str = "train"
    eval_split_name: str = "test"
    do_lower_case: bool = Field(False, description="lower-case every text, the sample text included")
    do_normalize: bool = Field(False, description="scale every recording to the same RMS level")
    trim_silence: bool = Field(False, description="cut silence from both ends of every recording")
    loudness: float | None = Field(
        None, lt=0, ge=-70, description="bring every recording to this loudness in LUFS, such as -23"
    )
    max_frames_per_batch: Positive | None = Field(
        None,
        description="frames of a batch on one device, padding included; a batch closes at this many or at "
        "per_device_train_batch_size recordings, whichever comes first",
    )
    full_generation_sample_text: str | None = Field(None, description="spoken at every evaluation")
    eval_sample_texts: Annotated[list[str], BeforeValidator(_split_list)] = Field(
        [], description="more texts to speak at every evaluation"
    )

    # -- Training ------------------------------------------------------------------------------------
    output_dir: Path = Field(Path("./output"), description="final model, checkpoint-N/ and runs/")
    overwrite_output_dir: bool = Field(False, description="start over even if output_dir has checkpoints")
    do_train: bool = True
    do_eval: bool = False
    num_train_epochs: float = Field(3.0, gt=0)
    max_steps: int = Field(-1, description="steps of joint training; overrides num_train_epochs")
    per_device_train_batch_size: Positive = 8
    per_device_eval_batch_size: Positive = 8
    gradient_accumulation_steps: Positive = 1
    gradient_checkpointing: bool = False
    learning_rate: float = Field(2e-5, gt=0)
    adam_beta1: float = Field(0.8, ge=0, lt=1)
    adam_beta2: float = Field(0.99, ge=0, lt=1)
    adam_epsilon: float = Field(1e-9, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, ge=0, description="0 for no clipping")
    discriminator_max_grad_norm: float | None = Field(None, ge=0, description="max_grad_norm when left out")
    optim: Annotated[Literal["adamw_torch", "sgd"], BeforeValidator(_optimizer_name)] = "adamw_torch"
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="keep a moving average of the generator's weights, such as 0.999, which is evaluated and published",
    )
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="share of all steps over which the rate rises")
    warmup_steps: int = Field(0, ge=0, description="overrides warmup_ratio")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    do_step_schedule_per_epoch: bool = Field(
        True, description="decay by lr_decay each epoch, not by lr_scheduler_type"
    )
    lr_decay: float = Field(0.999875, gt=0, le=1)
    group_by_length: bool = Field(False, description="batch recordings of similar length together")
    seed: int = 42
    full_determinism: bool = Field(
        False, description="deterministic algorithms only: slower, and the same to the bit every time"
    )
    torch_compile: bool = Field(False, description="compile the networks; pays in long runs")
    fp16: bool = False
    bf16: bool = False
    dataloader_num_workers: int = Field(0, ge=0)
    dataloader_pin_memory: bool = True
    weight_disc: Weight = 3.0
    weight_gen: Weight = 1.0
    weight_fmaps: Weight = 1.0
    weight_kl: Weight = 1.5
    weight_duration: Weight = 1.0
    weight_mel: Weight = 35.0

    # -- Logging, evaluation, checkpoints ------------------------------------------------------------
    logging_strategy: Strategy = Field(
        "steps", description="log losses every logging_steps, once an epoch, or never"
    )
    logging_steps: Positive = 10
    eval_strategy: Strategy | None = Field(
        None,
        description="evaluate every eval_steps, once an epoch, or never; by eval_steps when left out",
    )
    eval_steps: Positive | None = Field(
        None, description="evaluate every N steps; once an epoch when left out"
    )
    max_eval_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="most of the run's time that evaluations may take; past it they become rarer",
    )
    save_strategy: Strategy = Field(
        "steps", description="write checkpoints every save_steps, once an epoch, or only at the end"
    )
    save_steps: Positive = 500
    save_total_limit: Positive | None = Field(None, description="keep only the newest N checkpoint folders")
    keep_best: int = Field(0, ge=0, description="keep the N best checkpoints as well as the newest")
    metric_for_best_model: Annotated[str, BeforeValidator(_metric_name)] = Field(
        "mel", description=f"what best means: {', '.join(METRICS)}"
    )
    greater_is_better: bool | None = Field(None, description="false for every metric there is")
    load_best_model_at_end: bool = Field(
        False, description="publish the best checkpoint's weights instead of the last ones"
    )
    report_to: Annotated[list[Tracker], BeforeValidator(_split_list)] = Field(
        ["tensorboard"], description="where curves go; none for nowhere"
    )
    wandb_project: str | None = Field(
        None, description="project at Weights & Biases; project_name when left out"
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="serve vits_training_* metrics to Prometheus on this port"
    )
    metrics_host: str = Field("127.0.0.1", description="address of metrics_port")
    resume_from_checkpoint: str | bool | None = Field(
        None, description="a checkpoint folder; by default the newest complete one in output_dir"
    )
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_token: str | None = Field(None, repr=False)
    hub_private_repo: bool = False

    # -- The suite's own -----------------------------------------------------------------------------
    store: str | None = Field(None, description="object store that every checkpoint is published to")
    model_name: str | None = Field(
        None, description="the model's name in the store; from project_name if left out"
    )
    run_name: str | None = Field(
        None, description="the run's name in the store; from model and output_dir if left out"
    )
    alias: str = Field("latest", description="alias that is moved to the final model")
    warm_up_new_modules_steps: int | None = Field(
        None,
        ge=0,
        description="first stage, for a base whose posterior encoder is new: steps that train only what is new "
        "(by default a quarter as many again as the joint steps; 0 for none)",
    )
    new_modules_learning_rate: float = Field(5e-4, gt=0, description="learning rate of that first stage")
    discriminator_learning_rate: float | None = Field(None, gt=0, description="learning_rate when left out")

    @model_validator(mode="before")
    @classmethod
    def _drop_ignored(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {RENAMED.get(key, key): value for key, value in values.items() if key not in IGNORED}

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        problems = []
        if self.min_duration_in_seconds >= self.max_duration_in_seconds:
            problems.append(
                f"min_duration_in_seconds {self.min_duration_in_seconds} is not below max_duration_in_seconds "
                f"{self.max_duration_in_seconds}: no recording could pass"
            )
        if self.fp16 and self.bf16:
            problems.append("fp16 and bf16 are both true: choose one")
        if self.dataset_name is None:
            problems.append(
                "dataset_name is missing: a folder with audio and metadata, or a dataset on the hub"
            )
        if not (self.do_train or self.do_eval or self.preprocessing_only):
            problems.append("do_train, do_eval and preprocessing_only are all false: there is nothing to do")
        if self.push_to_hub and not self.hub_model_id:
            problems.append("push_to_hub needs hub_model_id, such as 'my-name/my-voice'")
        if problems:
            raise ValueError("\n".join(problems))
        return self

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
    def published_name(self) -> str:
        """The model's name in the store."""
        return self.model_name or slug((self.hub_model_id or self.project_name).rpartition("/")[2])

    @property
    def run_id(self) -> str:
        """The run's name in the store."""
        return self.run_name or f"{self.published_name}-{slug(self.output_dir.name)}"


def slug(text: str) -> str:
    """A name that the store accepts: lower case, digits, and single dashes for everything else."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"


def _describe(problem: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """One pydantic problem in a user's words."""
    key = ".".join(str(part) for part in problem["loc"][:1])
    if problem["type"] == "extra_forbidden":
        return [f"unknown key {key!r}{nearest(key, list(TrainingConfig.model_fields))}"]
    if problem["type"] == "missing":
        return [f"{key} is missing: {TrainingConfig.model_fields[key].description}"]
    if not problem["loc"]:
        return str(problem["ctx"]["error"]).splitlines()
    value = "the value" if key in SECRETS else repr(values.get(key))
    return [f"{key}: {value} will not do: {problem['msg'].lower()}"]


def resolve(values: Mapping[str, Any], *, origin: str) -> TrainingConfig:
    """Check a configuration.

    Args:
        values: The keys as given.
        origin: Where they came from, for the message.

    Raises:
        ConfigError: Anything is wrong; it lists everything that is.
    """
    try:
        return TrainingConfig.model_validate(dict(values))
    except ValidationError as error:
        problems = [line for problem in error.errors() for line in _describe(problem, values)]
        problems += _problems_across(
            values, {problem["loc"][0] for problem in error.errors() if problem["loc"]}
        )
        # Not "from error": it would show the values of secrets in a traceback.
        raise ConfigError(f"{origin} cannot be used:", list(dict.fromkeys(problems))) from None


def _problems_across(values: Mapping[str, Any], wrong: Set[int | str]) -> list[str]:
    """What is wrong between keys; pydantic asks that only when every single value is right."""
    if not wrong:
        return []
    stand_ins = {key: "stand-in" for key in ("model_name_or_path", "dataset_name") if key in wrong}
    try:
        TrainingConfig.model_validate(
            {key: value for key, value in values.items() if key not in wrong} | stand_ins
        )
    except ValidationError as error:
        return [line for problem in error.errors() for line in _describe(problem, values)]
    return []


def read_json(path: Path) -> dict[str, Any]:
    """Read a configuration file.

    Args:
        path: The file. A bare name that is no file here is looked up among the shipped configurations, in the
            folder ``$VITS_CONFIGS`` (default: ``configs``).

    Raises:
        ConfigError: It is missing, not JSON, or not an object.
    """
    places = [path]
    if path.name == str(path):
        places.append(Path(os.environ.get("VITS_CONFIGS") or "configs") / path)
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        siblings = sorted({p.name for place in places for p in place.parent.glob("*.json")})
        others = "".join(f", nor does {place}" for place in places[1:])
        raise ConfigError(f"{path} does not exist{others}{nearest(path.name, siblings)}", [])
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not JSON:", [str(error)]) from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} is not a configuration:", ["it must be one JSON object of keys and values"]
        )
    return values


def _none_or(argument: str) -> str | None:
    return None if argument in {"None", "null"} else argument


def read_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """``--key value``, ``--key=value`` and a bare ``--flag`` (true) into keys and values.

    Raises:
        ConfigError: A value has no key before it.
    """
    values: dict[str, Any] = {}
    key: str | None = None
    stray = []
    for argument in arguments:
        if argument.startswith("--"):
            key, equals, value = argument[2:].partition("=")
            key = key.replace("-", "_")
            values[key] = _none_or(value) if equals else True
            key = None if equals else key
        elif key is None:
            stray.append(f"{argument!r} belongs to no key: write --key value")
        else:
            values[key] = _none_or(argument)
            key = None
    if stray:
        raise ConfigError("The command line cannot be used:", stray)
    return values


def load(path: Path | None, overrides: Mapping[str, Any]) -> TrainingConfig:
    """A configuration from a file, the command line over it, and secrets from the environment.

    Raises:
        ConfigError: Anything is wrong; it lists everything that is.
    """
    values = (read_json(path) if path else {}) | dict(overrides)
    token = os.environ.get("HF_TOKEN")
    if token and not values.get("token"):
        values["token"] = token
    return resolve(values, origin=str(path) if path else "The command line")
