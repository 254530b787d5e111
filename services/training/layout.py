"""What makes training fast on processors: convolutions in the memory layout that they like, and memory kept.

oneDNN computes a convolution over channels-last memory in half to a fifth of the time that it takes for
channels-first in bfloat16, and in nine tenths in float32 (ones of many groups excepted: `services.training.grouped`);
torch's one-dimensional convolution insists on channels-first. So here it is computed as a two-dimensional one of
height 1. The numbers are the same up to rounding; elementwise operations keep the layout, so that it is set up once
and not at every layer.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers.models.vits.modeling_vits import VitsDilatedDepthSeparableConv

from services.training import winograd

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


#: Taps of a transposed convolution from which on channels-last memory makes its backward pass slower.
_MANY_TAPS = 8


def use_channels_last(network: nn.Module) -> None:
    """Let one-dimensional convolutions below ``network``, transposed ones too, work on channels-last memory, in place.

    None of them may be of many groups. Its weights, their names and its results stay as they are.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv1d) and layer.padding_mode == "zeros":
            layer._conv_forward = _channels_last(layer)  # type: ignore[method-assign,assignment]
    let_compute(network, nn.ConvTranspose1d, _transposed)


def let_compute(network: nn.Module, kind: type[nn.Module], forward: Callable[..., Any]) -> None:
    """Let every part of a kind below ``network`` compute by ``forward``, whose first argument is the part, in place."""
    for part in network.modules():
        if isinstance(part, kind):
            part.forward = MethodType(forward, part)


def use_quick_dropout(network: nn.Module) -> None:
    """Let every dropout below ``network`` draw 16 random bits an element, in place.

    On processors PyTorch draws a double for each, one after the other, which is a third of the time of a text encoder's
    forward pass. Probabilities are whole 65,536ths here.
    """
    let_compute(network, nn.Dropout, _dropout)


def _dropout(layer: nn.Dropout, hidden: Tensor) -> Tensor:
    return quick_dropout(hidden, layer.p) if layer.training else hidden


