"""The application behind every transport: a checked request in, samples out.

Computation runs on a few threads, so that the event loop that serves every connection never waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.synthesis.voices import LoadedVoice, VoiceShelf
from shared.errors import OverloadedError, UserError
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
    """What to speak, and how. The transports have checked its form; the voice checks the rest."""

    text: str
    voice: str = ""
    speaker: str | int | None = None
    seed: int | None = None
    speaking_rate: float = 1.0
    noise_scale: float | None = None
    noise_scale_duration: float | None = None


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

    async def speak(self, order: Order) -> Spoken:
        """Speak an order. If the caller goes away before its turn has come, nothing is computed.

        Raises:
            OverloadedError: Too many orders are waiting.
            VitsError: The order cannot be spoken; see `VoiceShelf.get` and `shared.voice.Voice.synthesize`.
        """
        with self._admitted():
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._speak, order)

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
            unknown=speech.tokens.unknown,
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
