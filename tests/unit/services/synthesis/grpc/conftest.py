"""A speaker that speaks a script of the test's, behind the real server on a port of loopback."""

from __future__ import annotations

import asyncio
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from services.synthesis.grpc import GrpcServer
from services.synthesis.speaker import Order
from shared.errors import (
    CorruptObjectError,
    EngineError,
    NotFoundError,
    OverloadedError,
    TextError,
)
from shared.metrics import Metrics
from shared.text.timestamps import Timed

RATE = 16000
#: Samples of a word; each comes by itself.
WORD = 1600


def samples_of(text: str, seed: int) -> NDArray[np.float32]:
    """What the speaker says: a tenth of a second of noise for each word."""
    words = text.split()
    generator = np.random.default_rng([seed, zlib.crc32(text.encode())])
    return generator.uniform(-1, 1, WORD * len(words)).astype(np.float32)


@dataclass
class ScriptedSpeaking:
    """One text."""

    speaker: ScriptedSpeaker
    order: Order
    seed: int
    made: int = 0
    left: bool = False
    voice: str = "ana"
    voice_version: str = "1"
    sampling_rate: int = RATE

    @property
    def unknown(self) -> tuple[str, ...]:
        return tuple(character for character in self.order.text if character in "你#")

    def __aiter__(self) -> AsyncIterator[NDArray[np.float32]]:
        return self._words()

    async def _words(self) -> AsyncIterator[NDArray[np.float32]]:
        samples = samples_of(self.order.text, self.seed)
        while self.made * WORD < len(samples):
            word = self.order.text.split()[self.made]
            if word == "wait":
                await asyncio.to_thread(self.speaker.gate.wait, 10)
            if word.rstrip(".") == "ever":
                await asyncio.sleep(3600)
            if word == "fails":
                raise EngineError("the engine failed at /secret/path")
            await asyncio.sleep(0.001)
            self.made += 1
            yield samples[(self.made - 1) * WORD : self.made * WORD]

    def timestamps(self) -> list[Timed]:
        words = self.order.text.split()[: self.made]
        return [Timed(word, i * WORD / RATE, (i + 1) * WORD / RATE) for i, word in enumerate(words)]

    def token_timestamps(self) -> list[Timed]:
        """A word has one token, its first letter."""
        return [Timed(word.text[0], word.start_seconds, word.end_seconds) for word in self.timestamps()]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.left = True

    async def cancel(self) -> None:
        self.left = True


@dataclass(frozen=True)
class Registered:
    """A registry of which only the store is asked."""

    store: Any

    def __hash__(self) -> int:
        return 0


@dataclass
class ScriptedSpeaker:
    """Speaks words; some texts and voices go wrong."""

    metrics: Metrics = field(default_factory=lambda: Metrics(CollectorRegistry()))
    spoken: list[ScriptedSpeaking] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    overloaded: int = 0
    ready: bool = True

    async def start(self, order: Order) -> ScriptedSpeaking:
        if self.overloaded:
            self.overloaded -= 1
            raise OverloadedError("Too much is waiting. Try again in 0 s", retry_after_seconds=0.02)
        if order.voice == "nobody":
            raise NotFoundError("There is no voice 'nobody'; there are: ana")
        if order.voice == "damaged":
            raise CorruptObjectError("voices/damaged/1/decoder.onnx of /secret/path")
        if not any(character.isalnum() for character in order.text):
            raise TextError(f"Nothing of {order.text!r} can be spoken")
        if "bug" in order.text:
            raise RuntimeError("a bug at /secret/path")
        self.spoken.append(ScriptedSpeaking(self, order, 77 if order.seed is None else order.seed))
        return self.spoken[-1]

    async def ask(self, question: Callable[..., Any], *args: Any) -> Any:
        return question(*args)

    async def voices(self) -> list[Any]:
        manifest = SimpleNamespace(
            created=datetime(2026, 1, 2, tzinfo=UTC), licence="CC0-1.0", sources=("nobody",), consent=None
        )
        return [
            SimpleNamespace(
                name=name, id="1", manifest=manifest, reference=f"{name}/1", prefix=f"voices/{name}/1"
            )
            for name in ("ana", "luis")
        ]

    @property
    def shelf(self) -> Any:
        spec = b'{"language": "es", "sampling_rate": 16000, "speakers": {"eva": 0, "mar": 1}}'
        store = SimpleNamespace(read=lambda path: spec)
        default = SimpleNamespace(version=SimpleNamespace(name="ana"))
        return SimpleNamespace(registry=Registered(store), get=lambda: default, in_use=dict)

    def code(self, name: str) -> float:
        labels = {"door": "grpc", "code": name}
        return self.metrics.registry.get_sample_value("vits_responses_total", labels) or 0.0


@pytest.fixture
def speaker() -> ScriptedSpeaker:
    return ScriptedSpeaker()


@dataclass
class Running:
    """A server in a thread of its own, so that the tests may block."""

    server: GrpcServer
    loop: asyncio.AbstractEventLoop

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    @property
    def url(self) -> str:
        return f"grpc://{self.address}"

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)


@contextmanager
def running(speaker: Any, **settings: Any) -> Iterator[Running]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = GrpcServer(speaker, host="127.0.0.1", port=0, **settings)
    it = Running(server, loop)
    try:
        it.run(server.start())
        it.run(server.serving())
        yield it
    finally:
        it.run(server.stop(5))
        it.run(loop.shutdown_default_executor())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


Serve = Callable[..., Any]


@pytest.fixture
def serve(speaker: ScriptedSpeaker) -> Serve:
    return lambda **settings: running(speaker, **settings)


@pytest.fixture
def server(speaker: ScriptedSpeaker) -> Iterator[Running]:
    with running(speaker) as it:
        yield it


@pytest.fixture
def expected() -> Callable[[str, int], bytes]:
    """PCM of a text."""

    def pcm(text: str, seed: int) -> bytes:
        return np.rint(samples_of(text, seed) * 32767).astype("<i2").tobytes()

    return pcm
