"""How the benchmarks ask a server: what they hear of an answer, a refusal and a failure."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from benchmarks.server import Refused, Server, ask


class Door(BaseHTTPRequestHandler):
    """Speaks one text, refuses another, breaks on a third."""

    asked: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        known = {"hola": HTTPStatus.OK, "demasiado": HTTPStatus.TOO_MANY_REQUESTS}
        status = known.get(body["input"], HTTPStatus.INTERNAL_SERVER_ERROR)
        self.answer(status, bytes(100_000) if status == HTTPStatus.OK else b"no")

    def do_GET(self) -> None:
        self.answer(HTTPStatus.OK, b"# HELP vits_x of x\nvits_x_total 1.0\nvits_x 2.5\n")

    def answer(self, status: HTTPStatus, content: bytes) -> None:
        self.send_response(status)
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            self.send_header("Retry-After", "7")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as door:
        thread = threading.Thread(target=door.serve_forever, args=(0.01,))
        thread.start()
        yield Server(None, f"127.0.0.1:{door.server_port}", "", 0.0)  # type: ignore[arg-type]
        door.shutdown()
        thread.join()


def test_a_text_is_asked_for_as_pcm_and_counted(server: Server) -> None:
    first, total, size = server.ask("hola", seed=3)
    assert 0 <= first <= total
    assert size == 100_000
    assert Door.asked[-1] == {"input": "hola", "seed": 3, "response_format": "pcm"}


def test_a_refusal_is_no_failure(server: Server) -> None:
    with pytest.raises(Refused):
        server.ask("demasiado")
    with closing(server.connect()) as connection:
        assert ask(connection, "demasiado").retry_after == "7"
    with pytest.raises(RuntimeError, match="answered 500: b'no'"):
        server.ask("adiós")


def test_a_metric_is_read_by_its_whole_name(server: Server) -> None:
    assert server.metric("vits_x") == 2.5
