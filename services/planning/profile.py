"""What a machine needs for a voice: measured once, remembered, and given to the simulation.

The times are those of the calls that the server's own runtime makes while all its streams are busy, so that what
streams take from one another, and what Python takes from them, is in them.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.planning.workload import draw_texts, parse_distribution
from shared.cache import default_cache
from shared.errors import UserError
from shared.metrics import Metrics
from shared.processor import cpu_features, cpu_model
from shared.voice import SpeechParameters, Utterance, Voice, VoiceSpec
from shared.voice.runtime import Piece, Runtime
from shared.voice.scheduler import Policy
from shared.voice.voice import Plan
from shared.voice.windows import Window

#: How long the measurement takes, and what of it does not count.
MEASURED_SECONDS, WARM_SECONDS = 10.0, 1.0
#: A slow machine is given the time for so many renderings.
LEAST_CALLS = 12
#: Texts that are spoken at once meanwhile, for each stream.
CROWD = 3
#: What is spoken: short and long, so that each shape is met.
TEXTS = "lognormal:120,0.8"
#: How the times of one shape differ, as this many evenly spaced quantiles of time ÷ mean.
QUANTILES = 20

Seconds = Annotated[float, Field(ge=0)]


class Profile(BaseModel):
    """A voice on a machine."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    schema_version: Literal[1] = 1
    voice: str
    """What was measured: name/version."""
    variant: str
    machine: str
    """Model of the processor."""
    threads: Annotated[int, Field(ge=1)]
    """Threads that all computations used together: the cores of a pod."""
    streams: Annotated[int, Field(ge=1)]
    """Computations at once."""
    spec: VoiceSpec
    """The voice's ``voice.json``: front end, buckets and window plan."""
    planning_seconds_per_character: Seconds
    """Cutting a text into segments."""
    frames_per_token: Annotated[float, Field(gt=0)]
    frames_deviation: Seconds
    """Standard deviation of the logarithm of a segment's frames for each token."""
    render_seconds: tuple[Seconds, Seconds, Seconds]
    """Encoder and flow of a segment: for the call, for a token of its bucket, for a frame of its bucket."""
    decode_seconds: Annotated[dict[int, Seconds], Field(min_length=1)]
    """Decoding a window, by its width in frames."""
    render_spread: list[Seconds]
    """Quantiles of a rendering's time over what is predicted; their mean is 1."""
    decode_spread: list[Seconds]
    """The same of a window's decoding."""

    def render(self, bucket: int, frames: int) -> float:
        """Engine seconds of a rendering at its padded lengths."""
        constant, by_token, by_frame = self.render_seconds
        return constant + by_token * bucket + by_frame * frames

    def decode(self, width: int) -> float:
        """Engine seconds of decoding a window."""
        widths = sorted(self.decode_seconds)
        return float(np.interp(width, widths, [self.decode_seconds[each] for each in widths]))

    def write(self, path: Path) -> None:
        """Write it as JSON.

        Raises:
            UserError: It cannot be written there.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            partial.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            raise UserError(f"the profile cannot be written to {path}: {error.strerror}") from error

    @classmethod
    def read(cls, path: Path) -> Profile:
        """Read what `write` wrote.

        Raises:
            UserError: It is not there, or not a profile; the message lists every fault.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}). 'vits plan --measure --save-profile {path}' writes it, "
                "on the machine that is to be planned for"
            ) from error
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
            )
            raise UserError(f"{path} is not a profile of 'vits plan --save-profile': {faults}") from error


def remembered_path(folder: Path, variant: str, threads: int, streams: int) -> Path:
    """Where the profile of a fetched voice on this machine is remembered."""
    what: list[Any] = [str(folder), variant, threads, streams, cpu_model(), sorted(cpu_features())]
    return default_cache() / "profiles" / f"{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]}.json"


def measure(
    voice: Voice,
    *,
    reference: str,
    variant: str,
    threads: int,
    seconds: float = MEASURED_SECONDS,
    progress: Callable[[float], None] = lambda share: None,
) -> Profile:
    """Speak with a voice on the server's own runtime, and note how long each call takes.

    Args:
        voice: Opened with the streams that it is to have.
        reference: Its name/version.
        variant: Which of its variants it was opened with.
        threads: Threads that it uses.
        seconds: How long.
        progress: Told of the share that is done.

    Raises:
        VitsError: It cannot speak.
    """
    streams = voice.engine.streams
    texts = draw_texts(parse_distribution(TEXTS), voice.spec.language, seed=0)
    begun = time.perf_counter()
    plans = [voice.plan(text, SpeechParameters(seed=number)) for number, text in enumerate(texts)]
    planning = (time.perf_counter() - begun) / sum(map(len, texts))
    voice.warm_up()
    recorder = _Recorder(voice)
    _speak(recorder, plans, streams, seconds, progress)
    return recorder.profile(
        voice=reference,
        variant=variant,
        machine=cpu_model(),
        threads=threads,
        streams=streams,
        planning_seconds_per_character=planning,
    )


