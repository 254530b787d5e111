"""What a client is told when something goes wrong: a status, a message, and google.rpc's details.

Every error carries an ErrorInfo (its ``reason`` is for programs) and a RequestInfo (the id by which the log knows
the call). What is wrong with a request's fields is in a BadRequest, when to come back in a RetryInfo.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, NoReturn

from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

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

logger = logging.getLogger("vits.grpc")

#: The domain that our reasons belong to.
DOMAIN = "vits.synthesis.v1"

#: Metadata that carries the details, by gRPC's convention.
DETAILS_KEY = "grpc-status-details-bin"
REQUEST_ID_KEY = "x-request-id"

#: Messages are told in metadata, which clients limit to 8 KiB; there a character may take nine bytes, and the
#: details say it again.
MAX_MESSAGE_BYTES = 1000
MAX_VIOLATIONS = 20
MAX_VIOLATION_BYTES = 120


@dataclass(frozen=True)
class Row:
    """How gRPC answers a class of errors.

    Attributes:
        status: The status.
        reason: ErrorInfo's ``reason``.
    """

    status: StatusCode
    reason: str


_INTERNAL = Row(StatusCode.INTERNAL, "INTERNAL")
_UNUSABLE = Row(StatusCode.FAILED_PRECONDITION, "VOICE_UNUSABLE")
_BAD_REQUEST = Row(StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")

#: The table of errors. A class that is missing fails the tests.
ERRORS: dict[type[VitsError], Row] = {
    VitsError: _INTERNAL,
    UserError: _BAD_REQUEST,
    ProblemsError: _BAD_REQUEST,
    ConfigError: _UNUSABLE,
    DataError: _INTERNAL,
    DivergenceError: _INTERNAL,
    TextError: Row(StatusCode.INVALID_ARGUMENT, "TEXT_NOT_SPEAKABLE"),
    RequestError: _BAD_REQUEST,
    SlowReaderError: Row(StatusCode.ABORTED, "READER_TOO_SLOW"),
    AccessError: Row(StatusCode.UNAUTHENTICATED, "INVALID_TOKEN"),
    NotFoundError: Row(StatusCode.NOT_FOUND, "VOICE_NOT_FOUND"),
    ConsentError: _INTERNAL,
    HubUnreachableError: Row(StatusCode.UNAVAILABLE, "HUB_UNREACHABLE"),
    MissingExtraError: _UNUSABLE,
    ModelError: _UNUSABLE,
    StoreError: Row(StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE"),
    AlreadyExistsError: _INTERNAL,
    CorruptObjectError: Row(StatusCode.DATA_LOSS, "VOICE_UNUSABLE"),
    LeaseLostError: _INTERNAL,
    QualityError: _INTERNAL,
    EngineError: Row(StatusCode.INTERNAL, "ENGINE_FAILED"),
    OverloadedError: Row(StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
    QuotaError: Row(StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"),
    StoppingError: Row(StatusCode.UNAVAILABLE, "STOPPING"),
    DeadlineError: Row(StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
}

#: A client's own mistakes, and load: not worth a traceback in the log.
QUIET = {
    StatusCode.INVALID_ARGUMENT,
    StatusCode.NOT_FOUND,
    StatusCode.RESOURCE_EXHAUSTED,
    StatusCode.ABORTED,
    StatusCode.DEADLINE_EXCEEDED,
    StatusCode.UNAUTHENTICATED,
}


class InvalidError(RequestError):
    """A request with everything that is wrong with it.

    Attributes:
        violations: Each field that is wrong, and what is.
    """

    def __init__(self, violations: list[tuple[str, str]]) -> None:
        self.violations = violations
        super().__init__(
            "\n".join(f"{field}: {problem}" for field, problem in violations), param=violations[0][0]
        )


def row_of(error: BaseException) -> Row:
    """How an error is answered."""
    if not isinstance(error, VitsError):
        return ERRORS[VitsError]
    return ERRORS[next(kind for kind in type(error).__mro__ if kind in ERRORS)]


def message_of(error: BaseException) -> str:
    """What a client is told, short enough for metadata."""
    return shorten(public_message(error), MAX_MESSAGE_BYTES)


def shorten(text: str, limit: int) -> str:
    """A text within a number of bytes."""
    content = text.encode("utf-8", "backslashreplace")
    if len(content) > limit:
        content = content[: limit - 3].decode("utf-8", "ignore").encode() + "…".encode()
    return content.decode()


def describe(error: BaseException, request_id: str) -> status_pb2.Status:
    """An error with all its details."""
    row, message = row_of(error), message_of(error)
    status = status_pb2.Status(code=row.status.value[0], message=message)

    def add(detail: Any) -> None:
        status.details.add().Pack(detail)

    add(error_details_pb2.ErrorInfo(reason=row.reason, domain=DOMAIN))
    add(error_details_pb2.RequestInfo(request_id=request_id))
    violations = violations_of(error)
    if violations:
        add(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=field, description=shorten(problem, MAX_VIOLATION_BYTES)
                    )
                    for field, problem in violations[:MAX_VIOLATIONS]
                ]
            )
        )
    if isinstance(error, OverloadedError):
        delay = Duration()
        delay.FromMilliseconds(round(1000 * error.retry_after_seconds))
        add(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def violations_of(error: BaseException) -> list[tuple[str, str]]:
    """The fields at fault, and what is wrong with each."""
    if isinstance(error, InvalidError):
        return error.violations
    if isinstance(error, TextError):
        return [("text", str(error))]
    if isinstance(error, RequestError) and error.param:
        return [(error.param, str(error).removeprefix(f"{error.param}: "))]
    return []


async def abort(context: Any, error: BaseException, request_id: str, patience_seconds: float) -> NoReturn:
    """End a call with an error, which a client that does not read does not hold up for longer than patience lasts."""
    status = describe(error, request_id)
    code = row_of(error).status
    if code not in QUIET and not isinstance(error, StoppingError):
        logger.error("call %s failed", request_id, exc_info=error)
    metadata = ((DETAILS_KEY, status.SerializeToString()), (REQUEST_ID_KEY, request_id))
    async with asyncio.timeout(patience_seconds):
        await context.abort(code, status.message, metadata)
    raise AssertionError("abort always raises") from error
