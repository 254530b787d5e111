"""Pods that speak without speaking: the scheduler that serves, on a clock of events.

Every pod runs `shared.voice.scheduler.Scheduler` itself, with its admission rule; the texts are cut by the real
front end and window plan. Simulated is what lies around it: how long a call of the engine takes (`Profile`), when
requests come, to which pod they go, and when pods come and go.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from services.planning.autoscaler import Autoscaler, Scaling
from services.planning.profile import Profile
from services.planning.workload import Load
from shared.errors import OverloadedError
from shared.text.script import Script
from shared.voice.scheduler import Finish, Job, Policy, Scheduler, WindowShape
from shared.voice.windows import plan_windows

Balancing = Literal["random", "round-robin", "least-requests"]

#: A text's planning runs beside the engines, on so many threads: see `services.synthesis.speaker`.
PLANNERS = 2
#: How often a gauge is looked at, in seconds.
SAMPLE_SECONDS = 5.0
#: Who waits for the end is told of it after so many arrivals.
TOLD_ARRIVALS = 100


@dataclass(frozen=True)
class SegmentWork:
    """A segment as the engine meets it.

    Attributes:
        characters: Of its text, over its speaking rate.
        render_seconds: Expected time of its rendering.
        windows: Into which it falls.
        pause_seconds: Silence after it.
    """

    characters: float
    render_seconds: float
    windows: tuple[WindowShape, ...]
    pause_seconds: float


@dataclass(frozen=True)
class TextWork:
    """A text as the engine meets it."""

    characters: int
    planning_seconds: float
    segments: tuple[SegmentWork, ...]

    @property
    def audio_seconds(self) -> float:
        """Length of its audio, silence included."""
        return sum(
            sum(window.audio_seconds for window in segment.windows) + segment.pause_seconds
            for segment in self.segments
        )


def works(planned: Sequence[tuple[str, Script]], profile: Profile, seed: int) -> list[TextWork]:
    """What texts cost on a machine; how long their segments last is drawn."""
    generator = np.random.default_rng(seed)
    spec = profile.spec
    rate = spec.defaults.speaking_rate
    frame_seconds = spec.hop_length / spec.sampling_rate

    def segment(script: Script, number: int) -> SegmentWork:
        said = script.segments[number]
        tokens = len(said.tokens.ids)
        tempo = profile.frames_per_token * math.exp(generator.normal(0, profile.frames_deviation))
        frames = max(1, round(tokens * tempo / said.speaking_rate)) if tokens else 0
        windows = tuple(
            WindowShape(window.width, (window.last - window.first) * frame_seconds)
            for window in plan_windows(frames, spec.decoder)
        )
        seconds = profile.render(spec.token_bucket(tokens), spec.frame_bucket(frames)) if tokens else 0.0
        return SegmentWork(len(said.text) / (rate * said.speaking_rate), seconds, windows, said.pause_seconds)

    return [
        TextWork(
            len(text),
            len(text) * profile.planning_seconds_per_character,
            tuple(segment(script, number) for number in range(len(script.segments))),
        )
        for text, script in planned
    ]


def engine_seconds(text: TextWork, profile: Profile) -> float:
    """Expected time of all calls for a text."""
    return sum(
        segment.render_seconds + sum(profile.decode(window.width) for window in segment.windows)
        for segment in text.segments
    )


@dataclass(eq=False)
class _Request:
    text: TextWork
    arrived: float
    first: float = math.inf
    finished: float = math.inf
    refused: bool = False


@dataclass(eq=False)
class _Pod:
    scheduler: Scheduler
    started: float
    ready_at: float
    free: int
    stopped: float = math.inf
    busy: float = 0.0
    planners: list[float] = field(default_factory=lambda: [0.0] * PLANNERS)
    requests: dict[int, _Request] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """What is simulated, beside the load.

    Attributes:
        pods: At the beginning; all of them ready.
        policy: Every pod's scheduler. Its streams are the profile's.
        balancing: How a request finds its pod. ``random`` is what a Kubernetes Service does with connections.
        door_seconds: What HTTP or gRPC adds to a request before its text is planned.
        scaling: The autoscaler; none leaves the pods as they are.
        pod_start_seconds: From the decision for a pod until it is ready.
        metric_delay_seconds: Age of the metrics that the autoscaler sees.
        seed: Of all that is drawn.
    """

    pods: int
    policy: Policy = field(default_factory=Policy)
    balancing: Balancing = "random"
    door_seconds: float = 0.005
    scaling: Scaling | None = None
    pod_start_seconds: float = 30.0
    metric_delay_seconds: float = 15.0
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    """The pods at one time.

    Attributes:
        at: Seconds.
        pods: Those that are there and not stopping.
        ready: Those of them that take requests.
        backlog_seconds: Mean backlog of the ready ones.
        requests_per_second: The load's rate.
    """

    at: float
    pods: int
    ready: int
    backlog_seconds: float
    requests_per_second: float


@dataclass(frozen=True)
class Outcome:
    """What came of it. Arrays have an entry for each request that arrived after the warm-up, in that order.

    Attributes:
        seconds: Simulated time after the warm-up.
        first_audio: Seconds to the first audio; infinity where refused.
        total: Seconds to the last audio; infinity where refused.
        audio: Seconds of audio; 0 where refused.
        in_flight: Requests in the pods, on average over time, from the beginning to the end of the last request.
        arrivals: Requests in all, with those of the warm-up.
        mean_seconds: Mean time that requests spent in the pods, those of the warm-up and refused ones included.
        span: From the beginning to the end of the last request.
        busy_seconds: Of all streams.
        pod_seconds: Of all pods, from their start to their end.
        samples: The pods over time.
        streams: Of a pod.
    """

    seconds: float
    first_audio: NDArray[np.float64]
    total: NDArray[np.float64]
    audio: NDArray[np.float64]
    in_flight: float
    arrivals: int
    mean_seconds: float
    span: float
    busy_seconds: float
    pod_seconds: float
    samples: list[Sample]
    streams: int

    @property
    def refused(self) -> float:
        """Share of the requests that were refused."""
        return float(np.mean(np.isinf(self.total))) if len(self.total) else 0.0

    @property
    def throughput(self) -> float:
        """Audio seconds asked for and made, a second."""
        return float(self.audio.sum()) / self.seconds

    @property
    def utilisation(self) -> float:
        """Share of the streams' time that was used."""
        return self.busy_seconds / (self.pod_seconds * self.streams) if self.pod_seconds else 0.0

    def percentile(self, what: Literal["first_audio", "total"], percent: float) -> float:
        """Of the requests that were not refused; not a number where there is none."""
        values: NDArray[np.float64] = getattr(self, what)
        spoken = values[np.isfinite(values)]
        return float(np.percentile(spoken, percent)) if len(spoken) else math.nan


