"""Tiny models with random weights, and their voices, exported once for all tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import VitsConfig, VitsModel

from services.evaluation import Score
from services.evaluation.transcripts import Errors
from services.export.export import export_voice
from services.export.quantization import quantise
from shared.modeling import VitsForTraining, VitsResblock2Config, load_model
from shared.provenance import Provenance
from shared.voice import Utterance, Voice, VoiceSpec

ALPHABET = "_abcdefghijklmnopqrstuvwxyzáéíóúüñ ',."

VARIANTS = ("fp32", "fp32-openvino", "bf16")
SENTENCES = ("hola, buenas tardes a todos", "la casa de la colina", "un perro ladraba lejos")

MakeModel = Callable[..., Path]


def tiny_config(**changes: Any) -> VitsConfig:
    """A VITS with every part that a real one has, each as small as it can be."""
    fields: dict[str, Any] = {
        "vocab_size": len(ALPHABET),
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "ffn_dim": 16,
        "layerdrop": 0.0,
        "flow_size": 4,
        "spectrogram_bins": 9,
        "upsample_initial_channel": 8,
        "upsample_rates": [4, 2],
        "upsample_kernel_sizes": [8, 4],
        "resblock_kernel_sizes": [3, 5],
        "resblock_dilation_sizes": [[1, 3], [1, 3]],
        "posterior_encoder_num_wavenet_layers": 1,
        "prior_encoder_num_flows": 2,
        "prior_encoder_num_wavenet_layers": 2,
        "depth_separable_num_layers": 2,
        "duration_predictor_num_flows": 2,
        "duration_predictor_filter_channels": 8,
    }
    kind = VitsResblock2Config if "resblock_type" in changes else VitsConfig
    return kind(**{**fields, **changes})


@dataclass(frozen=True)
class Exported:
    """A model folder and its voice folder."""

    model_folder: Path
    folder: Path

    def model(self) -> VitsModel:
        return load_model(self.model_folder)

    def voice(self, variant: str = "fp32", *, streams: int = 1) -> Voice:
        return Voice.open(self.folder, variant=variant, threads=streams, streams=streams)


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """Write a tiny model folder."""

    def make(**changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("model")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = VitsForTraining(tiny_config(**changes))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "duration_predictor" in name and name.endswith(("conv_proj.weight", "proj.weight")):
                    parameter.mul_(0.3)  # durations of a few frames
        model.save_pretrained(folder)
        vocab = {character: number for number, character in enumerate(ALPHABET)}
        (folder / "vocab.json").write_text(json.dumps(vocab))
        tokenizer = {
            "add_blank": True,
            "language": "spa",
            "pad_token": "_",
            "unk_token": "_",
            "phonemize": False,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        return folder

    return make


@pytest.fixture(scope="session")
def stochastic(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Stochastic durations, three speakers, the second residual block of HiFi-GAN."""
    folder = make_model(num_speakers=3, speaker_embedding_size=3, resblock_type="2")
    (folder / "speakers.json").write_text('{"ana": 0, "luis": 1, "eva": 2}')
    output = tmp_path_factory.mktemp("voice")
    export_voice(folder, output, provenance=Provenance(licence="CC0-1.0"), variants=VARIANTS)
    return Exported(folder, output)


@pytest.fixture(scope="session")
def deterministic(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Deterministic durations, one speaker, the first residual block."""
    folder = make_model(use_stochastic_duration_prediction=False)
    output = tmp_path_factory.mktemp("voice")
    export_voice(folder, output, provenance=Provenance(), variants=VARIANTS)
    return Exported(folder, output)


@pytest.fixture(params=["stochastic", "deterministic"])
def exported(request: pytest.FixtureRequest) -> Exported:
    """Each of the two."""
    result = request.getfixturevalue(request.param)
    assert isinstance(result, Exported)
    return result


@pytest.fixture(scope="session", params=["stochastic", "deterministic"])
def quantised(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Each of the two in every variant for CPUs: int8 in the first of its two stages."""
    exported = request.getfixturevalue(request.param)
    assert isinstance(exported, Exported)
    root = tmp_path_factory.mktemp("quantised")
    folder = shutil.copytree(exported.folder, root / "voice")
    made = quantise(folder, sentences=SENTENCES, cache=root / "cache", search=False)
    anywhere = {  # slow without the instructions, not wrong
        name: variant.model_copy(update={"requires": []})
        for name, variant in made.variants.items()
        if variant.rest == "fp32"
    }
    spec = VoiceSpec.read(folder)
    spec.model_copy(update={"variants": spec.variants | made.variants | anywhere}).write(folder)
    return Exported(exported.model_folder, folder)


def decode_together(
    voice: Voice, utterances: Sequence[Utterance], *, most: int, order: Random
) -> list[NDArray[np.float32]]:
    """Decode utterances in one another's company, and put their windows together again.

    Args:
        voice: Decodes them.
        utterances: Of any lengths and speakers.
        most: Windows of one width that share a call, whosever they are.
        order: In which windows come.
    """
    places: dict[int, list[tuple[int, int]]] = {}
    for row, utterance in enumerate(utterances):
        for number, window in enumerate(utterance.windows):
            places.setdefault(window.width, []).append((row, number))
    decoded: dict[tuple[int, int], NDArray[np.float32]] = {}
    for alike in places.values():
        order.shuffle(alike)
        for start in range(0, len(alike), most):
            call = alike[start : start + most]
            windows = [(utterances[row], utterances[row].windows[number]) for row, number in call]
            decoded.update(zip(call, voice.decode_windows(windows), strict=True))
    nothing = np.zeros(0, dtype=np.float32)
    return [
        np.concatenate([nothing, *(decoded[row, number] for number in range(len(utterance.windows)))])
        for row, utterance in enumerate(utterances)
    ]


def opinions(samples: NDArray[np.float32]) -> tuple[float, float]:
    """About 3 and 4 (MOS): of no use, but other samples have others."""
    return 3 + float(np.abs(samples).mean()), 4 - float(np.abs(np.diff(samples)).mean())


class FakeJudges:
    """Scores by `opinions` alone; so many words of a sentence are misheard as it is told."""

    def __init__(
        self,
        *,
        wrong: int = 0,
        missing: Mapping[str, str] | None = None,
        identity: Mapping[str, str] | None = None,
        heard_after: str = "",
    ) -> None:
        self.wrong = wrong
        self.missing: Mapping[str, str] = missing or {}
        self.identity: Mapping[str, str] = identity or {"dnsmos": "a fake"}
        self.heard_after = heard_after
        self.heard: list[str] = []

    def score(self, samples: NDArray[np.float32], sampling_rate: int, text: str | None = None) -> Score:
        assert text
        self.heard.append(text)
        count = len(text.split())
        return Score(
            len(samples) / sampling_rate,
            *opinions(samples),
            text + self.heard_after,
            Errors(min(count, self.wrong), count),
        )
