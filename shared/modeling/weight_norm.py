"""Folding weight norm: from ``g · v / ‖v‖`` back to a plain weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_MAGNITUDE = ".parametrizations.weight.original0"
_DIRECTION = ".parametrizations.weight.original1"


def fold_weight_norm(module: nn.Module) -> None:
    """Replace every weight-normed weight below ``module`` by its product, in place.

    ``VitsModel``'s own ``remove_weight_norm`` methods raise under a torch that has parametrisations,
    which is why this exists. Modules without weight norm are left alone.
    """
    for child in module.modules():
        if parametrize.is_parametrized(child, "weight"):
            parametrize.remove_parametrizations(child, "weight")


def folded_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The state of ``module`` as if its weight norm were folded; ``module`` itself is untouched."""
    state = module.state_dict()
    folded: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith(_MAGNITUDE):
            prefix = name.removesuffix(_MAGNITUDE)
            direction = state[prefix + _DIRECTION]
            # torch's weight norm keeps dimension 0, whose size is the magnitude's.
            folded[f"{prefix}.weight"] = torch._weight_norm(direction, value, 0)
        elif not name.endswith(_DIRECTION):
            folded[name] = value
    return folded
