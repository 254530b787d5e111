"""When further training is not worth it: no progress, told from noise.

A measure of a few held-out recordings is noisy. One lucky value must not set a bar that a run which still improves
cannot pass, and one unlucky value is no end of progress. So progress is looked for in an exponential moving
average of the evaluations, and only a fall by a share of the best so far counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from services.training.config import TrainingConfig
from services.training.ranking import measured


def without_progress(values: Sequence[float], *, min_delta: float, smoothing: float) -> int:
    """How many evaluations ago the smoothed measure last made progress.

    Args:
        values: The measure at each evaluation, of which less is better.
        min_delta: The share of the best so far that it has to fall by.
        smoothing: The share of the past in the average.
    """
    average, best, since = math.nan, math.inf, 0
    for value in values:
        average = value if math.isnan(average) else smoothing * average + (1 - smoothing) * value
        if average < best - min_delta * abs(best if math.isfinite(best) else 0.0):
            best, since = average, 0
        else:
            since += 1
    return since


def out_of_patience(
    config: TrainingConfig, history: Iterable[Mapping[str, Any]], first_step: int
) -> str | None:
    """Why a run is to end early, or nothing.

    It depends on the logged evaluations alone, so that a resumed run decides as one that was never stopped.

    Args:
        config: The run's.
        history: What was logged.
        first_step: The first one whose evaluation counts; see ``Session.comparable_from``.
    """
    if config.early_stopping_patience is None:
        return None
    values = [value for _, value in measured(config, history, first_step)]
    since = without_progress(
        values, min_delta=config.early_stopping_min_delta, smoothing=config.early_stopping_smoothing
    )
    if since < config.early_stopping_patience:
        return None
    return (
        f"{config.metric_for_best_model} has made no progress in {since} evaluations (early_stopping_patience): "
        "training ends here"
    )
