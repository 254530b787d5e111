"""Properties of the scheduler, on a simulated clock: nobody is forgotten, nobody starves, order is kept."""

from __future__ import annotations

import copy
import heapq
import math
from dataclasses import dataclass, field, replace
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import OverloadedError
from shared.voice.scheduler import (
    Finish,
    Job,
    Policy,
    Release,
    Scheduler,
    Unit,
    WindowShape,
    _Request,
    _Wish,
)

#: Engine seconds of a rendering, and of a call of the decoder beside what its windows take.
RENDER, CALL = 0.02, 0.001
#: Engine seconds of an audio second in the decoder.
DECODE = 0.1


@dataclass
class Request:
    """What a simulated client asks for, and what became of it."""

    at: float
    segments: list[list[float]]
    """Audio seconds of each window of each segment."""
    pauses: list[float]
    priority: Literal["interactive", "bulk"] = "interactive"
    voice: str = "joe"
    deadline: float | None = None
    leaves_after: int | None = None
    """Releases after which the client goes away."""
    number: int = 0
    heard: list[tuple[int, int | None]] = field(default_factory=list)
    first_at: float = math.inf
    ended: str = ""
    ended_at: float = math.inf

    def expected(self) -> list[tuple[int, int | None]]:
        return [
            unit
            for segment, windows in enumerate(self.segments)
            for unit in [*((segment, window) for window in range(len(windows))), (segment, None)]
        ]


class World:
    """Plays requests against a scheduler, with engines that take their time."""

    def __init__(
        self, policy: Policy, requests: list[Request], *, failing: frozenset[int] = frozenset()
    ) -> None:
        self.scheduler = Scheduler(policy)
        self.requests = requests
        self.by_number: dict[int, Request] = {}
        self.failing = failing
        """Jobs, by their number, that fail."""
        self.jobs: list[Job] = []
        self.began: list[float] = []
        """When each job did."""
        self.running: set[Unit] = set()

    def play(self) -> World:
        events: list[tuple[float, int, str, object]] = []
        ticket = 0
        for request in self.requests:
            heapq.heappush(events, (request.at, ticket := ticket + 1, "arrive", request))
        free = self.scheduler.policy.streams
        while events:
            now, _, kind, what = heapq.heappop(events)
            if kind == "arrive":
                assert isinstance(what, Request)
                self.arrive(now, what)
            elif kind == "done":
                assert isinstance(what, Job)
                free += 1
                self.done(now, what)
            self.expire(now)
            while free and (job := self.scheduler.next(now)):
                assert not self.running & set(job.units), "computed twice at once"
                self.running |= set(job.units)
                self.jobs.append(job)
                self.began.append(now)
                free -= 1
                seconds = RENDER if job.renders else CALL + DECODE * job.audio_seconds
                heapq.heappush(events, (now + seconds, ticket := ticket + 1, "done", job))
            wake = self.scheduler.wake_at()
            if wake < math.inf and not any(event[0] <= wake for event in events):
                heapq.heappush(events, (wake, ticket := ticket + 1, "wake", None))
        return self

    def arrive(self, now: float, request: Request) -> None:
        length = sum(map(sum, request.segments)) / 0.065
        deadline = None if request.deadline is None else now + request.deadline
        try:
            request.number = self.scheduler.admit(
                now, request.voice, length, priority=request.priority, deadline=deadline
            )
        except OverloadedError:
            request.ended, request.ended_at = "refused", now
            return
        self.by_number[request.number] = request
        self.scheduler.plan(request.number, [sum(windows) / 0.065 for windows in request.segments])

    def expire(self, now: float) -> None:
        for number in self.scheduler.expire(now):
            self.end(number, "late", now)

    def end(self, number: int, how: str, now: float) -> None:
        request = self.by_number[number]
        assert request.ended == "", f"answered twice: {request.ended}, {how}"
        request.ended, request.ended_at = how, now

    def done(self, now: float, job: Job) -> None:
        self.running -= set(job.units)
        if len(self.jobs) - 1 in self.failing or self.jobs.index(job) in self.failing:
            self.failing -= {self.jobs.index(job)}
            for number in self.scheduler.failed(job):
                self.end(number, "failed", now)
            return
        unit = job.units[0]
        if job.renders:
            request = self.by_number[unit.request]
            audio = request.segments[unit.segment]
            shapes = [WindowShape(round(seconds * 100), seconds) for seconds in audio]
            released = self.scheduler.rendered(
                job,
                now,
                engine_seconds=RENDER,
                windows=shapes,
                pause_seconds=request.pauses[unit.segment],
                characters=sum(audio) / 0.065,
            )
        else:
            released = self.scheduler.decoded(job, now, engine_seconds=CALL + DECODE * job.audio_seconds)
        for event in released:
            self.hear(now, event)

    def hear(self, now: float, event: Release | Finish) -> None:
        request = self.by_number[event.request]
        if isinstance(event, Finish):
            self.end(event.request, "spoken", now)
            return
        if request.ended:
            return
        assert request.ended == ""
        request.first_at = min(request.first_at, now)
        request.heard.append((event.segment, event.window))
        if event.window is not None:
            self.scheduler.take(event.request, request.segments[event.segment][event.window])
        else:
            self.scheduler.take(event.request, request.pauses[event.segment])
        leaves = request.leaves_after is not None and len(request.heard) >= request.leaves_after
        if leaves and self.scheduler.cancel(event.request):
            self.end(event.request, "left", now)


