"""The text encoder's attention without what ``transformers`` spends on relative positions.

They reach as far as a window, four tokens to either side in VITS (Shaw et al., 2018, https://arxiv.org/abs/1803.02155),
and ``transformers`` pads their embeddings with zeros for all others: twice as many products with zeros as attention has
itself, cut and skewed at every layer. Here each token has scores for its neighbours, added where those are.

Shapes: B batch, H heads, T tokens, D channels of a head, W neighbours, itself among them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.vits.modeling_vits import VitsAttention

from services.training.layout import let_compute, quick_dropout


def attend_to_neighbours(network: nn.Module) -> None:
    """Let every attention below ``network`` compute as is written here, in place."""
    let_compute(network, VitsAttention, _attend)


def _attend(
    attention: Any,
    hidden_states: Tensor,
    key_value_states: None = None,
    attention_mask: Tensor | None = None,
    output_attentions: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """[B, T, H·D] and a mask that is added to scores, [B, 1, T, T] → [B, T, H·D], and [B, H, T, T] where asked for."""
    batch, length, _ = hidden_states.shape
    heads = attention.num_heads

    def of_heads(values: Tensor) -> Tensor:
        return values.view(batch, length, heads, -1).transpose(1, 2).flatten(0, 1)

    query = of_heads(attention.q_proj(hidden_states) * attention.scaling)
    key, value = of_heads(attention.k_proj(hidden_states)), of_heads(attention.v_proj(hidden_states))
    scores = torch.bmm(query, key.transpose(1, 2))
    if attention.window_size:
        places, there = _neighbours(length, attention.window_size, scores)
        scores = scores.scatter_add(2, places, torch.matmul(query, attention.emb_rel_k[0].t()) * there)
    if attention_mask is not None:
        scores = (scores.unflatten(0, (batch, heads)) + attention_mask).flatten(0, 1)
    weights = functional.softmax(scores, dim=-1)
    kept = quick_dropout(weights, attention.dropout) if attention.training else weights
    result = torch.bmm(kept, value)
    if attention.window_size:
        result = result + torch.matmul(kept.gather(2, places) * there, attention.emb_rel_v[0])
    result = attention.out_proj(result.unflatten(0, (batch, heads)).transpose(1, 2).flatten(2))
    return result, weights.unflatten(0, (batch, heads)) if output_attentions else None


def _neighbours(length: int, window: int, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Of every token its neighbours, [B·H, T, W], and which of them there are, [T, W] 1 and 0."""
    tokens = torch.arange(length, device=scores.device)
    places = tokens[:, None] + torch.arange(-window, window + 1, device=scores.device)
    there = (places >= 0) & (places < length)
    return places.clamp(0, length - 1).expand(len(scores), -1, -1), there.to(scores.dtype)
