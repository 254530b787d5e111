"""Minimal filtering gives what a direct sum gives, for every length of a row, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from services.training import winograd

#: How far off results may be, as a share of their length.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 6e-3}


def filtering(stride: int, kind: torch.dtype) -> winograd.Filtering:
    way = winograd.filtering(nn.Conv1d(128, 128, 5, stride, 2), kind)
    assert way is not None
    return way


def directly(hidden: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """[R, L, I] and [O, 5, I] → [R, N, O], in float64."""
    sums = functional.conv1d(
        hidden.double().transpose(1, 2), kernel.double().transpose(1, 2), stride=stride, padding=2
    )
    return sums.transpose(1, 2)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm().detach() / expected.norm().detach())


@pytest.mark.parametrize(
    ("stride", "kind"),
    [
        (1, torch.float64),
        (3, torch.float64),
        (1, torch.float32),
        (3, torch.float32),
        (1, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 11, 12, 13, 14, 37])
def test_results_and_gradients_are_those_of_a_direct_sum(length: int, stride: int, kind: torch.dtype) -> None:
    """Of a kernel in float32 at least, as weights are."""
    generator = torch.Generator().manual_seed(length)
    hidden = torch.randn(3, length, 64, generator=generator).to(kind)
    kernel = torch.randn(144, 5, 64, generator=generator).to(torch.promote_types(kind, torch.float32))
    way = filtering(stride, kind)
    transformed = way.transform(kernel)
    expected = hidden.clone().requires_grad_(), kernel.clone().requires_grad_()
    sums = directly(*expected, stride)
    direction = torch.randn(sums.shape, generator=generator).to(kind)
    results = [
        way.correlate(hidden, transformed),
        *way.gradients(direction, hidden, transformed, True, True),
    ]
    for found, wanted, precision in zip(
        results,
        [sums, *torch.autograd.grad(sums, expected, direction.double())],
        [kind, kind, kernel.dtype],
        strict=True,
    ):
        assert found is not None
        assert found.dtype == precision
        assert found.shape == wanted.shape
        assert distance(found, wanted) < TOLERANCE[kind]


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (1, 1), (1, 4), (3, 3), (3, 4)])
@pytest.mark.parametrize("length", [11, 12, 13])
def test_rows_may_have_other_zeros_around_them(length: int, stride: int, padding: int) -> None:
    way = winograd.filtering(nn.Conv1d(128, 128, 5, stride, padding), torch.float64)
    assert way is not None
    hidden = torch.randn(2, length, 3, dtype=torch.float64)
    kernel = torch.randn(4, 5, 3, dtype=torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (hidden, kernel)]
    results = [
        functional.conv1d(
            hidden.transpose(1, 2), kernel.transpose(1, 2), stride=stride, padding=padding
        ).transpose(1, 2),
        winograd.convolve(way, hidden, kernel, None),
    ]
    expected, found = ([result, *torch.autograd.grad(result.square().sum(), inputs)] for result in results)
    torch.testing.assert_close(found, expected)


def test_autocast_leaves_the_transform_of_a_kernel_alone() -> None:
    """Its sums are rounded once."""
    kernel = torch.randn(8, 5, 16, generator=torch.Generator().manual_seed(0))
    way = filtering(1, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = way.transform(kernel)
    assert found.dtype == torch.bfloat16
    exact = torch.matmul(way.filter_transform.double(), kernel.double()).flatten(1)
    assert found.equal(exact.to(torch.bfloat16))


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_has_the_gradients_that_are_wanted(bias: bool) -> None:
    """And no others are computed."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    inputs = [draw(2, 9, 3), draw(4, 5, 3), *([draw(4)] if bias else [])]

    def convolve(hidden: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
        return winograd.convolve(filtering(1, torch.float64), hidden, kernel, bias)

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
        nn.Conv1d(128, 128, 5, padding=1, stride=3),
        nn.Conv1d(128, 128, 5, padding=2, stride=2),
        nn.Conv1d(128, 128, 5, padding=2, dilation=2),
        nn.Conv1d(128, 128, 5, padding=2, groups=2),
        nn.Conv1d(128, 127, 5, padding=2),
        nn.Conv1d(127, 128, 5, padding=2),
    ],
)
def test_other_convolutions_do_not_suit(other: nn.Conv1d) -> None:
    assert winograd.filtering(nn.Conv2d(128, 128, (5, 1), (3, 1), (2, 0)), torch.float32) is not None
    assert winograd.filtering(nn.Conv2d(128, 128, (5, 1), (1, 1), (2, 0)), torch.bfloat16) is not None
    assert winograd.filtering(other, torch.float32) is None


def test_half_precision_takes_no_strides() -> None:
    assert winograd.filtering(nn.Conv2d(128, 128, (5, 1), (3, 1), (2, 0)), torch.bfloat16) is None


def test_few_results_are_not_worth_the_transforms_of_a_kernel() -> None:
    """Where three multiplications in ten are saved: not where three in five are."""
    plain, strided = nn.Conv1d(128, 128, 5, padding=2), nn.Conv1d(128, 128, 5, 3, 2)
    assert winograd.filtering(plain, torch.bfloat16, 399) is None
    assert winograd.filtering(plain, torch.bfloat16, 400) is not None
    assert winograd.filtering(strided, torch.float32, 399) is None
    assert winograd.filtering(plain, torch.float32, 1) is not None


def test_a_gradient_of_a_gradient_is_refused() -> None:
    """It would be wrong: the transformed kernel counts as a constant."""
    hidden, kernel = torch.randn(1, 9, 3), torch.randn(4, 5, 3, requires_grad=True)
    result = winograd.convolve(filtering(1, torch.float32), hidden, kernel, None)
    (gradient,) = torch.autograd.grad(result.square().sum(), kernel, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
