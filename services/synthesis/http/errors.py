"""How HTTP answers errors: one table, one shape, which is OpenAI's.

``{"error": {"message", "type", "param", "code"}}``
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from services.synthesis.answers import public_message
from shared.errors import (
    AccessError,
    AlreadyExistsError,
    ConfigError,
    ConsentError,
    CorruptObjectError,
    DataError,
    DeadlineError,
    DivergenceError,
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
    SlowReaderError,
    StoppingError,
    StoreError,
    TextError,
    UserError,
    VitsError,
)

logger = logging.getLogger("vits.http")


class BodyTooLargeError(RequestError):
    """A body that is longer than an endpoint takes."""


class UnknownUrlError(RequestError):
    """A path that is not served."""


class MethodError(RequestError):
    """A path that is served, but not with this method.

    Attributes:
        allowed: The methods that it is served with.
    """

    def __init__(self, message: str, *, allowed: str) -> None:
        self.allowed = allowed
        super().__init__(message)


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
    DivergenceError: _INTERNAL,
    TextError: Row(HTTPStatus.BAD_REQUEST, "invalid_request_error", "text_not_speakable"),
    RequestError: _BAD_REQUEST,
    BodyTooLargeError: Row(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "invalid_request_error", "request_too_large"),
    UnknownUrlError: Row(HTTPStatus.NOT_FOUND, "invalid_request_error", "unknown_url"),
    MethodError: Row(HTTPStatus.METHOD_NOT_ALLOWED, "invalid_request_error", "method_not_allowed"),
    SlowReaderError: Row(HTTPStatus.REQUEST_TIMEOUT, "invalid_request_error", "reader_too_slow"),
    AccessError: Row(HTTPStatus.UNAUTHORIZED, "invalid_request_error", "invalid_api_key"),
    NotFoundError: Row(HTTPStatus.NOT_FOUND, "invalid_request_error", "voice_not_found"),
    ConsentError: _INTERNAL,
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
    StoppingError: Row(HTTPStatus.SERVICE_UNAVAILABLE, "server_error", "stopping"),
    DeadlineError: Row(HTTPStatus.GATEWAY_TIMEOUT, "server_error", "deadline_exceeded"),
}

#: Our names for what OpenAI calls otherwise, in messages.
PARAMS = {"text": "input", "speaking_rate": "speed"}

#: Load and a client's own deadline: no failure of the server, whatever the status.
_EXPECTED = (OverloadedError, DeadlineError)


def row_of(error: BaseException) -> Row:
    """The row of an error's class or of its nearest base; what is not ours is an internal error."""
    return next((ERRORS[kind] for kind in type(error).__mro__ if kind in ERRORS), _INTERNAL)


def error_content(error: BaseException) -> dict[str, Any]:
    """The inside of ``{"error": …}``; a failure of the server is logged."""
    row = row_of(error)
    if row.status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(error, _EXPECTED):
        logger.error("request failed", exc_info=error)
    param = getattr(error, "param", None)
    return {
        "message": public_message(error),
        "type": row.type,
        "param": PARAMS.get(param, param) if isinstance(param, str) else None,
        "code": row.code,
    }


def to_json(content: Mapping[str, Any]) -> bytes:
    """JSON in ASCII: a message may quote a lone surrogate, which UTF-8 cannot carry."""
    return json.dumps(content).encode("ascii")


def error_response(error: BaseException) -> Response:
    """The answer to a request that failed."""
    headers = {}
    if isinstance(error, OverloadedError):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_seconds)))
    if isinstance(error, AccessError):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, MethodError):
        headers["Allow"] = error.allowed
    body = to_json({"error": error_content(error)})
    return Response(body, row_of(error).status, headers, "application/json")
