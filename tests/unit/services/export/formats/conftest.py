"""Tiny models in every form that a format must carry, and the programs that read the formats."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shared.modeling import load_model, synthesize

#: The version of the npm package that the tests are written for.
TRANSFORMERS_JS = "@huggingface/transformers@4.3.1"

PIPER_SYMBOLS = "_^$ ,.?abdefhijklmnopstuwxzæɐəɛɪŋɔɹʃʊʌˈˌːβɣðɾɲ"

MakeModel = Callable[..., Path]
MakePiperModel = Callable[..., Path]

#: Without noise, so that every program must say the same.
SILENT = {"noise_scale": 0.0, "noise_scale_duration": 0.0}


@pytest.fixture(scope="session")
def make_piper_model(make_model: MakeModel) -> MakePiperModel:
    """Write a tiny model folder with Piper's phonemes, as ``vits convert piper`` writes them."""

    def make(**changes: Any) -> Path:
        folder = make_model(vocab_size=len(PIPER_SYMBOLS), **changes)
        (folder / "vocab.json").unlink()
        (folder / "tokenizer_config.json").unlink()
        vocab = {symbol: [number] for number, symbol in enumerate(PIPER_SYMBOLS)}
        front_end = {"kind": "piper", "vocab": vocab, "espeak_voice": "en-us"}
        (folder / "front_end.json").write_text(json.dumps(front_end))
        return folder

    return make


def say(folder: Path, ids: tuple[int, ...], *, speaker: int | None = None) -> NDArray[np.float32]:
    """What our own model says, without noise."""
    tokens = torch.tensor(ids)
    return synthesize(load_model(folder), tokens, seed=0, speaker_id=speaker, **SILENT).samples


@pytest.fixture(scope="session")
def transformers_js(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Run a module of JavaScript beside an installed transformers.js; returns what it prints, as JSON.

    ``TRANSFORMERS_JS`` names a folder with ``node_modules``; see docs/formats.md for how to make one.
    """
    import os

    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: transformers.js runs in it")
    home = os.environ.get("TRANSFORMERS_JS")
    if not home or not (Path(home) / "node_modules/@huggingface/transformers").is_dir():
        pytest.skip(f"TRANSFORMERS_JS does not name a folder with {TRANSFORMERS_JS} in its node_modules")
    modules = Path(home) / "node_modules"

    def run(script: str, *arguments: str) -> Any:
        folder = tmp_path_factory.mktemp("node")
        (folder / "node_modules").symlink_to(modules.resolve())
        (folder / "speak.mjs").write_text(script)
        done = subprocess.run(
            [node, "speak.mjs", *arguments], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
