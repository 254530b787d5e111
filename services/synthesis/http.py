"""HTTP: OpenAI's speech API, with a few fields of our own.

``POST /v1/audio/speech``, ``GET /v1/audio/voices``, ``GET /v1/models``. Errors have OpenAI's shape,
``{"error": {"message", "type", "param", "code"}}``, and report everything wrong with a request at once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.synthesis.answers import pack_pcm, pack_wav, public_message
from services.synthesis.speaker import (
    MAX_NOISE_SCALE,
    MAX_SEED,
    MAX_SPEAKING_RATE,
    MAX_TEXT_CHARACTERS,
    MIN_SPEAKING_RATE,
    Order,
    Speaker,
    Spoken,
)
from shared.errors import (
    AccessError,
    AlreadyExistsError,
    ConfigError,
    CorruptObjectError,
    DataError,
    DeadlineError,
    EngineError,
    HubUnreachableError,
    LeaseLostError,
    MissingExtraError,
    ModelError,
    NotFoundError,
    OverloadedError,
    ProblemsError,
    QualityError,
    QuotaError,
    RequestError,
    StoreError,
    TextError,
    UserError,
    VitsError,
    nearest,
)

logger = logging.getLogger("vits.http")

#: Larger than any text of the allowed length, however it is escaped.
MAX_BODY_BYTES = 128 * 1024

#: What OpenAI calls its models and voices: clients that know no other name hear the default voice.
OPENAI_MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")
OPENAI_VOICES = frozenset(
    (
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
    )
)
#: The name of the one model that we are.
OUR_MODEL = "vits"


@dataclass(frozen=True)
class Row:
    """How HTTP answers a class of errors.

    Attributes:
        status: The status.
        type: OpenAI's ``type``.
        code: OpenAI's ``code``.
    """

    status: HTTPStatus
    type: str
    code: str


_BAD_REQUEST = Row(HTTPStatus.BAD_REQUEST, "invalid_request_error", "invalid_request")
_INTERNAL = Row(HTTPStatus.INTERNAL_SERVER_ERROR, "server_error", "internal_error")
_UNUSABLE = Row(HTTPStatus.INTERNAL_SERVER_ERROR, "server_error", "voice_unusable")

#: The table of errors. A class that is missing fails the tests.
ERRORS: dict[type[VitsError], Row] = {
    VitsError: _INTERNAL,
    UserError: _BAD_REQUEST,
    ProblemsError: _BAD_REQUEST,
    ConfigError: _UNUSABLE,
    DataError: _INTERNAL,
    TextError: Row(HTTPStatus.BAD_REQUEST, "invalid_request_error", "text_not_speakable"),
    RequestError: _BAD_REQUEST,
    AccessError: Row(HTTPStatus.UNAUTHORIZED, "invalid_request_error", "invalid_api_key"),
    NotFoundError: Row(HTTPStatus.NOT_FOUND, "invalid_request_error", "voice_not_found"),
    HubUnreachableError: Row(HTTPStatus.SERVICE_UNAVAILABLE, "server_error", "hub_unreachable"),
    MissingExtraError: _UNUSABLE,
    ModelError: _UNUSABLE,
    StoreError: Row(HTTPStatus.SERVICE_UNAVAILABLE, "server_error", "store_unavailable"),
    AlreadyExistsError: _INTERNAL,
    CorruptObjectError: _UNUSABLE,
    LeaseLostError: _INTERNAL,
    QualityError: _INTERNAL,
    EngineError: Row(HTTPStatus.INTERNAL_SERVER_ERROR, "server_error", "engine_failed"),
    OverloadedError: Row(HTTPStatus.TOO_MANY_REQUESTS, "rate_limit_error", "overloaded"),
    QuotaError: Row(HTTPStatus.TOO_MANY_REQUESTS, "rate_limit_error", "quota_exceeded"),
    DeadlineError: Row(HTTPStatus.GATEWAY_TIMEOUT, "server_error", "deadline_exceeded"),
}

#: Our names for what OpenAI calls otherwise, in messages.
PARAMS = {"text": "input", "speaking_rate": "speed"}

NoiseScale = Annotated[float, Field(ge=0, le=MAX_NOISE_SCALE)]


class SpeechRequest(BaseModel):
    """The body of ``POST /v1/audio/speech``."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    input: Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARACTERS)]
    model: str = OUR_MODEL
    voice: str = ""
    response_format: str = "wav"
    speed: Annotated[float, Field(ge=MIN_SPEAKING_RATE, le=MAX_SPEAKING_RATE)] = 1.0
    stream_format: str = "audio"
    speaker: str | int | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    noise_scale: NoiseScale | None = None
    noise_scale_duration: NoiseScale | None = None

    def order(self) -> Order:
        """The order that the request stands for."""
        voice = "" if self.voice in OPENAI_VOICES else self.voice
        if not voice and self.model not in {OUR_MODEL, *OPENAI_MODELS}:
            voice = self.model
        return Order(
            text=self.input,
            door="http",
            voice=voice,
            speaker=self.speaker,
            seed=self.seed,
            speaking_rate=self.speed,
            noise_scale=self.noise_scale,
            noise_scale_duration=self.noise_scale_duration,
        )


#: What an answer can be packed as: its media type and its packer.
FORMATS: dict[str, tuple[str, Callable[[Spoken], bytes]]] = {
    "wav": ("audio/wav", pack_wav),
    "pcm": ("audio/pcm", pack_pcm),
}


