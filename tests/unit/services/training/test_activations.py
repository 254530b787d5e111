"""Activations that are remembered once: the same numbers, from less memory."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.vits.modeling_vits import HifiGanResidualBlock

from services.training.activations import leaky_relu, remember_once
from services.training.layout import use_channels_last
from shared.modeling.model import ResBlock2

BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "ResBlock1": lambda: HifiGanResidualBlock(8, 3, (1, 3, 5), 0.1),
    "ResBlock2": lambda: ResBlock2(8, 3, [1, 3], 0.1),
}


def remembered(network: nn.Module, hidden: Tensor) -> tuple[Tensor, int]:
    """The result, and the bytes of activations that it keeps for its gradients."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        result = network(hidden)
    return result, sum(kept.values())


def gradient(tensor: Tensor) -> Tensor:
    """What a backward pass has left."""
    assert tensor.grad is not None
    return tensor.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rectifier_is_torchs_to_the_bit(dtype: torch.dtype) -> None:
    values = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    values[0, :4] = torch.tensor([0.0, -0.0, 1e-30, -1e-30])
    inputs = [values.clone().requires_grad_() for _ in range(2)]
    results = [leaky_relu(inputs[0], 0.1), functional.leaky_relu(inputs[1], 0.1)]
    for result in results:
        result.backward(torch.linspace(-1, 1, 200).view(4, 50).to(dtype))
    assert torch.equal(*results)
    assert torch.equal(gradient(inputs[0]), gradient(inputs[1]))


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("channels_last", [True, False])
def test_residual_blocks_compute_the_same_and_keep_half(kind: str, channels_last: bool) -> None:
    plain = BLOCKS[kind]()
    ours = copy.deepcopy(plain)
    remember_once(ours)
    for block in (plain, ours):
        if channels_last:
            use_channels_last(block)
    values = torch.randn(2, 64, 8).transpose(1, 2)  # channels last, as one block hands it to the next
    if not channels_last:
        values = values.contiguous()
    inputs = [values.clone().requires_grad_() for _ in range(2)]
    (expected, much), (found, little) = remembered(plain, inputs[0]), remembered(ours, inputs[1])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for result in (expected, found):
        result.square().sum().backward()
    assert torch.equal(gradient(inputs[1]), gradient(inputs[0]))
    for one, other in zip(plain.parameters(), ours.parameters(), strict=True):
        assert torch.equal(gradient(other), gradient(one))
    assert little <= 0.55 * much


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_copy_of_a_block_uses_its_own_weights(kind: str) -> None:
    block = BLOCKS[kind]()
    remember_once(block)
    other = copy.deepcopy(block)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    hidden = torch.ones(1, 8, 20)
    assert torch.equal(other(hidden), hidden)  # what is left is the residual
    assert block(hidden).ne(hidden).any()
