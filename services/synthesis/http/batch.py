"""``POST /v1/audio/speech/batch``: many texts, each answered on a line of its own or as a file of an archive."""

from __future__ import annotations

import asyncio
import io
import math
import time
import zipfile
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from starlette.responses import Response, StreamingResponse

from services.synthesis.http.door import Call
from services.synthesis.http.errors import error_content, row_of, to_json
from services.synthesis.http.requests import BatchRequest, parse
from services.synthesis.http.speech import Delivery, whole, whole_to_json
from shared.audio_encoding import FORMATS
from shared.errors import OverloadedError, QuotaError, StoppingError

#: Texts of one batch that are spoken at once: enough to fill the engine, few enough to keep little in memory.
_AT_ONCE = 4

#: The longest that a text waits before it asks again to be let in.
_LONGEST_WAIT_SECONDS = 5.0


async def batch(call: Call) -> Response:
    """``POST /v1/audio/speech/batch``."""
    wanted = parse(call.body, BatchRequest)
    lines = _lines(call, wanted)
    body, media_type = _as_ndjson(lines), "application/x-ndjson"
    headers = {"Cache-Control": "no-store"}
    if wanted.output == "zip":
        body, media_type = _as_zip(lines, FORMATS[wanted.response_format].extension), "application/zip"
        headers["Content-Disposition"] = 'attachment; filename="speech.zip"'
    return StreamedBatch(body, media_type=media_type, headers=headers)


class StreamedBatch(StreamingResponse):
    """A body that is sent as it is made; `door.Endpoint` watches for a client that leaves."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it."""
        await self.stream_response(send)


async def _lines(call: Call, wanted: BatchRequest) -> AsyncGenerator[dict[str, Any]]:
    """What came of each text, in order; a few are spoken ahead."""
    ahead: deque[asyncio.Task[dict[str, Any]]] = deque()
    try:
        for number in range(len(wanted.inputs)):
            ahead.append(asyncio.create_task(_line(call, wanted, number)))
            if len(ahead) == _AT_ONCE:
                yield await ahead.popleft()
        while ahead:
            yield await ahead.popleft()
    finally:
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)


async def _line(call: Call, wanted: BatchRequest, number: int) -> dict[str, Any]:
    """Speak one text; what is wrong with it does not end the others."""
    name, text, options = wanted.text(number)
    line: dict[str, Any] = {"index": number, "id": name}
    order = options.model_copy(update={"priority": wanted.priority or "bulk"}).order(
        text, door="http", caller=call.caller.name, request_id=f"{call.request_id}/{number}"
    )
    deadline = math.inf if order.deadline_seconds is None else time.monotonic() + order.deadline_seconds
    try:
        while True:
            call.caller.check_quota()
            try:
                speaking = await call.speaker.start(order)
                break
            except (QuotaError, StoppingError):
                raise
            except OverloadedError as error:  # a batch can wait, but not longer than it may
                left = deadline - time.monotonic()
                wait = min(error.retry_after_seconds, _LONGEST_WAIT_SECONDS, left)
                with suppress(TimeoutError):  # a server that stops says so when it is asked again
                    await asyncio.wait_for(call.speaker.draining.wait(), wait)
                if order.deadline_seconds is not None:
                    order = replace(order, deadline_seconds=deadline - time.monotonic())
        async with speaking:
            return line | await whole(
                Delivery(speaking, options, call.caller, call.access.max_audio_seconds), options
            )
    except Exception as error:
        return line | {"status": int(row_of(error).status), "error": error_content(error)}


async def _as_ndjson(lines: AsyncGenerator[dict[str, Any]]) -> AsyncGenerator[bytes]:
    async for line in lines:
        yield await asyncio.to_thread(whole_to_json, line) + b"\n"


class _Sent(io.RawIOBase):
    """What an archive is written to that is sent while it grows: it cannot seek."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._bytes += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._bytes)
        self._bytes.clear()
        return taken


async def _as_zip(lines: AsyncGenerator[dict[str, Any]], extension: str) -> AsyncGenerator[bytes]:
    """Audio, and captions where there are any, by the texts' ids; then ``index.json``, which has the errors too."""
    index = []
    sent = _Sent()
    with zipfile.ZipFile(sent, "w", zipfile.ZIP_STORED) as archive:
        async for line in lines:
            for name, content in _files(line, extension):
                archive.writestr(name, content)
            index.append(line)
            yield sent.take()
        archive.writestr("index.json", to_json({"speeches": index}))
    yield sent.take()


def _files(line: dict[str, Any], extension: str) -> list[tuple[str, bytes]]:
    """The files of a line, which loses them."""
    name, files = line["id"], []
    if "audio" in line:
        line["file"] = f"{name}.{extension}"
        files.append((line["file"], line.pop("audio")))
    files += [(f"{name}.{kind}", line.pop(kind).encode()) for kind in ("srt", "vtt") if kind in line]
    return files
