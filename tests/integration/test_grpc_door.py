"""gRPC, its client and ``vits say`` on a real (tiny, random) voice, in a real ``vits serve``."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from shared.audio import read_audio
from tests.integration.served import ROOT, VITS, Server, World, serving
from vits_client import Client, InvalidRequestError, UnavailableError

TEXT = "Hola, ¿cómo estás? Hoy es un buen día para salir a pasear. Adiós."

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(f"grpc://{server.grpc_address}", timeout_seconds=60) as client:
        yield client


def test_whole_streamed_and_in_a_batch_are_the_same(client: Client) -> None:
    whole = client.speak(TEXT, seed=7, audio_format="pcm", timestamps=True)
    with client.stream(TEXT, seed=7, timestamps=True) as stream:
        pieces = list(stream)
    assert len(pieces) > 1
    assert b"".join(pieces) == whole.audio
    assert stream.timestamps == list(whole.timestamps)
    assert whole.timestamps[0].text.startswith("Hola")
    assert whole.timestamps[-1].end_seconds <= whole.duration_seconds + 0.01
    (result,) = client.speak_batch([TEXT], seed=7, audio_format="pcm")
    assert result.speech
    assert result.speech.audio == whole.audio


def test_pieces_are_the_sentences_spoken_alone(client: Client) -> None:
    sentences = ["Hola, ¿cómo estás?", "Hoy es un buen día para salir a pasear.", "Adiós."]
    alone = [client.speak(one, seed=7, audio_format="pcm").audio for one in sentences]
    stream = client.stream_pieces((word + " " for word in TEXT.split(" ")), seed=7)
    audio = b"".join(stream)
    assert stream.start
    silence = bytes(2 * round(0.3 * stream.start.sampling_rate))
    assert audio == silence.join(alone)


def test_voices(client: Client) -> None:
    (voice,) = client.voices()
    assert (voice.name, voice.sampling_rate, voice.is_default) == ("tiny", 16000, True)
    assert client.speak("uno", voice=f"tiny/{voice.version}").voice_version == voice.version


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE x [<!ENTITY a "haha"><!ENTITY b "&a;&a;&a;&a;">]><speak>&b;&b;&b;</speak>',
        "<speak>sin final",
        "<speak>" * 400,
        "\x00\x01\x02",
        "👩‍👩‍👧‍👦",
        "‮שלום‬",
    ],
)
def test_nasty_texts(client: Client, text: str) -> None:
    for ssml in (True, False):
        with suppress(InvalidRequestError):
            assert client.speak(text, ssml=ssml).audio


def test_say_into_a_player(world: World, server: Server) -> None:
    sounds = []
    for more in ([], ["--url", server.url], ["--url", f"grpc://{server.grpc_address}"]):
        command = [*VITS, "say", TEXT, "--seed", "7", "-o", "-", *more]
        done = subprocess.run(command, cwd=ROOT, env=world.environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        sounds.append(read_audio(done.stdout, format="wav").samples)
    assert sounds[0].size > 16000
    for sound in sounds[1:]:
        assert np.array_equal(sound, sounds[0])


def test_say_with_captions(world: World, server: Server) -> None:
    captions = []
    for name, more in (("here", []), ("there", ["--url", f"grpc://{server.grpc_address}"])):
        output = world.root / f"{name}.opus"
        world.vits("say", TEXT, "--seed", "7", "-o", str(output), "--timestamps", "srt", *more)
        captions.append(output.with_suffix(".srt").read_text())
    assert captions[0] == captions[1]
    assert captions[0].startswith("1\n00:00:00,")


def self_signed(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate that is its own authority, and its key."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
            "-keyout", key, "-out", certificate, "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return certificate, key


@needs_openssl
def test_serve_with_tls(world: World, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path, "localhost")
    with serving(world, "--grpc-tls-cert", str(certificate), "--grpc-tls-key", str(key)) as server:
        output = tmp_path / "hola.wav"
        world.vits(
            "say",
            TEXT,
            "-o",
            str(output),
            "--url",
            f"grpcs://{server.grpc_address}",
            "--ca",
            str(certificate),
        )
        assert read_audio(output).duration_seconds > 0.5
        with (
            Client(f"grpc://{server.grpc_address}", timeout_seconds=5) as plain,
            pytest.raises(UnavailableError),
        ):
            plain.voices()
        assert server.stop() == 0
    refused = world.run(*VITS, "serve", "--http-port", "0", "--grpc-port", "0", "--grpc-tls-cert", "no.pem")
    assert refused.returncode == 2
    assert "--grpc-tls-key is missing" in refused.stderr


@needs_openssl
def test_serve_with_mtls(world: World, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path, "server")
    own, own_key = self_signed(tmp_path, "client")
    options = ("--grpc-tls-cert", certificate, "--grpc-tls-key", key, "--grpc-tls-client-ca", own)
    with serving(world, *map(str, options)) as server:
        url = f"grpcs://{server.grpc_address}"
        for files in ((None, None), (certificate, key)):
            with (
                Client(
                    url, root_certificates=certificate, certificate=files[0], key=files[1], timeout_seconds=5
                ) as stranger,
                pytest.raises(UnavailableError),
            ):
                stranger.speak("uno")
        with Client(url, root_certificates=certificate, certificate=own, key=own_key) as friend:
            assert friend.speak("uno").audio
