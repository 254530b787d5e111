"""How fresh modules start."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from shared.modeling import VitsForTraining, fold_weight_norm
from shared.modeling.durations import flow_forward
from shared.modeling.initialization import initialize

MakeModel = Callable[..., VitsForTraining]

#: Wide enough for a standard deviation to be measured.
WIDE = {"upsample_initial_channel": 64, "hidden_size": 32, "num_speakers": 40, "speaker_embedding_size": 64}


@pytest.fixture
def model(make_model: MakeModel) -> Any:
    model = make_model(**WIDE)
    model.decoder.apply_weight_norm()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    torch.manual_seed(0)
    initialize(model)
    return model


def test_flow_starts_as_a_permutation_of_channels(model: Any) -> None:
    latents, mask = torch.randn(2, 4, 9), torch.ones(2, 1, 9)
    speaker = torch.randn(2, 64, 1)
    once = torch.flip(latents, [1])
    twice = torch.flip(once, [1])
    torch.testing.assert_close(model.flow(latents, mask, speaker), twice, atol=0, rtol=0)
    torch.testing.assert_close(model.flow.flows[0](latents, mask, speaker)[0], latents, atol=0, rtol=0)


def test_spline_flows_start_as_a_permutation_of_channels(model: Any) -> None:
    """A spline of zeros is the identity up to its slope at the borders, so close to them too."""
    latents, mask, hidden = torch.randn(2, 2, 9), torch.ones(2, 1, 9), torch.randn(2, 32, 9)
    for flows in (model.duration_predictor.flows, model.duration_predictor.post_flows):
        transformed, log_determinant = flow_forward(flows, latents, mask, hidden)
        for flow in list(flows)[1:]:
            assert not flow.conv_proj.weight.any()
            assert not flow.conv_proj.bias.any()
        assert not flows[0].translate.any()
        assert not flows[0].log_scale.any()
        torch.testing.assert_close(transformed.abs().mean(), latents.abs().mean(), atol=0.3, rtol=0)
        assert log_determinant.isfinite().all()


def test_decoder_starts_small_through_its_weight_norm(model: Any) -> None:
    for group in (model.decoder.upsampler, model.decoder.resblocks):
        weights = torch.cat(
            [
                layer.weight.flatten()
                for layer in group.modules()
                if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d)
            ]
        )
        assert weights.std().item() == pytest.approx(0.01, rel=0.05)
        assert abs(weights.mean().item()) < 1e-3


def test_convolutions_start_as_torch_makes_them(model: Any) -> None:
    """Uniform within ±1/√fan-in, through weight norm too."""
    fold_weight_norm(model)
    for layer in (model.decoder.conv_pre, model.posterior_encoder.wavenet.in_layers[0], model.decoder.cond):
        bound = 1 / math.sqrt(layer.in_channels * layer.kernel_size[0])
        for values in (layer.weight, layer.bias):
            assert values.abs().max() <= bound * 1.0001
        assert layer.weight.abs().max() > 0.95 * bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_attention_embeddings_and_norms(model: Any) -> None:
    attention = model.text_encoder.encoder.layers[0].attention
    bound = math.sqrt(6 / (32 + 32))
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        assert bound * 0.95 < projection.weight.abs().max() <= bound
    for relative in (attention.emb_rel_k, attention.emb_rel_v):
        assert relative.std().item() == pytest.approx(16**-0.5, rel=0.2)
    assert model.embed_speaker.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    norm = model.text_encoder.encoder.layers[0].layer_norm
    assert (norm.weight == 1).all()
    assert not norm.bias.any()


def test_only_the_module_that_is_asked_for(make_model: MakeModel) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    initialize(model.posterior_encoder)
    for name, value in model.state_dict().items():
        same = torch.equal(value, before[name])
        assert same or name.startswith("posterior_encoder."), name
    assert not torch.equal(
        model.posterior_encoder.conv_pre.weight, before["posterior_encoder.conv_pre.weight"]
    )
