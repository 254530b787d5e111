"""What clients get wrong, on purpose or not: every call ends with a status that is theirs, and a message."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given, settings
from hypothesis import strategies as st

from services.synthesis.access import Access
from services.synthesis.grpc import ERRORS, Tls
from services.synthesis.grpc import server as grpc_server
from services.synthesis.grpc.errors import DETAILS_KEY, MAX_MESSAGE_BYTES, InvalidError, describe
from services.synthesis.grpc.incremental import MAX_UNANSWERED, MAX_WAITING_CHARACTERS
from services.synthesis.grpc.requests import parse
from services.synthesis.grpc.server import MAX_REQUEST_BYTES
from services.synthesis.grpc.servicer import Call
from shared.errors import ConfigError, DeadlineError, OverloadedError, ProblemsError, VitsError
from shared.protos.vits.synthesis.v1 import synthesis_pb2 as pb
from shared.protos.vits.synthesis.v1.synthesis_pb2_grpc import SynthesisServiceStub
from vits_client import Client, UnavailableError

if TYPE_CHECKING:
    from tests.unit.services.synthesis.grpc.conftest import Running, ScriptedSpeaker, Serve

SERVICE = "/vits.synthesis.v1.SynthesisService"

BOMB = (
    '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>'
    "<speak>&c;</speak>"
)

NASTY = [
    "",
    " ",
    "\x00",
    "\x01\x02\x1b[31m\x7f",
    "\ufeff\u200b\u2060",
    "😀",
    "👩‍👩‍👧‍👦 hola",
    "‮שלום‬ مرحبا",
    "a\u0301" * 2000,
    "e" + "\u0301" * 4000,
    "\uffff\U0010ffff\ue000",
    "1" * 4096,
    "𝕳𝖔𝖑𝖆",
    "<speak>",
    "<speak>&x;</speak>",
    BOMB,
    "<speak>" * 500,
    "%s%n {} \\ ' \" `",
    "x" * 4097,
    "💥" * 1_000_000,
    "x" * 1_000_000,
]

#: A client's own fault, or the outcome that it asked for.
FAIR = {
    StatusCode.OK,
    StatusCode.INVALID_ARGUMENT,
    StatusCode.NOT_FOUND,
    StatusCode.RESOURCE_EXHAUSTED,
    StatusCode.UNIMPLEMENTED,
}


@pytest.fixture
def channel(server: Running) -> Iterator[Any]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def outcome(call: Callable[[], Any]) -> tuple[StatusCode, str]:
    try:
        call()
    except grpc.RpcError as error:
        ended: Any = error
        return ended.code(), ended.details()
    return StatusCode.OK, "-"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("ssml", [False, True])
@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_nasty_texts(channel: Any, text: str, ssml: bool) -> None:
    stub = SynthesisServiceStub(channel)
    request = pb.SynthesizeRequest(text=text, ssml=ssml)
    in_pieces = [
        pb.SynthesizeIncrementalRequest(start=pb.SynthesizeRequest()),
        pb.SynthesizeIncrementalRequest(text=text),
    ]
    for call in (
        lambda: stub.Synthesize(request, timeout=20),
        lambda: list(stub.SynthesizeStream(pb.SynthesizeStreamRequest(request=request), timeout=20)),
        lambda: list(stub.SynthesizeIncremental(iter(in_pieces), timeout=20)),
        lambda: list(stub.SynthesizeBatch(pb.SynthesizeBatchRequest(requests=[request]), timeout=20)),
        lambda: stub.Synthesize(
            pb.SynthesizeRequest(text="uno", voice=text[:3000], speaker=text[:3000]), timeout=20
        ),
    ):
        status, message = outcome(call)
        assert status in FAIR, message
        assert message


@pytest.mark.parametrize(
    "method", ["Synthesize", "SynthesizeStream", "SynthesizeBatch", "ListVoices", "Sing"]
)
@pytest.mark.parametrize("content", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xed\xa0"])
def test_bytes_that_are_no_message(channel: Any, method: str, content: bytes) -> None:
    status, message = outcome(lambda: list(channel.unary_stream(f"{SERVICE}/{method}")(content, timeout=10)))
    assert status in FAIR
    assert message
    # For a method without fields, the last is an unknown field of a newer version.
    assert status is not StatusCode.OK or (method == "ListVoices" and content == b"\x0a\x02\xed\xa0")


def test_bytes_that_are_no_message_in_a_conversation(channel: Any) -> None:
    call = channel.stream_stream(f"{SERVICE}/SynthesizeIncremental")
    start = pb.SynthesizeIncrementalRequest(start=pb.SynthesizeRequest()).SerializeToString()
    for messages in ([], [b"\xff"], [start, b"\xff"], [b""], [start, b""], [start, start]):
        status, message = outcome(lambda sent=messages: list(call(iter(sent), timeout=10)))  # type: ignore[misc]
        assert status is StatusCode.INVALID_ARGUMENT
        assert message


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_any_message_is_an_order_or_says_what_is_wrong(data: st.DataObject) -> None:
    number = st.floats(allow_nan=True)
    fields: dict[str, Any] = {
        "text": st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
        "voice": st.text(st.characters(exclude_categories=["Cs"]), max_size=250),
        "speaker": st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        "seed": st.integers(0, 2**64 - 1),
        "speaking_rate": number,
        "noise_scale": number,
        "noise_scale_duration": number,
        "audio_format": st.integers(-(2**31), 2**31 - 1) | st.integers(0, 8),
        "language": st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
        "ssml": st.booleans(),
        "priority": st.integers(-1, 4),
        "sampling_rate": st.integers(0, 2**32 - 1) | st.sampled_from([0, 8000, 24000, 44100]),
        "timestamps": st.integers(-1, 4),
    }
    chosen = data.draw(st.fixed_dictionaries({}, optional=fields))
    request = pb.SynthesizeRequest(**chosen)
    try:
        wanted = parse(request)
    except InvalidError as error:
        wrong = error
    else:
        assert wanted.order.text == request.text != ""
        assert 0.25 <= wanted.order.speaking_rate <= 4
        return
    assert all(field in fields and problem for field, problem in wrong.violations)
    status = describe(wrong, "x")
    assert len(status.message.encode()) <= MAX_MESSAGE_BYTES
    assert len(status.SerializeToString()) < 6000


@given(data=st.binary(max_size=80))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_no_message_or_one_that_is_answered(data: bytes) -> None:
    try:
        request = pb.SynthesizeRequest.FromString(data)
    except DecodeError:
        return
    with suppress(InvalidError):
        assert parse(request).order.text


def test_a_message_that_is_too_long(channel: Any) -> None:
    request = pb.SynthesizeRequest(text="x" * (MAX_REQUEST_BYTES + 1))
    status, message = outcome(lambda: SynthesisServiceStub(channel).Synthesize(request, timeout=20))
    assert status is StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in message
    assert str(MAX_REQUEST_BYTES) in message


def test_too_much_text_at_once_in_pieces(channel: Any, speaker: ScriptedSpeaker) -> None:
    def messages() -> Iterator[pb.SynthesizeIncrementalRequest]:
        yield pb.SynthesizeIncrementalRequest(start=pb.SynthesizeRequest())
        for _ in range(2 + MAX_WAITING_CHARACTERS // 3000):
            yield pb.SynthesizeIncrementalRequest(text="ever. " * 666)

    status, message = outcome(
        lambda: list(SynthesisServiceStub(channel).SynthesizeIncremental(messages(), timeout=20))
    )
    assert status is StatusCode.RESOURCE_EXHAUSTED
    assert "Send them as the audio comes" in message
    wait_until(lambda: all(one.left for one in speaker.spoken))


def test_flushes_that_nobody_could_answer_are_refused(channel: Any, speaker: ScriptedSpeaker) -> None:
    def messages() -> Iterator[pb.SynthesizeIncrementalRequest]:
        yield pb.SynthesizeIncrementalRequest(start=pb.SynthesizeRequest(text="ever. "))
        for _ in range(MAX_UNANSWERED + 1):
            yield pb.SynthesizeIncrementalRequest(flush=pb.Flush())

    status, message = outcome(
        lambda: list(SynthesisServiceStub(channel).SynthesizeIncremental(messages(), timeout=20))
    )
    assert status is StatusCode.RESOURCE_EXHAUSTED
    assert "wait for their answers" in message
    wait_until(lambda: speaker.spoken[0].left)


@pytest.mark.parametrize("error", [kind for kind in ERRORS if kind not in {VitsError}])
def test_details_of_every_class(error: type[VitsError]) -> None:
    made: VitsError
    if issubclass(error, OverloadedError):
        made = error("later", retry_after_seconds=1.5)
    elif error.__init__ is VitsError.__init__:
        made = error("😀" * 5000)
    else:
        made = error("what", ["a", "b"]) if issubclass(error, ProblemsError) else error("what")
    status = describe(made, "some-id")
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (ERRORS[error].reason, "vits.synthesis.v1")
    assert status.message
    assert len(status.SerializeToString()) < 4000


def test_rich_details_arrive(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        SynthesisServiceStub(channel).Synthesize(
            pb.SynthesizeRequest(text="***"), metadata=(("x-request-id", "mine"),)
        )
    ended: Any = caught.value
    metadata = dict(ended.trailing_metadata())
    assert metadata["x-request-id"] == "mine"
    status = status_pb2.Status.FromString(metadata[DETAILS_KEY])
    assert [detail.TypeName() for detail in status.details] == [
        "google.rpc.ErrorInfo",
        "google.rpc.RequestInfo",
        "google.rpc.BadRequest",
    ]
    assert status.message == ended.details()


@pytest.mark.parametrize("request_id", ["", "two words", "x" * 129])
def test_request_ids_that_are_not_taken(server: Running, speaker: ScriptedSpeaker, request_id: str) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = SynthesisServiceStub(channel)
        _, call = stub.Synthesize.with_call(
            pb.SynthesizeRequest(text="uno"), metadata=(("x-request-id", request_id),)
        )
    assert speaker.spoken[-1].order.request_id == dict(call.trailing_metadata())["x-request-id"]
    assert len(speaker.spoken[-1].order.request_id) == 32


def test_an_error_longer_than_metadata_may_be(channel: Any) -> None:
    status, message = outcome(
        lambda: SynthesisServiceStub(channel).Synthesize(pb.SynthesizeRequest(text="💥" * 4000), timeout=20)
    )
    assert status is StatusCode.INVALID_ARGUMENT
    assert "💥" in message


@pytest.mark.parametrize("remaining", [0.0, -1.0])
def test_a_deadline_that_has_passed_costs_nothing(remaining: float) -> None:
    context = SimpleNamespace(time_remaining=lambda: remaining)
    call = Call(context, Access().check(None), "id", max_audio_seconds=600, patience_seconds=60)
    with pytest.raises(DeadlineError, match="before anything was spoken"):
        call.order(parse(pb.SynthesizeRequest(text="uno")))


@pytest.mark.parametrize("method", ["stream", "pieces", "whole"])
def test_a_client_that_vanishes_stops_costing(server: Running, speaker: ScriptedSpeaker, method: str) -> None:
    channel = grpc.insecure_channel(server.address)
    stub = SynthesisServiceStub(channel)
    request = pb.SynthesizeRequest(text="uno ever")
    if method == "stream":
        call: Any = stub.SynthesizeStream(pb.SynthesizeStreamRequest(request=request))
        next(call)
    elif method == "pieces":
        hold = threading.Event()

        def messages() -> Iterator[pb.SynthesizeIncrementalRequest]:
            yield pb.SynthesizeIncrementalRequest(start=request)
            yield pb.SynthesizeIncrementalRequest(flush=pb.Flush())
            hold.wait(10)

        call = stub.SynthesizeIncremental(messages())
        next(call)
        hold.set()
    else:
        call = stub.Synthesize.future(request)
    wait_until(lambda: bool(speaker.spoken) and speaker.spoken[0].made == 1)
    channel.close()
    wait_until(lambda: speaker.code("CANCELLED") == 1)
    wait_until(lambda: speaker.spoken[0].left)
    assert speaker.spoken[0].made == 1
    del call


def test_a_slow_reader_is_waited_for(channel: Any, speaker: ScriptedSpeaker) -> None:
    """What the connection holds is some MB at most; this is 6.4 MB."""
    request = pb.SynthesizeRequest(text="a " * 2000)
    stream = SynthesisServiceStub(channel).SynthesizeStream(pb.SynthesizeStreamRequest(request=request))
    next(stream)
    made = [-1, 0]
    while made[-1] != made[-2]:
        time.sleep(0.3)
        made.append(speaker.spoken[0].made)
    assert made[-1] < 2000
    assert sum(len(message.chunk.audio) for message in stream) == 2000 * 3200


@pytest.mark.parametrize("method", ["stream", "pieces", "batch"])
def test_a_reader_who_stops_is_given_up(serve: Serve, speaker: ScriptedSpeaker, method: str) -> None:
    request = pb.SynthesizeRequest(text="a " * 2000)
    with serve(patience_seconds=0.3) as server, grpc.insecure_channel(server.address) as channel:
        stub = SynthesisServiceStub(channel)
        call: Any
        if method == "stream":
            call = stub.SynthesizeStream(pb.SynthesizeStreamRequest(request=request))
        elif method == "pieces":
            call = stub.SynthesizeIncremental(iter([pb.SynthesizeIncrementalRequest(start=request)]))
        else:
            short = pb.SynthesizeRequest(text="a " * 100)
            call = stub.SynthesizeBatch(pb.SynthesizeBatchRequest(requests=[short] * 200))
        next(call)
        wait_until(lambda: speaker.code("ABORTED") == 1)
        assert all(one.left for one in speaker.spoken)
        server.run(server.server._servicer.finished())
        # Who reads after all is told.
        with pytest.raises(grpc.RpcError) as given_up:
            list(call)
        assert given_up.value.code() is StatusCode.ABORTED
        assert "Nothing was read for 0.3 s" in (given_up.value.details() or "")


def test_stopping_finishes_what_runs_and_ends_what_listens(server: Running, speaker: ScriptedSpeaker) -> None:
    with Client(server.url) as client, grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watched = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        stream = client.stream("uno wait tres")
        talk = client.converse()
        talk.send("Hola. Y")
        wait_until(lambda: len(speaker.spoken) == 2)
        stopping = asyncio.run_coroutine_threadsafe(server.server.stop(20), server.loop)
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(UnavailableError, match="about to stop; what had been sent was spoken"):
            list(talk)
        with pytest.raises(UnavailableError):
            client.speak("uno")
        speaker.gate.set()
        assert len(b"".join(stream)) == 3 * 3200
        begun = time.monotonic()
        stopping.result(10)
        assert time.monotonic() - begun < 10, "a health watch must not hold up the stop"
    assert [one.order.text for one in speaker.spoken] == ["uno wait tres", "Hola.", "Y"]


def test_a_batch_that_waits_when_the_server_stops_is_told_at_once(
    server: Running, channel: Any, speaker: ScriptedSpeaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not when it would have asked again, which may be after the grace period."""
    refused = threading.Event()

    async def start(_: object) -> None:
        refused.set()
        raise OverloadedError("busy", retry_after_seconds=3600)

    monkeypatch.setattr("services.synthesis.grpc.servicer.MAX_BATCH_WAIT_SECONDS", 3600)
    monkeypatch.setattr(speaker, "start", start)
    wanted = pb.SynthesizeBatchRequest(requests=[pb.SynthesizeRequest(text="uno")])
    results = SynthesisServiceStub(channel).SynthesizeBatch(wanted, timeout=20)
    assert refused.wait(10)
    server.run(server.server.stop(2))
    assert [result.failure.reason for result in results] == ["STOPPING"]


