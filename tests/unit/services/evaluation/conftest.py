"""Judges that answer at once, and something to judge."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from services.evaluation import likeness, naturalness, recognition
from shared.audio import write_wav

Samples = NDArray[np.float32]
RATE = 16_000


def tone(hertz: float, *, seconds: float = 1.0, rate: int = RATE, harmonics: int = 5) -> Samples:
    """A buzz of a steady pitch."""
    time = np.arange(round(seconds * rate)) / rate
    return np.asarray(
        sum(0.1 * np.sin(2 * np.pi * hertz * k * time) for k in range(1, harmonics + 1)), np.float32
    )


@pytest.fixture
def fake_judges(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Every judge, replaced by one that hears what this returns under ``"heard"`` and has fixed opinions."""
    heard = {"heard": "hola"}
    monkeypatch.setattr(recognition, "Whisper", lambda folder, language: lambda samples: heard["heard"])
    monkeypatch.setattr(naturalness, "Dnsmos", lambda: lambda samples: 3.0)
    monkeypatch.setattr(naturalness, "DistillMos", lambda: lambda samples: 4.0)

    def embed(samples: Samples) -> Samples:
        spectrum = np.abs(np.fft.rfft(samples, n=512)).astype(np.float32)
        return likeness.unit(spectrum)

    monkeypatch.setattr(likeness, "SpeakerEncoder", lambda: embed)
    return heard


@pytest.fixture
def spoken_dataset(tmp_path: Path) -> Callable[..., Path]:
    """A dataset of buzzes: of each text one, all of them to be tested."""

    def make(texts: list[str], *, name: str = "data") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file_name", "text", "split"])
            for number, text in enumerate(texts):
                write_wav(folder / f"clip{number}.wav", tone(110 + 20 * number, seconds=0.6), RATE)
                writer.writerow([f"clip{number}.wav", text, "test"])
        return folder

    return make
