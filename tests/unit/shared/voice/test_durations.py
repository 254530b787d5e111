"""Durations and the stretched prior, against one-frame-at-a-time references."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import EngineError
from shared.voice.durations import expand_prior, frame_counts


@given(
    st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=30),
    st.sampled_from([0.5, 1.0, 1.25, 2.0]),
)
def test_frames_are_rounded_up(log_durations: list[float], rate: float) -> None:
    counts = frame_counts(
        np.array(log_durations, dtype=np.float32), speaking_rate=rate, max_frames_per_token=1e6
    )
    for log_duration, count in zip(log_durations, counts, strict=True):
        exact = math.exp(log_duration) / rate
        assert count in {math.ceil(exact * (1 - 1e-6)), math.ceil(exact * (1 + 1e-6))}


def test_a_text_lasts_one_frame_at_least() -> None:
    silent = np.full(3, -1000, dtype=np.float32)
    assert frame_counts(silent, speaking_rate=1.0, max_frames_per_token=10).tolist() == [1, 0, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1000.0, 30.0])
def test_broken_durations_do_not_fill_the_memory(value: float) -> None:
    log_duration = np.array([0.0, value], dtype=np.float32)
    with pytest.raises(EngineError, match=r"to speak 2 tokens.*durations are broken"):
        frame_counts(log_duration, speaking_rate=1.0, max_frames_per_token=500)


def test_each_frame_has_its_tokens_statistics() -> None:
    generator = np.random.default_rng(0)
    mean, log_std = generator.standard_normal((2, 4, 3)).astype(np.float32)
    counts = np.array([2, 0, 1, 3])
    noise = generator.standard_normal((3, 6)).astype(np.float32)
    sample = expand_prior(mean, log_std, counts, noise)
    for frame, token in enumerate([0, 0, 2, 3, 3, 3]):
        expected = mean[token] + noise[:, frame] * np.exp(log_std[token])
        np.testing.assert_allclose(sample[:, frame], expected, rtol=1e-6)
    assert sample.dtype == np.float32
