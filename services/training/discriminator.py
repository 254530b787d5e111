"""The discriminator of VITS: HiFi-GAN's five period networks and one scale network.

Attribute names are those of ``finetune-hf-vits``'s checkpoints, whose discriminators load as they are.

Shapes: B batch, S samples, C channels, P period.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from services.training.layout import convolve_along_width, weight_norm_along_width
from shared.errors import ModelError
from shared.modeling.weight_norm import folded_state_dict

PERIODS = (2, 3, 5, 7, 11)
#: What a stored discriminator calls its periods where they are not these.
_PERIODS = "periods"
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
            hidden = functional.leaky_relu(convolution(hidden), _SLOPE, inplace=True)
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
        self.convs = nn.ModuleList(weight_norm_along_width(convolution) for convolution in convolutions)
        self.final_conv = weight_norm_along_width(nn.Conv2d(channels, 1, (3, 1), padding=(1, 0)))

    def forward(self, hidden: Tensor) -> Judgement:
        """Scores [B, N] and feature maps of [B, 1, S], reflected up to whole periods.

        Computed with time as the width of channels-last images, in which the convolutions run two to five times as
        fast as with time as the height of channels-first ones.
        """
        missing = -hidden.shape[2] % self.period
        hidden = functional.pad(hidden, (0, missing), mode="reflect")
        hidden = hidden.unflatten(2, (-1, self.period)).transpose(2, 3)
        features = []
        for convolution in self.convs:
            hidden = functional.leaky_relu(convolve_along_width(convolution, hidden), _SLOPE, inplace=True)
            features.append(hidden.transpose(2, 3))
        hidden = convolve_along_width(self.final_conv, hidden).transpose(2, 3)
        features.append(hidden)
        return hidden.flatten(1), features


class Discriminator(nn.Module):
    """The scale network and one network for each period: with VITS's five, 46.7 million parameters."""

    def __init__(self, periods: Sequence[int] = PERIODS) -> None:
        super().__init__()
        self.periods = tuple(periods)
        self.discriminators = nn.ModuleList(
            [ScaleDiscriminator(), *(PeriodDiscriminator(period) for period in periods)]
        )

    def forward(self, waveform: Tensor) -> list[Judgement]:
        """[B, 1, S] → each network's judgement."""
        return [network(waveform) for network in self.discriminators]

    def folded_state_dict(self) -> dict[str, Tensor]:
        """The weights with their norm folded, as they are stored.

        Networks are stored by number, as the ancestor's. Where the periods are not VITS's five, a tensor beside
        the weights, ``periods``, says which they are.
        """
        state = {name: value.contiguous() for name, value in folded_state_dict(self).items()}
        return state if self.periods == PERIODS else state | {_PERIODS: torch.tensor(self.periods)}

    @torch.no_grad()
    def load_folded(self, state: Mapping[str, Tensor]) -> None:
        """Take over stored weights, each network's from the stored one of its period.

        A network whose period is not among the stored ones stays as it is; stored ones of other periods
        are left out.

        Raises:
            ModelError: They are another kind of network's.
        """
        periods = stored_periods(state)
        # Position 0 is the scale network's, here and there.
        places = {0: 0} | {
            1 + place: 1 + periods.index(period)
            for place, period in enumerate(self.periods)
            if period in periods
        }
        expected = {
            f"discriminators.{there}.{name}": (self.discriminators[here], name, value.shape)
            for here, there in places.items()
            for name, value in folded_state_dict(self.discriminators[here]).items()
        }
        used = tuple(f"discriminators.{there}." for there in places.values())
        known = tuple(f"discriminators.{there}." for there in range(1 + len(periods)))
        wrong = [
            name for name, (*_, shape) in expected.items() if name not in state or state[name].shape != shape
        ]
        wrong += [
            name
            for name in state
            if name != _PERIODS
            and name not in expected
            and (name.startswith(used) or not name.startswith(known))
        ]
        if wrong:
            raise ModelError(
                f"The stored discriminator is not VITS's: {len(wrong)} of its tensors do not fit "
                f"({', '.join(sorted(wrong)[:3])}, …). Take it out of the model folder to start with a fresh one."
            )
        for stored, (network, name, _) in expected.items():
            path, _, leaf = name.rpartition(".")
            layer = network.get_submodule(path)
            if leaf == "weight":
                layer.weight = state[stored]
            else:
                cast("Tensor", layer.bias).data.copy_(state[stored])


def stored_periods(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """The periods of a stored discriminator's networks, in their order."""
    return tuple(state[_PERIODS].tolist()) if _PERIODS in state else PERIODS
