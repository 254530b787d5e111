"""What clients may send: OpenAI's fields and ours, checked all at once."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from services.synthesis.http.errors import BodyTooLargeError
from services.synthesis.speaker import (
    MAX_NOISE_SCALE,
    MAX_SEED,
    MAX_SPEAKING_RATE,
    MAX_TEXT_CHARACTERS,
    MIN_SPEAKING_RATE,
    Order,
)
from shared.audio_encoding import MAX_SAMPLING_RATE, MIN_SAMPLING_RATE, check_sampling_rate
from shared.errors import RequestError, nearest

#: Larger than any text of the allowed length, however it is escaped.
MAX_BODY_BYTES = 128 * 1024
#: The same for a batch.
MAX_BATCH_BYTES = 8 * 1024 * 1024
#: Texts of a batch.
MAX_BATCH_TEXTS = 1000
#: A deadline that is further away than this is none.
MAX_DEADLINE_SECONDS = 3600

#: What OpenAI calls its models and voices: clients that know no other name hear the default voice, unless there is one
#: of that name.
OPENAI_MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")
OPENAI_VOICES = frozenset(
    [
        "alloy",
        "ash",
        "ballad",
        "cedar",
        "coral",
        "echo",
        "fable",
        "marin",
        "nova",
        "onyx",
        "sage",
        "shimmer",
        "verse",
    ]
)
#: The name of the one model that we are.
OUR_MODEL = "vits"

NoiseScale = Annotated[float, Field(ge=0, le=MAX_NOISE_SCALE)]
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARACTERS)]
Language = Annotated[str, Field(pattern=r"^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*$", max_length=35)]
ResponseFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]


class SpeechOptions(BaseModel):
    """How a text is spoken."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: Annotated[str, Field(description="Any of /v1/models; a voice can be named here, too.")] = OUR_MODEL
    voice: Annotated[
        str,
        Field(
            description="A name of /v1/audio/voices, name@alias or name/version. An empty one stands for the "
            "server's default voice, and so do OpenAI's, such as alloy, where there is no voice of that name."
        ),
    ] = ""
    response_format: Annotated[
        ResponseFormat,
        Field(description="opus comes in Ogg; pcm is signed 16-bit little-endian, one channel, no header."),
    ] = "mp3"
    speed: Annotated[
        float, Field(ge=MIN_SPEAKING_RATE, le=MAX_SPEAKING_RATE, description="2 is twice as fast.")
    ] = 1.0
    instructions: Annotated[
        str,
        Field(max_length=MAX_TEXT_CHARACTERS, description="OpenAI's. Taken, and not obeyed by any voice."),
    ] = ""
    speaker: Annotated[
        str | int | None, Field(description="Name or number of one of the voice's speakers.")
    ] = None
    seed: Annotated[
        Annotated[int, Field(ge=0, le=MAX_SEED)] | None,
        Field(description="The same seed, text and voice give the same samples. Drawn where not given."),
    ] = None
    noise_scale: Annotated[
        NoiseScale | None, Field(description="How much the sound varies; the voice's own where not given.")
    ] = None
    noise_scale_duration: Annotated[
        NoiseScale | None, Field(description="How much the rhythm varies; the voice's own where not given.")
    ] = None
    timestamps: Annotated[bool, Field(description="Tell when each word is heard.")] = False
    sampling_rate: Annotated[
        Annotated[int, Field(ge=MIN_SAMPLING_RATE, le=MAX_SAMPLING_RATE)] | None,
        Field(description="Hz to convert to; the voice's own where not given (OpenAI's own pcm has 24000)."),
    ] = None
    language: Annotated[
        Language | None,
        Field(
            description="BCP 47 tag by which numbers and the like are read; the voice's own where not given."
        ),
    ] = None
    ssml: Annotated[
        bool | None, Field(description="Whether the text is SSML; where not given, if it begins with <speak.")
    ] = None
    priority: Annotated[
        Literal["interactive", "bulk"] | None,
        Field(description="bulk waits behind interactive. Not given: interactive, and bulk in a batch."),
    ] = None
    deadline_seconds: Annotated[
        Annotated[float, Field(gt=0, le=MAX_DEADLINE_SECONDS)] | None,
        Field(description="Give up when the last sample is not made within so many seconds."),
    ] = None

    def order(self, text: str, *, door: str, caller: str, request_id: str) -> Order:
        """The order that a text with these options stands for."""
        otherwise = "" if self.model in {OUR_MODEL, *OPENAI_MODELS} else self.model
        return Order(
            text=text,
            voice=self.voice or otherwise,
            stand_in=otherwise if self.voice in OPENAI_VOICES else None,
            speaker=self.speaker,
            seed=self.seed,
            speaking_rate=self.speed,
            noise_scale=self.noise_scale,
            noise_scale_duration=self.noise_scale_duration,
            ssml=text.lstrip().startswith("<speak") if self.ssml is None else self.ssml,
            language=self.language,
            timed=self.timestamps,
            priority=self.priority or "interactive",
            deadline_seconds=self.deadline_seconds,
            caller=caller,
            door=door,
            request_id=request_id,
        )

    def check(self) -> list[tuple[str, str]]:
        """What is wrong with fields that are each right: pairs of a field and a message."""
        if self.sampling_rate is not None:
            try:
                check_sampling_rate(self.response_format, self.sampling_rate)
            except RequestError as error:
                return [("sampling_rate", str(error))]
        return []


