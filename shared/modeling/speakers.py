"""Speakers: more of them in a model that has some, and the first ones in a model of a single voice."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from transformers.models.vits.modeling_vits import VitsWaveNet

from shared.errors import ModelError
from shared.modeling.initialization import initialize
from shared.modeling.model import VitsForTraining

#: Channels of a speaker's embedding, as in original VITS.
EMBEDDING_SIZE = 256
#: How far new speakers stand from the mean of the old ones, in standard deviations of each channel.
_SPREAD = 0.1


@torch.no_grad()
def add_speakers(
    model: VitsForTraining, count: int, *, embedding_size: int = EMBEDDING_SIZE, seed: int = 0
) -> VitsForTraining:
    """Make room for speakers, without a change to any voice that is there.

    A model of several speakers gets more rows in its table: the old ones stay as they are to the bit, new
    ones start beside their mean. A model of one speaker becomes one of ``count`` that all start as its
    only voice: embeddings as original VITS draws them, and the layers that condition on them zero.

    Args:
        model: Changed in place. It must not be wrapped, nor have an optimiser yet.
        count: How many speakers the model has afterwards.
        embedding_size: Channels of an embedding, where the model has none yet.
        seed: Of what is drawn.

    Returns:
        The same model.

    Raises:
        ModelError: The model has more speakers than ``count``, or ``count`` is below 2.
    """
    before = model.config.num_speakers
    if count < max(before, 2):
        raise ModelError(
            f"The model has {before} speaker(s) and cannot be made into one of {count}: a table of speakers "
            "only grows, and has two at least."
        )
    if before > 1:
        _grow_table(model, count, seed)
    else:
        _condition_everything(model, embedding_size, seed)
        model.config.speaker_embedding_size = embedding_size
        replace_speakers(model, count, seed=seed)
    return model


@torch.no_grad()
def replace_speakers(model: VitsForTraining, count: int, *, seed: int = 0) -> None:
    """Give a model that conditions on speakers a fresh table of ``count``, N(0, 1/√size), in place."""
    table = nn.Embedding(count, model.config.speaker_embedding_size)
    initialize(table, seed=seed)
    model.embed_speaker = table.to(device=model.device, dtype=model.dtype)
    model.config.num_speakers = count


def _grow_table(model: VitsForTraining, count: int, seed: int) -> None:
    """Add rows to the table of speakers."""
    old = model.embed_speaker.weight
    new = count - len(old)
    noise = torch.randn(new, old.shape[1], generator=torch.Generator().manual_seed(seed)).to(old)
    rows = old.mean(0) + _SPREAD * old.std(0) * noise
    table = nn.Embedding(count, old.shape[1], device=old.device, dtype=old.dtype)
    table.weight.copy_(torch.cat([old, rows]))
    model.embed_speaker = table
    model.config.num_speakers = count


def _conditioned(model: VitsForTraining) -> Iterator[tuple[nn.Module, str, int]]:
    """Every module that ``VitsModel`` conditions on the speaker: itself, its layer's name, output channels."""
    yield model.decoder, "cond", model.config.upsample_initial_channel
    yield model.duration_predictor, "cond", model.config.hidden_size
    for module in model.modules():
        if isinstance(module, VitsWaveNet):
            yield module, "cond_layer", 2 * module.hidden_size * module.num_layers


def _condition_everything(model: VitsForTraining, embedding_size: int, seed: int) -> None:
    """Give every such module a layer that adds zero, so that whoever speaks, it sounds as before."""
    for index, (module, name, channels) in enumerate(list(_conditioned(model))):
        layer = nn.Conv1d(embedding_size, channels, 1)
        if isinstance(module, VitsWaveNet) and parametrize.is_parametrized(module.in_layers[0], "weight"):
            # A weight of zero has no direction: under weight norm its magnitude is what is zero.
            initialize(layer, seed=seed + 1 + index)
            parametrizations.weight_norm(layer)
            layer.parametrizations.weight.original0.zero_()  # type: ignore[union-attr, operator]
        else:
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        layer.train(module.training)
        setattr(module, name, layer.to(device=model.device, dtype=model.dtype))
