"""A `vits serve` of one's own, as the benchmarks ask it."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

#: A cold start fetches the voice and measures streams.
START_SECONDS = 120
STOP_SECONDS = 60
#: No answer pauses for so long, however long the queue.
PATIENCE_SECONDS = 120


class Refused(Exception):  # noqa: N818 - not an error: the server may
    """The server has too much to do."""


@dataclass
class Server:
    """A server of one's own."""

    process: subprocess.Popen[bytes]
    address: str
    grpc_address: str
    ready_seconds: float

    def connect(self) -> http.client.HTTPConnection:
        """A connection, for one request after another."""
        return http.client.HTTPConnection(self.address, timeout=PATIENCE_SECONDS)

    def ask(self, text: str, seed: int = 1) -> tuple[float, float, int]:
        """Speak a text: seconds to the first audio and to the last, and bytes of PCM."""
        with closing(self.connect()) as connection:
            begun = time.perf_counter()
            answer = ask(connection, text, seed)
            total = time.perf_counter() - begun
        if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
            raise Refused
        if answer.status != HTTPStatus.OK:
            raise RuntimeError(f"the server answered {answer.status}: {answer.content[:500]!r}")
        return answer.first, total, len(answer.content)

    def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        with closing(self.connect()) as connection:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    def open_files(self) -> int:
        """Files and connections that the process holds."""
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    def resident_bytes(self) -> int:
        """Memory of the process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def imports_torch(self) -> bool:
        """Whether a library of torch is mapped into the process."""
        return "libtorch" in Path(f"/proc/{self.process.pid}/maps").read_text()


@dataclass(frozen=True)
class Answer:
    """What came of a request over HTTP.

    Attributes:
        status: Of HTTP.
        first: Seconds to the first byte of audio.
        content: All of it: PCM where it was spoken.
        retry_after: The header; None where there is none.
    """

    status: int
    first: float
    content: bytes
    retry_after: str | None


def ask(connection: http.client.HTTPConnection, text: str, seed: int = 1) -> Answer:
    """Speak a text, whole."""
    begun = time.perf_counter()
    answer = begin(connection, text, seed)
    pieces = [answer.read1(1 << 16)]
    first = time.perf_counter() - begun
    while piece := answer.read1(1 << 20):
        pieces.append(piece)
    return Answer(answer.status, first, b"".join(pieces), answer.getheader("Retry-After"))


def begin(connection: http.client.HTTPConnection, text: str, seed: int = 1) -> http.client.HTTPResponse:
    """Ask for a text, streamed as PCM; comes back when there is something to read."""
    body = json.dumps({"input": text, "seed": seed, "response_format": "pcm"})
    connection.request("POST", "/v1/audio/speech", body, {"Content-Type": "application/json"})
    return connection.getresponse()


@contextmanager
def serving(arguments: argparse.Namespace, *, max_backlog: int = 600) -> Iterator[Server]:
    """Start a server, and stop it.

    Args:
        arguments: ``store``, ``voice``, ``variant`` and ``threads``.
        max_backlog: Seconds of work beyond which it refuses.
    """
    command = [sys.executable, "-m", "services.cli", "serve", "--http-port", "0", "--grpc-port", "0"]
    command += ["--store", arguments.store, "--voice", arguments.voice, "--variant", arguments.variant]
    command += ["--threads", str(arguments.threads), "--max-backlog", str(max_backlog)]
    with tempfile.NamedTemporaryFile("w+") as log:
        begun = time.monotonic()
        process = subprocess.Popen(command, stderr=log)
        try:
            while not (ready := re.search(r"HTTP on (\S+), gRPC on (\S+),", Path(log.name).read_text())):
                if process.poll() is not None or time.monotonic() - begun > START_SECONDS:
                    raise RuntimeError(f"the server did not start:\n{Path(log.name).read_text()}")
                time.sleep(0.02)
            yield Server(process, urlsplit(ready[1]).netloc, ready[2], time.monotonic() - begun)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            finally:
                process.kill()
