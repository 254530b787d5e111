"""The discriminator of VITS: HiFi-GAN's five period networks and one scale network; on request UnivNet's three more.

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

from services.training.activations import leaky_relu
from services.training.grouped import GroupedConv1d
from services.training.layout import WideConv1d, convolve_along_width, weight_norm_along_width
from shared.errors import ModelError
from shared.modeling.model import at_least_float32
from shared.modeling.weight_norm import folded_state_dict

PERIODS = (2, 3, 5, 7, 11)
#: UnivNet's spectrograms: samples of a transform, of a hop and of a window.
RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
#: What a stored discriminator calls its periods where they are not these, and its resolutions where it has any.
_PERIODS, _RESOLUTIONS = "periods", "resolutions"
_SLOPE = 0.1
_SCALE_CHANNELS = (1, 16, 64, 256, 1024)
_PERIOD_CHANNELS = (1, 32, 128, 512, 1024)
_SPECTROGRAM_CHANNELS = 32

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
            hidden = leaky_relu(convolution(hidden), _SLOPE)
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
            convolutions.append(GroupedConv1d(before, after, 41, stride=4, groups=groups, padding=20))
            groups *= 4
        channels = _SCALE_CHANNELS[-1]
        convolutions.append(GroupedConv1d(channels, channels, 41, stride=4, groups=groups, padding=20))
        self.convs = nn.ModuleList(weight_norm(convolution) for convolution in convolutions)
        self.convs.append(weight_norm_along_width(WideConv1d(channels, channels, 5, padding=2)))
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
            hidden = leaky_relu(convolve_along_width(convolution, hidden), _SLOPE)
            features.append(hidden.transpose(2, 3))
        hidden = convolve_along_width(self.final_conv, hidden).transpose(2, 3)
        features.append(hidden)
        return hidden.flatten(1), features


class SpectrogramDiscriminator(_Network):
    """Judges the magnitude spectrogram at one resolution (UnivNet's MRSD; Jang et al., 2021).

    Args:
        n_fft: Samples of a transform.
        hop: From one window to the next, in samples.
        window: Samples of a window.
    """

    window: Tensor

    def __init__(self, n_fft: int, hop: int, window: int) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        channels = _SPECTROGRAM_CHANNELS
        convolutions = [nn.Conv2d(1, channels, (3, 9), padding=(1, 4))]
        convolutions += [nn.Conv2d(channels, channels, (3, 9), (1, 2), padding=(1, 4)) for _ in range(3)]
        convolutions.append(nn.Conv2d(channels, channels, (3, 3), padding=(1, 1)))
        self.convs = nn.ModuleList(weight_norm(convolution) for convolution in convolutions)
        self.final_conv = weight_norm(nn.Conv2d(channels, 1, (3, 3), padding=(1, 1)))

    def forward(self, hidden: Tensor) -> Judgement:
        """Scores [B, N] and feature maps of [B, 1, S], by way of [B, 1, bins, frames]."""
        with torch.autocast(hidden.device.type, enabled=False):
            waveform = at_least_float32(hidden[:, 0])
            padding = (self.n_fft - self.hop) // 2
            waveform = functional.pad(waveform[:, None], (padding, padding), mode="reflect")[:, 0]
            spectrum = torch.stft(
                waveform,
                self.n_fft,
                hop_length=self.hop,
                win_length=len(self.window),
                window=self.window.to(waveform.dtype),
                center=False,
                return_complex=True,
            )
            # The root has no slope at 0, where silence is.
            magnitude = torch.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-9)
        return super().forward(magnitude[:, None])


class Discriminator(nn.Module):
    """The scale network and one network for each period: with VITS's five, 46.7 million parameters.

    Args:
        periods: Of the period networks.
        resolutions: Of the spectrogram networks, of which VITS has none.
    """

    def __init__(
        self, periods: Sequence[int] = PERIODS, resolutions: Sequence[tuple[int, int, int]] = ()
    ) -> None:
        super().__init__()
        self.periods, self.resolutions = tuple(periods), tuple(resolutions)
        self.discriminators = nn.ModuleList(
            [
                ScaleDiscriminator(),
                *(PeriodDiscriminator(period) for period in periods),
                *(SpectrogramDiscriminator(*resolution) for resolution in resolutions),
            ]
        )

    def forward(self, waveform: Tensor) -> list[Judgement]:
        """[B, 1, S] → each network's judgement."""
        return [network(waveform) for network in self.discriminators]

    def folded_state_dict(self) -> dict[str, Tensor]:
        """The weights with their norm folded, as they are stored.

        Networks are stored by number, as the ancestor's. Where the periods are not VITS's five, a tensor beside
        the weights, ``periods``, says which they are; where there are spectrogram networks, ``resolutions``.
        """
        state = {name: value.contiguous() for name, value in folded_state_dict(self).items()}
        if self.periods != PERIODS:
            state[_PERIODS] = torch.tensor(self.periods)
        if self.resolutions:
            state[_RESOLUTIONS] = torch.tensor(self.resolutions)
        return state

    @torch.no_grad()
    def load_folded(self, state: Mapping[str, Tensor]) -> None:
        """Take over stored weights, each network's from the stored one of its period or resolution.

        A network whose period or resolution is not among the stored ones stays as it is; stored ones of others
        are left out.

        Raises:
            ModelError: They are another kind of network's.
        """
        periods, resolutions = stored_periods(state), _stored_resolutions(state)
        # Position 0 is the scale network's, here and there.
        places = {0: 0} | {
            1 + place: 1 + periods.index(period)
            for place, period in enumerate(self.periods)
            if period in periods
        }
        places |= {
            1 + len(self.periods) + place: 1 + len(periods) + resolutions.index(resolution)
            for place, resolution in enumerate(self.resolutions)
            if resolution in resolutions
        }
        expected = {
            f"discriminators.{there}.{name}": (self.discriminators[here], name, value.shape)
            for here, there in places.items()
            for name, value in folded_state_dict(self.discriminators[here]).items()
        }
        used = tuple(f"discriminators.{there}." for there in places.values())
        known = tuple(f"discriminators.{there}." for there in range(1 + len(periods) + len(resolutions)))
        wrong = [
            name for name, (*_, shape) in expected.items() if name not in state or state[name].shape != shape
        ]
        wrong += [
            name
            for name in state
            if name not in {_PERIODS, _RESOLUTIONS}
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


def _stored_resolutions(state: Mapping[str, Tensor]) -> tuple[tuple[int, ...], ...]:
    """The resolutions of a stored discriminator's spectrogram networks, in their order."""
    return tuple(map(tuple, state[_RESOLUTIONS].tolist())) if _RESOLUTIONS in state else ()
