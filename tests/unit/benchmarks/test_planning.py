"""The benchmark of the planner: what it makes of answers, and that its half without a server runs."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import planning
from benchmarks.planning import Answered, compared, draw_arrivals, paced, parser, simulate, sleep_through
from services.planning.profile import Profile
from services.planning.workload import draw_texts, parse_distribution, plan_texts
from shared.text import FrontEnd
from shared.text.script import Script
from tests.unit.services.planning.conftest import make_profile

Planned = list[tuple[str, Script]]


@pytest.fixture(scope="module")
def profile() -> Profile:
    return make_profile()


@pytest.fixture(scope="module")
def planned(profile: Profile) -> Planned:
    texts = draw_texts(parse_distribution("lognormal:80,0.5"), "es", seed=0, count=20)
    return plan_texts(texts, FrontEnd.from_spec(profile.spec.front_end), "es")


@pytest.fixture
def arguments() -> Namespace:
    return parser().parse_args(["--seconds", "30"])


def test_a_server_that_does_what_is_simulated_has_ratios_of_one(
    profile: Profile, planned: Planned, arguments: Namespace
) -> None:
    arrivals = draw_arrivals(1.0, len(planned), arguments)
    _, whole = simulate(planned, profile, arrivals, arguments)
    answers = [
        Answered(first, total, round(2 * profile.spec.sampling_rate * audio))
        for first, total, audio in zip(whole.first_audio, whole.total, whole.audio, strict=True)
    ]
    found = compared(planned, profile, arrivals, answers, whole.busy_seconds, arguments)
    assert found["requests"] == len(arrivals)
    assert found["pace"] == pytest.approx(1)
    for name in ("first audio p50", "first audio p95", "total p50", "total p95", "audio seconds a second"):
        assert found[name]["ratio"] == pytest.approx(1, rel=0.01), name
        assert found[name]["paced_ratio"] == pytest.approx(1, rel=0.01), name
    assert found["refused"]["served"] == found["refused"]["simulated"] == 0
    assert found["refused"]["ratio"] is None


def test_a_server_that_is_slower_than_measured_is_told_by_its_pace(
    profile: Profile, planned: Planned, arguments: Namespace
) -> None:
    arrivals = draw_arrivals(0.2, len(planned), arguments)
    _, whole = simulate(planned, paced(profile, 2.0), arrivals, arguments)
    answers = [
        Answered(first, total, round(2 * profile.spec.sampling_rate * audio))
        for first, total, audio in zip(whole.first_audio, whole.total, whole.audio, strict=True)
    ]
    found = compared(planned, profile, arrivals, answers, whole.busy_seconds, arguments)
    assert found["pace"] == pytest.approx(2, rel=0.05)
    assert found["total p50"]["ratio"] < 0.7
    assert found["total p50"]["paced_ratio"] == pytest.approx(1, rel=0.05)


def test_it_sleeps_through_a_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "WARM_UP_SECONDS", 0.0)
    make_profile(render_seconds=(1e-3, 0.0, 0.0), decode_seconds={100: 1e-3}).write(tmp_path / "profile.json")
    options = ["--sleeping", str(tmp_path / "profile.json"), "--seconds", "0.3", "--shares", "0.5"]
    found = sleep_through(parser().parse_args(options))
    (level,) = found["levels"]
    assert level["share"] == 0.5
    assert level["requests"] > 0
    assert level["total p50"]["served"] > 0
