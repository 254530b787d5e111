"""Convolutions of five taps along time with fewer multiplications: Winograd's minimal filtering.

Four neighbouring results of a filter of five taps take 20 multiplications; minimal filtering, F(4, 5), takes 8, one
for each of as many points at which polynomials are evaluated (Winograd, 1980; Lavin and Gray, 2016,
https://arxiv.org/abs/1509.09308, section 4): ``y = Aᵀ [(G g) ⊙ (Bᵀ d)]``. For many channels each ``⊙`` is a matrix
product over them, which is where the time goes. A filter that steps over samples is the sum of one filter for each of
its phases: with a stride of 3 of F(4, 2), F(4, 2) and F(4, 1), by 14 multiplications. The gradients take the same
three transforms, transposed.

In float32 the results are off by 1e-6 of their length, where a direct sum is by 3e-7; in half precision they would be
off by 1e-2.

Shapes: R rows, L samples of a row, N samples of a row of the result, I and O channels, T tiles of a row, W samples
that a tile looks at, M multiplications (8 and 8 for a stride of 1, 14 and 14 for one of 3).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

#: In which this is precise enough.
PRECISIONS = (torch.float32, torch.float64)

#: Taps of the filter, on either side of its middle, and results of a tile.
_TAPS, _REACH, _TILE = 5, 2, 4
#: Where polynomials are evaluated, as many of these as it takes; and at infinity.
_POINTS = np.array([0, 1, -1, 2, -2, 0.5, -0.5])
#: Channels from which on fewer multiplications outweigh the transforms.
_WIDE = 128

_Matrix = np.ndarray[Any, np.dtype[np.float64]]


def suits(convolution: nn.Conv1d | nn.Conv2d) -> bool:
    """Whether what is here computes this layer, along its first dimension, and faster than a direct sum in float32."""
    return (
        convolution.kernel_size[0] == _TAPS
        and convolution.padding[0] == _REACH
        and convolution.stride[0] in (1, 3)
        and convolution.dilation[0] == convolution.groups == 1
        and min(convolution.in_channels, convolution.out_channels) >= _WIDE
    )


def convolve(hidden: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """[R, L, I], [O, 5, I] and [O] → [R, L, O], with zeros around each row."""
    result: Tensor = _Convolution.apply(hidden, kernel, bias)  # type: ignore[no-untyped-call]
    return result


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """As :func:`convolve`."""
        transformed = transform(kernel)
        result = correlate(hidden, transformed)
        ctx.save_for_backward(hidden, transformed)
        return result if bias is None else result.add_(bias)

    @staticmethod
    def backward(ctx: Any, *wanted: Any) -> tuple[Tensor | None, ...]:
        """Of all three, where they are wanted."""
        ((gradient,), (hidden, transformed)) = wanted, ctx.saved_tensors
        to_hidden, to_kernel, to_bias = ctx.needs_input_grad
        by_bias = gradient.sum((0, 1)) if to_bias else None
        return *gradients(gradient, hidden, transformed, to_hidden, to_kernel), by_bias


def transform(kernel: Tensor, stride: int = 1) -> Tensor:
    """[O, 5, I] → [M, O, I], as :func:`correlate` takes it."""
    return torch.matmul(_transforms(stride, kernel.dtype)[1], kernel).transpose(0, 1)


def correlate(hidden: Tensor, transformed: Tensor, stride: int = 1) -> Tensor:
    """[R, L, I] and a kernel of :func:`transform`, [M, O, I] → [R, N, O]."""
    to_results, _, of_samples = _transforms(stride, hidden.dtype)
    rows, length, _ = hidden.shape
    products = torch.bmm(_transformed(of_samples, _tiles(hidden, stride)), transformed.transpose(1, 2))
    results = (to_results @ products.flatten(1)).view(_TILE, rows, -1, products.shape[2])
    return results.permute(1, 2, 0, 3).flatten(1, 2)[:, : _results(length, stride)]


def gradients(
    gradient: Tensor, hidden: Tensor, transformed: Tensor, to_hidden: bool, to_kernel: bool, stride: int = 1
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients [R, L, I] and [O, 5, I] of ``correlate(hidden, transform(kernel))``, where they are wanted.

    Args:
        gradient: [R, N, O] of its result.
        hidden: [R, L, I] as it was given.
        transformed: [M, O, I], the kernel.
        to_hidden: Whether the first is wanted.
        to_kernel: Whether the second is.
        stride: As it was given.
    """
    to_results, of_kernel, of_samples = _transforms(stride, hidden.dtype)
    rows, length, channels = hidden.shape
    tiles = _tile_count(length, stride)
    padded = functional.pad(gradient, (0, 0, 0, tiles * _TILE - gradient.shape[1]))
    factors = _transformed(to_results.t(), padded.view(rows, tiles, _TILE, -1))
    by_hidden = by_kernel = None
    if to_hidden:
        shares = of_samples.t() @ torch.bmm(factors, transformed).flatten(1)
        shares = shares.view(-1, rows, tiles, channels).permute(1, 2, 0, 3)
        step = _TILE * stride
        blocks = hidden.new_zeros(rows, tiles + 1, step, channels)
        blocks[:, :-1] += shares[:, :, :step]
        blocks[:, 1:, : shares.shape[2] - step] += shares[:, :, step:]
        by_hidden = blocks.flatten(1, 2)[:, _REACH : _REACH + length]
    if to_kernel:
        products = torch.bmm(factors.transpose(1, 2), _transformed(of_samples, _tiles(hidden, stride)))
        by_kernel = (of_kernel.t() @ products.flatten(1)).view(_TAPS, -1, channels).transpose(0, 1)
    return by_hidden, by_kernel


