"""What makes training fast on processors: convolutions in the memory layout that they like, and memory kept.

oneDNN computes a convolution over channels-last memory in half to a fifth of the time that it takes for
channels-first in bfloat16, and in nine tenths in float32 (grouped ones excepted); torch's one-dimensional
convolution insists on channels-first. So here it is computed as a two-dimensional one of height 1. The numbers
are the same up to rounding; elementwise operations keep the layout, so that it is set up once and not at every
layer.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

#: Names in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next step instead of giving it back to the system.

    A step frees and takes gigabytes of activations; given back each time, the system clears some 250,000 pages a
    step anew, a tenth of a step's time. On systems without ``mallopt`` nothing changes.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            mallopt(option, 2**31 - 1)


def use_channels_last(network: nn.Module, *, grouped: bool) -> None:
    """Let every one-dimensional convolution below ``network`` work on channels-last memory, in place.

    Args:
        network: Its weights, their names and its results stay as they are.
        grouped: Grouped convolutions too. They gain in bfloat16, and lose in float32.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv1d) and layer.padding_mode == "zeros" and (grouped or layer.groups == 1):
            layer._conv_forward = _channels_last(layer)  # type: ignore[method-assign,assignment]


def _channels_last(layer: nn.Conv1d) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """What computes a layer of these settings; it does not hold on to the layer, which may be copied."""
    stride, dilation, groups = (1, *layer.stride), (1, *layer.dilation), layer.groups
    assert not isinstance(layer.padding, str)  # noqa: S101 - VITS has numbers everywhere
    padding = (0, *layer.padding)

    def convolve(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        hidden = hidden.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        return functional.conv2d(
            hidden, weight.unsqueeze(2), bias, stride, padding, dilation, groups
        ).squeeze(2)

    return convolve


class _WeightNorm(nn.Module):
    """``g · v / ‖v‖`` of torch's ``weight_norm``, of a kernel in whatever layout it lies in memory."""

    def forward(self, magnitude: Tensor, direction: Tensor) -> Tensor:
        """[O, 1, 1, 1] and [O, I, K, 1] → [O, I, K, 1]."""
        return direction * (magnitude / _norm(direction))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A weight's magnitude and direction."""
        return _norm(weight), weight


def _norm(kernel: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(kernel, dim=(1, 2, 3), keepdim=True)
    return norm


def weight_norm_along_width(convolution: nn.Conv2d) -> nn.Conv2d:
    """Weight norm of a kernel [O, I, K, 1] that will be used transposed, [O, I, 1, K], on channels-last images.

    It lies in memory as it is used, so that no step copies it into another order. Its state has the names and
    values that torch's ``weight_norm`` gives it.
    """
    kernel = convolution.weight.transpose(2, 3).contiguous(memory_format=torch.channels_last).transpose(2, 3)
    convolution.weight = nn.Parameter(kernel.detach())
    parametrize.register_parametrization(convolution, "weight", _WeightNorm())
    return convolution


class _TimeConvolution(torch.autograd.Function):
    """A convolution along time as one matrix product, which for wide layers is what a processor is best at.

    Its weight norm is in it, ``W = m · v / ‖v‖``: what is scaled is the result, which is ten times smaller than the
    kernel. With ``G`` the gradient at ``s · v``'s place, ``s = m / ‖v‖``, from ``∂L/∂m = v·G / ‖v‖`` and
    ``∂L/∂v = s (G - v (v·G) / ‖v‖²)`` (Salimans and Kingma 2016, https://arxiv.org/abs/1602.07868, equation 3).

    Shapes: B batch, P rows, L samples of a row, N samples of a row of the result, K kernel, I and O channels.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, magnitude: Tensor, direction: Tensor, bias: Tensor, stride: int
    ) -> Tensor:
        """[B, P, L, I], [O], [O, K, I] and [O] → [B·P·N, O], in the precision of ``hidden``."""
        norm = torch.linalg.vector_norm(direction, dim=(1, 2))
        kernel = direction.to(hidden.dtype)
        ctx.save_for_backward(hidden, magnitude, direction, kernel, norm)
        ctx.stride = stride
        rows = _patches(hidden, kernel.shape[1], stride) @ kernel.flatten(1).t()
        return rows.mul_(magnitude / norm).add_(bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        """Of the four tensors, where they are wanted; the patches are cut again rather than kept."""
        (rows,) = gradients
        hidden, magnitude, direction, kernel, norm = ctx.saved_tensors
        size, stride, length = kernel.shape[1], ctx.stride, hidden.shape[2]
        scale = magnitude / norm
        to_hidden = to_magnitude = to_direction = None
        if ctx.needs_input_grad[0]:
            scaled = rows * scale.to(rows.dtype)
            shares = (scaled @ kernel.flatten(1)).view(*hidden.shape[:2], -1, size, hidden.shape[3])
            padded = hidden.new_zeros(*hidden.shape[:2], length + 2 * (size // 2), hidden.shape[3])
            last = stride * (shares.shape[2] - 1) + 1
            for place in range(size):
                padded[:, :, place : place + last : stride] += shares[:, :, :, place]
            to_hidden = padded[:, :, size // 2 : size // 2 + length]
        if ctx.needs_input_grad[2]:
            flat = direction.flatten(1)
            gradient = (rows.t() @ _patches(hidden, size, stride)).to(flat.dtype)
            along = torch.linalg.vecdot(flat, gradient)
            to_magnitude = along / norm
            gradient.addcmul_(flat, (along / -norm.square())[:, None]).mul_(scale[:, None])
            to_direction = gradient.view_as(direction)
        to_bias = rows.sum(0) if ctx.needs_input_grad[3] else None
        return to_hidden, to_magnitude, to_direction, to_bias, None


def _patches(hidden: Tensor, kernel: int, stride: int) -> Tensor:
    """[B, P, L, I] → [B·P·N, K·I]: what each sample of the result looks at."""
    padded = functional.pad(hidden, (0, 0, kernel // 2, kernel // 2))
    return padded.unfold(2, kernel, stride).transpose(3, 4).flatten(3).flatten(0, 2)


#: Channels from which on a matrix product beats oneDNN's convolution.
_WIDE = 512


def convolve_along_width(convolution: nn.Module, hidden: Tensor) -> Tensor:
    """A convolution of :func:`weight_norm_along_width`, of images with time as their width: [B, C, P, L]."""
    assert isinstance(convolution, nn.Conv2d)  # noqa: S101 - parametrised, it is one still
    bias, stride, padding = convolution.bias, convolution.stride[0], convolution.padding[0]
    assert bias is not None  # noqa: S101 - VITS's have one
    assert isinstance(padding, int)  # noqa: S101 - no padding by name here
    hidden = hidden.contiguous(memory_format=torch.channels_last)
    if hidden.device.type != "cpu" or hidden.shape[1] < _WIDE or convolution.out_channels == 1:
        return functional.conv2d(hidden, convolution.weight.transpose(2, 3), bias, (1, stride), (0, padding))
    if torch.is_autocast_enabled("cpu"):
        hidden = hidden.to(torch.get_autocast_dtype("cpu"))
    parts = cast("Any", convolution.parametrizations).weight
    result: Tensor = _TimeConvolution.apply(  # type: ignore[no-untyped-call]
        hidden.permute(0, 2, 3, 1),
        parts.original0.flatten(),
        parts.original1.squeeze(3).transpose(1, 2),
        bias,
        stride,
    )
    return result.view(len(hidden), hidden.shape[2], -1, len(bias)).permute(0, 3, 1, 2)
