"""A store that takes a question and never answers: it holds up nobody but those who need it, and no stop."""

from __future__ import annotations

import asyncio
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from services.synthesis.speaker import MAX_WAITING_FOR_VOICES
from shared.registry import Registry
from shared.store import Store
from tests.infra.faulty_proxy import FaultyProxy, Handler, proxy_before
from tests.infra.s3_server import S3Server
from tests.integration.served import PATIENCE_SECONDS, World, serving, starting, until
from vits_client import AsyncClient, OverloadedError, UnavailableError


@dataclass
class HangingStore:
    """A store with the voices ``tiny`` and ``other``.

    Attributes:
        url: Its address.
        asked: Set when something was asked for that does not come.
    """

    url: str
    asked: threading.Event
    _proxy: FaultyProxy
    _released: threading.Event

    def hang_at(self, path: str) -> None:
        """Answer no more questions whose path has this in it."""

        def hang(handler: Handler) -> bool:
            if path not in handler.path:
                return False
            self.asked.set()
            self._released.wait()
            handler.reset()
            return True

        self._proxy.faults.append(hang)


@pytest.fixture
def store(
    world: World, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HangingStore]:
    local = Registry(Store.open(str(world.store)))
    version = local.resolve("voices", "tiny")
    folder = shutil.copytree(local.fetch(version), tmp_path / "voice")
    manifest = version.manifest
    released = threading.Event()
    with proxy_before(s3_server.endpoint) as proxy:
        for name, value in s3_server.environment(proxy.endpoint).items():
            monkeypatch.setenv(name, value)
        url = f"s3://{s3_server.bucket}/{tmp_path.name}"
        registry = Registry(Store.open(url), tmp_path / "publishing")
        for name in ("tiny", "other"):
            registry.publish(
                "voices",
                name,
                folder,
                licence=manifest.licence,
                sources=manifest.sources,
                consent=manifest.consent,
                lineage=manifest.lineage,
            )
            # Its own contents, so that a cache with the one does not have the other.
            (folder / "voice.json").write_text((folder / "voice.json").read_text() + "\n")
        yield HangingStore(url, threading.Event(), proxy, released)
        released.set()


@pytest.fixture
def machine(world: World, tmp_path: Path) -> World:
    """One with an empty cache."""
    (tmp_path / "machine").mkdir()
    return World(tmp_path / "machine", world.store)


def test_a_voice_that_does_not_come_holds_up_nobody_else_and_no_stop(
    store: HangingStore, machine: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # News of the voices would take one of the places.
    monkeypatch.setenv("VITS_POLL_SECONDS", "0")
    store.hang_at("/other/")
    with serving(machine, "--store", store.url, "--voice", "tiny", "--grace", "2") as server:

        async def ask(http: httpx.AsyncClient, voice: str) -> httpx.Response:
            return await http.post("/v1/audio/speech", json={"input": "hola", "voice": voice})

        async def scene() -> None:
            limits = httpx.Limits(max_connections=None)
            async with (
                httpx.AsyncClient(base_url=server.url, limits=limits, timeout=PATIENCE_SECONDS) as http,
                AsyncClient(f"grpc://{server.grpc_address}", timeout_seconds=PATIENCE_SECONDS) as grpc,
            ):
                over_grpc = asyncio.create_task(grpc.speak("hola", voice="other"))
                over_http = [
                    asyncio.create_task(ask(http, "other")) for _ in range(MAX_WAITING_FOR_VOICES - 1)
                ]
                await asyncio.to_thread(until, lambda: server.in_flight() == MAX_WAITING_FOR_VOICES)
                refused = await ask(http, "other")
                assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5")
                assert "wait for voices that are not loaded" in refused.json()["error"]["message"]
                with pytest.raises(OverloadedError, match="wait for voices that are not loaded") as full:
                    await grpc.speak("hola", voice="other")
                assert full.value.retry_after_seconds == 5
                store.hang_at("")
                # OpenAI's names among them, of which there may be a voice or not.
                for voice in ("tiny", "alloy"):
                    assert (await ask(http, voice)).status_code == 200

                server.process.send_signal(signal.SIGTERM)
                answers = await asyncio.gather(*over_http)
                assert {answer.json()["error"]["code"] for answer in answers} == {"stopping"}
                with pytest.raises(UnavailableError, match="stopping"):
                    await over_grpc

        asyncio.run(scene())
        assert server.process.wait(PATIENCE_SECONDS) == 0, server.log.read_text()
        log = server.log.read_text()
    assert "has not answered within the grace period" in log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    "path", ["/voice.json", ""], ids=["when the voice is loaded", "at the first question"]
)
def test_a_server_that_waits_for_its_store_can_be_stopped(
    store: HangingStore, machine: World, path: str
) -> None:
    store.hang_at(path)
    with starting(machine, "--store", store.url, "--grace", "1") as (process, log):
        until(store.asked.is_set)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
