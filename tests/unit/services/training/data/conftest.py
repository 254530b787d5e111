"""Small recordings made here: tones that stand in for speech."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shared.audio import write_flac, write_wav

Tone = Callable[..., np.ndarray]
Folder = Callable[..., Path]


@pytest.fixture
def tone() -> Tone:
    """Makes a tone, different for each pitch."""

    def make(seconds: float = 1.0, pitch: float = 220.0, rate: int = 16000, level: float = 0.3) -> np.ndarray:
        return (level * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(
            np.float32
        )

    return make


@pytest.fixture
def folder(tmp_path: Path, tone: Tone) -> Folder:
    """Makes a dataset folder: a table's text, and the sound files that it shall find."""

    def make(table: str, sounds: list[str], *, name: str = "metadata.csv", inside: str = "set") -> Path:
        root = tmp_path / inside
        root.mkdir(exist_ok=True)
        (root / name).write_text(table, encoding="utf-8")
        for number, sound in enumerate(sounds):
            path = root / sound
            path.parent.mkdir(parents=True, exist_ok=True)
            write = write_flac if path.suffix == ".flac" else write_wav
            write(path, tone(1.0, 200 + 20 * number), 16000)
        return root

    return make