windows = st.lists(st.sampled_from([0.25, 0.5, 1.5]), min_size=0, max_size=4)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    segments = draw(st.lists(windows, min_size=1, max_size=4))
    return Request(
        at=draw(st.floats(0, 3)),
        segments=segments,
        pauses=[draw(st.sampled_from([0.0, 0.3])) for _ in segments],
        priority=draw(st.sampled_from(["interactive", "bulk"])),
        voice=draw(st.sampled_from(["joe", "ana"])),
        deadline=draw(st.none() | st.floats(0.01, 2)),
        leaves_after=draw(st.none() | st.integers(1, 5)),
    )


policies = st.builds(
    Policy,
    streams=st.integers(1, 3),
    max_batch=st.integers(1, 4),
    max_backlog_seconds=st.sampled_from([0.2, 5.0]),
    buffer_seconds=st.sampled_from([0.3, 20.0]),
)


@settings(deadline=None, max_examples=300)
@given(
    policy=policies,
    asked=st.lists(requests(), min_size=1, max_size=12),
    failing=st.frozensets(st.integers(0, 30)),
)
def test_every_request_is_answered_once_and_in_order(
    policy: Policy, asked: list[Request], failing: frozenset[int]
) -> None:
    world = World(policy, asked, failing=failing).play()
    assert len(world.scheduler) == 0
    assert world.scheduler.backlog_seconds() == 0
    assert not world.running
    for request in asked:
        assert request.ended in {"spoken", "refused", "late", "failed", "left"}
        if request.ended == "spoken":
            assert request.heard == request.expected()
        else:
            assert request.heard == request.expected()[: len(request.heard)]
        if request.deadline is not None and request.ended in {"spoken", "late"}:
            assert request.ended_at <= request.at + request.deadline + RENDER + 1.0
    for job in world.jobs:
        assert len(job.units) <= policy.max_batch
        assert len({unit.request for unit in job.units if unit.window is None}) <= 1
    done = [unit for job in world.jobs for unit in job.units]
    if not failing:
        assert len(done) == len(set(done)), "computed twice"


class Forgetful(Scheduler):
    """The same without a memory: every wish is looked for anew."""

    def _wish(self, number: int, request: _Request) -> _Wish | None:
        request.changed = True
        return super()._wish(number, request)


