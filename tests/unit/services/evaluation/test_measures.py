"""Spectra, pitch and alignment, on sounds whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.evaluation.measures import (
    Aligned,
    align,
    f0_contour,
    f0_error_cents,
    log_mel,
    log_mel_distance,
    log_spectral_distance,
    mel_filters,
    power_spectrum,
)
from tests.unit.services.evaluation.conftest import RATE, tone


def noise(seconds: float = 1.0, *, seed: int = 0) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


def test_a_full_scale_sinusoid_has_power_one() -> None:
    samples = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    assert power_spectrum(samples, RATE)[50].max() == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize(("rate", "size", "bands"), [(16000, 400, 40), (16000, 1024, 80), (22050, 1024, 80)])
def test_mel_filters_are_those_of_slaney(rate: int, size: int, bands: int) -> None:
    librosa_filters = pytest.importorskip("librosa.filters", reason="needs the extra 'judges'")
    expected = librosa_filters.mel(sr=rate, n_fft=size, n_mels=bands)
    assert np.allclose(mel_filters(rate, size, bands), expected, atol=1e-7)


def test_equal_sounds_are_at_no_distance() -> None:
    assert log_spectral_distance(noise(), noise(), RATE) == 0.0
    assert log_mel_distance(noise(), noise(), RATE) == 0.0


@given(st.floats(-12, 12))
@settings(max_examples=20, deadline=None)
def test_amplification_is_a_distance_of_its_decibels(decibels: float) -> None:
    gain = 10 ** (decibels / 20)
    loud = noise().astype(np.float64)
    assert log_spectral_distance(loud, gain * loud, RATE) == pytest.approx(abs(decibels), abs=1e-3)
    assert log_mel_distance(loud, gain * loud, RATE) == pytest.approx(2 * abs(np.log(gain)), abs=1e-3)


def test_more_noise_is_farther() -> None:
    distances = [
        log_spectral_distance(tone(200), tone(200) + level * noise(), RATE) for level in (0, 0.01, 0.1)
    ]
    assert distances[0] == 0.0 < distances[1] < distances[2]


def test_silence_is_no_trouble() -> None:
    silence = np.zeros(RATE, np.float32)
    assert log_spectral_distance(silence, silence, RATE) == 0.0
    assert np.isfinite(log_spectral_distance(silence, noise(), RATE))
    assert np.isnan(f0_contour(silence, RATE)).all()
    assert Aligned(silence, silence, RATE).f0_error_cents is None


@pytest.mark.parametrize("hertz", [80.0, 110.0, 220.0, 333.3, 440.0])
@pytest.mark.parametrize("harmonics", [1, 8])
def test_the_pitch_of_a_tone(hertz: float, harmonics: int) -> None:
    f0 = f0_contour(tone(hertz, harmonics=harmonics), RATE)[5:-5]
    assert np.isfinite(f0).all()
    assert np.abs(1200 * np.log2(f0 / hertz)).max() < 5


def test_noise_has_no_pitch() -> None:
    assert np.isnan(f0_contour(noise(), RATE)).mean() > 0.95


@pytest.mark.parametrize("cents", [-200.0, 50.0, 100.0])
def test_the_error_of_a_known_shift(cents: float) -> None:
    shifted = tone(150 * 2 ** (cents / 1200))
    error = f0_error_cents(f0_contour(tone(150), RATE)[5:-5], f0_contour(shifted, RATE)[5:-5])
    assert error == pytest.approx(abs(cents), abs=3)


def test_frames_voiced_in_one_only_do_not_count() -> None:
    one, other = np.array([100.0, np.nan, 200.0]), np.array([200.0, 300.0, np.nan])
    assert f0_error_cents(one, other) == 1200.0
    assert f0_error_cents(one[1:], other[1:]) is None


def test_the_path_between_equal_sequences_is_straight() -> None:
    features = np.random.default_rng(0).normal(size=(30, 4))
    i, j = align(features, features)
    assert np.array_equal(i, np.arange(30))
    assert np.array_equal(i, j)


def test_a_stretched_sequence_is_followed() -> None:
    features = np.random.default_rng(0).normal(size=(20, 4))
    repeats = np.random.default_rng(1).integers(1, 4, 20)
    stretched = np.repeat(features, repeats, axis=0)
    i, j = align(features, stretched)
    assert np.array_equal(features[i], stretched[j])
    assert (i[0], j[0], i[-1], j[-1]) == (0, 0, 19, len(stretched) - 1)
    assert set(zip(np.diff(i).tolist(), np.diff(j).tolist(), strict=True)) <= {(0, 1), (1, 0), (1, 1)}


def test_speech_beside_itself() -> None:
    sound = np.concatenate([tone(120, seconds=0.4), noise(0.2), tone(200, seconds=0.4)])
    same = Aligned(sound, sound, RATE)
    assert (same.mel_distance, same.log_spectral_distance, same.f0_error_cents) == (0.0, 0.0, 0.0)


def test_a_slower_reading_is_nearer_than_another_sentence() -> None:
    parts = [(120.0, 0.3), (180.0, 0.3), (240.0, 0.3)]
    said = np.concatenate([tone(hertz, seconds=length) for hertz, length in parts])
    slower = np.concatenate([tone(hertz, seconds=1.5 * length) for hertz, length in parts])
    other = np.concatenate([tone(hertz, seconds=length) for hertz, length in reversed(parts)])
    near, far = Aligned(slower, said, RATE), Aligned(other, said, RATE)
    assert near.mel_distance < 0.5 * far.mel_distance
    assert near.f0_error_cents is not None
    assert far.f0_error_cents is not None
    assert near.f0_error_cents < 0.5 * far.f0_error_cents


def test_a_click_has_a_spectrum_too() -> None:
    assert np.isfinite(log_mel(np.ones(1, np.float32), RATE)).all()
