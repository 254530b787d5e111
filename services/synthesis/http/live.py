"""The WebSocket at ``/v1/audio/speech/live``: text that arrives in pieces, spoken sentence by sentence.

A connection carries any number of contexts, each a text of its own with its own voice and its own audio. The
client's messages are ``start``, ``text``, ``flush``, ``cancel`` and ``end``; the server's are ``started``,
``sentence``, ``audio``, ``flushed``, ``cancelled``, ``done`` and ``error``. All are JSON, and audio is base64.
They are those of gRPC's ``SynthesizeIncremental``, and ``docs/api.md`` has an example.
"""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import suppress
from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.websockets import WebSocket, WebSocketDisconnect

from services.synthesis.http.door import Call, request_id_of
from services.synthesis.http.errors import error_content, row_of, to_json
from services.synthesis.http.requests import MAX_BODY_BYTES, SpeechOptions, parse
from services.synthesis.http.speech import Delivery
from services.synthesis.pieces import Pieces
from services.synthesis.speaker import MAX_TEXT_CHARACTERS
from shared.audio_encoding import Encoder
from shared.errors import OverloadedError, RequestError, nearest

#: The protocol that we speak, where a client names one.
PROTOCOL = "vits.v1"
#: Browsers cannot set headers of a WebSocket: they send a token as a protocol, ``token.<token>``.
TOKEN_PROTOCOL = "token."  # noqa: S105 - not a token

#: Contexts that one connection may have at once.
MAX_CONTEXTS = 8
#: Characters of one context that may wait to be spoken.
MAX_WAITING_CHARACTERS = 16 * MAX_TEXT_CHARACTERS

ContextId = Annotated[
    str, Field(max_length=64, description="Which text is meant; empty for the only one of a connection.")
]


class Start(SpeechOptions):
    """Begins a context: how its text is spoken."""

    type: Literal["start"]
    context_id: ContextId = ""

    def check(self) -> list[tuple[str, str]]:
        """See `SpeechOptions.check`."""
        refused = [("ssml", "ssml: SSML cannot be spoken in pieces; POST it whole")] if self.ssml else []
        return super().check() + refused


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    context_id: ContextId = ""


