"""Noise: it belongs to (seed, segment, stream) and to nothing else."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shared.voice.noise import SEED_LIMIT, Stream, draw_seed, standard_normal

seeds = st.integers(0, SEED_LIMIT - 1)


@given(seeds, st.integers(1, 50), st.integers(0, 50))
def test_the_first_frames_do_not_know_how_many_follow(seed: int, length: int, more: int) -> None:
    short = standard_normal(seed, Stream.PRIOR, length=length, channels=5)
    long = standard_normal(seed, Stream.PRIOR, length=length + more, channels=5)
    assert short.shape == (5, length)
    np.testing.assert_array_equal(short, long[:, :length])


def test_every_part_of_the_key_counts() -> None:
    def draw(seed: int, stream: Stream, segment: int) -> tuple[float, ...]:
        return tuple(standard_normal(seed, stream, length=3, channels=2, segment=segment).ravel())

    keys = [(seed, stream, segment) for seed in (0, 1, 2**52) for stream in Stream for segment in (0, 1, 7)]
    assert len({draw(*key) for key in keys}) == len(keys)


def test_it_is_standard_normal() -> None:
    noise = standard_normal(3, Stream.PRIOR, length=20_000, channels=4)
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert abs((noise[0] * noise[1]).mean()) < 0.03


def test_golden_values() -> None:
    """The samples that a seed stands for must survive releases; drawn with numpy 2.4."""
    noise = standard_normal(1234, Stream.PRIOR, length=2, channels=3, segment=1)
    expected = [[0.395731688, 0.234536752], [-1.28478134, 1.09386599], [-0.351690948, 0.0726908371]]
    np.testing.assert_array_equal(noise, np.array(expected, dtype=np.float32))


def test_drawn_seeds_differ_and_are_in_range() -> None:
    drawn = {draw_seed() for _ in range(100)}
    assert len(drawn) > 95
    assert all(0 <= seed < SEED_LIMIT for seed in drawn)
