"""Spectrograms, computed where the model is from the waveform itself.

Shapes: B batch, S samples, F frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from shared.modeling.model import at_least_float32

MEL_BINS = 80
#: Added to the power before its root is taken, so that the gradient at silence is finite.
_POWER_FLOOR = 1e-6
_LOG_FLOOR = 1e-5


@dataclass(frozen=True)
class FeatureSettings:
    """How a model sees audio."""

    sampling_rate: int
    """Hz."""
    hop_length: int
    """Samples from one frame to the next: the product of the decoder's upsampling rates."""
    n_fft: int
    """Samples of one analysis window."""

    @property
    def padding(self) -> int:
        """Samples reflected at each end, so that S samples give exactly ⌊S / hop⌋ frames."""
        return (self.n_fft - self.hop_length) // 2

    def frames(self, samples: int) -> int:
        """Whole frames of so many samples."""
        return samples // self.hop_length


def slaney_mel(frequency: NDArray[np.float64]) -> NDArray[np.float64]:
    """Hz to mel: linear to 1 kHz, logarithmic above (M. Slaney, Auditory Toolbox, 1998)."""
    return np.where(
        frequency < 1000,
        3 * frequency / 200,
        15 + 27 * np.log(np.maximum(frequency, 1e-10) / 1000) / np.log(6.4),
    )


def slaney_hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mel to Hz, the inverse of :func:`slaney_mel`."""
    return np.where(mel < 15, 200 * mel / 3, 1000 * np.exp(np.log(6.4) * (mel - 15) / 27))


@lru_cache(maxsize=8)
def mel_filters(settings: FeatureSettings, bins: int = MEL_BINS) -> Tensor:
    """Triangular filters from 0 Hz to half the sampling rate, each of unit area: [bins, n_fft / 2 + 1]."""
    nyquist = settings.sampling_rate / 2
    frequencies = np.linspace(0, nyquist, settings.n_fft // 2 + 1)
    edges = slaney_hertz(np.linspace(0.0, float(slaney_mel(np.array(nyquist))), bins + 2))
    rising = (frequencies - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - frequencies) / np.diff(edges)[1:, None]
    filters = np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(filters).float()


# Moving a tensor from the host's pageable memory waits for a GPU: what every step needs is moved once.


@lru_cache(maxsize=16)
def _mel_filters_on(settings: FeatureSettings, device: torch.device, dtype: torch.dtype) -> Tensor:
    return mel_filters(settings).to(device, dtype)


@lru_cache(maxsize=16)
def _window_on(n_fft: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.hann_window(n_fft).to(device, dtype)


def linear_spectrogram(padded: Tensor, settings: FeatureSettings) -> Tensor:
    """Magnitudes ``sqrt(re² + im² + 1e-6)`` of a waveform that has its padding already.

    Args:
        padded: [B, padding + S + padding].
        settings: The model's view of audio.

    Returns:
        [B, n_fft / 2 + 1, ⌊S / hop⌋], float32 at least.
    """
    with torch.autocast(padded.device.type, enabled=False):
        padded = at_least_float32(padded)
        spectrum = torch.stft(
            padded,
            settings.n_fft,
            settings.hop_length,
            window=_window_on(settings.n_fft, padded.device, padded.dtype),
            center=False,
            return_complex=True,
        )
        return torch.sqrt(spectrum.real**2 + spectrum.imag**2 + _POWER_FLOOR)


def silent_spectrogram(settings: FeatureSettings) -> Tensor:
    """What :func:`linear_spectrogram` gives for one frame of silence: [1, n_fft / 2 + 1, 1]."""
    return torch.full((1, settings.n_fft // 2 + 1, 1), math.sqrt(_POWER_FLOOR))


def log_mel(spectrogram: Tensor, settings: FeatureSettings) -> Tensor:
    """``log(max(mel, 1e-5))``: [B, n_fft / 2 + 1, F] → [B, 80, F]."""
    with torch.autocast(spectrogram.device.type, enabled=False):
        spectrogram = at_least_float32(spectrogram)
        mel = _mel_filters_on(settings, spectrogram.device, spectrogram.dtype) @ spectrogram
        return torch.log(mel.clamp_min(_LOG_FLOOR))


@lru_cache(maxsize=16)
def silence(settings: FeatureSettings, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The :func:`log_mel` of one frame of silence: [1, 80, 1].

    Computed once and kept on the device, so it must not be written to.

    Args:
        settings: The model's view of audio.
        device: Where it is wanted.
        dtype: float32 or float64.
    """
    return log_mel(silent_spectrogram(settings).to(device, dtype), settings)


def log_mel_of(waveform: Tensor, settings: FeatureSettings) -> Tensor:
    """[B, S] without padding → [B, 80, ⌊S / hop⌋]."""
    padded = functional.pad(at_least_float32(waveform), (settings.padding, settings.padding), mode="reflect")
    return log_mel(linear_spectrogram(padded, settings), settings)
