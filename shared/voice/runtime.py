"""The threads that compute what the scheduler says, on the engines of the voices.

Every admitted request ends exactly once: heard to its end, or with an error, or given up by its listener.
When several windows fail in one call, each is tried again alone, so that one bad request fails alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shared.errors import DeadlineError, StoppingError
from shared.metrics import Metrics
from shared.voice.scheduler import Event, Finish, Job, Policy, Priority, Release, Scheduler, WindowShape
from shared.voice.spec import VoiceSpec
from shared.voice.voice import Plan, Utterance
from shared.voice.windows import Window

logger = logging.getLogger("vits.runtime")


class Worker(Protocol):
    """A voice as far as it computes: `shared.voice.Voice`. Safe to call from several threads at once."""

    @property
    def spec(self) -> VoiceSpec:
        """What it is."""

    def render(self, plan: Plan, number: int) -> Utterance:
        """Take a segment as far as the decoder."""

    def decode_windows(self, windows: list[tuple[Utterance, Window]]) -> list[NDArray[np.float32]]:
        """The samples of windows of one width."""


@dataclass(frozen=True)
class Piece:
    """A stretch of what is heard.

    Attributes:
        samples: float32 ``[S]``.
        segment: Number of the segment that it belongs to.
        durations: Frames of each token of that segment, int64 ``[T]``.
    """

    samples: NDArray[np.float32]
    segment: int
    durations: NDArray[np.int64]


class Listener(Protocol):
    """Who waits for a request. Called on the runtime's threads, one call at a time: it must not block."""

    def heard(self, piece: Piece) -> None:
        """The next piece is there."""

    def ended(self, error: Exception | None) -> None:
        """Nothing more comes: everything was heard, or it failed. Not called after `Runtime.cancel`."""


@dataclass
class Timing:
    """How a request fared, in seconds; none where it did not come so far.

    Attributes:
        queue: From admission to the first computation.
        encoder: Spent on encoder and flow, as far as first windows needed them.
        engine: Spent on all computation; windows that shared a call share its time.
        audio: Audio made.
    """

    queue: float | None = None
    encoder: float = 0.0
    engine: float = 0.0
    audio: float = 0.0


@dataclass
class _Work:
    """A request that has begun."""

    worker: Worker
    name: str
    plan: Plan
    listener: Listener
    timing: Timing
    freed: Callable[[], None]
    admitted: float
    utterances: dict[int, Utterance] = field(default_factory=dict)
    samples: dict[tuple[int, int], NDArray[np.float32]] = field(default_factory=dict)
    running: int = 0
    ended: bool = False


@dataclass(frozen=True)
class _Task:
    """A job and what is needed to compute it, gathered while nothing can change."""

    job: Job
    works: list[_Work]
    windows: list[tuple[Utterance, Window]]


