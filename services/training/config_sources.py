"""Where a configuration comes from: JSON files, the command line over them, secrets from the environment."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.training.config import SECRETS, TrainingConfig, resolve
from services.training.hf_arguments import screen
from shared.errors import ConfigError, nearest
from shared.runs import CONFIG_FILE

#: A string (kept), or a comment to the end of its line.
_COMMENT = re.compile(r'("(?:\\.|[^"\\\n])*")|//[^\n]*')

#: What the hub takes for a name: its owner may be left out.
_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")

#: A string (kept), or a comma between a value and a closing bracket.
_TRAILING_COMMA = re.compile(r'("(?:\\.|[^"\\\n])*")|(?<![\[{,\s]),(?=\s*[}\]])')


@dataclass(frozen=True)
class _Idle:
    """Keys that some configurations make no use of.

    Attributes:
        keys: They.
        when: Whether a configuration is one of those.
        because: Why, and what to set; ``{config.KEY}`` is filled in.
    """

    keys: tuple[str, ...]
    when: Callable[[TrainingConfig], bool]
    because: str


def _unless(owner: str, *keys: str, example: str) -> _Idle:
    """Keys that only say how another is done."""
    return _Idle(keys, lambda config: not getattr(config, owner), f"there is no {owner}; set {example}")


_HELD_OUT_KEYS = ("eval_split_name", "max_eval_samples", "per_device_eval_batch_size")
_SAMPLE_KEYS = ("full_generation_sample_text", "eval_sample_texts", "eval_speakers")
_WHEN_KEYS = ("eval_steps", "max_eval_share")

#: What has no effect, and why. Of several rows for a key the first that applies is told. Keys that another overrides by
#: their very meaning, such as ``num_train_epochs``, are not here; nor what only the base or the data decides.
_IDLE: tuple[_Idle, ...] = (
    _Idle(
        (*_WHEN_KEYS, *_HELD_OUT_KEYS, *_SAMPLE_KEYS),
        lambda config: config.do_train and config.eval_strategy == "no",
        "eval_strategy is no; leave it out, and set do_eval true",
    ),
    _Idle(
        ("eval_steps",),
        lambda config: config.eval_strategy == "epoch",
        "eval_strategy is epoch; set it to steps",
    ),
    _Idle(
        _WHEN_KEYS,
        lambda config: not (config.do_eval or config.sample_texts),
        "do_eval is false, and there is no text to speak; set do_eval true",
    ),
    _Idle(
        ("eval_speakers",),
        lambda config: not config.sample_texts,
        "there is no text to speak; set full_generation_sample_text",
    ),
    _Idle(_HELD_OUT_KEYS, lambda config: not config.do_eval, "do_eval is false; set it true"),
    _Idle(
        ("metric_for_best_model", "greater_is_better"),
        lambda config: (
            not (config.keep_best or config.load_best_model_at_end or config.early_stopping_patience)
        ),
        "nothing asks which is best; set keep_best, load_best_model_at_end or early_stopping_patience, with "
        "do_eval true",
    ),
    _Idle(
        ("save_steps",),
        lambda config: config.save_strategy != "steps",
        "save_strategy is {config.save_strategy}; set it to steps",
    ),
    _Idle(
        ("logging_steps",),
        lambda config: config.logging_strategy != "steps",
        "logging_strategy is {config.logging_strategy}; set it to steps",
    ),
    _Idle(
        ("lr_decay",),
        lambda config: not config.do_step_schedule_per_epoch,
        "do_step_schedule_per_epoch is false; set it true",
    ),
    _Idle(
        ("lr_scheduler_type",),
        # The usual one stands in many files that mean nothing by it.
        lambda config: config.do_step_schedule_per_epoch and config.lr_scheduler_type != "linear",
        "do_step_schedule_per_epoch is true; set it false",
    ),
    _Idle(
        ("adam_beta1", "adam_beta2", "adam_epsilon"),
        lambda config: config.optim == "sgd",
        "optim is sgd; set it to adamw_torch",
    ),
    _Idle(
        ("augment_probability",),
        lambda config: not config.augmentation,
        "nothing is varied; set augment_pitch, augment_speed or augment_noise_snr",
    ),
    _Idle(
        ("do_normalize",),
        lambda config: config.do_normalize and config.loudness is not None,
        "every recording is brought to loudness {config.loudness:g}; keep one of them",
    ),
    _Idle(
        ("wandb_project",),
        lambda config: not {"wandb", "all"} & set(config.report_to),
        "report_to has no wandb; set it to wandb or all",
    ),
    _Idle(
        ("hub_private_repo",),
        lambda config: config.hub_private_repo and not config.push_to_hub,
        "push_to_hub is false; set it true",
    ),
    _unless("curriculum", "curriculum_epochs", "curriculum_start", example="curriculum length"),
    _unless("alignment_noise", "alignment_noise_steps", example="alignment_noise 0.01"),
    _unless(
        "early_stopping_patience",
        "early_stopping_min_delta",
        "early_stopping_smoothing",
        example="early_stopping_patience 5, with do_eval true",
    ),
    _unless(
        "reconstruction_stage_steps",
        "reconstruction_stage_learning_rate",
        "reconstruction_stage_weight_kl",
        example="reconstruction_stage_steps 900",
    ),
    _unless("text_stage_steps", "text_stage_learning_rate", example="text_stage_steps 900"),
    _Idle(
        ("metrics_host",),
        lambda config: config.metrics_port is None,  # 0 is any that is free
        "there is no metrics_port; set metrics_port 9100",
    ),
)


#: Layers by the memory of a GPU: up to 8 GB, up to 16 GB, more; and for a voice that will be published.
PRESETS = {
    "8gb": "low-memory.json",
    "16gb": "standard.json",
    "24gb": "fast-experiment.json",
    "production": "production.json",
}


def load(
    paths: Sequence[Path], overrides: Mapping[str, Any], *, options: Sequence[str] = ()
) -> tuple[TrainingConfig, list[str]]:
    """A configuration from files, each over the one before it, and the command line over them all.

    ``preset``, among the command line's keys, names one more file, which goes over the others. Secrets that neither
    gives come from the environment.

    Args:
        paths: The files.
        overrides: The keys of the command line.
        options: What else that command line takes, to name what a misspelt key is nearest to.

    Returns:
        The configuration, and what a user should know about it, one line each.

    Raises:
        ConfigError: Anything is wrong; it lists everything that is.
    """
    overrides = dict(overrides)
    if "preset" in overrides:
        paths = [*paths, _preset(overrides.pop("preset"))]
    given: dict[str, Any] = {}
    unchosen: set[str] = set()
    for path in paths:
        values = read_json(path)
        # A run's stored configuration has every key, whether anybody chose it or not.
        unchosen = {*unchosen, *values} if path.name == CONFIG_FILE else unchosen - values.keys()
        given |= values
    unchosen -= overrides.keys()
    given |= overrides
    screened = screen(given)
    secrets = {
        key: os.environ.get(variable) for key, variable in SECRETS.items() if key not in screened.values
    }
    sources = [*map(str, paths), *(["the command line"] if paths and overrides else [])]
    config = resolve(
        given | secrets,
        origin=" with ".join(sources) or "The command line",
        typed=overrides,
        options=["config", "preset", *options],
    )
    idle = _without_effect(screened.values.keys() - unchosen, config)
    return config, screened.remarks + _remarks(screened.values, config) + idle


def _preset(name: object) -> Path:
    """The file of a preset.

    Raises:
        ConfigError: There is no such preset, or its file is not where it is looked for.
    """
    known = str(name).lower()
    if known not in PRESETS:
        raise ConfigError(
            f"There is no preset {name!r}{nearest(known, list(PRESETS))}", [f"there are {', '.join(PRESETS)}"]
        )
    path = Path(PRESETS[known])
    places = _places(path)
    if not any(place.is_file() for place in places):
        remedy = (
            "set $VITS_CONFIGS to the folder of the suite's configurations (configs in its repository), or leave "
            f"--preset out and give the file itself: --config FOLDER/{path}"
        )
        raise ConfigError(
            f"--preset {known} is the shipped configuration {path}, which is not found:",
            [f"looked for {' and '.join(str(place.absolute()) for place in places)}", remedy],
        )
    return path


def _places(path: Path) -> list[Path]:
    """Where a configuration file is looked for, in order; a bare name among the shipped ones too."""
    is_bare = path.name == str(path)
    return [path, *([Path(os.environ.get("VITS_CONFIGS") or "configs") / path] if is_bare else [])]


def _remarks(given: Mapping[str, Any], config: TrainingConfig) -> list[str]:
    """What is in a configuration and does nothing, or not what one might think."""
    found = [
        f"{key} is given where others can read it; rather set {variable} in the environment. It is neither shown nor "
        "stored."
        for key, variable in SECRETS.items()
        if given.get(key)
    ]
    if given.get("optim", config.optim) != config.optim:
        found.append(f"optim {given['optim']} is read as {config.optim}")
    # At 0 the discriminator does not learn, and 1 is the loss as it is: both do what they say.
    if config.optim == "adamw_torch" and config.weight_disc not in {0, 1, 3}:
        found.append(
            f"weight_disc {config.weight_disc:g} has next to no effect: AdamW divides by the size of the gradients and "
            "undoes it. Set discriminator_learning_rate instead."
        )
    if config.keep_best and config.save_total_limit and config.save_total_limit <= config.keep_best:
        found.append(
            f"save_total_limit {config.save_total_limit} is for the newest checkpoints: keep_best adds up to "
            f"{config.keep_best} more"
        )
    if config.push_to_hub and not _HUB_NAME.fullmatch(config.hub_model_id or ""):
        found.append(
            f"hub_model_id {config.hub_model_id} is no name that the hub accepts (a placeholder?): it will refuse the "
            "model when that is pushed at the end. Give --hub_model_id my-name/my-voice, or --push_to_hub false."
        )
    return found


def _without_effect(chosen: set[str], config: TrainingConfig) -> list[str]:
    """What of the keys that somebody chose the configuration makes no use of, a line for each reason."""
    found, left = [], set(chosen)
    for row in _IDLE:
        idle = [key for key in row.keys if key in left]
        if idle and row.when(config):
            left.difference_update(idle)
            have = "has" if len(idle) == 1 else "have"
            found.append(f"{', '.join(idle)} {have} no effect: {row.because.format(config=config)}")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Read a configuration file: JSON, in which ``//`` comments and trailing commas are allowed too.

    Keys that begin with ``_`` or ``//`` are comments.

    Args:
        path: The file. A bare name that is no file here is looked up among the shipped configurations, in the
            folder ``$VITS_CONFIGS`` (default: ``configs``).

    Raises:
        ConfigError: It is missing, not JSON, not an object, or gives a key twice.
    """
    places = _places(path)
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        siblings = sorted({p.name for place in places for p in place.parent.glob("*.json")})
        others = "".join(f", nor does {place}" for place in places[1:])
        raise ConfigError(f"{path} does not exist{others}{nearest(path.name, siblings)}", [])
    try:
        text = file.read_text(encoding="utf-8-sig")
        for extra in (_COMMENT, _TRAILING_COMMA):
            text = extra.sub(lambda match: match[1] or "", text)
        values = json.loads(text, object_pairs_hook=_Pairs)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not JSON:", [str(error)]) from error
    if not isinstance(values, _Pairs):
        raise ConfigError(
            f"{path} is not a configuration:", ["it must be one JSON object of keys and values"]
        )
    if values.repeated:
        raise ConfigError(f"{path} gives keys twice:", [f"{key}: keep one" for key in values.repeated])
    return dict(values)


