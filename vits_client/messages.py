"""What is asked for and what comes back, in Python's own types."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, TypedDict, cast, get_args

from shared.protos.vits.synthesis.v1 import synthesis_pb2 as pb
from vits_client.errors import ClientError, from_code

AudioFormat = Literal["wav", "pcm", "flac", "mp3", "opus", "aac"]
Priority = Literal["interactive", "bulk"]
TimestampUnit = Literal["word", "token"]


class Options(TypedDict, total=False):
    """How to speak. Everything may be left out."""

    voice: str
    """``name``, ``name@alias`` or ``name/version``; the server's default voice."""
    speaker: str
    """Name or number of one of the voice's speakers; its first."""
    seed: int
    """0 to 2^53 - 1. The same seed, text and voice give the same samples; drawn."""
    speaking_rate: float
    """0.25 to 4; 2 is twice as fast."""
    noise_scale: float
    """0 to 2: how much the sound varies; the voice's own."""
    noise_scale_duration: float
    """0 to 2: how much the rhythm varies; the voice's own."""
    audio_format: AudioFormat
    """How the samples are packed: ``wav``, and ``pcm`` in streams."""
    sampling_rate: int
    """Hz; the voice's own."""
    language: str
    """BCP 47 tag by which numbers and the like are read; the voice's own."""
    ssml: bool
    """Whether the text is SSML."""
    priority: Priority
    """Who goes first; ``interactive``, and ``bulk`` in a batch."""
    timestamps: bool | TimestampUnit | None
    """What is to be timed: each ``word``, as True says, too, or each ``token`` of the voice; nothing (False, None)."""


@dataclass(frozen=True)
class Timestamp:
    """When a word or token is heard, in seconds from the beginning of the audio."""

    text: str
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True)
class Speech:
    """A spoken text.

    Attributes:
        audio: One channel, packed as ``audio_format`` says. PCM is signed 16-bit little-endian:
            ``numpy.frombuffer(speech.audio, "<i2")``.
        audio_format: ``wav``, ``pcm``, …
        sampling_rate: Hz.
        seed: The seed that was used.
        voice: The voice that spoke.
        voice_version: Its version.
        duration_seconds: Length of the audio.
        unknown: What the voice does not know and left out.
        timestamps: Of the words or tokens, where they were asked for.
    """

    audio: bytes
    audio_format: AudioFormat
    sampling_rate: int
    seed: int
    voice: str
    voice_version: str
    duration_seconds: float
    unknown: tuple[str, ...]
    timestamps: tuple[Timestamp, ...]

    def save(self, path: str | Path) -> None:
        """Write the audio into a file."""
        Path(path).write_bytes(self.audio)


@dataclass(frozen=True)
class Start:
    """What is known of a stream before its first sample; attributes as in `Speech`."""

    audio_format: AudioFormat
    sampling_rate: int
    seed: int
    voice: str
    voice_version: str
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Sentence:
    """A sentence of a text in pieces begins. What the voice does not know of it is in ``unknown``."""

    text: str
    start_seconds: float
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Chunk:
    """Some audio, and the words or tokens of the sentences that began since the last."""

    audio: bytes
    timestamps: tuple[Timestamp, ...]


@dataclass(frozen=True)
class Flushed:
    """Everything that was sent before a flush has been spoken."""


@dataclass(frozen=True)
class Cancelled:
    """A cancel has been obeyed. No audio of what was sent before it comes any more."""


@dataclass(frozen=True)
class End:
    """All has been spoken."""

    duration_seconds: float


Event = Start | Sentence | Chunk | Flushed | Cancelled | End


@dataclass(frozen=True)
class BatchResult:
    """What came of one text of a batch: a ``speech`` or an ``error``.

    Attributes:
        index: Which of the texts, counted from 0.
        speech: The audio, where it was spoken.
        error: Why not, otherwise.
    """

    index: int
    speech: Speech | None
    error: ClientError | None


@dataclass(frozen=True)
class Voice:
    """A voice; attributes as in the protocol's ``Voice``."""

    name: str
    version: str
    created: datetime
    licence: str
    sources: tuple[str, ...]
    consent: str
    language: str
    sampling_rate: int
    speakers: tuple[str, ...]
    is_default: bool


