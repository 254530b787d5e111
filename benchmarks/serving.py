"""How much does serving cost over the bare engine, and who waits for whom?

`python -m benchmarks.serving --store store --voice joe` starts `vits serve` as a process of its own and measures it
over HTTP (raw PCM, streamed) and gRPC, beside the yardstick: the same voice opened in this process, the same sentences
and windows, one after the other, on the streams that the server chose. The client's own processor time is taken off
the server's clock where doors and throughput are compared, for a real client has a machine of its own.

What is measured, in this order:

1. `ready`: from the start of the process to readiness, cold (nothing in its cache yet) and warm, and whether torch
   was imported. The system's own cache of files is warm in both.
2. `first audio`: of a text of 2 s, and of one of 60 s with and without punctuation, medians, in turns.
3. `beside`: a sentence that arrives while a minute is spoken, over the same sentence alone, in turns.
4. `added`: what each door adds to a text of 2 s, over the engine's own time for it, in turns.
5. `throughput`: audio seconds a second of 16 clients that never rest, over that of the bare engine.
6. `memory`: resident bytes after the first tenth of many requests of random lengths, and after all of them.
7. `overload`: for so many seconds, requests come ten times as fast as they can be spoken. Each must be spoken
   as it is alone or be told to come back, and afterwards nothing may be left of them.

Let nothing else run meanwhile; `--parts` measures some of it only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shared.registry import Registry
from shared.store import Store
from shared.voice import SpeechParameters, Voice
from shared.voice.layout import measure
from vits_client import Client

SENTENCE = "The quick brown fox jumps over the lazy dog."
#: About a minute of speech.
MINUTE = " ".join([SENTENCE] * 22)
#: The same without a mark.
BREATHLESS = MINUTE.replace(".", "").lower()
CLIENTS = 16
START_SECONDS = 60
PARTS = ("first", "beside", "added", "throughput", "memory", "overload")
#: How much faster than it can speak a server is asked in the overload.
OVERLOAD = 10


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
        return http.client.HTTPConnection(self.address, timeout=600)

    def ask(self, text: str, seed: int = 1) -> tuple[float, float, int]:
        """Speak a text: seconds to the first audio and to the last, and bytes of PCM."""
        connection = self.connect()
        begun = time.perf_counter()
        status, first, audio = ask(connection, text, seed)
        connection.close()
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            raise Refused
        if status != HTTPStatus.OK:
            raise RuntimeError(f"the server answered {status}")
        return first, time.perf_counter() - begun, len(audio)

    def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        connection = self.connect()
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
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


def ask(connection: http.client.HTTPConnection, text: str, seed: int = 1) -> tuple[int, float, bytes]:
    """Speak a text: the status, seconds to the first audio, and all of it."""
    body = json.dumps({"input": text, "seed": seed, "response_format": "pcm"})
    begun = time.perf_counter()
    connection.request("POST", "/v1/audio/speech", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    pieces = [answer.read1(1 << 16)]
    first = time.perf_counter() - begun
    while piece := answer.read1(1 << 20):
        pieces.append(piece)
    return answer.status, first, b"".join(pieces)


@contextmanager
def serving(
    arguments: argparse.Namespace, *, max_backlog: int = 600, cache: str | None = None
) -> Iterator[Server]:
    """Start a server, and stop it."""
    command = [sys.executable, "-m", "services.cli", "serve", "--http-port", "0", "--grpc-port", "0"]
    command += ["--store", arguments.store, "--voice", arguments.voice, "--variant", arguments.variant]
    command += ["--threads", str(arguments.threads), "--max-backlog", str(max_backlog)]
    environment = os.environ | ({"VITS_CACHE": cache} if cache else {})
    with tempfile.NamedTemporaryFile("w+") as log:
        begun = time.monotonic()
        process = subprocess.Popen(command, stderr=log, env=environment)
        try:
            while not (ready := re.search(r"HTTP on (\S+), gRPC on (\S+),", Path(log.name).read_text())):
                if process.poll() is not None or time.monotonic() - begun > START_SECONDS:
                    raise RuntimeError(Path(log.name).read_text())
                time.sleep(0.02)
            yield Server(process, urlsplit(ready[1]).netloc, ready[2], time.monotonic() - begun)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def in_turns(samples: Mapping[str, Callable[[], float]], times: int) -> dict[str, float]:
    """The median of each of several samples, taken in turns, so that what else happens falls on all alike."""
    for sample in samples.values():
        sample()
    rounds = [{name: sample() for name, sample in samples.items()} for _ in range(times)]
    return {name: statistics.median(one[name] for one in rounds) for name in samples}


def first_audio(server: Server, text: str) -> float:
    """Seconds to the first audio of a text."""
    return server.ask(text)[0]


def engine_seconds(voice: Voice, text: str) -> float:
    """What the bare engine takes for a text, one step after the other."""
    plan = voice.plan(text, SpeechParameters(seed=1))
    begun = time.perf_counter()
    for _ in voice.speak(plan):
        pass
    return time.perf_counter() - begun


def bare_throughput(voice: Voice, streams: int, texts: Sequence[str]) -> float:
    """Audio seconds a second of the bare engine, on so many streams."""

    def speak(text: str) -> float:
        plan = voice.plan(text, SpeechParameters(seed=1))
        return sum(len(samples) for samples in voice.speak(plan)) / voice.sampling_rate

    with ThreadPoolExecutor(streams) as pool:
        begun = time.perf_counter()
        audio = sum(pool.map(speak, texts))
        return audio / (time.perf_counter() - begun)


def served_throughput(server: Server, texts: Sequence[str], sampling_rate: int) -> float:
    """Audio seconds a second of clients that never rest, their own processor time taken off."""
    used = time.process_time()
    with ThreadPoolExecutor(CLIENTS) as pool:
        begun = time.perf_counter()
        sizes = list(pool.map(lambda text: server.ask(text)[2], texts))
        elapsed = time.perf_counter() - begun
    cores = len(os.sched_getaffinity(0))
    return sum(sizes) / 2 / sampling_rate / (elapsed - (time.process_time() - used) / cores)


def beside(server: Server) -> float:
    """Seconds of a sentence that arrives while a minute is spoken."""
    long = threading.Thread(target=server.ask, args=(MINUTE,))
    long.start()
    time.sleep(0.3)
    seconds = server.ask(SENTENCE)[1]
    long.join()
    return seconds


def memory(server: Server, requests: int) -> tuple[int, int]:
    """Resident bytes after a tenth of so many requests of random lengths, and after all."""
    chosen = random.Random(0)  # noqa: S311
    words = SENTENCE.split()
    marks = []
    for count in (requests // 10, requests - requests // 10):
        texts = [" ".join(chosen.choices(words, k=chosen.randint(1, 60))) for _ in range(count)]
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(server.ask, texts))
        marks.append(server.resident_bytes())
    return marks[0], marks[1]


def overload(server: Server, sampling_rate: int, speed: float, seconds: float) -> dict[str, float]:
    """Ask ten times as fast as the server can speak, and see what becomes of everybody."""
    texts = [" ".join([SENTENCE] * count) for count in (1, 2, 3)]
    expected = {text: _alone(server, text) for text in texts}
    each = sum(map(len, expected.values())) / len(texts) / 2 / sampling_rate
    gap = each / speed / OVERLOAD
    files = server.open_files()
    outcomes: Counter[str] = Counter()

    def one(number: int) -> str:
        text = texts[number % len(texts)]
        try:
            connection = server.connect()
            status, _, audio = ask(connection, text)
            connection.close()
        except (OSError, http.client.HTTPException) as error:
            return f"broken: {error}"
        if status != HTTPStatus.OK:
            return f"refused with {status}"
        return "spoken" if audio == expected[text] else "spoken wrong"

    with ThreadPoolExecutor(256) as pool:
        waiting: list[Future[str]] = []
        begun = time.monotonic()
        while (late := time.monotonic() - begun) < seconds:
            if late >= gap * len(waiting):
                waiting.append(pool.submit(one, len(waiting)))
            else:
                time.sleep(gap * len(waiting) - late)
        outcomes.update(future.result() for future in waiting)
    time.sleep(1)
    return {
        "overload_requests": outcomes.total(),
        **{f"overload_{outcome.replace(' ', '_')}": count for outcome, count in outcomes.items()},
        "overload_left_in_flight": server.metric("vits_requests_in_flight"),
        "overload_left_open": server.open_files() - files,
    }


def _alone(server: Server, text: str) -> bytes:
    connection = server.connect()
    _, _, audio = ask(connection, text)
    connection.close()
    return audio


def measure_doors(server: Server, voice: Voice, times: int) -> dict[str, float]:
    """What the doors add to the engine's time for a sentence."""
    with Client(f"grpc://{server.grpc_address}") as client:

        def over_http() -> None:
            connection = server.connect()
            ask(connection, SENTENCE)
            connection.close()

        def over_grpc() -> None:
            with client.stream(SENTENCE, seed=1) as stream:
                for _ in stream:
                    pass

        def without_own(door: Callable[[], None]) -> float:
            used, begun = time.process_time(), time.perf_counter()
            door()
            return time.perf_counter() - begun - (time.process_time() - used)

        medians = in_turns(
            {
                "engine": lambda: engine_seconds(voice, SENTENCE),
                "http": lambda: without_own(over_http),
                "grpc": lambda: without_own(over_grpc),
            },
            times,
        )
    return {
        "engine_2s": medians["engine"],
        "http_added": medians["http"] - medians["engine"],
        "grpc_added": medians["grpc"] - medians["engine"],
    }


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, and return the figures."""
    registry = Registry(Store.open(arguments.store))
    folder = registry.fetch(registry.resolve("voices", arguments.voice))
    parts, times = arguments.parts, arguments.times
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache, serving(arguments, cache=cache) as server:
        figures["ready_cold_seconds"] = server.ready_seconds
    with serving(arguments) as server:
        figures |= {"ready_seconds": server.ready_seconds, "torch": server.imports_torch()}
        if "first" in parts:
            asked = {"2s": SENTENCE, "60s": MINUTE, "60s_unpunctuated": BREATHLESS}
            first = in_turns(
                {name: partial(first_audio, server, text) for name, text in asked.items()}, times
            )
            figures |= {f"first_audio_{name}": seconds for name, seconds in first.items()}
            figures |= {
                f"first_audio_ratio_{name}": first[name] / first["2s"] for name in ("60s", "60s_unpunctuated")
            }
        if "beside" in parts:
            pair = in_turns(
                {"alone": lambda: server.ask(SENTENCE)[1], "beside": lambda: beside(server)}, times
            )
            figures["beside_ratio"] = pair["beside"] / pair["alone"]
        threads = arguments.threads or len(os.sched_getaffinity(0))
        for streams in sorted({1, threads}):
            voice = Voice.open(folder, variant=arguments.variant, threads=threads, streams=streams)
            voice.warm_up()
            rate = voice.sampling_rate
            _, figures[f"slowest_call_{streams}_streams"] = measure(voice, streams)
            if streams == 1 and "added" in parts:
                figures |= measure_doors(server, voice, times)
            if "throughput" in parts:
                texts = [SENTENCE * (1 + number % 4) for number in range(CLIENTS * 3)]
                figures[f"bare_throughput_{streams}_streams"] = bare_throughput(voice, streams, texts)
            voice.close()
        if "throughput" in parts:
            figures["served_throughput"] = served_throughput(server, texts, rate)
        if "memory" in parts:
            early, late = memory(server, arguments.requests)
            figures |= {"memory_early": early, "memory_late": late, "memory_ratio": late / early}
    if "overload" in parts:
        with serving(arguments, max_backlog=5) as server:
            texts = [SENTENCE * (1 + number % 4) for number in range(CLIENTS)]
            speed = served_throughput(server, texts[:4], rate)
            figures |= overload(server, rate, speed, arguments.overload)
    return figures


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--store", default="store", help="URL of the store (default: %(default)s)")
    made.add_argument("--voice", required=True, help="the voice to measure")
    made.add_argument("--variant", default="fp32", help="its precision (default: %(default)s)")
    made.add_argument("--threads", type=int, default=0, help="threads of the server (default: every CPU)")
    made.add_argument("--times", type=int, default=7, help="samples of each median (default: %(default)s)")
    made.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS[:4], help="(default: %(default)s)")
    made.add_argument(
        "--requests",
        type=int,
        default=5000,
        help="requests of the measurement of memory (default: %(default)s)",
    )
    made.add_argument(
        "--overload",
        type=float,
        default=60,
        metavar="SECONDS",
        help="length of the overload (default: %(default)s)",
    )
    return made


def main() -> None:
    """Measure and print the figures as JSON."""
    print(json.dumps(run(parser().parse_args()), indent=2))


if __name__ == "__main__":
    main()