class SpeechRequest(SpeechOptions):
    """The body of ``POST /v1/audio/speech``."""

    input: Annotated[Text, Field(description="What to say.")]
    stream_format: Annotated[
        Literal["audio", "sse", "json"],
        Field(
            description="audio: the bytes, as they are made. sse: OpenAI's events, as they are made. "
            "json: one object, with timestamps and captions."
        ),
    ] = "audio"

    def check(self) -> list[tuple[str, str]]:
        """See `SpeechOptions.check`."""
        problems = super().check()
        if self.timestamps and self.stream_format == "audio":
            message = "timestamps: bare audio has no place for them; ask for stream_format sse or json"
            problems.append(("timestamps", message))
        return problems


class SynthesizeRequest(SpeechOptions):
    """The body of ``POST /synthesize``."""

    input: Annotated[Text, Field(description="What to say.")]
    response_format: Annotated[ResponseFormat, Field(description="See SpeechRequest.")] = "wav"

    def check(self) -> list[tuple[str, str]]:
        """See `SpeechOptions.check`."""
        message = "timestamps: bare audio has no place for them; POST to /v1/audio/speech"
        return super().check() + ([("timestamps", message)] if self.timestamps else [])


class BatchText(BaseModel):
    """One text of a batch, with what is its own."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    input: Text
    id: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
            max_length=64,
            description="Names its line and its file; its number where not given.",
        ),
    ] = None
    voice: str | None = None
    speaker: str | int | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    speed: Annotated[float, Field(ge=MIN_SPEAKING_RATE, le=MAX_SPEAKING_RATE)] | None = None
    language: Language | None = None


class BatchRequest(SpeechOptions):
    """The body of ``POST /v1/audio/speech/batch``: texts, and options that all of them have."""

    inputs: Annotated[
        list[Text | BatchText],
        Field(
            min_length=1,
            max_length=MAX_BATCH_TEXTS,
            description="Texts, or objects with options of their own.",
        ),
    ]
    output: Annotated[
        Literal["ndjson", "zip"],
        Field(description="ndjson: a line for each text. zip: a file for each, and index.json at the end."),
    ] = "ndjson"

    def check(self) -> list[tuple[str, str]]:
        """See `SpeechOptions.check`."""
        ids = [self.text(number)[0] for number in range(len(self.inputs))]
        twice = sorted({name for name in ids if ids.count(name) > 1}) if len(set(ids)) < len(ids) else []
        return super().check() + [("inputs", f"inputs: two texts have the id {name!r}") for name in twice[:5]]

    def text(self, number: int) -> tuple[str, str, SpeechOptions]:
        """The id of a text, the text, and its options."""
        given = self.inputs[number]
        if isinstance(given, str):
            return f"{number:04d}", given, self
        own = given.model_dump(exclude={"input", "id"}, exclude_none=True)
        return given.id or f"{number:04d}", given.input, self.model_copy(update=own)


Model = TypeVar("Model", bound=BaseModel)


async def read_body(request: Request, limit: int) -> bytes:
    """The body, of which no more than the limit is ever kept.

    Raises:
        BodyTooLargeError: It is longer.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise BodyTooLargeError(
                f"The request is longer than {limit} bytes. "
                f"A text may have {MAX_TEXT_CHARACTERS} characters: send a long one in parts."
            )
    return bytes(body)


def parse(body: bytes | str, kind: type[Model]) -> Model:
    """Check a body.

    Raises:
        RequestError: Says everything that is wrong with it.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"The body is not JSON ({error}). Send an object such as "
            '{"model": "tts-1", "voice": "alloy", "input": "Hola"} as application/json.'
        ) from error
    if not isinstance(content, dict):
        raise RequestError('The body must be a JSON object, such as {"input": "Hola"}.')
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            "The body has half a character: an escape from \\ud800 to \\udfff without its partner. "
            "Cut texts between characters."
        ) from error
    try:
        model = kind.model_validate(content)
    except ValidationError as error:
        known = list(kind.model_fields)
        refuse([_problem(detail, known) for detail in error.errors()])
        raise
    if isinstance(model, SpeechOptions):
        refuse(model.check())
    return model


def refuse(problems: list[tuple[str, str]]) -> None:
    """Raise what is wrong, if anything.

    Raises:
        RequestError: Has every message, each once.
    """
    if problems:
        messages = dict.fromkeys(message for _, message in problems)
        raise RequestError("\n".join(messages), param=problems[0][0] or None)


def _problem(detail: Any, known: list[str]) -> tuple[str, str]:
    """A field and a message from one of pydantic's."""
    place = [str(part) for part in detail["loc"]]
    field = place[0] if place else ""
    # Behind a field's name pydantic puts the branches of a union, which say nothing to a client.
    where = ".".join(
        part for i, part in enumerate(place) if i == 0 or part.isdigit() or part in _BATCH_FIELDS
    )
    if detail["type"] == "missing":
        return field, f"{where}: is missing; it is required"
    if detail["type"] == "extra_forbidden":
        return field, f"{'.'.join(place)}: there is no such field{nearest(place[-1], known)}"
    return field, f"{where}: {detail['msg']}"


_BATCH_FIELDS = frozenset(BatchText.model_fields)
