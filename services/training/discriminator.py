"""The discriminator of VITS: HiFi-GAN's five period networks and one scale network.

Attribute names are those of ``finetune-hf-vits``'s checkpoints, whose discriminators load as they are.

Shapes: B batch, S samples, C channels, P period.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from shared.errors import ModelError
from shared.modeling.weight_norm import folded_state_dict

PERIODS = (2, 3, 5, 7, 11)
_SLOPE = 0.1
_SCALE_CHANNELS = (1, 16, 64, 256, 1024)
_PERIOD_CHANNELS = (1, 32, 128, 512, 1024)

#: A score for every patch of each input, and the activations after every layer.
Judgement = tuple[Tensor, list[Tensor]]


class _Network(nn.Module):
    """A stack of convolutions whose every activation is kept."""

    convs: nn.ModuleList
    final_conv: nn.Module

    def forward(self, hidden: Tensor) -> Judgement:
        """Scores [B, N] and feature maps."""
        features = []
        for convolution in self.convs:
            hidden = functional.leaky_relu(convolution(hidden), _SLOPE)
            features.append(hidden)
        hidden = self.final_conv(hidden)
        features.append(hidden)
        return hidden.flatten(1), features


class ScaleDiscriminator(_Network):
    """Judges the waveform as it is, through grouped strided convolutions."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = [nn.Conv1d(1, _SCALE_CHANNELS[1], 15, padding=7)]
        groups = 4
        for before, after in pairwise(_SCALE_CHANNELS[1:]):
            convolutions.append(nn.Conv1d(before, after, 41, stride=4, groups=groups, padding=20))
            groups *= 4
        channels = _SCALE_CHANNELS[-1]
        convolutions.append(nn.Conv1d(channels, channels, 41, stride=4, groups=groups, padding=20))
        convolutions.append(nn.Conv1d(channels, channels, 5, padding=2))
        self.convs = nn.ModuleList(weight_norm(convolution) for convolution in convolutions)
        self.final_conv = weight_norm(nn.Conv1d(channels, 1, 3, padding=1))


class PeriodDiscriminator(_Network):
    """Judges the waveform folded into rows of one period."""

    def __init__(self, period: int) -> None:
        super().__init__()
        self.period = period
        convolutions = [
            nn.Conv2d(before, after, (5, 1), (3, 1), padding=(2, 0))
            for before, after in pairwise(_PERIOD_CHANNELS)
        ]
        channels = _PERIOD_CHANNELS[-1]
        convolutions.append(nn.Conv2d(channels, channels, (5, 1), padding=(2, 0)))
        self.convs = nn.ModuleList(weight_norm(convolution) for convolution in convolutions)
        self.final_conv = weight_norm(nn.Conv2d(channels, 1, (3, 1), padding=(1, 0)))

    def forward(self, hidden: Tensor) -> Judgement:
        """Scores [B, N] and feature maps of [B, 1, S], reflected up to whole periods."""
        missing = -hidden.shape[2] % self.period
        hidden = functional.pad(hidden, (0, missing), mode="reflect")
        return super().forward(hidden.unflatten(2, (-1, self.period)))


class Discriminator(nn.Module):
    """All six networks. 46.7 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(
            [ScaleDiscriminator(), *(PeriodDiscriminator(period) for period in PERIODS)]
        )

    def forward(self, waveform: Tensor) -> list[Judgement]:
        """[B, 1, S] → each network's judgement."""
        return [network(waveform) for network in self.discriminators]

    def folded_state_dict(self) -> dict[str, Tensor]:
        """The weights with their norm folded, as they are stored."""
        return {name: value.contiguous() for name, value in folded_state_dict(self).items()}

    @torch.no_grad()
    def load_folded(self, state: Mapping[str, Tensor]) -> None:
        """Take over stored weights.

        Raises:
            ModelError: They are another network's.
        """
        expected = self.folded_state_dict()
        wrong = [
            name
            for name in expected.keys() | state.keys()
            if name not in state or name not in expected or state[name].shape != expected[name].shape
        ]
        if wrong:
            raise ModelError(
                f"The stored discriminator is not VITS's: {len(wrong)} of its tensors do not fit "
                f"({', '.join(sorted(wrong)[:3])}, …). Take it out of the model folder to start with a fresh one."
            )
        for name, value in state.items():
            path, _, leaf = name.rpartition(".")
            module = self.get_submodule(path)
            if leaf == "weight":
                module.weight = value
            else:
                cast("Tensor", module.bias).data.copy_(value)
