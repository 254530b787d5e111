"""WaveNets without what ``transformers`` spends on them.

It adds zeros where there is no speaker, and cuts gates and skips out by slices, whose gradients are zeros all around
them, added up. The results here are the same to the bit; the gradients go where they belong at once.

Shapes: B batch, C channels, E channels of a speaker's embedding, F frames.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.models.vits.modeling_vits import VitsWaveNet

from services.training.layout import let_compute


def waste_nothing(network: nn.Module) -> None:
    """Let the WaveNets below ``network`` compute as is written here, in place."""
    let_compute(network, VitsWaveNet, _wavenet)


def _wavenet(
    wavenet: VitsWaveNet, inputs: Tensor, padding_mask: Tensor, global_conditioning: Tensor | None = None
) -> Tensor:
    """[B, C, F], zero where the mask [B, 1, F] is, and [B, E, 1] → [B, C, F]."""
    conditions: tuple[Tensor | None, ...] = (None,) * wavenet.num_layers
    if global_conditioning is not None:
        conditions = wavenet.cond_layer(global_conditioning).chunk(wavenet.num_layers, dim=1)
    outputs: Tensor | None = None
    for in_layer, out_layer, condition in zip(
        wavenet.in_layers, wavenet.res_skip_layers, conditions, strict=True
    ):
        hidden = in_layer(inputs)
        gated = _Gate.apply(hidden if condition is None else hidden + condition)  # type: ignore[no-untyped-call]
        skip = out_layer(wavenet.dropout(gated))
        if skip.shape[1] > wavenet.hidden_size:  # all but the last
            residual, skip = skip.chunk(2, dim=1)
            inputs = torch.addcmul(inputs, residual, padding_mask)
        outputs = skip.to(inputs.dtype) if outputs is None else outputs + skip
    return cast("Tensor", outputs) * padding_mask


class _Gate(torch.autograd.Function):
    """The hyperbolic tangent of one half of the channels times the logistic function of the other."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        """[B, 2C, F] → [B, C, F]."""
        signal, gate = hidden.chunk(2, dim=1)
        signal, gate = torch.tanh(signal), torch.sigmoid(gate)
        ctx.save_for_backward(signal, gate)
        return signal * gate

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        """[B, C, F] → [B, 2C, F]."""
        (gradient,), (signal, gate) = gradients, ctx.saved_tensors
        batch, channels, frames = signal.shape
        # As the activations lie: what comes next is a convolution over channels-last memory.
        result: Tensor = gradient.new_empty(batch, frames, 2 * channels).transpose(1, 2)
        by_signal, by_gate = result.chunk(2, dim=1)
        torch.ops.aten.tanh_backward.grad_input(gradient * gate, signal, grad_input=by_signal)
        torch.ops.aten.sigmoid_backward.grad_input(gradient * signal, gate, grad_input=by_gate)
        return result
