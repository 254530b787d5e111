"""Convolutions in the memory layout that the CPU is fastest in.

oneDNN computes a convolution over channels-last memory in half to a fifth of the time that it takes for
channels-first in bfloat16, and in nine tenths in float32 (grouped ones excepted); torch's one-dimensional
convolution insists on channels-first. So here it is computed as a two-dimensional one of height 1. The numbers
are the same up to rounding; elementwise operations keep the layout, so that it is set up once and not at every
layer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize


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