@settings(deadline=None, max_examples=100)
@given(
    policy=policies,
    asked=st.lists(requests(), min_size=1, max_size=12),
    failing=st.frozensets(st.integers(0, 30)),
)
def test_what_a_request_wants_is_remembered_no_longer_than_it_is_true(
    policy: Policy, asked: list[Request], failing: frozenset[int]
) -> None:
    plain = World(policy, copy.deepcopy(asked), failing=failing)
    plain.scheduler = Forgetful(policy)
    assert World(policy, asked, failing=failing).play().jobs == plain.play().jobs


@settings(deadline=None, max_examples=100)
@given(policy=policies, asked=st.lists(requests(), min_size=1, max_size=8))
def test_who_leaves_leaves_nothing(policy: Policy, asked: list[Request]) -> None:
    scheduler = Scheduler(replace(policy, max_backlog_seconds=1e6))
    numbers = []
    for request in asked:
        number = scheduler.admit(0, request.voice, 0)
        scheduler.plan(number, [sum(audio) for audio in request.segments])
        numbers.append(number)
    job = scheduler.next(0)
    for number in numbers:
        assert scheduler.cancel(number)
        assert not scheduler.cancel(number)
    assert scheduler.next(0) is None
    assert len(scheduler) == 0
    assert scheduler.backlog_seconds() == 0
    assert job is not None
    assert scheduler.rendered(job, 1, engine_seconds=1, windows=[WindowShape(1, 1.0)]) == []


def test_a_plan_and_a_reader_that_takes_are_noticed() -> None:
    scheduler = Scheduler(Policy(buffer_seconds=1))
    number = scheduler.admit(0, "joe", 10)
    assert scheduler.next(0) is None, "not planned"
    scheduler.plan(number, [10])
    rendering = scheduler.next(0)
    assert rendering
    scheduler.rendered(rendering, 0, engine_seconds=0.01, windows=[WindowShape(10, 1.5)] * 2)
    first = scheduler.next(0)
    assert first
    scheduler.decoded(first, 0, engine_seconds=0.01)
    assert scheduler.next(0) is None, "the buffer is full"
    scheduler.take(number, 1.5)
    assert scheduler.next(0)


def long(at: float = 0.0, **fields: object) -> Request:
    """A text of a minute, in sentences of 4 s."""
    return Request(at, [[0.25, 1.5, 1.5, 0.75]] * 15, [0.3] * 15, **fields)  # type: ignore[arg-type]


def short(at: float = 0.0, **fields: object) -> Request:
    """A sentence of 2 s."""
    return Request(at, [[0.25, 1.5, 0.25]], [0.0], **fields)  # type: ignore[arg-type]


def test_a_short_text_does_not_wait_behind_a_long_one() -> None:
    alone, behind = short(), short(at=1.0)
    World(Policy(), [alone]).play()
    World(Policy(), [long(), behind]).play()
    assert behind.ended_at - behind.at <= 2 * (alone.ended_at - alone.at)
    assert behind.first_at - behind.at <= alone.first_at + CALL + DECODE * 1.5


@pytest.mark.parametrize("patience", [None, 20.0])
def test_the_nearer_deadline_goes_first(patience: float | None) -> None:
    """Two minutes that come together take 7 s each: turn and turn about, neither would be over within 9."""
    patient, pressed = long(deadline=patience), long(deadline=9)
    World(Policy(), [patient, pressed]).play()
    assert (patient.ended, pressed.ended) == ("spoken", "spoken")
    assert pressed.ended_at < 9 < patient.ended_at


def test_first_windows_of_a_crowd_come_before_the_second_windows() -> None:
    crowd = [short() for _ in range(8)]
    world = World(Policy(), crowd).play()
    firsts = [number for number, job in enumerate(world.jobs) if job.units[0].window == 0]
    later = [number for number, job in enumerate(world.jobs) if (job.units[0].window or 0) > 0]
    assert max(firsts) < min(later)


def test_bulk_waits_behind_interactive_but_does_not_starve() -> None:
    """Interactive texts keep the engine busy for minutes; one bulk text comes at the beginning."""
    bulk = short(at=0.0, priority="bulk")
    crowd = [short(at=number * 0.2) for number in range(600)]
    World(Policy(max_backlog_seconds=5), [bulk, *crowd]).play()
    assert bulk.ended == "spoken"
    assert bulk.ended_at < 30
    assert sum(request.ended == "spoken" for request in crowd) > 300


