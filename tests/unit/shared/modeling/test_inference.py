"""Speaking with a model, against ``VitsModel.forward`` on the same noise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import VitsModel

from shared.errors import ModelError, RequestError, TextError
from shared.modeling import VitsForTraining, save_model, speak, synthesize

MakeModel = Callable[..., VitsForTraining]
IDS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
KINDS: dict[str, dict[str, Any]] = {
    "one speaker": {},
    "many speakers": {"num_speakers": 3, "speaker_embedding_size": 4},
    "deterministic durations": {"use_stochastic_duration_prediction": False},
    "second residual block": {"resblock_type": "2"},
}


def frame_major(generator: torch.Generator, like: torch.Tensor) -> torch.Tensor:
    """The prior's noise: frame after frame, so that it does not depend on how many there are."""
    _, channels, frames = like.shape
    return torch.empty(1, frames, channels).normal_(generator=generator).transpose(1, 2)


@pytest.mark.parametrize("speaking_rate", [None, 0.6, 1.7])
@pytest.mark.parametrize("kind", KINDS)
def test_speaks_as_transformers_does(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, kind: str, speaking_rate: float | None
) -> None:
    model = make_model(speaking_rate=1.3, **KINDS[kind])
    speaker = 2 if kind == "many speakers" else None
    ours = synthesize(model, IDS, seed=7, speaker_id=speaker, speaking_rate=speaking_rate)

    generator = torch.Generator().manual_seed(7)
    duration_noise = torch.randn(1, 2, len(IDS), generator=generator)
    monkeypatch.setattr(torch, "randn", lambda *shape: duration_noise)
    monkeypatch.setattr(torch, "randn_like", lambda like: frame_major(generator, like))
    with torch.no_grad():
        theirs = VitsModel.forward(model, IDS[None], speaker_id=speaker, speaking_rate=speaking_rate)
    assert ours.samples.shape == theirs.waveform[0].shape
    np.testing.assert_allclose(ours.samples, theirs.waveform[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(ours.latents, theirs.spectrogram[0].numpy(), atol=1e-4)
    assert ours.durations.sum() * model.hop_length == len(ours.samples)
    assert ours.sampling_rate == 8000
    assert len(set(ours.durations.tolist())) > 1


def test_durations_are_rounded_as_transformers_rounds_them(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quotient and a product with the reciprocal differ by a rounding, and ``ceil`` by a whole frame."""
    model = make_model(use_stochastic_duration_prediction=False)
    rates = [0.7, 0.9, 1.1, 1.3, 1.9]
    for rate in rates:
        frames = torch.arange(1.0, len(IDS) + 1) * rate
        monkeypatch.setattr(
            model.duration_predictor, "forward", lambda *_, f=frames: torch.log(f)[None, None]
        )
        with torch.no_grad():
            theirs = VitsModel.forward(model, IDS[None], speaking_rate=rate).sequence_lengths
        ours = synthesize(model, IDS, seed=0, speaking_rate=rate)
        assert int(ours.durations.sum()) * model.hop_length == int(theirs)


def test_seed_decides_everything_and_the_scales_how_much(make_model: MakeModel) -> None:
    model = make_model()
    first, again, other = (synthesize(model, IDS, seed=seed).samples for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)
    still = [
        synthesize(model, IDS, seed=s, noise_scale=0.0, noise_scale_duration=0.0).samples for s in (1, 2)
    ]
    assert np.array_equal(still[0], still[1])


def test_leaves_torch_and_the_model_as_they_were(make_model: MakeModel) -> None:
    """Also the mixed modes of training's first stage, where only some modules train."""
    model = make_model()
    model.decoder.apply_weight_norm()
    model.posterior_encoder.train()
    modes = [module.training for module in model.modules()]
    assert True in modes
    assert False in modes
    state = torch.get_rng_state()
    synthesize(model, IDS, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes


def test_training_mode_does_not_change_the_speech(make_model: MakeModel) -> None:
    model = make_model()
    expected = synthesize(model, IDS, seed=0).samples
    model.train()
    assert np.array_equal(synthesize(model, IDS, seed=0).samples, expected)
    assert model.training


def test_modes_come_back_after_an_error(make_model: MakeModel) -> None:
    model = make_model()
    model.train()
    with pytest.raises(IndexError):
        synthesize(model, torch.tensor([10_000]), seed=0)
    assert all(module.training for module in model.modules())


@pytest.fixture
def folder(make_model: MakeModel, tmp_path: Path) -> Path:
    save_model(make_model(**KINDS["many speakers"]), tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({c: i for i, c in enumerate("_abcdefghij")}))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"add_blank": true, "phonemize": false, "pad_token": "_", "unk_token": "_"}'
    )
    return tmp_path


def test_speak_a_text_from_a_folder(folder: Path) -> None:
    spoken = speak(folder, "abeja", seed=3)
    assert len(spoken.durations) == 2 * len("abeja") + 1
    assert np.array_equal(spoken.samples, speak(folder, "abeja", seed=3, speaker=0).samples)
    other = speak(folder, "abeja", seed=3, speaker=1).samples
    assert other.shape != spoken.samples.shape or not np.array_equal(other, spoken.samples)
    drawn = speak(folder, "abeja")
    assert np.array_equal(drawn.samples, speak(folder, "abeja", seed=drawn.seed).samples)
    slow = speak(folder, "abeja", seed=3, speaking_rate=0.25)
    assert len(slow.samples) > len(spoken.samples)


@pytest.mark.parametrize("speaker", [-1, 3])
def test_speak_refuses_a_speaker_that_is_not_there(folder: Path, speaker: int) -> None:
    with pytest.raises(RequestError, match=f"speaker {speaker}: the model has speakers 0 to 2"):
        speak(folder, "abeja", speaker=speaker)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_speak_refuses_a_rate_that_is_none(folder: Path, rate: float) -> None:
    with pytest.raises(RequestError, match="speaking rate"):
        speak(folder, "abeja", speaking_rate=rate)


def test_speak_refuses_what_cannot_be_spoken(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TextError):
        speak(folder, "¿?")
    with pytest.raises(ModelError):
        speak(tmp_path / "nowhere", "abeja")
