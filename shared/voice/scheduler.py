"""What is computed next, for everybody who waits: a state machine without threads, clock or arithmetic of sound.

A request is a row of segments (sentences). A segment is first *rendered* (encoder and flow), which shows
how long it is and into which windows it falls; then its windows are *decoded*. The units of all requests
compete, and the scheduler says which go next::

    admit ─▶ plan ─▶ next ─▶ rendered ─▶ next ─▶ decoded ─▶ Release, Release, … Finish
               └──────────────── cancel · expire · failed ────────────────┘

- A request's first units go before everything else, for somebody is waiting in silence.
- What follows goes by the time at which it has to be heard: a long text, whose later windows are needed
  late, lets a short one pass.
- ``bulk`` requests have the engine while no interactive one wants it, and `bulk_share` of its time while one
  does, however many they are and however long they have waited: they neither starve nor overtake.
- Nobody is computed far ahead of a reader who does not read.

Only the order of units depends on load. Their shapes do not: see `shared.voice.voice`.

Times are seconds of any clock that does not go back; *audio seconds* are seconds of speech.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from shared.errors import DeadlineError, OverloadedError

Priority = Literal["interactive", "bulk"]

#: What a voice is expected to cost before it was measured: engine seconds for one audio second.
UNMEASURED_RENDER, UNMEASURED_DECODE = 0.01, 0.1
#: How long a character lasts before the voice was measured, in audio seconds.
UNMEASURED_CHARACTER = 0.065
#: How much the newest measurement counts.
LEARNING = 0.2


@dataclass(frozen=True)
class Policy:
    """The scheduler's settings.

    Attributes:
        streams: Jobs that are computed at the same time.
        max_batch: Windows of one width that are decoded in one call.
        max_call_seconds: A batch is not made larger than this lasts, by prediction.
        max_backlog_seconds: Interactive requests are refused when those before them need longer than this.
        max_bulk_backlog_seconds: Bulk requests are refused when all before them need longer than this.
        bulk_share: Share of the engine's time that bulk requests have while interactive ones want it, too.
        buffer_seconds: Audio seconds that are computed ahead of the reader.
    """

    streams: int = 1
    max_batch: int = 1
    max_call_seconds: float = 0.15
    max_backlog_seconds: float = 10.0
    max_bulk_backlog_seconds: float = 60.0
    bulk_share: float = 0.1
    buffer_seconds: float = 20.0


@dataclass(frozen=True)
class Unit:
    """One segment to render, or one window to decode.

    Attributes:
        request: Whose.
        segment: Number of the segment.
        window: Number of the window within it; nothing for the rendering of the segment.
    """

    request: int
    segment: int
    window: int | None = None


@dataclass(frozen=True)
class Job:
    """What one call of an engine computes: one rendering, or windows of one voice and width.

    Attributes:
        voice: Key of the voice.
        units: At least one; several only of windows.
        audio_seconds: What the windows yield.
    """

    voice: str
    units: tuple[Unit, ...]
    audio_seconds: float

    @property
    def renders(self) -> bool:
        """Whether it is a rendering."""
        return self.units[0].window is None


@dataclass(frozen=True)
class WindowShape:
    """A window as far as the scheduler cares.

    Attributes:
        width: Frames that the decoder reads; windows of one width may share a call.
        audio_seconds: What it yields.
    """

    width: int
    audio_seconds: float


@dataclass(frozen=True)
class Release:
    """A unit whose turn to be heard has come; nothing for the window: the segment's pause."""

    request: int
    segment: int
    window: int | None


@dataclass(frozen=True)
class Finish:
    """A request of which everything was released."""

    request: int


Event = Release | Finish

#: A unit that a request wants computed next, after how urgent it is: the smaller is sooner, and no two are alike.
_Wish = tuple[tuple[int, float, int], Unit]


@dataclass
class _Segment:
    """A rendered segment."""

    windows: list[WindowShape]
    pause_seconds: float
    start: float
    """Audio seconds of the request before it."""
    dispatched: int = 0
    done: set[int] = field(default_factory=set)
    offsets: list[float] = field(init=False)
    """Audio seconds of the segment before each window, and before its pause."""

    def __post_init__(self) -> None:
        self.offsets = list(accumulate((window.audio_seconds for window in self.windows), initial=0.0))

    @property
    def end(self) -> float:
        """Audio seconds of the request up to the next segment."""
        return self.start + self.offsets[-1] + self.pause_seconds


