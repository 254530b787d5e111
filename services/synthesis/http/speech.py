"""``POST /v1/audio/speech``: a text in, audio out while it is made, as bytes, as events, or whole as JSON."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

import numpy as np
from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from services.synthesis.access import Caller, metered
from services.synthesis.http.door import Call
from services.synthesis.http.errors import error_content, to_json
from services.synthesis.http.requests import SpeechOptions, SpeechRequest, parse
from services.synthesis.packing import Packer, encode_whole, to_base64
from services.synthesis.speaker import Order, Speaking
from shared.audio import Samples
from shared.audio_encoding import FORMATS
from shared.text.timestamps import Timed, to_srt, to_vtt

#: The longest header of ours: proxies and clients take a few thousand bytes for all of them together.
MAX_HEADER_BYTES = 1024

#: Pieces of audio that a client's usage counts, in seconds; OpenAI counts tokens.
_USAGE_SECONDS = 0.02


class Delivery:
    """A text that is being spoken, encoded, and charged to its caller.

    Args:
        speaking: The text.
        options: How it is packed.
        caller: Who pays.
        max_audio_seconds: The longest that it may be.
        packer: Goes on with an earlier text's audio, where given.

    Attributes:
        packer: Packs it.
        seconds: Audio taken out so far.
    """

    def __init__(
        self,
        speaking: Speaking,
        options: SpeechOptions,
        caller: Caller,
        max_audio_seconds: float,
        packer: Packer | None = None,
    ) -> None:
        self.speaking = speaking
        self.packer = packer or Packer(options.response_format, speaking.sampling_rate, options.sampling_rate)
        self.seconds = 0.0
        self._samples = metered(speaking, caller, max_audio_seconds)
        self._timestamps = options.timestamps
        self._told = 0

    async def samples(self) -> AsyncGenerator[Samples]:
        """The samples as they are made."""
        async for samples in self._samples:
            self.seconds += len(samples) / self.speaking.sampling_rate
            yield samples

    async def pieces(self) -> AsyncGenerator[tuple[bytes, list[Timed]]]:
        """Encoded audio as it is made, with the words whose sound is in it or was before; either may be empty."""
        async for samples in self.samples():
            yield await self.packer.pack(samples), self.new_timestamps()
        yield await self.packer.finish(), self.new_timestamps()

    def new_timestamps(self) -> list[Timed]:
        """The words that were not told yet, where they are asked for."""
        times: list[Timed] = self.speaking.timestamps()[self._told :] if self._timestamps else []
        self._told += len(times)
        return times

    def facts(self) -> dict[str, Any]:
        """What can be said before the first sample."""
        return {
            "seed": self.speaking.seed,
            "voice": self.speaking.voice,
            "voice_version": self.speaking.voice_version,
            "sampling_rate": self.packer.sampling_rate,
            "unknown": list(self.speaking.unknown),
        }

    def headers(self) -> dict[str, str]:
        """The same as headers."""
        facts = self.facts()
        headers = {
            "X-Vits-Seed": str(facts["seed"]),
            "X-Vits-Voice": f"{facts['voice']}/{facts['voice_version']}",
            "X-Vits-Sampling-Rate": str(facts["sampling_rate"]),
        }
        if facts["unknown"]:
            headers["X-Vits-Unknown"] = _as_header(facts["unknown"])
        return headers


def _as_header(texts: list[str]) -> str:
    """Texts one after another, percent-encoded, as many whole ones as a header has room for."""
    header = ""
    for text in texts:
        encoded = quote(text, safe="", errors="backslashreplace")
        if len(header) + len(encoded) > MAX_HEADER_BYTES:
            break
        header += encoded
    return header


class StreamedResponse(Response):
    """A body that is sent as it is made, of a text that is no longer spoken when sending ends in any way.

    Its first piece has been made before it answers, so that what goes wrong by then has a status of its own. What
    goes wrong later ends the connection without the end of the body, which no client takes for a whole one.
    """

    def __init__(
        self,
        speaking: Speaking,
        first: bytes,
        rest: AsyncGenerator[bytes],
        headers: dict[str, str],
        media_type: str,
    ) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background: BackgroundTask | None = None
        self.body = b""
        self.init_headers({"Cache-Control": "no-store", **headers})
        del self.headers["content-length"]
        self._speaking = speaking
        self._first = first
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        async with self._speaking, aclosing(self._rest):
            start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            await send(start)
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            async for piece in self._rest:
                if piece:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def speech(call: Call) -> Response:
    """``POST /v1/audio/speech``."""
    wanted = parse(call.body, SpeechRequest)
    order = wanted.order(wanted.input, door="http", caller=call.caller.name, request_id=call.request_id)
    return await answer(call, order, wanted)


async def answer(call: Call, order: Order, wanted: SpeechRequest) -> Response:
    """Speak an order, and answer in the form that is wanted."""
    speaking = await call.speaker.start(order)
    try:
        delivery = Delivery(speaking, wanted, call.caller, call.access.max_audio_seconds)
        if wanted.stream_format == "json":
            return await _as_json(delivery, wanted)
        if wanted.stream_format == "sse":
            body, media_type = _events(delivery), "text/event-stream"
        else:
            body, media_type = _audio(delivery), FORMATS[wanted.response_format].media_type
        first = await anext(body, b"")
    except BaseException:
        await speaking.cancel()
        raise
    return StreamedResponse(speaking, first, body, delivery.headers(), media_type)


async def _audio(delivery: Delivery) -> AsyncGenerator[bytes]:
    async for audio, _ in delivery.pieces():
        if audio:
            yield audio


async def _events(delivery: Delivery) -> AsyncGenerator[bytes]:
    """OpenAI's events. The first one is made with the first audio, so that an error before it has a status."""
    begun = False
    try:
        async for audio, timestamps in delivery.pieces():
            if audio or timestamps:
                event = {"type": "speech.audio.delta", "audio": base64.b64encode(audio).decode()}
                yield _event(event | ({"timestamps": [asdict(t) for t in timestamps]} if timestamps else {}))
                begun = True
    except Exception as error:
        if not begun:
            raise
        yield _event({"type": "error", "error": error_content(error)})
        return
    yield _event({"type": "speech.audio.done", **summary(delivery)})


