"""A voice that computes nothing, on a real registry, behind a real speaker."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from services.synthesis.speaker import Speaker
from services.synthesis.voices import VoiceShelf
from shared.errors import EngineError, TextError
from shared.metrics import Metrics
from shared.registry import Registry
from shared.store import Store
from shared.text.script import Script

SAMPLING_RATE = 16000


@dataclass(frozen=True)
class FakeSpeech:
    samples: NDArray[np.float32]
    sampling_rate: int
    seed: int
    script: Script


@dataclass
class FakeVoice:
    """Speaks 10 ms of noise a character, drawn from text and seed; certain texts go wrong."""

    folder: Path
    calls: list[str] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    closed: bool = False

    def __post_init__(self) -> None:
        self.gate.set()

    def synthesize(
        self,
        text: str,
        *,
        speaker: str | int | None = None,
        seed: int | None = None,
        speaking_rate: float = 1.0,
        noise_scale: float | None = None,
        noise_scale_duration: float | None = None,
    ) -> FakeSpeech:
        self.calls.append(text)
        assert self.gate.wait(10)
        if text == "mute":
            raise TextError("nothing to say")
        if text == "break":
            raise EngineError("onnxruntime: /secret/path failed")
        if text == "bug":
            raise ZeroDivisionError("a defect at /secret/path")
        seed = 12345 if seed is None else seed
        key = (text, speaker, seed, speaking_rate, noise_scale, noise_scale_duration)
        generator = np.random.default_rng(zlib.crc32(repr(key).encode("utf-8", "backslashreplace")))
        length = max(1, round(len(text) * SAMPLING_RATE / 100 / speaking_rate))
        samples = generator.uniform(-1, 1, length).astype(np.float32)
        unknown = tuple(character for character in text if character in "你#")
        return FakeSpeech(samples, SAMPLING_RATE, seed, Script((), unknown))

    def close(self) -> None:
        self.closed = True


class Opener:
    """Opens fake voices, and remembers them."""

    def __init__(self) -> None:
        self.opened: list[FakeVoice] = []
        self.error: Exception | None = None

    def __call__(self, folder: Path) -> FakeVoice:
        time.sleep(0.01)  # long enough for a second caller to come
        if self.error:
            raise self.error
        self.opened.append(FakeVoice(folder))
        return self.opened[-1]


@pytest.fixture
def opener() -> Opener:
    return Opener()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Two voices: ``ana`` in two versions, then ``luis``, who is the newest."""
    registry = Registry(Store.open(str(tmp_path / "store")), tmp_path / "cache")
    publish(registry, tmp_path, "ana", "one")
    publish(registry, tmp_path, "ana", "two")
    publish(registry, tmp_path, "luis", "one")
    return registry


def publish(registry: Registry, tmp_path: Path, name: str, content: str) -> None:
    folder = tmp_path / "voice"
    folder.mkdir(exist_ok=True)
    (folder / "voice.json").write_text(f'{{"content": "{content}"}}')
    registry.publish("voices", name, folder, licence="CC0-1.0", sources=["nobody"], consent="yes", lineage={})


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


MakeSpeaker = Callable[..., Speaker]


@pytest.fixture
def make_speaker(registry: Registry, opener: Opener, metrics: Metrics) -> Iterator[MakeSpeaker]:
    made: list[Speaker] = []

    def make(*, default: str = "", workers: int = 2, max_in_flight: int = 8) -> Speaker:
        shelf = VoiceShelf(registry, opener, metrics, default=default)
        made.append(Speaker(shelf, metrics, workers=workers, max_in_flight=max_in_flight))
        return made[-1]

    yield make
    for speaker in made:
        speaker.close()


@pytest.fixture
def speaker(make_speaker: MakeSpeaker) -> Speaker:
    return make_speaker(default="ana")
