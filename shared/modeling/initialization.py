"""How original VITS initialises a network.

``transformers`` draws every convolution from Kaiming's distribution, which is right for loading
weights over it and wrong for training from it: a coupling layer must start as the identity, and a
HiFi-GAN decoder small. Whatever a model brings no weights for is initialised here instead.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers.models.vits.modeling_vits import (
    VitsAttention,
    VitsConvFlow,
    VitsElementwiseAffine,
    VitsHifiGan,
    VitsResidualCouplingLayer,
)


def _set_weight(layer: nn.Module, weight: torch.Tensor) -> None:
    """Assign a weight through a weight norm, if the layer has one."""
    if parametrize.is_parametrized(layer, "weight"):
        layer.weight = weight
    else:
        layer.weight.copy_(weight)  # type: ignore[operator]


def initialize(module: nn.Module, *, seed: int | None = None) -> None:
    """Initialise ``module`` and all below it as original VITS does, in place.

    Convolutions and linear layers: torch's own default (Kaiming uniform, a = √5). Attention's queries,
    keys and values: Xavier uniform; its relative positions: N(0, 1/√head). HiFi-GAN's upsamplers and
    residual blocks: N(0, 0.01). The last convolution of every coupling layer and spline flow: zero, so
    that the flow starts as the identity. Embeddings: N(0, 1/√size).

    Args:
        module: What to initialise.
        seed: Draws from a generator of its own, so that every process of a run starts alike; from torch's
            global generator when left out.
    """
    if seed is None:
        _initialize(module)
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _initialize(module)


@torch.no_grad()
def _initialize(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d | nn.Conv2d | nn.Linear):
            weight = torch.empty_like(layer.weight)
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
            _set_weight(layer, weight)
            if layer.bias is not None:
                bound = 1 / math.sqrt(weight[0].numel())
                nn.init.uniform_(layer.bias, -bound, bound)
        elif isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight, std=layer.embedding_dim**-0.5)
        elif isinstance(layer, nn.LayerNorm):
            layer.reset_parameters()
    for layer in module.modules():
        if isinstance(layer, VitsAttention):
            for projection in (layer.q_proj, layer.k_proj, layer.v_proj):
                nn.init.xavier_uniform_(projection.weight)
            if layer.window_size:
                nn.init.normal_(layer.emb_rel_k, std=layer.head_dim**-0.5)
                nn.init.normal_(layer.emb_rel_v, std=layer.head_dim**-0.5)
        elif isinstance(layer, VitsHifiGan):
            for convolution in [*layer.upsampler.modules(), *layer.resblocks.modules()]:
                if isinstance(convolution, nn.Conv1d | nn.ConvTranspose1d):
                    _set_weight(convolution, torch.empty_like(convolution.weight).normal_(0.0, 0.01))
        elif isinstance(layer, VitsResidualCouplingLayer):
            nn.init.zeros_(layer.conv_post.weight)
            nn.init.zeros_(layer.conv_post.bias)  # type: ignore[arg-type]
        elif isinstance(layer, VitsConvFlow):
            nn.init.zeros_(layer.conv_proj.weight)
            nn.init.zeros_(layer.conv_proj.bias)  # type: ignore[arg-type]
        elif isinstance(layer, VitsElementwiseAffine):
            nn.init.zeros_(layer.translate)
            nn.init.zeros_(layer.log_scale)