@pytest.mark.parametrize("streams", [1, 2])
def test_bulk_has_its_share_and_no_more_while_interactive_texts_never_cease(streams: int) -> None:
    """Interactive texts for half a minute, more than the engine can do, and as much bulk as is let in."""

    def crowd() -> list[Request]:
        return [short(at=number * 0.2 / streams) for number in range(150 * streams)]

    bulk, undisturbed, disturbed = [long(priority="bulk") for _ in range(12)], crowd(), crowd()
    policy = Policy(streams=streams, max_backlog_seconds=3, max_bulk_backlog_seconds=200)
    World(policy, undisturbed).play()
    world = World(policy, [*bulk, *disturbed]).play()
    made = {"interactive": 0.0, "bulk": 0.0}
    for at, job in zip(world.began, world.jobs, strict=True):
        if at < disturbed[-1].at:
            made[world.by_number[job.units[0].request].priority] += job.audio_seconds
    assert made["bulk"] / sum(made.values()) == pytest.approx(policy.bulk_share, abs=0.03)

    def longest_wait(crowd: list[Request]) -> float:
        return max(request.ended_at - request.at for request in crowd if request.ended == "spoken")

    assert longest_wait(disturbed) < 1.1 * longest_wait(undisturbed) / (1 - policy.bulk_share)


def test_bulk_that_has_waited_long_does_not_overtake() -> None:
    """A minute of bulk work waits already for longer than anybody has patience."""
    bulk = [long(priority="bulk") for _ in range(10)]
    sentence = [0.25, *[1.5] * 6, 0.75]
    alone, guest = Request(0, [sentence], [0.0]), Request(22, [sentence], [0.0])
    World(Policy(), [alone]).play()
    World(Policy(), [*bulk, guest]).play()
    assert sum(request.ended == "spoken" for request in bulk) >= 9
    call = CALL + DECODE * 1.5
    assert guest.first_at - guest.at <= alone.first_at + call
    assert guest.ended_at - guest.at <= alone.ended_at / (1 - Policy().bulk_share) + 2 * call


def test_a_bulk_text_with_a_deadline_does_not_overtake_either() -> None:
    bulk = [long(priority="bulk", deadline=8) for _ in range(2)]
    alone, guest = short(), short(at=2.0)
    World(Policy(), [alone]).play()
    World(Policy(max_bulk_backlog_seconds=1000), [*bulk, guest]).play()
    assert guest.ended_at - guest.at <= alone.ended_at / (1 - Policy().bulk_share) + 2 * (CALL + DECODE * 1.5)


def test_interactive_texts_count_the_share_that_bulk_takes_and_no_more() -> None:
    scheduler = Scheduler(Policy(max_bulk_backlog_seconds=1e6))
    scheduler.admit(0, "joe", 100)
    alone = scheduler.backlog_seconds("interactive")
    scheduler.admit(0, "joe", 1, priority="bulk")
    assert scheduler.backlog_seconds("interactive") == pytest.approx(alone * 1.01)
    scheduler.admit(0, "joe", 1e5, priority="bulk")
    assert scheduler.backlog_seconds("interactive") == pytest.approx(alone / 0.9)


def test_bulk_lets_interactive_pass() -> None:
    bulk = [long(priority="bulk") for _ in range(3)]
    alone, guest = short(), short(at=2.0)
    World(Policy(), [alone]).play()
    World(Policy(max_bulk_backlog_seconds=1000), [*bulk, guest]).play()
    assert guest.ended_at - guest.at <= 2 * alone.ended_at + CALL + DECODE * 1.5
    assert all(request.ended == "spoken" for request in bulk)


