"""Means and differences with their 95 % intervals, by the bootstrap (Efron 1979, percentile method).

Sentences are what is drawn: two systems that spoke the same sentences are compared sentence by sentence, so that
what makes a sentence hard does not blur what sets the systems apart. Error rates are pooled over the drawn
sentences, edits over words, not averaged over sentences.

Shapes: N sentences, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from services.evaluation.transcripts import Errors

if TYPE_CHECKING:
    from services.evaluation.judges import Score

Numbers = NDArray[np.float64]

RESAMPLES = 10_000
LEVEL = 0.95
#: So many drawn indices are held at a time.
_CHUNK = 2_000_000


@dataclass(frozen=True)
class Estimate:
    """A figure over several sentences.

    Attributes:
        mean: The mean; for error rates, pooled edits over pooled words.
        low: Lower end of its 95 % interval; None for a single sentence, which has none.
        high: Upper end.
        count: Sentences it is of.
    """

    mean: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """How a candidate differs from a reference on the same sentences.

    Attributes:
        mean: Candidate minus reference: below 0 is a drop.
        low: Lower end of the 95 % interval of ``mean``; None for a single sentence.
        high: Upper end.
        count: Sentences that both were scored on.
        reference: The reference's own figure on them.
        candidate: The candidate's.
        total: Words or characters of the references, for error rates; else the sentences.
    """

    mean: float
    low: float | None
    high: float | None
    count: int
    reference: float
    candidate: float
    total: int


def estimate(values: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean of several sentences' figures."""
    drawn = _rates(np.asarray(values, np.float64)[None], np.ones(len(values)), resamples, seed)
    return Estimate(float(np.mean(values)), *_interval(drawn[0], len(values)), len(values))


def estimate_rate(errors: Sequence[Errors], *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The pooled error rate of several sentences."""
    return estimate_ratio(*_counts(errors), resamples=resamples, seed=seed)


def estimate_ratio(
    parts: Sequence[float] | Numbers,
    wholes: Sequence[float] | Numbers,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """The ratio of two sums over several sentences, such as edits by words, or computing by audio seconds."""
    above, below = np.asarray(parts, np.float64), np.asarray(wholes, np.float64)
    drawn = _rates(above[None], below, resamples, seed)
    return Estimate(_ratio(above.sum(), below.sum()), *_interval(drawn[0], len(above)), len(above))


def difference(
    reference: Sequence[float], candidate: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """The mean paired difference of two systems' figures, sentence by sentence."""
    a, b = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    _check_pairs(len(a), len(b))
    drawn = _rates((b - a)[None], np.ones(len(a)), resamples, seed)
    low, high = _interval(drawn[0], len(a))
    return Difference(
        float(np.mean(b - a)), low, high, len(a), float(np.mean(a)), float(np.mean(b)), total=len(a)
    )


def difference_of_rates(
    reference: Sequence[Errors], candidate: Sequence[Errors], *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """The difference of two systems' pooled error rates; each resample draws the same sentences of both.

    Raises:
        ValueError: The two were not scored on the same texts.
    """
    _check_pairs(len(reference), len(candidate))
    (a, totals), (b, others) = _counts(reference), _counts(candidate)
    if not np.array_equal(totals, others):
        raise ValueError("the two systems' sentences have different lengths: they did not say the same texts")
    before, after = _rates(np.stack([a, b]), totals, resamples, seed)
    low, high = _interval(after - before, len(a))
    words = totals.sum()
    rates = _ratio(a.sum(), words), _ratio(b.sum(), words)
    return Difference(rates[1] - rates[0], low, high, len(a), *rates, total=int(words))


def compare(
    reference: Sequence[Score], candidate: Sequence[Score], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Difference]:
    """Compare two systems that spoke the same sentences, by every judge that scored both.

    Args:
        reference: The scores of one, sentence by sentence.
        candidate: The scores of the other, in the same order.
        resamples: Bootstrap resamples.
        seed: Of the drawing; the same scores and seed give the same intervals.

    Returns:
        By judge: ``dnsmos``, ``distillmos``, ``wer``, ``cer``. A judge that is missing has no entry.

    Raises:
        ValueError: The lists differ in length, are empty, or are of different texts.
    """
    _check_pairs(len(reference), len(candidate))
    found: dict[str, Difference] = {}
    for name in ("dnsmos", "distillmos"):
        pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(reference, candidate, strict=True)]
        if all(None not in pair for pair in pairs):
            found[name] = difference(*zip(*pairs, strict=True), resamples=resamples, seed=seed)
    for name, field in (("wer", "words"), ("cer", "characters")):
        errors = [(getattr(a, field), getattr(b, field)) for a, b in zip(reference, candidate, strict=True)]
        if all(None not in pair for pair in errors):
            found[name] = difference_of_rates(*zip(*errors, strict=True), resamples=resamples, seed=seed)
    return found


def _check_pairs(one: int, other: int) -> None:
    if one != other or one == 0:
        raise ValueError(f"{one} and {other} sentences cannot be paired: score the same ones, at least one")


def _counts(errors: Sequence[Errors]) -> tuple[Numbers, Numbers]:
    """[N] edits and [N] words."""
    return (
        np.array([one.edits for one in errors], np.float64),
        np.array([one.total for one in errors], np.float64),
    )


def _ratio(edits: float, total: float) -> float:
    return float(edits / total) if total else 0.0


def _rates(values: Numbers, weights: Numbers, resamples: int, seed: int) -> Numbers:
    """Of [K, N] values, [K, R] sums over drawn sentences, each divided by the sum of the drawn [N] weights."""
    chunks = [
        values[:, drawn].sum(axis=2) / np.maximum(weights[drawn].sum(axis=1), 1e-9)
        for drawn in _draws(values.shape[1], resamples, seed)
    ]
    return np.concatenate(chunks, axis=1)


def _draws(count: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """[r, N] indices of the sentences of each resample, some resamples at a time."""
    generator = np.random.Generator(np.random.Philox(seed))
    at_once = max(1, _CHUNK // max(count, 1))
    for start in range(0, resamples, at_once):
        yield generator.integers(count, size=(min(at_once, resamples - start), count))


def _interval(drawn: Numbers, count: int) -> tuple[float | None, float | None]:
    """The middle 95 % of the resamples; none for one sentence, which can only be drawn as it is."""
    if count < 2:
        return None, None
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return low, high
