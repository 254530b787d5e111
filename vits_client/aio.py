"""The client for asyncio: as `vits_client.sync`, with ``async`` and ``await``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from pathlib import Path
from typing import Any, Self, Unpack

import grpc

from shared.protos.vits.synthesis.v1 import synthesis_pb2 as pb
from shared.protos.vits.synthesis.v1.synthesis_pb2_grpc import SynthesisServiceStub
from vits_client.connection import CHANNEL_OPTIONS, TIMEOUT_SECONDS, Connection
from vits_client.errors import StoppedError
from vits_client.messages import (
    BatchResult,
    Chunk,
    End,
    Event,
    Options,
    Speech,
    Start,
    Timestamp,
    Voice,
    batch_request,
    batch_result,
    event,
    request,
    speech,
    voice,
)


class AsyncClient:
    """A server, called from one event loop; arguments and errors are those of `vits_client.Client`."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_seconds: float | None = TIMEOUT_SECONDS,
        root_certificates: str | Path | None = None,
        certificate: str | Path | None = None,
        key: str | Path | None = None,
    ) -> None:
        self._connection = connection = Connection(
            url, token=token, root_certificates=root_certificates, certificate=certificate, key=key
        )
        self._timeout = timeout_seconds
        self._channel = (
            grpc.aio.secure_channel(connection.target, connection.credentials, CHANNEL_OPTIONS)
            if connection.credentials
            else grpc.aio.insecure_channel(connection.target, CHANNEL_OPTIONS)
        )
        self._stub: Any = SynthesisServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection, and every call on it."""
        await self._channel.close()

    def _arguments(self, request_id: str | None) -> dict[str, Any]:
        return self._connection.arguments(self._timeout, request_id)

    async def speak(self, text: str, *, request_id: str | None = None, **options: Unpack[Options]) -> Speech:
        """Speak a text, and wait for the whole of it."""
        with self._connection.translated():
            return speech(await self._stub.Synthesize(request(text, options), **self._arguments(request_id)))

    async def stream(
        self, text: str, *, request_id: str | None = None, **options: Unpack[Options]
    ) -> AsyncSpeechStream:
        """Speak a text, and hear it while it is made. Waits for the first sign of it."""
        message = pb.SynthesizeStreamRequest(request=request(text, options))
        stream = AsyncSpeechStream(
            self._stub.SynthesizeStream(message, **self._arguments(request_id)), self._connection
        )
        await stream.wait_for_start()
        return stream

    def stream_pieces(
        self, pieces: AsyncIterable[str], *, request_id: str | None = None, **options: Unpack[Options]
    ) -> AsyncSpeechStream:
        """Speak a text that arrives in pieces, such as a language model's tokens, while it arrives.

        An error that the pieces raise ends the stream with it.
        """
        failure: list[BaseException] = []

        async def messages() -> AsyncIterator[pb.SynthesizeIncrementalRequest]:
            yield pb.SynthesizeIncrementalRequest(start=request("", options))
            try:
                async for piece in pieces:
                    yield pb.SynthesizeIncrementalRequest(text=piece)
            except Exception as error:
                failure.append(error)
                call.cancel()

        call = self._stub.SynthesizeIncremental(messages(), **self._arguments(request_id))
        return AsyncSpeechStream(call, self._connection, failure)

    def converse(self, *, request_id: str | None = None, **options: Unpack[Options]) -> AsyncConversation:
        """Speak a text that arrives in pieces, with a say in it: flush it, or interrupt it."""
        call = self._stub.SynthesizeIncremental(**self._arguments(request_id))
        return AsyncConversation(call, self._connection, request("", options))

    async def speak_batch(
        self,
        texts: Iterable[str | tuple[str, Options]],
        *,
        request_id: str | None = None,
        **options: Unpack[Options],
    ) -> AsyncIterator[BatchResult]:
        """Speak up to a thousand texts; results come when they are done, in any order.

        A text may come with options of its own: ``("Hola", {"seed": 7})``.
        """
        with self._connection.translated():
            async for message in self._stub.SynthesizeBatch(
                batch_request(texts, options), **self._arguments(request_id)
            ):
                yield batch_result(message)

    async def voices(self) -> list[Voice]:
        """The voices that can be asked for."""
        with self._connection.translated():
            answer = await self._stub.ListVoices(pb.ListVoicesRequest(), **self._arguments(None))
            return [voice(one) for one in answer.voices]


class AsyncSpeechStream:
    """Audio while it is made; attributes are those of `vits_client.SpeechStream`."""

    def __init__(self, call: Any, connection: Connection, failure: list[BaseException] | None = None) -> None:
        self._call = call
        self._connection = connection
        self._failure = [] if failure is None else failure
        self._cancelled = False
        self.start: Start | None = None
        self.timestamps: list[Timestamp] = []
        self.unknown: list[str] = []
        self.duration_seconds: float | None = None

    async def wait_for_start(self) -> None:
        """Wait for what comes before the first sample."""
        while self.start is None and self.duration_seconds is None:
            if (one := await self._next_event()) is not None:
                self._take(one)

    async def _next_event(self) -> Event | None:
        """The next event; None for the end of the call, or an event that we do not know."""
        try:
            with self._connection.translated():
                message = await self._call.read()
        except (Exception, asyncio.CancelledError) as error:
            if self._failure:
                raise self._failure[0] from None
            if self._cancelled and isinstance(error, asyncio.CancelledError):
                raise StoppedError("The stream was cancelled", status="CANCELLED") from None
            raise
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return event(message)

    def _take(self, one: Event) -> bytes:
        if isinstance(one, Start):
            self.start = one
        elif isinstance(one, End):
            self.duration_seconds = one.duration_seconds
        elif isinstance(one, Chunk):
            self.timestamps.extend(one.timestamps)
            return one.audio
        self.unknown += [new for new in getattr(one, "unknown", ()) if new not in self.unknown]
        return b""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """The next bytes."""
        while True:
            one = await self._next_event()
            if one is not None and (audio := self._take(one)):
                return audio

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Stop; the server stops, too. Harmless at the end."""
        self._cancelled = True
        self._call.cancel()