class BadRequestError(RequestError):
    """A request with everything that is wrong with it."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        messages = [message for _, message in problems]
        super().__init__("\n".join(messages), param=problems[0][0] or None)


async def read_body(request: Request) -> bytes:
    """The body, of which no more than the limit is ever read.

    Raises:
        RequestError: It is longer.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise RequestError(
                f"The request is longer than {MAX_BODY_BYTES} bytes. "
                f"A text may have {MAX_TEXT_CHARACTERS} characters: send a long one in parts."
            )
    return body


def parse(body: bytes) -> SpeechRequest:
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
    problems: list[tuple[str, str]] = []
    request = None
    try:
        request = SpeechRequest.model_validate(content)
    except ValidationError as error:
        problems = [_problem(detail) for detail in error.errors()]
    for field, allowed in (("response_format", list(FORMATS)), ("stream_format", ["audio"])):
        value = content.get(field, allowed[0])
        if isinstance(value, str) and value not in allowed:
            listed = ", ".join(map(repr, allowed))
            problems.append((field, f"{field}: {value!r} is not available here; there is {listed}"))
    if problems or request is None:
        raise BadRequestError(list(dict.fromkeys(problems)))
    return request


def _problem(detail: Any) -> tuple[str, str]:
    field = str(detail["loc"][0]) if detail["loc"] else ""
    if detail["type"] == "missing":
        return field, f"{field}: is missing; it is required"
    if detail["type"] == "extra_forbidden":
        return field, f"{field}: there is no such field{nearest(field, list(SpeechRequest.model_fields))}"
    return field, f"{field}: {detail['msg']}"


def error_response(error: Exception) -> Response:
    """The answer to a request that failed."""
    row = ERRORS[VitsError]
    if isinstance(error, VitsError):
        row = ERRORS[next(kind for kind in type(error).__mro__ if kind in ERRORS)]
    if row.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("request failed", exc_info=error)
    headers = {}
    if isinstance(error, OverloadedError):
        headers["Retry-After"] = str(max(1, round(error.retry_after_seconds)))
    param = getattr(error, "param", None)
    content = {
        "message": public_message(error),
        "type": row.type,
        "param": PARAMS.get(param, param) if isinstance(param, str) else None,
        "code": row.code,
    }
    # Escaped, since a message may quote a lone surrogate.
    body = json.dumps({"error": content})
    return Response(body, row.status, headers, "application/json")


Endpoint = Callable[[Request, Speaker], Awaitable[Response]]


def endpoint(answer: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    """Give an endpoint the speaker, translate its errors, and count its answers."""

    async def handle(request: Request) -> Response:
        speaker: Speaker = request.app.state.speaker
        try:
            response = await answer(request, speaker)
        except Exception as error:
            response = error_response(error)
        speaker.metrics.responses.labels("http", str(response.status_code)).inc()
        return response

    return handle


async def speech(request: Request, speaker: Speaker) -> Response:
    """``POST /v1/audio/speech``."""
    wanted = parse(await read_body(request))
    spoken = await speaker.speak(wanted.order())
    media_type, pack = FORMATS[wanted.response_format]
    headers = {
        "X-Vits-Seed": str(spoken.seed),
        "X-Vits-Voice": f"{spoken.voice}/{spoken.voice_version}",
        "X-Vits-Sampling-Rate": str(spoken.sampling_rate),
    }
    if spoken.unknown:
        headers["X-Vits-Unknown"] = quote("".join(spoken.unknown), safe="", errors="backslashreplace")
    return Response(pack(spoken), headers=headers, media_type=media_type)


async def voices(_request: Request, speaker: Speaker) -> Response:
    """``GET /v1/audio/voices``: name, version, licence, sources and consent of each voice."""
    listed = [
        {
            "id": version.name,
            "name": version.name,
            "version": version.id,
            "created": version.manifest.created.isoformat(),
            "licence": version.manifest.licence,
            "sources": list(version.manifest.sources),
            "consent": version.manifest.consent,
        }
        for version in await speaker.voices()
    ]
    return JSONResponse({"voices": listed})


async def models(_request: Request, speaker: Speaker) -> Response:
    """``GET /v1/models``: OpenAI's list. Each voice can be asked for as a model, too."""
    created = {version.name: int(version.manifest.created.timestamp()) for version in await speaker.voices()}
    aliases = dict.fromkeys((OUR_MODEL, *OPENAI_MODELS), min(created.values(), default=0))
    listed = [
        {"id": name, "object": "model", "created": when, "owned_by": OUR_MODEL}
        for name, when in (aliases | created).items()
    ]
    return JSONResponse({"object": "list", "data": listed})


async def nothing(request: Request, _speaker: Speaker) -> Response:
    """Any other path or method under ``/v1``: 405 for a known path, 404 otherwise."""
    methods = METHODS.get(request.url.path)
    content = {
        "message": f"{request.method} {request.url.path} is not served here; there is "
        + ", ".join(f"{method} {path}" for path, method in METHODS.items()),
        "type": "invalid_request_error",
        "param": None,
        "code": "unknown_url" if methods is None else "method_not_allowed",
    }
    status = HTTPStatus.NOT_FOUND if methods is None else HTTPStatus.METHOD_NOT_ALLOWED
    return JSONResponse({"error": content}, status, {"Allow": methods} if methods else None)


METHODS = {"/v1/audio/speech": "POST", "/v1/audio/voices": "GET", "/v1/models": "GET"}


def make_app() -> Starlette:
    """The application. Whoever serves it sets ``app.state.speaker`` first."""
    return Starlette(
        routes=[
            Route("/v1/audio/speech", endpoint(speech), methods=["POST"]),
            Route("/v1/audio/voices", endpoint(voices), methods=["GET"]),
            Route("/v1/models", endpoint(models), methods=["GET"]),
            Route("/v1/{path:path}", endpoint(nothing), methods=["DELETE", "GET", "PATCH", "POST", "PUT"]),
        ]
    )
