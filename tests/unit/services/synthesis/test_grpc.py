"""The gRPC transport, over a real server and channel on loopback."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import soundfile
from google.protobuf.message import DecodeError
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from services.synthesis import grpc as transport
from services.synthesis.grpc.requests import FORMATS, parse
from services.synthesis.speaker import Speaker
from shared.errors import RequestError, UserError
from shared.protos.vits.synthesis.v1 import synthesis_pb2 as pb
from shared.protos.vits.synthesis.v1.synthesis_pb2_grpc import SynthesisServiceStub

if TYPE_CHECKING:
    from tests.unit.services.synthesis.conftest import MakeSpeaker, Opener

Scene = Callable[[grpc.aio.Channel, transport.GrpcServer], Awaitable[Any]]


def on_server(speaker: Speaker, scene: Scene) -> Any:
    """Play a scene against a running server."""

    async def play() -> Any:
        server = transport.GrpcServer(speaker, host="127.0.0.1", port=0)
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                return await scene(channel, server)
        finally:
            await server.stop(grace_seconds=1)

    return asyncio.run(play())


def call(to: Speaker, /, **fields: Any) -> pb.SynthesizeResponse:
    async def scene(channel: grpc.aio.Channel, _: transport.GrpcServer) -> Any:
        return await SynthesisServiceStub(channel).Synthesize(pb.SynthesizeRequest(**fields))

    response = on_server(to, scene)
    assert isinstance(response, pb.SynthesizeResponse)
    return response


def test_synthesize(speaker: Speaker) -> None:
    response = call(speaker, text="Hola 你", seed=7)
    samples, rate = soundfile.read(io.BytesIO(response.audio), dtype="int16")
    assert response.audio_format == pb.AUDIO_FORMAT_WAV
    assert (response.sampling_rate, rate) == (16000, 16000)
    assert response.seed == 7
    assert response.voice == "ana"
    assert response.voice_version
    assert response.duration_seconds == len(samples) / 16000
    assert list(response.unknown) == ["你"]
    pcm = call(speaker, text="Hola 你", seed=7, audio_format=pb.AUDIO_FORMAT_PCM)
    assert pcm.audio == samples.tobytes()


@pytest.mark.parametrize("file", ["manifest.json", "voice.json"])
def test_a_damaged_voice_hides_no_other(speaker: Speaker, tmp_path: Path, file: str) -> None:
    from services.synthesis.http import make_app

    damaged = next((tmp_path / "store/voices/luis").glob(f"*/{file}"))
    damaged.write_bytes(damaged.read_bytes()[:-9])
    app = make_app()
    app.state.speaker = speaker
    with TestClient(app) as http:
        assert [voice["name"] for voice in http.get("/v1/audio/voices").json()["voices"]] == ["ana"]
        assert http.get("/v1/audio/voices/ana").json()["name"] == "ana"
        assert http.get("/v1/audio/voices/luis").json()["error"]["code"] == "voice_unusable"
        assert "ana" in {model["id"] for model in http.get("/v1/models").json()["data"]}

    async def scene(channel: grpc.aio.Channel, _: transport.GrpcServer) -> Any:
        return await SynthesisServiceStub(channel).ListVoices(pb.ListVoicesRequest())

    assert [voice.name for voice in on_server(speaker, scene).voices] == ["ana"]


def test_a_voice_that_is_deleted_while_they_are_listed_hides_no_other(
    speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = speaker.shelf.registry
    monkeypatch.setattr(registry, "names", lambda _: ["ana", "gone", "luis"])
    assert [version.name for version in asyncio.run(speaker.voices())] == ["ana", "luis"]


def test_both_transports_give_the_same_samples(speaker: Speaker) -> None:
    from services.synthesis.http import make_app

    app = make_app()
    app.state.speaker = speaker
    shared_fields: dict[str, Any] = {
        "speaker": "2",
        "seed": 0,
        "noise_scale": 0.0,
        "noise_scale_duration": 0.5,
    }
    body = {"input": "uno dos", "speed": 0.5, "response_format": "pcm", **shared_fields}
    over_http = TestClient(app).post("/v1/audio/speech", json=body)
    over_grpc = call(
        speaker, text="uno dos", speaking_rate=0.5, audio_format=pb.AUDIO_FORMAT_PCM, **shared_fields
    )
    assert over_http.status_code == 200
    assert over_grpc.audio == over_http.content


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, StatusCode.INVALID_ARGUMENT),
        ({"text": "x" * 4097}, StatusCode.INVALID_ARGUMENT),
        ({"text": "x", "seed": 2**60}, StatusCode.INVALID_ARGUMENT),
        ({"text": "x", "speaking_rate": float("nan")}, StatusCode.INVALID_ARGUMENT),
        ({"text": "x", "audio_format": 9}, StatusCode.INVALID_ARGUMENT),
        ({"text": "x", "voice": "../secret"}, StatusCode.INVALID_ARGUMENT),
        ({"text": "mute"}, StatusCode.INVALID_ARGUMENT),
        ({"text": "x", "language": "klingon"}, StatusCode.INVALID_ARGUMENT),
        ({"text": "x", "voice": "nobody"}, StatusCode.NOT_FOUND),
        ({"text": "break"}, StatusCode.INTERNAL),
        ({"text": "bug"}, StatusCode.INTERNAL),
    ],
)
def test_bad_calls(speaker: Speaker, fields: dict[str, Any], status: StatusCode) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        call(speaker, **fields)
    assert caught.value.code() == status
    message = caught.value.details()
    assert message
    assert "/secret/path" not in message
    labels = {"door": "grpc", "code": status.name}
    assert speaker.metrics.registry.get_sample_value("vits_responses_total", labels) == 1


def test_everything_wrong_is_said_at_once() -> None:
    request = pb.SynthesizeRequest(
        speaking_rate=0,
        noise_scale=-1,
        noise_scale_duration=3,
        seed=2**53,
        audio_format=7,  # type: ignore[arg-type]
    )
    with pytest.raises(RequestError) as caught:
        parse(request)
    fields = [line.partition(":")[0] for line in str(caught.value).split("\n")]
    assert fields == ["text", "audio_format", "seed", "speaking_rate", "noise_scale", "noise_scale_duration"]


@given(data=st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_a_request_of_any_bytes_is_an_order_or_a_message(data: bytes) -> None:
    try:
        request = pb.SynthesizeRequest.FromString(data)
    except DecodeError:  # gRPC itself answers these
        return
    with suppress(RequestError):
        assert parse(request).order.text


def test_overload(make_speaker: MakeSpeaker) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        call(make_speaker(default="ana", max_in_flight=0), text="uno")
    assert caught.value.code() == StatusCode.RESOURCE_EXHAUSTED


def test_a_deadline_that_passes_in_the_queue_costs_nothing(make_speaker: MakeSpeaker, opener: Opener) -> None:
    speaker = make_speaker(default="ana", workers=1)

    async def scene(channel: grpc.aio.Channel, _: transport.GrpcServer) -> None:
        await speaker.warm()
        voice = opener.opened[0]
        voice.gate.clear()
        stub = SynthesisServiceStub(channel)
        first = asyncio.ensure_future(stub.Synthesize(pb.SynthesizeRequest(text="first")))
        while "first" not in voice.calls:
            await asyncio.sleep(0.001)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Synthesize(pb.SynthesizeRequest(text="late"), timeout=0.05)
        assert caught.value.code() == StatusCode.DEADLINE_EXCEEDED
        while not any(
            speaker.metrics.registry.get_sample_value("vits_responses_total", {"door": "grpc", "code": code})
            for code in ("CANCELLED", "DEADLINE_EXCEEDED")
        ):
            await asyncio.sleep(0.001)
        voice.gate.set()
        await first
        await stub.Synthesize(pb.SynthesizeRequest(text="last"))
        assert voice.calls[1:] == ["first", "last"]

    on_server(speaker, scene)


def test_health_follows_readiness(speaker: Speaker) -> None:
    async def scene(channel: grpc.aio.Channel, server: transport.GrpcServer) -> None:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "vits.synthesis.v1.SynthesisService"):
            request = health_pb2.HealthCheckRequest(service=service)
            assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await server.serving()
        assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.SERVING

    on_server(speaker, scene)


def test_reflection_lists_the_service(speaker: Speaker) -> None:
    async def scene(_: grpc.aio.Channel, server: transport.GrpcServer) -> list[str]:
        def ask() -> list[str]:
            with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                return list(ProtoReflectionDescriptorDatabase(channel).get_services())

        return await asyncio.to_thread(ask)

    assert "vits.synthesis.v1.SynthesisService" in on_server(speaker, scene)


def test_a_port_in_use_is_said(speaker: Speaker) -> None:
    async def scene(_: grpc.aio.Channel, server: transport.GrpcServer) -> None:
        second = transport.GrpcServer(speaker, host="127.0.0.1", port=server.port)
        with pytest.raises(UserError, match=r"the port is taken.*--grpc-port"):
            await second.start()

    on_server(speaker, scene)


def test_running_calls_finish_when_the_server_stops(make_speaker: MakeSpeaker, opener: Opener) -> None:
    speaker = make_speaker(default="ana")

    async def scene(channel: grpc.aio.Channel, server: transport.GrpcServer) -> None:
        await speaker.warm()
        voice = opener.opened[0]
        voice.gate.clear()
        running = asyncio.ensure_future(
            SynthesisServiceStub(channel).Synthesize(pb.SynthesizeRequest(text="running"))
        )
        while "running" not in voice.calls:
            await asyncio.sleep(0.001)
        stopping = asyncio.create_task(server.stop(grace_seconds=10))
        await asyncio.sleep(0.01)
        voice.gate.set()
        assert (await running).audio
        await stopping

    on_server(speaker, scene)


def test_the_table_of_formats_is_complete() -> None:
    known = set(pb.AudioFormat.values()) - {pb.AUDIO_FORMAT_UNSPECIFIED}
    assert known == set(FORMATS)