class Text(_Message):
    """A piece of the text, of any length. A sentence is spoken as soon as its end has come."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]


class Flush(_Message):
    """Speak everything sent so far, without waiting for the end of its last sentence."""

    type: Literal["flush"]


class Cancel(_Message):
    """Forget everything sent so far that has not been spoken. More text may follow."""

    type: Literal["cancel"]


class End(_Message):
    """No more text comes: speak what is left."""

    type: Literal["end"]


MESSAGES: dict[str, type[Start] | type[_Message]] = {
    "start": Start,
    "text": Text,
    "flush": Flush,
    "cancel": Cancel,
    "end": End,
}


class Context:
    """One text that comes in pieces.

    Args:
        connection: What it answers to.
        call: On whose behalf.
        options: How it is spoken. All sentences have the same seed and the same version of the voice.
    """

    def __init__(self, connection: Connection, call: Call, options: Start) -> None:
        self.options = options
        self._connection = connection
        self._call = call
        self._pieces = Pieces()
        self._encoder: Encoder | None = None
        self._seconds = 0.0
        self._number = 0
        self._begin()

    def _begin(self) -> None:
        self._waiting = 0
        self._queue: asyncio.Queue[str | Flush | End] = asyncio.Queue()
        self._work = asyncio.create_task(self._speak_all())

    def text(self, piece: str) -> None:
        """Take in a piece.

        Raises:
            RequestError: Too much is waiting already.
        """
        self._waiting += len(piece)
        if self._waiting > MAX_WAITING_CHARACTERS:
            raise RequestError(
                f"text: more than {MAX_WAITING_CHARACTERS} characters wait to be spoken; send text as it is "
                "heard",
                param="text",
            )
        for sentence in self._pieces.add(piece):
            self._queue.put_nowait(sentence)

    def flush(self, message: Flush | End) -> None:
        """Speak what has been sent; after an `End` nothing more."""
        for sentence in self._pieces.flush():
            self._queue.put_nowait(sentence)
        self._queue.put_nowait(message)

    async def cancel(self) -> None:
        """Forget what has not been spoken, and be ready for more."""
        self._pieces = Pieces()
        await self.stop()
        self._begin()

    async def stop(self) -> None:
        """End the work."""
        self._work.cancel()
        with suppress(asyncio.CancelledError):
            await self._work

    async def _speak_all(self) -> None:
        try:
            while not isinstance(item := await self._queue.get(), End):
                if isinstance(item, Flush):
                    await self._send("flushed")
                else:
                    await self._speak(item)
            if self._encoder and (rest := self._encoder.finish()):
                await self._send("audio", audio=base64.b64encode(rest).decode())
            await self._send("done", duration_seconds=self._seconds)
            self._connection.forget(self, "done")
        except Exception as error:
            self._connection.forget(self, row_of(error).code)
            await self._connection.send_error(error, self.options.context_id)

    async def _speak(self, sentence: str) -> None:
        self._call.caller.check_quota()
        order = self.options.order(
            sentence,
            door="websocket",
            caller=self._call.caller.name,
            request_id=f"{self._call.request_id}/{self._number}",
        )
        self._number += 1
        async with await self._call.speaker.start(order) as speaking:
            delivery = Delivery(
                speaking, self.options, self._call.caller, self._call.access.max_audio_seconds, self._encoder
            )
            if self._encoder is None:
                self._encoder = delivery.encoder
                # From the first sentence on it is this seed, and this version even if another is published meanwhile.
                pinned = {"seed": speaking.seed, "voice": f"{speaking.voice}/{speaking.voice_version}"}
                self.options = self.options.model_copy(update=pinned)
                await self._send("started", response_format=self.options.response_format, **delivery.facts())
            begins = self._seconds
            await self._send("sentence", text=sentence, start_seconds=begins, unknown=list(speaking.unknown))
            async for audio, times in delivery.pieces(finish=False):
                self._seconds = begins + delivery.seconds
                content: dict[str, Any] = {"audio": base64.b64encode(audio).decode()}
                if times:
                    content["timestamps"] = [
                        asdict(time)
                        | {
                            "start_seconds": begins + time.start_seconds,
                            "end_seconds": begins + time.end_seconds,
                        }
                        for time in times
                    ]
                await self._send("audio", **content)
        self._waiting = max(0, self._waiting - len(sentence))

    async def _send(self, kind: str, **content: Any) -> None:
        await self._connection.send(kind, self.options.context_id, **content)


class Connection:
    """One client's WebSocket and its contexts."""

    def __init__(self, websocket: WebSocket, call: Call) -> None:
        self._websocket = websocket
        self._call = call
        self._contexts: dict[str, Context] = {}
        self._sending = asyncio.Lock()

    async def serve(self) -> None:
        """Obey messages until the client leaves; then nothing more is computed for it."""
        try:
            while True:
                message = await self._websocket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                text = message.get("text")
                await self._obey(text if text is not None else message.get("bytes") or b"")
        finally:
            for context in list(self._contexts.values()):
                await context.stop()
                self.forget(context, "cancelled")

    async def _obey(self, message: str | bytes) -> None:
        context_id = ""
        try:
            parsed = parse_message(message)
            context_id = parsed.context_id
            if isinstance(parsed, Start):
                self._start(parsed)
            else:
                await self._tell(self._context(context_id), parsed)
        except Exception as error:
            context = self._contexts.get(context_id)
            if context and not isinstance(error, _AddressError):
                await context.stop()
                self.forget(context, row_of(error).code)
            await self.send_error(error, context_id)

    def _start(self, options: Start) -> None:
        if options.context_id in self._contexts:
            raise _AddressError(
                f"context_id: {options.context_id!r} has begun already; end or cancel it first"
            )
        if len(self._contexts) >= MAX_CONTEXTS:
            raise _AddressError(
                f"context_id: a connection may have {MAX_CONTEXTS} texts at once; end one first"
            )
        self._call.caller.check_quota()
        self._contexts[options.context_id] = Context(self, self._call, options)

    def _context(self, context_id: str) -> Context:
        if context_id not in self._contexts:
            raise _AddressError(f"context_id: {context_id!r} has not begun, or is over; send a start first")
        return self._contexts[context_id]

    async def _tell(self, context: Context, message: _Message) -> None:
        if isinstance(message, Text):
            context.text(message.text)
        elif isinstance(message, Flush | End):
            context.flush(message)
        elif isinstance(message, Cancel):
            await context.cancel()
            await self.send("cancelled", message.context_id)

    def forget(self, context: Context, code: str) -> None:
        """Take in that a context is over, and count it."""
        if self._contexts.get(context.options.context_id) is context:
            del self._contexts[context.options.context_id]
            self._call.speaker.metrics.responses.labels("websocket", code).inc()

    async def send(self, kind: str, context_id: str, **content: Any) -> None:
        """Send a message, unless the client has left."""
        text = to_json({"type": kind, "context_id": context_id, **content}).decode()
        async with self._sending:
            with suppress(WebSocketDisconnect, RuntimeError):
                await self._websocket.send_text(text)

    async def send_error(self, error: Exception, context_id: str) -> None:
        """Send what went wrong, in the shape that HTTP has."""
        content: dict[str, Any] = {"error": error_content(error)}
        if isinstance(error, OverloadedError):
            content["retry_after_seconds"] = error.retry_after_seconds
        await self.send("error", context_id, **content)