class _Pairs(dict[str, Any]):
    """A JSON object without its comments, which remembers what stood in it twice."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        pairs = [(key, value) for key, value in pairs if not key.startswith(("_", "//"))]
        super().__init__(pairs)
        keys = [key for key, _ in pairs]
        self.repeated = [key for key in self if keys.count(key) > 1]


def _none_or(argument: str) -> str | None:
    return None if argument in {"None", "null"} else argument


def read_overrides(arguments: Sequence[str]) -> tuple[list[Path], dict[str, Any]]:
    """The words of the command line.

    Files stand first, or each behind a ``--config``; then come ``--key value``, ``--key=value`` and a bare
    ``--flag`` (true).

    Returns:
        The configuration files, and the keys over them.

    Raises:
        ConfigError: A value has no key before it, or a ``--config`` has no file.
    """
    paths: list[Path] = []
    values: dict[str, Any] = {}
    problems = []
    key: str | None = "config"
    for argument in arguments:
        if argument.startswith("--"):
            key, equals, value = argument[2:].partition("=")
            key = key.replace("-", "_")
            if not equals:
                values[key] = True
                continue
        elif key is None:
            problems.append(
                f"{argument!r} belongs to no key: write --key value, and more than one value as --key one,two"
            )
            continue
        else:
            value = argument
        if key == "config":
            paths.append(Path(value))
            values.pop(key, None)
        else:
            values[key] = _none_or(value)
            key = None
    if "config" in values:
        problems.append("--config has no file behind it")
    if problems:
        raise ConfigError("The command line cannot be used:", problems)
    return paths, values
