"""Weights out of other trainers' files: read without unpickling, and brought into the form that ours have.

A weight under weight norm is stored as a magnitude and a direction, called ``weight_g`` and ``weight_v``
by older versions of torch, and ``parametrizations.weight.original0`` and ``…original1`` by newer ones.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from shared.errors import ModelError

State = dict[str, Tensor]

MAGNITUDE = ".parametrizations.weight.original0"
DIRECTION = ".parametrizations.weight.original1"
_OLD_NAMES = ((".weight_g", MAGNITUDE), (".weight_v", DIRECTION))
#: How many problems an error lists before it only counts the rest.
_LISTED = 12


def read_file(path: Path) -> object:
    """What a ``.safetensors`` file or one of ``torch.save`` holds, never unpickling more than tensors.

    Raises:
        ModelError: There is no such file, it is damaged, or it holds Python objects.
    """
    if not path.is_file():
        raise ModelError(f"There is no file {path}. Check the path.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} cannot be read as weights alone ({_first_line(error)}). Either it is no checkpoint, or it "
            "holds Python objects beside its tensors; those are never loaded, because loading them can run any "
            "program that is hidden in the file. If you trust whoever made it, write its weights alone into a new "
            "file, on a machine where nothing can come to harm:\n"
            "  python -c \"import torch; torch.save({'model': torch.load('OLD.pth', map_location='cpu', "
            "weights_only=False)['model']}, 'NEW.pth')\""
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"{path} cannot be read: {_first_line(error)}. It is damaged or no checkpoint; download or copy it again."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0].rstrip(".")


def read_checkpoint(path: Path) -> State:
    """The network's weights in an original VITS checkpoint: what is under ``model``, or a bare state dict.

    Raises:
        ModelError: The file cannot be read, or holds no weights of a network.
    """
    content: Any = read_file(path)
    state = content.get("model", content) if isinstance(content, dict) else content
    if isinstance(state, dict) and state and all(isinstance(value, Tensor) for value in state.values()):
        # Some forks save the wrapper of distributed training.
        return {str(name).removeprefix("module."): value for name, value in state.items()}
    if not isinstance(content, dict):
        held = f"holds a {type(content).__name__}"
    elif "optimizer" in content or "param_groups" in content:
        held = "holds an optimiser's state and no network"
    else:
        held = f"holds {', '.join(map(str, list(content)[:_LISTED])) or 'nothing'}"
    raise ModelError(
        f"{path} {held}. A checkpoint of original VITS keeps the network's weights under 'model': give the G_*.pth "
        "of the generator or the D_*.pth of the discriminator, as the trainer wrote it."
    )


def with_new_names(state: Mapping[str, Tensor]) -> State:
    """The same weights, their weight norm called as newer versions of torch call it."""
    renamed = {}
    for name, value in state.items():
        for old, new in _OLD_NAMES:
            if name.endswith(old):
                name = name.removesuffix(old) + new
        renamed[name] = value
    return renamed


def plain_name(name: str) -> str:
    """The name of a weight without its weight norm."""
    for part in (MAGNITUDE, DIRECTION):
        if name.endswith(part):
            return name.removesuffix(part) + ".weight"
    return name


def plain_shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by :func:`plain_name`: those of the directions where there is a weight norm."""
    return {
        plain_name(name): tuple(value.shape) for name, value in state.items() if not name.endswith(MAGNITUDE)
    }


def folded(state: Mapping[str, Tensor]) -> State:
    """Every weight as a plain one: ``g · v / ‖v‖``, the norm taken over all but the first dimension.

    Half of a pair stays as it is, to be found by whoever compares the names.
    """
    result: State = {}
    for name, value in state.items():
        prefix = name.removesuffix(DIRECTION)
        if name.endswith(DIRECTION) and prefix + MAGNITUDE in state:
            result[f"{prefix}.weight"] = torch._weight_norm(value, state[prefix + MAGNITUDE], 0)
        elif not (name.endswith(MAGNITUDE) and name.removesuffix(MAGNITUDE) + DIRECTION in state):
            result[name] = value
    return result


def fitted(state: Mapping[str, Tensor], expected: Iterable[str]) -> State:
    """The same weights under weight norm where the expected names are, and plain where they are not.

    What is under weight norm on both sides keeps its magnitude and direction bit for bit.
    """
    wanted = set(expected)
    kept = {name: value for name, value in state.items() if name in wanted}
    for name, value in folded({name: state[name] for name in state.keys() - kept.keys()}).items():
        prefix = name.removesuffix(".weight")
        if name not in wanted and prefix + DIRECTION in wanted:
            kept[prefix + DIRECTION] = value
            kept[prefix + MAGNITUDE] = torch.linalg.vector_norm(
                value, dim=tuple(range(1, value.dim())), keepdim=True
            )
        else:
            kept[name] = value
    return kept


def mismatches(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], origins: Mapping[str, str] | None = None
) -> list[str]:
    """One sentence for each weight that is missing, superfluous or of another shape.

    Args:
        state: The weights that were found, by our names.
        expected: Those that there should be; only their shapes matter.
        origins: What the file calls them, where that is something else.
    """
    origins = origins or {}
    called = {name: f"{origins[name]} → {name}" if name in origins else name for name in state}
    return [
        *(
            f"{called[name]}: shape {tuple(state[name].shape)}, expected {tuple(value.shape)}"
            for name, value in expected.items()
            if name in state and state[name].shape != value.shape
        ),
        *(f"{name}: missing" for name in expected if name not in state),
        *(f"{called[name]}: there is no such weight" for name in state if name not in expected),
    ]


def listed(problems: list[str]) -> str:
    """Problems one a line, the first dozen of them."""
    more = [f"  - … and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
    return "\n".join([*(f"  - {problem}" for problem in problems[:_LISTED]), *more])
