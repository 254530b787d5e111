"""Whether a graph of any format speaks as the model does, given the same noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from services.export import parity
from services.export.formats.subject import Subject
from services.export.formats.whole import DURATION_NOISE, PRIOR_NOISE
from shared.errors import QualityError

#: Sequences tried before lengths that differ are called an error: where a duration falls within a rounding
#: error of a whole number of frames, the two may rightly disagree by a frame.
SEQUENCES = 3


def verify(path: Path, subject: Subject, *, tokens: int = 41) -> float:
    """Speak the same tokens with the same noise through ONNX Runtime and the model, as its last speaker.

    Returns:
        The largest absolute difference of any sample.

    Raises:
        QualityError: It is above what `parity.allowed` allows, or the lengths differ.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(_with_given_noise(path), providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    for attempt in range(SEQUENCES):
        ids = tuple(generator.integers(0, subject.front_end.vocab_size, size=tokens).tolist())
        case = parity.Case(f"{tokens} random tokens", ids, subject.num_speakers - 1, seed=attempt)
        expected = parity.reference(subject.network, case)
        feeds = _feeds([value.name for value in session.get_inputs()], case, expected, subject)
        # The prior's noise fits only as many frames as the model makes; nought fits any number.
        found = session.run(None, {**feeds, PRIOR_NOISE: np.zeros((1, 1, 1), np.float32)})[0]
        if found.size == expected.waveform.size:
            break
    else:
        raise QualityError(
            f"The graph speaks {found.size} samples where the model speaks {expected.waveform.size}: "
            "nothing was written."
        )
    difference = parity.difference(session.run(None, feeds)[0].reshape(-1), expected.waveform)
    allowed = parity.TOLERANCE
    if not difference <= allowed:
        allowed = parity.allowed(parity.rounding(subject.network, expected, case))
    if not difference <= allowed:
        raise QualityError(
            f"The graph's speech differs from the model's by {difference:.2g} (at most {allowed:.2g} is allowed): "
            "nothing was written."
        )
    return difference


def _with_given_noise(path: Path) -> bytes:
    """The graph with its noise as inputs rather than drawn."""
    whole = onnx.load(path)
    drawn = [node for node in whole.graph.node if node.op_type == "RandomNormalLike"]
    for node in drawn:
        whole.graph.node.remove(node)
        whole.graph.input.append(helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None))
    return whole.SerializeToString()


def _feeds(
    inputs: list[str], case: parity.Case, expected: parity.Reference, subject: Subject
) -> dict[str, NDArray[Any]]:
    """What any of the formats takes, at the model's own scales and rate, and the noise of the reference."""
    ids_1T = np.array([case.ids])
    noise_scale, noise_scale_duration, length_scale = (
        np.array([value], np.float32)
        for value in (subject.noise_scale, subject.noise_scale_duration, subject.length_scale)
    )
    feeds: dict[str, NDArray[Any]] = {
        "input": ids_1T,
        "input_lengths": np.array([ids_1T.size]),
        "scales": np.concatenate([noise_scale, length_scale, noise_scale_duration]),
        "x": ids_1T,
        "x_length": np.array([ids_1T.size]),
        "noise_scale": noise_scale,
        "length_scale": length_scale,
        "noise_scale_w": noise_scale_duration,
        "sid": np.array([case.speaker_id]),
        "input_ids": ids_1T,
        "attention_mask": np.ones_like(ids_1T),
        DURATION_NOISE: _unit(expected.duration_noise, subject.noise_scale_duration)[None],
        PRIOR_NOISE: _unit(expected.prior_noise, subject.noise_scale).T[None],
    }
    if "input_ids" in inputs:  # values that the file has need not be fed, but can be
        inputs = [*inputs, "noise_scale", "length_scale", "noise_scale_duration"]
        feeds["noise_scale_duration"] = noise_scale_duration
    return {name: feeds[name] for name in inputs}


def _unit(noise: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """Noise before it was scaled."""
    return noise / np.float32(scale) if scale else noise
