"""Spectrograms against plain NumPy and librosa."""

from __future__ import annotations

import math
from typing import Any

import librosa
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from services.training.features import (
    FeatureSettings,
    linear_spectrogram,
    log_mel,
    log_mel_of,
    mel_filters,
    silence,
    silent_spectrogram,
)

SETTINGS = FeatureSettings(16000, 256, 1024)
OTHER = FeatureSettings(22050, 300, 1200)


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (1, samples)).astype(np.float32))


@pytest.mark.parametrize("settings", [SETTINGS, OTHER])
def test_frames_are_the_whole_hops_of_a_waveform(settings: FeatureSettings) -> None:
    hop = settings.hop_length
    for samples in [2 * hop, 3 * hop - 1, 3 * hop, 3 * hop + 1, 5000, 5119, 5120, 5121, 16001]:
        assert log_mel_of(noise(samples), settings).shape == (1, 80, samples // hop), samples


@pytest.mark.parametrize("settings", [SETTINGS, OTHER])
def test_magnitudes_equal_a_plain_fourier_transform(settings: FeatureSettings) -> None:
    """finetune-hf-vits, Features: reflected padding, periodic Hann window, the power's floor beneath the root."""
    waveform = noise(5000)
    n_fft, hop = settings.n_fft, settings.hop_length
    padded = np.pad(waveform[0].numpy().astype(np.float64), (n_fft - hop) // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    kernel = np.exp(-2j * np.pi * np.outer(np.arange(n_fft // 2 + 1), np.arange(n_fft)) / n_fft)
    frames = [padded[start : start + n_fft] * window for start in range(0, len(padded) - n_fft + 1, hop)]
    expected = np.sqrt(np.abs(kernel @ np.array(frames).T) ** 2 + 1e-6)
    found = linear_spectrogram(torch.from_numpy(padded).float()[None], settings)[0].numpy()
    assert found.shape == expected.shape == (n_fft // 2 + 1, 5000 // hop)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("settings", [SETTINGS, OTHER, FeatureSettings(44100, 512, 2048)])
def test_filters_are_slaneys(settings: FeatureSettings) -> None:
    expected = librosa.filters.mel(sr=settings.sampling_rate, n_fft=settings.n_fft, n_mels=80, fmin=0.0)
    np.testing.assert_allclose(mel_filters(settings).numpy(), expected, rtol=0, atol=1e-6)


def test_silence_is_at_the_floors() -> None:
    zeros = torch.zeros(1, 4096)
    assert torch.equal(
        linear_spectrogram(torch.zeros(1, 4096 + 2 * SETTINGS.padding), SETTINGS),
        silent_spectrogram(SETTINGS).expand(1, 513, 16),
    )
    mel = log_mel_of(zeros, SETTINGS)
    assert float(mel.min()) >= math.log(1e-5) - 1e-5
    assert torch.equal(log_mel(torch.zeros(1, 513, 2), SETTINGS), torch.full((1, 80, 2), 1e-5).log())


def test_the_logarithm_has_a_floor_and_is_plain_above_it() -> None:
    spectrogram = torch.tensor([1e-5, 2e-3, 3.0]).expand(1, 513, 3)
    mel = mel_filters(SETTINGS).double().numpy() @ spectrogram[0].double().numpy()
    assert mel[:, 0].max() < 1e-5 < mel[:, 1].min()
    expected = np.log(np.maximum(mel, 1e-5))
    np.testing.assert_allclose(log_mel(spectrogram, SETTINGS)[0].numpy(), expected, atol=1e-5)


def test_gradients_at_silence_are_finite() -> None:
    waveform = torch.zeros(1, 4096, requires_grad=True)
    log_mel_of(waveform, SETTINGS).sum().backward()
    assert waveform.grad is not None
    assert bool(torch.isfinite(waveform.grad).all())


def test_autocast_changes_nothing() -> None:
    waveform = noise(5000)
    expected = log_mel_of(waveform, SETTINGS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(log_mel_of(waveform, SETTINGS), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_silence_is_the_log_mel_of_a_silent_spectrogram(dtype: torch.dtype) -> None:
    found = silence(SETTINGS, torch.device("cpu"), dtype)
    assert found.shape == (1, 80, 1)
    assert found.dtype == dtype
    assert torch.equal(found, log_mel(silent_spectrogram(SETTINGS).to(dtype), SETTINGS))
    assert silence(SETTINGS, torch.device("cpu"), dtype) is found
    assert not torch.equal(found, silence(OTHER, torch.device("cpu"), dtype))


class _Operations(TorchDispatchMode):
    """Takes down every operation; ``_to_copy`` is the one that moves a tensor elsewhere."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


def test_window_and_filters_are_moved_once() -> None:
    """float64 stands in for another device: what is float32 on the host has to be copied for it."""
    settings = FeatureSettings(16000, 128, 512)  # nobody else's, so that nothing is there yet
    waveform = noise(5000).double()
    with _Operations() as first:
        expected = log_mel_of(waveform, settings)
    with _Operations() as second:
        found = log_mel_of(waveform, settings)
    assert "_to_copy" in first.names
    assert "_to_copy" not in second.names
    assert torch.equal(found, expected)
    assert log_mel_of(noise(5000), settings).dtype == torch.float32


def test_kept_tensors_are_those_of_each_precision_and_rate() -> None:
    for settings in (SETTINGS, OTHER, FeatureSettings(22050, 256, 1024)):
        single, double = (
            log_mel_of(noise(5000).to(dtype), settings) for dtype in (torch.float32, torch.float64)
        )
        assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
        spectrogram = linear_spectrogram(
            torch.nn.functional.pad(noise(5000).double(), (settings.padding,) * 2, mode="reflect"), settings
        )
        expected = (mel_filters(settings).double() @ spectrogram).clamp_min(1e-5).log()
        assert torch.equal(double, expected)
        torch.testing.assert_close(single, expected.float(), rtol=1e-4, atol=1e-4)
