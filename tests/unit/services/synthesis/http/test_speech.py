"""``POST /v1/audio/speech`` and the lists of voices and models, without a network."""

from __future__ import annotations

import base64
import io
import json
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from services.synthesis import packing
from services.synthesis.access import Access, add_token
from services.synthesis.http.app import make_app
from services.synthesis.http.errors import error_response
from services.synthesis.http.requests import SpeechRequest
from services.synthesis.speaker import MAX_SEED
from shared import audio_encoding
from shared.audio import Samples, read_audio, to_pcm16
from shared.audio_encoding import open_encoder
from shared.errors import EngineError, OverloadedError, StoreError
from shared.registry import Registry
from tests.unit.services.synthesis.conftest import publish

if TYPE_CHECKING:
    from tests.unit.services.synthesis.conftest import MakeSpeaker
    from tests.unit.services.synthesis.http.conftest import ErrorOf, FakeSpeaker

SPEECH = "/v1/audio/speech"


def test_speech_as_wav(http: TestClient, fake: FakeSpeaker) -> None:
    body = {"model": "tts-1", "voice": "alloy", "input": "Hola 你", "seed": 7}
    answer = http.post(SPEECH, json=body | {"response_format": "wav"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "audio/wav"
    samples, rate = soundfile.read(io.BytesIO(answer.content), dtype="int16")
    assert rate == 16000
    assert answer.headers["x-vits-sampling-rate"] == "16000"
    assert answer.headers["x-vits-seed"] == "7"
    assert answer.headers["x-vits-voice"].startswith("ana/")
    assert unquote(answer.headers["x-vits-unknown"]) == "你"
    assert "content-length" not in answer.headers
    assert samples.tobytes() == to_pcm16(fake.spoken[0].samples).tobytes()
    pcm = http.post(SPEECH, json=body | {"response_format": "pcm"})
    assert pcm.headers["content-type"] == "audio/pcm"
    assert pcm.content == samples.tobytes()


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("mp3", "audio/mpeg"),
        ("opus", "audio/ogg"),
        ("aac", "audio/aac"),
        ("flac", "audio/flac"),
        ("wav", "audio/wav"),
    ],
)
def test_every_format(http: TestClient, name: str, media_type: str) -> None:
    answer = http.post(SPEECH, json={"input": "texto " * 20, "response_format": name, "sampling_rate": 24000})
    assert answer.headers["content-type"] == media_type
    assert answer.headers["x-vits-sampling-rate"] == "24000"
    audio = read_audio(answer.content)
    assert audio.duration_seconds == pytest.approx(1.2, abs=0.15)
    assert audio.sampling_rate == (48000 if name == "opus" else 24000)


def test_openais_default_is_mp3(http: TestClient) -> None:
    assert http.post(SPEECH, json={"input": "uno"}).headers["content-type"] == "audio/mpeg"


