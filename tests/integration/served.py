"""A machine of one's own with a store, a tiny voice in it, and a ``vits serve`` as a user starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
VITS = [sys.executable, "-m", "services.cli"]
START_SECONDS = 60
#: More than anything takes that is waited for, and less than a store's own patience.
PATIENCE_SECONDS = 60

#: Makes a model and exports it, in one process, since importing torch is what takes the time.
TINY_VOICE = """
import json, sys
from pathlib import Path
import torch
from transformers import VitsConfig, VitsModel
torch.manual_seed(0)
vocab = {symbol: i for i, symbol in enumerate("_abcdefghijklmnopqrstuvwxyzáéíóúñü ,.?¿!¡")}
config = VitsConfig(
    vocab_size=len(vocab), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, flow_size=8,
    spectrogram_bins=17, duration_predictor_filter_channels=8, prior_encoder_num_flows=2,
    duration_predictor_num_flows=2, prior_encoder_num_wavenet_layers=1, posterior_encoder_num_wavenet_layers=1,
    upsample_initial_channel=16, upsample_rates=[8, 8], upsample_kernel_sizes=[16, 16],
    resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]], sampling_rate=16000,
)
VitsModel(config).save_pretrained(sys.argv[1])
tokenizer = {"pad_token": "_", "unk_token": "_", "language": "spa", "phonemize": False, "is_uroman": False}
Path(sys.argv[1], "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
Path(sys.argv[1], "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
from services.cli import main
sys.exit(main(["export", sys.argv[1], "--name", "tiny", "--variants", "fp32"]))
"""


@dataclass
class World:
    """A machine of one's own: a home and a folder for temporary files, before a store."""

    root: Path
    store: Path

    @property
    def environment(self) -> dict[str, str]:
        for name in ("home", "tmp"):
            (self.root / name).mkdir(exist_ok=True)
        return os.environ | {
            "HOME": str(self.root / "home"),
            "TMPDIR": str(self.root / "tmp"),
            "VITS_CACHE": str(self.root / "cache"),
            "VITS_STORE": str(self.store),
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False
        )

    def vits(self, *arguments: str) -> str:
        done = self.run(*VITS, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout


@dataclass
class Server:
    """A running ``vits serve``."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str
    grpc_address: str

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=60) as response:  # noqa: S310
            text: str = response.read().decode()
            return text

    def in_flight(self) -> int:
        """Texts that it speaks now, or keeps waiting."""
        lines = self.get("/metrics").splitlines()
        (line,) = (line for line in lines if line.startswith("vits_requests_in_flight "))
        return int(float(line.split()[1]))

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def starting(world: World, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Start a server on free ports; its process, and its log."""
    log = world.root / f"serve-{time.monotonic_ns()}.log"
    command = [*VITS, "serve", "--http-port", "0", "--grpc-port", "0", "--threads", "1", *arguments]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=world.environment, stderr=file, start_new_session=True
        )
    try:
        yield process, log
    finally:
        process.kill()
        process.wait()


@contextmanager
def serving(world: World, *arguments: str) -> Iterator[Server]:
    """As `starting`, but wait for the line that says where it listens."""
    with starting(world, *arguments) as (process, log):
        deadline = time.monotonic() + START_SECONDS
        while not (ready := re.search(r"ready after .* HTTP on (\S+), gRPC on (\S+),", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield Server(process, log, url=ready[1], grpc_address=ready[2])


def until(met: Callable[[], bool]) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.02)
