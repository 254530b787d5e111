"""Which recordings go into which batch: a function of the arguments alone, so that a position can be resumed.

Recordings of like length share a bucket, and a batch holds recordings of one bucket, so that little of it is
padding. The buckets never change; what shares a batch, and which batch comes when, is drawn anew each epoch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Buckets to aim for: as many quantiles of length.
_BUCKETS = 16
#: Batches that each process takes from a bucket, at least: with one alone, the same recordings would always
#: share a batch.
_MIN_ROUNDS = 4


@dataclass(frozen=True)
class _Bucket:
    """Recordings of like length."""

    members: tuple[int, ...]
    capacity: int
    """Recordings a batch."""
    rounds: int
    """Batches that each process takes from it in an epoch."""


@dataclass(frozen=True)
class Curriculum:
    """Easy recordings first (Bengio et al., 2009): the share of them that is seen grows from epoch to epoch.

    Attributes:
        difficulty: Of every recording; only its order matters.
        epochs: From this one on, counted from 0, all recordings are seen.
        start: The first epoch's share.
    """

    difficulty: tuple[float, ...]
    epochs: int
    start: float

    def seen(self, epoch: int, least: int) -> list[int] | None:
        """The positions of an epoch's recordings, of which there are at least so many; None for all."""
        count = len(self.difficulty)
        share = self.start + (1 - self.start) * epoch / self.epochs
        wanted = max(least, math.ceil(share * count))
        if wanted >= count:
            return None
        return sorted(range(count), key=lambda index: (self.difficulty[index], index))[:wanted]


def difficulty(frames: Sequence[int], tokens: Sequence[int]) -> tuple[float, ...]:
    """How hard recordings are: the mean of two ranks, of their length and of how unusual their speaking rate is.

    Args:
        frames: Of every recording.
        tokens: Of every transcript.
    """
    rates = np.log(np.asarray(tokens) / np.asarray(frames))
    unusual = np.abs(rates - np.median(rates))
    ranks = [np.argsort(np.argsort(values, kind="stable"), kind="stable") for values in (frames, unusual)]
    return tuple(np.mean(ranks, axis=0).tolist())


