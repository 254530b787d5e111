"""Means, differences and their intervals."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from services.evaluation import Score, compare
from services.evaluation.statistics import (
    difference,
    difference_of_rates,
    estimate,
    estimate_rate,
    estimate_ratio,
)
from services.evaluation.transcripts import Errors


def draw(count: int, *, mean: float = 3.0, spread: float = 0.5, seed: int = 0) -> list[float]:
    values: list[float] = np.random.default_rng(seed).normal(mean, spread, count).tolist()
    return values


def width(low: float | None, high: float | None) -> float:
    assert low is not None
    assert high is not None
    return high - low


def test_the_interval_of_a_mean_is_as_wide_as_the_normal_one() -> None:
    values = draw(400)
    found = estimate(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.mean < found.high
    assert width(found.low, found.high) == pytest.approx(2 * 1.96 * np.std(values) / np.sqrt(400), rel=0.05)


def test_intervals_shrink_with_more_sentences() -> None:
    widths = [width(one.low, one.high) for one in (estimate(draw(count)) for count in (20, 80, 320, 1280))]
    assert all(later < 0.65 * earlier for earlier, later in pairwise(widths))


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    covered = 0
    for seed in range(200):
        found = estimate(draw(60, seed=seed), resamples=500, seed=seed)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 3.0 <= found.high
    assert 0.89 <= covered / 200 <= 0.99


def test_the_same_seed_gives_the_same_interval() -> None:
    values = draw(30)
    assert estimate(values) == estimate(values)
    assert estimate(values) != estimate(values, seed=1)


def test_one_sentence_has_no_interval() -> None:
    assert (estimate([3.0]).low, estimate([3.0]).high) == (None, None)
    one = difference([3.0], [2.5])
    assert (one.mean, one.low, one.high) == (-0.5, None, None)


def test_error_rates_are_pooled_over_words() -> None:
    found = estimate_rate([Errors(1, 1), Errors(0, 9)])
    assert found.mean == 0.1
    assert estimate_ratio([1.0, 2.0], [10.0, 20.0]).mean == pytest.approx(0.1)


def test_a_paired_difference_is_surer_than_the_figures() -> None:
    reference = draw(50, spread=1.0)
    candidate = [value - 0.1 + 0.01 * (number % 3) for number, value in enumerate(reference)]
    found = difference(reference, candidate)
    assert found.mean == pytest.approx(-0.09, abs=0.002)
    assert (
        width(found.low, found.high) < 0.02 < width(*(lambda one: (one.low, one.high))(estimate(reference)))
    )
    assert found.high is not None
    assert found.high < 0
    assert (found.reference, found.candidate) == (float(np.mean(reference)), float(np.mean(candidate)))


def test_systems_alike_differ_by_nothing() -> None:
    errors = [Errors(number % 3, 10) for number in range(20)]
    found = difference_of_rates(errors, errors)
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)
    assert found.total == 200


def test_a_difference_of_word_errors_by_words() -> None:
    reference = [Errors(0, 10)] * 20
    candidate = [Errors(1 if number < 4 else 0, 10) for number in range(20)]
    found = difference_of_rates(reference, candidate)
    assert found.mean == pytest.approx(0.02)
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low < 0.02 < found.high < 0.05
    better = difference_of_rates(candidate, reference)
    assert better.mean == pytest.approx(-0.02)


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="did not say the same"):
        difference_of_rates([Errors(0, 3)], [Errors(0, 4)])
    with pytest.raises(ValueError, match="cannot be paired"):
        difference([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="cannot be paired"):
        compare([], [])


def test_comparing_leaves_out_what_a_judge_did_not_score() -> None:
    one = Score(1.0, dnsmos=3.0, words=Errors(0, 3), characters=Errors(0, 9))
    other = Score(1.0, dnsmos=2.5, distillmos=4.0, words=Errors(1, 3), characters=Errors(2, 9))
    found = compare([one, one], [other, other])
    assert set(found) == {"dnsmos", "wer", "cer"}
    assert found["dnsmos"].mean == -0.5
    assert found["wer"].mean == pytest.approx(1 / 3)
    assert found["wer"].total == 6
