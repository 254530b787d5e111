"""Clients that go away, at every endpoint that reads or speaks."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette

if TYPE_CHECKING:
    from tests.unit.services.synthesis.http.conftest import FakeSpeaker

SPEECH, BATCH = "/v1/audio/speech", "/v1/audio/speech/batch"
TEXT = "un texto largo " * 100

Message = dict[str, Any]


def ask(app: Starlette, path: str, receive: Callable[[], Awaitable[Message]]) -> list[Message]:
    """What a request is answered by a server whose client sends, and leaves, as told."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(asyncio.wait_for(app(scope, receive, send), 10))  # type: ignore[arg-type]
    return sent


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (SPEECH, {"input": TEXT}),
        (SPEECH, {"input": TEXT, "stream_format": "sse"}),
        (SPEECH, {"input": TEXT, "stream_format": "json"}),
        (BATCH, {"inputs": [TEXT] * 9}),
        (BATCH, {"inputs": [TEXT] * 9, "output": "zip"}),
        ("/synthesize", {"input": TEXT}),
    ],
)
def test_a_client_that_goes_away_costs_nothing_more(
    app: Starlette, fake: FakeSpeaker, path: str, body: dict[str, Any]
) -> None:
    fake.gate.clear()
    coming = [json.dumps(body).encode()]

    async def receive() -> Message:
        if coming:
            return {"type": "http.request", "body": coming.pop(), "more_body": False}
        while not fake.spoken:
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    sent = ask(app, path, receive)
    assert all(speaking.cancelled for speaking in fake.spoken)
    assert len(fake.spoken) <= 4
    assert not any(message.get("body") for message in sent)
    # A batch has begun its answer before it speaks.
    code = "200" if path == BATCH else "cancelled"
    assert fake.metrics.registry.get_sample_value("vits_responses_total", {"door": "http", "code": code}) == 1


@pytest.mark.parametrize("path", [SPEECH, BATCH, "/synthesize"])
def test_an_upload_that_is_broken_off_is_no_failure_of_the_server(
    app: Starlette, fake: FakeSpeaker, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    coming = [b'{"input": "un', b' texto"']

    async def receive() -> Message:
        if coming:
            return {"type": "http.request", "body": coming.pop(0), "more_body": True}
        return {"type": "http.disconnect"}

    with caplog.at_level(logging.INFO, "vits"):
        assert ask(app, path, receive) == []
    assert caplog.records == []
    count = fake.metrics.registry.get_sample_value
    assert count("vits_responses_total", {"door": "http", "code": "cancelled"}) == 1


def test_audio_that_cannot_be_packed_is_not_spoken_on(
    app: Starlette, fake: FakeSpeaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_encoder(*_: object) -> None:
        raise OSError("this machine has none")

    monkeypatch.setattr("services.synthesis.packing.open_encoder", no_encoder)
    for path in (SPEECH, "/synthesize"):
        coming = [json.dumps({"input": TEXT}).encode()]

        async def receive(coming: list[bytes] = coming) -> Message:
            if coming:
                return {"type": "http.request", "body": coming.pop(), "more_body": False}
            return await asyncio.Future()

        assert ask(app, path, receive)[0]["status"] == 500
        assert fake.spoken[-1].cancelled
