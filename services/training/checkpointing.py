"""Gradient checkpointing: activations are thrown away after the forward pass and computed again when they are needed.

It covers the text encoder's layers, every WaveNet of the posterior encoder and of the flow, and every residual
block of the decoder. The discriminator's networks need none: a step
goes through them one after the other (`services.training.steps`), so that only one network's activations
are ever alive, and those are what its feature loss compares.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.models.vits.modeling_vits import HifiGanResidualBlock, VitsEncoderLayer, VitsWaveNet

from shared.modeling import VitsForTraining
from shared.modeling.model import ResBlock2


def enable_gradient_checkpointing(model: VitsForTraining) -> None:
    """Trade time for memory in training; results stay the same, dropout included."""
    for module in model.modules():
        if isinstance(module, VitsEncoderLayer | VitsWaveNet | HifiGanResidualBlock | ResBlock2):
            _checkpoint(module)


def _checkpoint(module: nn.Module) -> None:
    compute = module.forward

    def forward(*inputs: Any, **named: Any) -> Any:
        if not module.training:
            return compute(*inputs, **named)
        return checkpoint(partial(compute, **named), *inputs, use_reentrant=False)

    module.forward = forward
