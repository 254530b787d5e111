"""``vits say``: the arguments it refuses, and a server's answers turned back into our errors."""

from __future__ import annotations

import base64
import http.server
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import grpc
import numpy as np
import pytest

from services import say
from shared.audio import encode_wav, read_audio
from shared.errors import (
    AccessError,
    EngineError,
    NotFoundError,
    OverloadedError,
    RequestError,
    UserError,
    VitsError,
)

SAMPLES = np.linspace(-1, 1, 8000, dtype=np.float32)


class Canned(http.server.BaseHTTPRequestHandler):
    """Answers every request with what the test put here."""

    status: ClassVar[int] = 200
    body: ClassVar[bytes] = b""
    more: ClassVar[dict[str, str]] = {}
    asked: ClassVar[list[Any]] = []
    tokens: ClassVar[list[str | None]] = []

    def do_POST(self) -> None:
        self.tokens.append(self.headers["Authorization"])
        self.asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        self.send_response(self.status)
        for name, value in self.more.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Canned.asked.clear()
    Canned.tokens.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Canned) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def test_through_a_server(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    headers = {"X-Vits-Seed": "9", "X-Vits-Voice": "joe/1", "X-Vits-Unknown": "%E4%BD%A0%23"}
    monkeypatch.setattr(Canned, "status", 200)
    monkeypatch.setattr(Canned, "body", encode_wav(SAMPLES, 8000))
    monkeypatch.setattr(Canned, "more", headers)
    output = tmp_path / "hola.wav"
    arguments = [
        "Hola",
        "-o",
        str(output),
        "--url",
        f"{server}/",
        "--seed",
        "9",
        "--speed",
        "2",
        "--voice",
        "joe",
    ]
    assert say.main([*arguments, "--speaker", "3"]) == 0
    body = {
        "input": "Hola",
        "voice": "joe",
        "speed": 2.0,
        "response_format": "wav",
        "ssml": False,
        "seed": 9,
        "speaker": "3",
    }
    assert Canned.asked == [("/v1/audio/speech", body)]
    assert read_audio(output).sampling_rate == 8000
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{output}: 1.00 s of audio at ")
    assert first.endswith(" times real time, seed 9, voice joe/1")
    assert second.endswith("'你' '#'")


def test_what_a_server_is_asked_for(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    audio = encode_wav(SAMPLES, 8000)
    words = [{"text": "Hola", "start_seconds": 0.0, "end_seconds": 0.5}]
    content = {"audio": base64.b64encode(audio).decode(), "timestamps": words}
    monkeypatch.setattr(Canned, "status", 200)
    monkeypatch.setattr(Canned, "body", json.dumps(content).encode())
    monkeypatch.setattr(Canned, "more", {"X-Vits-Seed": "9", "X-Vits-Voice": "joe/1"})
    monkeypatch.setenv("VITS_TOKEN", "secret")
    output = tmp_path / "hola.flac"
    say.main(
        [
            "Hola",
            "-o",
            str(output),
            "--url",
            server,
            "--timestamps",
            "vtt",
            "--ssml",
            "--language",
            "es",
            "--format",
            "wav",
        ]
    )
    _, body = Canned.asked[0]
    assert (body["ssml"], body["language"], body["timestamps"], body["stream_format"]) == (
        True,
        "es",
        True,
        "json",
    )
    assert Canned.tokens == ["Bearer secret"]
    assert output.read_bytes() == audio
    assert "00:00:00.000 --> 00:00:00.500\nHola" in output.with_suffix(".vtt").read_text()
    capfdbinary.readouterr()
    monkeypatch.setattr(Canned, "body", audio)
    say.main(["Hola", "-o", "-", "--url", server])
    out, err = capfdbinary.readouterr()
    assert out == audio
    assert b"seed 9, voice joe/1" in err


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (400, {"error": {"message": "speed: too fast", "param": "speed"}}, RequestError, "speed: too fast"),
        (404, {"error": {"message": "There is no voice 'x'"}}, RequestError, "no voice"),
        (401, {"error": {"message": "not valid"}}, AccessError, r"not valid.*VITS_TOKEN"),
        (429, {"error": {"message": "later"}}, OverloadedError, "later"),
        (500, {"error": {"message": "The server failed"}}, EngineError, "The server failed"),
        (404, "a page of some other server", RequestError, "404 .* 'vits serve'"),
    ],
)
def test_a_servers_errors(
    server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    body: Any,
    kind: type[VitsError],
    message: str,
) -> None:
    monkeypatch.setattr(Canned, "status", status)
    monkeypatch.setattr(Canned, "body", json.dumps(body).encode())
    monkeypatch.setattr(Canned, "more", {"Retry-After": "3"})
    with pytest.raises(kind, match=message) as caught:
        say.main(["Hola", "-o", str(tmp_path / "a.wav"), "--url", server])
    assert getattr(caught.value, "retry_after_seconds", 3.0) == 3.0
    assert not (tmp_path / "a.wav").exists()


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Canned) as free:
        port = free.server_address[1]
    with pytest.raises(UserError, match="does not answer"):
        say.main(["Hola", "-o", str(tmp_path / "a.wav"), "--url", f"http://127.0.0.1:{port}"])