def test_the_grace_period_ends(server: Running, speaker: ScriptedSpeaker) -> None:
    with Client(server.url) as client:
        stream = client.stream("uno ever")
        server.run(server.server.stop(0.2))
        with pytest.raises(Exception, match=r".") as caught:
            list(stream)
        assert type(caught.value).__name__ in {"StoppedError", "UnavailableError"}
    wait_until(lambda: speaker.spoken[0].left)


# TLS.


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server and a client that it signed, and a stranger who signed his own."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    for name in ("authority", "stranger"):
        openssl(*new, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    for name in ("server", "client"):
        openssl(
            *new, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}",
            "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-addext", "basicConstraints=critical,CA:FALSE",
            "-CA", "authority.pem", "-CAkey", "authority.key",
        )  # fmt: skip
    return folder


def secure(server: Running) -> str:
    return f"grpcs://localhost:{server.server.port}"


def test_connections_are_renewed_and_no_call_notices(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a client leaves a server that load balancers do not offer any more, before that stops."""
    young = dict(grpc_server.OPTIONS) | {"grpc.max_connection_age_ms": 200}
    monkeypatch.setattr(grpc_server, "OPTIONS", tuple(young.items()))
    opened = []
    with serve() as running, grpc.insecure_channel(running.address) as channel:
        channel.subscribe(
            lambda state: opened.append(state) if state == grpc.ChannelConnectivity.READY else None
        )
        stub = SynthesisServiceStub(channel)
        deadline = time.monotonic() + 30
        while len(opened) < 3 and time.monotonic() < deadline:
            assert stub.Synthesize(pb.SynthesizeRequest(text="uno"), timeout=10).audio
        # One that is being spoken when its connection is called old ends as it should.
        assert stub.Synthesize(pb.SynthesizeRequest(text="uno " * 400), timeout=20).audio
    assert len(opened) >= 3


def test_tls(serve: Serve, certificates: Path) -> None:
    tls = Tls.from_settings(str(certificates / "server.pem"), str(certificates / "server.key"), "")
    with serve(tls=tls) as server:
        with Client(secure(server), root_certificates=certificates / "authority.pem") as client:
            assert client.speak("uno").audio
        with Client(server.url, timeout_seconds=5) as plain, pytest.raises(UnavailableError):
            plain.speak("uno")
        with (
            Client(
                secure(server), root_certificates=certificates / "stranger.pem", timeout_seconds=5
            ) as other,
            pytest.raises(UnavailableError),
        ):
            other.speak("uno")


def test_mtls_refuses_strangers(serve: Serve, speaker: ScriptedSpeaker, certificates: Path) -> None:
    tls = Tls(
        certificates / "server.pem", certificates / "server.key", client_ca=certificates / "authority.pem"
    )
    with serve(tls=tls) as server:
        for name in ("stranger", None):
            files = {
                "certificate": certificates / f"{name}.pem" if name else None,
                "key": certificates / f"{name}.key" if name else None,
            }
            with (
                Client(
                    secure(server),
                    root_certificates=certificates / "authority.pem",
                    timeout_seconds=5,
                    **files,  # type: ignore[arg-type]
                ) as stranger,
                pytest.raises(UnavailableError),
            ):
                stranger.speak("uno")
        assert speaker.spoken == []
        with Client(
            secure(server),
            root_certificates=certificates / "authority.pem",
            certificate=certificates / "client.pem",
            key=certificates / "client.key",
        ) as friend:
            assert friend.speak("uno").audio


def test_certificates_are_read_again(serve: Serve, certificates: Path, tmp_path: Path) -> None:
    def install(name: str) -> None:
        for ending in ("pem", "key"):
            (tmp_path / f"tls.{ending}").write_bytes((certificates / f"{name}.{ending}").read_bytes())

    def trusted(name: str) -> bool:
        with Client(
            secure(server), root_certificates=certificates / f"{name}.pem", timeout_seconds=2
        ) as client:
            try:
                return bool(client.voices())
            except UnavailableError:
                return False

    install("server")
    with serve(tls=Tls(tmp_path / "tls.pem", tmp_path / "tls.key")) as server:
        assert trusted("authority")
        (tmp_path / "tls.pem").write_text("rubbish")
        assert trusted("authority"), "the old certificate stays"


def test_files_that_are_no_certificates(certificates: Path, tmp_path: Path) -> None:
    (tmp_path / "rubbish").write_text("rubbish")
    rubbish, good = str(tmp_path / "rubbish"), certificates
    with pytest.raises(ConfigError) as caught:
        Tls.from_settings(rubbish, str(good / "server.key"), rubbish)
    assert len(caught.value.problems) == 2
    assert "--grpc-tls-cert" in caught.value.problems[0]
    assert "--grpc-tls-client-ca" in caught.value.problems[1]
    with pytest.raises(ConfigError, match="--grpc-tls-key is missing"):
        Tls.from_settings(str(good / "server.pem"), "", "")
    with pytest.raises(ConfigError, match="not a PEM certificate and its key"):
        Tls.from_settings(str(good / "server.pem"), str(good / "client.key"), "")
    with pytest.raises(ConfigError, match="No such file"):
        Tls.from_settings(str(good / "none.pem"), str(good / "none.key"), "")
    assert Tls.from_settings("", "", "") is None