class _Draws:
    """Random numbers one by one, of a generator that makes them in blocks."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator
        self._values: Iterator[float] = iter(())

    def __call__(self) -> float:
        for value in self._values:
            return value
        self._values = iter(self._generator.random(4096).tolist())
        return next(self._values)


class Simulation:
    """One run. The same arguments give the same outcome.

    Args:
        texts: Of which each request has one.
        profile: How long the engine takes.
        settings: The pods.
    """

    def __init__(self, texts: Sequence[TextWork], profile: Profile, settings: Settings) -> None:
        self._texts = texts
        self._profile = profile
        self._settings = settings
        self._events: list[tuple[float, int, Callable[[float, Any], None], Any]] = []
        self._ticket = 0
        # Apart from one another, so that the same requests come whatever the pods do.
        streams = np.random.SeedSequence(settings.seed).spawn(4)
        self._arriving, self._choosing = map(np.random.default_rng, streams[:2])
        self._balance, self._spread = (_Draws(np.random.default_rng(seed)) for seed in streams[2:])
        self._decode = {
            window.width: profile.decode(window.width)
            for text in texts
            for segment in text.segments
            for window in segment.windows
        }
        self._pods: list[_Pod] = []
        self._ready: list[_Pod] = []
        self._gone: list[_Pod] = []
        self._turn = 0
        self._autoscaler = Autoscaler(settings.scaling) if settings.scaling else None
        self._seen: list[tuple[float, list[float], int]] = []
        self._samples: list[Sample] = []
        self._requests: list[_Request] = []

    def run(
        self,
        load: Load | Sequence[tuple[float, int]],
        *,
        warm_up: float = 0.0,
        progress: Callable[[float], None] = lambda share: None,
    ) -> Outcome:
        """Play a load to its end.

        Args:
            load: Of which requests are drawn; or when each comes and the number of its text.
            warm_up: Requests that arrive before this time are not in the outcome's arrays.
            progress: Told of the share that is done.
        """
        if isinstance(load, Load):
            times = load.arrivals(self._arriving)
            chosen = self._choosing.integers(len(self._texts), size=len(times))
            arrivals = list(zip(times.tolist(), chosen.tolist(), strict=True))
            end = load.seconds
        else:
            arrivals = sorted(load, key=lambda arrival: arrival[0])
            end = arrivals[-1][0] if arrivals else 0.0
        self._load, self._end = load, end
        for _ in range(self._settings.pods):
            self._start_pod(-math.inf, 0.0)
        self._at(0.0, self._sample, None)
        if self._autoscaler:
            self._at(self._autoscaler.scaling.sync_seconds, self._scale, None)
        now, arrived = 0.0, 0
        # Arrivals, which are known from the start, stay out of the heap: it is as small as what is under way.
        while self._events or arrived < len(arrivals):
            if arrived < len(arrivals) and not (self._events and self._events[0][0] < arrivals[arrived][0]):
                now, number = arrivals[arrived]
                self._arrive(now, self._texts[number])
                arrived += 1
                if not arrived % TOLD_ARRIVALS:
                    progress(arrived / len(arrivals))
            else:
                now, _, act, what = heapq.heappop(self._events)
                act(now, what)
        return self._outcome(now, warm_up)

    def _at(self, time: float, act: Callable[[float, Any], None], what: Any) -> None:
        self._ticket += 1
        heapq.heappush(self._events, (time, self._ticket, act, what))

    # ------------------------------------------------------------------------------------------- requests

    def _arrive(self, now: float, text: TextWork) -> None:
        request = _Request(text, now)
        self._requests.append(request)
        self._at(now + self._settings.door_seconds, self._admit, request)

    def _admit(self, now: float, request: _Request) -> None:
        pod = self._choose()
        text = request.text
        try:
            number = pod.scheduler.admit(now, "voice", text.characters)
        except OverloadedError:
            request.refused, request.finished = True, now
            return
        pod.requests[number] = request
        planner = pod.planners.index(min(pod.planners))
        pod.planners[planner] = max(now, pod.planners[planner]) + text.planning_seconds
        self._at(pod.planners[planner], self._planned, (pod, number))

    def _choose(self) -> _Pod:
        ready = self._ready
        match self._settings.balancing:
            case "random":
                return ready[int(self._balance() * len(ready))]
            case "round-robin":
                self._turn += 1
                return ready[self._turn % len(ready)]
            case "least-requests":
                return min(ready, key=lambda pod: len(pod.requests))

    def _planned(self, now: float, what: tuple[_Pod, int]) -> None:
        pod, number = what
        pod.scheduler.plan(number, [segment.characters for segment in pod.requests[number].text.segments])
        self._compute(now, pod)

    # ---------------------------------------------------------------------------------------- the engine

    def _compute(self, now: float, pod: _Pod) -> None:
        while pod.free and (job := pod.scheduler.next(now)):
            pod.free -= 1
            seconds = self._seconds(pod, job)
            pod.busy += seconds
            self._at(now + seconds, self._computed, (pod, job, seconds))

    def _seconds(self, pod: _Pod, job: Job) -> float:
        text = pod.requests[job.units[0].request].text
        if job.renders:
            spread = self._profile.render_spread
            expected = text.segments[job.units[0].segment].render_seconds
        else:
            spread = self._profile.decode_spread
            expected = 0.0
            for unit in job.units:
                windows = pod.requests[unit.request].text.segments[unit.segment].windows
                expected += self._decode[windows[unit.window or 0].width]
        return expected * spread[int(self._spread() * len(spread))]

    def _computed(self, now: float, what: tuple[_Pod, Job, float]) -> None:
        pod, job, seconds = what
        pod.free += 1
        unit = job.units[0]
        if job.renders:
            segment = pod.requests[unit.request].text.segments[unit.segment]
            events = pod.scheduler.rendered(
                job,
                now,
                engine_seconds=seconds,
                windows=segment.windows,
                pause_seconds=segment.pause_seconds,
                characters=segment.characters,
            )
        else:
            events = pod.scheduler.decoded(job, now, engine_seconds=seconds)
        for event in events:
            request = pod.requests[event.request]
            if isinstance(event, Finish):
                request.finished = now
                del pod.requests[event.request]
                self._leave(now, pod)
                continue
            segment = request.text.segments[event.segment]
            heard = (
                segment.pause_seconds if event.window is None else segment.windows[event.window].audio_seconds
            )
            if heard:
                request.first = min(request.first, now)
                pod.scheduler.take(event.request, heard)
        self._compute(now, pod)

    # --------------------------------------------------------------------------------------------- the pods

    def _start_pod(self, now: float, ready_at: float) -> None:
        streams = self._profile.streams
        scheduler = Scheduler(replace(self._settings.policy, streams=streams))
        pod = _Pod(scheduler, max(now, 0.0), ready_at, streams)
        self._pods.append(pod)
        if ready_at <= 0:
            self._ready.append(pod)
        else:
            self._at(ready_at, self._become_ready, pod)

    def _become_ready(self, now: float, pod: _Pod) -> None:
        if math.isinf(pod.stopped):
            self._ready.append(pod)

    def _stop_pods(self, now: float, count: int) -> None:
        """Those that are not ready go first, then the youngest, as a ReplicaSet chooses; one that is ready stays."""
        order = sorted(self._pods, key=lambda pod: (pod.ready_at <= now, -pod.started))
        for pod in order[:count]:
            if pod in self._ready:
                if len(self._ready) == 1:
                    continue
                self._ready.remove(pod)
            self._pods.remove(pod)
            pod.stopped = now
            self._gone.append(pod)

    def _leave(self, now: float, pod: _Pod) -> None:
        """A pod that stops is there until what it had let in is spoken."""
        if math.isfinite(pod.stopped):
            pod.stopped = max(pod.stopped, now)

    def _backlogs(self) -> list[float]:
        return [pod.scheduler.backlog_seconds() for pod in self._ready]

    def _sample(self, now: float, _: object) -> None:
        backlogs = self._backlogs()
        self._seen.append((now, backlogs, len(self._pods) - len(self._ready)))
        rate = float(self._load.rate(np.array([now]))[0]) if isinstance(self._load, Load) else math.nan
        self._samples.append(
            Sample(now, len(self._pods), len(self._ready), sum(backlogs) / len(backlogs), rate)
        )
        if now + SAMPLE_SECONDS <= self._end:
            self._at(now + SAMPLE_SECONDS, self._sample, None)

    def _scale(self, now: float, _: object) -> None:
        assert self._autoscaler  # noqa: S101 - who schedules this has one
        scaling = self._autoscaler.scaling
        delayed = now - self._settings.metric_delay_seconds
        seen = [metrics for at, metrics, _ in self._seen if at <= delayed]
        self._seen = [entry for entry in self._seen if entry[0] > delayed - 2 * SAMPLE_SECONDS]
        if seen:
            # A pod that has come or gone since has no metric, or one too many.
            metrics = seen[-1][: len(self._ready)]
            metrics += [0.0] * (len(self._ready) - len(metrics))
            wanted = self._autoscaler.decide(now, metrics, len(self._pods) - len(self._ready))
            for _number in range(wanted - len(self._pods)):
                self._start_pod(now, now + self._settings.pod_start_seconds)
            self._stop_pods(now, len(self._pods) - wanted)
        if now + scaling.sync_seconds <= self._end:
            self._at(now + scaling.sync_seconds, self._scale, None)

    # --------------------------------------------------------------------------------------------- the end

    def _outcome(self, now: float, warm_up: float) -> Outcome:
        counted = [request for request in self._requests if request.arrived >= warm_up]
        pods = [*self._pods, *self._gone]
        stayed = np.array([request.finished - request.arrived for request in self._requests])
        return Outcome(
            seconds=max(self._end, now if not isinstance(self._load, Load) else 0.0) - warm_up,
            first_audio=np.array([request.first - request.arrived for request in counted]),
            total=np.array(
                [math.inf if request.refused else request.finished - request.arrived for request in counted]
            ),
            audio=np.array([0.0 if request.refused else request.text.audio_seconds for request in counted]),
            in_flight=_time_average(self._requests, now),
            arrivals=len(self._requests),
            mean_seconds=float(stayed.mean()) if len(stayed) else 0.0,
            span=now,
            busy_seconds=sum(pod.busy for pod in pods),
            pod_seconds=sum(min(pod.stopped, now) - pod.started for pod in pods),
            samples=self._samples,
            streams=self._profile.streams,
        )


def _time_average(requests: Sequence[_Request], end: float) -> float:
    """Requests that are in the pods, averaged over time: steps up at arrivals, down at departures."""
    if not end:
        return 0.0
    at = np.array([r.arrived for r in requests] + [r.finished for r in requests])
    order = np.argsort(at)
    inside = np.cumsum(np.repeat([1, -1], len(requests))[order])[:-1]
    return float(np.sum(inside * np.diff(at[order]))) / end
