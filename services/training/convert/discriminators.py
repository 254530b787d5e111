"""The discriminator of original VITS, of MMS and of ``finetune-hf-vits``, as our folded weights.

The networks are the same; original VITS calls the last convolution ``conv_post`` where ours is called
``final_conv``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from services.training.convert.weights import (
    State,
    folded,
    listed,
    mismatches,
    plain_name,
    read_checkpoint,
    with_new_names,
)
from services.training.discriminator import Discriminator
from shared.errors import ModelError
from shared.modeling.loading import DISCRIMINATOR_FILE

_GENERATOR_PARTS = ("enc_p.", "dec.", "text_encoder.", "decoder.")


def read_original(path: Path) -> State:
    """The weights in a ``D_*.pth`` of original VITS or MMS, folded and by our names.

    Raises:
        ModelError: The file cannot be read, or holds something else than VITS's discriminator.
    """
    return from_state(read_checkpoint(path), where=path)


def from_state(state: Mapping[str, Tensor], *, where: Path, embedded: bool = False) -> State:
    """A discriminator's weights, folded and by our names, whatever their weight norm is called.

    Args:
        state: By original VITS's names or ours.
        where: The file that they come from, for messages.
        embedded: Whether it is a folder of ``finetune-hf-vits``, which has the generator in it, too.

    Raises:
        ModelError: They are not those of VITS's discriminator.
    """
    renamed = with_new_names(state)
    ours = {name: name.replace(".conv_post.", ".final_conv.") for name in renamed}
    found = folded({ours[name]: value.float() for name, value in renamed.items()})
    with torch.device("meta"):  # only its names and shapes are wanted
        expected = Discriminator().folded_state_dict()
    origins = {plain_name(new): plain_name(old) for old, new in ours.items() if old != new}
    problems = mismatches(found, expected, origins)
    if problems:
        what = _what_is_embedded(state) if embedded else _what_it_is(state)
        raise ModelError(f"{where} {what}:\n{listed(problems)}")
    return {name: found[name].contiguous() for name in expected}


def _what_it_is(state: Mapping[str, Tensor]) -> str:
    """What a file that is not VITS's discriminator looks like, and what to do."""
    if any(name.startswith(_GENERATOR_PARTS) for name in state):
        return "is a generator, not a discriminator. Give the D_*.pth of the same training; its weights do not fit"
    if _has_spectral_norm(state):
        return (
            "is a discriminator under spectral norm (use_spectral_norm); only weight norm can be converted. Leave it "
            "out: training then starts with a fresh discriminator; its weights do not fit"
        )
    if any(name.startswith("discriminators.") for name in state):
        return (
            "is not VITS's discriminator, but one of another make. Leave it out: training then starts with a fresh "
            "discriminator. One scale network and the periods 2, 3, 5, 7, 11 are expected"
        )
    return "is not a discriminator of VITS. Give the D_*.pth that belongs to the generator; its weights do not fit"


def _what_is_embedded(state: Mapping[str, Tensor]) -> str:
    """The same of what lies beside a generator, which cannot be left out by naming another file."""
    kind = "under spectral norm" if _has_spectral_norm(state) else "that is not VITS's"
    return (
        f"has a discriminator {kind}. Convert the generator alone, with --without-discriminator: training then starts "
        "with a fresh discriminator; its weights do not fit"
    )


def _has_spectral_norm(state: Mapping[str, Tensor]) -> bool:
    return any(name.endswith("weight_orig") for name in state)


def save(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write folded weights into a model folder as ``discriminator.safetensors``."""
    save_file(dict(weights), folder / DISCRIMINATOR_FILE)
    (folder / DISCRIMINATOR_FILE).chmod((folder / "config.json").stat().st_mode & 0o666)
