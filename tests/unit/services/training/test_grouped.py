"""Convolutions of many groups give what torch's give, gradients included, for every length of a row."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from services.training import grouped
from services.training.grouped import GroupedConv1d

#: How far off results may be, as a share of their length.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 4e-3}


def pair(kind: torch.dtype) -> tuple[nn.Conv1d, GroupedConv1d]:
    """Torch's in float64, and ours with the same weights, rounded."""
    torch.manual_seed(0)
    ours = GroupedConv1d(8, 24, 41, stride=4, groups=2, padding=20).to(kind)
    plain = nn.Conv1d(8, 24, 41, stride=4, groups=2, padding=20).double()
    plain.load_state_dict(ours.state_dict())
    return plain, ours


def gradients(layer: nn.Module, hidden: Tensor, result: Tensor) -> list[Tensor]:
    direction = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(result.dtype)
    return list(torch.autograd.grad(result, [hidden, *layer.parameters()], direction))


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm().detach() / expected.norm().detach())


@pytest.mark.parametrize("kind", TOLERANCE, ids=["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("length", [1, 4, 5, 28, 29, 32, 33, 128, 163])
def test_results_and_gradients_are_torchs(length: int, kind: torch.dtype) -> None:
    plain, ours = pair(kind)
    values = torch.randn(3, 8, length, generator=torch.Generator().manual_seed(length)).to(kind)
    inputs = values.double().requires_grad_(), values.clone().requires_grad_()
    results = plain(inputs[0]), ours(inputs[1])
    assert results[1].shape == results[0].shape
    if kind == torch.bfloat16:  # rounded once, the bias added before
        assert distance(results[1], results[0]) < 1.9e-3
    for found, expected in zip(
        [results[1], *gradients(ours, inputs[1], results[1])],
        [results[0], *gradients(plain, inputs[0], results[0])],
        strict=True,
    ):
        assert found.dtype == kind
        assert distance(found, expected) < TOLERANCE[kind]


def test_it_obeys_autocast() -> None:
    """Computed in half precision, with gradients as precise as the weights are stored."""
    plain, ours = pair(torch.float32)
    values = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0))
    inputs = values.double().requires_grad_(), values.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        result = ours(inputs[1])
    assert result.dtype == torch.bfloat16
    expected = plain(inputs[0])
    assert distance(result, expected) < 2 * TOLERANCE[torch.bfloat16]
    for found, wanted in zip(
        gradients(ours, inputs[1], result), gradients(plain, inputs[0], expected), strict=True
    ):
        assert found.dtype == torch.float32
        assert distance(found, wanted) < 2 * TOLERANCE[torch.bfloat16]


def test_gradients_that_nobody_wants_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the generator's step, where the discriminator's weights are frozen."""
    _, ours = pair(torch.float32)
    expected_layer = copy.deepcopy(ours)
    ours.requires_grad_(False)
    values = torch.randn(2, 8, 64).requires_grad_()
    (expected,) = torch.autograd.grad(expected_layer(values).square().sum(), values)
    monkeypatch.setattr(grouped, "_to_kernel", lambda *_: pytest.fail("the kernel's gradient"))
    (found,) = torch.autograd.grad(ours(values).square().sum(), values)
    torch.testing.assert_close(found, expected)
    with pytest.raises(pytest.fail.Exception, match="the kernel's gradient"):
        expected_layer(values).sum().backward()
