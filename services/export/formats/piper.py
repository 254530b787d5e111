"""Piper: ``NAME.onnx`` and ``NAME.onnx.json``, for a model that started as a Piper voice or learnt its tokens.

``vits convert piper`` in the other direction: what it read from the JSON is written again. The tensors are named
as our exporter names them, so the file speaks in Piper and what is built on it, but is not for converting back:
train from the model folder instead.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx

from services.export.formats.ends import PIPER_TAIL, piper_head
from services.export.formats.subject import Subject, provenance_lines
from services.export.formats.whole import Ends, build_whole
from shared.text.specs import PiperSpec


def problems(subject: Subject) -> list[str]:
    """Why Piper could not speak a model as we do; nothing if it can."""
    if isinstance(subject.spec, PiperSpec):
        return []
    reason = (
        "it speaks from characters, and Piper from phonemes of espeak-ng in its own layout; "
        "only a model trained from a Piper voice ('vits convert piper') can become one again"
    )
    return [reason]


def ends_of(subject: Subject) -> Ends:
    """The graph's inputs and output."""
    return Ends(piper_head(several_speakers=subject.num_speakers > 1), PIPER_TAIL, {})


def write(subject: Subject, folder: Path, name: str) -> Path:
    """Write the files into a folder.

    Returns:
        The ONNX file.
    """
    path = folder / f"{name}.onnx"
    onnx.save(build_whole(subject.network, ends_of(subject), {}), path)
    text = json.dumps(settings(subject, name), ensure_ascii=False, indent=2)
    (folder / f"{name}.onnx.json").write_text(text + "\n", encoding="utf-8")
    (folder / "MODEL_CARD").write_text(
        f"# {name}\n\n{provenance_lines(subject.provenance)}\n", encoding="utf-8"
    )
    return path


def settings(subject: Subject, name: str) -> dict[str, Any]:
    """The contents of the JSON."""
    spec = subject.spec
    assert isinstance(spec, PiperSpec)  # noqa: S101 (others are among the problems)
    config = subject.network.config
    hop_length = 1
    for rate in config.upsample_rates:
        hop_length *= int(rate)
    family, _, region = spec.espeak_voice.partition("-")
    code = f"{family}_{region.upper()}" if region else family
    speakers = subject.speakers or {f"speaker_{number}": number for number in range(subject.num_speakers)}
    return {
        "audio": {"sample_rate": subject.sampling_rate},
        "espeak": {"voice": spec.espeak_voice},
        "language": {"code": code, "family": family, "region": region.upper()},
        "inference": {
            "noise_scale": subject.noise_scale,
            "length_scale": subject.length_scale,
            "noise_w": subject.noise_scale_duration,
        },
        "phoneme_type": "espeak",
        "phoneme_map": {},
        "phoneme_id_map": spec.vocab,
        "num_symbols": int(config.vocab_size),
        "num_speakers": subject.num_speakers,
        "speaker_id_map": speakers if subject.num_speakers > 1 else {},
        "hop_length": hop_length,
        "dataset": name,
    }