def test_ten_times_overload_refuses_the_rest_and_keeps_the_others_quick() -> None:
    crowd = [short(at=number * 0.02) for number in range(3000)]
    World(Policy(max_backlog_seconds=2), crowd).play()
    spoken = [request for request in crowd if request.ended == "spoken"]
    refused = [request for request in crowd if request.ended == "refused"]
    assert len(spoken) + len(refused) == len(crowd)
    assert len(refused) > len(crowd) / 2
    # Nothing is wasted: the engine is busy all the time.
    assert len(spoken) * 2 * DECODE > 0.8 * 60
    # Nobody who was let in waits longer than the limit and their own work.
    assert max(request.ended_at - request.at for request in spoken) < 2 * 2 + 1


def test_windows_of_one_voice_and_width_share_calls() -> None:
    crowd = [short(voice=voice) for voice in ("joe", "ana") * 4]
    world = World(Policy(max_batch=4), crowd).play()
    decoded = [job for job in world.jobs if not job.renders]
    assert any(len(job.units) == 4 for job in decoded)
    for job in decoded:
        voices = {world.by_number[unit.request].voice for unit in job.units}
        assert voices == {job.voice}
    # Not beyond what a call may last: 1.5 s of audio take 0.15 s.
    long_ones = [job for job in decoded if (job.units[0].window or 0) == 1]
    assert all(len(job.units) == 1 for job in long_ones[1:])


def test_the_windows_of_a_failed_batch_are_tried_alone() -> None:
    scheduler = Scheduler(Policy(max_batch=2))
    numbers = [scheduler.admit(0, "joe", 10) for _ in range(2)]
    for number in numbers:
        scheduler.plan(number, [10])
    for job in [scheduler.next(0) for _ in numbers]:
        assert job is not None
        scheduler.rendered(job, 0, engine_seconds=0.01, windows=[WindowShape(10, 0.1)])
    batch = scheduler.next(0)
    assert batch is not None
    assert len(batch.units) == 2
    assert scheduler.failed(batch) == []
    first = scheduler.next(0)
    assert first is not None
    assert len(first.units) == 1
    assert scheduler.failed(first) == [first.units[0].request]
    second = scheduler.next(0)
    assert second is not None
    assert len(second.units) == 1
    events = scheduler.decoded(second, 0, engine_seconds=0.01)
    assert Finish(second.units[0].request) in events
    assert scheduler.next(0) is None
    assert len(scheduler) == 0


def test_a_failed_batch_beyond_the_buffer_is_tried_again() -> None:
    """Its reader cannot take anything before."""
    scheduler = Scheduler(Policy(max_batch=2, max_call_seconds=1, buffer_seconds=1))
    scheduler.plan(scheduler.admit(0, "joe", 10), [10])
    rendering = scheduler.next(0)
    assert rendering
    scheduler.rendered(rendering, 0, engine_seconds=0.01, windows=[WindowShape(10, 0.9)] * 2)
    batch = scheduler.next(0)
    assert batch
    assert len(batch.units) == 2
    scheduler.failed(batch)
    assert [job.units for job in (scheduler.next(0), scheduler.next(0)) if job] == [
        (unit,) for unit in batch.units
    ]


def test_the_backlog_is_what_the_engine_then_takes() -> None:
    scheduler = Scheduler(Policy())
    world = World(Policy(), [short(at=number) for number in range(5)]).play()
    number = world.scheduler.admit(100, "joe", 60 / 0.065)
    # A minute of audio at the measured speed.
    assert world.scheduler.backlog_seconds() == pytest.approx(60 * (DECODE + RENDER / 2), rel=0.1)
    assert scheduler.backlog_seconds() == 0
    world.scheduler.cancel(number)
    assert world.scheduler.backlog_seconds() == 0


def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    scheduler = Scheduler(Policy(max_backlog_seconds=100))
    scheduler.plan(scheduler.admit(0, "joe", 1000), [1000])
    with pytest.raises(OverloadedError) as caught:
        scheduler.admit(0, "joe", 1, deadline=1)
    assert caught.value.retry_after_seconds >= 1
    scheduler.admit(0, "joe", 1, deadline=50)