@dataclass
class _Request:
    voice: str
    priority: Priority
    admitted: float
    deadline: float | None
    estimates: list[float]
    """Expected audio seconds of the segments that are not rendered yet."""
    planned: bool = False
    rendering: bool = False
    segments: list[_Segment] = field(default_factory=list)
    decode_from: int = 0
    """The first segment with windows that were not dispatched."""
    release_from: tuple[int, int] = (0, 0)
    """Segment and window that are released next."""
    retries: deque[Unit] = field(default_factory=deque)
    """Windows of a batch that failed: each is tried once more, alone."""
    started: bool = False
    """Whether a window was dispatched."""
    heard_from: float | None = None
    """When the first audio was released."""
    undecoded: float = 0.0
    """Audio seconds of rendered windows that are not decoded."""
    dispatched: float = 0.0
    """Audio seconds given out so far."""
    taken: float = 0.0
    """Audio seconds that the reader took."""
    wish: _Wish | None = None
    """As it was when it was last looked for."""
    changed: bool = True
    """Whether it has to be looked for anew. Everything that a wish depends on belongs to the request."""

    @property
    def length(self) -> float:
        """Audio seconds of what is rendered."""
        return self.segments[-1].end if self.segments else 0.0


@dataclass
class _Speed:
    """Engine seconds for an audio second, and audio seconds of a character, as measured."""

    render: float = UNMEASURED_RENDER
    decode: float = UNMEASURED_DECODE
    character: float = UNMEASURED_CHARACTER
    measured: set[str] = field(default_factory=set)

    def learn(self, name: Literal["render", "decode", "character"], value: float) -> None:
        old = getattr(self, name)
        # The first measurement replaces a guess.
        setattr(self, name, old + LEARNING * (value - old) if name in self.measured else value)
        self.measured.add(name)


