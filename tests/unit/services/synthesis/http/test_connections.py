"""The connections of a real uvicorn: clients that stop reading, and talks that a stop does not cut off."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import httpx
import httpx_ws
import pytest
import uvicorn
from starlette.applications import Starlette

from services.synthesis.http.connections import HttpConnection, LiveConnection, _Patient
from shared.audio import to_pcm16

if TYPE_CHECKING:
    from tests.unit.services.synthesis.http.conftest import FakeSpeaker

LIVE = "/v1/audio/speech/live"
#: Kept small, so that a client that does not read is noticed after some kilobytes.
BUFFER_BYTES = 4096


@dataclass
class Running:
    """A server in a thread of its own."""

    server: uvicorn.Server
    loop: asyncio.AbstractEventLoop
    port: int

    def call(self, function: Callable[[], object]) -> None:
        """Call a function on the loop, and wait for it."""

        async def called() -> None:
            function()

        asyncio.run_coroutine_threadsafe(called(), self.loop).result(10)


@pytest.fixture
def running(app: Starlette) -> Iterator[Running]:
    """A server with little patience."""
    patience: Any = {"patience_seconds": 0.3}
    config = uvicorn.Config(
        app,
        http=cast("Any", partial(HttpConnection, **patience)),
        ws=cast("Any", partial(LiveConnection, **patience)),
        log_config=None,
        timeout_graceful_shutdown=20,
    )
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    loop = asyncio.new_event_loop()
    server = uvicorn.Server(config)
    thread = threading.Thread(target=loop.run_until_complete, args=[server.serve(sockets=[listening])])
    thread.start()
    wait_until(lambda: server.started)
    yield Running(server, loop, listening.getsockname()[1])
    server.should_exit = True
    thread.join()
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def wait_until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def connect(running: Running) -> socket.socket:
    """A client that has room for little."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    client.connect(("127.0.0.1", running.port))
    return client


def counted(fake: FakeSpeaker, door: str) -> float:
    labels = {"door": door, "code": "cancelled" if door == "websocket" else "200"}
    return fake.metrics.registry.get_sample_value("vits_responses_total", labels) or 0.0


def test_a_client_of_http_that_stops_reading_is_given_up(running: Running, fake: FakeSpeaker) -> None:
    body = json.dumps({"input": "slow " * 800, "response_format": "pcm"}).encode()
    with connect(running) as client:
        client.sendall(b"POST /v1/audio/speech HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body))
        client.sendall(body)
        wait_until(lambda: bool(fake.spoken) and fake.spoken[0].cancelled)
        wait_until(lambda: counted(fake, "http") == 1)
        wait_until(lambda: not running.server.server_state.connections)


def test_a_client_of_a_websocket_that_stops_reading_is_given_up(running: Running, fake: FakeSpeaker) -> None:
    with connect(running) as client:
        client.sendall(
            f"GET {LIVE} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        assert client.recv(BUFFER_BYTES).startswith(b"HTTP/1.1 101")
        client.sendall(frame({"type": "start", "response_format": "pcm"}))
        client.sendall(frame({"type": "text", "text": "slow " * 800}))
        wait_until(lambda: counted(fake, "websocket") == 1)
        assert fake.spoken[-1].cancelled
        wait_until(lambda: not running.server.server_state.connections)


def frame(message: dict[str, str]) -> bytes:
    """A client's message, masked with zeros."""
    content = json.dumps(message).ljust(126).encode()
    return b"\x81\xfe" + len(content).to_bytes(2, "big") + bytes(4) + content


def test_a_stop_does_not_cut_a_sentence_off(running: Running, fake: FakeSpeaker) -> None:
    talk: httpx_ws.WebSocketSession
    with httpx.Client() as http, httpx_ws.connect_ws(f"http://127.0.0.1:{running.port}{LIVE}", http) as talk:
        talk.send_json({"type": "start", "response_format": "pcm"})
        talk.send_json({"type": "text", "text": "slow " * 40 + ". "})
        messages: list[dict[str, Any]] = [talk.receive_json(timeout=20)]
        while messages[-1]["type"] != "audio":
            messages.append(talk.receive_json(timeout=20))
        running.call(fake.gate.clear)
        running.server.should_exit = True
        wait_until(lambda: not running.server.servers[0].is_serving())
        running.call(fake.draining.set)
        running.call(fake.gate.set)
        while messages[-1]["type"] != "error":
            messages.append(talk.receive_json(timeout=20))
        with pytest.raises(httpx_ws.WebSocketDisconnect) as closed:
            talk.receive_json(timeout=20)
    assert messages[-1]["error"]["code"] == "stopping"
    assert closed.value.code == 1012
    heard = b"".join(base64.b64decode(m["audio"]) for m in messages if m["type"] == "audio")
    assert heard == to_pcm16(fake.spoken[0].samples).tobytes()


# Patience, without a network and with a clock of its own.


@dataclass
class Clock:
    """An event loop of which time and timers are asked."""

    now: float = 0.0
    timers: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, function: Callable[..., None], *arguments: Any) -> Any:
        timer = (self.now + delay, partial(function, *arguments))
        self.timers.append(timer)
        return type("Handle", (), {"cancel": lambda _: self.timers.remove(timer)})()

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.timers and min(self.timers)[0] <= end:
            timer = min(self.timers)
            self.timers.remove(timer)
            self.now = timer[0]
            timer[1]()
        self.now = end


@dataclass
class Transport:
    """What waits to be read."""

    size: int
    aborted: bool = False

    def get_write_buffer_size(self) -> int:
        return self.size

    def abort(self) -> None:
        self.aborted = True


@pytest.fixture
def patient() -> Any:
    """A connection of which 100 bytes wait, with a patience of 8 s."""
    connection: Any = _Patient(patience_seconds=8.0)
    connection.loop, connection.transport = Clock(), Transport(100)
    connection.pause_writing()
    return connection


def test_who_reads_slowly_is_waited_for(patient: Any) -> None:
    for size in range(99, 49, -1):
        patient.loop.pass_time(6)
        patient.transport.size = size
    assert not patient.transport.aborted
    patient.loop.pass_time(11)
    assert patient.transport.aborted


def test_what_is_added_is_not_taken_for_reading(patient: Any) -> None:
    for size in (110, 105, 120, 101):
        patient.loop.pass_time(2)
        patient.transport.size = size
    assert patient.transport.aborted


def test_who_has_read_is_not_watched(patient: Any) -> None:
    patient.resume_writing()
    assert not patient.loop.timers
    patient.pause_writing()
    patient.connection_lost(None)
    patient.loop.pass_time(100)
    assert not patient.transport.aborted
