"""Whether a graph of any format speaks as the model does, without noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from services.export.formats.subject import Subject
from shared.errors import QualityError
from shared.modeling import synthesize

#: The largest difference of any sample, of samples in [-1, 1], that is still called equal.
TOLERANCE = 1e-3

#: Sequences tried before lengths that differ are called an error: where a duration falls within a rounding
#: error of a whole number of frames, the two may rightly disagree by a frame.
SEQUENCES = 3


def verify(path: Path, subject: Subject, *, tokens: int = 41) -> float:
    """Speak the same tokens at zero noise through ONNX Runtime and the model, as its last speaker.

    Returns:
        The largest absolute difference of any sample.

    Raises:
        QualityError: It is above `TOLERANCE`, or the lengths differ.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = [value.name for value in session.get_inputs()]
    several = subject.num_speakers > 1
    generator = np.random.default_rng(0)
    for attempt in range(SEQUENCES):
        ids = generator.integers(0, subject.front_end.vocab_size, size=tokens)
        found = session.run(None, _feeds(inputs, ids, subject))[0].reshape(-1)
        expected = synthesize(
            subject.network,
            torch.from_numpy(ids),
            seed=0,
            speaker_id=subject.num_speakers - 1 if several else None,
            noise_scale=0.0,
            noise_scale_duration=0.0,
        ).samples
        if found.shape == expected.shape:
            break
        if attempt == SEQUENCES - 1:
            raise QualityError(
                f"The graph speaks {found.size} samples where the model speaks {expected.size}: nothing was written."
            )
    difference = float(np.abs(found - expected).max())
    if not difference <= TOLERANCE:
        raise QualityError(
            f"The graph's speech differs from the model's by {difference:.2g} (at most {TOLERANCE:g} is allowed): "
            "nothing was written."
        )
    return difference


def _feeds(inputs: list[str], ids: NDArray[np.int64], subject: Subject) -> dict[str, NDArray[Any]]:
    """What any of the formats takes, without noise and at the model's own rate."""
    off, length = np.zeros(1, np.float32), np.array([subject.length_scale], np.float32)
    feeds: dict[str, NDArray[Any]] = {
        "input": ids[None],
        "input_lengths": np.array([ids.size]),
        "scales": np.concatenate([off, length, off]),
        "x": ids[None],
        "x_length": np.array([ids.size]),
        "noise_scale": off,
        "length_scale": length,
        "noise_scale_w": off,
        "sid": np.array([subject.num_speakers - 1]),
        "input_ids": ids[None],
        "attention_mask": np.ones((1, ids.size), np.int64),
    }
    if "input_ids" in inputs:  # values that the file has need not be fed, but can be
        inputs = [*inputs, "noise_scale", "length_scale", "noise_scale_duration"]
        feeds["noise_scale_duration"] = off
    return {name: feeds[name] for name in inputs}
