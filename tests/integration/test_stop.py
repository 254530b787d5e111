"""A real server that is stopped while it speaks: what runs is finished, or told when the grace period is over."""

from __future__ import annotations

import base64
import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from shared.protos.vits.synthesis.v1 import synthesis_pb2 as pb
from shared.protos.vits.synthesis.v1.synthesis_pb2_grpc import SynthesisServiceStub
from tests.integration.served import PATIENCE_SECONDS, Server, World, serving, until

SPEECH = "/v1/audio/speech"
#: Eight minutes of audio; ten are the most that one may have.
TEXT = "Hoy es un buen día para salir a pasear. " * 50

#: Everybody who comes, on the slowest machine.
ADMITTING = ("--max-backlog", "600")
#: Whole audio of this length is longer than what gRPC's clients take unasked.
WHOLE = [("grpc.max_receive_message_length", -1)]


def body(**fields: Any) -> dict[str, Any]:
    return {"input": TEXT, "seed": 7, "response_format": "pcm", **fields}


def request(**fields: Any) -> pb.SynthesizeRequest:
    return pb.SynthesizeRequest(text=TEXT, seed=7, audio_format=pb.AUDIO_FORMAT_PCM, **fields)


def test_what_runs_is_finished_at_both_doors(world: World, tmp_path: Path) -> None:
    with (
        serving(World(tmp_path, world.store), *ADMITTING) as server,
        grpc.insecure_channel(server.grpc_address, WHOLE) as channel,
        ThreadPoolExecutor(4) as pool,
    ):
        stub = SynthesisServiceStub(channel)

        def over_http() -> bytes:
            answer = httpx.post(server.url + SPEECH, json=body(), timeout=PATIENCE_SECONDS)
            return answer.raise_for_status().content

        def as_json() -> bytes:
            """Of which not even the head is sent before the end."""
            answer = httpx.post(
                server.url + SPEECH, json=body(stream_format="json"), timeout=PATIENCE_SECONDS
            )
            return base64.b64decode(answer.json()["audio"])

        def over_grpc() -> bytes:
            answer: bytes = stub.Synthesize(request(), timeout=PATIENCE_SECONDS).audio
            return answer

        def streamed() -> bytes:
            wanted = pb.SynthesizeStreamRequest(request=request())
            return b"".join(
                message.chunk.audio for message in stub.SynthesizeStream(wanted, timeout=PATIENCE_SECONDS)
            )

        expected = over_http()
        running = [pool.submit(ask) for ask in (over_http, as_json, over_grpc, streamed)]
        until(lambda: server.in_flight() == len(running))
        assert server.stop() == 0, server.log.read_text()
        assert [answer.result() == expected for answer in running] == [True] * len(running)
        assert "Traceback" not in server.log.read_text()


def slowly(server: Server, pieces: Iterator[Any]) -> Iterator[Any]:
    """Read what a server sends slower than it is made, until the server has gone."""
    for piece in pieces:
        yield piece
        if server.process.poll() is None:
            time.sleep(0.02)


def test_who_is_still_spoken_to_when_the_grace_period_is_over_is_told(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITS_BUFFER_SECONDS", "1")
    with (
        serving(World(tmp_path, world.store), *ADMITTING, "--grace", "2") as server,
        grpc.insecure_channel(server.grpc_address, WHOLE) as channel,
        httpx.Client(base_url=server.url, timeout=PATIENCE_SECONDS) as http,
        ThreadPoolExecutor(5) as pool,
    ):
        stub = SynthesisServiceStub(channel)

        def bare() -> str:
            """Its end is missing: there is no other way to tell."""
            with (
                pytest.raises(httpx.RemoteProtocolError, match="incomplete"),
                http.stream("POST", SPEECH, json=body(sampling_rate=48000)) as answer,
            ):
                list(slowly(server, answer.iter_bytes(16384)))
            return "stopping"

        def events() -> str:
            with http.stream("POST", SPEECH, json=body(sampling_rate=48000, stream_format="sse")) as answer:
                *_, last = (line for line in slowly(server, answer.iter_lines()) if line)
            return str(json.loads(last.removeprefix("data: "))["error"]["code"])

        def lines() -> str:
            texts = {"inputs": [TEXT] * 200, "response_format": "pcm"}
            with http.stream("POST", f"{SPEECH}/batch", json=texts) as answer:
                *_, last = answer.iter_lines()
            return str(json.loads(last)["error"]["code"])

        def streamed() -> str:
            wanted = pb.SynthesizeStreamRequest(request=request(sampling_rate=48000))
            stream = stub.SynthesizeStream(wanted, timeout=PATIENCE_SECONDS)
            with pytest.raises(grpc.RpcError) as ended:
                list(slowly(server, stream))
            return reason_of(ended.value)

        def batch() -> str:
            """Each as it is done: what was running may be the last."""
            wanted = pb.SynthesizeBatchRequest(requests=[request()] * 200)
            results = list(stub.SynthesizeBatch(wanted, timeout=PATIENCE_SECONDS))
            assert len(results) == len(wanted.requests)
            (reason,) = {result.failure.reason for result in results if result.HasField("failure")}
            return str(reason).lower()

        def reason_of(error: Any) -> str:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error
            return "stopping" if "stopping" in error.details() else str(error)

        asks: list[Callable[[], str]] = [bare, events, lines, streamed, batch]
        running = [pool.submit(ask) for ask in asks]
        until(lambda: server.in_flight() >= len(asks))
        server.process.send_signal(signal.SIGTERM)
        assert [answer.result() for answer in running] == ["stopping"] * len(asks)
        assert server.process.wait(PATIENCE_SECONDS) == 0
        assert server.log.read_text().endswith("stopped\n")
