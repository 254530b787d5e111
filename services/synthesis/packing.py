"""Samples to bytes for every door, without keeping the event loop from others."""

from __future__ import annotations

import asyncio
import base64

from shared.audio import Samples
from shared.audio_encoding import encode, open_encoder

#: Bytes that are made base64 in one go: a multiple of 3, so that the parts are those of the whole.
_BASE64_BYTES = 3 * 2**16


class Packer:
    """Packs the samples of a stream as they are made.

    Args:
        audio_format: One of `shared.audio_encoding.available_formats`.
        from_rate: Hz of what will be taken in.
        to_rate: Hz wanted; see `shared.audio_encoding.open_encoder`.

    Attributes:
        sampling_rate: Hz of what comes out.

    Raises:
        RequestError: There is no such format here, or it does not know the rate.
    """

    def __init__(self, audio_format: str, from_rate: int, to_rate: int | None) -> None:
        self._encoder = open_encoder(audio_format, from_rate, to_rate)
        #: Takes no time worth a thread.
        self._light = audio_format in {"wav", "pcm"} and to_rate in {None, from_rate}
        self.sampling_rate = self._encoder.sampling_rate

    async def pack(self, samples: Samples) -> bytes:
        """Take in samples [S]; give the bytes that are ready, which may be none."""
        if self._light:
            return self._encoder.encode(samples)
        return await asyncio.to_thread(self._encoder.encode, samples)

    async def finish(self) -> bytes:
        """The rest of the bytes."""
        return await asyncio.to_thread(self._encoder.finish)


async def encode_whole(audio_format: str, samples: Samples, from_rate: int, to_rate: int | None) -> bytes:
    """Samples [S] as one file, whose header knows how long it is."""
    return await asyncio.to_thread(encode, audio_format, samples, from_rate, to_rate)


def to_base64(content: bytes) -> bytes:
    """Base64, made in parts, between which other threads have their turn."""
    starts = range(0, len(content), _BASE64_BYTES)
    return b"".join(base64.b64encode(content[start : start + _BASE64_BYTES]) for start in starts)
