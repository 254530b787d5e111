"""Whatever is sent to a real server, at either door: an answer that is the client's affair, never a failure."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import httpx_ws
import pytest
from grpc import StatusCode
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shared.protos.vits.synthesis.v1 import synthesis_pb2 as pb
from shared.protos.vits.synthesis.v1.synthesis_pb2_grpc import SynthesisServiceStub
from tests.integration.served import PATIENCE_SECONDS, Server

SPEECH = "/v1/audio/speech"
SERVICE = "/vits.synthesis.v1.SynthesisService"
FAIR = {StatusCode.OK, StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND, StatusCode.RESOURCE_EXHAUSTED}

NASTY = [
    "",
    " \u2028\u00a0",
    "👩‍👩‍👧 " * 20,
    "\u202eשלום",
    "\0\x01\x7f\ufeff\uffff",
    "a" + "\u0323" * 500,
    "9" * 40,
    "1/0 31/02/0000 25:61 -0€ 1e999 ½²",
    "...!?¿¡,;:" * 10,
    "%s%n {} \\ ' \" ` <!--",
    "<speak>",
    "<speak></speak>",
    "<speak>" * 500,
    '<speak><break time="99999999s"/>a</speak>',
    '<speak><say-as interpret-as="date">99.99.9999</say-as></speak>',
    '<speak xml:lang="🦆"><prosody rate="-1e9%">a</prosody></speak>',
    '<!DOCTYPE s [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><speak>&b;</speak>',
]

UNICODE = st.characters(exclude_categories=["Cs"])
TEXTS = st.lists(
    st.sampled_from([*NASTY, "Hola. ", "uno, dos ", "<speak>", "</speak>", "<sub alias='x'>", "&"])
    | st.text(UNICODE, max_size=20),
    max_size=4,
).map("".join)
NAMES = st.sampled_from(["", "tiny", "tiny@production", "tiny/1", "../x", "🦆"]) | st.text(
    UNICODE, max_size=5
)
NUMBERS = st.floats(0.25, 2) | st.floats()
#: What both doors call the same.
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "voice": NAMES,
    "speaker": NAMES,
    "seed": st.integers(0, 9) | st.integers(0, 2**64 - 1),
    "noise_scale": NUMBERS,
    "noise_scale_duration": NUMBERS,
    "language": st.sampled_from(["es", "en", "fr", "zz", "es_MX", "-", "x" * 40]),
    "ssml": st.booleans(),
    "sampling_rate": st.sampled_from([0, 1, 8000, 24000, 44100]),
}


def message(fields: dict[str, Any]) -> pb.SynthesizeRequest:
    return pb.SynthesizeRequest(**fields)


MESSAGES = st.fixed_dictionaries(
    {"text": TEXTS},
    optional=FIELDS
    | {
        "speaking_rate": NUMBERS,
        "audio_format": st.integers(0, 8),
        "priority": st.integers(-1, 3),
        "timestamps": st.integers(-1, 4),
    },
).map(message)
BODIES = st.fixed_dictionaries(
    {"input": TEXTS},
    optional=FIELDS
    | {
        "model": NAMES,
        "speed": NUMBERS,
        "response_format": st.sampled_from(["mp3", "opus", "aac", "flac", "wav", "pcm", "ogg"]),
        "stream_format": st.sampled_from(["audio", "sse", "json"]),
        "timestamps": st.booleans(),
        "priority": st.sampled_from(["interactive", "bulk", "urgent"]),
        # One that passes before anything is heard, and one that does not pass: in between, time would decide.
        "deadline_seconds": st.sampled_from([1e-9, 3600.0, -1.0, 0.0, 1e9, float("nan")]),
    },
)

generated = settings(max_examples=25, database=None, derandomize=True, suppress_health_check=[*HealthCheck])


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=PATIENCE_SECONDS) as http:
        yield http


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc_address) as channel:
        yield channel


def heard(call: Any) -> list[Any]:
    """The messages of a call, which ends as it is a client's affair to end it, in words."""
    messages = []
    try:
        messages += call
    except grpc.RpcError:
        assert call.details()
    assert call.code() in FAIR, call
    return messages


@settings(generated, max_examples=60)
@given(text=TEXTS, ssml=st.booleans(), language=st.sampled_from(["es", "en", "fr", "de", "zz"]))
def test_no_text_is_a_failure_and_both_doors_agree(
    http: httpx.Client, channel: grpc.Channel, text: str, ssml: bool, language: str
) -> None:
    fields: dict[str, Any] = {"seed": 7, "ssml": ssml, "language": language}
    request = pb.SynthesizeRequest(text=text, audio_format=pb.AUDIO_FORMAT_PCM, **fields)
    outcome = SynthesisServiceStub(channel).Synthesize.future(request, timeout=PATIENCE_SECONDS)
    answer = http.post(SPEECH, json={"input": text, "response_format": "pcm", **fields})
    if answer.status_code == 200:
        assert outcome.result().audio == answer.content
    else:
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["message"]
        assert outcome.code() is StatusCode.INVALID_ARGUMENT, outcome
        assert outcome.details()


