"""Texts that nobody should send, through every way in: an answer always, a failure of the server never."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from starlette.testclient import TestClient

if TYPE_CHECKING:
    from tests.unit.services.synthesis.http.conftest import ErrorOf

BOMB = (
    '<!DOCTYPE s [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">'
    + "".join(f'<!ENTITY x{i} "&x{i - 1};&x{i - 1};">' for i in range(1, 30))
    + "]><speak>&x29;</speak>"
)
NASTY = {
    "empty": "",
    "blank": " \t\n\u2028\u00a0",
    "megabyte": "a" * 1_000_000,
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈" * 50,
    "right to left": "\u202eשלום עליכם مرحبا\u202c",
    "control characters": "".join(map(chr, range(32))) + "\x7f\x85\ufeff\ufffe\U0010ffff",
    "combining": "Z" + "\u0323\u0307\u0302" * 500,
    "lone surrogate": "a\ud800b",
    "lone low surrogate": "\udfff",
    "ssml bomb": BOMB,
    "ssml external entity": '<!DOCTYPE s [<!ENTITY e SYSTEM "file:///etc/passwd">]><speak>&e;</speak>',
    "ssml depth": "<speak>" + "<p>" * 1000,
    "ssml break for ever": '<speak><break time="99999999s"/></speak>',
    "numbers": "9" * 4000,
    "null": "\0",
    "format strings": "%s%n{0}${jndi:ldap://x}'; DROP TABLE voices; --",
}


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
@pytest.mark.parametrize("stream_format", ["audio", "sse", "json"])
def test_speech(http: TestClient, text: str, stream_format: str, error_of: ErrorOf) -> None:
    answer = http.post(
        "/v1/audio/speech", content=json.dumps({"input": text, "stream_format": stream_format})
    )
    if answer.status_code != 200:
        assert answer.status_code in {400, 413}
        error_of(answer)


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_batch(http: TestClient, text: str, error_of: ErrorOf) -> None:
    answer = http.post(
        "/v1/audio/speech/batch", content=json.dumps({"inputs": ["uno", text], "response_format": "pcm"})
    )
    if answer.status_code != 200:
        assert answer.status_code in {400, 413}
        error_of(answer)
    else:
        assert all(json.loads(line).get("status", 200) < 500 for line in answer.text.splitlines())


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_live(http: TestClient, text: str) -> None:
    with http.websocket_connect("/v1/audio/speech/live") as socket:
        for message in (
            {"type": "start", "response_format": "pcm"},
            {"type": "text", "text": text},
            {"type": "end"},
        ):
            socket.send_text(json.dumps(message))
        while (answer := socket.receive_json())["type"] not in {"done", "error"}:
            pass
        if answer["type"] == "error":
            assert answer["error"]["type"] == "invalid_request_error"
            assert answer["error"]["message"]


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_names_and_headers(http: TestClient, text: str, error_of: ErrorOf) -> None:
    for field in ("voice", "model", "language", "speaker"):
        answer = http.post("/v1/audio/speech", content=json.dumps({"input": "uno", field: text}))
        if answer.status_code != 200:
            assert answer.status_code in {400, 404, 413}
            error_of(answer)
