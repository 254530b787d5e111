"""Something small to measure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from transformers import VitsConfig

from benchmarks.synthesis import Paths
from benchmarks.training import ALPHABET, prepare
from services.export.export import export_voice
from services.training import discriminator
from shared.provenance import Provenance


@pytest.fixture(scope="session")
def small_voice(spanish_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The voice of the small Spanish model, in fp32. Do not write into it."""
    folder = tmp_path_factory.mktemp("voice")
    export_voice(spanish_model, folder, provenance=Provenance())
    return folder


@pytest.fixture
def paths(spanish_model: Path, small_voice: Path) -> Paths:
    """The model and its voice, and nothing for other programs."""
    return Paths(str(spanish_model), str(small_voice), None, None, threads=1)


@pytest.fixture
def small_discriminator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A discriminator of the same shape with a hundredth of the channels."""
    monkeypatch.setattr(discriminator, "_SCALE_CHANNELS", (1, 4, 16, 64, 256))
    monkeypatch.setattr(discriminator, "_PERIOD_CHANNELS", (1, 2, 4, 8, 16))


@pytest.fixture
def small_config(spanish_model: Path) -> VitsConfig:
    """The small model's configuration, with the symbols of the benchmarks."""
    return VitsConfig.from_pretrained(spanish_model, vocab_size=len(ALPHABET))


@pytest.fixture
def small_training(
    small_config: VitsConfig, small_discriminator: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """What the benchmark of training prepares, but small."""
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))  # which a measurement sets, too
    with monkeypatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.setattr(transformers, "VitsConfig", lambda **_: small_config)
        prepare(tmp_path)
    return tmp_path
