"""Small networks and batches for the trainer's tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from services.training import discriminator as judges
from services.training.config import TrainingConfig, resolve
from services.training.data import read_recordings
from services.training.dataset import Examples, prepare
from services.training.features import FeatureSettings
from services.training.steps import Steps, new_discriminator
from shared.modeling import VitsForTraining, load_model
from shared.text import FrontEnd

SETTINGS = FeatureSettings(sampling_rate=16000, hop_length=256, n_fft=1024)

MakeConfig = Callable[..., TrainingConfig]
MakeTrainee = Callable[..., "Trainee"]


@dataclass
class Trainee:
    """Networks in joint training, over plain optimisers."""

    generator: VitsForTraining
    discriminator: judges.Discriminator
    steps: Steps


@pytest.fixture
def settings() -> FeatureSettings:
    """The small model's view of audio."""
    return SETTINGS


@pytest.fixture
def make_config(tmp_path: Path, spanish_model: Path, recordings_folder: Path) -> MakeConfig:
    """A configuration of the small model and the small dataset."""

    def make(**changes: Any) -> TrainingConfig:
        values = {
            "model_name_or_path": str(spanish_model),
            "dataset_name": str(recordings_folder),
            "output_dir": str(tmp_path / "output"),
            "store": f"file://{tmp_path / 'store'}",
            **changes,
        }
        return resolve(values, origin="the test")

    return make


@pytest.fixture
def small_discriminator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A discriminator of the same shape with a hundredth of the channels."""
    monkeypatch.setattr(judges, "_SCALE_CHANNELS", (1, 4, 16, 64, 256))
    monkeypatch.setattr(judges, "_PERIOD_CHANNELS", (1, 2, 4, 8, 16))
    monkeypatch.setattr(judges, "_SPECTROGRAM_CHANNELS", 2)


@pytest.fixture(scope="session")
def small_examples(
    tmp_path_factory: pytest.TempPathFactory, spanish_model: Path, recordings_folder: Path
) -> Examples:
    """The small dataset's training split, prepared for the small model."""
    config = resolve(
        {"model_name_or_path": str(spanish_model), "dataset_name": str(recordings_folder)}, origin="the test"
    )
    examples, dropped = prepare(
        read_recordings(recordings_folder, split="train"),
        FrontEnd.from_folder(spanish_model),
        SETTINGS,
        config,
        speakers={},
        cache=tmp_path_factory.mktemp("cache"),
    )
    assert not dropped
    return examples


@pytest.fixture
def make_trainee(small_discriminator: None, spanish_model: Path, make_config: MakeConfig) -> MakeTrainee:
    """The small model and a small discriminator, in joint training, with gradient steps that can be large."""

    def make(*, rate: float = 1e-3, **changes: Any) -> Trainee:
        config = make_config(**changes)
        generator = load_model(spanish_model)
        generator.decoder.apply_weight_norm()
        generator.train()
        discriminator = new_discriminator(0)
        steps = Steps(
            Accelerator(cpu=True),
            config,
            SETTINGS,
            generator,
            torch.optim.AdamW(generator.parameters(), lr=rate, fused=True),
            discriminator,
            torch.optim.AdamW(discriminator.parameters(), lr=rate, fused=True),
        )
        return Trainee(generator, discriminator, steps)

    return make
