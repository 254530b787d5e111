"""An HTTP proxy before a server that misbehaves when it is told to: resets, refusals, slowness, answers cut short."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: Looks at a request before anything is read of its body; True if it has dealt with it.
Fault = Callable[["Handler"], bool]


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def _forward(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        for fault in list(self.server.faults):
            if fault(self):
                return
        answer, content = self.ask()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"connection", "transfer-encoding", "content-length", "date", "server"}:
                self.send_header(name, value)
        length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length)
        self.end_headers()
        self.server.send(self, content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward  # noqa: N815

    def ask(self) -> tuple[http.client.HTTPResponse, bytes]:
        """Have the server do what is asked: its answer, and that one's body."""
        body = self.server.receive(self, int(self.headers.get("Content-Length", 0)))
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():  # Host as the client signed it
            connection.putheader(name, value)
        connection.endheaders(body)
        with connection.getresponse() as answer:
            content = b"" if self.command == "HEAD" else answer.read()
        connection.close()
        return answer, content

    def reset(self) -> None:
        """Break the connection off as a dying host or a firewall does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def refuse(self, status: int) -> None:
        """Answer without asking the server."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def finish(self) -> None:
        """Also where the connection was reset."""
        with suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def whole(handler: Handler, content: bytes) -> None:
    """Send an answer's body as it is."""
    handler.wfile.write(content)


def at_once(handler: Handler, length: int) -> bytes:
    """Read a request's body as it comes."""
    return handler.rfile.read(length)


class FaultyProxy(ThreadingHTTPServer):
    """The proxy.

    Attributes:
        upstream: ``host:port`` of the server.
        faults: Asked of every request, in order.
        requests: Every request so far, as ``METHOD path``.
        send: Sends an answer's body.
        receive: Reads a request's body of so many bytes.
    """

    daemon_threads = True

    def __init__(self, endpoint: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = endpoint.removeprefix("http://")
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.send: Callable[[Handler, bytes], None] = whole
        self.receive: Callable[[Handler, int], bytes] = at_once

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no news."""


@contextmanager
def proxy_before(endpoint: str) -> Iterator[FaultyProxy]:
    """A proxy before a server, for the length of a block."""
    with FaultyProxy(endpoint) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()


def times(number: int, matching: Callable[[Handler], bool], act: Callable[[Handler], None]) -> Fault:
    """A fault of the first so many requests that match."""
    left = [number]

    def fault(handler: Handler) -> bool:
        if not left[0] or not matching(handler):
            return False
        left[0] -= 1
        act(handler)
        return True

    return fault


def slowly(bytes_per_second: int, *, step: int = 4096) -> Callable[[Handler, bytes], None]:
    """Send answers at a rate."""

    def send(handler: Handler, content: bytes) -> None:
        for at in range(0, len(content), step):
            handler.wfile.write(content[at : at + step])
            handler.wfile.flush()
            time.sleep(step / bytes_per_second)

    return send


def slowly_read(bytes_per_second: int, *, step: int = 4096) -> Callable[[Handler, int], bytes]:
    """Read requests at a rate."""

    def receive(handler: Handler, length: int) -> bytes:
        pieces = []
        for at in range(0, length, step):
            pieces.append(handler.rfile.read(min(step, length - at)))
            time.sleep(step / bytes_per_second)
        return b"".join(pieces)

    return receive


def together(number: int, matching: Callable[[Handler], bool]) -> Fault:
    """No fault: requests that match go on when so many of them are there at once, and fail if they never are."""
    barrier = threading.Barrier(number, timeout=20)

    def fault(handler: Handler) -> bool:
        if matching(handler):
            barrier.wait()
        return False

    return fault
