"""``vits.synthesis.v1.SynthesisService`` on a speaker."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from services.synthesis.access import Access, Caller, metered
from services.synthesis.grpc.errors import (
    MAX_MESSAGE_BYTES,
    REQUEST_ID_KEY,
    abort,
    message_of,
    row_of,
    shorten,
    violations_of,
)
from services.synthesis.grpc.incremental import Conversation
from services.synthesis.grpc.packing import Times, pack_whole, speech_start, timestamps
from services.synthesis.grpc.requests import Wanted, parse
from services.synthesis.http.catalogue import listed
from services.synthesis.packing import Packer
from services.synthesis.speaker import Order, Speaker
from shared.errors import (
    DeadlineError,
    OverloadedError,
    QuotaError,
    RequestError,
    SlowReaderError,
    StoppingError,
)
from shared.protos.vits.synthesis.v1 import synthesis_pb2 as pb
from shared.protos.vits.synthesis.v1 import synthesis_pb2_grpc as pb_grpc
from shared.voice.runtime import stopping

logger = logging.getLogger("vits.grpc")

MAX_BATCH = 1000
#: Texts of one batch that are spoken at the same time; the speaker orders them among everybody's.
BATCH_AT_ONCE = 4
#: A text of a batch that finds the server full is tried again after so many seconds at most.
MAX_BATCH_WAIT_SECONDS = 5.0
#: Calls that may be open at the same time. Those that speak are limited long before, by the speaker; this is for
#: those that say nothing.
MAX_CALLS = 1000

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        context: gRPC's.
        caller: Who calls.
        request_id: Names it in the log.
        max_audio_seconds: The longest audio of one text.
        patience_seconds: How long the client may read nothing.
    """

    context: Any
    caller: Caller
    request_id: str
    max_audio_seconds: float
    patience_seconds: float

    async def write(self, message: Any) -> None:
        """Send a message of a stream; waits for a slow client.

        Raises:
            SlowReaderError: It has read nothing for too long.
            CancelledError: The client is gone. gRPC may notice by the failing of a message first.
        """
        try:
            async with asyncio.timeout(self.patience_seconds):
                await self.context.write(message)
        except TimeoutError as error:
            raise SlowReaderError(
                f"Nothing was read for {self.patience_seconds:g} s, so the rest was not spoken. Read as it comes"
            ) from error
        except Exception as error:
            raise asyncio.CancelledError from error

    def order(self, wanted: Wanted) -> Order:
        """What is wanted, as this call's.

        Raises:
            DeadlineError: The call's deadline has passed.
            QuotaError: The caller's quota is used up.
        """
        remaining = self.context.time_remaining()
        if remaining is not None and remaining <= 0:
            raise DeadlineError("The call's deadline had passed before anything was spoken")
        self.caller.check_quota()
        return replace(
            wanted.order, deadline_seconds=remaining, caller=self.caller.name, request_id=self.request_id
        )


