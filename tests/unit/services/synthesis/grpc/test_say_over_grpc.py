"""``vits say`` through gRPC: into a file, into standard output, with captions; errors as our own."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services import say
from services.synthesis.access import Access, add_token
from shared.audio import read_audio
from shared.errors import (
    AccessError,
    EngineError,
    NotFoundError,
    OverloadedError,
    RequestError,
    UserError,
    VitsError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.services.synthesis.grpc.conftest import Running, ScriptedSpeaker, Serve


def test_into_a_file_with_captions(
    server: Running, speaker: ScriptedSpeaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "hola.mp3"
    options = ["--seed", "7", "--speed", "2", "--ssml", "--language", "es", "--speaker", "1"]
    arguments = ["uno dos 你", "-o", str(output), "--url", server.url, "--timestamps", "srt", *options]
    assert say.main(arguments) == 0
    order = speaker.spoken[0].order
    assert (order.seed, order.speaking_rate, order.ssml, order.language, order.speaker) == (
        7, 2.0, True, "es", "1",
    )  # fmt: skip
    assert read_audio(output).duration_seconds == pytest.approx(0.3, abs=0.1)
    captions = output.with_suffix(".srt").read_text()
    assert captions.startswith("1\n00:00:00,000 --> 00:00:00,100\nuno\n")
    first, second = capsys.readouterr().out.splitlines()
    assert "0.30 s of audio" in first
    assert first.endswith("seed 7, voice ana/1")
    assert "'你'" in second


def test_into_a_player(
    server: Running, expected: Callable[[str, int], bytes], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    arguments = ["uno dos", "-o", "-", "--format", "pcm", "--seed", "3", "--url", server.url]
    assert say.main(arguments) == 0
    out, err = capfdbinary.readouterr()
    assert out == expected("uno dos", 3)
    assert b"0.20 s of audio" in err


def test_a_text_from_standard_input(
    server: Running, speaker: ScriptedSpeaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("uno\ndos\n"))
    assert say.main(["-", "-o", str(tmp_path / "a.wav"), "--url", server.url]) == 0
    assert speaker.spoken[0].order.text == "uno\ndos\n"


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["***"], RequestError, "can be spoken"),
        (["uno", "--seed", str(2**60)], RequestError, "seed: is"),
        (["uno", "--seed", "-1"], RequestError, "--seed"),
        (["uno", "--voice", "nobody"], NotFoundError, "there are: ana"),
        (["bug"], EngineError, "its log says why"),
        (["uno fails", "-o", "-"], EngineError, "its log says why"),
    ],
)
def test_errors(
    server: Running, tmp_path: Path, arguments: list[str], kind: type[VitsError], message: str
) -> None:
    text, *more = arguments
    with pytest.raises(kind, match=message):
        say.main([text, "-o", str(tmp_path / "a.wav"), "--url", server.url, *more])
    assert not (tmp_path / "a.wav").exists()


def test_overload_and_nobody_there(server: Running, speaker: ScriptedSpeaker, tmp_path: Path) -> None:
    output = str(tmp_path / "a.wav")
    speaker.overloaded = 1
    with pytest.raises(OverloadedError, match="Try again"):
        say.main(["uno", "-o", output, "--url", server.url])
    with pytest.raises(UserError, match="does not answer"):
        say.main(["uno", "-o", output, "--url", "grpc://127.0.0.1:1"])


def test_the_token_comes_from_the_environment(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = add_token(tmp_path / "tokens.json", "me")
    arguments = ["uno", "-o", str(tmp_path / "a.wav"), "--url"]
    with serve(access=Access(tmp_path / "tokens.json")) as server:
        with pytest.raises(AccessError, match="VITS_TOKEN"):
            say.main([*arguments, server.url])
        monkeypatch.setenv("VITS_TOKEN", token)
        assert say.main([*arguments, server.url]) == 0
