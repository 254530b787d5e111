"""The autoscaler against the examples of Kubernetes' own documentation, and its properties."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from services.planning.autoscaler import Autoscaler, Scaling, desired_replicas

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize(
    ("metrics", "starting", "desired"),
    [
        # "if the current metric value is 200m, and the desired value is 100m, the number of replicas will be doubled"
        ([200.0], 0, 2),
        ([200.0] * 3, 0, 6),
        # "If the current value is instead 50m, you'll halve the number of replicas"
        ([50.0] * 4, 0, 2),
        # "skips any scaling action if the ratio is sufficiently close to 1.0 (… 0.1 by default)"
        ([109.0] * 5, 0, 5),
        ([91.0] * 5, 0, 5),
        ([111.0] * 5, 0, 6),
        # Pods that are not ready are "assumed to be consuming 0% of the desired metric" when it scales up…
        ([300.0] * 2, 2, 6),
        ([150.0] * 2, 2, 4),
        # …and set aside when it scales down.
        ([40.0] * 4, 2, 2),
    ],
)
def test_desired_replicas_as_documented(metrics: list[float], starting: int, desired: int) -> None:
    assert desired_replicas(metrics, starting, 100.0) == desired


def test_scaling_down_as_documented() -> None:
    """80 replicas are to become 10, by 10 % or 4 a minute: 72, then "7.2 but the number is rounded up to 8"…"""
    scaler = Autoscaler(
        Scaling(
            target=100, most=100, down_percent=10, down_pods=4, down_window_seconds=0, down_period_seconds=60
        )
    )
    pods, seen = 80, []
    for minute in range(1, 12):
        pods = scaler.decide(minute * 60.0, [1000.0 / pods] * pods, 0)
        seen.append(pods)
    # "When the number of replicas falls below 40 … 4 replicas will be reduced each time."
    assert seen == [72, 64, 57, 51, 45, 40, 36, 32, 28, 24, 20]


def test_growth_is_limited_in_each_period() -> None:
    scaler = Autoscaler(Scaling(target=1, most=1000))
    pods, seen = 1, []
    for turn in range(1, 5):
        pods = scaler.decide(turn * 15.0, [50.0] * pods, 0)
        seen.append(pods)
    # Two pods or twice as many, whichever is more.
    assert seen == [3, 6, 12, 24]
    hurried = Autoscaler(Scaling(target=1, most=1000))
    assert hurried.decide(15, [50.0], 0) == 3
    assert hurried.decide(20, [50.0] * 3, 0) == 3, "the same period grows once"


def test_it_shrinks_to_the_most_of_the_window() -> None:
    scaler = Autoscaler(Scaling(target=1, most=20, down_window_seconds=300, down_percent=100))
    assert scaler.decide(0, [1.0] * 10, 0) == 10
    for now in range(15, 300, 15):
        assert scaler.decide(now, [0.0] * 10, 0) == 10
    assert scaler.decide(301, [0.0] * 10, 0) == 1


def test_no_metric_changes_nothing() -> None:
    assert Autoscaler(Scaling()).decide(15, [], 3) == 3


def test_defaults_are_those_of_the_manifest() -> None:
    manifest = ROOT / "deploy/kubernetes/components/hpa/hpa.yaml"
    spec = yaml.safe_load(manifest.read_text(encoding="utf-8"))["spec"]
    up, down = spec["behavior"]["scaleUp"], spec["behavior"]["scaleDown"]

    def limit(policies: list[dict[str, Any]], kind: str) -> float:
        return float(sum(policy["value"] for policy in policies if policy["type"] == kind))

    assert Scaling() == Scaling(
        target=float(spec["metrics"][0]["pods"]["target"]["averageValue"]),
        least=spec["minReplicas"],
        most=spec["maxReplicas"],
        up_window_seconds=up["stabilizationWindowSeconds"],
        down_window_seconds=down["stabilizationWindowSeconds"],
        up_percent=limit(up["policies"], "Percent"),
        up_pods=int(limit(up["policies"], "Pods")),
        up_period_seconds=up["policies"][0]["periodSeconds"],
        down_percent=limit(down["policies"], "Percent"),
        down_pods=int(limit(down["policies"], "Pods")),
        down_period_seconds=down["policies"][0]["periodSeconds"],
    )


@given(
    metrics=st.lists(st.floats(0, 100), min_size=1, max_size=30),
    starting=st.integers(0, 5),
    least=st.integers(1, 5),
    more=st.integers(0, 20),
)
def test_it_stays_within_its_bounds(metrics: list[float], starting: int, least: int, more: int) -> None:
    scaler = Autoscaler(Scaling(least=least, most=least + more, target=3))
    for turn in range(3):
        assert least <= scaler.decide(turn * 15.0, metrics, starting) <= least + more


@given(metrics=st.lists(st.floats(0, 100), min_size=1, max_size=30), more=st.floats(0, 100))
def test_more_backlog_never_wants_fewer_pods(metrics: list[float], more: float) -> None:
    worse = [metric + more for metric in metrics]
    assert desired_replicas(worse, 0, 3.0) >= desired_replicas(metrics, 0, 3.0)
