"""Gradient checkpointing: activations are thrown away after the forward pass and computed again when they are needed.

It covers the text encoder's layers, every WaveNet of the posterior encoder and of the flow, the separable
convolutions of the duration predictor, and every residual block of the decoder: what is still remembered while the
discriminator's networks judge, where a step's memory is highest. Those networks need none. A step goes through them
one after the other (`services.training.steps`), each backward as soon as forward, so that only one network's
activations are ever alive, and those are what its feature loss compares.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.models.vits.modeling_vits import (
    HifiGanResidualBlock,
    VitsDilatedDepthSeparableConv,
    VitsEncoderLayer,
    VitsWaveNet,
)

from shared.modeling import VitsForTraining
from shared.modeling.model import ResBlock2

_COVERED = (VitsEncoderLayer, VitsWaveNet, VitsDilatedDepthSeparableConv, HifiGanResidualBlock, ResBlock2)


def enable_gradient_checkpointing(model: VitsForTraining) -> None:
    """Trade time for memory in training; results stay the same, dropout included."""
    for module in model.modules():
        if isinstance(module, _COVERED):
            _checkpoint(module)


def _checkpoint(module: nn.Module) -> None:
    compute = module.forward

    def forward(*inputs: Any, **named: Any) -> Any:
        if not module.training:
            return compute(*inputs, **named)
        return checkpoint(partial(compute, **named), *inputs, use_reentrant=False)

    module.forward = forward
