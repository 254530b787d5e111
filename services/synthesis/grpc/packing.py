"""From what a speaker makes to the messages of the protocol."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from services.synthesis.grpc.requests import NUMBERS, Wanted
from services.synthesis.packing import encode_whole
from services.synthesis.speaker import Speaking
from shared.audio import Samples
from shared.audio_encoding import open_encoder
from shared.protos.vits.synthesis.v1 import synthesis_pb2 as pb


class TimedLike(Protocol):
    """What is told of something heard: `shared.text.timestamps.Timed`."""

    @property
    def text(self) -> str:
        """The word, or the token's symbol."""

    @property
    def start_seconds(self) -> float:
        """When it begins."""

    @property
    def end_seconds(self) -> float:
        """When it is over."""


class Times:
    """When words or tokens are heard, each told once.

    Args:
        speaking: The text that is being spoken.
        wanted: What is to be timed; it may be nothing.
    """

    def __init__(self, speaking: Speaking, wanted: Wanted) -> None:
        self._speaking = speaking
        self._unit = wanted.timestamps
        self._told = 0

    def new(self) -> Sequence[TimedLike]:
        """Those of every sentence that has begun by now, but for those that were told before."""
        if self._unit == pb.TIMESTAMP_UNIT_UNSPECIFIED:
            return ()
        by_word = self._unit == pb.TIMESTAMP_UNIT_WORD
        times = self._speaking.timestamps() if by_word else self._speaking.token_timestamps()
        told, self._told = self._told, len(times)
        return times[told:]


async def pack_whole(speaking: Speaking, samples: Samples, wanted: Wanted) -> pb.SynthesizeResponse:
    """The answer that carries a whole text [S]."""
    rate = speaking.sampling_rate
    return pb.SynthesizeResponse(
        audio=await encode_whole(wanted.audio_format, samples, rate, wanted.sampling_rate),
        audio_format=NUMBERS[wanted.audio_format],
        sampling_rate=open_encoder(wanted.audio_format, rate, wanted.sampling_rate).sampling_rate,
        seed=speaking.seed,
        voice=speaking.voice,
        voice_version=speaking.voice_version,
        duration_seconds=len(samples) / rate,
        unknown=speaking.unknown,
        timestamps=timestamps(Times(speaking, wanted).new()),
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
    """When words or tokens are heard, in a text that begins at ``from_seconds``."""
    return [
        pb.Timestamp(
            text=word.text,
            start_seconds=from_seconds + word.start_seconds,
            end_seconds=from_seconds + word.end_seconds,
        )
        for word in timed
    ]
