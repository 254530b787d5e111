"""uvicorn's connections, with what it leaves out: a client that reads nothing is given up, a talk may end.

uvicorn waits for ever for a client to read, and cuts every WebSocket off when it is told to stop.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.wsproto_impl import WSProtocol

#: How often within its patience a connection looks whether anything was read.
_LOOKS = 8


class _Patient(asyncio.Protocol):
    """A connection that is cut when its client has read nothing for too long of what waits for it.

    Whoever answers then finds that the client has left.

    Args:
        patience_seconds: How long is too long.
    """

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop

    def __init__(self, *arguments: Any, patience_seconds: float, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._patience = patience_seconds
        self._watch: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        """Take in that much waits to be read."""
        super().pause_writing()
        self._look(self.transport.get_write_buffer_size(), self.loop.time())

    def resume_writing(self) -> None:
        """Take in that little does."""
        super().resume_writing()
        self._stop_watching()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take in that the connection is over."""
        self._stop_watching()
        super().connection_lost(exc)

    def _stop_watching(self) -> None:
        if self._watch:
            self._watch.cancel()
            self._watch = None

    def _look(self, least: int, since: float) -> None:
        """See whether less waits than the least that was seen, which was at the time ``since``."""
        now, size = self.loop.time(), self.transport.get_write_buffer_size()
        if size < least:
            least, since = size, now
        if now - since >= self._patience:
            self.transport.abort()
        else:
            self._watch = self.loop.call_later(self._patience / _LOOKS, self._look, least, since)


class HttpConnection(_Patient, H11Protocol):
    """A connection of HTTP."""


class LiveConnection(_Patient, WSProtocol):
    """A connection of a WebSocket."""

    def shutdown(self) -> None:
        """Leave an open one to `services.synthesis.http.live`, which finishes what is spoken and closes it."""
        if self.close_sent or not self.handshake_complete:
            super().shutdown()