def summary(delivery: Delivery) -> dict[str, Any]:
    """What can be said after the last sample, with what OpenAI calls usage."""
    tokens, pieces = delivery.speaking.script.token_count, round(delivery.seconds / _USAGE_SECONDS)
    usage = {"input_tokens": tokens, "output_tokens": pieces, "total_tokens": tokens + pieces}
    return {"usage": usage, **delivery.facts(), "duration_seconds": delivery.seconds}


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + to_json(content) + b"\n\n"


async def whole_audio(delivery: Delivery, options: SpeechOptions) -> bytes:
    """All of the audio as one file, whose header knows how long it is."""
    async with delivery.speaking as speaking:
        samples = np.concatenate([piece async for piece in delivery.samples()])
    return await encode_whole(options.response_format, samples, speaking.sampling_rate, options.sampling_rate)


async def whole(delivery: Delivery, options: SpeechOptions) -> dict[str, Any]:
    """A spoken text as one object, with its audio, and its captions where timestamps are wanted."""
    audio = await whole_audio(delivery, options)
    return await asyncio.to_thread(_described, delivery, options, audio)


def _described(delivery: Delivery, options: SpeechOptions, audio: bytes) -> dict[str, Any]:
    timestamps = delivery.new_timestamps()
    content: dict[str, Any] = {"response_format": options.response_format, **summary(delivery)}
    content["audio"] = audio
    if options.timestamps:
        content["timestamps"] = [asdict(time) for time in timestamps]
        content["tokens"] = [asdict(time) for time in delivery.speaking.token_timestamps()]
        content["srt"], content["vtt"] = to_srt(timestamps), to_vtt(timestamps)
    return content


def whole_to_json(content: dict[str, Any]) -> bytes:
    """JSON of what may have audio, in base64, which need not be looked through for what JSON must escape."""
    audio = content.pop("audio", None)
    text = to_json(content)
    return text if audio is None else text[:-1] + b', "audio": "' + to_base64(audio) + b'"}'


async def _as_json(delivery: Delivery, wanted: SpeechRequest) -> Response:
    headers = delivery.headers()
    content = await asyncio.to_thread(whole_to_json, await whole(delivery, wanted))
    return Response(content, headers=headers, media_type="application/json")
