"""An exponential moving average of a generator's weights, which often speaks better than the last step's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """The average of a network's floating-point weights over the last ``1 / (1 − decay)`` steps or so.

    Attributes:
        decay: The share of the old average that a step keeps.
        shadow: The average, by the names of ``state_dict``.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: value.clone() for name, value in _weights(network).items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take one step's weights in.

        Args:
            network: After the step.
            step: Steps of the run so far, from 0: early averages are short, min(decay, (1 + n) / (10 + n)).
        """
        keep = min(self.decay, (1 + step) / (10 + step))
        weights = _weights(network)
        torch._foreach_lerp_([self.shadow[name] for name in weights], list(weights.values()), 1 - keep)

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Let the network have the averaged weights for a while."""
        weights = _weights(network)
        kept = {name: value.clone() for name, value in weights.items()}
        _copy(self.shadow, weights)
        try:
            yield
        finally:
            _copy(kept, weights)


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in network.state_dict().items() if value.is_floating_point()}
