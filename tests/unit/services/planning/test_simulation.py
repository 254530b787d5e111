"""The simulation keeps the laws that every queue keeps, whatever its engine costs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from services.planning.autoscaler import Scaling
from services.planning.profile import Profile
from services.planning.simulation import Outcome, Settings, Simulation, TextWork, engine_seconds
from services.planning.workload import Load
from shared.voice.scheduler import Policy
from tests.unit.services.planning.conftest import make_profile, make_texts

PATIENT = Policy(max_backlog_seconds=1e9)


def play(
    texts: list[TextWork], profile: Profile, rate: float, seconds: float = 100.0, **settings: object
) -> Outcome:
    chosen = Settings(**{"pods": 2, "policy": PATIENT, **settings})  # type: ignore[arg-type]
    return Simulation(texts, profile, chosen).run(Load("constant", rate, seconds))


def capacity(texts: list[TextWork], profile: Profile) -> float:
    return profile.streams * len(texts) / sum(engine_seconds(text, profile) for text in texts)


def test_work_is_conserved() -> None:
    """What the engines were busy with is what the texts cost, no more and no less."""
    profile = make_profile(render_spread=[1.0], decode_spread=[1.0])
    texts = make_texts(profile, "uniform:10-200")
    arrivals = [(0.3 * number, number) for number in range(100)]
    outcome = Simulation(texts, profile, Settings(pods=3, policy=PATIENT)).run(arrivals)
    assert outcome.busy_seconds == pytest.approx(sum(engine_seconds(text, profile) for text in texts[:100]))
    assert outcome.audio == pytest.approx([text.audio_seconds for text in texts[:100]])
    assert outcome.refused == 0
    assert 0 < outcome.utilisation <= 1


def test_an_engine_never_rests_while_somebody_waits() -> None:
    """All come at once: the last is spoken when the work is done, and the engine was busy all the time."""
    profile = make_profile(render_spread=[1.0], decode_spread=[1.0], planning_seconds_per_character=0.0)
    texts = make_texts(profile, "fixed:60")
    outcome = Simulation(texts, profile, Settings(pods=1, policy=PATIENT, door_seconds=0.0)).run(
        [(0.0, number) for number in range(40)]
    )
    assert outcome.span == pytest.approx(outcome.busy_seconds)


def test_littles_law(profile: Profile, texts: list[TextWork]) -> None:
    outcome = play(texts, profile, 0.7 * 2 * capacity(texts, profile))
    assert outcome.arrivals > 100
    assert outcome.in_flight == pytest.approx(outcome.arrivals / outcome.span * outcome.mean_seconds)


def test_the_same_seed_gives_the_same_and_another_does_not(profile: Profile, texts: list[TextWork]) -> None:
    rate = capacity(texts, profile)
    first, again = (play(texts, profile, rate, seed=5) for _ in range(2))
    other = play(texts, profile, rate, seed=6)
    assert np.array_equal(first.total, again.total)
    assert first.busy_seconds == again.busy_seconds
    assert len(other.total) != len(first.total) or not np.array_equal(other.total, first.total)


def figures(outcome: Outcome) -> list[float]:
    """Some numbers of an outcome, of which none stays if an event comes before another one instead of after it."""
    return [
        len(outcome.total),
        float(np.isinf(outcome.total).sum()),
        float(outcome.first_audio[np.isfinite(outcome.first_audio)].sum()),
        float(outcome.total[np.isfinite(outcome.total)].sum()),
        outcome.busy_seconds,
        outcome.pod_seconds,
        outcome.span,
        sum(sample.backlog_seconds for sample in outcome.samples),
        sum(sample.pods * number for number, sample in enumerate(outcome.samples)),
    ]


@pytest.mark.parametrize(
    ("settings", "load", "golden"),
    [
        (
            {"pods": 3, "policy": Policy(max_batch=4, buffer_seconds=2.0), "balancing": "least-requests"},
            Load("constant", 9.0, 200.0),
            [
                1789,
                217,
                186.9417249478259,
                13362.970564947824,
                1234.9942959999887,
                622.6842315470459,
                207.56141051568196,
                278.05758617582865,
                2460,
            ],
        ),
        (
            {"pods": 1, "scaling": replace(Scaling(), target=1.0, most=5, down_window_seconds=60.0)},
            Load("daily", 9.0, 900.0),
            [
                4563,
                4,
                453.30385000049756,
                6173.033452188389,
                3372.4854959998006,
                2851.346239208582,
                900.187428352041,
                117.814740302449,
                53103,
            ],
        ),
    ],
)
def test_results_stay_what_they_were(
    profile: Profile, texts: list[TextWork], settings: dict[str, object], load: Load, golden: list[float]
) -> None:
    """Numbers of the plain scheduler and simulation, from before anything was remembered between events."""
    streams = profile.model_copy(update={"streams": 2})
    outcome = Simulation(texts, streams, Settings(**settings)).run(load, warm_up=10.0)  # type: ignore[arg-type]
    assert figures(outcome) == pytest.approx(golden, rel=1e-9)


def test_more_pods_are_never_slower(profile: Profile, texts: list[TextWork]) -> None:
    rate = 2 * capacity(texts, profile)
    outcomes = [play(texts, profile, rate, 200.0, pods=pods) for pods in (3, 4, 6, 12)]
    waits = [outcome.percentile("first_audio", 95) for outcome in outcomes]
    assert waits == sorted(waits, reverse=True)
    assert [outcome.utilisation for outcome in outcomes] == sorted(
        (outcome.utilisation for outcome in outcomes), reverse=True
    )
    # The same requests come, however many pods there are.
    assert len({outcome.arrivals for outcome in outcomes}) == 1


def test_overload_is_refused_and_keeps_the_others_quick(profile: Profile, texts: list[TextWork]) -> None:
    policy = Policy(max_backlog_seconds=4.0)
    calm = play(texts, profile, 0.2 * capacity(texts, profile), pods=1, policy=policy)
    crowded = play(texts, profile, 3 * capacity(texts, profile), 50.0, pods=1, policy=policy)
    assert calm.refused == 0
    assert 0.5 < crowded.refused < 0.8
    assert crowded.utilisation > 0.95
    assert np.isinf(crowded.total[crowded.audio == 0]).all()
    # Who was let in waits for the limit and the own work, not for the whole queue.
    assert crowded.percentile("first_audio", 99) < 4.0 + 2.0
    patient = play(texts, profile, 3 * capacity(texts, profile), 50.0, pods=1)
    assert patient.refused == 0
    assert patient.percentile("total", 95) > crowded.percentile("total", 95)


def test_a_request_alone_waits_for_its_own_work_only() -> None:
    profile = make_profile(render_spread=[1.0], decode_spread=[1.0])
    texts = make_texts(profile, "uniform:10-200")
    outcome = Simulation(texts, profile, Settings(pods=1, door_seconds=0.25)).run(
        [(1000.0 * number, number) for number in range(len(texts))]
    )
    for text, first, total in zip(texts, outcome.first_audio, outcome.total, strict=True):
        window = profile.decode(text.segments[0].windows[0].width)
        assert first == pytest.approx(0.25 + text.planning_seconds + text.segments[0].render_seconds + window)
        assert total == pytest.approx(0.25 + text.planning_seconds + engine_seconds(text, profile))


@pytest.mark.parametrize("balancing", ["random", "round-robin", "least-requests"])
def test_every_balancing_reaches_every_pod(profile: Profile, texts: list[TextWork], balancing: str) -> None:
    outcome = play(texts, profile, 2 * capacity(texts, profile), 60.0, pods=4, balancing=balancing)
    one = play(texts, profile, 2 * capacity(texts, profile), 60.0, pods=1, balancing=balancing)
    assert outcome.percentile("total", 50) < one.percentile("total", 50) / 3


def test_choosing_the_emptiest_pod_beats_chance(profile: Profile, texts: list[TextWork]) -> None:
    rate = 3.2 * capacity(texts, profile)
    waits = {
        balancing: play(texts, profile, rate, 200.0, pods=4, balancing=balancing).percentile("total", 95)
        for balancing in ("random", "least-requests")
    }
    assert waits["least-requests"] < waits["random"]


SCALING = Scaling(target=1.0, least=1, most=6, down_window_seconds=30.0, up_pods=4, down_percent=100.0)


def scaled(texts: list[TextWork], profile: Profile, load: Load, **settings: object) -> Outcome:
    chosen: dict[str, object] = {"pods": 1, "scaling": SCALING, "pod_start_seconds": 20.0} | settings
    return Simulation(texts, profile, Settings(**chosen)).run(load)  # type: ignore[arg-type]


def test_pods_come_with_the_load_and_go_with_it(profile: Profile, texts: list[TextWork]) -> None:
    peak = 3 * capacity(texts, profile)
    outcome = scaled(texts, profile, Load("daily", peak, 900.0))
    pods = [sample.pods for sample in outcome.samples]
    assert pods[0] == 1
    assert 3 <= max(pods) <= 6
    assert pods[-1] < max(pods)
    assert min(sample.ready for sample in outcome.samples) >= 1
    # Nobody waits for ever while pods go: each request was answered.
    assert np.isfinite(outcome.total).sum() + np.isinf(outcome.total).sum() == len(outcome.total)
    assert outcome.refused < 0.3
    assert outcome.pod_seconds < 6 * outcome.span


def test_pods_that_start_slowly_cost_refusals(profile: Profile, texts: list[TextWork]) -> None:
    load = Load("constant", 3 * capacity(texts, profile), 200.0)
    quick, slow = (scaled(texts, profile, load, pod_start_seconds=seconds) for seconds in (1.0, 120.0))
    assert quick.refused < slow.refused


def test_a_pod_that_goes_finishes_what_it_let_in(profile: Profile, texts: list[TextWork]) -> None:
    scaling = replace(SCALING, down_window_seconds=0.0, target=1000.0)
    simulation = Simulation(
        texts, profile, Settings(pods=4, policy=PATIENT, scaling=scaling, metric_delay_seconds=0)
    )
    outcome = simulation.run(Load("constant", 3.5 * capacity(texts, profile), 60.0))
    assert outcome.samples[0].pods == 4
    assert outcome.samples[-1].pods == 1
    assert np.isfinite(outcome.total).all()
    assert math.isfinite(outcome.pod_seconds)


def test_load_has_the_shape_that_was_asked_for() -> None:
    generator = np.random.default_rng(0)
    for shape, early, late in (("constant", 10.0, 10.0), ("ramp", 1.0, 10.0), ("daily", 1.0, 1.0)):
        load = Load(shape, 10.0, 10_000.0)  # type: ignore[arg-type]
        assert load.rate(np.array([0.0, 10_000.0])) == pytest.approx([early, late])
        times = load.arrivals(generator)
        expected = load.rate(np.linspace(0, 10_000, 10_001)).mean() * 10_000
        assert len(times) == pytest.approx(expected, rel=0.05)
        assert (np.diff(times) >= 0).all()
    assert Load("daily", 10.0, 100.0).rate(np.array([50.0])) == pytest.approx([10.0])
