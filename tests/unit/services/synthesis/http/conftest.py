"""A speaker that computes nothing, behind the real application."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.testclient import TestClient

from services.synthesis.http import make_app
from services.synthesis.speaker import Order, Speaker
from shared.errors import EngineError, NotFoundError, OverloadedError, RequestError, TextError
from shared.metrics import Metrics
from shared.registry import Registry, Version
from shared.store import Store
from shared.text.timestamps import Timed

SAMPLING_RATE = 16000
PIECE = 1600
#: Variants of loaded voices, by reference.
IN_USE: dict[str, str] = {}
VOICE = """{"language": "es", "sampling_rate": 16000, "num_speakers": 2, "speakers": {"bob": 0, "eva": 1},
"defaults": {"noise_scale": 0.667, "noise_scale_duration": 0.8, "speaking_rate": 1.0}, "front_end": {"secret": 1}}"""


class FakeSpeaking:
    """Speaks 10 ms of noise a character, drawn from the order; a word is heard where its characters are."""

    def __init__(self, speaker: FakeSpeaker, order: Order) -> None:
        self.order = order
        self.voice, _, version = (order.voice or "ana").partition("/")
        self.voice_version = version or speaker.newest
        self.sampling_rate = SAMPLING_RATE
        self.seed = 12345 if order.seed is None else order.seed
        self.unknown = tuple(character for character in order.text if character in "你#")
        self.script = SimpleNamespace(token_count=len(order.text))
        self.cancelled = False
        self.heard = 0
        self._speaker = speaker
        key = repr((order.text, order.speaker, self.seed, order.speaking_rate, order.noise_scale))
        generator = np.random.default_rng(zlib.crc32(key.encode("utf-8", "backslashreplace")))
        self.length = max(1, round(len(order.text) * SAMPLING_RATE / 100 / order.speaking_rate))
        self.samples = generator.uniform(-0.5, 0.5, self.length).astype(np.float32)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> NDArray[np.float32]:
        await self._speaker.gate.wait()
        if self.heard >= self.length or self.cancelled:
            raise StopAsyncIteration
        if self.order.text == "break at once" or (self.heard and self.order.text.startswith("break late")):
            raise EngineError("onnxruntime: /secret/path failed")
        piece = self.samples[self.heard : self.heard + PIECE]
        self.heard += len(piece)
        if self.order.text.startswith("slow"):
            await asyncio.sleep(0.02)
        return piece

    def timestamps(self) -> list[Timed]:
        seconds = self.length / SAMPLING_RATE / len(self.order.text)
        times = [
            Timed(word[0], word.start() * seconds, word.end() * seconds)
            for word in re.finditer(r"\S+", self.order.text)
        ]
        return [time for time in times if time.start_seconds <= self.heard / SAMPLING_RATE]

    def token_timestamps(self) -> list[Timed]:
        seconds = self.length / SAMPLING_RATE / len(self.order.text)
        return [Timed(c, i * seconds, (i + 1) * seconds) for i, c in enumerate(self.order.text)]

    async def cancel(self) -> None:
        if self.heard < self.length:
            self.cancelled = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cancel()


@dataclass
class FakeSpeaker:
    """Keeps what it was asked for. Some texts go wrong.

    Attributes:
        newest: The version that a voice's bare name stands for.
    """

    registry: Registry
    metrics: Metrics
    spoken: list[FakeSpeaking] = field(default_factory=list)
    overloaded: int = 0
    newest: str = "20260101T000000-00000000"
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    draining: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.shelf = SimpleNamespace(registry=self.registry, in_use=lambda: IN_USE)
        self.gate.set()

    async def start(self, order: Order) -> FakeSpeaking:
        if self.overloaded:
            self.overloaded -= 1
            raise OverloadedError("busy. Try again in 0.02 s", retry_after_seconds=0.02)
        if order.stand_in is not None and order.voice not in self.registry.names("voices"):
            order = replace(order, voice=order.stand_in)
        if order.voice.partition("/")[0] not in {"", *self.registry.names("voices")}:
            raise NotFoundError(f"There is no voice {order.voice!r}")
        if order.speaker == "nobody":
            raise RequestError("there is no speaker 'nobody'", param="speaker")
        if not order.text.strip() or order.text == "mute":
            raise TextError("nothing to say")
        if order.text == "break":
            raise EngineError("onnxruntime: /secret/path failed")
        if order.text == "bug":
            raise ZeroDivisionError("a defect at /secret/path")
        self.spoken.append(FakeSpeaking(self, order))
        return self.spoken[-1]

    async def ask(self, question: Callable[..., Any], *args: Any) -> Any:
        return question(*args)

    async def voices(self) -> list[Version]:
        return [self.registry.resolve("voices", name) for name in self.registry.names("voices")]

    async def voice(self, name: str) -> Version:
        return await Speaker.voice(cast("Speaker", self), name)


@pytest.fixture
def fake(tmp_path: Path) -> FakeSpeaker:
    registry = Registry(Store.open(str(tmp_path / "store")), tmp_path / "cache")
    folder = tmp_path / "voice"
    folder.mkdir()
    (folder / "voice.json").write_text(VOICE)
    for name in ("ana", "luis"):
        registry.publish(
            "voices", name, folder, licence="CC0-1.0", sources=["nobody"], consent="yes", lineage={}
        )
    return FakeSpeaker(registry, Metrics(CollectorRegistry()))


@pytest.fixture
def app(fake: FakeSpeaker) -> Starlette:
    app = make_app()
    app.state.speaker = fake
    return app


@pytest.fixture
def http(app: Starlette) -> Iterator[TestClient]:
    # What a real server does with a failure in mid-stream is tested with a real server.
    with TestClient(app) as client:
        yield client


ErrorOf = Callable[[Any], dict[str, Any]]


@pytest.fixture
def error_of() -> ErrorOf:
    """The error in an answer, once its shape is OpenAI's."""

    def check(answer: Any) -> dict[str, Any]:
        assert answer.headers["content-type"] == "application/json"
        content = answer.json()
        assert list(content) == ["error"]
        assert set(content["error"]) == {"message", "type", "param", "code"}
        error: dict[str, Any] = content["error"]
        assert error["message"]
        assert "/secret" not in error["message"]
        return error

    return check
