"""Activations that are remembered once: half of what a decoder keeps for its gradients.

A leaky rectifier's gradient follows from its result as well as from its input, and its result is what the
convolution after it keeps anyway. PyTorch's keeps its input, or, in place on the result of a convolution that is
a view (`services.training.layout`), costs copies in the backward pass. The numbers here are the same to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.vits.modeling_vits import HifiGanResidualBlock

from services.training.layout import let_compute
from shared.modeling.model import ResBlock2


class _LeakyReLU(torch.autograd.Function):
    """``max(x, slope · x)`` for a slope in (0, 1); the sign of the result tells that of the input."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, slope: float) -> Tensor:
        """Any shape, layout and precision, which the result keeps."""
        result = functional.leaky_relu(hidden, slope)
        ctx.save_for_backward(result)
        ctx.slope = slope
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        """Of the input; the slope has none."""
        (result,) = ctx.saved_tensors
        return torch.ops.aten.leaky_relu_backward(gradients[0], result, ctx.slope, True), None


def leaky_relu(hidden: Tensor, slope: float) -> Tensor:
    """``functional.leaky_relu`` for a slope above 0, remembering its result in place of its input."""
    result: Tensor = _LeakyReLU.apply(hidden, slope)  # type: ignore[no-untyped-call]
    return result


def remember_once(network: nn.Module) -> None:
    """Let the residual blocks below ``network`` keep every activation once, in place; their results stay."""
    let_compute(network, HifiGanResidualBlock, _residual_block)
    let_compute(network, ResBlock2, _residual_block_2)


def _residual_block(block: HifiGanResidualBlock, hidden: Tensor) -> Tensor:
    slope = block.leaky_relu_slope
    for first, second in zip(block.convs1, block.convs2, strict=True):
        hidden = second(leaky_relu(first(leaky_relu(hidden, slope)), slope)) + hidden
    return hidden


def _residual_block_2(block: ResBlock2, hidden: Tensor) -> Tensor:
    for convolution in block.convs:
        hidden = hidden + convolution(leaky_relu(hidden, block.leaky_relu_slope))
    return hidden
