"""The learning-rate finder (Smith, 2017): a few steps at a rate that rises from far too low to far too high."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from services.training.config import TrainingConfig
from services.training.dataset import Batch
from services.training.loop import batches, build_steps, read_losses
from services.training.plots import curves_svg
from services.training.session import Session
from services.training.steps import Seen
from services.training.tuning import page
from shared.errors import DivergenceError

#: The smoothed loss keeps this share of what it was.
_SMOOTHING = 0.9
#: Past this many times its best, the loss has gone for good.
_GONE = 2.0
#: A fall that is less than this share of the loss says nothing.
_LEAST_FALL = 0.01
#: From the rate of the lowest loss, where it is about to rise, to one that lasts.
_SAFETY = 10.0


@dataclass(frozen=True)
class Curve:
    """What came of a ramp of learning rates.

    Attributes:
        rates: The rate of each step that was taken.
        losses: The weighted sum of mel, KL and duration loss there, smoothed. The adversarial terms are left out:
            their judge learns at the same rate.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def lowest(self) -> int:
        """Where the loss is lowest."""
        return min(range(len(self.losses)), key=self.losses.__getitem__)

    @property
    def suggestion(self) -> float | None:
        """A tenth of the rate at which the loss is lowest; none where it never falls by a hundredth."""
        if not self.losses or self.losses[self.lowest] > (1 - _LEAST_FALL) * self.losses[0]:
            return None
        return float(f"{self.rates[self.lowest] / _SAFETY:.1g}")


def find_learning_rate(session: Session, *, lowest: float, highest: float, ramp: int) -> Curve:
    """Take up to ``ramp`` joint steps at rates that rise geometrically; the run is left as it was found.

    It ends early once the smoothed loss is twice its lowest, or is not a number.

    Args:
        session: The run, before its first step.
        lowest: The first step's rate.
        highest: The last one's.
        ramp: Steps.
    """
    config, accelerator = session.config, session.accelerator
    weights = {"mel": config.weight_mel, "kl": config.weight_kl, "duration": config.weight_duration}
    rates: list[float] = []
    losses: list[float] = []
    with _restored(session):
        steps = build_steps(session)
        source: Iterator[Batch] = batches(session)
        average = 0.0
        for number in range(ramp):
            rate = lowest * (highest / lowest) ** (number / (ramp - 1))
            for optimizer in steps.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
            seen = [
                Seen.of(next(source), session.settings, accelerator.device)
                for _ in range(config.gradient_accumulation_steps)
            ]
            try:
                values = read_losses(session, steps.joint(seen, steps.first_step + number))
            except DivergenceError:  # not a number: the end of the curve
                break
            loss = sum(weight * values[name] for name, weight in weights.items())
            average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
            smoothed = average / (1 - _SMOOTHING ** (number + 1))
            if losses and smoothed > _GONE * min(losses):
                break
            rates.append(rate)
            losses.append(smoothed)
    return Curve(tuple(rates), tuple(losses))


@contextmanager
def _restored(session: Session) -> Iterator[None]:
    """Whatever happens inside, the run's networks and its position are as before."""
    networks = (session.generator, session.discriminator)
    kept = [copy.deepcopy(network.state_dict()) for network in networks]
    learning = [[value.requires_grad for value in network.parameters()] for network in networks]
    modes = [[module.training for module in network.modules()] for network in networks]
    state, session.state = session.state, copy.deepcopy(session.state)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        session.state = state
        for network, weights, wanted, mode in zip(networks, kept, learning, modes, strict=True):
            network.load_state_dict(weights)
            for value, learns in zip(network.parameters(), wanted, strict=True):
                value.requires_grad_(learns)
                value.grad = None
            for module, training in zip(network.modules(), mode, strict=True):
                module.training = training


def describe(curve: Curve, config: TrainingConfig) -> list[str]:
    """What a curve says, in sentences."""
    if not curve.rates:
        return ["The very first step was not a number: look at the recordings with 'vits data inspect'."]
    at, first, last = curve.rates[curve.lowest], curve.rates[0], curve.rates[-1]
    lines = [f"The loss is lowest at {at:.2g}, of rates from {first:.2g} to {last:.2g}."]
    if curve.suggestion is None:
        lines.append(
            "It never falls by a hundredth, so that it says little: the base may know these recordings well. Try a "
            "longer --ramp, or keep the learning_rate."
        )
    else:
        lines.append(
            f"Suggested: learning_rate {curve.suggestion:g}, a tenth of it (now {config.learning_rate:g})."
        )
    return lines


def curve_page(curve: Curve, config: TrainingConfig) -> str:
    """The curve as a page: one chart, with a line at the suggestion."""
    points: Sequence[tuple[float, float]] = [
        (math.log10(rate), loss) for rate, loss in zip(curve.rates, curve.losses, strict=True)
    ]
    at = None if curve.suggestion is None else math.log10(curve.suggestion)
    charts = [
        (
            "Weighted mel, KL and duration loss, smoothed, by the learning rate's logarithm to base 10"
            + ("; the dashed line is the suggestion" if at is not None else ""),
            curves_svg([("train", points)], label="loss by learning rate", boundary=at),
        )
    ]
    rows = [
        {"learning rate": f"{rate:.3g}", "loss": f"{loss:.5g}"}
        for rate, loss in zip(curve.rates, curve.losses, strict=True)
    ]
    return page.page(
        f"{config.published_name} · learning rate", describe(curve, config), charts if points else [], rows
    )