def _speak(
    recorder: _Recorder, plans: list[Plan], streams: int, seconds: float, progress: Callable[[float], None]
) -> None:
    """Keep a crowd of texts in flight for so long."""
    from prometheus_client import CollectorRegistry

    runtime = Runtime(Policy(streams=streams, max_backlog_seconds=1e9), Metrics(CollectorRegistry()))
    room = threading.Semaphore(CROWD * streams)
    failures: list[Exception] = []
    rate = recorder.spec.sampling_rate

    class Reader:
        request = 0

        def heard(self, piece: Piece) -> None:
            runtime.take(self.request, len(piece.samples) / rate)

        def ended(self, error: Exception | None) -> None:
            if error:
                failures.append(error)
            room.release()

    begun = time.monotonic()
    number = 0
    try:
        while (spent := time.monotonic() - begun) < seconds + WARM_SECONDS or len(recorder) < LEAST_CALLS:
            recorder.counts = spent > WARM_SECONDS
            progress(min(1.0, spent / (seconds + WARM_SECONDS)))
            room.acquire()
            if failures:
                raise failures[0]
            plan = plans[number % len(plans)]
            number += 1
            reader = Reader()
            reader.request = runtime.admit("measured", plan.script.token_count)
            runtime.begin(reader.request, recorder, "measured", plan, reader, lambda: None)
    finally:
        recorder.counts = False
        runtime.close()


class _Recorder:
    """A voice that notes how long it takes."""

    def __init__(self, voice: Voice) -> None:
        self.counts = False
        self._voice = voice
        self._renderings: list[tuple[int, int, float]] = []
        self._tempos: list[tuple[int, int]] = []
        self._decodings: list[tuple[int, float]] = []

    @property
    def spec(self) -> VoiceSpec:
        return self._voice.spec

    def render(self, plan: Plan, number: int) -> Utterance:
        begun = time.perf_counter()
        utterance = self._voice.render(plan, number)
        frames = utterance.latents.shape[1]  # all of them: what is left would be taken for the decoder's
        seconds = time.perf_counter() - begun
        tokens = len(utterance.durations)
        if self.counts and frames:
            padded = self.spec.token_bucket(tokens), self.spec.frame_bucket(frames)
            self._renderings.append((*padded, seconds))
            self._tempos.append((tokens, frames))
        return utterance

    def decode_windows(self, windows: list[tuple[Utterance, Window]]) -> list[NDArray[np.float32]]:
        begun = time.perf_counter()
        samples = self._voice.decode_windows(windows)
        if self.counts:
            self._decodings.append((windows[0][1].width, time.perf_counter() - begun))
        return samples

    def __len__(self) -> int:
        """Renderings so far whose windows were decoded, too."""
        return len(self._renderings) if self._decodings else 0

    def profile(self, **facts: Any) -> Profile:
        """What was noted."""
        shapes = np.array([(1, bucket, frames) for bucket, frames, _ in self._renderings], dtype=float)
        rendered = np.array([seconds for *_, seconds in self._renderings])
        render = _fitted(shapes, rendered)
        by_width: dict[int, list[float]] = {}
        for width, seconds in self._decodings:
            by_width.setdefault(width, []).append(seconds)
        decode = {width: float(np.mean(values)) for width, values in sorted(by_width.items())}
        tokens, frames = np.array(self._tempos, dtype=float).T
        return Profile(
            spec=self.spec,
            frames_per_token=float(frames.sum() / tokens.sum()),
            frames_deviation=float(np.std(np.log(frames / tokens))),
            render_seconds=(float(render[0]), float(render[1]), float(render[2])),
            decode_seconds=decode,
            render_spread=_spread(rendered / (shapes @ render)),
            decode_spread=_spread(np.array([seconds / decode[width] for width, seconds in self._decodings])),
            **facts,
        )


def _fitted(shapes: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each column of shapes costs, by least squares; nothing costs less than nothing."""
    costs = np.zeros(shapes.shape[1])
    columns = list(range(len(costs)))
    while columns:
        found = np.linalg.lstsq(shapes[:, columns], seconds)[0]
        if found.min() >= 0:
            costs[columns] = found
            break
        del columns[int(found.argmin())]
    return costs


def _spread(ratios: NDArray[np.float64]) -> list[float]:
    quantiles = np.quantile(ratios, (np.arange(QUANTILES) + 0.5) / QUANTILES)
    return [float(value) for value in quantiles / quantiles.mean()]
