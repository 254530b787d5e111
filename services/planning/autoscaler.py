"""Kubernetes' HorizontalPodAutoscaler on one metric for each pod, as a state machine without a clock.

The algorithm is that of ``autoscaling/v2``: desired = ceil(replicas × metric ÷ target), left alone within a
tolerance; pods that are still starting count as idle where that dampens a scale-up, and not at all otherwise; then
stabilisation windows and the policies of ``behavior``. See the documentation of Kubernetes, "Horizontal Pod
Autoscaling", and ``pkg/controller/podautoscaler`` of its source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scaling:
    """An autoscaler's settings; the defaults are those of ``deploy/kubernetes/components/hpa``.

    Attributes:
        target: Backlog seconds for each pod that it aims at.
        least: Fewest pods.
        most: Most pods.
        tolerance: A metric that is so near to its target, as a share of it, changes nothing.
        sync_seconds: How often it decides.
        up_window_seconds: It grows to the least that was recommended for so long.
        down_window_seconds: It shrinks to the most that was recommended for so long.
        up_percent: Growth in `up_period_seconds` at most, in percent of the pods, or…
        up_pods: …by so many pods, whichever is more.
        up_period_seconds: Of these two.
        down_percent: Shrinkage in `down_period_seconds` at most, in percent of the pods, or…
        down_pods: …by so many pods, whichever is more.
        down_period_seconds: Of these two.
    """

    target: float = 2.0
    least: int = 1
    most: int = 20
    tolerance: float = 0.1
    sync_seconds: float = 15.0
    up_window_seconds: float = 0.0
    down_window_seconds: float = 300.0
    up_percent: float = 100.0
    up_pods: int = 2
    up_period_seconds: float = 15.0
    down_percent: float = 0.0
    down_pods: int = 1
    down_period_seconds: float = 60.0


def desired_replicas(metrics: Sequence[float], starting: int, target: float, tolerance: float = 0.1) -> int:
    """What the metric alone asks for.

    Args:
        metrics: Of each pod that is ready, at least one.
        starting: Pods that are not ready yet.
        target: What each pod's metric should be.
        tolerance: A ratio so near to 1 changes nothing.
    """
    replicas = len(metrics) + starting
    ratio = sum(metrics) / len(metrics) / target
    if not starting or ratio <= 1:
        return replicas if abs(1 - ratio) <= tolerance else math.ceil(ratio * len(metrics))
    dampened = sum(metrics) / replicas / target
    if dampened <= 1 + tolerance:
        return replicas
    return max(replicas, math.ceil(dampened * replicas))


@dataclass
class Autoscaler:
    """Decides again and again how many pods there are to be. Times are seconds that do not go back."""

    scaling: Scaling
    _recommended: list[tuple[float, int]] = field(default_factory=list)
    _changes: list[tuple[float, int]] = field(default_factory=list)

    def decide(self, now: float, metrics: Sequence[float], starting: int) -> int:
        """How many pods there are to be from now on.

        Args:
            now: The time.
            metrics: Of each pod that is ready; with none of them nothing changes.
            starting: Pods that are not ready yet.
        """
        current = len(metrics) + starting
        if not metrics:
            return current
        scaling = self.scaling
        wanted = desired_replicas(metrics, starting, scaling.target, scaling.tolerance)
        decided = self._limited(now, current, self._stabilised(now, current, wanted))
        decided = min(max(decided, scaling.least), scaling.most)
        if decided != current:
            self._changes.append((now, decided - current))
        return decided

    def _stabilised(self, now: float, current: int, wanted: int) -> int:
        scaling = self.scaling
        self._recommended.append((now, wanted))
        longest = max(scaling.up_window_seconds, scaling.down_window_seconds)
        self._recommended = [(at, count) for at, count in self._recommended if at >= now - longest]

        def within(seconds: float, pick: Callable[[Sequence[int]], int]) -> int:
            return pick([wanted, *(count for at, count in self._recommended if at > now - seconds)])

        up = within(scaling.up_window_seconds, min)
        down = within(scaling.down_window_seconds, max)
        return min(max(current, up), down)

    def _limited(self, now: float, current: int, wanted: int) -> int:
        scaling = self.scaling
        longest = max(scaling.up_period_seconds, scaling.down_period_seconds)
        self._changes = [(at, by) for at, by in self._changes if at > now - longest]

        def before(period: float) -> int:
            return current - sum(by for at, by in self._changes if at > now - period)

        if wanted > current:
            start = before(scaling.up_period_seconds)
            most = max(start + scaling.up_pods, math.ceil(start * (1 + scaling.up_percent / 100)))
            return min(wanted, max(current, most))
        start = before(scaling.down_period_seconds)
        least = min(start - scaling.down_pods, int(start * (1 - scaling.down_percent / 100)))
        return max(wanted, min(current, least))
