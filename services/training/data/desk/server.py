"""A small HTTP server on loopback for a page's files, sounds, and JSON: the standard library's, enough for one user.

Pages of other origins can reach a port on this machine, too: so every request has to name this very host (a name
that was rebound to 127.0.0.1 does not), and whatever changes something has to come from our own page.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from shared.errors import UserError, VitsError

_PAGE = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}

#: Only our own files; no script or style inside the page, no frames, nothing sent elsewhere. Sounds are blobs.
POLICY = (
    "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; connect-src 'self'; "
    "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

#: A minute of 48 kHz stereo is 12 MB.
MAX_BODY_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Answer:
    """What is sent back: JSON where ``body`` is none."""

    content: Any = None
    status: int = HTTPStatus.OK
    body: bytes | None = None
    media_type: str = "application/json; charset=utf-8"


#: Takes what the pattern's groups matched and the request's body.
Route = tuple[str, str, Callable[[Sequence[str], bytes], Answer]]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away in the middle of an answer is nothing to tell anybody."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Desk:
    """A page with its routes.

    Args:
        files: Paths and the files in ``page`` behind them.
        routes: Method, a pattern of the whole path, and what answers.
        port: 0 for any that is free.

    Raises:
        UserError: The port is taken.
    """

    def __init__(self, files: Mapping[str, str], routes: Sequence[Route], port: int = 0) -> None:
        self.files, self.routes = dict(files), list(routes)
        try:
            self._server = _Server(("127.0.0.1", port), self._handler())
        except OSError as error:
            raise UserError(
                f"Port {port} of this machine is taken ({error.strerror}): give another --port"
            ) from error
        self.port: int = self._server.server_address[1]

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.port}/"

    def serve(self) -> None:
        """Answer until stopped."""
        self._server.serve_forever(poll_interval=0.2)

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Answer in another thread; yields the address."""
        thread = threading.Thread(target=self.serve)
        thread.start()
        try:
            yield self.url
        finally:
            self.close()
            thread.join()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        desk = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60

            def do_GET(self) -> None:
                self._send(desk._answer(self, b""))

            def do_POST(self) -> None:
                length = self.headers.get("Content-Length", "")
                if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
                    self.close_connection = True
                    self._send(
                        Answer({"error": "the body is too large, or does not say how large it is"}, 413)
                    )
                    return
                self._send(desk._answer(self, self.rfile.read(int(length))))

            def _send(self, answer: Answer) -> None:
                body = answer.body
                if body is None:
                    body = json.dumps(answer.content, ensure_ascii=False).encode()
                self.send_response(answer.status)
                for name, value in _HEADERS.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", answer.media_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Nobody reads it."""

        return Handler

    def _answer(self, request: BaseHTTPRequestHandler, body: bytes) -> Answer:
        """Look a request over, and answer it."""
        hosts = {f"{name}:{self.port}" for name in ("127.0.0.1", "localhost")}
        host = request.headers.get("Host", "")
        if host not in hosts:
            return Answer({"error": f"this is {self.url}, not {host}"}, HTTPStatus.MISDIRECTED_REQUEST)
        if request.command != "GET" and request.headers.get("Origin") != f"http://{host}":
            return Answer({"error": "only this page may change anything"}, HTTPStatus.FORBIDDEN)
        path = request.path.partition("?")[0]
        if request.command == "GET" and path in self.files:
            file = _PAGE / self.files[path]
            return Answer(body=file.read_bytes(), media_type=_TYPES[file.suffix])
        for method, pattern, answer in self.routes:
            found = re.fullmatch(pattern, path)
            if found and method == request.command:
                try:
                    return answer(found.groups(), body)
                except VitsError as error:
                    return Answer({"error": str(error)}, HTTPStatus.BAD_REQUEST)
                except (
                    OSError
                ) as error:  # a full disk, a folder that was moved: the page says so, and nothing is lost
                    return Answer({"error": f"not done: {error}"}, HTTPStatus.INTERNAL_SERVER_ERROR)
        return Answer({"error": f"there is nothing at {path}"}, HTTPStatus.NOT_FOUND)


def tell(url: str, what: str) -> None:
    """Say where the page is, and how to get there from another machine."""
    port = url.rstrip("/").rpartition(":")[2]
    print(f"{what}: {url}   (Ctrl-C ends it)", flush=True)
    print(
        f"from another machine: ssh -L {port}:127.0.0.1:{port} {socket.gethostname()}, then the same address there",
        flush=True,
    )
