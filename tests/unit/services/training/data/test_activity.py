"""Where somebody speaks, and cutting there."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.training.data.activity import cut, energy_spans, parted, speech_spans
from services.training.data.listening import Ears
from shared.audio import Audio
from tests.unit.services.training.data.conftest import Tone


def test_speech_is_where_it_is_loud(tone: Tone) -> None:
    pause = np.zeros(8000, np.float32)
    audio = Audio(np.concatenate([pause, tone(1.0), pause, tone(0.5), pause]), 16_000)
    spans = energy_spans(audio)
    assert np.ravel(spans) == pytest.approx([0.5, 1.5, 2.0, 2.5], abs=0.021)
    assert energy_spans(Audio(np.zeros(16000, np.float32), 16_000)) == []


def test_ears_are_asked_at_their_own_rate(tone: Tone) -> None:
    heard: list[int] = []

    def speech(samples: np.ndarray) -> list[tuple[float, float]]:
        heard.append(len(samples))
        return [(0.1, 0.4)]

    assert speech_spans(Audio(tone(1.0, rate=22_050), 22_050), Ears(speech=speech)) == [(0.1, 0.4)]
    assert heard == [16_000]


_LENGTHS = st.lists(st.tuples(st.floats(0.05, 30), st.floats(0.01, 3)), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(_LENGTHS, st.floats(0.05, 0.3), st.floats(0.2, 1.0))
def test_pieces_are_in_order_within_limits_and_hold_all_speech_that_is_long_enough(
    lengths: list[tuple[float, float]], margin: float, pause: float
) -> None:
    spans, at = [], 0.5
    for speech, silence in lengths:
        spans.append((at, at + speech))
        at += speech + silence
    pieces = cut(spans, at, shortest=1.0, longest=15.0, pause=pause, margin=margin)
    assert all(1.0 <= end - start <= 15.0 + 1e-6 for start, end in pieces)
    assert all(one[1] <= other[0] + 1e-9 for one, other in itertools.pairwise(pieces))
    for start, end in spans:
        if end - start >= 1.0:
            held = sum(max(0.0, min(end, b) - max(start, a)) for a, b in pieces)
            assert held == pytest.approx(end - start, abs=1e-6)


def test_speech_without_a_pause_is_parted_where_it_is_quietest(tone: Tone) -> None:
    samples = tone(40.0)
    for dip in (11.0, 19.5, 31.0):
        samples[round(dip * 16_000) : round((dip + 0.06) * 16_000)] *= 0.2
    parts = parted([(0.0, 40.0)], Audio(samples, 16_000), 14.0)
    assert all(end - start <= 14.0 for start, end in parts)
    assert [start for start, _ in parts] == pytest.approx([0.0, 11.03, 19.53, 31.03], abs=0.03)
    assert parted([(0.0, 14.0), (15.0, 16.0)], Audio(samples, 16_000), 14.0) == [(0.0, 14.0), (15.0, 16.0)]
