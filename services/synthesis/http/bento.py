"""``POST /synthesize``: speech for BentoML's own client, which takes a file and knows no OpenAI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.synthesis.http.door import request_id_of
from services.synthesis.http.errors import error_response
from services.synthesis.http.requests import MAX_BODY_BYTES, SpeechRequest, parse, read_body
from services.synthesis.http.speech import Delivery, whole_audio
from shared.audio_encoding import FORMATS
from shared.errors import RequestError

#: Where BentoML serves it.
PATH = "/synthesize"


async def synthesized(state: Any, context: Any, asked: Mapping[str, Any]) -> Response:
    """Speak a text, and answer with the whole of it.

    Args:
        state: The application's, which has the speaker and the access.
        context: BentoML's.
        asked: Fields of `SpeechRequest`.

    Returns:
        The audio, or an error as every other path answers it.
    """
    response: Response
    headers = context.request.headers
    try:
        caller = state.access.check(headers.get("authorization"))
        wanted = parse(json.dumps(asked), SpeechRequest)
        order = wanted.order(
            wanted.input,
            door="http",
            caller=caller.name,
            request_id=request_id_of(headers.get("x-request-id")),
        )
        speaking = await state.speaker.start(order)
        delivery = Delivery(speaking, wanted, caller, state.access.max_audio_seconds)
        audio = await whole_audio(delivery, wanted)
        form = FORMATS[wanted.response_format]
        name = f'attachment; filename="speech.{form.extension}"'
        response = Response(
            audio, headers=delivery.headers() | {"Content-Disposition": name}, media_type=form.media_type
        )
    except Exception as error:
        response = error_response(error)
    state.speaker.metrics.responses.labels("http", str(response.status_code)).inc()
    context.response.status_code = (
        response.status_code
    )  # which BentoML puts in the place of the response's own
    return response


class SynthesizeGuard:
    """Before BentoML reads a body of ``/synthesize``: only JSON comes through, and no more than any text needs.

    BentoML reads bodies of any length, and fails on some that it cannot read.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                raise RequestError(f"{PATH} takes JSON: send it with 'Content-Type: application/json'")
            body = await read_body(request, MAX_BODY_BYTES)
        except RequestError as error:
            await error_response(error)(scope, receive, send)
            return
        unread = True

        async def receive_again() -> Message:
            nonlocal unread
            if unread:
                unread = False
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        await self._app(scope, receive_again, send)