@generated
@given(request=MESSAGES)
def test_no_message_is_a_failure_over_grpc(channel: grpc.Channel, request: pb.SynthesizeRequest) -> None:
    stub = SynthesisServiceStub(channel)
    heard(stub.SynthesizeStream(pb.SynthesizeStreamRequest(request=request), timeout=PATIENCE_SECONDS))
    (result,) = heard(
        stub.SynthesizeBatch(pb.SynthesizeBatchRequest(requests=[request]), timeout=PATIENCE_SECONDS)
    )
    code = result.failure.code if result.HasField("failure") else 0
    assert code in {status.value[0] for status in FAIR}, result.failure
    start = pb.SynthesizeRequest()
    start.CopyFrom(request)
    start.ClearField("text")
    talk = [
        pb.SynthesizeIncrementalRequest(start=start),
        pb.SynthesizeIncrementalRequest(text=request.text),
    ]
    heard(stub.SynthesizeIncremental(iter(talk), timeout=PATIENCE_SECONDS))


@generated
@given(content=st.binary(max_size=60) | MESSAGES.map(lambda one: one.SerializeToString()[:-1]))
@example(content=b"\x0a\x03\xed\xa0\x80")  # a lone surrogate, whole
def test_no_bytes_are_a_failure_over_grpc(channel: Any, content: bytes) -> None:
    for method in ("Synthesize", "SynthesizeStream", "SynthesizeBatch", "ListVoices"):
        heard(channel.unary_stream(f"{SERVICE}/{method}")(content, timeout=PATIENCE_SECONDS))
    heard(
        channel.stream_stream(f"{SERVICE}/SynthesizeIncremental")(iter([content]), timeout=PATIENCE_SECONDS)
    )


@generated
@given(body=BODIES)
def test_no_body_is_a_failure_over_http(http: httpx.Client, body: dict[str, Any]) -> None:
    without = {name: value for name, value in body.items() if name != "stream_format"}
    batch = {name: value for name, value in without.items() if name != "input"} | {"inputs": [body["input"]]}
    for path, asked in ((SPEECH, body), ("/synthesize", without), (f"{SPEECH}/batch", batch)):
        answer = http.post(path, content=json.dumps(asked))
        status, told = answer.status_code, {} if answer.status_code == 200 else answer.json()
        if asked is batch and status == 200:  # its one text has an outcome of its own
            told = json.loads(answer.text)
            status = told.get("status", 200)
        assert status in {200, 400, 404, 504}, (path, answer.text)
        assert status == 200 or told["error"]["message"]
        assert status != 504 or "deadline_seconds" in body


@pytest.mark.parametrize("output", ["ndjson", "zip"])
def test_nasty_texts_in_a_batch(http: httpx.Client, output: str) -> None:
    texts = [text for text in NASTY if text]
    answer = http.post(f"{SPEECH}/batch", json={"inputs": texts, "output": output, "response_format": "pcm"})
    assert answer.status_code == 200, answer.text
    if output == "zip":
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            lines = json.loads(archive.read("index.json"))["speeches"]
    else:
        lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["index"] for line in lines] == list(range(len(texts)))
    assert all(line.get("status", 400) == 400 for line in lines), lines
    assert any("error" in line for line in lines)
    assert any("error" not in line for line in lines)


def test_nasty_texts_as_events(http: httpx.Client) -> None:
    for text in NASTY:
        answer = http.post(SPEECH, json={"input": text, "stream_format": "sse", "response_format": "pcm"})
        assert answer.status_code in {200, 400}, (text, answer.text)
        if answer.status_code == 200:
            last = json.loads(answer.text.rstrip().rpartition("data: ")[2])
            assert last["type"] == "speech.audio.done", (text, last)


def test_nasty_texts_over_a_websocket(server: Server, http: httpx.Client) -> None:
    for text in [*NASTY, "a\ud800"]:
        socket: httpx_ws.WebSocketSession
        with httpx_ws.connect_ws(f"{server.url}{SPEECH}/live", http) as socket:
            for message in (
                {"type": "start", "response_format": "pcm"},
                {"type": "text", "text": text},
                {"type": "end"},
            ):
                socket.send_text(json.dumps(message))
            answer: dict[str, Any] = {"type": "none yet"}
            while answer["type"] not in {"done", "error"}:
                answer = socket.receive_json(timeout=PATIENCE_SECONDS)
            if answer["type"] == "error":
                assert answer["error"]["type"] == "invalid_request_error", (text, answer)
                assert answer["error"]["message"]