class Runtime:
    """Computes for everybody at once. Its methods may be called from any thread, and return at once.

    Args:
        policy: The scheduler's settings; one thread for each of its streams.
        metrics: Told of what is computed.
        clock: Seconds that do not go back.
    """

    def __init__(
        self, policy: Policy, metrics: Metrics, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.policy = policy
        self._metrics = metrics
        self._clock = clock
        self._scheduler = Scheduler(policy)
        self._changed = threading.Condition()
        self._admitted: dict[int, float] = {}
        """Requests that have not begun, and when they were admitted."""
        self._works: dict[int, _Work] = {}
        self._closed = False
        self._threads: list[threading.Thread] = []
        self.widen(policy.streams)
        metrics.backlog_seconds.set_function(self.backlog_seconds)

    def widen(self, streams: int) -> None:
        """Compute so much at once, now that it is known how much is best; never less than before."""
        with self._changed:
            self.policy = self._scheduler.policy = replace(self.policy, streams=streams)
            for number in range(len(self._threads), streams):
                thread = threading.Thread(target=self._run, name=f"engine-{number}", daemon=True)
                self._threads.append(thread)
                thread.start()

    # ---------------------------------------------------------------------------------------- for callers

    def admit(
        self,
        voice: str,
        characters: float,
        *,
        priority: Priority = "interactive",
        deadline: float | None = None,
    ) -> int:
        """Let a request in; `begin` or `cancel` must follow. See `Scheduler.admit`.

        Raises:
            DeadlineError: Its deadline has passed.
            OverloadedError: Those before it need too long.
            StoppingError: The runtime is closed.
        """
        with self._changed:
            if self._closed:
                raise stopping()
            now = self._clock()
            number = self._scheduler.admit(now, voice, characters, priority=priority, deadline=deadline)
            self._admitted[number] = now
            return number

    def begin(
        self,
        request: int,
        worker: Worker,
        name: str,
        plan: Plan,
        listener: Listener,
        freed: Callable[[], None],
    ) -> Timing:
        """Begin to compute an admitted request.

        Args:
            request: Its number.
            worker: The voice that was named by its key when it was admitted.
            name: What metrics call the voice.
            plan: What is to be spoken.
            listener: Who waits.
            freed: Called once, when the voice is no longer used for it; must not block.

        Returns:
            How it fares, filled in as it goes on.

        Raises:
            DeadlineError: Its deadline has passed already.
            StoppingError: The runtime was closed in the meantime.
        """
        with self._changed:
            if self._closed:
                raise stopping()
            admitted = self._admitted.pop(request, None)
            if admitted is None or request not in self._scheduler:
                raise DeadlineError("The deadline passed before the text could be spoken")
            work = _Work(worker, name, plan, listener, Timing(), freed, admitted)
            self._works[request] = work
            self._scheduler.plan(request, _lengths(plan))
            self._changed.notify()
            return work.timing

    def take(self, request: int, audio_seconds: float) -> None:
        """Note that the listener has used audio, so that more may be computed."""
        with self._changed:
            self._scheduler.take(request, audio_seconds)
            self._changed.notify()

    def cancel(self, request: int) -> None:
        """Give a request up; nothing where it has ended."""
        with self._changed:
            self._admitted.pop(request, None)
            if self._scheduler.cancel(request) and request in self._works:
                self._end(request)
            self._changed.notify()

    def predicted_seconds(self, voice: str, plan: Plan) -> float:
        """How long a text is predicted to sound, pauses included."""
        pauses = sum(segment.pause_seconds for segment in plan.script.segments)
        with self._changed:
            return pauses + self._scheduler.audio_seconds(voice, sum(_lengths(plan)))

    def backlog_seconds(self) -> float:
        """How long what waits will take."""
        with self._changed:
            return self._scheduler.backlog_seconds()

    def __len__(self) -> int:
        """Requests that were admitted and have not ended."""
        with self._changed:
            return len(self._scheduler)

    def forget_voice(self, voice: str) -> None:
        """Forget what was measured of a voice that is no longer loaded."""
        with self._changed:
            self._scheduler.forget_voice(voice)

    def end(self) -> None:
        """Take and compute nothing more. Who still waits is told so."""
        with self._changed:
            self._closed = True
            for request in list(self._works):
                self._scheduler.cancel(request)
                self._end(request, stopping())
            self._changed.notify_all()

    def close(self) -> None:
        """As `end`; what is being computed is waited for."""
        self.end()
        for thread in self._threads:
            thread.join()

    # ---------------------------------------------------------------------------------------- the threads

    def _run(self) -> None:
        while task := self._wait():
            begun = self._clock()
            try:
                done = self._compute(task)
                with self._changed:
                    self._done(task, done, self._clock() - begun)
            except (
                Exception
            ) as error:  # whatever it is, the callers must be answered and the thread must live
                with self._changed:
                    self._failed(task, error)

    def _wait(self) -> _Task | None:
        """The next task; nothing once closed."""
        with self._changed:
            while not self._closed:
                now = self._clock()
                for request in self._scheduler.expire(now):
                    self._admitted.pop(request, None)
                    if request in self._works:
                        self._end(request, DeadlineError("The deadline passed before the text was spoken"))
                job = self._scheduler.next(now)
                if job is not None:
                    return self._task(job, now)
                self._changed.wait(min(self._scheduler.wake_at() - now, threading.TIMEOUT_MAX))
            return None

    def _task(self, job: Job, now: float) -> _Task:
        works = [self._works[unit.request] for unit in job.units]
        windows = []
        for work, unit in zip(works, job.units, strict=True):
            work.running += 1
            if work.timing.queue is None:
                work.timing.queue = now - work.admitted
                self._metrics.queue_seconds.observe(work.timing.queue)
            if unit.window is not None:
                utterance = work.utterances[unit.segment]
                windows.append((utterance, utterance.windows[unit.window]))
        return _Task(job, works, windows)

    def _compute(self, task: _Task) -> Utterance | list[NDArray[np.float32]]:
        work = task.works[0]
        if task.job.renders:
            return work.worker.render(work.plan, task.job.units[0].segment)
        return work.worker.decode_windows(task.windows)

    # -------------------------------------------------------------------------- results, under the lock

    def _done(self, task: _Task, done: Utterance | list[NDArray[np.float32]], seconds: float) -> None:
        now = self._clock()
        if isinstance(done, Utterance):
            events = self._rendered(task, done, seconds, now)
        else:
            self._observe_windows(task, seconds)
            for work, unit, samples in zip(task.works, task.job.units, done, strict=True):
                work.timing.engine += seconds / len(done)
                if unit.window is not None:
                    work.samples[unit.segment, unit.window] = samples
            events = self._scheduler.decoded(task.job, now, engine_seconds=seconds)
        self._deliver(events)
        self._free(task)

    def _rendered(self, task: _Task, utterance: Utterance, seconds: float, now: float) -> list[Event]:
        work, number = task.works[0], task.job.units[0].segment
        spec, segment = work.worker.spec, work.plan.script.segments[number]
        work.utterances[number] = utterance
        work.timing.encoder += seconds
        work.timing.engine += seconds
        if utterance.windows:
            self._metrics.encoder_seconds.labels(work.name).observe(seconds)
            tokens, flow = len(utterance.durations), utterance.flow
            padding = self._metrics.padding_ratio
            padding.labels("encoder").observe(1 - tokens / spec.token_bucket(tokens))
            padding.labels("flow").observe(1 - flow.frames / flow.computed_frames)
        return self._scheduler.rendered(
            task.job,
            now,
            engine_seconds=seconds,
            windows=[
                WindowShape(window.width, (window.last - window.first) * spec.hop_length / spec.sampling_rate)
                for window in utterance.windows
            ],
            pause_seconds=utterance.pause_samples / spec.sampling_rate,
            characters=len(segment.text) / (work.plan.speaking_rate * segment.speaking_rate),
        )

    def _observe_windows(self, task: _Task, seconds: float) -> None:
        metrics = self._metrics
        metrics.decoder_call_seconds.labels(task.works[0].name).observe(seconds)
        metrics.decoder_batch_windows.observe(len(task.windows))
        for _, window in task.windows:
            metrics.window_occupancy_ratio.observe((window.last - window.first) / window.width)

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            work = self._works.get(event.request)
            if work is None:
                continue
            if isinstance(event, Finish):
                self._end(event.request)
                work.listener.ended(None)
            else:
                self._release(work, event)
        self._changed.notify_all()

    def _release(self, work: _Work, event: Release) -> None:
        utterance = work.utterances[event.segment]
        if event.window is None:
            samples = utterance.pause
            del work.utterances[event.segment]
        else:
            samples = work.samples.pop((event.segment, event.window))
        if len(samples):
            seconds = len(samples) / work.worker.spec.sampling_rate
            work.timing.audio += seconds
            self._metrics.audio_seconds.labels(work.name).inc(seconds)
            work.listener.heard(Piece(samples, event.segment, utterance.durations))

    def _failed(self, task: _Task, error: Exception) -> None:
        logger.warning("a call of the engine failed for %d windows or segments: %s", len(task.works), error)
        self._metrics.engine_failures.labels(task.works[0].name).inc()
        for request in self._scheduler.failed(task.job):
            if request in self._works:
                self._end(request, error)
        self._free(task)
        self._changed.notify_all()

    def _end(self, request: int, error: Exception | None = None) -> None:
        """A request has ended; with an error, its listener is told."""
        work = self._works.pop(request)
        work.ended = True
        if error:
            work.listener.ended(error)
        if not work.running:
            work.freed()

    def _free(self, task: _Task) -> None:
        for work in task.works:
            work.running -= 1
            if work.ended and not work.running:
                work.freed()


def _lengths(plan: Plan) -> list[float]:
    """Characters of each segment, divided by its speaking rate: what the scheduler predicts by."""
    return [
        len(segment.text) / (plan.speaking_rate * segment.speaking_rate) for segment in plan.script.segments
    ]


def stopping() -> StoppingError:
    """What callers are told while the server stops."""
    return StoppingError("The server is stopping; ask another one", retry_after_seconds=5.0)