def test_what_is_asked_for_reaches_the_speaker(http: TestClient, fake: FakeSpeaker) -> None:
    fields = {
        "speaker": "bob",
        "seed": 9,
        "noise_scale": 0.5,
        "noise_scale_duration": 0.25,
        "language": "es-MX",
    }
    more = {"priority": "bulk", "deadline_seconds": 5, "instructions": "cheerful", "ssml": False}
    headers = {"X-Request-Id": "mine-1"}
    answer = http.post(SPEECH, json={"input": "<speak>", "speed": 2, **fields, **more}, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["x-request-id"] == "mine-1"
    order = fake.spoken[0].order
    assert {name: getattr(order, name) for name in fields} == fields
    assert (order.speaking_rate, order.priority, order.deadline_seconds) == (2.0, "bulk", 5)
    assert (order.door, order.request_id, order.ssml) == ("http", "mine-1", False)


@pytest.mark.parametrize(("text", "ssml"), [(" <speak>a</speak>", True), ("a < b", False), ("<b>", False)])
def test_ssml_is_recognised(http: TestClient, fake: FakeSpeaker, text: str, ssml: bool) -> None:
    http.post(SPEECH, json={"input": text})
    assert fake.spoken[0].order.ssml is ssml


def test_a_seed_that_was_drawn_is_told(http: TestClient) -> None:
    answer = http.post(SPEECH, json={"input": "uno"})
    again = http.post(SPEECH, json={"input": "uno", "seed": int(answer.headers["x-vits-seed"])})
    assert again.content == answer.content


@pytest.mark.parametrize(
    ("names", "heard"),
    [
        ({}, ""),
        ({"model": "tts-1-hd", "voice": "nova"}, ""),
        ({"model": "vits", "voice": "luis"}, "luis"),
        ({"model": "luis", "voice": "alloy"}, "luis"),
        ({"model": "luis", "voice": "ana"}, "ana"),
        ({"model": "tts-1", "voice": ""}, ""),
    ],
)
def test_names_of_models_and_voices(
    http: TestClient, fake: FakeSpeaker, names: dict[str, str], heard: str
) -> None:
    http.post(SPEECH, json={"input": "uno", **names})
    assert fake.spoken[0].order.voice == heard


def test_openais_names_are_taken_by_voices_that_have_them(
    make_speaker: MakeSpeaker, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaker = make_speaker(default="ana")
    app = make_app()
    app.state.speaker = speaker

    def heard(**names: str) -> str:
        answer = http.post(SPEECH, json={"input": "uno", "response_format": "pcm", **names})
        return str(answer.headers["x-vits-voice"].partition("/")[0])

    with TestClient(app) as http:
        assert heard(voice="nova") == "ana"
        assert heard(voice="nova", model="luis") == "luis"
        publish(registry, tmp_path, "nova", "one")
        publish(registry, tmp_path, "echo", "one")
        assert heard(voice="echo") == heard(voice="nova") == "ana"  # no request asks the store
        speaker.shelf.refresh()
        assert heard(voice="echo") == "echo"
        assert heard(voice="nova") == heard(voice="nova", model="luis") == "nova"

        def gone(*_: object) -> None:
            raise StoreError("the store is gone")

        monkeypatch.setattr(registry, "versions", gone)
        assert heard(voice="alloy") == "ana"
        speaker.shelf.refresh()
        assert heard(voice="nova") == "nova"


def test_the_header_of_what_was_left_out_has_a_limit(http: TestClient) -> None:
    body = {"input": "a" + "你" * 4000, "response_format": "pcm"}
    header = http.post(SPEECH, json=body).headers["x-vits-unknown"]
    assert 1000 < len(header) <= 1024
    assert set(unquote(header)) == {"你"}
    assert len(http.post(SPEECH, json=body | {"stream_format": "json"}).json()["unknown"]) == 4000


def events_of(answer: Any) -> list[dict[str, Any]]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, end = answer.text.split("\n\n")
    assert end == ""
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_events(http: TestClient, fake: FakeSpeaker) -> None:
    body = {
        "input": "uno dos tres cuatro",
        "stream_format": "sse",
        "response_format": "pcm",
        "timestamps": True,
    }
    *deltas, done = events_of(http.post(SPEECH, json=body))
    assert len(deltas) > 1
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    audio = b"".join(base64.b64decode(event["audio"]) for event in deltas)
    assert audio == to_pcm16(fake.spoken[0].samples).tobytes()
    words = [word for event in deltas for word in event.get("timestamps", [])]
    assert [word["text"] for word in words] == ["uno", "dos", "tres", "cuatro"]
    assert done["type"] == "speech.audio.done"
    assert done["usage"] == {"input_tokens": 19, "output_tokens": 10, "total_tokens": 29}
    assert done["duration_seconds"] == pytest.approx(0.19)
    assert done["seed"] == 12345
    assert not any(
        "timestamps" in event for event in events_of(http.post(SPEECH, json=body | {"timestamps": False}))
    )


def test_what_fails_later_is_an_event(http: TestClient) -> None:
    body = {"input": "break late, after the first piece", "stream_format": "sse", "response_format": "pcm"}
    *deltas, error = events_of(http.post(SPEECH, json=body))
    assert deltas
    assert error["type"] == "error"
    assert error["error"]["code"] == "engine_failed"


def test_what_fails_later_does_not_end_like_a_whole_answer(http: TestClient) -> None:
    with pytest.raises(EngineError):
        http.post(SPEECH, json={"input": "break late, after the first piece", "response_format": "pcm"})


@pytest.mark.parametrize("name", ["wav", "mp3"])
def test_json_with_captions(http: TestClient, name: str) -> None:
    body = {"input": "uno dos", "stream_format": "json", "response_format": name, "timestamps": True}
    answer = http.post(SPEECH, json=body)
    content = answer.json()
    assert read_audio(base64.b64decode(content["audio"])).duration_seconds == pytest.approx(0.07, abs=0.2)
    assert [time["text"] for time in content["timestamps"]] == ["uno", "dos"]
    assert [time["text"] for time in content["tokens"]] == list("uno dos")
    assert content["srt"].startswith("1\n00:00:00,000 --> ")
    assert content["vtt"].startswith("WEBVTT")
    assert content["response_format"] == name
    assert answer.headers["x-vits-seed"] == str(content["seed"])


def test_everything_wrong_is_said_at_once(http: TestClient, error_of: ErrorOf) -> None:
    body = {
        "inptu": "x",
        "speed": 9,
        "response_format": "ogg",
        "seed": -1,
        "stream_format": "sees",
        "voice": 3,
        "sampling_rate": 4,
    }
    answer = http.post(SPEECH, json=body)
    assert answer.status_code == 400
    error = error_of(answer)
    lines = error["message"].split("\n")
    assert "input: is missing; it is required" in lines
    assert "inptu: there is no such field, did you mean 'input'?" in lines
    assert "response_format: Input should be 'mp3', 'opus', 'aac', 'flac', 'wav' or 'pcm'" in lines
    assert sorted(line.partition(":")[0] for line in lines) == sorted([*body, "input"])
    assert error["param"] in {*body, "input"}
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
        (b'{"input": "x", "seed": ' + b"9" * 5000 + b"}", 400, "invalid_request"),
        (b'{"input": "x", "timestamps": true}', 400, "invalid_request"),
        (b'{"input": "x", "response_format": "opus", "sampling_rate": 22050}', 400, "invalid_request"),
        (b'{"input": "x", "language": "../es"}', 400, "invalid_request"),
        (b'{"input": "x", "speaker": "nobody"}', 400, "invalid_request"),
        (json.dumps({"input": "x" * 4097}).encode(), 400, "invalid_request"),
        (json.dumps({"input": "x" * 1_000_000}).encode(), 413, "request_too_large"),
        (json.dumps({"input": "x", "seed": MAX_SEED + 1}).encode(), 400, "invalid_request"),
        (b'{"input": "x", "voice": "nobody"}', 404, "voice_not_found"),
        (b'{"input": "x", "voice": "\\ud800"}', 400, "invalid_request"),
        (b'{"input": "mute"}', 400, "text_not_speakable"),
        (b'{"input": "break"}', 500, "engine_failed"),
        (b'{"input": "break at once"}', 500, "engine_failed"),
        (b'{"input": "break at once", "stream_format": "sse"}', 500, "engine_failed"),
        (b'{"input": "bug"}', 500, "internal_error"),
    ],
)
def test_bad_requests(http: TestClient, body: bytes, status: int, code: str, error_of: ErrorOf) -> None:
    answer = http.post(SPEECH, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert error_of(answer)["code"] == code
    assert answer.headers["x-request-id"]


def test_the_longest_text_is_allowed(http: TestClient) -> None:
    body = json.dumps({"input": "\U0001f600" * 4096, "response_format": "pcm"})  # 12 bytes each, escaped
    assert http.post(SPEECH, content=body).status_code == 200


def test_failures_are_logged_and_mistakes_are_not(http: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "vits"):
        http.post(SPEECH, json={"input": "mute"})
        assert caplog.records == []
        http.post(SPEECH, json={"input": "break"})
    assert "/secret/path" in caplog.text


def test_overload_says_when_to_come_back(http: TestClient, fake: FakeSpeaker, error_of: ErrorOf) -> None:
    fake.overloaded = 1
    answer = http.post(SPEECH, json={"input": "uno"})
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert error_of(answer)["type"] == "rate_limit_error"


def test_nobody_is_told_to_come_back_too_early() -> None:
    assert error_response(OverloadedError("busy", retry_after_seconds=2.4)).headers["retry-after"] == "3"


def test_a_deadline_that_has_passed_is_no_overload(make_speaker: MakeSpeaker, error_of: ErrorOf) -> None:
    app = make_app()
    app.state.speaker = make_speaker()
    with TestClient(app) as http:
        assert http.post(SPEECH, json={"input": "uno"}).status_code == 200  # loads the voice
        answer = http.post(SPEECH, json={"input": "uno", "deadline_seconds": 1e-9})
        assert answer.status_code == 504
        assert error_of(answer)["code"] == "deadline_exceeded"


def test_the_longest_audio_has_a_limit(http: TestClient, fake: FakeSpeaker, error_of: ErrorOf) -> None:
    http.app.state.access = Access(max_audio_seconds=0.5)  # type: ignore[attr-defined]
    assert http.post(SPEECH, json={"input": "x" * 50}).status_code == 200
    answer = http.post(SPEECH, json={"input": "x" * 600, "stream_format": "json"})
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "input"
    assert fake.spoken[-1].cancelled


def test_tokens_and_quotas(http: TestClient, tmp_path: Path, error_of: ErrorOf) -> None:
    path = tmp_path / "tokens.json"
    token = add_token(path, "web", audio_seconds_per_hour=1)
    http.app.state.access = Access(path)  # type: ignore[attr-defined]
    refused = http.post(SPEECH, json={"input": "uno"})
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert error_of(refused)["code"] == "invalid_api_key"
    assert http.get("/v1/audio/voices").status_code == 401
    assert http.get("/v1/nothing").status_code == 401
    assert http.get("/").status_code == http.get("/openapi.json").status_code == 200
    assert http.get("/page/server.json").json()["needs_token"] is True
    headers = {"Authorization": f"Bearer {token}"}
    assert http.post(SPEECH, json={"input": "x" * 150}, headers=headers).status_code == 200
    used_up = http.post(SPEECH, json={"input": "uno"}, headers=headers)
    assert used_up.status_code == 429
    assert error_of(used_up)["code"] == "quota_exceeded"
    assert int(used_up.headers["retry-after"]) > 1000
    assert http.get("/v1/audio/voices", headers=headers).status_code == 200


def test_lists_of_voices_and_models(http: TestClient, error_of: ErrorOf) -> None:
    voices = http.get("/v1/audio/voices").json()["voices"]
    assert [voice["name"] for voice in voices] == ["ana", "luis"]
    ana = http.get("/v1/audio/voices/ana").json()
    assert ana == voices[0]
    assert (ana["licence"], ana["consent"], ana["sources"]) == ("CC0-1.0", "yes", ["nobody"])
    assert (ana["language"], ana["speakers"]) == ("es", {"bob": 0, "eva": 1})
    assert "front_end" not in ana
    missing = http.get("/v1/audio/voices/anna")
    assert missing.status_code == 404
    assert "did you mean 'ana'" in error_of(missing)["message"]
    models = http.get("/v1/models").json()
    assert models["object"] == "list"
    assert {"tts-1", "vits", "ana", "luis"} <= {model["id"] for model in models["data"]}
    assert all(isinstance(model["created"], int) for model in models["data"])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", SPEECH, 405),
        ("DELETE", "/v1/audio/voices/ana", 405),
        ("POST", "/v1/models", 405),
        ("POST", "/v1/chat/completions", 404),
        ("GET", "/v1/x", 404),
        ("GET", "/v1/audio/voices/a/b", 404),
    ],
)
def test_other_paths_and_methods(
    http: TestClient, method: str, path: str, status: int, error_of: ErrorOf
) -> None:
    answer = http.request(method, path)
    assert answer.status_code == status
    assert ("allow" in answer.headers) == (status == 405)
    assert "POST /v1/audio/speech" in error_of(answer)["message"]


