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
from types import MethodType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers.models.vits.modeling_vits import VitsDilatedDepthSeparableConv

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


def use_tokens_of_channels(predictor: nn.Module) -> None:
    """Let a duration predictor's separable convolutions compute token by token, [B, T, D], in place.

    Three quarters of their layers work on the channels of one token: normalisation, GELU, and the pointwise
    convolution, which is a matrix product. ``transformers`` turns them to and fro around each, and a GELU whose
    gradient lies the other way round than its input takes ten times as long.
    """
    for block in predictor.modules():
        if isinstance(block, VitsDilatedDepthSeparableConv):
            block.forward = MethodType(_separable, block)  # type: ignore[method-assign]


def _separable(
    block: Any, inputs: Tensor, padding_mask: Tensor, global_conditioning: Tensor | None = None
) -> Tensor:
    """[B, D, T] → [B, D, T], channels last in memory."""
    if global_conditioning is not None:
        inputs = inputs + global_conditioning
    hidden, mask = inputs.transpose(1, 2).contiguous(), padding_mask.transpose(1, 2)
    layers = zip(block.convs_dilated, block.norms_1, block.convs_pointwise, block.norms_2, strict=True)
    for dilated, norm_1, pointwise, norm_2 in layers:
        change = functional.gelu(norm_1(_depthwise(dilated, hidden * mask)))
        change = functional.linear(change, pointwise.weight.squeeze(2), pointwise.bias)
        hidden = hidden + block.dropout(functional.gelu(norm_2(change)))
    return (hidden * mask).transpose(1, 2)


def _depthwise(convolution: nn.Conv1d, hidden: Tensor) -> Tensor:
    """A convolution of every channel by itself, [B, T, D] → [B, T, D], as one product for each of its few taps."""
    assert not isinstance(convolution.padding, str)  # noqa: S101 - VITS has numbers everywhere
    assert convolution.bias is not None  # noqa: S101 - and biases
    (dilation,), (padding,), length = convolution.dilation, convolution.padding, hidden.shape[1]
    padded = functional.pad(hidden, (0, 0, padding, padding))
    taps = convolution.weight.squeeze(1).t()
    result = convolution.bias
    for place, tap in enumerate(taps):
        result = torch.addcmul(result, padded[:, place * dilation : place * dilation + length], tap)
    return result


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


_Convolution = TypeVar("_Convolution", nn.Conv1d, nn.Conv2d)


class _WeightNorm(nn.Module):
    """``g · v / ‖v‖`` of torch's ``weight_norm``, of a kernel in whatever layout it lies in memory."""

    def forward(self, magnitude: Tensor, direction: Tensor) -> Tensor:
        """[O, 1, 1, 1] and [O, I, K, 1] → [O, I, K, 1], or both without the last."""
        return direction * (magnitude / _norm(direction))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A weight's magnitude and direction."""
        return _norm(weight), weight


