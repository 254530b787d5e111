"""What several packages' tests share: a small Spanish model and small Spanish recordings, both made here."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Sums in one order, so that equal means equal; and tests beside each other do not wait for each other's threads.
# Read when torch is imported, here and in every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a test that wants two does not have them spin

import numpy as np
import pytest
import torch
from hypothesis import settings
from numpy.typing import NDArray
from transformers import VitsConfig

from shared.audio import write_wav
from shared.modeling import VitsForTraining, save_model
from shared.modeling.initialization import initialize
from shared.provenance import Provenance
from tests.infra.s3_server import S3Server
from tests.infra.s3_server import running as s3_server_running

# No clock decides over a test: other work may run beside it.
settings.register_profile("untimed", settings.default, deadline=None)
settings.load_profile("untimed")

ALPHABET = "_ abcdefghijklmnopqrstuvwxyzáéíñóúü"
SENTENCES = (
    "hola",
    "buenos días",
    "la casa azul",
    "un perro negro",
    "el niño come pan",
    "mañana será otro día",
    "dos y dos son cuatro",
    "aquí no hay nadie",
    "el tren llega tarde",
    "gracias por llamar",
)


def write_small_model(folder: Path, *, num_speakers: int = 1, stochastic: bool = True) -> Path:
    """Write a model folder of MMS's layout at 16 kHz, with every part as small as it can be."""
    config = VitsConfig(
        vocab_size=len(ALPHABET),
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=16,
        layerdrop=0.1,  # as in the MMS models on the hub
        flow_size=8,
        spectrogram_bins=513,
        upsample_initial_channel=16,
        upsample_rates=[8, 8, 4],
        upsample_kernel_sizes=[16, 16, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        posterior_encoder_num_wavenet_layers=2,
        prior_encoder_num_flows=2,
        prior_encoder_num_wavenet_layers=2,
        depth_separable_num_layers=2,
        duration_predictor_num_flows=2,
        duration_predictor_filter_channels=8,
        use_stochastic_duration_prediction=stochastic,
        num_speakers=num_speakers,
        speaker_embedding_size=4 if num_speakers > 1 else 0,
        sampling_rate=16000,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VitsForTraining(config)
        initialize(model)
    save_model(model, folder)
    vocab = {symbol: number for number, symbol in enumerate(ALPHABET)}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    tokenizer = {
        "tokenizer_class": "VitsTokenizer",
        "add_blank": True,
        "normalize": True,
        "is_uroman": False,
        "phonemize": False,
        "language": "spa",
        "pad_token": "_",
        "unk_token": "_",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    Provenance(licence="CC-BY-NC-4.0", sources=("a small model",)).write(folder)
    return folder


def babble(text: str, *, seconds: float, rate: int, seed: int = 0) -> NDArray[np.float32]:
    """Sound that stands in for speech: a buzz whose pitch and colour change with every letter."""
    noise = np.random.default_rng(seed)
    samples = round(seconds * rate)
    letter = np.minimum(np.arange(samples) * len(text) // samples, len(text) - 1)
    colour = np.array([ord(character) % 29 for character in text])[letter] / 29
    phase = 2 * np.pi * np.cumsum(110 + 60 * colour) / rate
    voiced = sum(np.cos(k * phase) * np.exp(-(((k / 12 - colour) / 0.25) ** 2)) for k in range(1, 13))
    sound = 0.1 * np.asarray(voiced) + 0.003 * noise.standard_normal(samples)
    return sound.astype(np.float32)


@pytest.fixture(autouse=True)
def fresh_accelerate() -> None:
    """Accelerate keeps a process's first precision for good, and tests want different ones."""
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def spanish_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small stock-architecture model folder with a Spanish ``VitsTokenizer``. Do not write into it."""
    return write_small_model(tmp_path_factory.mktemp("spanish") / "model")


@pytest.fixture(scope="session")
def make_dataset(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a folder of recordings: 22.05 kHz WAV files and ``metadata.csv`` with its splits and speakers."""

    def make(count: int = 10, *, evaluation: int = 2, seconds: float | None = None) -> Path:
        root = tmp_path_factory.mktemp("recordings")
        rows = [("file_name", "text", "split", "speaker")]
        for number in range(count):
            text = SENTENCES[number % len(SENTENCES)]
            length = seconds or 0.8 + 0.05 * len(text)
            file = f"clip{number:02d}.wav"
            write_wav(root / file, babble(text, seconds=length, rate=22050, seed=number), 22050)
            split = "test" if number >= count - evaluation else "train"
            rows.append((file, text, split, "ana" if number % 2 else "luis"))
        with (root / "metadata.csv").open("w", encoding="utf-8", newline="") as file_:
            csv.writer(file_).writerows(rows)
        card = {"name": "babble", "licence": "CC0-1.0", "attribution": "Babble, by nobody"}
        (root / "dataset.json").write_text(json.dumps(card), encoding="utf-8")
        return root

    return make


@pytest.fixture(scope="session")
def recordings_folder(make_dataset: Callable[..., Path]) -> Path:
    """Eight recordings to train on and two to evaluate on. Do not write into it."""
    return make_dataset()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server with an empty bucket, for all tests; give each its own prefix."""
    with s3_server_running(tmp_path_factory.mktemp("s3")) as server:
        yield server
