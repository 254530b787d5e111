"""``vits say``: one text into one file or into a player; in this process, or through a server."""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from shared.arguments import Parser
from shared.audio import read_audio
from shared.audio_encoding import FORMATS, available_formats, encode, open_encoder
from shared.errors import (
    AccessError,
    DeadlineError,
    EngineError,
    MissingExtraError,
    NotFoundError,
    OverloadedError,
    QuotaError,
    RequestError,
    UserError,
    VitsError,
)
from shared.folders import check_writable, writing
from shared.languages import language_code
from shared.model_source import find_model
from shared.store import default_store_url
from shared.text.timestamps import Timed, to_json, to_srt, to_vtt

if TYPE_CHECKING:
    import vits_client

EPILOG = """\
examples:
  vits say "Hola, ¿cómo estás?" -o hola.wav
      with the newest voice of ./store (or $VITS_STORE), in this process
  vits say "Hola" -o hola.mp3 --voice joe@production --seed 7 --speed 0.9
      a chosen voice; the same seed gives the same samples again
  vits say - -o - < chapter.txt | ffplay -nodisp -autoexit -
      a text from standard input, heard while it is made ('| aplay' plays it, too)
  vits say '<speak>Hola <break time="1s"/> adiós</speak>' --ssml --timestamps srt -o hola.wav
      SSML, and captions beside the sound in hola.srt
  vits say "Hola" -o hola.wav --url http://127.0.0.1:3000
  vits say "Hola" -o hola.wav --url grpc://127.0.0.1:50051
      through a server that 'vits serve' started; grpcs:// and https:// with TLS
  vits say "Hola" -o hola.wav --checkpoint output/checkpoint-200
      with a model that has not been exported (needs the extra 'train')
  vits say "Hola" -o hola.wav --checkpoint my-voice@latest
      the same with a model in the store

environment:
  VITS_STORE  the store, where --store is not given
  VITS_TOKEN  the token that --url's server asks for, where it does
"""

#: A server may have to load the voice first, and a long text takes its time.
TIMEOUT_SECONDS = 600

#: What a file's name ends in, beside the formats' own names.
SUFFIXES = {"ogg": "opus", "raw": "pcm"}

OUTPUT_REMEDY = "give another --output"

#: What each kind of captions is made by.
CAPTIONS: dict[str, Callable[[Sequence[Timed]], str]] = {"srt": to_srt, "vtt": to_vtt, "json": to_json}


@dataclass
class Said:
    """What comes out.

    Attributes:
        audio: The bytes of the file, in pieces where they are wanted while they are made.
        seed: The seed that is used.
        voice: Who speaks, and in which version.
        unknown: What is left out.
        seconds: Length of the audio; known at the end, and None where nobody tells.
        timestamps: When each word is heard; known at the end, where it was asked for.
    """

    audio: Iterable[bytes]
    seed: int
    voice: str
    unknown: Sequence[str] = ()
    seconds: float | None = None
    timestamps: list[Timed] = field(default_factory=list)


