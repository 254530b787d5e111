"""Strided convolutions of many groups, as the scale discriminator has them, faster than oneDNN's on processors.

With four channels a group there is little for a vector to do, and what oneDNN does with them takes several times as
long as their arithmetic. Several neighbouring results of a group, though, are a product: of all samples that they
look at with the kernel, written out once for each of them, shifted by a stride (a Toeplitz matrix). Two in five of its
multiplications are with zeros, and it is up to twice as fast still: forward in half precision, and for the kernels'
gradients, but for 64 groups in float32, where it is as fast.

Shapes: B batch, G groups, I and O channels of one, L samples, N samples of the result, K taps; T tiles of a row, W
samples that a tile looks at.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.training.winograd import FULL_PRECISION

#: Results of a tile.
_TILE = 8


class GroupedConv1d(nn.Conv1d):
    """A convolution of groups: [B, G·I, L] → [B, G·O, N]."""

    def _conv_forward(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        stride, padding = self.stride[0], self.padding[0]
        assert isinstance(padding, int)  # noqa: S101 - no padding by name here
        assert bias is not None  # noqa: S101 - VITS's have one
        assert self.dilation == (1,)  # noqa: S101 - nor dilation
        assert self.padding_mode == "zeros"  # noqa: S101 - nor anything else around a row
        if hidden.device.type != "cpu":
            return functional.conv1d(hidden, weight, bias, stride, padding, 1, self.groups)
        if torch.is_autocast_enabled("cpu"):
            kind = torch.get_autocast_dtype("cpu")
            hidden, weight, bias = hidden.to(kind), weight.to(kind), bias.to(kind)
        result: Tensor = _Grouped.apply(hidden, weight, bias, stride, padding, self.groups)  # type: ignore[no-untyped-call]
        return result


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, kernel: Tensor, bias: Tensor, stride: int, padding: int, groups: int
    ) -> Tensor:
        """[B, G·I, L], [G·O, I, K] and [G·O] → [B, G·O, N]."""
        ctx.save_for_backward(hidden, kernel)
        ctx.settings = stride, padding, groups
        if kernel.dtype in FULL_PRECISION:
            return functional.conv1d(hidden, kernel, bias, stride, padding, 1, groups)
        per_group = len(kernel) // groups
        biases = bias.view(groups, 1, per_group, 1).expand(-1, -1, -1, _TILE).flatten(2)
        tiles = _tiles(hidden, kernel.shape[2], stride, padding, groups)
        results = torch.baddbmm(biases, tiles, _toeplitz(kernel, stride, groups))
        rows = results.view(groups, len(hidden), -1, per_group, _TILE).permute(1, 0, 3, 2, 4)
        length = (hidden.shape[2] + 2 * padding - kernel.shape[2]) // stride + 1
        return rows.reshape(len(hidden), len(kernel), -1)[:, :, :length]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        """Of the first three, where they are wanted."""
        (gradient,), (hidden, kernel), (stride, padding, groups) = gradients, ctx.saved_tensors, ctx.settings
        to_hidden = to_kernel = to_bias = None
        if ctx.needs_input_grad[0]:
            to_hidden, _, _ = torch.ops.aten.convolution_backward(
                gradient,
                hidden,
                kernel,
                None,
                [stride],
                [padding],
                [1],
                False,
                [0],
                groups,
                [True, False, False],
            )
        if ctx.needs_input_grad[1]:
            to_kernel = _to_kernel(gradient, hidden, kernel, stride, padding, groups)
        if ctx.needs_input_grad[2]:
            to_bias = gradient.sum((0, 2))
        return to_hidden, to_kernel, to_bias, None, None, None


def _to_kernel(
    gradient: Tensor, hidden: Tensor, kernel: Tensor, stride: int, padding: int, groups: int
) -> Tensor:
    """The kernel's gradient, [G·O, I, K]: of the Toeplitz matrix, summed over where the kernel stands in it."""
    taps, per_group = kernel.shape[2], len(kernel) // groups
    tiles = _tiles(hidden, taps, stride, padding, groups)
    padded = functional.pad(gradient, (0, -gradient.shape[2] % _TILE))
    rows = padded.view(len(hidden), groups, per_group, -1, _TILE).permute(1, 0, 3, 2, 4)
    by_place = torch.bmm(tiles.transpose(1, 2), rows.reshape(groups, tiles.shape[1], -1))
    by_place = by_place.view(groups, kernel.shape[1], -1, per_group, _TILE)
    total = by_place.new_zeros(
        groups, kernel.shape[1], taps, per_group, dtype=torch.promote_types(kernel.dtype, torch.float32)
    )
    for place in range(_TILE):
        total += by_place[:, :, stride * place : stride * place + taps, :, place]
    return total.permute(0, 3, 1, 2).reshape(kernel.shape).to(kernel.dtype)


def _tiles(hidden: Tensor, taps: int, stride: int, padding: int, groups: int) -> Tensor:
    """[B, G·I, L] → [G, B·T, I·W]: what the results of each tile look at."""
    batch, channels, length = hidden.shape
    count = -(-((length + 2 * padding - taps) // stride + 1) // _TILE)
    step, width = stride * _TILE, stride * (_TILE - 1) + taps
    padded = functional.pad(hidden, (padding, (count - 1) * step + width - padding - length))
    row, channel, sample = padded.stride()
    per_group = channels // groups
    seen = padded.as_strided(
        (groups, batch, count, per_group, width), (per_group * channel, row, step * sample, channel, sample)
    )
    return seen.reshape(groups, batch * count, per_group * width)


def _toeplitz(kernel: Tensor, stride: int, groups: int) -> Tensor:
    """[G·O, I, K] → [G, I·W, O·tile]."""
    _, per_group, taps = kernel.shape
    kernel = kernel.view(groups, -1, per_group, taps).permute(0, 2, 3, 1)
    matrix = kernel.new_zeros(groups, per_group, stride * (_TILE - 1) + taps, kernel.shape[3], _TILE)
    for place in range(_TILE):
        matrix[:, :, stride * place : stride * place + taps, :, place] = kernel
    return matrix.view(groups, per_group * matrix.shape[2], -1)