class AsyncConversation:
    """A text in pieces: `send` some, and iterate over what is heard and told."""

    def __init__(self, call: Any, connection: Connection, start: pb.SynthesizeRequest) -> None:
        self._call = call
        self._connection = connection
        self._start: pb.SynthesizeRequest | None = start

    async def _write(self, *messages: pb.SynthesizeIncrementalRequest) -> None:
        if self._start is not None:
            messages = (pb.SynthesizeIncrementalRequest(start=self._start), *messages)
            self._start = None
        with self._connection.translated():
            for message in messages:
                await self._call.write(message)

    async def send(self, text: str) -> None:
        """Send a piece. A sentence is spoken as soon as its end has been sent."""
        await self._write(pb.SynthesizeIncrementalRequest(text=text))

    async def flush(self) -> None:
        """Have everything spoken that was sent so far; a `Flushed` comes when it has been."""
        await self._write(pb.SynthesizeIncrementalRequest(flush=pb.Flush()))

    async def interrupt(self) -> None:
        """Have everything forgotten that has not been spoken; a `Cancelled` comes when it has been."""
        await self._write(pb.SynthesizeIncrementalRequest(cancel=pb.Cancel()))

    async def finish(self) -> None:
        """Say that this was all. What is left is spoken, then comes the `End`."""
        await self._write()
        with self._connection.translated():
            await self._call.done_writing()

    async def __aiter__(self) -> AsyncIterator[Event]:
        with self._connection.translated():
            while (message := await self._call.read()) is not grpc.aio.EOF:
                if (one := event(message)) is not None:
                    yield one

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()
