"""``vits say``: one text into one WAV file."""

from __future__ import annotations

import argparse
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from shared.audio import read_audio, write_wav
from shared.errors import EngineError, MissingExtraError, OverloadedError, RequestError, UserError
from shared.model_source import find_model
from shared.store import default_store_url

EPILOG = """\
examples:
  vits say "Hola, ¿cómo estás?" -o hola.wav
      with the newest voice of ./store (or $VITS_STORE), in this process
  vits say "Hola" -o hola.wav --voice joe@production --seed 7 --speed 0.9
      a chosen voice; the same seed gives the same samples again
  vits say "Hola" -o hola.wav --url http://127.0.0.1:3000
      through a server that 'vits serve' started
  vits say "Hola" -o hola.wav --checkpoint output/checkpoint-200
      with a model that has not been exported (needs the extra 'train')
  vits say "Hola" -o hola.wav --checkpoint my-voice@latest
      the same with a model in the store
"""

#: A server may have to load the voice first, and a long text takes its time.
TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Said:
    """What came out.

    Attributes:
        samples: float32 ``[S]``.
        sampling_rate: Hz.
        seed: The seed that was used.
        voice: Who spoke, and in which version.
        unknown: What was left out.
    """

    samples: NDArray[np.float32]
    sampling_rate: int
    seed: int
    voice: str
    unknown: tuple[str, ...] = ()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="vits say",
        description="Speak one text into a WAV file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("text", help="what to say")
    add("-o", "--output", type=Path, default=Path("speech.wav"), help="file to write (default: %(default)s)")
    where = made.add_mutually_exclusive_group()
    where.add_argument("--url", help="speak through this server")
    where.add_argument(
        "--checkpoint", metavar="MODEL", help="speak with this model: a folder, or a model in the store"
    )
    add("--store", metavar="URL", help="where voices and models are found (default: $VITS_STORE, or ./store)")
    add("--voice", metavar="NAME", default="", help="name, name@alias or name/version (default: the newest)")
    add("--speaker", metavar="NAME", help="name or number of a speaker of the voice (default: its first)")
    add("--seed", type=int, help="0 to 2^53 - 1; the same seed gives the same samples (default: drawn)")
    add("--speed", type=float, default=1.0, help="0.25 to 4; 2 is twice as fast (default: %(default)s)")
    return made


def say_in_process(arguments: argparse.Namespace) -> Callable[[], Said]:
    """Open a voice of the store; the call that is returned speaks."""
    from services.synthesis.voices import default_voice
    from shared.registry import Registry
    from shared.store import Store
    from shared.voice import Voice

    registry = Registry(Store.open(arguments.store or default_store_url()))
    version = registry.resolve("voices", arguments.voice or default_voice(registry))
    voice = Voice.open(registry.fetch(version))

    def speak() -> Said:
        speech = voice.synthesize(
            arguments.text, speaker=arguments.speaker, seed=arguments.seed, speaking_rate=arguments.speed
        )
        unknown = speech.script.unknown
        return Said(speech.samples, speech.sampling_rate, speech.seed, version.reference, unknown)

    return speak


def say_with_checkpoint(arguments: argparse.Namespace) -> Callable[[], Said]:
    """Speak with a model as training left it.

    Raises:
        MissingExtraError: PyTorch is not installed.
        UserError: The speaker is not a number, or there is no such model.
    """
    speaker: str | None = arguments.speaker
    if speaker is not None and not (speaker.isascii() and speaker.isdigit()):
        raise UserError(
            f"--speaker is {speaker!r}; with --checkpoint give the speaker's number, counted from 0"
        )
    try:
        from shared.modeling import inference
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"--checkpoint needs the package {error.name!r}, which is not installed. "
            "Install the extra: pip install 'vits-suite[train]'"
        ) from error
    source = find_model(arguments.checkpoint, arguments.store or default_store_url())
    name = source.version.reference if source.version else str(source.folder)

    def speak() -> Said:
        spoken = inference.speak(
            source.folder,
            arguments.text,
            speaker=None if speaker is None else int(speaker),
            seed=arguments.seed,
            speaking_rate=None if arguments.speed == 1.0 else arguments.speed,
        )
        return Said(spoken.samples, spoken.sampling_rate, spoken.seed, name)

    return speak


