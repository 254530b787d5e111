"""A voice without weights, on a real registry, behind a real runtime and speaker."""

from __future__ import annotations

import math
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from services.synthesis.speaker import Speaker
from services.synthesis.voices import ChooseVariant, VoiceShelf
from shared.errors import EngineError, TextError
from shared.metrics import Metrics
from shared.registry import Registry
from shared.store import Store
from shared.text.lexicon import Lexicon
from shared.text.script import Script, Segment, Word
from shared.text.tokens import Tokens
from shared.voice import Plan, SpeechParameters, Utterance, Voice, VoiceSpec
from shared.voice.engine import Arrays
from shared.voice.runtime import Runtime
from shared.voice.scheduler import Policy

SAMPLING_RATE = 16000
#: A token of a fake voice is one frame of 10 ms.
HOP = 160

SPEC: dict[str, Any] = {
    "schema_version": 1,
    "model": None,
    "language": "es",
    "sampling_rate": SAMPLING_RATE,
    "hop_length": HOP,
    "latent_channels": 2,
    "num_speakers": 3,
    "speakers": {"eva": 0, "bob": 1, "luis": 2},
    "defaults": {"noise_scale": 0.6, "noise_scale_duration": 0.8, "speaking_rate": 1.0},
    "front_end": {"kind": "characters", "vocab": {"_": 0, "a": 1}, "pad_token": "_", "unk_token": "_"},
    "decoder": {"halo_frames": 0, "first_window_frames": 8, "window_frames": 32},
    "token_buckets": [64, 4096],
    "frame_multiple": 8,
    "variants": {"fp32": {"encoder": "e.onnx", "flow": "f.onnx", "decoder": "d.onnx", "opset": 18}},
    "licence": "CC0-1.0",
    "sources": ["nobody"],
    "consent": "yes",
}