Speak = Callable[[], Said]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(
        prog="vits say",
        description="Speak one text into a file, or into a player while it is made.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("text", help="what to say; '-' reads it from standard input")
    add(
        "-o",
        "--output",
        type=Path,
        default=Path("speech.wav"),
        help="file to write; '-' writes to standard output while the audio is made (default: %(default)s)",
    )
    add(
        "--format",
        choices=available_formats(),
        help="format of the audio (default: what the file's name ends in; wav for '-')",
    )
    add(
        "--timestamps",
        choices=CAPTIONS,
        help="write when each word is heard, too, beside the output: speech.srt for speech.wav",
    )
    where = made.add_mutually_exclusive_group()
    where.add_argument(
        "--url", help="speak through this server: http://host:port, https://…, grpc://host:port or grpcs://…"
    )
    where.add_argument(
        "--checkpoint", metavar="MODEL", help="speak with this model: a folder, or a model in the store"
    )
    add("--store", metavar="URL", help="where voices and models are found (default: $VITS_STORE, or ./store)")
    add("--voice", metavar="NAME", default="", help="name, name@alias or name/version (default: the newest)")
    add(
        "--variant",
        metavar="NAME",
        help="the voice's precision: fp32, bf16…, or auto: what its export recommends here (default: auto)",
    )
    add("--speaker", metavar="NAME", help="name or number of a speaker of the voice (default: its first)")
    add("--seed", type=int, help="0 to 2^53 - 1; the same seed gives the same samples (default: drawn)")
    add("--speed", type=float, default=1.0, help="0.25 to 4; 2 is twice as fast (default: %(default)s)")
    add(
        "--language",
        type=language_code,
        metavar="TAG",
        help="read numbers, dates and the like in this language, such as es (default: the voice's)",
    )
    add("--ssml", action="store_true", help="the text is SSML: a <speak> element")
    tls = made.add_argument_group("gRPC with TLS (grpcs://)")
    tls.add_argument("--ca", metavar="FILE", help="PEM of who signed the server's certificate")
    tls.add_argument("--cert", metavar="FILE", help="PEM of a certificate of one's own, if the server asks")
    tls.add_argument("--key", metavar="FILE", help="PEM of its key")
    return made


# In this process.


def say_in_process(arguments: argparse.Namespace) -> Speak:
    """Open a voice of the store; the call that is returned speaks."""
    from shared.registry import Registry, default_voice
    from shared.store import Store
    from shared.voice import Voice
    from shared.voice.voice import SpeechParameters

    registry = Registry(Store.open(arguments.store or default_store_url()))
    version = registry.resolve("voices", arguments.voice or default_voice(registry))
    voice = Voice.open(registry.fetch(version), variant=arguments.variant or "auto")

    def speak() -> Said:
        options = {"ssml": arguments.ssml, "language": arguments.language}
        parameters = {
            "speaker": arguments.speaker,
            "seed": arguments.seed,
            "speaking_rate": arguments.speed,
        }
        if arguments.streamed:
            plan = voice.plan(arguments.text, SpeechParameters(**parameters), **options)
            samples = voice.speak(plan)
            streamed = Said((), plan.seed, version.reference, plan.script.unknown)
            streamed.audio = packed(samples, voice.sampling_rate, arguments.format, streamed)
            return streamed
        speech = voice.synthesize(arguments.text, **options, timed=bool(arguments.timestamps), **parameters)
        rate = speech.sampling_rate
        said = Said(
            [encode(arguments.format, speech.samples, rate)],
            speech.seed,
            version.reference,
            speech.script.unknown,
            len(speech.samples) / rate,
        )
        if arguments.timestamps:
            from shared.text.timestamps import word_times

            hop_length = voice.spec.hop_length
            said.timestamps = word_times(
                speech.script, speech.durations, hop_length=hop_length, sampling_rate=rate
            )
        return said

    return speak


def packed(
    pieces: Iterable[NDArray[np.float32]], sampling_rate: int, audio_format: str, said: Said
) -> Iterator[bytes]:
    """Pack samples while they are made; note at the end how long they were."""
    encoder, samples = open_encoder(audio_format, sampling_rate), 0
    for piece in pieces:
        samples += len(piece)
        yield encoder.encode(piece)
    yield encoder.finish()
    said.seconds = samples / sampling_rate


def say_with_checkpoint(arguments: argparse.Namespace) -> Speak:
    """Speak with a model as training left it.

    Raises:
        MissingExtraError: PyTorch is not installed.
        UserError: The speaker is not a number, there is no such model, or it cannot do what is asked.
    """
    speaker: str | None = arguments.speaker
    if speaker is not None and not (speaker.isascii() and speaker.isdigit()):
        raise UserError(
            f"--speaker is {speaker!r}; with --checkpoint give the speaker's number, counted from 0"
        )
    for name in ("ssml", "language", "timestamps", "variant"):
        if getattr(arguments, name):
            raise UserError(
                f"--{name} needs an exported voice: 'vits export' makes one of --checkpoint's model"
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
        audio = encode(arguments.format, spoken.samples, spoken.sampling_rate)
        return Said([audio], spoken.seed, name, seconds=len(spoken.samples) / spoken.sampling_rate)

    return speak


# Through a server.


def say_through_server(arguments: argparse.Namespace) -> Speak:
    """Speak through a server, over HTTP or gRPC as its address says.

    Raises:
        UserError: The address is of neither, or something is given that is a server's own to choose.
    """
    if arguments.store:
        raise UserError("--store and --url are given: a server speaks with the voices of its own store")
    if arguments.variant:
        raise UserError(
            "--variant and --url are given: a server speaks in the variant that it was started with"
        )
    parts = urlsplit(arguments.url)
    if parts.scheme in {"grpc", "grpcs"}:
        return say_over_grpc(arguments)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise UserError(
            f"--url is {arguments.url!r}; give a server's address such as http://127.0.0.1:3000 "
            "or grpc://127.0.0.1:50051"
        )
    return say_over_http(arguments)


def say_over_http(arguments: argparse.Namespace) -> Speak:
    """Speak through ``POST /v1/audio/speech`` of a server."""
    body: dict[str, object] = {
        "input": arguments.text,
        "voice": arguments.voice,
        "speed": arguments.speed,
        "response_format": arguments.format,
        "ssml": arguments.ssml,
    }
    names = ("speaker", "seed", "language")
    body |= {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if arguments.timestamps:
        body |= {"timestamps": True, "stream_format": "json"}
    token = os.environ.get("VITS_TOKEN")
    request = urllib.request.Request(  # noqa: S310 - the scheme was checked
        f"{arguments.url.rstrip('/')}/v1/audio/speech",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"}
        | ({"Authorization": f"Bearer {token}"} if token else {}),
    )

    def speak() -> Said:
        response = _opened(request, arguments.url)
        headers = response.headers
        said = Said(
            (),
            seed=int(headers.get("X-Vits-Seed", 0)),
            voice=headers.get("X-Vits-Voice", ""),
            unknown=tuple(unquote(headers.get("X-Vits-Unknown", ""))),
        )
        if arguments.streamed:
            said.audio = _read_on(response, arguments.url)
            return said
        with response:
            audio: bytes = response.read()
        if arguments.timestamps:
            content = json.loads(audio)
            audio = base64.b64decode(content["audio"])
            said.timestamps = [Timed(**one) for one in content["timestamps"]]
        said.audio = [audio]
        if arguments.format == "pcm":
            said.seconds = len(audio) / 2 / int(headers.get("X-Vits-Sampling-Rate", 0) or 1)
        else:
            container = FORMATS[arguments.format].container or arguments.format
            heard = read_audio(audio, format=container.replace("adts", "aac"))
            said.seconds = heard.duration_seconds
            if arguments.format == "wav":  # streamed, it did not know its length
                said.audio = [encode("wav", heard.samples, heard.sampling_rate)]
        return said

    return speak


def _opened(request: urllib.request.Request, url: str) -> Any:
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)  # noqa: S310
    except urllib.error.HTTPError as error:
        raise _refused(error) from error
    except http.client.HTTPException as error:
        raise UserError(
            f"What answers at {url} does not speak HTTP: that is probably the gRPC port of "
            f"'vits serve'. Give the address that it says HTTP is on (its --http-port, 3000 by default), or grpc://…"
        ) from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{url} does not answer: {reason}. Is 'vits serve' running there?") from error


def _read_on(response: Any, url: str) -> Iterator[bytes]:
    """A stream's bytes as they come."""
    with response:
        try:
            while piece := response.read1(65536):
                yield piece
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"{url} broke off in the middle of the audio: {error}") from error


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
    if error.code == HTTPStatus.UNAUTHORIZED:
        return AccessError(f"{message}. 'vits say' sends the token in $VITS_TOKEN")
    if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return EngineError(message)
    return RequestError(message, param=param)


def say_over_grpc(arguments: argparse.Namespace) -> Speak:
    """Speak through ``vits.synthesis.v1`` of a server.

    Raises:
        UserError: The address is not of this form, or its certificates cannot be read.
    """
    import vits_client

    try:
        client = vits_client.Client(
            arguments.url,
            token=os.environ.get("VITS_TOKEN"),
            timeout_seconds=TIMEOUT_SECONDS,
            root_certificates=arguments.ca,
            certificate=arguments.cert,
            key=arguments.key,
        )
    except (ValueError, OSError) as error:
        raise UserError(f"--url {arguments.url}: {error}") from error
    options: dict[str, Any] = {
        "voice": arguments.voice,
        "speaking_rate": arguments.speed,
        "audio_format": arguments.format,
        "ssml": arguments.ssml,
        "timestamps": bool(arguments.timestamps),
    }
    names = ("speaker", "seed", "language")
    options |= {name: value for name in names if (value := getattr(arguments, name)) is not None}

    def speak() -> Said:
        try:
            if arguments.streamed:
                return _streamed_over_grpc(client, arguments.text, options)
            with client:
                speech = client.speak(arguments.text, **options)
        except vits_client.ClientError as error:
            raise _ours(error) from error
        except ValueError as error:  # the protocol has no place for such a number
            raise RequestError(f"--seed: {error}", param="seed") from error
        voice = f"{speech.voice}/{speech.voice_version}"
        timed = [Timed(one.text, one.start_seconds, one.end_seconds) for one in speech.timestamps]
        return Said([speech.audio], speech.seed, voice, speech.unknown, speech.duration_seconds, timed)

    return speak


def _streamed_over_grpc(client: vits_client.Client, text: str, options: dict[str, Any]) -> Said:
    import vits_client

    stream = client.stream(text, **options)
    start = stream.start
    voice = f"{start.voice}/{start.voice_version}" if start else ""
    said = Said((), start.seed if start else 0, voice, start.unknown if start else ())

    def pieces() -> Iterator[bytes]:
        try:
            with client, stream:
                yield from stream
        except vits_client.ClientError as error:
            raise _ours(error) from error
        said.seconds = stream.duration_seconds

    said.audio = pieces()
    return said


def _ours(error: vits_client.ClientError) -> VitsError:
    """A client's error, as one of ours."""
    import vits_client

    message, wait = str(error), error.retry_after_seconds or 1.0
    if isinstance(error, vits_client.QuotaError):
        return QuotaError(message, retry_after_seconds=wait)
    if isinstance(error, vits_client.OverloadedError):
        return OverloadedError(message, retry_after_seconds=wait)
    if isinstance(error, vits_client.AccessError):
        return AccessError(f"{message}. 'vits say' sends the token in $VITS_TOKEN")
    if isinstance(error, vits_client.InvalidRequestError):
        return RequestError(message, param=next(iter(error.violations), None))
    for kind, made in (
        (vits_client.NotFoundError, NotFoundError),
        (vits_client.DeadlineError, DeadlineError),
        (vits_client.UnavailableError, UserError),
    ):
        if isinstance(error, kind):
            return made(message)
    return EngineError(message)


# The command.


def main(argv: Sequence[str]) -> int:
    """Speak, write, and print one line."""
    arguments = parser().parse_args(argv)
    check(arguments)
    if arguments.text == "-":
        arguments.text = sys.stdin.read()
    prepare = say_in_process
    if arguments.url:
        prepare = say_through_server
    elif arguments.checkpoint:
        prepare = say_with_checkpoint
    speak = prepare(arguments)
    start = time.perf_counter()
    said = speak()
    output: Path = arguments.output
    if arguments.streamed:
        pour(said.audio, sys.stdout.buffer)
    else:
        audio = b"".join(said.audio)
        with writing(output, OUTPUT_REMEDY):
            output.write_bytes(audio)
    elapsed = time.perf_counter() - start
    if arguments.timestamps:
        captions, content = captions_of(arguments), CAPTIONS[arguments.timestamps](said.timestamps)
        with writing(captions, OUTPUT_REMEDY):
            captions.write_text(content, encoding="utf-8")
    tell(arguments, said, elapsed)
    return 0


def check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything is loaded, and fill in the format.

    Raises:
        UserError: Something cannot be.
    """
    from services.synthesis.speaker import MAX_SPEAKING_RATE, MIN_SPEAKING_RATE

    output: Path = arguments.output
    arguments.streamed = str(output) == "-"
    if arguments.streamed:
        arguments.format = arguments.format or "wav"
        if arguments.timestamps:
            raise UserError("--timestamps are written beside the output, and -o - has no place: give a file")
    else:
        suffix = output.suffix.lower().removeprefix(".")
        arguments.format = arguments.format or SUFFIXES.get(suffix, suffix)
        if arguments.format not in available_formats():
            known = ", ".join(f".{name}" for name in available_formats())
            raise UserError(
                f"--output is {output}; give a name that ends in .wav or another of {known}, or give --format"
            )
        if arguments.timestamps == suffix:
            raise UserError(f"--output is {output}, which is where --timestamps {suffix} are written")
        check_file(output)
        if arguments.timestamps:
            check_file(captions_of(arguments))
    if not MIN_SPEAKING_RATE <= arguments.speed <= MAX_SPEAKING_RATE:
        raise UserError(
            f"--speed is {arguments.speed:g}; it must be from {MIN_SPEAKING_RATE:g} to {MAX_SPEAKING_RATE:g}"
        )


def check_file(path: Path) -> None:
    """Make sure that a file can be written, before anything is spoken for it. What is in it stays.

    Raises:
        UserError: It cannot be written.
    """
    with writing(path, OUTPUT_REMEDY):
        if not path.parent.is_dir():
            raise UserError(f"--output is {path}, and there is no folder {path.parent}: make it first")
        if not path.exists():
            check_writable(path.parent.absolute(), OUTPUT_REMEDY)
        elif path.is_file() or path.is_dir():  # whoever reads a pipe would take this for all there is
            with path.open("ab"):
                pass


def captions_of(arguments: argparse.Namespace) -> Path:
    """Where the timestamps are written."""
    output: Path = arguments.output
    return output.with_suffix(f".{arguments.timestamps}")


def pour(audio: Iterable[bytes], out: IO[bytes]) -> None:
    """Write pieces as they come, each at once.

    Raises:
        UserError: Standard output cannot be written.
        BrokenPipeError: Whoever listened has gone.
    """
    for piece in audio:
        try:
            out.write(piece)
            out.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise UserError(
                f"Standard output cannot be written ({error.strerror or error}): {OUTPUT_REMEDY}"
            ) from error


def tell(arguments: argparse.Namespace, said: Said, elapsed: float) -> None:
    """Say what came of it; on standard error where standard output is the audio."""
    out = sys.stderr if arguments.streamed else sys.stdout
    seconds = said.seconds
    length = f"{seconds:.2f} s of audio at {elapsed / seconds:.3f} times real time, " if seconds else ""
    print(f"{arguments.output}: {length}seed {said.seed}, voice {said.voice}", file=out)
    if said.unknown:
        print(
            f"  left out, since the voice does not know them: {' '.join(map(repr, said.unknown))}", file=out
        )
