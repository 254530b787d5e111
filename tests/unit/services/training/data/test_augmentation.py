"""Pitch, speed and noise: how much, how often, and the same again."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from services.training.data.augmentation import Augmentation, Change, moved, noisy
from tests.unit.services.training.data.conftest import Tone

RATE = 16_000
ALL = Augmentation(semitones=2, speed=0.1, noise_snr=30, probability=0.5)


def frequency(samples: NDArray[np.float32]) -> float:
    """The strongest frequency in Hz, by the middle of the sound."""
    inner = samples[len(samples) // 4 : -len(samples) // 4]
    spectrum = np.abs(np.fft.rfft(inner * np.hanning(len(inner)), 8 * RATE))
    return float(spectrum.argmax()) / 8


@pytest.mark.parametrize("semitones", [-2.0, -0.5, 0.0, 2.0])
@pytest.mark.parametrize("speed", [0.9, 1.0, 1.1])
def test_pitch_and_speed_are_independent(tone: Tone, semitones: float, speed: float) -> None:
    changed = Change(semitones=semitones, speed=speed).apply(tone(2.0, 220), RATE)
    assert len(changed) == round(2 * RATE / speed)
    assert frequency(changed) == pytest.approx(220 * 2 ** (semitones / 12), rel=0.005)
    level = np.sqrt(np.mean(changed[RATE // 2 : RATE] ** 2))
    assert level == pytest.approx(0.3 / np.sqrt(2), rel=0.03)


def test_a_sentence_keeps_its_end(tone: Tone) -> None:
    """What the stretching still holds back is flushed, not lost: a click 5 ms before the end is there."""
    samples = tone(1.0, 220, level=0.05)
    samples[-80:] = 0.8
    for speed in (0.9, 1.1):
        changed = moved(samples, RATE, pitch=1.0, speed=speed)
        assert np.abs(changed[-round(0.03 * RATE) :]).max() > 0.5, speed


def test_nothing_asked_for_is_nothing_done(tone: Tone) -> None:
    samples = tone()
    np.testing.assert_array_equal(Change().apply(samples, RATE), samples)
    assert not Augmentation()
    assert not Augmentation(probability=0, semitones=2)
    assert Augmentation().draw(1, 1, "a") is None


def test_noise_is_as_loud_as_asked_for(tone: Tone) -> None:
    samples = tone(2.0)
    noise = noisy(samples, 30, seed=3) - samples
    snr = 10 * np.log10(np.mean(samples**2) / np.mean(noise**2))
    assert snr == pytest.approx(30, abs=0.2)
    assert not noisy(np.zeros(100, np.float32), 30, seed=3).any()


def test_the_loudest_recording_does_not_clip(tone: Tone) -> None:
    loud = tone(1.0, level=1.0)
    changed = Change(semitones=1, noise_snr=20, noise_seed=1).apply(loud, RATE)
    assert np.abs(changed).max() <= 1.0


def test_draws_depend_on_seed_epoch_and_recording_alone() -> None:
    drawn = [ALL.draw(7, epoch, f"r{n}") for epoch in range(20) for n in range(50)]
    assert drawn == [ALL.draw(7, epoch, f"r{n}") for epoch in range(20) for n in range(50)]
    assert drawn != [ALL.draw(8, epoch, f"r{n}") for epoch in range(20) for n in range(50)]
    changes = [change for change in drawn if change is not None]
    assert 400 < len(changes) < 600  # a half, 1,000 draws: 6 standard deviations
    assert len({change.noise_seed for change in changes}) == len(changes)
    assert -2 <= min(c.semitones for c in changes) < -1.9 < 1.9 < max(c.semitones for c in changes) <= 2
    assert 0.9 <= min(c.speed for c in changes) < 0.905 < 1.095 < max(c.speed for c in changes) <= 1.1
    assert all(c.noise_snr is not None and 30 <= c.noise_snr <= 40 for c in changes)


def test_speed_leaves_room_for_the_tokens(tone: Tone) -> None:
    assert len(Change(speed=1.1).apply(tone(1.0), RATE, min_samples=15_500)) == 15_500
    assert len(Change(speed=1.1).apply(tone(1.0), RATE, min_samples=17_000)) == RATE
    assert len(Change(speed=0.9).apply(tone(1.0), RATE, min_samples=15_500)) == round(RATE / 0.9)
