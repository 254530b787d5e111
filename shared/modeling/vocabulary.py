"""Changing the set of symbols that a model reads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from shared.modeling.initialization import initialize
from shared.modeling.model import VitsForTraining


@torch.no_grad()
def resize_vocabulary(model: VitsForTraining, size: int, *, keep: Mapping[int, int], seed: int = 0) -> None:
    """Give a model an embedding table of ``size`` symbols, in place.

    Args:
        model: Changed in place. It must not be wrapped, nor have an optimiser yet.
        size: Rows of the new table.
        keep: For a row of the new table the row of the old one that it takes over, to the bit. Every other
            row is drawn as original VITS does: N(0, 1/√channels).
        seed: Of what is drawn.
    """
    old = model.text_encoder.embed_tokens
    padding = next((row for row, before in keep.items() if before == old.padding_idx), None)
    table = nn.Embedding(size, old.embedding_dim, padding)
    initialize(table, seed=seed)
    table.to(device=old.weight.device, dtype=old.weight.dtype)
    rows = list(keep)
    table.weight[rows] = old.weight[[keep[row] for row in rows]]
    model.text_encoder.embed_tokens = table
    model.config.vocab_size, model.config.pad_token_id = size, padding
