"""The application behind every door: a checked order in, samples out.

Computation runs on the runtime's threads, texts are planned on a few others, and voices are loaded on one
more, so that the event loop that serves every connection never waits for any of it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, ParamSpec, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from services.synthesis import tracing
from services.synthesis.access import audio_too_long
from services.synthesis.bounded import BoundedExecutor
from services.synthesis.voices import LoadedVoice, VoiceShelf
from shared.errors import (
    CorruptObjectError,
    DeadlineError,
    NotFoundError,
    OverloadedError,
    RequestError,
    UserError,
    nearest,
)
from shared.languages import language_code
from shared.metrics import Metrics
from shared.registry import Version
from shared.text.script import Script
from shared.text.timestamps import Timed, token_times, word_times
from shared.voice.runtime import Piece, Runtime, Timing, stopping
from shared.voice.voice import Plan, SpeechParameters

logger = logging.getLogger("vits.speaker")

#: OpenAI's limit on the length of a text, which every transport keeps.
MAX_TEXT_CHARACTERS = 4096
MIN_SPEAKING_RATE, MAX_SPEAKING_RATE = 0.25, 4.0
#: Seeds fit a JSON number exactly.
MAX_SEED = 2**53 - 1
MAX_NOISE_SCALE = 2.0

#: A text that is predicted to be so many times longer than it may be is refused, and one that is so many times
#: shorter is spoken at once. Voices, texts and guesses differ: what lies in between is measured first.
CLEARLY = 1.5

#: Texts that are planned at the same time: a little work each, but not nothing.
PLANNERS = 2

#: Orders that may wait for voices that are not loaded; one is loaded at a time.
MAX_WAITING_FOR_VOICES = 100
#: Questions that the store is asked at the same time, and those that may wait for their answers.
ASKERS, MAX_QUESTIONS = 4, 100

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Order(SpeechParameters):
    """What to speak, and how. The doors have checked its form; the voice checks the rest.

    Attributes:
        text: What to say.
        voice: ``name``, ``name@alias`` or ``name/version``; the default voice where empty.
        stand_in: Speaks where no voice of the name that ``voice`` is is known of; there is none where not given.
        ssml: Whether the text is SSML.
        language: BCP 47 tag by which numbers and the like are read; the voice's own where not given.
        timed: Whether it is asked when each word is heard.
        priority: ``bulk`` waits behind ``interactive``, but never starves.
        deadline_seconds: How long the caller waits for the last sample, from now on.
        caller: Whose quota it is, for the log.
        door: Where it came in: ``http``, ``websocket``, ``grpc``.
        request_id: Names the request in the log.
    """

    text: str
    voice: str = ""
    stand_in: str | None = None
    ssml: bool = False
    language: str | None = None
    timed: bool = False
    priority: Literal["interactive", "bulk"] = "interactive"
    deadline_seconds: float | None = None
    caller: str = ""
    door: str = ""
    request_id: str = ""


@dataclass(frozen=True)
class Spoken:
    """A spoken order.

    Attributes:
        samples: float32 ``[S]``, within [-1, 1].
        sampling_rate: Hz.
        seed: The seed that was used.
        voice: Name of the voice that spoke.
        voice_version: Its version.
        unknown: Characters or phonemes that it left out.
    """

    samples: NDArray[np.float32]
    sampling_rate: int
    seed: int
    voice: str
    voice_version: str
    unknown: tuple[str, ...]

    @property
    def duration_seconds(self) -> float:
        """Length of the audio."""
        return len(self.samples) / self.sampling_rate


class Speaking:
    """An order that is being spoken: iterate over it for the samples, in order, as they are made.

    What could be wrong with the order was said before there was one of these; what fails later is raised
    by the iteration. Leaving it as a context, or cancelling it, ends the work for it. It belongs to the event
    loop that it was started on.

    Attributes:
        voice: Name of the voice that speaks.
        voice_version: Its version.
        sampling_rate: Hz.
        hop_length: Samples of a frame.
        seed: The seed that is used.
        unknown: Characters or phonemes that are left out.
        script: What the text was made into.
        timing: How it fares.
    """

    def __init__(self, runtime: Runtime, request: int, loaded: LoadedVoice, plan: Plan) -> None:
        self.voice = loaded.version.name
        self.voice_version = loaded.version.id
        self.sampling_rate = loaded.voice.spec.sampling_rate
        self.hop_length = loaded.voice.spec.hop_length
        self.seed = plan.seed
        self.unknown = plan.script.unknown
        self.script: Script = plan.script
        self.timing = Timing()
        self._runtime = runtime
        self._request = request
        self._on_end: Callable[[str], None] | None = None
        self._pieces: deque[Piece] = deque()
        self._durations: list[NDArray[np.int64]] = []
        self._times: dict[Callable[..., list[Timed]], list[Timed]] = {}
        self._complete = False
        self._error: Exception | None = None
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    # What the runtime's threads call.

    def heard(self, piece: Piece) -> None:
        """Take in a piece, from any thread."""
        self._tell(lambda: self._pieces.append(piece))

    def ended(self, error: Exception | None) -> None:
        """Take in that no more comes, from any thread."""

        def end() -> None:
            self._complete, self._error = True, error

        self._tell(end)

    def _tell(self, change: Callable[[], None]) -> None:
        def note() -> None:
            change()
            self._news.set()

        # A closed loop: nobody listens any more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(note)

    # What the doors call.

    async def first(self) -> None:
        """Wait until there is something to hear.

        Raises:
            VitsError: There never will be.
        """
        while not self._pieces and not self._complete:
            self._news.clear()
            await self._news.wait()
        if not self._pieces and self._error:
            error, self._error = self._error, None
            self._count(outcome_of(error))
            raise error

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> NDArray[np.float32]:
        """float32 ``[S]``, within [-1, 1].

        Raises:
            DeadlineError: The order's deadline has passed.
            EngineError: The computation failed.
            StoppingError: The server is stopping.
        """
        await self.first()
        if not self._pieces:
            self._count("spoken")
            raise StopAsyncIteration
        piece = self._pieces.popleft()
        if piece.segment >= len(self._durations):
            silent = piece.segment - len(self._durations)
            self._durations += [np.zeros(0, dtype=np.int64)] * silent + [piece.durations]
            self._times.clear()
        self._runtime.take(self._request, len(piece.samples) / self.sampling_rate)
        return piece.samples

    @property
    def durations(self) -> tuple[NDArray[np.int64], ...]:
        """Frames of each token, of each segment that was heard so far, if only in part."""
        return tuple(self._durations)

    def timestamps(self) -> list[Timed]:
        """When each word is heard, of the segments that were heard so far, if only in part; none if not ordered."""
        return self._timed(word_times)

    def token_timestamps(self) -> list[Timed]:
        """The same of each token, blanks included."""
        return self._timed(token_times)

    def _timed(self, times: Callable[..., list[Timed]]) -> list[Timed]:
        """What `word_times` or `token_times` says, computed once for each segment: streams ask with every piece."""
        if times not in self._times:
            self._times[times] = times(
                self.script, self._durations, hop_length=self.hop_length, sampling_rate=self.sampling_rate
            )
        return self._times[times]

    async def cancel(self) -> None:
        """Stop the work for it. What was spoken already stays spoken; no more comes."""
        self.abandon()
        self._count("cancelled")

    def abandon(self) -> None:
        """As `cancel`, but whoever calls it counts the outcome."""
        self._runtime.cancel(self._request)
        self._pieces.clear()
        self._complete = True

    def on_end(self, tell: Callable[[str], None]) -> None:
        """Have the outcome told, once, when it is known."""
        self._on_end = tell

    def _count(self, outcome: str) -> None:
        ended, self._on_end = self._on_end, None
        if ended:
            ended(outcome)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cancel()


def outcome_of(error: BaseException) -> str:
    """The label that counts how a request ended."""
    for kind, outcome in (
        (asyncio.CancelledError, "cancelled"),
        (OverloadedError, "overloaded"),
        (DeadlineError, "late"),
        (UserError, "refused"),
    ):
        if isinstance(error, kind):
            return outcome
    return "failed"


class Speaker:
    """Speaks orders with the voices of a shelf.

    Args:
        shelf: The voices.
        runtime: Computes.
        metrics: Told of every order.
        max_audio_seconds: The longest audio of one order.
        log_text: Whether the log may quote what users say.
    """

    def __init__(
        self,
        shelf: VoiceShelf,
        runtime: Runtime,
        metrics: Metrics,
        *,
        max_audio_seconds: float = math.inf,
        log_text: bool = False,
    ) -> None:
        self.shelf = shelf
        self.runtime = runtime
        self.metrics = metrics
        self.ready = False
        self._max_audio_seconds = max_audio_seconds
        self._log_text = log_text
        #: Set once the server is about to stop: what has begun goes on, and nothing new is taken.
        self.draining = asyncio.Event()
        self._in_flight = 0
        self._planners = ThreadPoolExecutor(PLANNERS, thread_name_prefix="planner")
        # One thread of its own: texts that nobody has to measure do not wait for those that are measured.
        self._measurer = ThreadPoolExecutor(1, thread_name_prefix="measurer")
        self._loader = BoundedExecutor(
            "loader", threads=1, places=MAX_WAITING_FOR_VOICES, waiting_for="voices that are not loaded"
        )
        self._askers = BoundedExecutor(
            "asker", threads=ASKERS, places=MAX_QUESTIONS, waiting_for="answers of the store"
        )
        self._settler = ThreadPoolExecutor(1, thread_name_prefix="settler")

    async def warm(self) -> LoadedVoice:
        """Load the default voice, warm it up, and learn of which names there are voices; then the server is ready.

        Raises:
            VitsError: The voice cannot be found, loaded or used.
        """
        loaded = await asyncio.get_running_loop().run_in_executor(self._loader, self.shelf.start)
        self.ready = not self.draining.is_set()
        return loaded

    async def refresh(self) -> None:
        """Ask the store for news of the voices, unless too many wait for it; see `VoiceShelf.refresh`."""
        with suppress(OverloadedError):
            await asyncio.get_running_loop().run_in_executor(self._loader, self.shelf.refresh)

    async def ask(self, question: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Ask the store something; errors are those of the question, too.

        Raises:
            OverloadedError: Too many wait for its answers.
            StoppingError: The server is stopping.
        """
        return await asyncio.wrap_future(self._askers.submit(question, *args, **kwargs))

    async def settle(self) -> None:
        """Measure which variants of the voices are the fastest, if nobody is speaking; see `VoiceShelf.settle`."""
        await asyncio.get_running_loop().run_in_executor(
            self._settler, self.shelf.settle, lambda: not self._in_flight and not self.draining.is_set()
        )

    async def start(self, order: Order) -> Speaking:
        """Begin to speak an order; comes back when there is something to hear.

        Raises:
            OverloadedError: Too much is waiting.
            StoppingError: The server is stopping.
            DeadlineError: The order's deadline has passed.
            NotFoundError: There is no such voice.
            TextError: Nothing of the text can be spoken.
            RequestError: The order cannot be spoken as it is meant, or would be too long.
            VitsError: The voice cannot be used, the store or the engine failed.
        """
        begun = time.monotonic()
        self._in_flight += 1
        self.metrics.requests_in_flight.inc()
        speaking: Speaking | None = None
        span = tracing.begin(order.door, order.request_id)

        def ended(outcome: str) -> None:
            self._note(order, speaking, outcome, time.monotonic() - begun)
            span.end(speaking, outcome)

        try:
            async with asyncio.timeout(order.deadline_seconds):
                speaking = await self._begin(order, begun)
                await speaking.first()
        except BaseException as error:
            if speaking:
                speaking.abandon()
            late = isinstance(error, TimeoutError)
            ended("late" if late else outcome_of(error))
            if late:
                raise DeadlineError("The deadline passed before the text could be spoken") from error
            raise
        speaking.on_end(ended)
        self.metrics.first_audio_seconds.labels(order.door).observe(time.monotonic() - begun)
        return speaking

    async def _begin(self, order: Order, begun: float) -> Speaking:
        if self.draining.is_set():
            raise stopping()
        loop = asyncio.get_running_loop()
        loaded = self.shelf.lease_loaded(order.voice, order.stand_in) or await self._lease(order)
        request = None
        try:
            deadline = None if order.deadline_seconds is None else begun + order.deadline_seconds
            request = self.runtime.admit(
                loaded.key,
                len(order.text) / order.speaking_rate,
                priority=order.priority,
                deadline=deadline,
            )
            plan = await loop.run_in_executor(self._planners, self._plan, loaded, order)
            await self._check_length(loaded, plan)
            speaking = Speaking(self.runtime, request, loaded, plan)
            speaking.timing = self.runtime.begin(
                request,
                loaded.voice,
                loaded.version.name,
                plan,
                speaking,
                freed=lambda: self.shelf.release(loaded),
            )
        except BaseException:
            if request is not None:
                self.runtime.cancel(request)
            self.shelf.release(loaded)
            raise
        return speaking

    async def _lease(self, order: Order) -> LoadedVoice:
        """Lease a voice that has to be loaded first. Who goes away in the meantime does not keep it.

        Raises:
            OverloadedError: Too many wait for such voices.
        """
        leasing = self._loader.submit(self.shelf.lease, order.voice, order.stand_in)
        try:
            return await asyncio.wrap_future(leasing)
        except asyncio.CancelledError:
            leasing.add_done_callback(
                lambda done: (
                    None if done.cancelled() or done.exception() else self.shelf.release(done.result())
                )
            )
            raise

    async def _check_length(self, loaded: LoadedVoice, plan: Plan) -> None:
        """Refuse audio that is too long, before any of it is heard.

        Where the prediction leaves it open, the encoder tells it exactly, segment by segment, so that others' calls of
        the engine, and a caller who goes away, come in between. It is run again when the text is spoken: a small part
        of the work, and what would be kept of a long text until then is large.

        Raises:
            RequestError: It is too long.
        """
        limit = self._max_audio_seconds
        predicted = self.runtime.predicted_seconds(loaded.key, plan)
        if predicted > limit * CLEARLY:
            raise audio_too_long(limit, predicted)
        if predicted < limit / CLEARLY:
            return
        loop = asyncio.get_running_loop()
        samples = 0
        for number in range(len(plan.script.segments)):
            samples += await loop.run_in_executor(self._measurer, loaded.voice.sounding_samples, plan, number)
        if samples > limit * loaded.voice.spec.sampling_rate:
            raise audio_too_long(limit, samples / loaded.voice.spec.sampling_rate)

    def _plan(self, loaded: LoadedVoice, order: Order) -> Plan:
        if order.language is not None:
            try:
                language_code(order.language, name="language")
            except UserError as error:
                raise RequestError(str(error), param="language") from None
        return loaded.voice.plan(
            order.text,
            order,
            ssml=order.ssml,
            language=order.language,
            lexicon=loaded.lexicon.current() if loaded.lexicon else None,
            timed=order.timed,
        )

    def _note(self, order: Order, speaking: Speaking | None, outcome: str, seconds: float) -> None:
        """Count an order that has ended, and log it."""
        self._in_flight -= 1
        self.metrics.requests_in_flight.dec()
        voice = speaking.voice if speaking else ""
        self.metrics.requests.labels(order.door, voice, outcome).inc()
        timing = speaking.timing if speaking else Timing()
        if outcome == "spoken":
            self.metrics.total_seconds.labels(order.door).observe(seconds)
            if timing.audio:
                self.metrics.real_time_factor.labels(voice).observe(timing.engine / timing.audio)
        details = {
            "request_id": order.request_id,
            "door": order.door,
            "caller": order.caller,
            "voice": f"{speaking.voice}/{speaking.voice_version}" if speaking else order.voice,
            "outcome": outcome,
            "characters": len(order.text),
            "audio_seconds": round(timing.audio, 3),
            "queue_seconds": None if timing.queue is None else round(timing.queue, 4),
            "encoder_seconds": round(timing.encoder, 4),
            "engine_seconds": round(timing.engine, 4),
            "total_seconds": round(seconds, 4),
        }
        if self._log_text:
            details["text"] = order.text
        logger.info(
            "%s: %d characters, %.2f s of audio after %.3f s",
            outcome,
            len(order.text),
            timing.audio,
            seconds,
            extra={"details": details},
        )

    async def speak(self, order: Order) -> Spoken:
        """Speak an order, whole. Errors are those of `start` and of the iteration over a `Speaking`."""
        async with await self.start(order) as speaking:
            pieces = [samples async for samples in speaking]
        return Spoken(
            samples=np.concatenate(pieces),
            sampling_rate=speaking.sampling_rate,
            seed=speaking.seed,
            voice=speaking.voice,
            voice_version=speaking.voice_version,
            unknown=speaking.unknown,
        )

    async def voices(self) -> list[Version]:
        """The versions that the names of the store's voices stand for; one that cannot be read hides no other.

        Raises:
            StoreError: The store failed.
        """
        return await self.ask(self._voices)

    def _voices(self) -> list[Version]:
        registry = self.shelf.registry
        found = []
        for name in registry.names("voices"):
            try:
                found.append(registry.resolve("voices", name))
            except (CorruptObjectError, NotFoundError) as error:  # damaged, or deleted in this moment
                logger.error("voice %s is not listed: %s", name, error)
        return found

    async def voice(self, name: str) -> Version:
        """The version that a name stands for.

        Raises:
            NotFoundError: There is no voice of that name.
            CorruptObjectError: Its manifest is damaged.
            StoreError: The store failed.
        """
        registry = self.shelf.registry
        names = await self.ask(registry.names, "voices")
        if name not in names:
            raise NotFoundError(
                f"There is no voice {name!r}{nearest(name, names) or '.'} There are: {', '.join(names) or 'none'}"
            )
        return await self.ask(registry.resolve, "voices", name)

    def drain(self) -> None:
        """Take no more orders. Those that run go on."""
        self.ready = False
        self.draining.set()

    def give_up(self) -> None:
        """Tell who still waits that the server stops. Does not wait for anything."""
        self.drain()
        self._loader.end()
        self._askers.end()
        self.runtime.end()

    def close(self, patience_seconds: float = math.inf) -> bool:
        """Tell who still waits that the server stops, and unload the voices.

        Args:
            patience_seconds: How long the store, and a voice that is being loaded, are waited for.

        Returns:
            Whether nothing of it is under way any more.
        """
        self.give_up()
        self._planners.shutdown(cancel_futures=True)
        self._measurer.shutdown(cancel_futures=True)
        self._settler.shutdown(cancel_futures=True)
        self.runtime.close()
        until = time.monotonic() + patience_seconds
        over = [executor.join(until - time.monotonic()) for executor in (self._loader, self._askers)]
        self.shelf.close()
        return all(over)
