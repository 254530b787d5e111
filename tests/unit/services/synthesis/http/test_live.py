"""The WebSocket: a text that arrives in pieces."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient, WebSocketTestSession

from services.synthesis.access import Access, add_token
from services.synthesis.http.live import (
    MAX_CONTEXTS,
    MAX_WAITING_CHARACTERS,
    MAX_WAITING_FLUSHES,
    MESSAGES,
)
from shared.audio import read_audio, to_pcm16
from shared.text.segmentation import SENTENCE_PAUSE

if TYPE_CHECKING:
    from tests.unit.services.synthesis.http.conftest import FakeSpeaker

LIVE = "/v1/audio/speech/live"
#: What is heard between sentences, as at gRPC's door.
PAUSE = bytes(2 * round(SENTENCE_PAUSE * 16000))


def until(socket: WebSocketTestSession, *kinds: str) -> list[dict[str, Any]]:
    """Messages up to the first of one of these kinds."""
    messages = [socket.receive_json()]
    while messages[-1]["type"] not in kinds:
        assert messages[-1]["type"] != "error", messages[-1]
        messages.append(socket.receive_json())
    return messages


def audio_of(messages: list[dict[str, Any]]) -> bytes:
    return b"".join(base64.b64decode(m["audio"]) for m in messages if m["type"] == "audio")


def test_sentences_are_spoken_as_their_ends_arrive(http: TestClient, fake: FakeSpeaker) -> None:
    with http.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "start", "response_format": "pcm", "timestamps": True, "voice": "luis"})
        for piece in ("Ho", "la. ", "¿Qué ", "tal? ", "Bi"):
            socket.send_json({"type": "text", "text": piece})
        messages = until(socket, "started")
        assert (messages[0]["voice"], messages[0]["sampling_rate"]) == ("luis", 16000)
        while not any(m["type"] == "sentence" and m["text"] == "¿Qué tal?" for m in messages):
            messages.append(socket.receive_json())
        socket.send_json({"type": "text", "text": "en"})
        socket.send_json({"type": "end"})
        messages += until(socket, "done")
    assert [m["text"] for m in messages if m["type"] == "sentence"] == ["Hola.", "¿Qué tal?", "Bien"]
    assert audio_of(messages) == PAUSE.join(to_pcm16(speaking.samples).tobytes() for speaking in fake.spoken)
    assert {speaking.order.seed for speaking in fake.spoken} == {None, messages[0]["seed"]}
    words = [word for m in messages for word in m.get("timestamps", [])]
    assert [word["text"] for word in words] == ["Hola.", "¿Qué", "tal?", "Bien"]
    assert [m["start_seconds"] for m in messages if m["type"] == "sentence"] == pytest.approx([0, 0.35, 0.74])
    assert words[1]["start_seconds"] == pytest.approx(0.35)
    assert messages[-1]["duration_seconds"] == pytest.approx(0.78)
    assert fake.spoken[0].order.door == "websocket"
    assert (
        fake.metrics.registry.get_sample_value("vits_responses_total", {"door": "websocket", "code": "done"})
        == 1
    )


def test_a_context_keeps_its_version_when_another_is_published(http: TestClient, fake: FakeSpeaker) -> None:
    with http.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "start", "response_format": "pcm", "voice": "luis"})
        socket.send_json({"type": "text", "text": "uno. "})
        version = until(socket, "audio")[0]["voice_version"]
        fake.newest = "20270101T000000-00000000"
        socket.send_json({"type": "text", "text": "dos"})
        socket.send_json({"type": "end"})
        until(socket, "done")
    assert [speaking.voice_version for speaking in fake.spoken] == [version, version]


def test_flush_and_an_encoded_stream(http: TestClient) -> None:
    with http.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "start", "response_format": "mp3", "context_id": "a"})
        socket.send_json({"type": "text", "text": "uno dos tres " * 10, "context_id": "a"})
        socket.send_json({"type": "flush", "context_id": "a"})
        messages = until(socket, "flushed")
        socket.send_json({"type": "text", "text": "y cuatro " * 10, "context_id": "a"})
        socket.send_json({"type": "end", "context_id": "a"})
        messages += until(socket, "done")
    assert {m["context_id"] for m in messages} == {"a"}
    assert read_audio(audio_of(messages)).duration_seconds == pytest.approx(2.5, abs=0.2)


def test_cancel_forgets_and_more_may_follow(http: TestClient, fake: FakeSpeaker) -> None:
    with http.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "start", "response_format": "pcm"})
        socket.send_json({"type": "text", "text": "slow " * 60 + ". Otra. "})
        until(socket, "audio")
        socket.send_json({"type": "cancel"})
        until(socket, "cancelled")
        assert fake.spoken[0].cancelled
        socket.send_json({"type": "text", "text": "nuevo"})
        socket.send_json({"type": "end"})
        messages = until(socket, "done")
    assert [speaking.order.text for speaking in fake.spoken] == [("slow " * 60 + "."), "nuevo"]
    assert audio_of(messages) == PAUSE + to_pcm16(fake.spoken[1].samples).tobytes()


@pytest.mark.parametrize("audio_format", ["opus", "wav"])
def test_a_cancel_loses_nothing_of_the_stream(http: TestClient, audio_format: str) -> None:
    """Whenever it comes, what has been sent and what follows are one file."""
    with http.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "start", "response_format": audio_format})
        messages: list[dict[str, Any]] = []
        for _ in range(3):
            socket.send_json({"type": "text", "text": "slow " * 20 + ". "})
            socket.send_json({"type": "cancel"})
            messages += until(socket, "cancelled")
        socket.send_json({"type": "text", "text": "nuevo " * 20})
        socket.send_json({"type": "end"})
        messages += until(socket, "done")
    assert read_audio(audio_of(messages)).duration_seconds == pytest.approx(
        messages[-1]["duration_seconds"], abs=0.1
    )
    assert [m["type"] for m in messages].count("started") == 1


def test_contexts_do_not_mix(http: TestClient, fake: FakeSpeaker) -> None:
    names = ["a", "b", "c"]
    with http.websocket_connect(LIVE) as socket:
        for name in names:
            socket.send_json({"type": "start", "context_id": name, "response_format": "pcm", "seed": 1})
        for name in names:
            socket.send_json({"type": "text", "context_id": name, "text": f"texto {name} " * 5})
            socket.send_json({"type": "end", "context_id": name})
        messages: list[dict[str, Any]] = []
        for _ in names:
            messages += until(socket, "done")
    for name, speaking in zip(names, fake.spoken, strict=True):
        mine = [m for m in messages if m["context_id"] == name]
        assert audio_of(mine) == to_pcm16(speaking.samples).tobytes()


def test_a_client_that_leaves_ends_the_work(http: TestClient, fake: FakeSpeaker) -> None:
    with http.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "start", "response_format": "pcm"})
        socket.send_json({"type": "text", "text": "slow " * 100 + ". "})
        until(socket, "audio")
    assert fake.spoken[0].cancelled
    counted = fake.metrics.registry.get_sample_value
    assert counted("vits_responses_total", {"door": "websocket", "code": "cancelled"}) == 1


BAD: list[tuple[Any, str]] = [
    ("", "not JSON"),
    ("[" * 100_000, "not JSON"),
    ("3", "there is no message"),
    ({"type": "strat"}, "did you mean 'start'"),
    ({"type": []}, "there is no message"),
    ({"type": "text", "text": "a"}, "has not begun"),
    ({"type": "start", "speed": 9, "colour": 1}, "speed"),
    ({"type": "start", "ssml": True}, "SSML"),
    ({"type": "start", "input": "x"}, "there is no such field"),
    ({"type": "text", "text": "\ud800"}, "half a character"),
    ({"type": "text", "text": "x" * 1_000_000}, "longer"),
    ({"type": "flush", "context_id": "x" * 65}, "context_id"),
]


@pytest.mark.parametrize(("message", "said"), BAD)
def test_bad_messages(http: TestClient, message: Any, said: str) -> None:
    with http.websocket_connect(LIVE) as socket:
        socket.send_text(message if isinstance(message, str) else json.dumps(message))
        answer = socket.receive_json()
        assert answer["type"] == "error"
        assert answer["error"]["code"] in {"invalid_request", "request_too_large"}
        assert said in answer["error"]["message"]
        # The connection goes on.
        socket.send_json({"type": "start"})
        socket.send_json({"type": "text", "text": "uno"})
        socket.send_json({"type": "end"})
        until(socket, "done")


@pytest.mark.parametrize(("text", "code"), [("break", "engine_failed"), ("bug", "internal_error")])
def test_a_sentence_that_fails_ends_its_context(http: TestClient, text: str, code: str) -> None:
    with http.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "start", "context_id": "a"})
        socket.send_json({"type": "text", "context_id": "a", "text": text})
        socket.send_json({"type": "flush", "context_id": "a"})
        answer = socket.receive_json()
        assert (answer["type"], answer["context_id"], answer["error"]["code"]) == ("error", "a", code)
        assert "secret" not in str(answer)
        socket.send_json({"type": "start", "context_id": "a"})
        socket.send_json({"type": "end", "context_id": "a"})
        assert socket.receive_json()["type"] == "done"


def test_a_sentence_of_punctuation_is_announced_and_nothing_ends(http: TestClient) -> None:
    with http.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "start", "response_format": "pcm"})
        for text in ("uno", "mute", "dos"):
            socket.send_json({"type": "text", "text": text})
            socket.send_json({"type": "flush"})
        socket.send_json({"type": "end"})
        messages = until(socket, "done")
    assert [m["text"] for m in messages if m["type"] == "sentence"] == ["uno", "mute", "dos"]


def test_space_does_not_wait_to_be_spoken(http: TestClient) -> None:
    with http.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "start", "response_format": "pcm"})
        for _ in range(MAX_WAITING_CHARACTERS // 4000 + 1):
            socket.send_json({"type": "text", "text": " " * 4000})
        socket.send_json({"type": "text", "text": "uno"})
        socket.send_json({"type": "end"})
        until(socket, "done")


@pytest.mark.parametrize("late", [{"type": "text", "text": "dos"}, {"type": "flush"}, {"type": "end"}])
def test_what_comes_after_the_end_is_refused(
    http: TestClient, fake: FakeSpeaker, late: dict[str, Any]
) -> None:
    with http.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "start", "response_format": "pcm"})
        fake.gate.clear()
        for message in ({"type": "text", "text": "uno"}, {"type": "end"}, late):
            socket.send_json(message)
        while (answer := socket.receive_json())["type"] != "error":
            pass
        assert "has had its end" in answer["error"]["message"]
        assert http.portal
        http.portal.call(fake.gate.set)
        assert audio_of(until(socket, "done")) == to_pcm16(fake.spoken[0].samples).tobytes()


def test_flushes_that_nobody_could_answer_are_refused(http: TestClient, fake: FakeSpeaker) -> None:
    fake.gate.clear()
    with http.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "start"})
        socket.send_json({"type": "text", "text": "uno"})
        for _ in range(MAX_WAITING_FLUSHES + 1):
            socket.send_json({"type": "flush"})
        while (answer := socket.receive_json())["type"] != "error":
            assert answer["type"] != "flushed"
        assert str(MAX_WAITING_FLUSHES) in answer["error"]["message"]


def test_a_server_that_stops_finishes_sentences_and_closes(http: TestClient, fake: FakeSpeaker) -> None:
    """One context has had its end, one not; a third has nothing to say."""
    with http.websocket_connect(LIVE) as socket:
        fake.gate.clear()
        for context in ("a", "b", "c"):
            socket.send_json({"type": "start", "context_id": context, "response_format": "pcm"})
        for context in ("a", "b"):
            socket.send_json({"type": "text", "context_id": context, "text": f"uno {context}. "})
        socket.send_json({"type": "end", "context_id": "a"})
        # An answer shows that all of it has come.
        socket.send_json({"type": "text", "context_id": "d", "text": ""})
        messages: list[dict[str, Any]] = []
        while not messages or messages[-1]["type"] != "error":
            messages.append(socket.receive_json())
        assert http.portal
        http.portal.call(fake.draining.set)
        http.portal.call(fake.gate.set)
        while len(ended := [m for m in messages if m["type"] in {"done", "error"}]) < 4:
            messages.append(socket.receive_json())
        assert socket.receive()["code"] == 1012
    assert {m["context_id"]: m.get("error", {}).get("code") for m in ended[1:]} == {
        "a": None,
        "b": "stopping",
        "c": "stopping",
    }
    for speaking in fake.spoken:
        mine = [m for m in messages if m["context_id"] == speaking.order.text[4]]
        assert audio_of(mine) == to_pcm16(speaking.samples).tobytes()


def test_limits(http: TestClient, fake: FakeSpeaker) -> None:
    with http.websocket_connect(LIVE) as socket:
        for number in range(MAX_CONTEXTS + 1):
            socket.send_json({"type": "start", "context_id": str(number)})
        assert "at once" in socket.receive_json()["error"]["message"]
        socket.send_json({"type": "start", "context_id": "0"})
        assert "has begun already" in socket.receive_json()["error"]["message"]
        fake.gate.clear()
        for _ in range(MAX_WAITING_CHARACTERS // 4000 + 1):
            socket.send_json({"type": "text", "context_id": "0", "text": "a" * 4000})
        while (message := socket.receive_json())["type"] != "error":
            pass
        assert "wait to be spoken" in message["error"]["message"]
        fake.overloaded = 1
        socket.send_json({"type": "text", "context_id": "1", "text": "uno"})
        socket.send_json({"type": "flush", "context_id": "1"})
        busy = socket.receive_json()
        assert (busy["error"]["code"], busy["retry_after_seconds"]) == ("overloaded", 0.02)


def test_without_a_token(http: TestClient, tmp_path: Path) -> None:
    add_token(tmp_path / "tokens.json", "web")
    http.app.state.access = Access(tmp_path / "tokens.json")  # type: ignore[attr-defined]
    with http.websocket_connect(LIVE) as socket:
        assert socket.receive_json()["error"]["code"] == "invalid_api_key"
        assert socket.receive()["code"] == 3000


@pytest.mark.parametrize("browser", [False, True])
def test_with_a_token(http: TestClient, tmp_path: Path, browser: bool) -> None:
    token = add_token(tmp_path / "tokens.json", "web")
    http.app.state.access = Access(tmp_path / "tokens.json")  # type: ignore[attr-defined]
    headers = {} if browser else {"Authorization": f"Bearer {token}"}
    offered = ["vits.v1", f"token.{token}"] if browser else []
    with http.websocket_connect(LIVE, subprotocols=offered, headers=headers) as socket:
        assert socket.accepted_subprotocol == ("vits.v1" if browser else None)
        socket.send_json({"type": "start"})
        socket.send_json({"type": "end"})
        assert socket.receive_json()["type"] == "done"


VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
MESSAGE = st.fixed_dictionaries(
    {"type": st.sampled_from(list(MESSAGES))},
    optional={
        "context_id": st.sampled_from(["", "a"]) | VALUES,
        "text": st.text(max_size=60) | VALUES,
        "response_format": st.sampled_from(["pcm", "opus", "wav"]),
        "seed": VALUES,
    },
)


@given(messages=st.lists(MESSAGE, max_size=8))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_messages_are_ever_a_failure_of_the_server(
    http: TestClient, messages: list[dict[str, Any]]
) -> None:
    with http.websocket_connect(LIVE) as socket:
        for message in messages:
            socket.send_text(json.dumps(message))
        socket.send_json({"type": "start", "context_id": "last"})
        socket.send_json({"type": "end", "context_id": "last"})
        while (answer := socket.receive_json())["context_id"] != "last":
            assert answer["type"] != "error" or answer["error"]["type"] == "invalid_request_error"
        assert answer["type"] == "done"
