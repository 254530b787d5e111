"""Samples become bytes on other threads than the event loop's."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from services.synthesis import packing
from services.synthesis.packing import Packer, encode_whole, to_base64
from shared.audio_encoding import encode, open_encoder

SECOND = np.sin(np.arange(16000) * 0.1, dtype=np.float32)


@pytest.fixture
def on_the_loop(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call of an encoder was on an event loop's thread."""
    found: list[bool] = []

    def noting(call: Callable[..., bytes]) -> Callable[..., bytes]:
        def noted(*arguments: Any) -> bytes:
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                found.append(False)
            else:
                found.append(True)
            return call(*arguments)

        return noted

    def opened(*arguments: Any) -> Any:
        encoder: Any = open_encoder(*arguments)
        encoder.encode, encoder.finish = noting(encoder.encode), noting(encoder.finish)
        return encoder

    monkeypatch.setattr(packing, "open_encoder", opened)
    monkeypatch.setattr(packing, "encode", noting(encode))
    return found


@pytest.mark.parametrize(("audio_format", "rate"), [("mp3", None), ("opus", None), ("pcm", 8000)])
def test_what_takes_time_is_not_packed_on_the_event_loop(
    audio_format: str, rate: int | None, on_the_loop: list[bool]
) -> None:
    async def pack() -> tuple[bytes, bytes]:
        packer = Packer(audio_format, 16000, rate)
        streamed = await packer.pack(SECOND) + await packer.finish()
        return streamed, await encode_whole(audio_format, SECOND, 16000, rate)

    streamed, whole = asyncio.run(pack())
    assert on_the_loop == [False] * 3
    assert streamed
    assert whole


@pytest.mark.parametrize("beside", [-1, 0, 1, 100])
def test_base64_in_parts_is_that_of_the_whole(beside: int) -> None:
    content = np.random.default_rng(1).bytes(2 * packing._BASE64_BYTES + beside)
    assert to_base64(content) == base64.b64encode(content)
    assert to_base64(b"") == b""
