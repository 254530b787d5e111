"""The tiny configuration that settings are found for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.training import discriminator as judges
from services.training.config import TrainingConfig, resolve

MakeConfig = Callable[..., TrainingConfig]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(judges, "_SCALE_CHANNELS", (1, 4, 16, 64, 256))
    monkeypatch.setattr(judges, "_PERIOD_CHANNELS", (1, 2, 4, 8, 16))


@pytest.fixture
def make_config(tmp_path: Path, spanish_model: Path, recordings_folder: Path) -> MakeConfig:
    """Twelve steps, evaluated twice."""

    def make(**changes: Any) -> TrainingConfig:
        values = {
            "model_name_or_path": str(spanish_model),
            "dataset_name": str(recordings_folder),
            "output_dir": str(tmp_path / "output"),
            "store": f"file://{tmp_path / 'store'}",
            "do_eval": True,
            "eval_steps": 6,
            "max_steps": 12,
            **changes,
        }
        return resolve(values, origin="the test")

    return make
