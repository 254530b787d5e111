"""Ten times more than a server can do, through its real doors: everybody is answered, nobody wrongly, nothing stays.

It lasts `SECONDS`; ``make overload`` has a minute of it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.served import Server, World, serving
from vits_client import AsyncClient, OverloadedError

SECONDS = float(os.environ.get("OVERLOAD_SECONDS", "8"))
TIMES = 10
#: How long the capacity is measured.
MEASURED_SECONDS = 2
#: Nobody is left without an answer for so long.
PATIENCE_SECONDS = 60

SEED = 7
#: Long ones, so that the server is what is overloaded, and not the test.
TEXTS = [f"Una frase, que es la número {number}, y que no acaba nunca. " * number for number in (4, 8, 12)]

#: Asks for a text; True if it was spoken, False if it was refused.
Ask = Callable[[str], Coroutine[Any, Any, bool]]


@dataclass(frozen=True)
class Footprint:
    """What a process has."""

    threads: int
    descriptors: int
    memory_bytes: int

    @classmethod
    def of(cls, process: int) -> Footprint:
        folder = Path(f"/proc/{process}")
        pages = int((folder / "statm").read_text().split()[1])
        return cls(
            len(list((folder / "task").iterdir())),
            len(list((folder / "fd").iterdir())),
            pages * os.sysconf("SC_PAGE_SIZE"),
        )


#: What executors have not started yet by the end of the first half, and what an allocator keeps now and then (73 MB
#: once, of answers that were waited for together). A leak is hundreds of threads, and in a minute as many megabytes.
SLACK = Footprint(threads=6, descriptors=0, memory_bytes=128 << 20)


@asynccontextmanager
async def doors(server: Server, expected: dict[str, bytes]) -> AsyncIterator[list[Ask]]:
    """Ways to ask; each checks its answers."""
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=server.url, limits=limits, timeout=PATIENCE_SECONDS) as http,
        AsyncClient(f"grpc://{server.grpc_address}", timeout_seconds=PATIENCE_SECONDS) as grpc,
    ):

        async def over_http(text: str) -> bool:
            body = {"input": text, "seed": SEED, "response_format": "pcm"}
            answer = await http.post("/v1/audio/speech", json=body)
            if answer.status_code == 200:
                assert answer.content == expected[text]
                return True
            assert answer.status_code == 429, answer.text
            assert answer.json()["error"]["code"] == "overloaded"
            assert int(answer.headers["Retry-After"]) >= 1
            return False

        async def over_grpc(text: str) -> bool:
            try:
                speech = await grpc.speak(text, seed=SEED, audio_format="pcm")
            except OverloadedError as refused:
                return told_when_to_come_back(refused)
            assert speech.audio == expected[text]
            return True

        async def over_a_stream(text: str) -> bool:
            try:
                async with await grpc.stream(text, seed=SEED) as stream:
                    audio = b"".join([piece async for piece in stream])
            except OverloadedError as refused:
                return told_when_to_come_back(refused)
            assert audio == expected[text]
            return True

        yield [over_http, over_grpc, over_http, over_a_stream]


def told_when_to_come_back(refused: OverloadedError) -> bool:
    assert refused.reason == "OVERLOADED"
    assert refused.retry_after_seconds is not None
    assert refused.retry_after_seconds >= 1
    return False


async def capacity(ask: list[Ask]) -> float:
    """Texts that the server speaks in a second for clients that wait for one before they ask for the next."""
    begun = time.monotonic()

    async def client(number: int) -> int:
        spoken = 0
        for text in itertools.cycle(TEXTS):
            if time.monotonic() > begun + MEASURED_SECONDS:
                break
            spoken += await ask[number](text)
        return spoken

    spoken = sum(await asyncio.gather(*map(client, range(len(ask)))))
    return spoken / (time.monotonic() - begun)


async def overload(ask: list[Ask], per_second: float, seconds: float) -> Counter[bool]:
    """Ask so often whatever the answers are, and wait for all of them."""
    begun = time.monotonic()
    asking = []
    for number in range(round(per_second * seconds)):
        await asyncio.sleep(begun + number / per_second - time.monotonic())
        asking.append(asyncio.create_task(ask[number % len(ask)](TEXTS[number % len(TEXTS)])))
    return Counter(await asyncio.wait_for(asyncio.gather(*asking), PATIENCE_SECONDS))


def metric(server: Server, name: str) -> float:
    """The sum over all labels."""
    lines = [line.rpartition(" ") for line in server.get("/metrics").splitlines()]
    return sum(float(value) for sample, _, value in lines if sample.partition("{")[0] == name)


def footprint_at_rest(server: Server, descriptors: int) -> Footprint:
    """What is left when everybody has gone."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        found = Footprint.of(server.process.pid)
        busy = metric(server, "vits_requests_in_flight"), metric(server, "vits_backlog_seconds")
        if not any(busy) and found.descriptors <= descriptors:
            return found
        assert time.monotonic() < deadline, (busy, found)
        time.sleep(0.05)


@pytest.mark.timeout(600 + 10 * SECONDS)
def test_ten_times_overload(world: World, tmp_path: Path) -> None:
    async def alone(server: Server) -> dict[str, bytes]:
        async with AsyncClient(f"grpc://{server.grpc_address}") as grpc:
            return {text: (await grpc.speak(text, seed=SEED, audio_format="pcm")).audio for text in TEXTS}

    async def half(server: Server, expected: dict[str, bytes]) -> Counter[bool]:
        async with doors(server, expected) as ask:
            return await overload(ask, TIMES * await capacity(ask), SECONDS / 2)

    with serving(World(tmp_path, world.store), "--max-backlog", "1") as server:
        expected = asyncio.run(alone(server))
        rested = Footprint.of(server.process.pid)
        footprints = []
        for _ in range(2):
            answered = metric(server, "vits_responses_total")
            outcomes = asyncio.run(half(server, expected))
            assert outcomes[False] > outcomes[True] > 0
            assert metric(server, "vits_responses_total") - answered >= outcomes.total()
            footprints.append(footprint_at_rest(server, rested.descriptors))
        first, second = footprints
        assert second.threads <= first.threads + SLACK.threads
        assert second.memory_bytes < first.memory_bytes + SLACK.memory_bytes
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()
