"""The client for threads."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self, Unpack

import grpc

from shared.protos.vits.synthesis.v1 import synthesis_pb2 as pb
from shared.protos.vits.synthesis.v1.synthesis_pb2_grpc import SynthesisServiceStub
from vits_client.connection import CHANNEL_OPTIONS, TIMEOUT_SECONDS, Connection
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


class Client:
    """A server, called from threads; safe to share among them. Use it as a context, or `close` it.

    Args:
        url: ``grpc://host:port``, or ``grpcs://host:port`` with TLS.
        token: The token, where the server asks for one.
        timeout_seconds: Limit of each call; None for none. The server stops when it has passed.
        root_certificates: PEM file of the authority that signed the server's certificate; the system's.
        certificate: PEM file of one's own certificate, where the server asks for one (mTLS).
        key: PEM file of its private key.

    Raises:
        ValueError: The address is not of this form, or files were given that it does not need.

    Every method takes the `Options`, and may raise a `ClientError`.
    """

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
            grpc.secure_channel(connection.target, connection.credentials, CHANNEL_OPTIONS)
            if connection.credentials
            else grpc.insecure_channel(connection.target, CHANNEL_OPTIONS)
        )
        self._stub = SynthesisServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, and every call on it."""
        self._channel.close()

    def _arguments(self, request_id: str | None) -> dict[str, Any]:
        return self._connection.arguments(self._timeout, request_id)

    def speak(self, text: str, *, request_id: str | None = None, **options: Unpack[Options]) -> Speech:
        """Speak a text, and wait for the whole of it."""
        with self._connection.translated():
            return speech(self._stub.Synthesize(request(text, options), **self._arguments(request_id)))

    def stream(self, text: str, *, request_id: str | None = None, **options: Unpack[Options]) -> SpeechStream:
        """Speak a text, and hear it while it is made. Waits for the first sign of it."""
        message = pb.SynthesizeStreamRequest(request=request(text, options))
        call = self._stub.SynthesizeStream(message, **self._arguments(request_id))
        stream = SpeechStream(call, self._connection)
        stream.wait_for_start()
        return stream

    def stream_pieces(
        self, pieces: Iterable[str], *, request_id: str | None = None, **options: Unpack[Options]
    ) -> SpeechStream:
        """Speak a text that arrives in pieces, such as a language model's tokens, while it arrives.

        The pieces are taken in another thread. An error that they raise ends the stream with it.
        """
        failure: list[BaseException] = []

        def messages() -> Iterator[pb.SynthesizeIncrementalRequest]:
            yield pb.SynthesizeIncrementalRequest(start=request("", options))
            try:
                for piece in pieces:
                    yield pb.SynthesizeIncrementalRequest(text=piece)
            except BaseException as error:
                failure.append(error)
                raise

        call = self._stub.SynthesizeIncremental(messages(), **self._arguments(request_id))
        return SpeechStream(call, self._connection, failure)

    def converse(self, *, request_id: str | None = None, **options: Unpack[Options]) -> Conversation:
        """Speak a text that arrives in pieces, with a say in it: flush it, or interrupt it."""
        return Conversation(
            lambda messages: self._stub.SynthesizeIncremental(messages, **self._arguments(request_id)),
            self._connection,
            request("", options),
        )

    def speak_batch(
        self,
        texts: Iterable[str | tuple[str, Options]],
        *,
        request_id: str | None = None,
        **options: Unpack[Options],
    ) -> Iterator[BatchResult]:
        """Speak up to a thousand texts; results come when they are done, in any order.

        A text may come with options of its own: ``("Hola", {"seed": 7})``.
        """
        with self._connection.translated():
            for message in self._stub.SynthesizeBatch(
                batch_request(texts, options), **self._arguments(request_id)
            ):
                yield batch_result(message)

    def voices(self) -> list[Voice]:
        """The voices that can be asked for."""
        with self._connection.translated():
            answer = self._stub.ListVoices(pb.ListVoicesRequest(), **self._arguments(None))
            return [voice(one) for one in answer.voices]


class SpeechStream:
    """Audio while it is made: iterate over it for bytes. Leaving it as a context, or `cancel`, ends the work.

    Attributes:
        start: Format, sampling rate, seed and voice; of a text in pieces None until its first sentence begins.
        timestamps: Of the words or tokens heard so far, where they were asked for.
        unknown: What the voice does not know and left out so far.
        duration_seconds: Length of the audio; None until the end.
    """

    def __init__(self, call: Any, connection: Connection, failure: list[BaseException] | None = None) -> None:
        self._call = call
        self._connection = connection
        self._failure = [] if failure is None else failure
        self.start: Start | None = None
        self.timestamps: list[Timestamp] = []
        self.unknown: list[str] = []
        self.duration_seconds: float | None = None

    def wait_for_start(self) -> None:
        """Wait for what comes before the first sample."""
        while self.start is None and self.duration_seconds is None:
            self._take(next(self._events()))

    def _events(self) -> Iterator[Event]:
        try:
            with self._connection.translated():
                for message in self._call:
                    if (one := event(message)) is not None:
                        yield one
        except Exception:
            if self._failure:
                raise self._failure[0] from None
            raise

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

    def __iter__(self) -> Iterator[bytes]:
        for one in self._events():
            if audio := self._take(one):
                yield audio

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Stop; the server stops, too. Harmless at the end."""
        self._call.cancel()


class Conversation:
    """A text in pieces: `send` some, from any thread, and iterate over what is heard and told."""

    def __init__(
        self, open_call: Callable[[Iterator[Any]], Any], connection: Connection, start: pb.SynthesizeRequest
    ) -> None:
        self._messages: queue.SimpleQueue[pb.SynthesizeIncrementalRequest | None] = queue.SimpleQueue()
        self._messages.put(pb.SynthesizeIncrementalRequest(start=start))
        self._connection = connection
        self._call = open_call(iter(self._messages.get, None))

    def send(self, text: str) -> None:
        """Send a piece. A sentence is spoken as soon as its end has been sent."""
        self._messages.put(pb.SynthesizeIncrementalRequest(text=text))

    def flush(self) -> None:
        """Have everything spoken that was sent so far; a `Flushed` comes when it has been."""
        self._messages.put(pb.SynthesizeIncrementalRequest(flush=pb.Flush()))

    def interrupt(self) -> None:
        """Have everything forgotten that has not been spoken; a `Cancelled` comes when it has been."""
        self._messages.put(pb.SynthesizeIncrementalRequest(cancel=pb.Cancel()))

    def finish(self) -> None:
        """Say that this was all. What is left is spoken, then comes the `End`."""
        self._messages.put(None)

    def __iter__(self) -> Iterator[Event]:
        with self._connection.translated():
            for message in self._call:
                if (one := event(message)) is not None:
                    yield one

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._messages.put(None)
        self._call.cancel()
