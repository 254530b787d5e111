"""Beginning with some of another model's weights, or with none."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import VitsConfig
from transformers.utils import logging as transformers_logging

from shared.modeling.initialization import initialize
from shared.modeling.loading import EMBEDDED_DISCRIMINATOR, read_weights
from shared.modeling.model import VitsForTraining

#: Tables that are learnt along with the rest: nothing has to be taught before they can be used.
_TABLES = ("text_encoder.embed_tokens", "embed_speaker")
#: A share of a module's weights.
_WORTH_KEEPING = 0.01


@dataclass(frozen=True)
class WarmStart:
    """A model that took over what fitted."""

    model: VitsForTraining
    fresh: tuple[str, ...]
    """Modules that were initialised afresh, the largest first: ``flow`` rather than all that is in it."""
    unused: tuple[str, ...]
    """Tensors of the folder for which the model has no place."""

    @property
    def everything_is_fresh(self) -> bool:
        """Whether nothing at all was taken over."""
        return set(self.fresh) == {name for name, _ in self.model.named_children()}

    @property
    def untrained(self) -> tuple[str, ...]:
        """The fresh modules that have to be taught before the rest: all but the tables of embeddings."""
        return tuple(name for name in self.fresh if name not in _TABLES)


def new_model(config: VitsConfig, *, seed: int) -> VitsForTraining:
    """A model in evaluation mode with weights as original VITS draws them, which depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        model = VitsForTraining(config)
    initialize(model, seed=seed)
    model.train(False)
    return model


@torch.no_grad()
def warm_start(folder: Path, config: VitsConfig, *, seed: int) -> WarmStart:
    """A model of ``config`` with every layer of a folder's model that has the same name and shape.

    A layer is taken over whole or not at all, so that no magnitude of a weight norm meets a direction that
    it does not belong to; and nothing of a module of which next to nothing fits. All others are initialised as
    original VITS does.

    Raises:
        ModelError: The folder's weights cannot be read.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report of what does not fit: ours is returned
    try:
        model, report = read_weights(folder, config, ignore_mismatched_sizes=True)
    finally:
        transformers_logging.set_verbosity(verbosity)
    misfits = {_layer(name) for name in report["missing_keys"]}
    misfits |= {_layer(name) for name, *_ in report["mismatched_keys"]}
    misfits |= _remnants(model, misfits)
    fresh = new_model(config, seed=seed).state_dict()
    for name, value in model.state_dict().items():
        if _layer(name) in misfits:
            value.copy_(fresh[name])
    unused = [name for name in report["unexpected_keys"] if not name.startswith(EMBEDDED_DISCRIMINATOR)]
    return WarmStart(model, _largest_modules(model, misfits), tuple(sorted(unused)))


def _layer(parameter: str) -> str:
    """The layer that a parameter belongs to, whether or not it is weight-normed."""
    return (
        parameter.partition(".parametrizations.")[0]
        if ".parametrizations." in parameter
        else parameter.rpartition(".")[0]
    )


def _remnants(model: VitsForTraining, misfits: Set[str]) -> set[str]:
    """The layers that fit in modules of which next to nothing does, such as a few scales between fresh splines."""
    remnants = set()
    for child, module in model.named_children():
        sizes = {f"{child}.{name}": parameter.numel() for name, parameter in module.named_parameters()}
        fitting = {name: size for name, size in sizes.items() if _layer(name) not in misfits}
        if sum(fitting.values()) < _WORTH_KEEPING * sum(sizes.values()):
            remnants |= {_layer(name) for name in fitting}
    return remnants


def _largest_modules(model: VitsForTraining, layers: Iterable[str]) -> tuple[str, ...]:
    """The same layers by as few names as possible: of a module whose layers are all listed, only its own."""
    listed = set(layers)
    others = {_layer(name) for name in model.state_dict()} - listed
    kept = {
        "",
        *(".".join(other.split(".")[:end]) for other in others for end in range(1, other.count(".") + 2)),
    }
    largest = set()
    for layer in listed:
        parts = layer.split(".")
        prefixes = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
        largest.add(next((prefix for prefix in prefixes if prefix not in kept), layer))
    return tuple(sorted(largest))