def test_the_grpc_port_is_told_apart(tmp_path: Path) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(UserError, match="does not speak HTTP: that is probably the gRPC port"):
            say.main(["Hola", "-o", str(tmp_path / "a.wav"), "--url", f"http://127.0.0.1:{port}"])
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "a.txt"], r"ends in \.wav or another of .*\.mp3.*--format"),
        (["-o", "-", "--timestamps", "srt"], "give a file"),
        (["-o", "a.json", "--format", "wav", "--timestamps", "json"], "where --timestamps json are written"),
        (["-o", "a.wav", "--url", "grpc://localhost"], "grpc://host:port"),
        (["-o", "a.wav", "--url", "grpcs://localhost:1", "--ca", "no.pem"], "no.pem"),
        (["-o", "a.wav", "--url", "http://127.0.0.1:1", "--variant", "int8"], "--variant and --url"),
        (["-o", "a.wav", "--checkpoint", ".", "--ssml"], "--ssml needs an exported voice"),
        (["-o", "no/such/folder/a.wav"], "there is no folder no/such/folder"),
        (["-o", "a.wav", "--url", "localhost:3000"], "server's address"),
        (["-o", "a.wav", "--url", "file:///etc/passwd"], "server's address"),
        (["-o", "a.wav", "--checkpoint", ".", "--speaker", "ana"], "speaker's number"),
        (["-o", "a.wav", "--checkpoint", "nobody"], "no folder nobody, and the store has no such model"),
        (["-o", "a.wav", "--url", "http://127.0.0.1:1", "--store", "x"], "--store and --url"),
        *(
            (["-o", "a.wav", "--speed", speed], f"--speed is {speed}; it must be from 0.25 to 4")
            for speed in ("0", "-1", "5", "nan")
        ),
    ],
)
def test_arguments_that_cannot_be(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        say.main(["Hola", *arguments])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-o", "folder.wav"], r"folder\.wav cannot be written \(Is a directory\)"),
        (["-o", "folder", "--format", "wav"], r"folder cannot be written \(Is a directory\)"),
        (["-o", "a.wav", "--timestamps", "srt"], r"a\.srt cannot be written \(Is a directory\)"),
        (["-o", "/proc/a.wav"], "/proc cannot be written"),
        (["-o", f"{'a' * 300}.wav"], r"cannot be written \(File name too long\)"),
    ],
)
def test_an_output_that_cannot_be_written_is_told_before_anything_is_spoken(
    arguments: list[str], named: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("folder.wav", "folder", "a.srt"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{named}.*: give another --output"):
        say.main(["Hola", *arguments, "--url", server])
    assert Canned.asked == []
    assert not (tmp_path / "a.wav").exists()


def test_a_disk_that_is_full_when_it_is_spoken(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Canned, "status", 200)
    monkeypatch.setattr(Canned, "body", encode_wav(SAMPLES, 8000))
    output = tmp_path / "full.wav"
    output.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"full\.wav cannot be written \(No space.*: give another --output"):
        say.main(["Hola", "-o", str(output), "--url", server])
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(UserError, match=r"Standard output cannot be written \(No space"),
    ):
        say.pour([b"audio"], full)


def test_a_check_leaves_what_is_there(tmp_path: Path) -> None:
    output = tmp_path / "a.wav"
    output.write_bytes(b"older")
    say.check(say.parser().parse_args(["Hola", "-o", str(output)]))
    assert output.read_bytes() == b"older"


def test_a_player_that_has_gone_is_no_error_of_the_output() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb", buffering=0) as out, pytest.raises(BrokenPipeError):
        say.pour([b"audio"], out)


def test_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"holds no voice: there is no folder .*store yet\..*vits export"):
        say.main(["Hola", "-o", str(tmp_path / "a.wav"), "--store", str(tmp_path / "store")])
    assert not (tmp_path / "store").exists()
