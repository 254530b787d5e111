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
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from services.synthesis.http.door import Call, request_id_of, while_connected
from services.synthesis.http.errors import error_content, row_of, to_json
from services.synthesis.http.requests import MAX_BODY_BYTES, SpeechOptions, parse
from services.synthesis.http.speech import Delivery
from services.synthesis.packing import Packer
from services.synthesis.pieces import Pieces
from services.synthesis.speaker import MAX_TEXT_CHARACTERS
from shared.audio import Samples
from shared.errors import OverloadedError, RequestError, StoppingError, TextError, nearest
from shared.text.segmentation import SENTENCE_PAUSE
from shared.text.timestamps import Timed

#: The protocol that we speak, where a client names one.
PROTOCOL = "vits.v1"
#: Browsers cannot set headers of a WebSocket: they send a token as a protocol, ``token.<token>``.
TOKEN_PROTOCOL = "token."  # noqa: S105 - not a token

#: Contexts that one connection may have at once.
MAX_CONTEXTS = 8
#: Characters of one context that may wait to be spoken.
MAX_WAITING_CHARACTERS = 16 * MAX_TEXT_CHARACTERS
#: Flushes of one context that may wait for their answers.
MAX_WAITING_FLUSHES = 1000

#: How a connection is closed of which the server is about to stop: by its name, the service restarts.
STOPPING_CODE = 1012

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

    Attributes:
        ended: Whether no more text comes.
    """

    def __init__(self, connection: Connection, call: Call, options: Start) -> None:
        self.options = options
        self._connection = connection
        self._call = call
        self._packer: Packer | None = None
        self._sending: asyncio.Task[None] | None = None
        self._seconds = 0.0
        self._number = 0
        self._begin()

    def _begin(self) -> None:
        self.ended = False
        self._cut_short = False
        self._pieces = Pieces()
        self._queued = self._flushes = 0
        self._queue: asyncio.Queue[str | Flush | None] = asyncio.Queue()
        self._work = asyncio.create_task(self._speak_all())

    def text(self, piece: str) -> None:
        """Take in a piece.

        Raises:
            RequestError: Too much is waiting already.
        """
        if self._queued + self._pieces.waiting + len(piece) > MAX_WAITING_CHARACTERS:
            raise RequestError(
                f"text: more than {MAX_WAITING_CHARACTERS} characters wait to be spoken; send text as it is "
                "heard",
                param="text",
            )
        self._hand_on(self._pieces.add(piece))

    def flush(self, message: Flush) -> None:
        """Speak what has been sent.

        Raises:
            RequestError: Too many wait for their answers already.
        """
        self._flushes += 1
        if self._flushes > MAX_WAITING_FLUSHES:
            raise RequestError(f"flush: {MAX_WAITING_FLUSHES} of them wait for their answers already")
        self._hand_on(self._pieces.flush())
        self._queue.put_nowait(message)

    def end(self) -> None:
        """Speak what has been sent, and nothing more."""
        self.ended = True
        self._hand_on(self._pieces.flush())
        self._queue.put_nowait(None)

    def _hand_on(self, sentences: list[str]) -> None:
        for sentence in sentences:
            self._queued += len(sentence)
            self._queue.put_nowait(sentence)

    def cut_short(self) -> None:
        """End before the client has, since the server is about to stop."""
        if not self.ended:
            self._cut_short = True
            self.end()

    async def cancel(self) -> None:
        """Forget what has not been spoken, and be ready for more."""
        await self.stop()
        self._begin()

    async def stop(self) -> None:
        """End the work, and wait until it has ended."""
        self.give_up()
        await self.over()

    def give_up(self) -> None:
        """End the work."""
        self._work.cancel()

    async def over(self) -> None:
        """Wait for the end of the work, and of what is being sent."""
        await asyncio.wait({self._work})
        if self._sending:
            await asyncio.gather(self._sending, return_exceptions=True)

    async def _speak_all(self) -> None:
        try:
            while (item := await self._queue.get()) is not None:
                if isinstance(item, Flush):
                    self._flushes -= 1
                    await self._send("flushed")
                else:
                    self._queued -= len(item)
                    await self._speak(item)
            if self._packer and (rest := await self._packer.finish()):
                await self._send("audio", audio=base64.b64encode(rest).decode())
            if self._cut_short:
                raise StoppingError(
                    "The server is about to stop; what had been sent was spoken. Connect again for the rest",
                    retry_after_seconds=1.0,
                )
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
        try:
            begun = await self._call.speaker.start(order)
        except TextError:
            # Punctuation alone, say: no reason to end the context.
            await self._send("sentence", text=sentence, start_seconds=self._seconds, unknown=[])
            return
        async with begun as speaking:
            delivery = Delivery(
                speaking, self.options, self._call.caller, self._call.access.max_audio_seconds, self._packer
            )
            await self._announce(sentence, delivery)
            begins = self._seconds
            async for samples in delivery.samples():
                times = delivery.new_timestamps()
                await self._to_its_end(self._send_sound(delivery, samples, begins, times))

    async def _announce(self, sentence: str, delivery: Delivery) -> None:
        """Tell that a sentence begins, behind the silence between it and the one before."""
        speaking = delivery.speaking
        if self._packer is None:
            self._packer = delivery.packer
            # From the first sentence on it is this seed, and this version even if another is published meanwhile.
            pinned = {"seed": speaking.seed, "voice": f"{speaking.voice}/{speaking.voice_version}"}
            self.options = self.options.model_copy(update=pinned)
            started = self._send("started", response_format=self.options.response_format, **delivery.facts())
            await self._to_its_end(started)
        elif self._seconds:
            pause = np.zeros(round(SENTENCE_PAUSE * speaking.sampling_rate), np.float32)
            await self._to_its_end(self._send_sound(delivery, pause))
        await self._send(
            "sentence", text=sentence, start_seconds=self._seconds, unknown=list(speaking.unknown)
        )

    async def _to_its_end(self, sending: Coroutine[Any, Any, None]) -> None:
        """Send, even if this is cancelled: the messages are of one stream, of which none may be lost."""
        self._sending = asyncio.create_task(sending)
        await asyncio.shield(self._sending)

    async def _send_sound(
        self, delivery: Delivery, samples: Samples, begins: float = 0.0, times: Sequence[Timed] = ()
    ) -> None:
        audio = await delivery.packer.pack(samples)
        self._seconds += len(samples) / delivery.speaking.sampling_rate
        content: dict[str, Any] = {"audio": base64.b64encode(audio).decode()}
        if times:
            content["timestamps"] = [
                asdict(time)
                | {"start_seconds": begins + time.start_seconds, "end_seconds": begins + time.end_seconds}
                for time in times
            ]
        if audio or times:
            await self._send("audio", **content)

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
        """Obey messages until the client leaves, when nothing more is computed for it, or the server is to stop."""
        draining = asyncio.create_task(self._call.speaker.draining.wait())
        try:
            while message := await self._next(draining):
                if message["type"] == "websocket.disconnect":
                    return
                text = message.get("text")
                await self._obey(text if text is not None else message.get("bytes") or b"")
            await self._take_leave()
        finally:
            draining.cancel()
            contexts = list(self._contexts.values())
            # All of them first, since who waits may be cancelled, too.
            for context in contexts:
                context.give_up()
                self.forget(context, "cancelled")
            for context in contexts:
                await context.over()

    async def _next(self, draining: asyncio.Task[Any]) -> Message | None:
        """What comes next from the client; nothing once the server is about to stop."""
        receiving = asyncio.create_task(self._websocket.receive())
        try:
            await asyncio.wait({receiving, draining}, return_when=asyncio.FIRST_COMPLETED)
            return receiving.result() if receiving.done() else None
        finally:
            receiving.cancel()

    async def _take_leave(self) -> None:
        """Finish what is being spoken, unless the client leaves before, and close."""
        contexts = list(self._contexts.values())
        for context in contexts:
            context.cut_short()
        work = asyncio.gather(*(context.over() for context in contexts))
        await while_connected(self._websocket.receive, work)
        with suppress(WebSocketDisconnect, RuntimeError):
            await self._websocket.close(STOPPING_CODE, "the server is about to stop")

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
        if isinstance(message, Cancel):
            await context.cancel()
            await self.send("cancelled", message.context_id)
        elif context.ended:
            raise _AddressError(f"context_id: {message.context_id!r} has had its end; start another text")
        elif isinstance(message, Text):
            context.text(message.text)
        elif isinstance(message, Flush):
            context.flush(message)
        elif isinstance(message, End):
            context.end()

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
            f"type: there is no message {kind!r}{near or '.'} There is {', '.join(MESSAGES)}", param="type"
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
