"""What every endpoint shares: who is calling, a client that goes away, errors, and the count of answers."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from services.synthesis.access import Access, Caller
from services.synthesis.http.errors import error_response
from services.synthesis.http.requests import MAX_BODY_BYTES, read_body
from services.synthesis.speaker import Speaker

logger = logging.getLogger("vits.http")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


@dataclass(frozen=True)
class Call:
    """A request, its body read, its caller known.

    Attributes:
        request: What Starlette says of it.
        body: At most as long as the endpoint allows.
        speaker: Speaks.
        access: Its limits.
        caller: Whose quota counts.
        request_id: The client's own, or a new one; names the request in the log and in the answer.
    """

    request: HTTPConnection
    body: bytes
    speaker: Speaker
    access: Access
    caller: Caller
    request_id: str


Answer = Callable[[Call], Awaitable[Response]]


class Endpoint:
    """An endpoint that needs the speaker.

    Its errors become answers, its answers are counted, and its work ends when its client goes away.

    Args:
        answer: Does the work.
        speaking: Whether it makes audio, so that a caller's quota counts.
        max_body_bytes: The longest body that it takes.
    """

    def __init__(
        self, answer: Answer, *, speaking: bool = False, max_body_bytes: int = MAX_BODY_BYTES
    ) -> None:
        self._answer = answer
        self._speaking = speaking
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        request = Request(scope, receive)
        request_id = request_id_of(request.headers.get("x-request-id"))
        code = "cancelled"

        async def send_and_note(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = str(message["status"])
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        async def work() -> None:
            try:
                response = await self._answer(await self._call(request, body, request_id))
            except Exception as error:
                response = error_response(error)
            await response(scope, receive, send_and_note)

        try:
            body = await read_body(request, self._max_body_bytes)
        except ClientDisconnect:
            pass  # nobody is there to be answered
        except Exception as error:
            await error_response(error)(scope, receive, send_and_note)
        else:
            await while_connected(receive, work())
        finally:
            speaker: Speaker = request.app.state.speaker
            speaker.metrics.responses.labels("http", code).inc()

    async def _call(self, request: Request, body: bytes, request_id: str) -> Call:
        state = request.app.state
        access: Access = state.access
        caller = access.check(request.headers.get("authorization"), speaking=self._speaking)
        return Call(request, body, state.speaker, access, caller, request_id)


def request_id_of(given: str | None) -> str:
    """The client's name for its request, where it is a decent one, or a new one."""
    return given if given and _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


async def while_connected(receive: Receive, work: Awaitable[Any]) -> None:
    """Do work, and cancel it when the client goes away."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_client_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        # Whoever cancels us, or leaves, ends the work; its own clean-up is waited for.
        leaving.cancel()
        if not working.done():
            working.cancel()
        with suppress(asyncio.CancelledError):
            await working
        with suppress(asyncio.CancelledError):
            await leaving


async def _client_left(receive: Callable[[], Awaitable[Any]]) -> None:
    while not (await receive())["type"].endswith(".disconnect"):
        pass
