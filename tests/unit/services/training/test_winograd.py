"""Minimal filtering gives what a direct sum gives, for every length of a row, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from services.training import winograd

#: How far off results may be, as a share of their length.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6}


def directly(hidden: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """[R, L, I] and [O, 5, I] → [R, N, O], in float64."""
    sums = functional.conv1d(
        hidden.double().transpose(1, 2), kernel.double().transpose(1, 2), stride=stride, padding=2
    )
    return sums.transpose(1, 2)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm().detach() / expected.norm().detach())


@pytest.mark.parametrize("kind", TOLERANCE, ids=["float64", "float32"])
@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 11, 12, 13, 14, 37])
def test_results_and_gradients_are_those_of_a_direct_sum(length: int, stride: int, kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(length)
    hidden = torch.randn(3, length, 64, generator=generator).to(kind)
    kernel = torch.randn(48, 5, 64, generator=generator).to(kind)
    transformed = winograd.transform(kernel, stride)
    expected = hidden.clone().requires_grad_(), kernel.clone().requires_grad_()
    sums = directly(*expected, stride)
    direction = torch.randn(sums.shape, generator=generator).to(kind)
    results = [
        winograd.correlate(hidden, transformed, stride),
        *winograd.gradients(direction, hidden, transformed, True, True, stride),
    ]
    for found, wanted in zip(
        results, [sums, *torch.autograd.grad(sums, expected, direction.double())], strict=True
    ):
        assert found is not None
        assert found.dtype == kind
        assert found.shape == wanted.shape
        assert distance(found, wanted) < TOLERANCE[kind]


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_has_the_gradients_that_are_wanted(bias: bool) -> None:
    """And no others are computed."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    inputs = [draw(2, 9, 3), draw(4, 5, 3), *([draw(4)] if bias else [])]

    def convolve(hidden: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
        return winograd.convolve(hidden, kernel, bias)

    assert torch.autograd.gradcheck(convolve, inputs)
    for number, one in enumerate(inputs):
        alone = [other.detach() for other in inputs]
        alone[number] = one
        (gradient,) = torch.autograd.grad(convolve(*alone).square().sum(), one)
        (together, *_) = torch.autograd.grad(convolve(*inputs).square().sum(), one)
        torch.testing.assert_close(gradient, together)


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv1d(128, 128, 3, padding=1),
        nn.Conv1d(128, 128, 5, padding=0),
        nn.Conv1d(128, 128, 5, padding=2, stride=2),
        nn.Conv1d(128, 128, 5, padding=2, dilation=2),
        nn.Conv1d(128, 128, 5, padding=2, groups=2),
        nn.Conv1d(128, 127, 5, padding=2),
        nn.Conv1d(127, 128, 5, padding=2),
    ],
)
def test_other_convolutions_do_not_suit(other: nn.Conv1d) -> None:
    assert winograd.suits(nn.Conv1d(128, 128, 5, padding=2))
    assert winograd.suits(nn.Conv2d(128, 128, (5, 1), (3, 1), (2, 0)))
    assert not winograd.suits(other)
