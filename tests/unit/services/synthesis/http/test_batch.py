"""``POST /v1/audio/speech/batch``."""

from __future__ import annotations

import base64
import io
import json
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from services.synthesis.access import Caller
from services.synthesis.http.app import make_app
from services.synthesis.http.requests import MAX_BATCH_TEXTS
from services.synthesis.speaker import Order
from shared.audio import read_audio, to_pcm16
from shared.errors import OverloadedError
from shared.voice.runtime import stopping

if TYPE_CHECKING:
    from tests.unit.services.synthesis.conftest import MakeSpeaker
    from tests.unit.services.synthesis.http.conftest import ErrorOf, FakeSpeaker, FakeSpeaking

BATCH = "/v1/audio/speech/batch"
INPUTS = ["uno", {"input": "dos tres", "id": "second", "seed": 5, "voice": "luis"}, "mute", "bug", "cuatro"]


def lines_of(answer: Any) -> list[dict[str, Any]]:
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def test_lines(http: TestClient, fake: FakeSpeaker) -> None:
    answer = http.post(
        BATCH, json={"inputs": INPUTS, "response_format": "pcm", "seed": 3, "timestamps": True}
    )
    lines = lines_of(answer)
    assert [line["index"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["id"] for line in lines] == ["0000", "second", "0002", "0003", "0004"]
    assert [line["seed"] for line in lines if "seed" in line] == [3, 5, 3]
    assert lines[1]["voice"] == "luis"
    assert [time["text"] for time in lines[1]["timestamps"]] == ["dos", "tres"]
    by_text = {speaking.order.text: speaking for speaking in fake.spoken}
    for line, text in zip(lines, ["uno", "dos tres", "", "", "cuatro"], strict=True):
        if text:
            assert base64.b64decode(line["audio"]) == to_pcm16(by_text[text].samples).tobytes()
            assert by_text[text].order.priority == "bulk"
    assert (lines[2]["status"], lines[2]["error"]["code"]) == (400, "text_not_speakable")
    assert (lines[3]["status"], lines[3]["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text


def test_an_archive(http: TestClient) -> None:
    body = {"inputs": INPUTS, "output": "zip", "response_format": "flac", "timestamps": True}
    answer = http.post(BATCH, json=body)
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        index = json.loads(archive.read("index.json"))["speeches"]
        assert len(index) == 5
        assert "error" in index[2]
        assert index[1]["file"] == "second.flac"
        audio = read_audio(archive.read("second.flac"))
        assert audio.duration_seconds == pytest.approx(index[1]["duration_seconds"])
        assert archive.read("0000.vtt").startswith(b"WEBVTT")
        assert len(archive.namelist()) == 3 * 3 + 1


def test_a_batch_waits_where_a_request_is_refused(http: TestClient, fake: FakeSpeaker) -> None:
    fake.overloaded = 6
    assert all("audio" in line for line in lines_of(http.post(BATCH, json={"inputs": ["uno"] * 6})))


def test_a_batch_waits_no_longer_than_it_may(make_speaker: MakeSpeaker) -> None:
    app = make_app()
    app.state.speaker = make_speaker(max_bulk_backlog_seconds=-1.0)  # refuses always
    app.state.speaker.shelf.get()
    with TestClient(app) as http:
        (line,) = lines_of(http.post(BATCH, json={"inputs": ["uno"], "deadline_seconds": 0.2}))
    assert (line["status"], line["error"]["code"]) == (504, "deadline_exceeded")


def test_a_batch_that_waits_when_the_server_stops_is_told_at_once(
    http: TestClient, fake: FakeSpeaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not when it would have asked again, which may be after the grace period."""
    refused = threading.Event()

    async def start(_: Order) -> FakeSpeaking:
        if fake.draining.is_set():
            raise stopping()
        refused.set()
        raise OverloadedError("busy", retry_after_seconds=20)

    monkeypatch.setattr("services.synthesis.http.batch._LONGEST_WAIT_SECONDS", 20)
    monkeypatch.setattr(fake, "start", start)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(http.post, BATCH, json={"inputs": ["uno"]})
        assert refused.wait(10)
        assert http.portal
        http.portal.call(fake.draining.set)
        (line,) = lines_of(asking.result(10))
    assert line["error"]["code"] == "stopping"


def test_the_priority_can_be_said(http: TestClient, fake: FakeSpeaker) -> None:
    http.post(BATCH, json={"inputs": ["uno"], "priority": "interactive"})
    assert fake.spoken[0].order.priority == "interactive"


def test_a_quota_that_ends_in_the_middle(http: TestClient, fake: FakeSpeaker) -> None:
    caller = Caller("x", audio_seconds_per_hour=0.05, clock=lambda: 0.0)
    http.app.state.access.check = lambda *_, **__: caller  # type: ignore[attr-defined]
    lines = lines_of(http.post(BATCH, json={"inputs": ["palabra"] * 12}))
    assert "audio" in lines[0]
    assert lines[-1]["error"]["code"] == "quota_exceeded"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 400, "inputs: is missing"),
        ({"inputs": []}, 400, "inputs"),
        ({"inputs": ["a"] * (MAX_BATCH_TEXTS + 1)}, 400, "1000"),
        ({"inputs": ["a", ""]}, 400, "inputs.1"),
        ({"inputs": [{"input": "a", "seed": -1}]}, 400, "inputs.0.seed"),
        ({"inputs": [{"input": "a", "id": "../x"}]}, 400, "inputs.0.id"),
        ({"inputs": ["a", {"input": "b", "language": "../es"}]}, 400, "inputs.1.language"),
        (
            {"inputs": [{"input": "a", "id": "x"}, {"input": "b", "id": "x"}]},
            400,
            "two texts have the id 'x'",
        ),
        ({"inputs": ["a"], "stream_format": "sse"}, 400, "stream_format: there is no such field"),
        ({"inputs": ["x" * 4000] * 3000}, 413, "longer"),
    ],
)
def test_bad_batches(
    http: TestClient, body: dict[str, Any], status: int, said: str, error_of: ErrorOf
) -> None:
    answer = http.post(BATCH, json=body)
    assert answer.status_code == status
    assert said in error_of(answer)["message"]
