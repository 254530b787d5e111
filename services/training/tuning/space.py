"""What a search tries: for each key of the configuration its choices, or a range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.training.config import TrainingConfig, resolve
from services.training.config_sources import read_json
from shared.errors import ConfigError, nearest

if TYPE_CHECKING:
    from optuna import Trial

#: Keys that a search may change: they decide how a model learns, never from what, for how long or how it is judged.
TUNABLE = (
    "learning_rate", "discriminator_learning_rate", "new_modules_learning_rate", "lr_decay", "lr_scheduler_type",
    "do_step_schedule_per_epoch", "warmup_ratio", "warmup_steps", "warm_up_new_modules_steps", "optim", "adam_beta1",
    "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm", "discriminator_max_grad_norm", "ema_decay",
    "per_device_train_batch_size", "gradient_accumulation_steps", "group_by_length", "weight_disc", "weight_gen",
    "weight_fmaps", "weight_kl", "weight_duration", "weight_mel", "kl_annealing_steps", "curriculum",
    "curriculum_epochs", "curriculum_start", "discriminator_start_step", "frozen_discriminator_steps",
    "alignment_noise", "alignment_noise_steps", "stft_discriminator",
)  # fmt: skip

#: What is searched where no file says otherwise.
DEFAULT_SPACE: dict[str, Any] = {
    "learning_rate": {"low": 1e-6, "high": 1e-4, "log": True},
    "weight_mel": [25.0, 35.0, 45.0],
    "weight_kl": {"low": 1.0, "high": 2.0},
    "weight_disc": {"low": 2.0, "high": 4.0},
    "warmup_ratio": [0.0, 0.01, 0.05],
}

#: Keys that mean another key's value where they are left out.
_STANDS_FOR = {
    "discriminator_learning_rate": "learning_rate",
    "discriminator_max_grad_norm": "max_grad_norm",
}


@dataclass(frozen=True)
class Choices:
    """A key that takes one of some values."""

    values: tuple[Any, ...]

    def suggest(self, trial: Trial, key: str) -> Any:
        """One of them, the trial's."""
        return trial.suggest_categorical(key, self.values)

    def with_value(self, value: Any) -> Choices:
        """The same with a value that may be new."""
        return self if value in self.values else Choices((*self.values, value))


@dataclass(frozen=True)
class Range:
    """A key that takes any number between two, both included."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def suggest(self, trial: Trial, key: str) -> float:
        """One of them, the trial's."""
        if self.whole:
            return trial.suggest_int(key, round(self.low), round(self.high), log=self.log)
        return trial.suggest_float(key, self.low, self.high, log=self.log)

    def with_value(self, value: float) -> Range:
        """The same, made as wide as to have a value in it."""
        return Range(min(self.low, value), max(self.high, value), self.log, self.whole)


@dataclass(frozen=True)
class Space:
    """What is tried, and where the configuration itself lies in it."""

    keys: dict[str, Choices | Range]
    default: dict[str, Any]
    """What the configuration has; in the space, which is widened to hold it."""

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """A trial's values."""
        return {key: one.suggest(trial, key) for key, one in self.keys.items()}

    def described(self) -> dict[str, str]:
        """What every key can take, in words."""
        return {key: _described(one) for key, one in self.keys.items()}


def _described(one: Choices | Range) -> str:
    if isinstance(one, Choices):
        return ", ".join("none" if value is None else str(value) for value in one.values)
    return f"{one.low:g} to {one.high:g}" + (", logarithmic" if one.log else "")


def read_space(path: Path | None, config: TrainingConfig) -> Space:
    """The search space of a JSON file, or the default one.

    A list holds the values of a key; ``{"low": 1e-6, "high": 1e-4, "log": true}`` is a range, of whole numbers
    where the key's are.

    Args:
        path: The file; ``DEFAULT_SPACE`` when left out.
        config: What is tuned. Its own values become part of the space.

    Raises:
        ConfigError: A key or a value cannot be used; it lists all that cannot.
    """
    given = dict(DEFAULT_SPACE) if path is None else read_json(path)
    if path is None and config.warmup_steps:
        given.pop("warmup_ratio")  # which warmup_steps overrides
    problems: list[str] = [] if given else ["it names no key"]
    if "warmup_ratio" in given and (config.warmup_steps or "warmup_steps" in given):
        problems.append("warmup_ratio has no effect beside warmup_steps: keep one")
    keys: dict[str, Choices | Range] = {}
    for key, value in given.items():
        read = _read(key, value, config)
        if isinstance(read, list):
            problems += read
        else:
            keys[key] = read
    default = {key: _value_of(config, key) for key in keys}
    for key, one in keys.items():
        if isinstance(one, Range) and not isinstance(default[key], int | float):
            problems.append(f"{key}: give the configuration a {key}, or a list with null in it")
    if problems:
        raise ConfigError(f"{path or 'The search space'} cannot be searched:", problems)
    return Space({key: one.with_value(default[key]) for key, one in keys.items()}, default)


def _value_of(config: TrainingConfig, key: str) -> Any:
    value = getattr(config, key)
    return getattr(config, _STANDS_FOR[key]) if value is None and key in _STANDS_FOR else value


def _read(key: str, value: Any, config: TrainingConfig) -> Choices | Range | list[str]:
    """One key's values, or what is wrong with them."""
    if key not in TUNABLE:
        return [f"{key} cannot be searched{nearest(key, TUNABLE)} (what can: {', '.join(TUNABLE)})"]
    if isinstance(value, list) and value:
        return _problems_of(key, value, config) or Choices(tuple(value))
    if isinstance(value, dict) and {"low", "high"} <= value.keys() <= {"low", "high", "log"}:
        low, high, log = value["low"], value["high"], value.get("log", False)
        numbers = all(isinstance(end, int | float) and math.isfinite(end) for end in (low, high))
        if not numbers or not low < high or not isinstance(log, bool) or (log and low <= 0):
            return [f"{key}: {value} is no range: low below high, and above 0 where log is true"]
        whole = TrainingConfig.model_fields[key].annotation not in {float, float | None}
        return _problems_of(key, [low, high], config) or Range(low, high, log, whole)
    return [f'{key}: {value!r} is neither a list of values nor {{"low": …, "high": …, "log": true}}']


def _problems_of(key: str, values: list[Any], config: TrainingConfig) -> list[str]:
    """What a configuration has against values of a key."""
    problems: list[str] = []
    for value in values:
        try:
            resolve(config.model_dump() | {key: value}, origin="")
        except ConfigError as error:
            problems += error.problems
    return list(dict.fromkeys(problems))