def _results(length: int, stride: int) -> int:
    return (length + 2 * _REACH - _TAPS) // stride + 1


def _tile_count(length: int, stride: int) -> int:
    return -(-_results(length, stride) // _TILE)


def _tiles(hidden: Tensor, stride: int) -> Tensor:
    """[R, L, I] → [R, T, W, I]: what the four results of each tile look at, a view of the padded rows."""
    rows, length, channels = hidden.shape
    tiles, step, width = _tile_count(length, stride), _TILE * stride, (_TILE - 1) * stride + _TAPS
    padded = functional.pad(hidden, (0, 0, _REACH, (tiles - 1) * step + width - _REACH - length))
    row, sample, channel = padded.stride()
    return padded.as_strided((rows, tiles, width, channels), (row, step * sample, sample, channel))


def _transformed(transform: Tensor, tiles: Tensor) -> Tensor:
    """[M, W] and [R, T, W, I] → [M, R·T, I], whose first dimension lies in memory between the others."""
    return torch.matmul(transform, tiles).flatten(0, 1).transpose(0, 1)


def _transforms(stride: int, kind: torch.dtype) -> list[Tensor]:
    """Aᵀ [4, M], G [M, 5] and Bᵀ [M, W]."""
    return [torch.tensor(matrix, dtype=kind) for matrix in _matrices(stride)]


@cache
def _matrices(stride: int) -> tuple[_Matrix, _Matrix, _Matrix]:
    """Of all phases: Aᵀ [4, M], G [M, 5] and Bᵀ [M, W]."""
    to_results: list[_Matrix] = []
    of_kernel: list[_Matrix] = []
    of_samples: list[_Matrix] = []
    for phase in range(stride):
        taps = len(range(phase, _TAPS, stride))
        of_phase = _filtering(taps)
        to_results.append(of_phase[0])
        for matrices, matrix, width in (
            (of_kernel, of_phase[1], _TAPS),
            (of_samples, of_phase[2], (_TILE - 1) * stride + _TAPS),
        ):
            spread = np.zeros((len(matrix), width))
            spread[:, phase : phase + stride * matrix.shape[1] : stride] = matrix
            matrices.append(spread)
    return np.concatenate(to_results, axis=1), np.concatenate(of_kernel), np.concatenate(of_samples)


def _filtering(taps: int) -> tuple[_Matrix, _Matrix, _Matrix]:
    """F(4, ``taps``): evaluation of four and of ``taps`` coefficients, and interpolation's transpose.

    A point's row of G may be any multiple if that of Bᵀ is divided by it: powers of two, which cost nothing, make
    Bᵀ's sum to about one.
    """
    if taps == 1:
        return np.eye(_TILE), np.ones((_TILE, 1)), np.eye(_TILE)
    points = _POINTS[: _TILE + taps - 2]

    def evaluation(coefficients: int) -> _Matrix:
        return np.concatenate([points[:, None] ** np.arange(coefficients), np.eye(coefficients)[-1:]])

    interpolation = np.linalg.inv(evaluation(_TILE + taps - 1)).T
    scale = 2.0 ** np.round(np.log2(np.abs(interpolation).sum(1, keepdims=True)))
    return evaluation(_TILE).T, evaluation(taps) * scale, interpolation / scale
