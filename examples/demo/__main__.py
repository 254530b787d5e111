"""Fine-tune a real voice on real Spanish recordings, export it, serve it, and listen to it.

Each stage is the command that a user would type, run as such; only the comparison at the end is the
demo's own. What an earlier run has finished is used again.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from examples.demo.compare import Comparison, compare
from examples.demo.page import write_page
from examples.stages import BASE, DATA, Stages, child, explained, fetch_base, vits
from services.training.report import REPORT_FILE
from shared.audio import read_audio
from shared.errors import NotFoundError, QualityError
from shared.registry import Registry
from shared.store import Store, default_store_url

SENTENCE = "Hola, ¿cómo estás? Esta es una voz que aprendió a hablar en unos minutos."
MODEL = "demo-spanish"
OUTPUT = Path("output/demo")
CONFIG = Path("configs/demo.json")
#: What the demo holds itself to.
LEAST_MEL_FALL, LARGEST_MOS_LOSS = 0.20, 0.2
LARGEST_DOOR_DIFFERENCE = 1e-4


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
    with child(arguments) as server:
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
    arguments = parser.parse_args()
    return explained("demo", lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
