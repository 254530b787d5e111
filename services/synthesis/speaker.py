"""The application behind every transport: a checked request in, samples out.

Computation runs on a few threads, so that the event loop that serves every connection never waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from services.synthesis.voices import LoadedVoice, VoiceShelf
from shared.errors import DeadlineError, OverloadedError, UserError
from shared.metrics import Metrics
from shared.registry import Version

logger = logging.getLogger("vits.speaker")

#: OpenAI's limit on the length of a text, which every transport keeps.
MAX_TEXT_CHARACTERS = 4096
MIN_SPEAKING_RATE, MAX_SPEAKING_RATE = 0.25, 4.0
#: Seeds fit a JSON number exactly.
MAX_SEED = 2**53 - 1
MAX_NOISE_SCALE = 2.0

#: Requests that may wait or run at once; more are told to come back.
MAX_IN_FLIGHT = 64

#: What a new voice speaks once, so that the first caller does not pay for the engine's warming up.
WARM_UP_TEXT = "uno"


@dataclass(frozen=True)
class Order:
    """What to speak, and how. The doors have checked its form; the voice checks the rest.

    Attributes:
        text: What to say.
        voice: ``name``, ``name@alias`` or ``name/version``; the default voice where empty.
        speaker: Name or number of one of the voice's speakers.
        seed: Drawn where not given.
        speaking_rate: 2 is twice as fast.
        noise_scale: How much the sound varies; the voice's own where not given.
        noise_scale_duration: How much the rhythm varies; the voice's own where not given.
        ssml: Whether the text is SSML.
        language: BCP 47 tag by which numbers and the like are read; the voice's own where not given.
        priority: ``bulk`` waits behind ``interactive``, but never starves.
        deadline_seconds: How long the caller waits for the last sample, from now on.
        caller: Whose quota it is, for the log.
        door: Where it came in: ``http``, ``websocket``, ``grpc``.
        request_id: Names the request in the log.
    """

    text: str
    voice: str = ""
    speaker: str | int | None = None
    seed: int | None = None
    speaking_rate: float = 1.0
    noise_scale: float | None = None
    noise_scale_duration: float | None = None
    ssml: bool = False
    language: str | None = None
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
    by the iteration. Leaving it as a context, or cancelling it, ends the work for it.

    Attributes:
        voice: Name of the voice that speaks.
        voice_version: Its version.
        sampling_rate: Hz.
        seed: The seed that is used.
        unknown: Characters or phonemes that are left out.
        script: What the text was made into.
    """

    def __init__(self, spoken: Spoken, finish: Callable[[str], None]) -> None:
        self.voice = spoken.voice
        self.voice_version = spoken.voice_version
        self.sampling_rate = spoken.sampling_rate
        self.seed = spoken.seed
        self.unknown = spoken.unknown
        self.script: Any = None
        size = self.sampling_rate // 4
        self._pieces = [spoken.samples[start : start + size] for start in range(0, len(spoken.samples), size)]
        self._finish: Callable[[str], None] | None = finish

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> NDArray[np.float32]:
        """float32 ``[S]``, within [-1, 1].

        Raises:
            DeadlineError: The order's deadline has passed.
            EngineError: The computation failed.
        """
        if not self._pieces:
            self._end("spoken")
            raise StopAsyncIteration
        return self._pieces.pop(0)

    def timestamps(self) -> list[Any]:
        """When each word of what was spoken so far is heard."""
        return []

    async def cancel(self) -> None:
        """Stop the work for it. What was spoken already stays spoken; no more comes."""
        self._pieces.clear()
        self._end("cancelled")

    def _end(self, outcome: str) -> None:
        finish, self._finish = self._finish, None
        if finish:
            finish(outcome)

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
        metrics: Told of what is made.
        workers: Orders computed at the same time.
        max_in_flight: Orders admitted at the same time.
    """

    def __init__(
        self, shelf: VoiceShelf, metrics: Metrics, *, workers: int = 2, max_in_flight: int = MAX_IN_FLIGHT
    ) -> None:
        self.shelf = shelf
        self.metrics = metrics
        self.ready = False
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        self._mean_seconds = 1.0
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="speaker")

    async def warm(self) -> LoadedVoice:
        """Load the default voice and let it speak once; from then on the server is ready.

        Raises:
            VitsError: The voice cannot be found, loaded or used.
        """
        loaded = await asyncio.get_running_loop().run_in_executor(self._pool, self._warm)
        self.ready = True
        return loaded

    def _warm(self) -> LoadedVoice:
        loaded = self.shelf.get()
        try:
            loaded.voice.synthesize(WARM_UP_TEXT, seed=0)
        except UserError:
            # A voice of another alphabet cannot say it, and warms up with its first caller.
            logger.info(
                "voice %s was not warmed up: it cannot say %r", loaded.version.reference, WARM_UP_TEXT
            )
        return loaded

    async def start(self, order: Order) -> Speaking:
        """Begin to speak an order. If the caller goes away before its turn has come, nothing is computed.

        Raises:
            OverloadedError: Too much is waiting.
            DeadlineError: The order's deadline has passed.
            VitsError: The order cannot be spoken; see `VoiceShelf.get` and `shared.voice.Voice.synthesize`.
        """
        begun = time.perf_counter()
        try:
            with self._admitted():
                work = asyncio.get_running_loop().run_in_executor(self._pool, self._speak, order)
                try:
                    spoken = await asyncio.wait_for(work, order.deadline_seconds)
                except TimeoutError as error:
                    raise DeadlineError(
                        f"The text was not spoken within {order.deadline_seconds:g} s"
                    ) from error
        except BaseException as error:
            self._count(order, order.voice, outcome_of(error))
            raise
        self.metrics.first_audio_seconds.labels(order.door).observe(time.perf_counter() - begun)
        return Speaking(spoken, lambda outcome: self._count(order, spoken.voice, outcome))

    def _count(self, order: Order, voice: str, outcome: str) -> None:
        self.metrics.requests.labels(order.door, voice, outcome).inc()

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

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self._in_flight >= self._max_in_flight:
            wait = max(1.0, self._mean_seconds * self._in_flight / self._workers)
            raise OverloadedError(
                f"{self._in_flight} requests are waiting already. Try again in {wait:.0f} s",
                retry_after_seconds=wait,
            )
        self._in_flight += 1
        self.metrics.requests_in_flight.inc()
        try:
            yield
        finally:
            self._in_flight -= 1
            self.metrics.requests_in_flight.dec()

    def _speak(self, order: Order) -> Spoken:
        loaded = self.shelf.get(order.voice)
        start = time.perf_counter()
        speech = loaded.voice.synthesize(
            order.text,
            speaker=order.speaker,
            seed=order.seed,
            speaking_rate=order.speaking_rate,
            noise_scale=order.noise_scale,
            noise_scale_duration=order.noise_scale_duration,
        )
        seconds = time.perf_counter() - start
        name = loaded.version.name
        spoken = Spoken(
            samples=speech.samples,
            sampling_rate=speech.sampling_rate,
            seed=speech.seed,
            voice=name,
            voice_version=loaded.version.id,
            unknown=speech.script.unknown,
        )
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)
        self.metrics.synthesis_seconds.labels(name).observe(seconds)
        self.metrics.audio_seconds.labels(name).inc(spoken.duration_seconds)
        return spoken

    async def voices(self) -> list[Version]:
        """The versions that the names of the store's voices stand for.

        Raises:
            StoreError: The store failed.
        """
        return await asyncio.to_thread(self._voices)

    def _voices(self) -> list[Version]:
        registry = self.shelf.registry
        return [registry.resolve("voices", name) for name in registry.names("voices")]

    def close(self) -> None:
        """Finish what is running, drop what is waiting, unload the voices."""
        self.ready = False
        self._pool.shutdown(cancel_futures=True)
        self.shelf.close()


def default_workers(threads: int) -> int:
    """How many orders to compute at once when each uses ``threads`` (0: every CPU): at least two.

    With a single one, a long text would hold up every short one behind it.
    """
    cpus = len(os.sched_getaffinity(0))
    return max(2, cpus // (threads or cpus))