class FakeEngine:
    """Noise that depends on everything that is asked for, and on the version; one frame a token at speaking rate 1."""

    streams = 1

    def __init__(self, version: float = 0.0) -> None:
        self._version = version

    def run(self, graph: str, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        arrays = {name: np.asarray(value, dtype=np.float32) for name, value in inputs.items()}
        if graph == "encoder":
            ids = arrays["input_ids"]
            mean = np.stack([ids % 7, ids % 11], axis=2) + arrays["duration_noise"].transpose(0, 2, 1)
            return {"prior_mean": mean, "prior_log_std": mean * 0, "log_duration": ids * 0}
        if graph == "flow":
            return {"latents": arrays["prior_sample"] + 3 * arrays["speaker_id"][:, None, None]}
        wave = np.sin(np.arange(HOP) * 0.1, dtype=np.float32)
        samples = np.sin(arrays["latents"].sum(axis=1) + self._version)[:, :, None] * wave * 0.9
        return {"waveform": samples.reshape(len(samples), -1).astype(np.float32)}

    def close(self) -> None:
        pass


class FakeVoice(Voice):
    """Speaks 10 ms a character; certain texts go wrong, and gates hold it up.

    Attributes:
        calls: ``warm-up``, and the texts it was asked to render, in that order, segment by segment.
        gate: While it is cleared, nothing is rendered.
        permits: Each rendering takes one, and waits where there is none.
        decoder_gate: While it is cleared, nothing is decoded.
        decoded: Windows decoded so far.
    """

    def __init__(self, folder: Path, variant: str = "fp32") -> None:
        version = zlib.crc32((folder / "voice.json").read_bytes()) % 1000
        super().__init__(VoiceSpec.model_validate(SPEC), FakeEngine(version), variant)
        self.folder = folder
        self.calls: list[str] = []
        self.gate, self.decoder_gate = threading.Event(), threading.Event()
        self.permits = threading.Semaphore(1_000_000)
        self.gate.set()
        self.decoder_gate.set()
        self.decoded = 0
        self.closed = False

    def plan(
        self,
        text: str,
        parameters: SpeechParameters,
        *,
        ssml: bool = False,
        language: str | None = None,
        lexicon: Lexicon | None = None,
        timed: bool = False,
    ) -> Plan:
        """One segment a sentence; 0.1 s of silence after each but the last. ``你`` and ``#`` are unknown."""
        checked = super().plan("a", parameters)
        if text == "mute":
            raise TextError("nothing to say")
        unknown = tuple(character for character in text if character in "你#")
        sentences = list(re.finditer(r"(?:[^.]|\.(?!\s))+\.?\s*", text)) or list(
            re.finditer(r"[\s\S]+", text)
        )
        segments = [_segment(match, last=match is sentences[-1], timed=timed) for match in sentences]
        script = Script(tuple(segments), unknown)
        return Plan(
            script,
            checked.speaker_id,
            checked.seed,
            checked.speaking_rate,
            checked.noise_scale,
            checked.noise_scale_duration,
        )

    def render(self, plan: Plan, number: int) -> Utterance:
        assert not self.closed
        text = plan.script.segments[number].text
        self.calls.append(text)
        assert self.gate.wait(10)
        assert self.permits.acquire(timeout=10)
        if text == "break":
            raise EngineError("onnxruntime: /secret/path failed")
        if text == "bug":
            raise ZeroDivisionError("a defect at /secret/path")
        return super().render(plan, number)

    def decode_windows(self, windows: Any) -> list[NDArray[np.float32]]:
        assert not self.closed
        assert self.decoder_gate.wait(10)
        samples = super().decode_windows(windows)
        self.decoded += len(windows)
        return samples

    def warm_up(self) -> None:
        self.calls.append("warm-up")
        super().warm_up()

    def close(self) -> None:
        self.closed = True


def _segment(match: re.Match[str], *, last: bool, timed: bool) -> Segment:
    text = match[0].rstrip() or match[0]
    words = tuple(
        Word(word[0], match.start() + word.start(), match.start() + word.end(), word.start(), word.end())
        for word in re.finditer(r"\S+", text)
        if timed
    )
    tokens = Tokens(tuple(ord(character) % 1000 for character in text), tuple(text), ())
    return Segment(text, tokens, 0.0 if last else 0.1, 1.0, words)


class Opener:
    """Opens fake voices, and remembers them."""

    def __init__(self) -> None:
        self.opened: list[FakeVoice] = []
        self.error: Exception | None = None
        self.variant = "fp32"

    def __call__(self, folder: Path) -> FakeVoice:
        time.sleep(0.01)  # long enough for a second caller to come
        if self.error:
            raise self.error
        self.opened.append(FakeVoice(folder, self.variant))
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


def publish(registry: Registry, tmp_path: Path, name: str, content: str) -> str:
    """Publish a version of a voice; its folder's ``voice.json`` tells the content."""
    folder = tmp_path / "voice"
    folder.mkdir(exist_ok=True)
    (folder / "voice.json").write_text(f'{{"content": "{content}"}}')
    version = registry.publish(
        "voices", name, folder, licence="CC0-1.0", sources=["nobody"], consent="yes", lineage={}
    )
    return version.id


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


@dataclass
class Clock:
    """Goes on only while something is done.

    Attributes:
        now: Seconds.
    """

    now: float = 100.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: float, done: Callable[..., Any]) -> Callable[..., Any]:
        """What is done, taking so long."""

        def taking(*args: Any, **kwargs: Any) -> Any:
            result = done(*args, **kwargs)
            self.now += seconds
            return result

        return taking


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of speakers and shelves; the runtime's is given to it."""
    clock = Clock()
    for module in ("speaker", "voices"):
        stopped = SimpleNamespace(monotonic=clock, perf_counter=clock)
        monkeypatch.setattr(f"services.synthesis.{module}.time", stopped)
    return clock


MakeSpeaker = Callable[..., Speaker]


@pytest.fixture
def make_speaker(registry: Registry, opener: Opener, metrics: Metrics) -> Iterator[MakeSpeaker]:
    """Makes speakers; of the keyword arguments, what is not named here is the scheduler's `Policy`."""
    made: list[Speaker] = []

    def make(
        *,
        default: str = "",
        workers: int = 2,
        max_in_flight: int | None = None,
        memory_bytes: int = 0,
        log_text: bool = False,
        max_audio_seconds: float = math.inf,
        choose: ChooseVariant | None = None,
        clock: Callable[[], float] = time.monotonic,
        **policy: Any,
    ) -> Speaker:
        policy = {"streams": workers, "buffer_seconds": 1e6} | policy
        if max_in_flight == 0:
            policy["max_backlog_seconds"] = -1.0
        runtime = Runtime(Policy(**policy), metrics, clock=clock)
        shelf = VoiceShelf(
            registry,
            opener,
            metrics,
            default=default,
            memory_bytes=memory_bytes,
            forget=runtime.forget_voice,
            choose=choose,
        )
        speaker = Speaker(shelf, runtime, metrics, max_audio_seconds=max_audio_seconds, log_text=log_text)
        made.append(speaker)
        return made[-1]

    yield make
    for voice in opener.opened:
        voice.gate.set()
        voice.decoder_gate.set()
        voice.permits.release(1000)
    for speaker in made:
        speaker.close()


@pytest.fixture
def speaker(make_speaker: MakeSpeaker) -> Speaker:
    return make_speaker(default="ana")