def request(text: str, options: Options) -> pb.SynthesizeRequest:
    """A request of the protocol.

    Raises:
        TypeError: There is no such option.
        ValueError: There is no such choice, or a number is not one that fits.
    """
    fields = dict(options)
    unknown = sorted(fields.keys() - Options.__annotations__.keys())
    if unknown:
        raise TypeError(f"there is no option {unknown[0]!r}; there is {', '.join(Options.__annotations__)}")
    match fields.get("timestamps"):
        case True:
            fields["timestamps"] = "word"
        case False | None:
            fields.pop("timestamps", None)
    for name, prefix, choices in (
        ("audio_format", "AUDIO_FORMAT", AudioFormat),
        ("priority", "PRIORITY", Priority),
        ("timestamps", "TIMESTAMP_UNIT", TimestampUnit),
    ):
        if name in fields:
            if fields[name] not in get_args(choices):
                listed = ", ".join(get_args(choices))
                raise ValueError(f"{name}: there is no {fields[name]!r}; there is {listed}")
            fields[name] = f"{prefix}_{fields[name]}".upper()
    return pb.SynthesizeRequest(text=text, **fields)  # type: ignore[arg-type]  # the protocol checks their types


def batch_request(texts: Iterable[str | tuple[str, Options]], options: Options) -> pb.SynthesizeBatchRequest:
    """A batch of the protocol: options of a text's own go before those of all."""
    pairs = ((one, Options()) if isinstance(one, str) else one for one in texts)
    return pb.SynthesizeBatchRequest(
        requests=[request(text, cast("Options", {**options, **own})) for text, own in pairs]
    )


def speech(answer: pb.SynthesizeResponse) -> Speech:
    """An answer of the protocol."""
    return Speech(
        audio=answer.audio,
        audio_format=format_name(answer.audio_format),
        sampling_rate=answer.sampling_rate,
        seed=answer.seed,
        voice=answer.voice,
        voice_version=answer.voice_version,
        duration_seconds=answer.duration_seconds,
        unknown=tuple(answer.unknown),
        timestamps=timestamps(answer.timestamps),
    )


def format_name(number: pb.AudioFormat.ValueType) -> AudioFormat:
    """Our name of a format."""
    return cast("AudioFormat", pb.AudioFormat.Name(number).removeprefix("AUDIO_FORMAT_").lower())


def timestamps(given: Iterable[pb.Timestamp]) -> tuple[Timestamp, ...]:
    """Timestamps of the protocol."""
    return tuple(Timestamp(one.text, one.start_seconds, one.end_seconds) for one in given)


def event(message: pb.SynthesizeStreamResponse | pb.SynthesizeIncrementalResponse) -> Event | None:
    """An event of the protocol; None for one that a newer server knows and we do not."""
    kind = message.WhichOneof("event")
    if kind == "start":
        start = message.start
        return Start(
            audio_format=format_name(start.audio_format),
            sampling_rate=start.sampling_rate,
            seed=start.seed,
            voice=start.voice,
            voice_version=start.voice_version,
            unknown=tuple(start.unknown),
        )
    if kind == "chunk":
        return Chunk(message.chunk.audio, timestamps(message.chunk.timestamps))
    if kind == "end":
        return End(message.end.duration_seconds)
    if isinstance(message, pb.SynthesizeIncrementalResponse):
        if kind == "sentence":
            sentence = message.sentence
            return Sentence(sentence.text, sentence.start_seconds, tuple(sentence.unknown))
        if kind == "flushed":
            return Flushed()
        if kind == "cancelled":
            return Cancelled()
    return None


def batch_result(message: pb.SynthesizeBatchResponse) -> BatchResult:
    """A result of the protocol."""
    if message.HasField("speech"):
        return BatchResult(message.index, speech(message.speech), None)
    failure = message.failure
    error = from_code(failure.code, failure.message, failure.reason, failure.field)
    return BatchResult(message.index, None, error)


def voice(message: pb.Voice) -> Voice:
    """A voice of the protocol."""
    return Voice(
        name=message.name,
        version=message.version,
        created=message.create_time.ToDatetime(),
        licence=message.licence,
        sources=tuple(message.sources),
        consent=message.consent,
        language=message.language,
        sampling_rate=message.sampling_rate,
        speakers=tuple(message.speakers),
        is_default=message.is_default,
    )
