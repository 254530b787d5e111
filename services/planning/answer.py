"""How many pods a load needs: a search over simulations, and one with the autoscaler."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from services.planning.autoscaler import Scaling
from services.planning.profile import Profile
from services.planning.simulation import Outcome, Sample, Settings, Simulation, TextWork, engine_seconds
from services.planning.workload import Load
from shared.wording import counted

#: Requests that each number of pods is judged by: enough for a 99th percentile, and for half a percent of refusals.
REQUESTS = 5000
#: The simulated time of one number of pods is never shorter.
LEAST_SECONDS = 120.0
#: Beyond so many pods a part of them is simulated with its part of the load: among randomly chosen pods every part
#: is like every other.
SIMULATED_PODS = 12
#: The same under an autoscaler, which counts in whole pods.
SIMULATED_SCALED_PODS = 40
#: More requests than this are simulated as a part, too, where there are pods enough.
SIMULATED_REQUESTS = 200_000
#: The numbers of pods that are shown, as shares of the answer.
AROUND = (0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
#: The search is as exact as this share of the answer; chance is no more exact.
SEARCHED = 0.02
#: The search ends at so many times the pods that the work alone needs.
MOST_TIMES = 32
#: An autoscaler whose most pods nobody gave may have so many times what the peak needs: it comes after the load, and
#: goes beyond before it comes back.
ROOM = 2

#: Of which times are given.
PERCENTILES = (50, 95, 99)

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Target:
    """What is good enough.

    Attributes:
        first_audio_seconds: The percentile of the time to the first audio that must not be above it.
        percentile: Which, of `PERCENTILES`.
        refused: Share of the requests that may be refused.
    """

    first_audio_seconds: float
    percentile: int = 95
    refused: float = 0.005

    def met_by(self, outcome: Outcome) -> bool:
        """Whether an outcome is good enough."""
        waited = outcome.percentile("first_audio", self.percentile)
        return waited <= self.first_audio_seconds and outcome.refused <= self.refused


@dataclass(frozen=True)
class Row:
    """A number of pods and what it gives; times are seconds.

    Attributes:
        pods: How many; on average where an autoscaler decides.
        met: Whether the target is met.
        first_audio: 50th, 95th and 99th percentile.
        total: The same, to the last audio.
        refused: Share of the requests.
        utilisation: Share of the streams' time that is used.
        throughput: Audio seconds a second.
        cost: Of an hour of audio; none where a pod has no price.
    """

    pods: float
    met: bool
    first_audio: tuple[float, float, float]
    total: tuple[float, float, float]
    refused: float
    utilisation: float
    throughput: float
    cost: float | None


@dataclass(frozen=True)
class Alone:
    """A request on an idle pod: nothing can be sooner. Medians of its parts, in seconds.

    Attributes:
        first_audio: 50th, 95th and 99th percentile.
        door: HTTP or gRPC.
        planning: Cutting the text.
        rendering: Encoder and flow of the first segment.
        window: Decoding the first window.
    """

    first_audio: tuple[float, float, float]
    door: float
    planning: float
    rendering: float
    window: float


@dataclass(frozen=True)
class Scaled:
    """The load under an autoscaler.

    Attributes:
        row: What it gives.
        most_pods: At any time.
        at_most: Share of the time in which there were as many as there may be.
        part: Pods and load were simulated at a scale of one to this.
        samples: Over time, in whole pods of the whole.
    """

    row: Row
    most_pods: int
    at_most: float
    part: int
    samples: Sequence[Sample]


@dataclass(frozen=True)
class Answer:
    """What is planned.

    Attributes:
        pods: Fewest pods that meet the target at the load's peak, within `SEARCHED`; none where none do.
        needed: Pods that the peak fills with work, whatever the target.
        why: Why it is impossible.
        alone: The floor.
        rows: Numbers of pods around the answer, at the load's peak.
        capacity: Requests a second that one pod computes at full utilisation.
        audio_seconds: Mean length of a request's audio.
        scaling: The autoscaler, with the most pods that it was given; none where there is none.
        scaled: Under the autoscaler; none where nothing is to be scaled.
    """

    pods: int | None
    needed: int
    why: str
    alone: Alone
    rows: Sequence[Row]
    capacity: float
    audio_seconds: float
    scaling: Scaling | None
    scaled: Scaled | None


@dataclass(frozen=True)
class Question:
    """What is asked, on a machine.

    Attributes:
        texts: Of which each request has one.
        profile: The machine.
        load: The requests.
        target: What is good enough.
        settings: The pods; their number and autoscaler aside.
        scaling: The autoscaler; none for fixed pods.
        roomy: Whether the autoscaler is given more than its most pods where `ROOM` times what the peak needs are more.
        pod_price: Of an hour of a pod, in any currency.
        fixed: Judge this number of pods and search for none.
    """

    texts: Sequence[TextWork]
    profile: Profile
    load: Load
    target: Target
    settings: Settings
    scaling: Scaling | None = None
    roomy: bool = False
    pod_price: float | None = None
    fixed: int | None = None

    def answer(self, progress: Progress = lambda what, share: None) -> Answer:
        """Simulate as often as the answer needs."""
        alone = self._alone()
        capacity = self.profile.streams / self._mean(lambda text: engine_seconds(text, self.profile))
        needed = max(1, math.ceil(self.load.peak / capacity))
        seen: dict[int, Row] = {}
        why = self._impossible(alone)
        pods = self.fixed or (None if why else self._search(needed, seen, progress))
        if pods is None and not why:
            why = self._unreachable(max(seen), seen)
        around = pods or needed
        shown = sorted({max(1, round(around * share)) for share in AROUND})
        rows = [self._judged(count, seen, progress) for count in shown]
        scaling = self._limited(max(around, needed))
        scaled = self._scaled(scaling, around, progress) if scaling else None
        audio = self._mean(lambda text: text.audio_seconds)
        return Answer(pods, needed, why, alone, rows, capacity, audio, scaling, scaled)

    def _mean(self, of: Callable[[TextWork], float]) -> float:
        return sum(map(of, self.texts)) / len(self.texts)

    def _alone(self) -> Alone:
        """Each text by itself, a long time after the one before."""
        settings = replace(self.settings, pods=1, scaling=None)
        calm = [(600.0 * number, number) for number in range(len(self.texts))]
        outcome = Simulation(self.texts, self.profile, settings).run(calm)

        def median(of: Callable[[TextWork], float]) -> float:
            return sorted(map(of, self.texts))[len(self.texts) // 2]

        return Alone(
            _percentiles(outcome, "first_audio"),
            door=self.settings.door_seconds,
            planning=median(lambda text: text.planning_seconds),
            rendering=median(lambda text: text.segments[0].render_seconds),
            window=median(
                lambda text: (
                    self.profile.decode(text.segments[0].windows[0].width)
                    if text.segments[0].windows
                    else 0.0
                )
            ),
        )

    def _impossible(self, alone: Alone) -> str:
        """Why no number of pods meets the target; empty where some may."""
        target = self.target
        least = dict(zip(PERCENTILES, alone.first_audio, strict=True))[target.percentile]
        if least <= target.first_audio_seconds:
            return ""
        return (
            f"No number of pods gives a first audio within {target.first_audio_seconds:g} s: a request that is alone "
            f"on an idle pod takes {least:.3f} s (p{target.percentile}; in the median {1000 * alone.door:.0f} ms for "
            f"the door, {1000 * alone.planning:.0f} ms for planning the text, {1000 * alone.rendering:.0f} ms for "
            f"rendering its first sentence, {1000 * alone.window:.0f} ms for its first window). A faster variant "
            "('vits export'), shorter first sentences or a faster machine lower that; more pods do not."
        )

    def _unreachable(self, most: int, seen: dict[int, Row]) -> str:
        row = seen[most]
        waited = dict(zip(PERCENTILES, row.first_audio, strict=True))[self.target.percentile]
        return (
            f"Not even {most} pods meet the target: there p{self.target.percentile} of the first audio is "
            f"{waited:.3f} s and "
            f"{row.refused:.2%} are refused. The target is too near to what a request alone takes: a request that "
            "comes while another is computed waits for that call to end."
        )

    def _search(self, needed: int, seen: dict[int, Row], progress: Progress) -> int | None:
        """The fewest pods that meet the target: upwards in growing steps, then by halving."""
        failed, pods = 0, needed
        while not self._judged(pods, seen, progress).met:
            failed = pods
            pods = max(pods + 1, round(pods * 1.3))
            if failed > needed * MOST_TIMES:
                return None
        while pods - failed > max(1, pods * SEARCHED) and pods > needed:
            middle = (pods + failed) // 2
            if self._judged(middle, seen, progress).met:
                pods = middle
            else:
                failed = middle
        return pods

    def _judged(self, pods: int, seen: dict[int, Row], progress: Progress) -> Row:
        """A number of pods at the peak of the load."""
        if pods not in seen:
            part = min(pods, SIMULATED_PODS)
            rate = self.load.peak * part / pods
            warm_up = 20.0
            load = Load("constant", rate, max(LEAST_SECONDS, REQUESTS / rate) + warm_up)
            settings = replace(self.settings, pods=part, scaling=None)
            outcome = Simulation(self.texts, self.profile, settings).run(
                load,
                warm_up=warm_up,
                progress=lambda share: progress(f"simulating {counted(pods, 'pod')}", share),
            )
            seen[pods] = self._row(pods, outcome, pods / part)
        return seen[pods]

    def _row(self, pods: float, outcome: Outcome, parts: float) -> Row:
        audio = outcome.throughput * parts
        cost = self.pod_price * pods / audio if self.pod_price is not None and audio else None
        return Row(
            pods=pods,
            met=self.target.met_by(outcome),
            first_audio=_percentiles(outcome, "first_audio"),
            total=_percentiles(outcome, "total"),
            refused=outcome.refused,
            utilisation=outcome.utilisation,
            throughput=audio,
            cost=cost,
        )

    def _limited(self, pods: int) -> Scaling | None:
        """The autoscaler for a peak that needs so many pods."""
        if self.scaling and self.roomy:
            return replace(self.scaling, most=max(self.scaling.most, ROOM * pods))
        return self.scaling

    def _scaled(self, scaling: Scaling, pods: int, progress: Progress) -> Scaled:
        """The whole load under an autoscaler; its peak needs so many pods."""
        requests = self.load.peak * self.load.seconds
        fleet = min(pods, scaling.most)
        part = max(
            1, math.ceil(fleet / SIMULATED_SCALED_PODS), min(fleet // 4, round(requests / SIMULATED_REQUESTS))
        )
        simulated = _shared(scaling, part)
        load = replace(self.load, peak=self.load.peak / part)
        settings = replace(self.settings, pods=simulated.least, scaling=simulated)
        outcome = Simulation(self.texts, self.profile, settings).run(
            load, progress=lambda share: progress("simulating the autoscaler", share)
        )
        mean = outcome.pod_seconds / outcome.span
        samples = [
            replace(
                sample,
                pods=sample.pods * part,
                ready=sample.ready * part,
                requests_per_second=sample.requests_per_second * part,
            )
            for sample in outcome.samples
        ]
        row = self._row(mean * part, outcome, part)
        at_most = sum(sample.pods >= simulated.most for sample in outcome.samples) / len(samples)
        return Scaled(row, max(sample.pods for sample in samples), at_most, part, samples)


def _shared(scaling: Scaling, part: int) -> Scaling:
    """An autoscaler of one of so many parts: a pod of it is several of the whole, and goes after as much longer."""
    slower = 1.0
    if 0 < scaling.down_pods < part and not scaling.down_percent:
        slower = part / scaling.down_pods
    return replace(
        scaling,
        least=max(1, round(scaling.least / part)),
        most=max(1, scaling.most // part),
        up_pods=math.ceil(scaling.up_pods / part),
        down_pods=math.ceil(scaling.down_pods / part),
        down_period_seconds=scaling.down_period_seconds * slower,
    )


def _percentiles(outcome: Outcome, what: Literal["first_audio", "total"]) -> tuple[float, float, float]:
    middle, high, highest = (outcome.percentile(what, percent) for percent in PERCENTILES)
    return middle, high, highest