class Scheduler:
    """Decides what is computed next. Not safe to use from several threads at once: see `shared.voice.runtime`.

    Args:
        policy: Its settings. Of them `streams` may change later.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._requests: dict[int, _Request] = {}
        self._speeds: dict[str, _Speed] = {}
        self._last = 0
        self._owed = 0.0
        """Engine seconds that bulk requests have left to interactive ones, of their share."""

    def __len__(self) -> int:
        """Requests that are admitted and not finished."""
        return len(self._requests)

    def __contains__(self, request: int) -> bool:
        return request in self._requests

    # ------------------------------------------------------------------------------------------ arrivals

    def admit(
        self,
        now: float,
        voice: str,
        characters: float,
        *,
        priority: Priority = "interactive",
        deadline: float | None = None,
    ) -> int:
        """Let a request in, before its text is looked at. It has no work until `plan`.

        Args:
            now: The time.
            voice: Key of its voice: requests of one key share speeds, and calls.
            characters: Length of its text, divided by its speaking rate.
            priority: Which queue.
            deadline: When it must have been heard, whole.

        Returns:
            The request's number.

        Raises:
            DeadlineError: Its deadline has passed.
            OverloadedError: Those before it need too long.
        """
        if deadline is not None and deadline <= now:
            raise DeadlineError("The deadline passed before the text could be spoken")
        backlog = self.backlog_seconds(priority)
        limit = self.policy.max_backlog_seconds
        if priority == "bulk":
            limit = self.policy.max_bulk_backlog_seconds
        if deadline is not None:
            limit = min(limit, deadline - now)
        if backlog > limit:
            # Half of the limit, so that those who come back do not meet the limit again.
            wait = max(1.0, backlog - self.policy.max_backlog_seconds / 2)
            raise OverloadedError(
                f"Those who came before need {backlog:.1f} s. Try again in {math.ceil(wait)} s",
                retry_after_seconds=wait,
            )
        self._last += 1
        estimate = characters * self._speed(voice).character
        self._requests[self._last] = _Request(voice, priority, now, deadline, [estimate])
        return self._last

    def plan(self, request: int, characters: Sequence[float]) -> None:
        """Say into which segments a request's text falls, by their lengths divided by their speaking rates.

        A request that was given up in the meantime is passed over, here and below.
        """
        if found := self._requests.get(request):
            per_character = self._speed(found.voice).character
            found.estimates = [length * per_character for length in characters]
            found.planned = found.changed = True

    # ---------------------------------------------------------------------------------------------- work

    def next(self, now: float) -> Job | None:
        """The job that should be computed now; it is no longer offered. Nothing if there is none."""
        best: dict[Priority, _Wish] = {}
        for number, request in self._requests.items():
            wish = self._wish(number, request)
            if wish and (request.priority not in best or wish[0] < best[request.priority][0]):
                best[request.priority] = wish
        if not best:
            return None
        contested = len(best) > 1
        turn: Priority = "interactive"
        if turn not in best or (contested and self._owed >= self._cost(best["bulk"][1])):
            turn = "bulk"
        _, unit = best[turn]
        request = self._requests[unit.request]
        job = self._render(unit, request) if unit.window is None else self._decode(unit, request)
        if contested:
            self._share(job)
        return job

    def _share(self, job: Job) -> None:
        """Keep account of what bulk requests are owed by interactive ones, which go before them."""
        share = self.policy.bulk_share
        for unit in job.units:
            if self._requests[unit.request].priority == "bulk":
                self._owed -= self._cost(unit)
            else:
                self._owed += self._cost(unit) * share / (1 - share)
        # What they get in the free places of others' calls they need not pay back for long.
        self._owed = max(self._owed, -self.policy.max_call_seconds)

    def _cost(self, unit: Unit) -> float:
        """Engine seconds that a unit is predicted to take."""
        request = self._requests[unit.request]
        speed = self._speed(request.voice)
        if unit.window is None:
            return request.estimates[0] * speed.render
        return self._shape(unit).audio_seconds * speed.decode

    def _wish(self, number: int, request: _Request) -> _Wish | None:
        """What a request wants computed next, and how urgently; looked for anew only where the request has changed."""
        if request.changed:
            unit = self._candidate(number, request)
            request.wish = None if unit is None else ((*self._urgency(request, unit), number), unit)
            request.changed = False
        return request.wish

    def _candidate(self, number: int, request: _Request) -> Unit | None:
        """The unit that a request wants computed next."""
        if not request.planned:
            return None
        # Before the reader is asked for: what it has not taken may be waiting behind this.
        if request.retries:
            return request.retries[0]
        if request.dispatched - request.taken > self.policy.buffer_seconds:
            return None
        while request.decode_from < len(request.segments):
            segment = request.segments[request.decode_from]
            if segment.dispatched < len(segment.windows):
                return Unit(number, request.decode_from, segment.dispatched)
            request.decode_from += 1
        if request.estimates and not request.rendering:
            return Unit(number, len(request.segments))
        return None

    def _urgency(self, request: _Request, unit: Unit) -> tuple[int, float]:
        """Smaller is sooner; bulk requests come last, but for their turn."""
        if request.priority == "interactive" and not request.started:
            return 0, request.admitted
        heard_from = request.admitted if request.heard_from is None else request.heard_from
        due = heard_from + self._offset(request, unit)
        due = due if request.deadline is None else min(due, request.deadline)
        return (1 if request.priority == "interactive" else 2), due

    def _offset(self, request: _Request, unit: Unit) -> float:
        """Audio seconds of the request before a unit."""
        if unit.window is None:
            return request.length
        segment = request.segments[unit.segment]
        return segment.start + segment.offsets[unit.window]

    def _render(self, unit: Unit, request: _Request) -> Job:
        request.rendering = request.changed = True
        return Job(request.voice, (unit,), 0.0)

    def _decode(self, unit: Unit, request: _Request) -> Job:
        shape = self._shape(unit)
        alone = bool(request.retries)
        self._dispatch(unit, request)
        units, audio = [unit], shape.audio_seconds
        most = 1 if alone else self._batch(request.voice, shape)
        while len(units) < most and (other := self._companion(request.voice, shape.width)):
            self._dispatch(other, self._requests[other.request])
            units.append(other)
            audio += self._shape(other).audio_seconds
        return Job(request.voice, tuple(units), audio)

    def _batch(self, voice: str, shape: WindowShape) -> int:
        """How many windows of a shape one call may hold."""
        each = self._speed(voice).decode * shape.audio_seconds
        return max(1, min(self.policy.max_batch, int(self.policy.max_call_seconds / max(each, 1e-9))))

    def _companion(self, voice: str, width: int) -> Unit | None:
        """The most urgent window that can share a call with one of this voice and width."""
        found = []
        for number, request in self._requests.items():
            if request.voice != voice or request.retries:
                continue
            wish = self._wish(number, request)
            if wish and wish[1].window is not None and self._shape(wish[1]).width == width:
                found.append(wish)
        return min(found, key=lambda wish: wish[0])[1] if found else None

    def _dispatch(self, unit: Unit, request: _Request) -> None:
        request.changed = True
        if request.retries:
            request.retries.popleft()
            return
        segment = request.segments[unit.segment]
        request.dispatched += segment.windows[segment.dispatched].audio_seconds
        segment.dispatched += 1
        if segment.dispatched == len(segment.windows):
            request.dispatched += segment.pause_seconds
        request.started = True

    def _shape(self, unit: Unit) -> WindowShape:
        if unit.window is None:
            raise ValueError(f"{unit} is not a window")
        return self._requests[unit.request].segments[unit.segment].windows[unit.window]

    # ------------------------------------------------------------------------------------------- results

    def rendered(
        self,
        job: Job,
        now: float,
        *,
        engine_seconds: float,
        windows: Sequence[WindowShape],
        pause_seconds: float = 0.0,
        characters: float = 0.0,
    ) -> list[Event]:
        """Take in a rendering.

        Args:
            job: What was computed.
            now: The time.
            engine_seconds: How long it took.
            windows: The windows into which the segment falls; none for a mere pause.
            pause_seconds: Silence after it.
            characters: As in `plan`; 0 where its length is not known.
        """
        request = self._requests.get(job.units[0].request)
        if request is None:
            return []
        audio = sum(window.audio_seconds for window in windows)
        if audio:
            speed = self._speed(job.voice)
            speed.learn("render", engine_seconds / audio)
            if characters:
                speed.learn("character", audio / characters)
        request.rendering = False
        request.estimates.pop(0)
        request.segments.append(_Segment(list(windows), pause_seconds, start=request.length))
        request.undecoded += audio
        if not windows:
            request.dispatched += pause_seconds
        return self._release(job.units[0].request, request, now)

    def decoded(self, job: Job, now: float, *, engine_seconds: float) -> list[Event]:
        """Take in decoded windows: what may be heard by now, in order."""
        if job.audio_seconds:
            self._speed(job.voice).learn("decode", engine_seconds / job.audio_seconds)
        events: list[Event] = []
        for unit in job.units:
            request = self._requests.get(unit.request)
            if request is not None and unit.window is not None:
                request.undecoded -= self._shape(unit).audio_seconds
                request.segments[unit.segment].done.add(unit.window)
                events += self._release(unit.request, request, now)
        return events

    def _release(self, number: int, request: _Request, now: float) -> list[Event]:
        request.changed = True
        events: list[Event] = []
        index, window = request.release_from
        while index < len(request.segments):
            segment = request.segments[index]
            if window in segment.done:
                events.append(Release(number, index, window))
                window += 1
            elif window == len(segment.windows):
                events.append(Release(number, index, None))
                index, window = index + 1, 0
            else:
                break
        request.release_from = index, window
        if events and request.heard_from is None:
            request.heard_from = now
        if index == len(request.segments) and not request.estimates:
            del self._requests[number]
            events.append(Finish(number))
        return events

    def failed(self, job: Job) -> list[int]:
        """Take in that a job failed: what was computed together is tried again alone.

        Returns:
            The requests that fail with it; they are gone.
        """
        units = [unit for unit in job.units if unit.request in self._requests]
        if len(job.units) > 1:
            for unit in units:
                request = self._requests[unit.request]
                request.retries.append(unit)
                request.changed = True
            return []
        for unit in units:
            del self._requests[unit.request]
        return [unit.request for unit in units]

    # --------------------------------------------------------------------------------- readers and clocks

    def take(self, request: int, audio_seconds: float) -> None:
        """Note that a reader took audio."""
        if found := self._requests.get(request):
            found.taken += audio_seconds
            found.changed = True

    def cancel(self, request: int) -> bool:
        """Forget a request and its work; what is being computed for it is computed in vain."""
        return self._requests.pop(request, None) is not None

    def expire(self, now: float) -> list[int]:
        """The requests whose deadline has passed; they are gone."""
        late = [number for number, request in self._requests.items() if _end(request) <= now]
        for number in late:
            del self._requests[number]
        return late

    def wake_at(self) -> float:
        """When `expire` has something to say at the earliest; infinity for never."""
        return min((_end(request) for request in self._requests.values()), default=math.inf)

    # ----------------------------------------------------------------------------------------- prediction

    def backlog_seconds(self, priority: Priority = "bulk") -> float:
        """How long what waits will take: its audio seconds, divided by the measured speed.

        Args:
            priority: ``interactive`` leaves out bulk requests, but for the share that they take meanwhile.
        """
        needed: dict[Priority, float] = {"interactive": 0.0, "bulk": 0.0}
        for request in self._requests.values():
            if request.dispatched - request.taken > self.policy.buffer_seconds:
                continue  # its reader is slow, and nobody waits for it
            speed = self._speed(request.voice)
            needed[request.priority] += sum(request.estimates) * (speed.render + speed.decode)
            needed[request.priority] += request.undecoded * speed.decode
        before, share = needed["interactive"], self.policy.bulk_share
        bulk = needed["bulk"] if priority == "bulk" else min(needed["bulk"], before * share / (1 - share))
        return (before + bulk) / self.policy.streams

    def audio_seconds(self, voice: str, characters: float) -> float:
        """How long a text is predicted to sound; ``characters`` as for `admit`."""
        return characters * self._speed(voice).character

    def _speed(self, voice: str) -> _Speed:
        if voice not in self._speeds:
            self._speeds[voice] = _Speed()
        return self._speeds[voice]

    def forget_voice(self, voice: str) -> None:
        """Forget the speeds of a voice that is no longer loaded."""
        self._speeds.pop(voice, None)


def _end(request: _Request) -> float:
    """When a request is given up."""
    return math.inf if request.deadline is None else request.deadline
