"""What can go wrong, as the server tells it.

::

    ClientError
    ├── InvalidRequestError   a field is wrong, or the text cannot be spoken: `violations` says which and why
    ├── AccessError           no token, or one that is not valid
    ├── NotFoundError         no such voice, version or alias
    ├── OverloadedError       the server has too much to do: come back after `retry_after_seconds`
    │   └── QuotaError        the token's quota is used up
    ├── DeadlineError         the call's time limit passed
    ├── StoppedError          the call was cancelled, or given up since nothing of its stream was read
    ├── UnavailableError      no server answers there, or it is about to stop
    └── ServerError           the server failed; its log knows `request_id`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc import StatusCode


class ClientError(Exception):
    """Base of every error of a call.

    Attributes:
        status: gRPC's name of the status: ``INVALID_ARGUMENT``.
        reason: The server's, for programs: ``TEXT_NOT_SPEAKABLE``; empty where it gave none.
        request_id: By which the server's log knows the call; empty where none was reached.
        violations: Fields at fault, and what is wrong with each.
        retry_after_seconds: When to come back, where the server said.
    """

    def __init__(
        self,
        message: str,
        *,
        status: str,
        reason: str = "",
        request_id: str = "",
        violations: Mapping[str, str] | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        self.status = status
        self.reason = reason
        self.request_id = request_id
        self.violations = dict(violations or {})
        self.retry_after_seconds = retry_after_seconds
        super().__init__(message)


class InvalidRequestError(ClientError):
    """A field is wrong, or the text cannot be spoken."""


class AccessError(ClientError):
    """There is no token, or it is not valid."""


class NotFoundError(ClientError):
    """There is no such voice, version or alias."""


class OverloadedError(ClientError):
    """The server has too much to do."""


class QuotaError(OverloadedError):
    """The token's quota is used up."""


class DeadlineError(ClientError):
    """The call's time limit passed."""


class StoppedError(ClientError):
    """The call was cancelled, or given up since nothing of its stream was read for too long."""


class UnavailableError(ClientError):
    """No server answers, or it is about to stop."""


class ServerError(ClientError):
    """The server failed."""


#: By status; every other one is a `ServerError`.
_KINDS: dict[str, type[ClientError]] = {
    "INVALID_ARGUMENT": InvalidRequestError,
    "OUT_OF_RANGE": InvalidRequestError,
    "UNAUTHENTICATED": AccessError,
    "PERMISSION_DENIED": AccessError,
    "NOT_FOUND": NotFoundError,
    "RESOURCE_EXHAUSTED": OverloadedError,
    "DEADLINE_EXCEEDED": DeadlineError,
    "CANCELLED": StoppedError,
    "ABORTED": StoppedError,
    "UNAVAILABLE": UnavailableError,
}


def make(message: str, *, status: str, reason: str = "", **more: Any) -> ClientError:
    """The error that a status and a reason stand for."""
    kind = QuotaError if reason == "QUOTA_EXCEEDED" else _KINDS.get(status, ServerError)
    return kind(message, status=status, reason=reason, **more)


def from_code(code: int, message: str, reason: str, field: str) -> ClientError:
    """The error of one text of a batch."""
    return make(
        message,
        status=code_pb2.Code.Name(code),
        reason=reason,
        violations={field: message} if field else None,
    )


def from_rpc(error: grpc.RpcError, url: str) -> ClientError:
    """The error that a call ended with."""
    call = cast("Any", error)
    status: StatusCode = call.code()
    metadata = dict(call.trailing_metadata() or ())
    message = call.details() or status.name
    if status is StatusCode.UNAVAILABLE and "grpc-status-details-bin" not in metadata:
        message = (
            f"{url} does not answer: {message}. Is 'vits serve' running there, and is this its gRPC port?"
        )
    if status is StatusCode.RESOURCE_EXHAUSTED and "larger than max" in message:
        # gRPC's own limit. To come back later, as after an overload, would not help.
        return InvalidRequestError(f"{message}: ask for less at once", status=status.name)
    more: dict[str, Any] = {"request_id": metadata.get("x-request-id", "")}
    reason = ""
    details = metadata.get("grpc-status-details-bin")
    for detail in status_pb2.Status.FromString(details).details if details else ():
        info, bad, retry = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.BadRequest(),
            error_details_pb2.RetryInfo(),
        )
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(bad):
            more["violations"] = {
                violation.field: violation.description for violation in bad.field_violations
            }
        elif detail.Unpack(retry):
            more["retry_after_seconds"] = retry.retry_delay.ToMilliseconds() / 1000
    return make(message, status=status.name, reason=reason, **more)
