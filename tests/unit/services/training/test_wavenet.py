"""WaveNets that waste nothing compute what those of transformers compute."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import VitsConfig
from transformers.models.vits.modeling_vits import VitsWaveNet

from services.training.layout import use_channels_last
from services.training.wavenet import waste_nothing


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("speakers", [True, False])
def test_results_and_gradients_are_those_of_transformers(speakers: bool, channels_last: bool) -> None:
    """The results to the bit, while sums of gradients may take another order."""
    torch.manual_seed(0)
    config = VitsConfig(hidden_size=6, speaker_embedding_size=5 if speakers else 0, wavenet_dropout=0.0)
    plain = VitsWaveNet(config, 4).double()
    ours = copy.deepcopy(plain)
    waste_nothing(ours)
    if channels_last:
        for network in (plain, ours):
            use_channels_last(network)
    mask = torch.ones(3, 1, 20, dtype=torch.float64)
    mask[1, :, 9:] = 0
    values = torch.randn(3, 6, 20, dtype=torch.float64)
    speaker = torch.randn(3, 5, 1, dtype=torch.float64) if speakers else None
    direction = torch.randn(3, 6, 20, dtype=torch.float64)
    results, gradients = [], []
    for network in (plain, ours):
        inputs = values.clone().requires_grad_()
        result = network(inputs * mask, mask, speaker)
        results.append(result)
        gradients.append(torch.autograd.grad(result, [inputs, *network.parameters()], direction))
    assert torch.equal(*results)
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_sums_are_in_float32_under_autocast() -> None:
    """As those of transformers are, which begin with zeros of the inputs' precision."""
    torch.manual_seed(0)
    plain = VitsWaveNet(VitsConfig(hidden_size=6, wavenet_dropout=0.0), 4)
    ours = copy.deepcopy(plain)
    waste_nothing(ours)
    values, mask = torch.randn(2, 6, 20), torch.ones(2, 1, 20)
    results: list[Tensor] = []
    for network in (plain, ours):
        with torch.autocast("cpu", torch.bfloat16):
            results.append(network(values, mask))
    assert results[1].dtype == torch.float32
    assert torch.equal(*results)