class _AddressError(RequestError):
    """A message to a context that cannot take it; the context itself goes on."""

    def __init__(self, message: str) -> None:
        super().__init__(message, param="context_id")


def parse_message(message: str | bytes) -> Any:
    """Check a message.

    Raises:
        RequestError: Says everything that is wrong with it.
    """
    if len(message) > MAX_BODY_BYTES:
        raise RequestError(
            f"The message is longer than {MAX_BODY_BYTES} bytes: send the text in smaller pieces"
        )
    try:
        content = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The message is not JSON ({error})") from error
    kind = content.get("type") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in MESSAGES:
        near = nearest(kind, list(MESSAGES)) if isinstance(kind, str) else ""
        raise RequestError(
            f"type: there is no message {kind!r}{near}; there is {', '.join(MESSAGES)}", param="type"
        )
    return parse(message, MESSAGES[kind])


async def live(websocket: WebSocket) -> None:
    """``/v1/audio/speech/live``."""
    state = websocket.app.state
    offered = websocket.scope.get("subprotocols", [])
    token = next(
        (name.removeprefix(TOKEN_PROTOCOL) for name in offered if name.startswith(TOKEN_PROTOCOL)), None
    )
    header = websocket.headers.get("authorization") or (f"Bearer {token}" if token else None)
    try:
        caller = state.access.check(header)
    except Exception as error:
        state.speaker.metrics.responses.labels("websocket", row_of(error).code).inc()
        await refuse(websocket, error)
        return
    request_id = request_id_of(websocket.headers.get("x-request-id"))
    await websocket.accept(
        subprotocol=PROTOCOL if PROTOCOL in offered else None,
        headers=[(b"x-request-id", request_id.encode())],
    )
    call = Call(websocket, b"", state.speaker, state.access, caller, request_id)
    await Connection(websocket, call).serve()


async def refuse(websocket: WebSocket, error: Exception) -> None:
    """Tell a client why it may not connect: in an error message where it cannot see a status, and by closing."""
    await websocket.accept()
    await websocket.send_text(
        to_json({"type": "error", "context_id": "", "error": error_content(error)}).decode()
    )
    denied = row_of(error).status == HTTPStatus.UNAUTHORIZED
    await websocket.close(3000 if denied else 1013, "unauthorized" if denied else "try again later")