def test_answers_are_counted(http: TestClient, fake: FakeSpeaker) -> None:
    http.post(SPEECH, json={"input": "uno"})
    http.post(SPEECH, json={})
    count = fake.metrics.registry.get_sample_value
    assert count("vits_responses_total", {"door": "http", "code": "200"}) == 1
    assert count("vits_responses_total", {"door": "http", "code": "400"}) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(body=st.dictionaries(st.sampled_from(list(SpeechRequest.model_fields)) | st.text(max_size=5), JSON))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_is_ever_a_failure_of_the_server(
    http: TestClient, body: dict[str, Any], error_of: ErrorOf
) -> None:
    answer = http.post(SPEECH, content=json.dumps({"input": "uno"} | body))
    if answer.status_code != 200:
        assert answer.status_code in {400, 404}
        error_of(answer)


@pytest.mark.parametrize("stream_format", ["audio", "sse", "json"])
def test_audio_is_not_encoded_on_the_event_loop(
    http: TestClient, monkeypatch: pytest.MonkeyPatch, stream_format: str
) -> None:
    threads: set[int] = set()

    def opened(*arguments: Any) -> Any:
        encoder: Any = open_encoder(*arguments)
        plain = encoder.encode

        def noted(samples: Samples) -> bytes:
            threads.add(threading.get_ident())
            encoded: bytes = plain(samples)
            return encoded

        encoder.encode = noted
        return encoder

    monkeypatch.setattr(packing, "open_encoder", opened)
    monkeypatch.setattr(audio_encoding, "open_encoder", opened)
    body = {"input": "uno dos tres", "response_format": "mp3", "stream_format": stream_format}
    assert http.post(SPEECH, json=body).status_code == 200
    assert http.portal
    assert threads
    assert http.portal.call(threading.get_ident) not in threads
