"""An alias that moves while a real server speaks: nobody is dropped, and answers sound as the versions they name."""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from shared.protos.vits.synthesis.v1 import synthesis_pb2 as pb
from shared.protos.vits.synthesis.v1.synthesis_pb2_grpc import SynthesisServiceStub
from shared.registry import Registry
from shared.store import Store
from tests.integration.served import PATIENCE_SECONDS, Server, World, serving

TEXT = "Hola, ¿cómo estás? Hoy es un buen día."
LONG = "Hoy es un buen día para salir a pasear. " * 30


@pytest.fixture
def registry(world: World, tmp_path: Path) -> Registry:
    """A store of one's own, with a second version of the tiny voice, which speaks at half the rate."""
    store = shutil.copytree(world.store, tmp_path / "store")
    registry = Registry(Store.open(str(store)), tmp_path / "cache")
    first = registry.resolve("voices", "tiny")
    registry.move_alias("voices", "tiny", "production", first.id)
    folder = shutil.copytree(registry.fetch(first), tmp_path / "voice")
    spec = (folder / "voice.json").read_text()
    assert '"speaking_rate": 1.0' in spec
    (folder / "voice.json").write_text(spec.replace('"speaking_rate": 1.0', '"speaking_rate": 0.5'))
    manifest = first.manifest
    registry.publish(
        "voices",
        "tiny",
        folder,
        licence=manifest.licence,
        sources=manifest.sources,
        consent=manifest.consent,
        lineage=manifest.lineage,
    )
    return registry


def over_http(server: Server, text: str, voice: str = "") -> tuple[str, bytes]:
    """The version that spoke, and its samples."""
    body = {"input": text, "voice": voice, "seed": 7, "response_format": "pcm"}
    answer = httpx.post(f"{server.url}/v1/audio/speech", json=body, timeout=PATIENCE_SECONDS)
    assert answer.status_code == 200, answer.text
    return answer.headers["X-Vits-Voice"].removeprefix("tiny/"), answer.content


def over_grpc(stub: Any, text: str) -> tuple[str, bytes]:
    request = pb.SynthesizeRequest(text=text, seed=7, audio_format=pb.AUDIO_FORMAT_PCM)
    answer = stub.Synthesize(request, timeout=PATIENCE_SECONDS)
    return answer.voice_version, answer.audio


def test_an_alias_that_moves_under_load(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITS_POLL_SECONDS", "1")
    monkeypatch.setenv("VITS_BUFFER_SECONDS", "1")
    first, second = registry.versions("voices", "tiny")
    machine = World(tmp_path, tmp_path / "store")
    moved = threading.Event()
    with (
        serving(machine, "--voice", "tiny@production") as server,
        grpc.insecure_channel(server.grpc_address) as channel,
        ThreadPoolExecutor(4) as pool,
    ):
        stub = SynthesisServiceStub(channel)

        def ask_until_moved(over: Any, door: Any) -> list[tuple[str, bytes]]:
            heard: list[tuple[str, bytes]] = []
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not (moved.is_set() and heard[-1][0] == second):
                assert time.monotonic() < deadline
                heard.append(over(door, TEXT))
            return heard

        request = pb.SynthesizeRequest(text=LONG, seed=7)
        stream = stub.SynthesizeStream(pb.SynthesizeStreamRequest(request=request), timeout=PATIENCE_SECONDS)
        speaking: list[Any] = [next(stream).start.voice_version]
        crowd = [
            pool.submit(ask_until_moved, over, door)
            for over, door in ((over_http, server), (over_grpc, stub)) * 2
        ]
        registry.move_alias("voices", "tiny", "production", second)
        moved.set()
        heard = [answer for asking in crowd for answer in asking.result()]
        # Begun before, and read only now: what is not made ahead is made by a version that has been replaced.
        speaking.append(b"".join(message.chunk.audio for message in stream))
        alone = {
            (version, text): over_http(server, text, f"tiny/{version}")[1]
            for version in (first, second)
            for text in (TEXT, LONG)
        }
        log = server.log.read_text()
    assert speaking == [first, alone[first, LONG]]
    assert {version for version, _ in heard} == {first, second}
    for version, audio in heard:
        assert audio == alone[version, TEXT]
    assert len({*alone.values()}) == 4
    assert "Traceback" not in log