class BucketSampler:
    """Plans the batches of any epoch.

    Every recording is in an epoch once. Where the recordings of a bucket do not fill the last batch of every
    process, some are in it a second time; a bucket with fewer than one batch for each process is dealt out
    in smaller batches instead, and repeats only what leaves a process without any.

    With neither ``group_by_length`` nor ``frame_budget`` there is one bucket, and ``world`` processes together
    see at every position exactly what one process with a ``world`` times larger batch sees there.

    Args:
        lengths: Frames of every recording.
        batch_size: Most recordings in a batch.
        seed: The run's.
        world: Processes; each gets as many batches as the others, at the same position of like length.
        group_by_length: Batch recordings of like length.
        frame_budget: Most frames in a batch, padding included; implies ``group_by_length``. A recording that
            is longer gets a batch of its own.
        curriculum: Leaves the harder recordings out of the first epochs, which see the others more often instead,
            in as many batches.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int,
        seed: int,
        world: int = 1,
        group_by_length: bool = False,
        frame_budget: int | None = None,
        curriculum: Curriculum | None = None,
    ) -> None:
        self._seed, self._world = seed, world
        self._lengths, self._batch_size, self._curriculum = lengths, batch_size, curriculum
        self._by_length: dict[str, Any] = {"group_by_length": group_by_length, "frame_budget": frame_budget}
        if group_by_length or frame_budget is not None:
            self._buckets = _by_length(lengths, batch_size, world, frame_budget)
        else:
            everything = tuple(range(len(lengths)))
            self._buckets = [_bucket(everything, batch_size, world)] if everything else []

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one process in one epoch; the same for every process and epoch."""
        return sum(bucket.rounds for bucket in self._buckets)

    @property
    def settings(self) -> dict[str, Any]:
        """What its batches follow from, beside the seed: a position means the same wherever all of it does.

        Without regard to lengths it is the processes' batches together that count, as if one process had them.
        """
        by_length = self._by_length["group_by_length"] or self._by_length["frame_budget"] is not None
        return {
            "per_device_train_batch_size": self._batch_size * (1 if by_length else self._world),
            "processes": self._world if by_length else 1,
            "group_by_length": self._by_length["group_by_length"],
            "max_frames_per_batch": self._by_length["frame_budget"],
            "recordings": len(self._lengths),
            "lengths": _digest(list(self._lengths)) if by_length else None,
            "curriculum": self._curriculum and _digest(self._curriculum),
        }

    def left(
        self, settings: Mapping[str, Any], epoch: int, batches: int, of: Sequence[int] | None
    ) -> list[int] | None:
        """What an epoch still has once so many batches of another sampler have been drawn of it.

        Args:
            settings: The other's.
            epoch: From 0.
            batches: Of each process.
            of: The recordings that the epoch was made of; None for all.

        Returns:
            Positions of recordings; None where it cannot be told: these are other recordings, or a curriculum
            repeats some.
        """
        curriculum = settings["curriculum"] or self._curriculum
        same = settings["recordings"] == len(self._lengths)
        if curriculum or not same or settings["lengths"] not in (None, _digest(list(self._lengths))):
            return None
        other = BucketSampler(
            self._lengths,
            batch_size=settings["per_device_train_batch_size"],
            seed=self._seed,
            world=settings["processes"],
            group_by_length=settings["group_by_length"],
            frame_budget=settings["max_frames_per_batch"],
        )
        drawn = {
            index
            for rank in range(settings["processes"])
            for batch in other.epoch(epoch, rank, of=of)[:batches]
            for index in batch
        }
        return [index for index in (range(len(self._lengths)) if of is None else of) if index not in drawn]

    def epoch(
        self, epoch: int, rank: int = 0, *, first: int | None = 0, of: Sequence[int] | None = None
    ) -> list[list[int]]:
        """The batches of one process in one epoch, in order.

        Args:
            epoch: From 0.
            rank: The process, from 0.
            first: The epoch that the curriculum counts from; None for an epoch without it.
            of: What :meth:`left` left of the epoch; None for a whole one.

        Returns:
            The positions of the recordings in ``lengths``, batch by batch.
        """
        generator = np.random.default_rng([self._seed, epoch])
        if of is not None:
            return [[of[index] for index in batch] for batch in self._over(of)._pass(generator, rank)]
        seen = None
        if self._curriculum and first is not None:
            seen = self._curriculum.seen(epoch - first, self._batch_size * self._world)
        if seen is not None:
            return self._epoch_of(seen, generator, rank)
        return self._pass(generator, rank)

    def _over(self, some: Sequence[int]) -> BucketSampler:
        """The same of some of the recordings, without a curriculum."""
        return BucketSampler(
            [self._lengths[index] for index in some],
            batch_size=self._batch_size,
            seed=self._seed,
            world=self._world,
            **self._by_length,
        )

    def _epoch_of(self, seen: Sequence[int], generator: np.random.Generator, rank: int) -> list[list[int]]:
        """As many batches as any epoch has, of some of the recordings."""
        some = self._over(seen)
        batches: list[list[int]] = []
        while len(batches) < self.batches_per_epoch:
            batches += some._pass(generator, rank)
        return [[seen[index] for index in batch] for batch in batches[: self.batches_per_epoch]]

    def _pass(self, generator: np.random.Generator, rank: int) -> list[list[int]]:
        """One pass over all recordings."""
        batches: list[list[int]] = []
        for bucket in self._buckets:
            order = generator.permutation(bucket.members)
            per_round = bucket.capacity * self._world
            if len(order) < per_round:
                shares = np.array_split(np.resize(order, max(len(order), self._world)), self._world)
                batches.append(shares[rank].tolist())
                continue
            rounds = np.resize(order, (bucket.rounds, self._world, bucket.capacity))
            batches += rounds[:, rank].tolist()
        if len(self._buckets) > 1:
            batches = [batches[index] for index in generator.permutation(len(batches))]
        return batches


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _bucket(members: Sequence[int], capacity: int, world: int) -> _Bucket:
    return _Bucket(tuple(members), capacity, rounds=-(-len(members) // (capacity * world)))


def _by_length(
    lengths: Sequence[int], batch_size: int, world: int, frame_budget: int | None
) -> list[_Bucket]:
    """Cut the recordings, longest first, into buckets of whole rounds: only the shortest are left over."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    rounds = max(_MIN_ROUNDS, len(order) // (batch_size * world * _BUCKETS))
    buckets: list[_Bucket] = []
    while order:
        capacity = batch_size
        if frame_budget is not None:
            capacity = max(1, min(batch_size, frame_budget // max(1, lengths[order[0]])))
        size = rounds * capacity * world
        if len(order) - size < capacity * world:  # less than a round would be left
            size = len(order)
        buckets.append(_bucket(order[:size], capacity, world))
        order = order[size:]
    return buckets
