"""What a run's report and its model card both tell: the data, the configuration, the versions."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from services.training.config import SECRETS, TrainingConfig
from services.training.dataset import Dropped
from services.training.session import Session
from shared.wording import counted

_PACKAGES = ("vits-suite", "torch", "transformers", "accelerate", "datasets", "numpy")


@dataclass(frozen=True)
class Reason:
    """Why recordings were left out.

    Attributes:
        text: What is wrong with them.
        dropped: All that it applies to.
    """

    text: str
    dropped: tuple[Dropped, ...]


@dataclass(frozen=True)
class Split:
    """What a split came to.

    Attributes:
        name: ``training`` or ``evaluation``.
        seconds: Length of each recording.
        reasons: Why others were left out, the commonest first.
    """

    name: str
    seconds: tuple[float, ...]
    reasons: tuple[Reason, ...]

    @property
    def hours(self) -> float:
        """Length of all recordings."""
        return sum(self.seconds) / 3600

    @property
    def left_out(self) -> int:
        """How many were."""
        return sum(len(reason.dropped) for reason in self.reasons)


def splits(session: Session) -> list[Split]:
    """What the data came to, split by split."""
    second = session.settings.sampling_rate / session.settings.hop_length
    training = [session.train.frames(example) / second for example in session.train.examples]
    examples = session.evaluation.examples
    held_out = [examples.frames(example) / second for example in examples.examples] if examples else []
    lengths = {"training": training, "evaluation": held_out}
    return [
        Split(name, tuple(seconds), _grouped(session.dropped.get(name, [])))
        for name, seconds in lengths.items()
        if seconds
    ]


def heard(session: Session) -> str:
    """What evaluations heard: by the recordings, since splits of two names may have some in common."""
    examples = session.evaluation.examples
    trained = {example.id for example in session.train.examples}
    shared = sum(example.id in trained for example in examples.examples) if examples else 0
    if examples and shared:
        return f"{counted(len(examples), 'recording')}, of which {shared} were trained on too"
    return "recordings that were held out"


def _grouped(dropped: list[Dropped]) -> tuple[Reason, ...]:
    """Those of the same fault together."""
    groups: dict[str, list[Dropped]] = {}
    for item in dropped:
        groups.setdefault(item.kind, []).append(item)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return tuple(Reason(text, tuple(items)) for text, items in ordered)


def configuration(config: TrainingConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was set to something else than the default, and the rest; neither with secrets."""
    values = config.model_dump(mode="json", exclude=set(SECRETS))
    changed = {
        key: value for key, value in values.items() if getattr(config, key) != _default(type(config), key)
    }
    return changed, {key: value for key, value in values.items() if key not in changed}


def _default(kind: type[TrainingConfig], key: str) -> Any:
    return kind.model_fields[key].get_default(call_default_factory=True)


def versions() -> dict[str, str]:
    """The software that trained it."""
    found = {"Python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a folder that was never installed
            continue
    return found


def newest_evaluation(session: Session) -> Mapping[str, float]:
    """The last evaluation's figures by their names; nothing if there was none."""
    for entry in reversed(session.state.log_history):
        values = {key.removeprefix("eval_"): value for key, value in entry.items() if key.startswith("eval_")}
        if values:
            return values
    return {}