def say_through_server(arguments: argparse.Namespace) -> Callable[[], Said]:
    """Speak through ``POST /v1/audio/speech`` of a server.

    Raises:
        UserError: The address is not one of HTTP, or a store is given too.
    """
    if arguments.store:
        raise UserError("--store and --url are given: a server speaks with the voices of its own store")
    parts = urlsplit(arguments.url)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise UserError(f"--url is {arguments.url!r}; give a server's address such as http://127.0.0.1:3000")
    body: dict[str, object] = {"input": arguments.text, "voice": arguments.voice, "speed": arguments.speed}
    body["response_format"] = "wav"
    body |= {name: value for name in ("speaker", "seed") if (value := getattr(arguments, name)) is not None}
    request = urllib.request.Request(  # noqa: S310 - the scheme was checked
        f"{arguments.url.rstrip('/')}/v1/audio/speech",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )

    def speak() -> Said:
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310
                audio, headers = response.read(), response.headers
        except urllib.error.HTTPError as error:
            raise _refused(error) from error
        except http.client.HTTPException as error:
            raise UserError(
                f"What answers at {arguments.url} does not speak HTTP: that is probably the gRPC port of "
                "'vits serve'. Give the address that it says HTTP is on (its --http-port, 3000 by default)"
            ) from error
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise UserError(
                f"{arguments.url} does not answer: {reason}. Is 'vits serve' running there?"
            ) from error
        decoded = read_audio(audio, format="wav")
        return Said(
            decoded.samples,
            decoded.sampling_rate,
            seed=int(headers["X-Vits-Seed"]),
            voice=headers["X-Vits-Voice"],
            unknown=tuple(unquote(headers.get("X-Vits-Unknown", ""))),
        )

    return speak


def _refused(error: urllib.error.HTTPError) -> Exception:
    """The error that a server answered with, as one of ours."""
    with error:
        body = error.read()
    try:
        content = json.loads(body)["error"]
        message, param = str(content["message"]), content.get("param")
    except (ValueError, KeyError, TypeError):
        message, param = f"The server answered {error.code} {error.reason}. Is it one of 'vits serve'?", None
    if error.code == HTTPStatus.TOO_MANY_REQUESTS:
        return OverloadedError(message, retry_after_seconds=float(error.headers.get("Retry-After", "1")))
    if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return EngineError(message)
    return RequestError(message, param=param)


def main(argv: Sequence[str]) -> int:
    """Speak, write, and print one line."""
    from services.synthesis.speaker import MAX_SPEAKING_RATE, MIN_SPEAKING_RATE

    arguments = parser().parse_args(argv)
    output: Path = arguments.output
    if output.suffix.lower() != ".wav":
        raise UserError(f"--output is {output}; 'vits say' writes WAV: give a name that ends in .wav")
    if not output.parent.is_dir():
        raise UserError(f"--output is {output}, and there is no folder {output.parent}: make it first")
    if not MIN_SPEAKING_RATE <= arguments.speed <= MAX_SPEAKING_RATE:
        raise UserError(
            f"--speed is {arguments.speed:g}; it must be from {MIN_SPEAKING_RATE:g} to {MAX_SPEAKING_RATE:g}"
        )
    prepare = say_in_process
    if arguments.url:
        prepare = say_through_server
    elif arguments.checkpoint:
        prepare = say_with_checkpoint
    speak = prepare(arguments)
    start = time.perf_counter()
    said = speak()
    elapsed = time.perf_counter() - start
    write_wav(output, said.samples, said.sampling_rate)
    seconds = len(said.samples) / said.sampling_rate
    line = f"{output}: {seconds:.2f} s of audio at {elapsed / seconds:.3f} times real time"
    print(f"{line}, seed {said.seed}, voice {said.voice}")
    if said.unknown:
        print(f"  left out, since the voice does not know them: {' '.join(map(repr, said.unknown))}")
    return 0