def quick_dropout(hidden: Tensor, probability: float) -> Tensor:
    """Zeros by chance, and the rest scaled up for it."""
    if probability == 0:
        return hidden
    drawn = torch.empty(-(-hidden.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = drawn.view(torch.int16)[: hidden.numel()].view(hidden.shape) >= round(probability * 2**16) - 2**15
    return hidden * (kept / (1 - probability)).to(hidden.dtype)


def use_tokens_of_channels(predictor: nn.Module) -> None:
    """Let a duration predictor's separable convolutions compute token by token, [B, T, D], in place.

    Three quarters of their layers work on the channels of one token: normalisation, GELU, and the pointwise
    convolution, which is a matrix product. ``transformers`` turns them to and fro around each, and a GELU whose
    gradient lies the other way round than its input takes ten times as long.
    """
    let_compute(predictor, VitsDilatedDepthSeparableConv, _separable)


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
    ways = {kind: winograd.filtering(layer, kind) for kind in winograd.FULL_PRECISION}

    def convolve(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # In half precision transforms cost layers of a few hundred channels what they save.
        way = None if torch.is_autocast_enabled("cpu") else ways.get(hidden.dtype)
        if way is not None:
            of_channels = winograd.convolve(way, hidden.transpose(1, 2), weight.transpose(1, 2), bias)
            return of_channels.transpose(1, 2)
        hidden = hidden.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        return functional.conv2d(
            hidden, weight.unsqueeze(2), bias, stride, padding, dilation, groups
        ).squeeze(2)

    return convolve


def _transposed(layer: nn.ConvTranspose1d, hidden: Tensor) -> Tensor:
    """A transposed convolution, [B, I, L] → [B, O, N] channels-last, as what comes after it wants it."""
    if layer.kernel_size[0] >= _MANY_TAPS:
        result = nn.ConvTranspose1d.forward(layer, hidden)
        return result.unsqueeze(2).contiguous(memory_format=torch.channels_last).squeeze(2)
    assert not isinstance(layer.padding, str)  # noqa: S101 - torch has no names for this one
    hidden = hidden.unsqueeze(2).contiguous(memory_format=torch.channels_last)
    settings = (
        (1, *layer.stride),
        (0, *layer.padding),
        (0, *layer.output_padding),
        layer.groups,
        (1, *layer.dilation),
    )
    return functional.conv_transpose2d(hidden, layer.weight.unsqueeze(2), layer.bias, *settings).squeeze(2)


_Convolution = TypeVar("_Convolution", nn.Conv1d, nn.Conv2d)


class _WeightNorm(nn.Module):
    """``g · v / ‖v‖`` of torch's ``weight_norm``, of a kernel in whatever layout it lies in memory."""

    def forward(self, magnitude: Tensor, direction: Tensor) -> Tensor:
        """[O, 1, 1, 1] and [O, I, K, 1] → [O, I, K, 1], or both without the last."""
        return direction * (magnitude / _norm(direction))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A weight's magnitude, and its direction in the layout in which it is used, whoever sets it."""
        kernel = _as_used(weight).contiguous(memory_format=torch.channels_last)
        direction = kernel.squeeze(2) if weight.ndim == 3 else kernel.transpose(2, 3)
        return _norm(direction), direction


def _norm(kernel: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(kernel, dim=tuple(range(1, kernel.ndim)), keepdim=True)
    return norm


def weight_norm_along_width(convolution: _Convolution) -> _Convolution:
    """Weight norm of a kernel [O, I, K] or [O, I, K, 1] that will be used as [O, I, 1, K] on channels-last images.

    It lies in memory as it is used, so that no step copies it into another order. Its state has the names and
    values that torch's ``weight_norm`` gives it.
    """
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


@dataclass(frozen=True)
class _Prepared:
    """What a convolution along time makes of its direction ``v``, [O, K, I].

    Attributes:
        norm: ``‖v‖``, [O].
        kernel: ``v`` as it is multiplied, in the precision of the activations: [O, K, I], or as ``filtering`` takes it.
        filtering: How it takes fewer multiplications, if that is faster.
    """

    norm: Tensor
    kernel: Tensor
    filtering: winograd.Filtering | None


#: What layers have made of their weights, by the layer's id, while these stay what they are.
_prepared: dict[int, _Prepared] | None = None


@contextlib.contextmanager
def weights_as_they_are() -> Iterator[None]:
    """Inside, weights do not change, and what layers make of them is made once: folded, cast, transformed kernels."""
    global _prepared
    _prepared = {}
    try:
        with parametrize.cached():
            yield
    finally:
        _prepared = None


@torch.no_grad()
def _prepare(convolution: nn.Conv1d | nn.Conv2d, direction: Tensor, hidden: Tensor) -> _Prepared:
    """What is needed of ``direction``, [O, K, I], to be multiplied with ``hidden``."""
    if _prepared is not None and id(convolution) in _prepared:
        return _prepared[id(convolution)]
    results = hidden.numel() // hidden.shape[1] // convolution.stride[0]
    filtering = winograd.filtering(convolution, hidden.dtype, results)
    prepared = _Prepared(
        torch.linalg.vector_norm(direction, dim=(1, 2)),
        filtering.transform(direction) if filtering else direction.to(hidden.dtype),
        filtering,
    )
    if _prepared is not None:
        _prepared[id(convolution)] = prepared
    return prepared


class _TimeConvolution(torch.autograd.Function):
    """A convolution along time as matrix products, which for wide layers is what a processor is best at.

    Its weight norm is in it, ``W = m · v / ‖v‖``: what is scaled is the result, which is ten times smaller than the
    kernel. With ``s = m / ‖v‖``, ``r`` the result before that and ``G`` the gradient at ``s · v``'s place, from
    ``∂L/∂m = v·G / ‖v‖`` and ``∂L/∂v = s (G - v (v·G) / ‖v‖²)`` (Salimans and Kingma 2016,
    https://arxiv.org/abs/1602.07868, equation 3). ``v·G`` is the sum over rows of the result's gradient times ``r``.

    Shapes: B batch, P rows, L samples of a row, N samples of a row of the result, K kernel, I and O channels.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        magnitude: Tensor,
        direction: Tensor,
        bias: Tensor,
        prepared: _Prepared,
        stride: int,
    ) -> Tensor:
        """[B, P, L, I], [O], [O, K, I] and [O] → [B·P·N, O], in the precision of ``hidden``."""
        if prepared.filtering:
            unscaled = prepared.filtering.correlate(hidden.flatten(0, 1), prepared.kernel).flatten(0, 1)
        else:
            unscaled = _patches(hidden, prepared.kernel.shape[1], stride) @ prepared.kernel.flatten(1).t()
        ctx.save_for_backward(
            hidden,
            magnitude,
            direction,
            prepared.kernel,
            prepared.norm,
            unscaled if ctx.needs_input_grad[2] else None,
        )
        ctx.stride, ctx.filtering = stride, prepared.filtering
        return torch.addcmul(bias, unscaled, magnitude / prepared.norm).to(hidden.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        """Of the four tensors, where they are wanted; patches and tiles are cut again rather than kept."""
        (rows,) = gradients
        hidden, magnitude, direction, kernel, norm, unscaled = ctx.saved_tensors
        scale = magnitude / norm
        scaled = (rows * scale).to(rows.dtype)
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[2])
        if ctx.filtering:
            per_row = scaled.view(hidden.shape[0] * hidden.shape[1], -1, scaled.shape[1])
            to_hidden, gradient = ctx.filtering.gradients(per_row, hidden.flatten(0, 1), kernel, *wanted)
            to_hidden = None if to_hidden is None else to_hidden.view_as(hidden)
        else:
            to_hidden, gradient = _gradients_of_patches(scaled, hidden, kernel, ctx.stride, *wanted)
        to_magnitude = to_direction = None
        if gradient is not None:
            along = (rows.to(norm.dtype) * unscaled).sum(0)
            to_magnitude = along / norm
            to_direction = gradient.to(direction.dtype)
            to_direction.addcmul_(direction, (along * scale / -norm.square())[:, None, None])
        to_bias = rows.sum(0) if ctx.needs_input_grad[3] else None
        return to_hidden, to_magnitude, to_direction, to_bias, None, None


def _gradients_of_patches(
    rows: Tensor, hidden: Tensor, kernel: Tensor, stride: int, to_hidden: bool, to_kernel: bool
) -> tuple[Tensor | None, Tensor | None]:
    """[B·P·N, O] → the gradients [B, P, L, I] and [O, K, I] of ``_patches(hidden) @ kernelᵀ``, where wanted."""
    size, length = kernel.shape[1], hidden.shape[2]
    by_hidden = by_kernel = None
    if to_hidden:
        shares = (rows @ kernel.flatten(1)).view(*hidden.shape[:2], -1, size, hidden.shape[3])
        padded = hidden.new_zeros(*hidden.shape[:2], length + 2 * (size // 2), hidden.shape[3])
        last = stride * (shares.shape[2] - 1) + 1
        for place in range(size):
            padded[:, :, place : place + last : stride] += shares[:, :, :, place]
        by_hidden = padded[:, :, size // 2 : size // 2 + length]
    if to_kernel:
        by_kernel = (rows.t() @ _patches(hidden, size, stride)).view_as(kernel)
    return by_hidden, by_kernel


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
    direction = parts.original1.flatten(2).transpose(1, 2)
    result: Tensor = _TimeConvolution.apply(  # type: ignore[no-untyped-call]
        hidden.permute(0, 2, 3, 1),
        parts.original0.flatten(),
        direction,
        bias,
        _prepare(convolution, direction, hidden),
        stride,
    )
    return result.view(len(hidden), hidden.shape[2], -1, len(bias)).permute(0, 3, 1, 2)