def _norm(kernel: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(kernel, dim=tuple(range(1, kernel.ndim)), keepdim=True)
    return norm


def weight_norm_along_width(convolution: _Convolution) -> _Convolution:
    """Weight norm of a kernel [O, I, K] or [O, I, K, 1] that will be used as [O, I, 1, K] on channels-last images.

    It lies in memory as it is used, so that no step copies it into another order. Its state has the names and
    values that torch's ``weight_norm`` gives it.
    """
    kernel = _as_used(convolution.weight).contiguous(memory_format=torch.channels_last)
    convolution.weight = nn.Parameter(
        (kernel.squeeze(2) if convolution.weight.ndim == 3 else kernel.transpose(2, 3)).detach()
    )
    parametrize.register_parametrization(convolution, "weight", _WeightNorm())
    return convolution


def _as_used(kernel: Tensor) -> Tensor:
    """[O, I, K] or [O, I, K, 1] → [O, I, 1, K]."""
    return kernel.unsqueeze(2) if kernel.ndim == 3 else kernel.transpose(2, 3)


class WideConv1d(nn.Conv1d):
    """A convolution of :func:`weight_norm_along_width` over one row: [B, I, L] → [B, O, N]."""

    def forward(self, hidden: Tensor) -> Tensor:
        """As torch's."""
        return convolve_along_width(self, hidden.unsqueeze(2)).squeeze(2)


class _TimeConvolution(torch.autograd.Function):
    """A convolution along time as one matrix product, which for wide layers is what a processor is best at.

    Its weight norm is in it, ``W = m · v / ‖v‖``: what is scaled is the result, which is ten times smaller than the
    kernel. With ``s = m / ‖v‖``, ``r`` the result before that and ``G`` the gradient at ``s · v``'s place, from
    ``∂L/∂m = v·G / ‖v‖`` and ``∂L/∂v = s (G - v (v·G) / ‖v‖²)`` (Salimans and Kingma 2016,
    https://arxiv.org/abs/1602.07868, equation 3). ``v·G`` is the sum over rows of the result's gradient times ``r``.

    Shapes: B batch, P rows, L samples of a row, N samples of a row of the result, K kernel, I and O channels.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, magnitude: Tensor, direction: Tensor, bias: Tensor, stride: int
    ) -> Tensor:
        """[B, P, L, I], [O], [O, K, I] and [O] → [B·P·N, O], in the precision of ``hidden``."""
        norm = torch.linalg.vector_norm(direction, dim=(1, 2))
        kernel = direction.to(hidden.dtype)
        unscaled = _patches(hidden, kernel.shape[1], stride) @ kernel.flatten(1).t()
        ctx.save_for_backward(
            hidden, magnitude, direction, kernel, norm, unscaled if ctx.needs_input_grad[2] else None
        )
        ctx.stride = stride
        return torch.addcmul(bias, unscaled, magnitude / norm).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        """Of the four tensors, where they are wanted; the patches are cut again rather than kept."""
        (rows,) = gradients
        hidden, magnitude, direction, kernel, norm, unscaled = ctx.saved_tensors
        size, stride, length = kernel.shape[1], ctx.stride, hidden.shape[2]
        scale = magnitude / norm
        scaled = (rows * scale).to(rows.dtype)
        to_hidden = to_magnitude = to_direction = None
        if ctx.needs_input_grad[0]:
            shares = (scaled @ kernel.flatten(1)).view(*hidden.shape[:2], -1, size, hidden.shape[3])
            padded = hidden.new_zeros(*hidden.shape[:2], length + 2 * (size // 2), hidden.shape[3])
            last = stride * (shares.shape[2] - 1) + 1
            for place in range(size):
                padded[:, :, place : place + last : stride] += shares[:, :, :, place]
            to_hidden = padded[:, :, size // 2 : size // 2 + length]
        if ctx.needs_input_grad[2]:
            along = (rows.to(norm.dtype) * unscaled).sum(0)
            to_magnitude = along / norm
            gradient = (scaled.t() @ _patches(hidden, size, stride)).to(direction.dtype)
            gradient.addcmul_(direction.flatten(1), (along * scale / -norm.square())[:, None])
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
    assert isinstance(convolution, nn.Conv1d | nn.Conv2d)  # noqa: S101 - parametrised, it is one still
    bias, stride, padding = convolution.bias, convolution.stride[0], convolution.padding[0]
    assert bias is not None  # noqa: S101 - VITS's have one
    assert isinstance(padding, int)  # noqa: S101 - no padding by name here
    hidden = hidden.contiguous(memory_format=torch.channels_last)
    if hidden.device.type != "cpu" or hidden.shape[1] < _WIDE or convolution.out_channels == 1:
        kernel = _as_used(convolution.weight)
        return functional.conv2d(hidden, kernel, bias, (1, stride), (0, padding))
    if torch.is_autocast_enabled("cpu"):
        hidden = hidden.to(torch.get_autocast_dtype("cpu"))
    parts = cast("Any", convolution.parametrizations).weight
    result: Tensor = _TimeConvolution.apply(  # type: ignore[no-untyped-call]
        hidden.permute(0, 2, 3, 1),
        parts.original0.flatten(),
        parts.original1.flatten(2).transpose(1, 2),
        bias,
        stride,
    )
    return result.view(len(hidden), hidden.shape[2], -1, len(bias)).permute(0, 3, 1, 2)
