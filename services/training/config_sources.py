"""Where a configuration comes from: JSON files, the command line over them, secrets from the environment."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.training.config import SECRETS, TrainingConfig, resolve
from services.training.hf_arguments import screen
from shared.errors import ConfigError, nearest

#: A string (kept), or a comment to the end of its line.
_COMMENT = re.compile(r'("(?:\\.|[^"\\\n])*")|//[^\n]*')

#: What the hub takes for a name: its owner may be left out.
_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")

#: A string (kept), or a comma between a value and a closing bracket.
_TRAILING_COMMA = re.compile(r'("(?:\\.|[^"\\\n])*")|(?<![\[{,\s]),(?=\s*[}\]])')


#: Keys that only say how another is done.
_BELONGS_TO = {
    "curriculum_epochs": "curriculum",
    "curriculum_start": "curriculum",
    "alignment_noise_steps": "alignment_noise",
    "early_stopping_min_delta": "early_stopping_patience",
    "early_stopping_smoothing": "early_stopping_patience",
}


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
    for path in paths:
        given |= read_json(path)
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
    return config, screened.remarks + _remarks(screened.values, config)


def _preset(name: object) -> Path:
    """The file of a preset.

    Raises:
        ConfigError: There is no such preset.
    """
    known = str(name).lower()
    if known not in PRESETS:
        raise ConfigError(
            f"There is no preset {name!r}{nearest(known, list(PRESETS))}", [f"there are {', '.join(PRESETS)}"]
        )
    return Path(PRESETS[known])


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
    if config.do_step_schedule_per_epoch and config.lr_scheduler_type != "linear":
        found.append(
            f"lr_scheduler_type {config.lr_scheduler_type} has no effect unless do_step_schedule_per_epoch is false"
        )
    # At 0 the discriminator does not learn, and 1 is the loss as it is: both do what they say.
    if config.optim == "adamw_torch" and config.weight_disc not in {0, 1, 3}:
        found.append(
            f"weight_disc {config.weight_disc:g} has next to no effect: AdamW divides by the size of the gradients and "
            "undoes it. Set discriminator_learning_rate instead."
        )
    if config.do_normalize and config.loudness is not None:
        found.append(
            f"do_normalize has no effect with loudness {config.loudness:g}, which every recording is brought to"
        )
    if config.keep_best and config.save_total_limit and config.save_total_limit <= config.keep_best:
        found.append(
            f"save_total_limit {config.save_total_limit} is for the newest checkpoints: keep_best adds up to "
            f"{config.keep_best} more"
        )
    found += [
        f"{key} has no effect without {owner}"
        for key, owner in _BELONGS_TO.items()
        if key in given and not getattr(config, owner)
    ]
    if config.wandb_project and not {"wandb", "all"} & set(config.report_to):
        found.append("wandb_project has no effect unless report_to has wandb")
    if config.push_to_hub and not _HUB_NAME.fullmatch(config.hub_model_id or ""):
        found.append(
            f"hub_model_id {config.hub_model_id} is no name that the hub accepts (a placeholder?): it will refuse the "
            "model when that is pushed at the end. Give --hub_model_id my-name/my-voice, or --push_to_hub false."
        )
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
    places = [path]
    if path.name == str(path):
        places.append(Path(os.environ.get("VITS_CONFIGS") or "configs") / path)
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
