"""Convolutions of five taps along time with fewer multiplications: Winograd's minimal filtering.

Four neighbouring results of a filter of five taps take 20 multiplications; minimal filtering, F(4, 5), takes 8, one
for each of as many points at which polynomials are evaluated (Winograd, 1980; Lavin and Gray, 2016,
https://arxiv.org/abs/1509.09308, section 4): ``y = Aᵀ [(G g) ⊙ (Bᵀ d)]``. For many channels each ``⊙`` is a matrix
product over them, which is where the time goes. A filter may be taken for the sum of several: one for each of its
phases where it steps over samples (with a stride of 3, F(4, 2), F(4, 2) and F(4, 1), 14 multiplications), and in half
precision, which eight points are too many for, F(2, 3) and F(2, 2), 7 multiplications for 10. What these multiply for
the same results, the same column of Aᵀ, is one product over the channels of both. The gradients take the same three
transforms, transposed.

In float32 the results are off by 1e-6 of their length, where a direct sum is by 3e-7; in bfloat16 by 4e-3, where a
direct sum, rounded once, is by 2e-3.

Shapes: R rows, L samples of a row, N samples of a row of the result, I and O channels, T tiles of a row, W
samples that a tile looks at, M multiplications, P products that they are summed up in.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

#: In which as many points are precise enough as F(4, 5) takes.
FULL_PRECISION = (torch.float32, torch.float64)
#: Where polynomials are evaluated, as many of these as it takes; and at infinity.
_POINTS = np.array([0, 1, -1, 2, -2, 0.5, -0.5])
#: Of the filters here; with three, F(4, 3), the transforms cost what half as many multiplications save.
_TAPS = 5
#: Channels from which on fewer multiplications outweigh the transforms.
_WIDE = 128
#: Results from which on three multiplications in ten outweigh the kernels' transforms, which take as long for few.
_MANY = 400
#: Kernels of so many results are transformed at a time between two precisions: a few MB, which a cache holds.
_AT_ONCE = 128

_Matrix = np.ndarray[Any, np.dtype[np.float64]]


def filtering(
    convolution: nn.Conv1d | nn.Conv2d, kind: torch.dtype, results: int = _MANY
) -> Filtering | None:
    """How to compute this layer by minimal filtering, along its first dimension.

    Args:
        convolution: The layer, whose other dimensions are not looked at.
        kind: Of what is convolved.
        results: How many there will be, R·N.

    Returns:
        None where a direct sum is faster, and for what is not done here: groups, dilation, samples that nothing sees.
    """
    taps, stride, padding = convolution.kernel_size[0], convolution.stride[0], convolution.padding[0]
    full = kind in FULL_PRECISION
    suits = (
        taps == _TAPS
        and isinstance(padding, int)
        and padding >= stride - 1  # every sample is looked at
        and stride in ((1, 3) if full else (1,))
        and convolution.dilation[0] == convolution.groups == 1
        and min(convolution.in_channels, convolution.out_channels) >= _WIDE
        and (results >= _MANY or (full and stride == 1))
    )
    return Filtering(stride, int(padding), *_transforms(stride, kind)) if suits else None


def convolve(way: Filtering, hidden: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """[R, L, I], [O, 5, I] and [O] → [R, N, O], with zeros around each row."""
    result: Tensor = _Convolution.apply(way, hidden, kernel, bias)  # type: ignore[no-untyped-call]
    return result


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, way: Filtering, hidden: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """As :func:`convolve`."""
        transformed = way.transform(kernel)
        result = way.correlate(hidden, transformed)
        ctx.save_for_backward(hidden, transformed)
        ctx.way = way
        return result if bias is None else result.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *wanted: Any) -> tuple[Tensor | None, ...]:
        """Of the last three, where they are wanted."""
        ((gradient,), (hidden, transformed)) = wanted, ctx.saved_tensors
        _, to_hidden, to_kernel, to_bias = ctx.needs_input_grad
        by_bias = gradient.sum((0, 1)) if to_bias else None
        return None, *ctx.way.gradients(gradient, hidden, transformed, to_hidden, to_kernel), by_bias


@dataclass(frozen=True, eq=False)
class Filtering:
    """A way to filter, in the precision of its transforms.

    Attributes:
        stride: Samples from one result to the next.
        padding: Zeros on either side of a row.
        output_transform: Aᵀ, [results of a tile, P].
        filter_transform: G, [M, 5].
        input_transform: Bᵀ, [M, W].
        sums: Of each product, the multiplications that are summed up in it; None if each is its own, P = M.
    """

    stride: int
    padding: int
    output_transform: Tensor
    filter_transform: Tensor
    input_transform: Tensor
    sums: tuple[slice, ...] | None

    def transform(self, kernel: Tensor) -> Tensor:
        """[O, 5, I], in this precision or another → [O, M·I], as :meth:`correlate` takes it."""
        filter_transform = self.filter_transform.to(kernel.dtype)
        with torch.autocast(kernel.device.type, enabled=False):
            if kernel.dtype == self.filter_transform.dtype:
                return torch.matmul(filter_transform, kernel).flatten(1)
            transformed = self.filter_transform.new_empty(len(kernel), len(filter_transform), kernel.shape[2])
            for some, result in zip(kernel.split(_AT_ONCE), transformed.split(_AT_ONCE), strict=True):
                result.copy_(torch.matmul(filter_transform, some))
        return transformed.flatten(1)

    def correlate(self, hidden: Tensor, transformed: Tensor) -> Tensor:
        """[R, L, I] and a kernel of :meth:`transform`, [O, M·I] → [R, N, O]."""
        rows, length, channels = hidden.shape
        samples = self._of_tiles(hidden)
        if self.sums is None:
            products = torch.bmm(self._apart(samples), self._apart(transformed).transpose(1, 2))
        else:
            products = hidden.new_empty(len(self.sums), len(samples), len(transformed))
            for product, these in zip(products, self._columns(channels), strict=True):
                torch.mm(samples[:, these], transformed[:, these].t(), out=product)
        results = (self.output_transform @ products.flatten(1)).view(self._tile, rows, -1, len(transformed))
        return results.permute(1, 2, 0, 3).flatten(1, 2)[:, : self._results(length)]

    def gradients(
        self, gradient: Tensor, hidden: Tensor, transformed: Tensor, to_hidden: bool, to_kernel: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients [R, L, I] and [O, 5, I] of ``correlate(hidden, transform(kernel))``, where they are wanted.

        Args:
            gradient: [R, N, O] of its result.
            hidden: [R, L, I] as it was given.
            transformed: [O, M·I], the kernel.
            to_hidden: Whether the first is wanted.
            to_kernel: Whether the second is; in half precision it is float32.
        """
        rows, length, channels = hidden.shape
        tiles = self._tiles(length)
        padded = functional.pad(gradient, (0, 0, 0, tiles * self._tile - gradient.shape[1]))
        factors = _combined(self.output_transform.t(), padded.view(rows, tiles, self._tile, -1))
        factors = factors.flatten(0, 1).transpose(0, 1)  # [P, R·T, O]
        by_hidden = by_kernel = None
        if to_hidden:
            step = self._tile * self.stride
            starts = range(0, self._width, step)
            blocks = hidden.new_zeros(rows, tiles + len(starts) - 1, step, channels)
            spread = self._to_samples(factors, transformed).view(rows, tiles, -1, channels)
            for block, start in enumerate(starts):
                share = spread[:, :, start : start + step]
                blocks[:, block : block + tiles, : share.shape[2]] += share
            by_hidden = blocks.flatten(1, 2)[:, self.padding : self.padding + length]
        if to_kernel:
            by_kernel = self._to_taps(factors, self._of_tiles(hidden))
        return by_hidden, by_kernel

    def _to_samples(self, factors: Tensor, transformed: Tensor) -> Tensor:
        """[P, R·T, O] and [O, M·I] → what each tile gives to the samples that it looks at, [R·T, W, I]."""
        by_sample = self.input_transform.t()
        count, channels = factors.shape[1], transformed.shape[1] // by_sample.shape[1]
        if self.sums is None:
            shares = torch.bmm(factors, self._apart(transformed))
            return (by_sample @ shares.flatten(1)).view(-1, count, channels).transpose(0, 1)
        shares = factors.new_empty(count, transformed.shape[1])
        for factor, these in zip(factors, self._columns(channels), strict=True):
            torch.mm(factor, transformed[:, these], out=shares[:, these])
        return torch.matmul(by_sample, shares.view(count, -1, channels))

    def _to_taps(self, factors: Tensor, samples: Tensor) -> Tensor:
        """[P, R·T, O] and [R·T, M·I] → the kernel's gradient, [O, 5, I]."""
        by_tap = self.filter_transform.t()
        channels = samples.shape[1] // by_tap.shape[1]
        if self.sums is None:
            sums = torch.bmm(factors.transpose(1, 2), self._apart(samples))
            return (by_tap @ sums.flatten(1)).view(_TAPS, -1, channels).transpose(0, 1)
        sums = factors.new_empty(factors.shape[2], samples.shape[1])
        for factor, these in zip(factors, self._columns(channels), strict=True):
            torch.mm(factor.t(), samples[:, these], out=sums[:, these])
        by_tap = by_tap.float()
        gradient = by_tap.new_empty(len(sums), _TAPS, channels)
        sums = sums.view(len(sums), -1, channels)
        for some, result in zip(sums.split(_AT_ONCE), gradient.split(_AT_ONCE), strict=True):
            torch.matmul(by_tap, some.float(), out=result)
        return gradient

    @property
    def _tile(self) -> int:
        """Results of a tile."""
        return len(self.output_transform)

    @property
    def _width(self) -> int:
        """W."""
        return self.input_transform.shape[1]

    def _results(self, length: int) -> int:
        """N of a row of so many samples."""
        return (length + 2 * self.padding - _TAPS) // self.stride + 1

    def _tiles(self, length: int) -> int:
        """T of a row of so many samples."""
        return -(-self._results(length) // self._tile)

    def _apart(self, values: Tensor) -> Tensor:
        """[N, M·C] → [M, N, C]."""
        return values.view(len(values), len(self.input_transform), -1).transpose(0, 1)

    def _columns(self, channels: int) -> list[slice]:
        """Where each product's multiplications are among M·C numbers."""
        assert self.sums is not None  # noqa: S101 - asked of those alone that sum up
        return [slice(these.start * channels, these.stop * channels) for these in self.sums]

    def _of_tiles(self, hidden: Tensor) -> Tensor:
        """[R, L, I] → [R·T, M·I]: what is multiplied, of each tile."""
        rows, length, channels = hidden.shape
        tiles, step = self._tiles(length), self._tile * self.stride
        padded = functional.pad(
            hidden, (0, 0, self.padding, (tiles - 1) * step + self._width - self.padding - length)
        )
        row, sample, channel = padded.stride()
        seen = padded.as_strided((rows, tiles, self._width, channels), (row, step * sample, sample, channel))
        return _combined(self.input_transform, seen).flatten(2).flatten(0, 1)


def _combined(matrix: Tensor, values: Tensor) -> Tensor:
    """[M, W] and [R, T, W, C] → their product, [R, T, M, C]."""
    if values.dtype in FULL_PRECISION:
        return torch.matmul(matrix, values)
    # In half precision a row is 1 at one place and at most 1 or -1 at another; sums take a third of a product's time.
    result = values.new_empty(*values.shape[:2], len(matrix), values.shape[3])
    parts = values.unbind(2)
    for row, into in zip(matrix.tolist(), result.unbind(2), strict=True):
        one = row.index(1)
        match [place for place, factor in enumerate(row) if factor and place != one]:
            case []:
                into.copy_(parts[one])
            case [other]:
                torch.add(parts[one], parts[other], alpha=row[other], out=into)
            case _:
                raise AssertionError(row)
    return result


@cache
def _transforms(stride: int, kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor, tuple[slice, ...] | None]:
    """Aᵀ, G, Bᵀ and sums of the filters of all phases: over as many results, of as many taps, as are precise enough."""
    full = kind in FULL_PRECISION
    tile = 4 if full else 2
    filters = [range(phase, _TAPS, stride) for phase in range(stride)] if full else [range(3), range(3, 5)]
    columns: list[_Matrix] = []
    of_taps: list[_Matrix] = []
    of_samples: list[_Matrix] = []
    for taps in filters:
        output_transform, filter_transform, input_transform = _minimal(tile, len(taps))
        columns.append(output_transform.T)
        over_taps = np.zeros((len(filter_transform), _TAPS))
        over_taps[:, list(taps)] = filter_transform
        of_taps.append(over_taps)
        samples = range(taps[0], taps[0] + stride * input_transform.shape[1], stride)
        over_samples = np.zeros((len(input_transform), (tile - 1) * stride + _TAPS))
        over_samples[:, list(samples)] = input_transform
        of_samples.append(over_samples)
    matrices = [np.concatenate(parts) for parts in (columns, of_taps, of_samples)]
    sums = None
    if not full:
        distinct, product, counts = np.unique(matrices[0], axis=0, return_inverse=True, return_counts=True)
        order = np.argsort(product, kind="stable")
        matrices = [distinct, matrices[1][order], matrices[2][order]]
        ends = np.cumsum(counts).tolist()
        sums = tuple(map(slice, [0, *ends], ends))
    by_product, by_tap, by_sample = (torch.tensor(matrix, dtype=kind, device="cpu") for matrix in matrices)
    return by_product.t(), by_tap, by_sample, sums


def _minimal(tile: int, taps: int) -> tuple[_Matrix, _Matrix, _Matrix]:
    """Aᵀ, G and Bᵀ of F(``tile``, ``taps``): evaluation of as many coefficients, and interpolation's transpose.

    A point's row of G may be any multiple if that of Bᵀ is divided by it: powers of two, which cost nothing, bring the
    largest in Bᵀ's to about one.
    """
    if taps == 1:
        return np.eye(tile), np.ones((tile, 1)), np.eye(tile)
    points = _POINTS[: tile + taps - 2]

    def evaluation(coefficients: int) -> _Matrix:
        return np.concatenate([points[:, None] ** np.arange(coefficients), np.eye(coefficients)[-1:]])

    interpolation = np.linalg.inv(evaluation(tile + taps - 1)).T
    scale = 2.0 ** np.round(np.log2(np.abs(interpolation).max(1, keepdims=True)))
    return evaluation(tile).T, evaluation(taps) * scale, interpolation / scale
