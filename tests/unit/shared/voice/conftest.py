"""A voice without weights: an engine of plain arithmetic that honours the shapes and the halo of a real one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.voice import Voice, VoiceSpec
from shared.voice.engine import Arrays

HALO = 3
FLOW_HALO = 2
HOP = 4
CHANNELS = 2
ALPHABET = "_abcdefghijklmnopqrstuvwxyz "


class FakeEngine:
    """Computes each graph's contract with a few lines of NumPy, and remembers the shapes it was asked for."""

    streams = 1

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, tuple[int, ...]]]] = []
        self.closed = False

    def run(self, graph: str, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        self.calls.append((graph, {name: value.shape for name, value in inputs.items()}))
        arrays = {name: np.asarray(value, dtype=np.float32) for name, value in inputs.items()}
        if graph == "encoder":
            mean = np.stack([arrays["input_ids"]] * CHANNELS, axis=2) / 10
            duration = np.abs(arrays["duration_noise"][:, 0]) + 1 + arrays["input_ids"] % 5
            mask = arrays["attention_mask"]
            return {
                "prior_mean": (mean * mask[..., None]).astype(np.float32),
                "prior_log_std": (mean * 0 - mask[..., None]).astype(np.float32),
                "log_duration": np.log(duration) * mask,
            }
        if graph == "flow":
            hidden = (arrays["prior_sample"] + arrays["speaker_id"][:, None, None] + 0.5) * arrays[
                "frame_mask"
            ]
            kernel = np.linspace(1, 2, 2 * FLOW_HALO + 1, dtype=np.float32) / 8
            mixed = np.apply_along_axis(np.convolve, 2, hidden, kernel)[:, :, FLOW_HALO:-FLOW_HALO]
            return {"latents": mixed * arrays["frame_mask"]}
        # A bias before a wide average: what lies beyond the signal's ends is zero, unlike zero latents inside it.
        hidden = np.repeat(arrays["latents"].sum(axis=1) + 0.5, HOP, axis=1)
        kernel = np.linspace(1, 2, 2 * HALO * HOP + 1) / 1000
        reach = HALO * HOP
        waveform = [np.convolve(row, kernel)[reach:-reach] for row in hidden]
        return {"waveform": np.stack(waveform).astype(np.float32)}

    def close(self) -> None:
        self.closed = True


def spec_fields(**changes: Any) -> dict[str, Any]:
    """``voice.json`` of the fake voice."""
    fields: dict[str, Any] = {
        "schema_version": 1,
        "model": None,
        "language": "es",
        "sampling_rate": 16000,
        "hop_length": HOP,
        "latent_channels": CHANNELS,
        "num_speakers": 3,
        "speakers": {"ana": 0, "luis": 2},
        "defaults": {"noise_scale": 0.6, "noise_scale_duration": 0.8, "speaking_rate": 1.0},
        "front_end": {
            "kind": "characters",
            "vocab": {character: number for number, character in enumerate(ALPHABET)},
            "add_blank": False,
            "normalize": True,
            "pad_token": "_",
            "unk_token": "_",
        },
        "decoder": {"halo_frames": HALO, "first_window_frames": 4, "window_frames": 16},
        "token_buckets": [8, 16, 32],
        "frame_multiple": 8,
        "flow_halo_frames": FLOW_HALO,
        "variants": {
            "fp32": {
                "encoder": "fp32/encoder.onnx",
                "flow": "fp32/flow.onnx",
                "decoder": "fp32/decoder.onnx",
                "opset": 18,
            }
        },
        "licence": "CC0-1.0",
        "sources": ["nobody"],
        "consent": None,
    }
    return {**fields, **changes}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def voice(engine: FakeEngine) -> Voice:
    return Voice(VoiceSpec.model_validate(spec_fields()), engine)


@pytest.fixture
def fields() -> dict[str, Any]:
    return spec_fields()
