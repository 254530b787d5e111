"""Smaller networks by name, as changes to a configuration."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from transformers import VitsConfig

from shared.modeling.model import VitsResblock2Config, resblock_type

Preset = Literal["small-encoder", "light-decoder"]

_SMALL_ENCODER = {"hidden_size": 128, "num_hidden_layers": 4, "ffn_dim": 512}


def apply_presets(config: VitsConfig, presets: Iterable[Preset]) -> VitsConfig:
    """A configuration with presets applied; the one given stays as it is.

    ``small-encoder``: 128 hidden channels instead of 192, 4 text encoder layers, a feed-forward of 512. The
    hidden channels are also those of flow, posterior encoder and duration predictor.

    ``light-decoder``: HiFi-GAN's ResBlock2 (kernels 3, 5, 7; one convolution a residual step, two steps)
    in place of ResBlock1. Upsampling stays, and with it the frames a second. Such a model has the type
    ``vits_resblock2``, which stock ``transformers`` does not load. Nothing changes where the decoder has
    ResBlock2 already.

    What they do to an MMS model, in millions of parameters and in billions of multiplications and additions for a
    second of audio at 16 kHz (``encoders``: text encoder, posterior encoder and flow in training):

    =============== ========== ======== ======== =========
    presets         parameters encoders decoder  its share
    =============== ========== ======== ======== =========
    none            36.3       1.02     19.2     100 %
    small-encoder   23.3       0.44     19.2     100 %
    light-decoder   27.9       1.02      5.1      26 %
    both            14.9       0.44      5.1      26 %
    =============== ========== ======== ======== =========
    """
    values = config.to_dict()
    wanted = set(presets)
    if "small-encoder" in wanted:
        values |= _SMALL_ENCODER
    light = "light-decoder" in wanted and resblock_type(config) == "1"
    if light:
        for name in ("resblock_kernel_sizes", "resblock_dilation_sizes", "architectures"):
            values.pop(name, None)
    values.pop("model_type")
    return (VitsResblock2Config if light else type(config))(**values)
