"""``GET /openapi.json``: OpenAPI 3.1, its schemas from the classes that requests are checked with."""

from __future__ import annotations

from functools import cache
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.synthesis.http.live import MESSAGES, PROTOCOL, TOKEN_PROTOCOL
from services.synthesis.http.requests import BatchRequest, SpeechRequest, SynthesizeRequest
from shared.audio_encoding import FORMATS

_MODELS: tuple[type[BaseModel], ...] = (SpeechRequest, SynthesizeRequest, BatchRequest, *MESSAGES.values())

_INTRODUCTION = """\
Text to speech with the voices of this server. `POST /v1/audio/speech` is OpenAI's; fields that OpenAI does not have
(`speaker`, `seed`, `noise_scale`, `noise_scale_duration`, `timestamps`, `sampling_rate`, `language`, `ssml`,
`priority`, `deadline_seconds`) may be left out. Where the server asks for tokens, every path here wants
`Authorization: Bearer <token>`. Every answer has `X-Request-Id`, the request's own if it had one.

gRPC offers the same as `vits.synthesis.v1`; `/livez`, `/readyz` and `/metrics` are for operators.
"""

_LIVE = f"""\
A WebSocket for text that arrives in pieces. Each message is a JSON object with a `type` and a `context_id`; a
connection carries several texts at once, each under an id of its own. The client sends `start` (how to speak), `text`
(any number of pieces), `flush`, `cancel` and `end`: see the schemas Start, Text, Flush, Cancel and End. The server
sends `started` (seed, voice, sampling_rate), `sentence`, `audio` (base64, with timestamps where asked for), `flushed`,
`cancelled`, `done` and `error`. A browser, which cannot set headers here, offers the protocols `{PROTOCOL}` and
`{TOKEN_PROTOCOL}<token>`.
"""

_STRING = {"type": "string"}
_NUMBER = {"type": "number"}
_INTEGER = {"type": "integer"}
_STRINGS = {"type": "array", "items": _STRING}


def _object(required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required.split(), "properties": properties}


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


_ANSWERS: dict[str, Any] = {
    "Error": _object(
        "error",
        error=_object(
            "message type param code",
            message=_STRING
            | {"description": "What was wrong, where, and what to do; a line for each thing."},
            type=_STRING,
            param={"type": ["string", "null"]},
            code=_STRING,
        ),
    ),
    "Timestamp": _object(
        "text start_seconds end_seconds", text=_STRING, start_seconds=_NUMBER, end_seconds=_NUMBER
    ),
    "Speech": _object(
        "audio response_format sampling_rate seed voice voice_version duration_seconds unknown usage",
        audio=_STRING | {"contentEncoding": "base64"},
        response_format=_STRING,
        sampling_rate=_INTEGER,
        seed=_INTEGER,
        voice=_STRING,
        voice_version=_STRING,
        duration_seconds=_NUMBER,
        unknown=_STRINGS
        | {"description": "Characters or phonemes that the voice does not know and left out."},
        usage=_object(
            "input_tokens output_tokens total_tokens",
            input_tokens=_INTEGER | {"description": "The voice's own tokens."},
            output_tokens=_INTEGER | {"description": "Pieces of 20 ms of audio."},
            total_tokens=_INTEGER,
        ),
        timestamps={"type": "array", "items": _reference("Timestamp")},
        tokens={"type": "array", "items": _reference("Timestamp")}
        | {"description": "The voice's own tokens."},
        srt=_STRING,
        vtt=_STRING,
    ),
    "SpeechEvent": {
        "description": "OpenAI's events: speech.audio.delta, then one speech.audio.done, or an error.",
        "oneOf": [
            _object(
                "type audio",
                type={"const": "speech.audio.delta"},
                audio=_STRING | {"contentEncoding": "base64"},
                timestamps={"type": "array", "items": _reference("Timestamp")},
            ),
            _object(
                "type usage seed voice voice_version sampling_rate duration_seconds unknown",
                type={"const": "speech.audio.done"},
            ),
            _object("type error", type={"const": "error"}),
        ],
    },
    "Voice": _object(
        "id name version created licence sources consent",
        id=_STRING,
        name=_STRING,
        version=_STRING,
        variant={
            "type": ["string", "null"],
            "description": "What it speaks with here; null while not loaded.",
        },
        created=_STRING | {"format": "date-time"},
        licence=_STRING,
        sources=_STRINGS | {"description": "What the voice was made from."},
        consent={"type": ["string", "null"], "description": "What the speaker has consented to."},
        language=_STRING,
        sampling_rate=_INTEGER,
        num_speakers=_INTEGER,
        speakers={"type": "object", "additionalProperties": _INTEGER, "description": "Numbers by name."},
        defaults={"type": "object", "additionalProperties": _NUMBER},
    ),
    "Voices": _object("voices", voices={"type": "array", "items": _reference("Voice")}),
    "Models": _object(
        "object data",
        object={"const": "list"},
        data={
            "type": "array",
            "items": _object(
                "id object created owned_by",
                id=_STRING,
                object={"const": "model"},
                created=_INTEGER,
                owned_by=_STRING,
            ),
        },
    ),
}

