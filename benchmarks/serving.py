"""How much does serving cost over the bare engine, and who waits for whom?

`python -m benchmarks.serving --store store --voice joe` starts `vits serve` as a process of its own and measures it
over HTTP (raw PCM, streamed), beside the yardstick: the same voice opened in this process, the same sentences and
windows, one after the other, on the streams that the server chose. The client's own processor time is taken off the
server's clock where throughput is compared, for a real client has a machine of its own.

What is measured, in this order:

1. `ready`: from the start of the process to readiness, and whether torch was imported.
2. `first audio`: of a text of 2 s and one of 60 s, medians, alternating.
3. `beside`: a sentence that arrives while a minute is spoken, over the same sentence alone.
4. `added`: what a door adds to a text of 2 s, over the engine's own time for it.
5. `throughput`: audio seconds a second of 16 clients that never rest, over that of the bare engine.
6. `memory`: resident bytes after the first tenth of many requests of random lengths, and after all of them.

Let nothing else run meanwhile.
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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shared.registry import Registry
from shared.store import Store
from shared.voice import SpeechParameters, Voice
from shared.voice.layout import measure

SENTENCE = "The quick brown fox jumps over the lazy dog."
#: About a minute of speech.
MINUTE = " ".join([SENTENCE] * 22)
CLIENTS = 16
START_SECONDS = 60


class Refused(Exception):  # noqa: N818 - not an error: the server may
    """The server has too much to do."""


@dataclass
class Server:
    """A server of one's own."""

    process: subprocess.Popen[bytes]
    address: str
    ready_seconds: float

    def ask(self, text: str, seed: int = 1) -> tuple[float, float, int]:
        """Speak a text: seconds to the first audio and to the last, and bytes of PCM."""
        body = json.dumps({"input": text, "seed": seed, "response_format": "pcm"})
        connection = http.client.HTTPConnection(self.address, timeout=600)
        begun = time.perf_counter()
        connection.request("POST", "/v1/audio/speech", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
            raise Refused
        size = len(answer.read1(1 << 16))
        first = time.perf_counter() - begun
        while piece := answer.read1(1 << 20):
            size += len(piece)
        connection.close()
        if answer.status != 200:
            raise RuntimeError(f"the server answered {answer.status}")
        return first, time.perf_counter() - begun, size

    def resident_bytes(self) -> int:
        """Memory of the process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def imports_torch(self) -> bool:
        """Whether a library of torch is mapped into the process."""
        return "libtorch" in Path(f"/proc/{self.process.pid}/maps").read_text()


@contextmanager
def serving(arguments: argparse.Namespace, *, max_backlog: int = 600) -> Iterator[Server]:
    """Start a server, and stop it."""
    command = [sys.executable, "-m", "services.cli", "serve", "--http-port", "0", "--grpc-port", "0"]
    command += ["--store", arguments.store, "--voice", arguments.voice, "--variant", arguments.variant]
    command += ["--threads", str(arguments.threads), "--max-backlog", str(max_backlog)]
    with tempfile.NamedTemporaryFile("w+") as log:
        begun = time.monotonic()
        process = subprocess.Popen(command, stderr=log)
        try:
            while not (ready := re.search(r"HTTP on (\S+),", Path(log.name).read_text())):
                if process.poll() is not None or time.monotonic() - begun > START_SECONDS:
                    raise RuntimeError(Path(log.name).read_text())
                time.sleep(0.02)
            yield Server(process, urlsplit(ready[1]).netloc, time.monotonic() - begun)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def median(sample: Callable[[], float], times: int) -> float:
    """The median of several samples."""
    return statistics.median(sample() for _ in range(times))


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


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, and return the figures."""
    registry = Registry(Store.open(arguments.store))
    folder = registry.fetch(registry.resolve("voices", arguments.voice))
    with serving(arguments) as server:
        figures: dict[str, Any] = {"ready_seconds": server.ready_seconds, "torch": server.imports_torch()}
        for text in (SENTENCE, MINUTE):
            server.ask(text)
        pairs = [(server.ask(SENTENCE), server.ask(MINUTE)) for _ in range(arguments.times)]
        short = statistics.median(pair[0][0] for pair in pairs)
        long = statistics.median(pair[1][0] for pair in pairs)
        solo = statistics.median(pair[0][1] for pair in pairs)
        figures |= {"first_audio_2s": short, "first_audio_60s": long, "first_audio_ratio": long / short}
        figures["beside_ratio"] = median(lambda: beside(server), arguments.times) / solo

        threads = arguments.threads or len(os.sched_getaffinity(0))
        best = {}
        for streams in sorted({1, threads}):
            voice = Voice.open(folder, variant=arguments.variant, threads=threads, streams=streams)
            voice.warm_up()
            best[streams], slowest = measure(voice, streams)
            figures[f"slowest_call_{streams}_streams"] = slowest
            if streams == 1:
                bare = median(lambda voice=voice: engine_seconds(voice, SENTENCE), arguments.times)  # type: ignore[misc]
                served = median(lambda: server.ask(SENTENCE)[1], arguments.times)
                figures |= {"engine_2s": bare, "served_2s": served, "added_seconds": served - bare}
            texts = [SENTENCE * (1 + number % 4) for number in range(CLIENTS * 3)]
            figures[f"bare_throughput_{streams}_streams"] = bare_throughput(voice, streams, texts)
            rate = voice.sampling_rate
            voice.close()
        figures["served_throughput"] = served_throughput(server, texts, rate)
        if arguments.requests:
            early, late = memory(server, arguments.requests)
            figures |= {"memory_early": early, "memory_late": late, "memory_ratio": late / early}
    return figures


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--store", default="store", help="URL of the store (default: %(default)s)")
    made.add_argument("--voice", required=True, help="the voice to measure")
    made.add_argument("--variant", default="fp32", help="its precision (default: %(default)s)")
    made.add_argument("--threads", type=int, default=0, help="threads of the server (default: every CPU)")
    made.add_argument("--times", type=int, default=7, help="samples of each median (default: %(default)s)")
    made.add_argument(
        "--requests", type=int, default=0, help="requests of the measurement of memory (default: none)"
    )
    return made


def main() -> None:
    """Measure and print the figures as JSON."""
    print(json.dumps(run(parser().parse_args()), indent=2))


if __name__ == "__main__":
    main()
