"""Attention to neighbours is that of ``transformers``, gradients included."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import VitsConfig
from transformers.models.vits.modeling_vits import VitsAttention

from services.training.attention import attend_to_neighbours


def pair(window: int) -> tuple[VitsAttention, VitsAttention]:
    torch.manual_seed(0)
    config = VitsConfig(hidden_size=12, num_attention_heads=2, window_size=window, attention_dropout=0.4)
    theirs = VitsAttention(config).double()
    ours = copy.deepcopy(theirs)
    attend_to_neighbours(ours)
    return theirs, ours


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("length", [1, 2, 5, 9, 23])
def test_results_and_gradients_are_theirs(length: int, window: int) -> None:
    networks = pair(window)
    values = torch.randn(3, length, 12, dtype=torch.float64)
    mask = torch.zeros(3, 1, length, length, dtype=torch.float64)
    mask[1, :, :, length // 2 + 1 :] = torch.finfo(torch.float64).min
    direction = torch.randn_like(values)
    found = []
    for network in networks:
        inputs = values.clone().requires_grad_()
        result, weights = network.eval()(inputs, attention_mask=mask, output_attentions=True)
        wanted = [inputs, *network.parameters()]
        found.append([result, weights, *torch.autograd.grad(result, wanted, direction)])
    torch.testing.assert_close(found[1], found[0])


def test_weights_are_dropped_in_training_alone() -> None:
    """As often as was asked, and the rest scaled up."""
    _, ours = pair(4)
    torch.nn.init.zeros_(ours.emb_rel_v)
    with torch.no_grad():  # what comes out is the sum of the weights that are kept
        torch.nn.init.zeros_(ours.v_proj.weight)
        torch.nn.init.ones_(ours.v_proj.bias)
        ours.out_proj.weight.copy_(torch.eye(12))
        torch.nn.init.zeros_(ours.out_proj.bias)
        values = torch.randn(64, 50, 12, dtype=torch.float64)
        (kept, _), (whole, _) = ours.train()(values), ours.eval()(values)
    torch.testing.assert_close(whole, torch.ones_like(whole))
    assert kept.std() > 0.05
    assert kept.mean() == pytest.approx(1, abs=0.01)


def test_relative_values_are_dropped_with_their_weights() -> None:
    _, ours = pair(4)
    with torch.no_grad():  # what comes out is the share of the neighbours' weights that is kept
        torch.nn.init.ones_(ours.emb_rel_v)
        torch.nn.init.zeros_(ours.v_proj.weight)
        torch.nn.init.zeros_(ours.v_proj.bias)
        ours.out_proj.weight.copy_(torch.eye(12))
        torch.nn.init.zeros_(ours.out_proj.bias)
        values = torch.randn(64, 5, 12, dtype=torch.float64)  # every token is a neighbour
        (kept, _), (whole, _) = ours.train()(values), ours.eval()(values)
    torch.testing.assert_close(whole, torch.ones_like(whole))
    assert kept.std() > 0.05
    assert kept.mean() == pytest.approx(1, abs=0.05)


def test_it_obeys_autocast() -> None:
    theirs, ours = (network.float().eval() for network in pair(4))
    values = torch.randn(3, 30, 12)
    with torch.autocast("cpu", torch.bfloat16):
        results = [network(values)[0] for network in (theirs, ours)]
    assert results[1].dtype == results[0].dtype
    torch.testing.assert_close(results[1], results[0], rtol=0.05, atol=0.02)
