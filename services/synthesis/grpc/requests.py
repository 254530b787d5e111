"""What is asked for: a request's fields, checked, as an order for the speaker."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from services.synthesis.grpc.errors import InvalidError
from services.synthesis.speaker import (
    MAX_NOISE_SCALE,
    MAX_SEED,
    MAX_SPEAKING_RATE,
    MAX_TEXT_CHARACTERS,
    MIN_SPEAKING_RATE,
    Order,
)
from shared.audio_encoding import (
    MAX_SAMPLING_RATE,
    MIN_SAMPLING_RATE,
    available_formats,
    check_sampling_rate,
)
from shared.errors import RequestError
from shared.protos.vits.synthesis.v1 import synthesis_pb2 as pb

#: What `shared.audio_encoding` calls the formats.
FORMATS: dict[int, str] = {
    pb.AUDIO_FORMAT_WAV: "wav",
    pb.AUDIO_FORMAT_PCM: "pcm",
    pb.AUDIO_FORMAT_FLAC: "flac",
    pb.AUDIO_FORMAT_MP3: "mp3",
    pb.AUDIO_FORMAT_OPUS: "opus",
    pb.AUDIO_FORMAT_AAC: "aac",
}
NUMBERS: dict[str, pb.AudioFormat.ValueType] = {
    name: pb.AudioFormat.Value(f"AUDIO_FORMAT_{name.upper()}") for name in FORMATS.values()
}

#: Longer ones name nothing, and are not worth looking for.
MAX_NAME_CHARACTERS = 200
MAX_LANGUAGE_CHARACTERS = 35

PriorityName = Literal["interactive", "bulk"]


@dataclass(frozen=True)
class Wanted:
    """A request that has been checked.

    Attributes:
        order: What to speak.
        audio_format: How to pack it.
        sampling_rate: Hz; the voice's own where None.
        timestamps: What is to be timed.
    """

    order: Order
    audio_format: str
    sampling_rate: int | None
    timestamps: pb.TimestampUnit.ValueType


def parse(
    request: pb.SynthesizeRequest,
    *,
    audio_format: str = "wav",
    priority: PriorityName = "interactive",
    in_pieces: bool = False,
) -> Wanted:
    """Check a request.

    Args:
        request: What is asked for.
        audio_format: Where the request leaves it open.
        priority: Where the request leaves it open.
        in_pieces: Whether the text is still to come.

    Raises:
        InvalidError: Says everything that is wrong with it.
    """
    problems = [*_wrong_text(request, in_pieces), *_wrong_choices(request), *_wrong_numbers(request)]
    if problems:
        raise InvalidError(problems)
    if request.priority:
        priority = "bulk" if request.priority == pb.PRIORITY_BULK else "interactive"
    order = Order(
        text=request.text,
        voice=request.voice,
        speaker=request.speaker if request.HasField("speaker") else None,
        seed=request.seed if request.HasField("seed") else None,
        speaking_rate=request.speaking_rate if request.HasField("speaking_rate") else 1.0,
        noise_scale=request.noise_scale if request.HasField("noise_scale") else None,
        noise_scale_duration=request.noise_scale_duration
        if request.HasField("noise_scale_duration")
        else None,
        ssml=request.ssml,
        language=request.language or None,
        timed=request.timestamps == pb.TIMESTAMP_UNIT_WORD,
        priority=priority,
        door="grpc",
    )
    return Wanted(
        order,
        FORMATS.get(request.audio_format, audio_format),
        request.sampling_rate or None,
        request.timestamps,
    )


Problems = list[tuple[str, str]]


def _wrong_text(request: pb.SynthesizeRequest, in_pieces: bool) -> Problems:
    problems = []
    if not request.text and not in_pieces:
        problems.append(("text", "is empty; it is required"))
    if len(request.text) > MAX_TEXT_CHARACTERS:
        problems.append(
            ("text", f"has {len(request.text)} characters; at most {MAX_TEXT_CHARACTERS} are allowed")
        )
    if request.ssml and in_pieces:
        problems.append(("ssml", "is set; a text that arrives in pieces cannot be SSML"))
    for name, limit in (
        ("voice", MAX_NAME_CHARACTERS),
        ("speaker", MAX_NAME_CHARACTERS),
        ("language", MAX_LANGUAGE_CHARACTERS),
    ):
        if len(getattr(request, name)) > limit:
            problems.append((name, f"has more than {limit} characters, and so names nothing"))
    return problems


def _wrong_choices(request: pb.SynthesizeRequest) -> Problems:
    problems = []
    if request.audio_format and FORMATS.get(request.audio_format) not in available_formats():
        there = sorted(
            (number, name.upper()) for number, name in FORMATS.items() if name in available_formats()
        )
        listed = ", ".join(f"{name} ({number})" for number, name in there)
        wanted = FORMATS.get(request.audio_format, f"number {request.audio_format}")
        problems.append(("audio_format", f"{wanted} is not available here; there is {listed}"))
    for field, enum in (("priority", pb.Priority), ("timestamps", pb.TimestampUnit)):
        number = getattr(request, field)
        if number not in enum.values():
            there_are = ", ".join(f"{name} ({value})" for name, value in enum.items())
            problems.append((field, f"there is no {number}; there is {there_are}"))
    return problems


def _wrong_numbers(request: pb.SynthesizeRequest) -> Problems:
    problems = []
    if request.seed > MAX_SEED:
        problems.append(("seed", f"is {request.seed}; it must be from 0 to {MAX_SEED}"))
    for name, low, high in (
        ("speaking_rate", MIN_SPEAKING_RATE, MAX_SPEAKING_RATE),
        ("noise_scale", 0.0, MAX_NOISE_SCALE),
        ("noise_scale_duration", 0.0, MAX_NOISE_SCALE),
    ):
        value = getattr(request, name)
        if request.HasField(name) and not (math.isfinite(value) and low <= value <= high):  # type: ignore[arg-type]
            problems.append((name, f"is {value:g}; it must be from {low:g} to {high:g}"))
    rate, audio_format = request.sampling_rate, FORMATS.get(request.audio_format)
    if rate and not MIN_SAMPLING_RATE <= rate <= MAX_SAMPLING_RATE:
        problems.append(
            ("sampling_rate", f"is {rate}; it must be from {MIN_SAMPLING_RATE} to {MAX_SAMPLING_RATE}, or 0")
        )
    elif rate and audio_format:
        try:
            check_sampling_rate(audio_format, rate)
        except RequestError as error:
            problems.append(("sampling_rate", str(error).removeprefix("sampling_rate: ")))
    return problems
