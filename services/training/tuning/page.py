"""The pages of ``vits tune``: one HTML file each that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.training.config import TrainingConfig
from services.training.plots import Curve, curves_svg
from services.training.tuning.space import Choices, Range, Space
from shared.pages import template

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


def page(
    title: str,
    said: Sequence[str],
    charts: Sequence[tuple[str, str]],
    rows: Sequence[Mapping[str, Any]],
    marked: int | None = None,
) -> str:
    """A page of sentences, charts and one table.

    Args:
        title: Its heading.
        said: What came of it.
        charts: Titles and SVG.
        rows: The table's; the first one's keys are the header.
        marked: The row that stands out.
    """
    made = template(Path(__file__).with_name("page.html"), "pip install 'vits-suite[train,tune]'")
    text: str = made.render(title=title, said=said, charts=charts, rows=rows, marked=marked)
    return text


def search_page(
    config: TrainingConfig,
    objective: str,
    space: Space,
    trials: Sequence[FrozenTrial],
    best: FrozenTrial | None,
    default: str,
    failure: str,
) -> str:
    """What a search has tried, and what came of it.

    Args:
        config: What is tuned.
        objective: The measure.
        space: What is tried.
        trials: All of them.
        best: The best of them, where one has come to its end.
        default: What marks the trial of the configuration itself.
        failure: What says of a trial why it failed.
    """
    done = [trial for trial in trials if trial.state.is_finished()]
    complete = [trial for trial in done if trial.state.name == "COMPLETE" and trial.value is not None]
    values = [float(trial.value or 0) for trial in complete]
    charts: list[tuple[str, str]] = []
    if complete:
        numbers = [trial.number for trial in complete]
        curves: list[Curve] = [
            ("train", list(zip(numbers, accumulate(values, min), strict=True))),
            ("points", list(zip(numbers, values, strict=True))),
        ]
        charts.append(
            (f"{objective}, trial by trial, and the best so far", curves_svg(curves, label=objective))
        )
    for key, one in space.keys.items():
        points = [
            (_place(one, trial.params[key]), value) for trial, value in zip(complete, values, strict=True)
        ]
        if points:
            what = f"{key}{_axis(one)}"
            charts.append((what, curves_svg([("points", sorted(points))], label=f"{objective} by {what}")))
    ordered = sorted(
        done, key=lambda trial: (trial.value is None or trial.state.name != "COMPLETE", trial.value or 0)
    )
    rows = [
        {
            "trial": f"{trial.number}{' (the configuration)' if trial.user_attrs.get(default) else ''}",
            "state": _state(trial, failure),
            objective: f"{trial.value:.5g}"
            if trial.state.name == "COMPLETE" and trial.value is not None
            else "–",
            **{key: _written(trial.params.get(key)) for key in space.keys},
        }
        for trial in ordered
    ]
    said = [f"{key}: {what}" for key, what in space.described().items()]
    if best is not None:
        said.insert(0, f"Best: trial {best.number}, {objective} {best.value:.5g}.")
    return page(f"{config.published_name} · search", said, charts, rows, 0 if best is not None else None)


def _state(trial: FrozenTrial, failure: str) -> str:
    """How a trial ended."""
    if failure in trial.user_attrs:
        return f"failed: {trial.user_attrs[failure]}"
    return {"COMPLETE": "complete", "PRUNED": "ended early"}.get(trial.state.name, "interrupted")


def _place(one: Choices | Range, value: Any) -> float:
    """Where a value stands on a chart's axis."""
    if isinstance(one, Choices):
        return one.values.index(value)
    return math.log10(value) if one.log else float(value)


def _axis(one: Choices | Range) -> str:
    if isinstance(one, Choices):
        return " (" + ", ".join(f"{at}: {_written(value)}" for at, value in enumerate(one.values)) + ")"
    return ", logarithm to base 10" if one.log else ""


def _written(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
