"""From what a speaker makes to the messages of the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.synthesis.grpc.requests import NUMBERS, Wanted
from services.synthesis.speaker import Speaking
from shared.audio_encoding import encode, open_encoder
from shared.protos.vits.synthesis.v1 import synthesis_pb2 as pb

Samples = NDArray[np.float32]


class TimedLike(Protocol):
    """What is told of something heard: `shared.text.timestamps.Timed`."""

    @property
    def text(self) -> str:
        """The word."""

    @property
    def start_seconds(self) -> float:
        """When it begins."""

    @property
    def end_seconds(self) -> float:
        """When it is over."""


class Packer:
    """Packs the samples of a stream as they are made.

    Attributes:
        sampling_rate: Hz of what comes out.
    """

    def __init__(self, wanted: Wanted, from_rate: int) -> None:
        self._encoder = open_encoder(wanted.audio_format, from_rate, wanted.sampling_rate)
        self._light = is_light(wanted, from_rate)
        self.sampling_rate = self._encoder.sampling_rate

    async def pack(self, samples: Samples) -> bytes:
        """Take in samples [S]; give the bytes that are ready, which may be none."""
        if self._light:
            return self._encoder.encode(samples)
        return await asyncio.to_thread(self._encoder.encode, samples)

    async def finish(self) -> bytes:
        """The rest of the bytes."""
        return await asyncio.to_thread(self._encoder.finish)


def is_light(wanted: Wanted, from_rate: int) -> bool:
    """Whether packing takes no time worth a thread, so that the event loop may do it."""
    return wanted.audio_format in {"wav", "pcm"} and wanted.sampling_rate in {None, from_rate}


async def pack_whole(speaking: Speaking, samples: Samples, wanted: Wanted) -> pb.SynthesizeResponse:
    """The answer that carries a whole text [S]."""
    rate = speaking.sampling_rate
    packing = (wanted.audio_format, samples, rate, wanted.sampling_rate)
    if is_light(wanted, rate):
        audio = encode(*packing)
    else:
        audio = await asyncio.to_thread(encode, *packing)
    return pb.SynthesizeResponse(
        audio=audio,
        audio_format=NUMBERS[wanted.audio_format],
        sampling_rate=open_encoder(wanted.audio_format, rate, wanted.sampling_rate).sampling_rate,
        seed=speaking.seed,
        voice=speaking.voice,
        voice_version=speaking.voice_version,
        duration_seconds=len(samples) / rate,
        unknown=speaking.unknown,
        timestamps=timestamps(speaking.timestamps()) if wanted.timestamps else (),
    )


def speech_start(speaking: Speaking, wanted: Wanted, sampling_rate: int) -> pb.SpeechStart:
    """What is known before the first sample."""
    return pb.SpeechStart(
        audio_format=NUMBERS[wanted.audio_format],
        sampling_rate=sampling_rate,
        seed=speaking.seed,
        voice=speaking.voice,
        voice_version=speaking.voice_version,
        unknown=speaking.unknown,
    )


def timestamps(timed: Iterable[TimedLike], *, from_seconds: float = 0.0) -> Sequence[pb.Timestamp]:
    """When words are heard, in a text that begins at ``from_seconds``."""
    return [
        pb.Timestamp(
            text=word.text,
            start_seconds=from_seconds + word.start_seconds,
            end_seconds=from_seconds + word.end_seconds,
        )
        for word in timed
    ]
