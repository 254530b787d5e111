"""How a text is read, as a request may say it: SSML, language and lexicon, heard at both doors of a real server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from shared.protos.vits.synthesis.v1 import synthesis_pb2 as pb
from shared.protos.vits.synthesis.v1.synthesis_pb2_grpc import SynthesisServiceStub
from tests.integration.served import Server, World, serving

SPEECH = "/v1/audio/speech"
SEED = 7
#: Half a second at the tiny voice's rate, as PCM.
HALF_A_SECOND = bytes(2 * 8000)

Ask = Callable[..., bytes]


@pytest.fixture(scope="module")
def lexicon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny voice's own, which tests may change."""
    path = tmp_path_factory.mktemp("lexicons") / "tiny.json"
    path.write_text("{}")
    return path


@pytest.fixture(scope="module")
def server(world: World, lexicon: Path) -> Iterator[Server]:
    with serving(world, "--lexicons", str(lexicon.parent)) as server:
        yield server


@pytest.fixture(scope="module")
def stub(server: Server) -> Iterator[Any]:
    with grpc.insecure_channel(server.grpc_address) as channel:
        yield SynthesisServiceStub(channel)


def over_http(server: Server, text: str, **fields: Any) -> httpx.Response:
    body = {"input": text, "seed": SEED, "response_format": "pcm", **fields}
    return httpx.post(f"{server.url}{SPEECH}", json=body, timeout=60)


def over_grpc(stub: Any, text: str, **fields: Any) -> Any:
    fields["ssml"] = text.startswith("<speak")
    request = pb.SynthesizeRequest(text=text, seed=SEED, audio_format=pb.AUDIO_FORMAT_PCM, **fields)
    return stub.Synthesize.future(request, timeout=60)


@pytest.fixture(scope="module")
def ask(server: Server, stub: Any) -> Ask:
    """The samples of a text, once both doors have given the same."""

    def same_at_both(text: str, **fields: Any) -> bytes:
        answer = over_http(server, text, **fields)
        assert answer.status_code == 200, answer.text
        assert over_grpc(stub, text, **fields).result().audio == answer.content
        return answer.content

    return same_at_both


@pytest.mark.parametrize(
    ("ssml", "plain"),
    [
        ('Hola, <sub alias="uno dos">1/2</sub>.', "Hola, uno dos."),
        ('El <say-as interpret-as="characters">ONU</say-as> va', "El o ene u va"),
        ('El <say-as interpret-as="ordinal">3</say-as> va', "El tercero va"),
        ('Tengo <lang xml:lang="es-MX">25</lang>', "Tengo veinticinco"),
    ],
)
def test_ssml_is_read_as_it_says(ask: Ask, ssml: str, plain: str) -> None:
    assert ask(f"<speak>{ssml}</speak>") == ask(plain)


def test_a_break_is_a_silence_of_its_length(ask: Ask) -> None:
    # Without noise, of which every segment has its own.
    plain = {"noise_scale": 0.0, "noise_scale_duration": 0.0}
    heard = ask('<speak>uno<break time="500ms"/>dos</speak>', **plain)
    assert heard == ask("uno", **plain) + HALF_A_SECOND + ask("dos", **plain)


def test_a_rate_within_a_text_is_that_of_a_whole_one(ask: Ask, server: Server, stub: Any) -> None:
    slow = ask('<speak><prosody rate="50%">hola</prosody></speak>')
    assert slow == over_http(server, "hola", speed=0.5).content
    assert slow == over_grpc(stub, "hola", speaking_rate=0.5).result().audio
    assert len(slow) > len(ask("hola"))


@pytest.mark.parametrize(
    ("language", "plain"),
    [("en", "Twenty-five"), ("fr", "Vingt-cinq"), ("es-MX", "Veinticinco"), (None, "Veinticinco")],
)
def test_a_language_reads_the_numbers(ask: Ask, language: str | None, plain: str) -> None:
    assert ask("25", **{"language": language} if language else {}) == ask(plain)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            'a\n<lang xml:lang="en">tea</lang>',
            "line 2: <lang> asks for 'en', and this voice speaks only 'es'",
        ),
        ('<phoneme ph="ola">hola</phoneme>', "<phoneme> needs a voice that speaks from phonemes"),
        ('<audio src="x"/>', "<audio> is not supported"),
    ],
)
def test_ssml_that_this_voice_cannot_speak_is_said_at_both_doors(
    server: Server, stub: Any, body: str, said: str
) -> None:
    text = f"<speak>{body}</speak>"
    answer, outcome = over_http(server, text), over_grpc(stub, text)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert outcome.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert said in outcome.details()


def test_a_lexicon_that_changes_is_heard_without_a_restart(ask: Ask, lexicon: Path) -> None:
    as_written = ask("Va el ovni")
    for spelling in ("objeto", "una cosa"):
        lexicon.write_text(json.dumps({"ovni": spelling}))
        assert ask("Va el ovni") == ask(f"Va el {spelling}") != as_written
    lexicon.write_text('{"ovni": ')  # half of one: what was good stays
    assert ask("Va el ovni") == ask("Va el una cosa")
    lexicon.unlink()
    assert ask("Va el ovni") == as_written