_SPEECH_HEADERS = {
    "X-Vits-Seed": ("The seed that was used; ask with it to hear the same again.", _INTEGER),
    "X-Vits-Voice": ("The voice that spoke, as name/version.", _STRING),
    "X-Vits-Sampling-Rate": ("Hz.", _INTEGER),
    "X-Vits-Unknown": ("Characters that were left out, percent-encoded; 1 KiB of them at most.", _STRING),
}


def _answer(
    description: str, content: dict[str, Any], headers: dict[str, Any] | None = None
) -> dict[str, Any]:
    answer = {
        "description": description,
        "content": {kind: {"schema": schema} for kind, schema in content.items()},
    }
    return answer | ({"headers": headers} if headers else {})


def _operation(
    name: str, summary: str, answer: dict[str, Any], *failures: int, body: str = ""
) -> dict[str, Any]:
    """An operation; every one may also answer 401, 500 and 503."""
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "tags": ["speech" if body else "catalogue"],
    }
    if body:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _reference(body)}},
        }
    statuses = sorted({401, 429, 500, 503, *failures})
    error = {"application/json": _reference("Error")}
    again = {"Retry-After": {"description": "Seconds to wait.", "schema": _INTEGER}}
    operation["responses"] = {"200": answer} | {
        str(status): _answer(HTTPStatus(status).phrase, error, again if status == 429 else None)
        for status in statuses
    }
    return operation


def _paths() -> dict[str, Any]:
    headers = {
        name: {"description": text, "schema": schema} for name, (text, schema) in _SPEECH_HEADERS.items()
    }
    audio = {wanted.media_type: {"type": "string", "format": "binary"} for wanted in FORMATS.values()}
    event = _STRING | {"contentMediaType": _JSON, "contentSchema": _reference("SpeechEvent")}
    speech = audio | {"text/event-stream": _object("data", data=event), _JSON: _reference("Speech")}
    lines = {
        "application/x-ndjson": _STRING | {"description": "A Speech with index and id on each line, or index, id, "
                                           "status and error."},
        "application/zip": {"type": "string", "format": "binary"},
    }  # fmt: skip
    failures = (400, 404, 413, 504)
    file_name = {"description": "attachment; filename=…", "schema": _STRING}
    name = {"name": "name", "in": "path", "required": True, "schema": _STRING}
    return {
        "/v1/audio/speech": {
            "post": _operation(
                "createSpeech",
                "Speak a text",
                _answer("The audio", speech, headers),
                *failures,
                body="SpeechRequest",
            )
        },
        "/v1/audio/speech/batch": {
            "post": _operation(
                "createSpeechBatch",
                "Speak many texts; one that fails does not end the others",
                _answer("The speeches", lines),
                *failures,
                body="BatchRequest",
            )
        },
        "/synthesize": {
            "post": _operation(
                "synthesize",
                "Speak a text, for BentoML's client: the whole of the audio, as a file",
                _answer("The audio", audio, headers | {"Content-Disposition": file_name}),
                *failures,
                body="SynthesizeRequest",
            )
        },
        "/v1/audio/speech/live": {
            "get": {
                "operationId": "liveSpeech",
                "summary": "Speak a text while it arrives, over a WebSocket",
                "description": _LIVE,
                "tags": ["speech"],
                "responses": {"101": {"description": "The protocol is a WebSocket's from here on."}},
            }
        },
        "/v1/audio/voices": {
            "get": _operation(
                "listVoices", "List the voices", _answer("Voices", {_JSON: _reference("Voices")})
            )
        },
        "/v1/audio/voices/{name}": {
            "parameters": [name],
            "get": _operation("getVoice", "One voice", _answer("Voice", {_JSON: _reference("Voice")}), 404),
        },
        "/v1/models": {
            "get": _operation(
                "listModels",
                "List the voices as OpenAI's models",
                _answer("Models", {_JSON: _reference("Models")}),
            )
        },
    }


_JSON = "application/json"


@cache
def document() -> dict[str, Any]:
    """The whole document."""
    _, definitions = models_json_schema(
        [(model, "validation") for model in _MODELS], ref_template="#/components/schemas/{model}"
    )
    try:
        number = version("vits-suite")
    except PackageNotFoundError:  # run from a folder that was never installed
        number = "0"
    return {
        "openapi": "3.1.0",
        "info": {"title": "VITS Suite", "version": number, "description": _INTRODUCTION},
        "servers": [{"url": "/"}],
        "security": [{}, {"token": []}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": definitions["$defs"] | _ANSWERS,
        },
    }


async def openapi(_request: Request) -> Response:
    """``GET /openapi.json``."""
    return JSONResponse(document())