class SynthesisServicer(pb_grpc.SynthesisServiceServicer):
    """Answers calls.

    When a client leaves or its deadline passes, gRPC cancels the method, and leaving the `Speaking` that it waits
    for ends the work.

    Args:
        speaker: Speaks.
        access: Knows the callers.
        patience_seconds: How long a client may read nothing.

    Attributes:
        draining: Set when no new call is taken any more, so that calls that only listen end.
    """

    def __init__(self, speaker: Speaker, access: Access, patience_seconds: float) -> None:
        self._speaker = speaker
        self._access = access
        self._patience_seconds = patience_seconds
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = asyncio.Event()

    async def finished(self) -> None:
        """Wait until no call runs."""
        await self._idle.wait()

    def _count(self, context: Any) -> None:
        """Count a call until gRPC has sent its answer, which is later than the method's end."""
        self._calls += 1
        self._idle.clear()
        context.add_done_callback(self._count_off)

    def _count_off(self, _: Any) -> None:
        self._calls -= 1
        if not self._calls:
            self._idle.set()

    @asynccontextmanager
    async def _answering(
        self, request: object, context: Any, *, speaking: bool = True
    ) -> AsyncIterator[Call]:
        """Let a caller in, translate what goes wrong, and count and log what came of it."""
        start = time.perf_counter()
        status = StatusCode.CANCELLED
        metadata = {
            key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)
        }
        request_id = metadata.get(REQUEST_ID_KEY, "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
        name = ""
        self._count(context)
        try:
            if self.draining.is_set():
                raise stopping()
            if self._calls > MAX_CALLS:
                raise OverloadedError(
                    f"{MAX_CALLS} calls are open already. Try again in 1 s", retry_after_seconds=1.0
                )
            caller = self._access.check(metadata.get("authorization"), speaking=speaking)
            name = caller.name
            require_message(request)
            yield Call(context, caller, request_id, self._access.max_audio_seconds, self._patience_seconds)
            status = StatusCode.OK
        except Exception as error:
            status = row_of(error).status
            await abort(context, error, request_id, self._patience_seconds)
        finally:
            self._speaker.metrics.responses.labels("grpc", status.name).inc()
            seconds = time.perf_counter() - start
            # What was spoken the speaker has logged itself.
            level = logging.DEBUG if status is StatusCode.OK else logging.INFO
            details = {"request_id": request_id, "door": "grpc", "caller": name, "status": status.name}
            logger.log(
                level,
                "call %s %s in %.3f s",
                request_id,
                status.name,
                seconds,
                extra={"details": details},
            )

    async def Synthesize(  # noqa: N802 - the method's name in the protocol
        self, request: pb.SynthesizeRequest, context: Any
    ) -> pb.SynthesizeResponse:
        """Speak a text, whole."""
        async with self._answering(request, context) as call:
            return await self._whole(call, parse(request))
        raise AssertionError("an error ends the call")

    async def _whole(self, call: Call, wanted: Wanted) -> pb.SynthesizeResponse:
        async with await self._speaker.start(call.order(wanted)) as speaking:
            pieces = [samples async for samples in metered(speaking, call.caller, call.max_audio_seconds)]
            samples = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
            return await pack_whole(speaking, samples, wanted)

    async def SynthesizeStream(  # type: ignore[override]  # noqa: N802 - it writes to the context
        self, request: pb.SynthesizeStreamRequest, context: Any
    ) -> None:
        """Speak a text, and send it while it is made."""
        async with self._answering(request, context) as call:
            wanted = parse(request.request, audio_format="pcm")
            async with await self._speaker.start(call.order(wanted)) as speaking:
                packer = Packer(wanted.audio_format, speaking.sampling_rate, wanted.sampling_rate)
                start = speech_start(speaking, wanted, packer.sampling_rate)
                await call.write(pb.SynthesizeStreamResponse(start=start))
                times, count = Times(speaking, wanted), 0
                async for samples in metered(speaking, call.caller, call.max_audio_seconds):
                    count += len(samples)
                    audio = await packer.pack(samples)
                    chunk = pb.AudioChunk(audio=audio, timestamps=timestamps(times.new()))
                    if chunk.audio or chunk.timestamps:
                        await call.write(pb.SynthesizeStreamResponse(chunk=chunk))
                rest = pb.AudioChunk(audio=await packer.finish(), timestamps=timestamps(times.new()))
                if rest.audio or rest.timestamps:
                    await call.write(pb.SynthesizeStreamResponse(chunk=rest))
                end = pb.SpeechEnd(duration_seconds=count / speaking.sampling_rate)
                await call.write(pb.SynthesizeStreamResponse(end=end))

    async def SynthesizeIncremental(  # type: ignore[override]  # noqa: N802 - it reads from and writes to the context
        self, request_iterator: Any, context: Any
    ) -> None:
        """Speak a text that arrives in pieces, while it arrives."""
        async with self._answering(request_iterator, context) as call:
            first = await context.read()
            require_message(first)
            if not isinstance(first, pb.SynthesizeIncrementalRequest) or not first.HasField("start"):
                raise RequestError(
                    "start: the first message must be one, and say how to speak", param="start"
                )
            wanted = parse(first.start, audio_format="pcm", in_pieces=True)
            await Conversation(self._speaker, call, wanted, self.draining).run()

    async def SynthesizeBatch(  # type: ignore[override]  # noqa: N802 - it writes to the context
        self, request: pb.SynthesizeBatchRequest, context: Any
    ) -> None:
        """Speak many texts, and send each when it is done."""
        async with self._answering(request, context) as call:
            if not 0 < len(request.requests) <= MAX_BATCH:
                raise RequestError(
                    f"requests: there are {len(request.requests)}; there must be from 1 to {MAX_BATCH}",
                    param="requests",
                )
            results: asyncio.Queue[pb.SynthesizeBatchResponse] = asyncio.Queue(maxsize=1)
            waiting = iter(enumerate(request.requests))

            async def work() -> None:
                for index, one in waiting:
                    await results.put(await self._one_of_batch(call, index, one))

            workers = [asyncio.create_task(work()) for _ in range(BATCH_AT_ONCE)]
            try:
                for _ in request.requests:
                    await call.write(await results.get())
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _one_of_batch(
        self, call: Call, index: int, request: pb.SynthesizeRequest
    ) -> pb.SynthesizeBatchResponse:
        try:
            wanted = parse(request, priority="bulk")
            while True:
                try:
                    speech = await self._whole(call, wanted)
                    return pb.SynthesizeBatchResponse(index=index, speech=speech)
                except (QuotaError, StoppingError):
                    raise
                except OverloadedError as error:
                    wait = min(error.retry_after_seconds, MAX_BATCH_WAIT_SECONDS)
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self.draining.wait(), wait)
                        raise stopping() from error
        except Exception as error:
            row, violations = row_of(error), violations_of(error)
            if row.status is StatusCode.INTERNAL:
                logger.error("text %d of call %s failed", index, call.request_id, exc_info=error)
            failure = pb.Failure(
                code=row.status.value[0],
                message=message_of(error),
                reason=row.reason,
                field=shorten(violations[0][0], MAX_MESSAGE_BYTES) if violations else "",
            )
            return pb.SynthesizeBatchResponse(index=index, failure=failure)

    async def ListVoices(  # noqa: N802 - the method's name in the protocol
        self, request: pb.ListVoicesRequest, context: Any
    ) -> pb.ListVoicesResponse:
        """List the voices."""
        async with self._answering(request, context, speaking=False):
            response = pb.ListVoicesResponse()
            default = await self._speaker.ask(self._speaker.shelf.get)
            for version, told in await listed(self._speaker):
                created = Timestamp()
                created.FromDatetime(version.manifest.created)
                response.voices.add(
                    name=version.name,
                    version=version.id,
                    create_time=created,
                    licence=version.manifest.licence,
                    sources=version.manifest.sources,
                    consent=version.manifest.consent or "",
                    language=told.get("language", ""),
                    sampling_rate=told.get("sampling_rate", 0),
                    speakers=told.get("speakers", ()),
                    is_default=version.name == default.version.name,
                )
            return response
        raise AssertionError("an error ends the call")


def require_message(request: object) -> None:
    """Refuse what could not be read as a message.

    Raises:
        RequestError: It could not.
    """
    if request is None:
        raise RequestError(
            "The message is not one of this method: its bytes cannot be read as protocol buffers"
        )
