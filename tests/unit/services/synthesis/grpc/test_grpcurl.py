"""grpcurl, which knows of the service only what reflection tells it, gets audio."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.unit.services.synthesis.grpc.conftest import Running

GRPCURL = Path(sys.executable).with_name("grpcurl")
SERVICE = "vits.synthesis.v1.SynthesisService"

pytestmark = pytest.mark.skipif(
    not GRPCURL.exists(), reason="grpcurl is not installed: the extra 'dev' has it for Linux on x86-64"
)


def grpcurl(server: Running, *arguments: str, body: Any = None) -> subprocess.CompletedProcess[str]:
    """Call; ``body`` is one message or several."""
    data = [] if body is None else ["-d", body if isinstance(body, str) else json.dumps(body)]
    command = [str(GRPCURL), "-plaintext", "-max-time", "20", *data, server.address, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def messages(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    decoder, found, rest = json.JSONDecoder(), [], done.stdout.strip()
    while rest:
        message, end = decoder.raw_decode(rest)
        found.append(message)
        rest = rest[end:].strip()
    return found


def test_reflection(server: Running) -> None:
    listed = grpcurl(server, "list").stdout.split()
    assert {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= set(listed)
    described = grpcurl(server, "describe", SERVICE).stdout
    for method in (
        "Synthesize",
        "SynthesizeStream",
        "SynthesizeIncremental",
        "SynthesizeBatch",
        "ListVoices",
    ):
        assert f"rpc {method} " in described


def test_health(server: Running) -> None:
    assert messages(grpcurl(server, "grpc.health.v1.Health/Check", body={"service": SERVICE})) == [
        {"status": "SERVING"}
    ]


def test_audio(server: Running, expected: Callable[[str, int], bytes]) -> None:
    request = {"text": "uno dos", "seed": 7, "audio_format": "AUDIO_FORMAT_PCM"}
    (whole,) = messages(grpcurl(server, f"{SERVICE}/Synthesize", body=request))
    audio = base64.b64decode(whole["audio"])
    assert audio == expected("uno dos", 7)
    start, *chunks, end = messages(grpcurl(server, f"{SERVICE}/SynthesizeStream", body={"request": request}))
    assert start["start"]["voice"] == "ana"
    assert b"".join(base64.b64decode(chunk["chunk"]["audio"]) for chunk in chunks) == audio
    assert list(end["end"].values()) == [0.2]
    said = '{"start": {"seed": 7}} {"text": "uno"} {"text": " dos"}'
    pieces = messages(grpcurl(server, f"{SERVICE}/SynthesizeIncremental", body=said))
    assert b"".join(base64.b64decode(one["chunk"]["audio"]) for one in pieces if "chunk" in one) == audio
    batch = messages(
        grpcurl(server, f"{SERVICE}/SynthesizeBatch", body={"requests": [request, {"text": ""}]})
    )
    by_index = {one.get("index", 0): one for one in batch}
    assert base64.b64decode(by_index[0]["speech"]["audio"]) == audio
    assert by_index[1]["failure"]["field"] == "text"
    (voices,) = messages(grpcurl(server, f"{SERVICE}/ListVoices"))
    assert [voice["name"] for voice in voices["voices"]] == ["ana", "luis"]


def test_errors_with_their_details(server: Running) -> None:
    done = grpcurl(server, f"{SERVICE}/Synthesize", body={"text": "uno", "speaking_rate": 9})
    assert done.returncode != 0
    for told in ("InvalidArgument", "speaking_rate", "is 9; it must be from 0.25 to 4", "INVALID_REQUEST"):
        assert told in done.stderr
