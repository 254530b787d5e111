"""Which checkpoints are the best, by evaluations that can be compared.

Every evaluation logs all measures. So a run may go on with another ``metric_for_best_model`` or other weights of the
losses: what was evaluated before is then ranked by them too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from services.training import checkpoints as ckpt
from services.training.config import TrainingConfig

if TYPE_CHECKING:
    from services.training.session import Session


def total_loss(config: TrainingConfig, values: Mapping[str, float], *, judged: bool = True) -> float:
    """What the generator minimises, of an evaluation's other losses.

    Args:
        config: Its weights.
        values: The losses by their names.
        judged: Whether the discriminator's two terms are a part of it.
    """
    weights = {"mel": config.weight_mel, "kl": config.weight_kl, "duration": config.weight_duration}
    if judged:
        weights |= {"generator": config.weight_gen, "feature_maps": config.weight_fmaps}
    return sum(weight * values[name] for name, weight in weights.items())


def measured(
    config: TrainingConfig, history: Iterable[Mapping[str, Any]], first_step: int
) -> list[tuple[int, float]]:
    """Steps and what ``metric_for_best_model`` was there, in the order of the evaluations.

    Args:
        config: The run's, as it is now.
        history: What was logged.
        first_step: The first one whose evaluation counts; see ``Session.comparable_from``.
    """
    metric, found = config.metric_for_best_model, []
    for entry in history:
        if f"eval_{metric}" in entry and entry["step"] >= first_step:
            value = entry[f"eval_{metric}"]
            if metric == "loss":  # it was logged with the weights of then
                value = total_loss(config, {key.removeprefix("eval_"): entry[key] for key in entry})
            found.append((entry["step"], value))
    return found


def best_of(config: TrainingConfig, entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """As many of the saved steps as are kept, the best first; of all that is measured, less is better."""
    keep = max(config.keep_best, int(config.load_best_model_at_end))
    finite = [dict(entry) for entry in entries if math.isfinite(entry["value"])]
    return sorted(finite, key=lambda entry: (entry["value"], entry["step"]))[:keep]


def rank_anew(session: Session) -> None:
    """Rank what a run that goes on has saved by what it is asked for now, and say what that changes.

    Ranked are the best as they were and every checkpoint on the disk that was evaluated itself; what cannot be
    compared is left out.
    """
    config, state = session.config, session.state
    metric, before = config.metric_for_best_model, {entry["step"]: entry for entry in state.best}
    values = dict(measured(config, state.log_history, session.comparable_from(metric)))
    on_disk = {ckpt.checkpoint_step(folder) for folder in ckpt.checkpoints(config.output_dir)}
    saved = {step: {"step": step, "evaluated": step} for step in on_disk if step in values} | before
    state.best = best_of(
        config,
        [
            entry | {"value": values[evaluated]}
            for entry in saved.values()
            if (evaluated := entry.get("evaluated", entry["step"])) in values
        ],
    )
    now = {entry["step"]: entry["value"] for entry in state.best}
    if now == {step: entry["value"] for step, entry in before.items()}:
        return
    listed = ", ".join(f"checkpoint-{step} ({value:.4g})" for step, value in now.items())
    print(f"the best checkpoints by {metric} are now: {listed or 'none yet'}")
    gone = ", ".join(f"checkpoint-{step}" for step in before if step not in now)
    if gone:
        print(f"no longer one of them, so that save_total_limit may remove it: {gone}")
