"""OpenAI's speech API, without a network."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

import shared.errors
from services.synthesis import grpc as grpc_transport
from services.synthesis import http
from services.synthesis.answers import public_message
from services.synthesis.speaker import MAX_SEED, Speaker
from shared.audio import to_pcm16
from shared.errors import OverloadedError, VitsError

if TYPE_CHECKING:
    from tests.unit.services.synthesis.conftest import MakeSpeaker

SPEECH = "/v1/audio/speech"


@pytest.fixture
def client(speaker: Speaker) -> Iterator[TestClient]:
    app = http.make_app()
    app.state.speaker = speaker
    with TestClient(app) as client:
        yield client


def every_class(root: type[VitsError] = VitsError) -> list[type[VitsError]]:
    children = [kind for kind in root.__subclasses__() if kind.__module__ == shared.errors.__name__]
    return [root, *(kind for child in children for kind in every_class(child))]


@pytest.mark.parametrize("table", [http.ERRORS, grpc_transport.ERRORS])
def test_every_class_of_errors_has_a_row(table: dict[type[VitsError], Any]) -> None:
    assert len(every_class()) > 10
    assert [kind.__name__ for kind in every_class() if kind not in table] == []


def test_speech_as_wav(client: TestClient) -> None:
    body = {"model": "tts-1", "voice": "alloy", "input": "Hola 你", "seed": 7}
    answer = client.post(SPEECH, json=body)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "audio/wav"
    samples, rate = soundfile.read(io.BytesIO(answer.content), dtype="int16")
    assert rate == 16000
    assert answer.headers["x-vits-sampling-rate"] == "16000"
    assert answer.headers["x-vits-seed"] == "7"
    assert answer.headers["x-vits-voice"].startswith("ana/")
    assert unquote(answer.headers["x-vits-unknown"]) == "你"
    pcm = client.post(SPEECH, json=body | {"response_format": "pcm"})
    assert pcm.headers["content-type"] == "audio/pcm"
    assert pcm.content == samples.tobytes()


def test_what_is_asked_for_reaches_the_voice(client: TestClient, speaker: Speaker) -> None:
    fields = {"speaker": "bob", "seed": 9, "noise_scale": 0.5, "noise_scale_duration": 0.25}
    answer = client.post(SPEECH, json={"input": "uno", "speed": 2, "response_format": "pcm", **fields})
    direct = speaker.shelf.get().voice.synthesize("uno", speaking_rate=2.0, **fields)  # type: ignore[arg-type]
    assert answer.content == to_pcm16(direct.samples).tobytes()


def test_a_seed_that_was_drawn_is_told(client: TestClient) -> None:
    answer = client.post(SPEECH, json={"input": "uno"})
    again = client.post(SPEECH, json={"input": "uno", "seed": int(answer.headers["x-vits-seed"])})
    assert again.content == answer.content


@pytest.mark.parametrize(
    ("names", "heard"),
    [
        ({}, "ana"),
        ({"model": "tts-1-hd", "voice": "nova"}, "ana"),
        ({"model": "vits", "voice": "luis"}, "luis"),
        ({"model": "luis", "voice": "alloy"}, "luis"),
        ({"model": "luis", "voice": "ana"}, "ana"),
        ({"model": "tts-1", "voice": ""}, "ana"),
    ],
)
def test_names_of_models_and_voices(client: TestClient, names: dict[str, str], heard: str) -> None:
    answer = client.post(SPEECH, json={"input": "uno", **names})
    assert answer.headers["x-vits-voice"].partition("/")[0] == heard


def error_of(answer: Any) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/json"
    content = answer.json()
    assert list(content) == ["error"]
    assert set(content["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = content["error"]
    assert error["message"]
    return error


def test_everything_wrong_is_said_at_once(client: TestClient) -> None:
    body = {
        "inptu": "x",
        "speed": 9,
        "response_format": "mp3",
        "seed": -1,
        "stream_format": "sse",
        "voice": 3,
    }
    answer = client.post(SPEECH, json=body)
    assert answer.status_code == 400
    error = error_of(answer)
    lines = error["message"].split("\n")
    assert "input: is missing; it is required" in lines
    assert "inptu: there is no such field, did you mean 'input'?" in lines
    assert "response_format: 'mp3' is not available here; there is 'wav', 'pcm'" in lines
    assert "stream_format: 'sse' is not available here; there is 'audio'" in lines
    assert sorted(line.partition(":")[0] for line in lines) == sorted([*body, "input"])
    assert error["param"] == "input"
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_request"),
        (b"{", 400, "invalid_request"),
        (b"[" * 100000, 400, "invalid_request"),
        (b'"text"', 400, "invalid_request"),
        (b"\xff\xfe", 400, "invalid_request"),
        (b'{"input": ""}', 400, "invalid_request"),
        (b'{"input": "x", "speed": NaN}', 400, "invalid_request"),
        (b'{"input": "x", "seed": 1e400}', 400, "invalid_request"),
        (json.dumps({"input": "x" * 4097}).encode(), 400, "invalid_request"),
        (json.dumps({"input": "x" * 1_000_000}).encode(), 400, "invalid_request"),
        (json.dumps({"input": "x", "seed": MAX_SEED + 1}).encode(), 400, "invalid_request"),
        (b'{"input": "x", "voice": "../secret"}', 400, "invalid_request"),
        (b'{"input": "x", "voice": "nobody"}', 404, "voice_not_found"),
        (b'{"input": "x", "voice": "\\ud800"}', 400, "invalid_request"),
        (b'{"input": "mute"}', 400, "text_not_speakable"),
        (b'{"input": "break"}', 500, "engine_failed"),
        (b'{"input": "bug"}', 500, "internal_error"),
    ],
)
def test_bad_requests(client: TestClient, body: bytes, status: int, code: str) -> None:
    answer = client.post(SPEECH, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    error = error_of(answer)
    assert error["code"] == code
    assert "secret/path" not in error["message"]


def test_the_longest_text_is_allowed(client: TestClient) -> None:
    body = json.dumps({"input": "\U0001f600" * 4096, "response_format": "pcm"})  # 12 bytes each, escaped
    assert client.post(SPEECH, content=body).status_code == 200


def test_failures_are_logged_and_mistakes_are_not(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "vits"):
        client.post(SPEECH, json={"input": "mute"})
        assert caplog.records == []
        client.post(SPEECH, json={"input": "break"})
    assert "/secret/path" in caplog.text


def test_overload_says_when_to_come_back(make_speaker: MakeSpeaker) -> None:
    app = http.make_app()
    app.state.speaker = make_speaker(default="ana", max_in_flight=0)
    answer = TestClient(app).post(SPEECH, json={"input": "uno"})
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert error_of(answer)["type"] == "rate_limit_error"


@pytest.mark.parametrize(
    "kind", [kind for kind in every_class() if not issubclass(kind, shared.errors.ProblemsError)]
)
def test_every_error_has_openais_shape_and_clients_see_no_addresses(kind: type[VitsError]) -> None:
    address = "file:///home/operator/store"
    error = kind(address, retry_after_seconds=2.0) if issubclass(kind, OverloadedError) else kind(address)
    response = http.error_response(error)
    content = json.loads(bytes(response.body))["error"]
    assert content["message"]
    assert response.status_code >= 400
    if response.status_code >= 500:
        assert address not in content["message"]
    assert content["message"] == public_message(error)


def test_lists_of_voices_and_models(client: TestClient) -> None:
    voices = client.get("/v1/audio/voices").json()["voices"]
    assert [voice["name"] for voice in voices] == ["ana", "luis"]
    assert voices[0]["licence"] == "CC0-1.0"
    assert voices[0]["consent"] == "yes"
    assert voices[0]["sources"] == ["nobody"]
    models = client.get("/v1/models").json()
    assert models["object"] == "list"
    assert {"tts-1", "vits", "ana", "luis"} <= {model["id"] for model in models["data"]}
    assert all(isinstance(model["created"], int) for model in models["data"])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", SPEECH, 405),
        ("POST", "/v1/models", 405),
        ("POST", "/v1/chat/completions", 404),
        ("GET", "/v1/x", 404),
    ],
)
def test_other_paths_and_methods(client: TestClient, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert "POST /v1/audio/speech" in error_of(answer)["message"]


def test_answers_are_counted(client: TestClient, speaker: Speaker) -> None:
    client.post(SPEECH, json={"input": "uno"})
    client.post(SPEECH, json={})
    count = speaker.metrics.registry.get_sample_value
    assert count("vits_requests_total", {"door": "http", "voice": "ana", "outcome": "spoken"}) == 1
    assert count("vits_responses_total", {"door": "http", "code": "200"}) == 1
    assert count("vits_responses_total", {"door": "http", "code": "400"}) == 1
    assert count("vits_first_audio_seconds_count", {"door": "http"}) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    body=st.dictionaries(st.sampled_from(list(http.SpeechRequest.model_fields)) | st.text(max_size=5), JSON)
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_is_ever_a_failure_of_the_server(client: TestClient, body: dict[str, Any]) -> None:
    answer = client.post(SPEECH, content=json.dumps({"input": "uno"} | body))
    if answer.status_code != 200:
        assert answer.status_code in {400, 404}
        error_of(answer)
    elif body.get("response_format") != "pcm":
        assert answer.content.startswith(b"RIFF")
