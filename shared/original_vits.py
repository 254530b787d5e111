"""The names and shapes of original VITS's weights, which Piper, MMS and many others have kept.

Here is what they are called in ``transformers``, and the sizes that they tell. Shapes are plain tuples, so
that this serves ONNX initialisers and PyTorch checkpoints alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: The shape of every weight by its original name, with a weight norm's pair counted as one ``.weight``.
Shapes = Mapping[str, Sequence[int]]

# Original VITS names → transformers' names, tried in order.
_TEXT = "text_encoder.encoder.layers"
_RENAMES = [
    (r"enc_p\.emb\.weight", r"text_encoder.embed_tokens.weight"),
    (r"enc_p\.encoder\.attn_layers\.(\d+)\.emb_rel_([kv])", rf"{_TEXT}.\1.attention.emb_rel_\2"),
    (r"enc_p\.encoder\.attn_layers\.(\d+)\.conv_([qkv])\.(\w+)", rf"{_TEXT}.\1.attention.\2_proj.\3"),
    (r"enc_p\.encoder\.attn_layers\.(\d+)\.conv_o\.(\w+)", rf"{_TEXT}.\1.attention.out_proj.\2"),
    (r"enc_p\.encoder\.norm_layers_1\.(\d+)\.(\w+)", rf"{_TEXT}.\1.layer_norm.\2"),
    (r"enc_p\.encoder\.norm_layers_2\.(\d+)\.(\w+)", rf"{_TEXT}.\1.final_layer_norm.\2"),
    (r"enc_p\.encoder\.ffn_layers\.(\d+)\.(conv_[12])\.(\w+)", rf"{_TEXT}.\1.feed_forward.\2.\3"),
    (r"enc_p\.proj\.(\w+)", r"text_encoder.project.\1"),
    (r"emb_g\.weight", r"embed_speaker.weight"),
    (r"enc_q\.pre\.(\w+)", r"posterior_encoder.conv_pre.\1"),
    (r"enc_q\.proj\.(\w+)", r"posterior_encoder.conv_proj.\1"),
    (r"enc_q\.enc\.(.*)", r"posterior_encoder.wavenet.\1"),
    (r"dec\.ups\.(\d+)\.(\w+)", r"decoder.upsampler.\1.\2"),
    (r"dec\.(.*)", r"decoder.\1"),
    (r"flow\.flows\.(\d+)\.pre\.(\w+)", r"flow.flows.{half}.conv_pre.\2"),
    (r"flow\.flows\.(\d+)\.post\.(\w+)", r"flow.flows.{half}.conv_post.\2"),
    (r"flow\.flows\.(\d+)\.enc\.(.*)", r"flow.flows.{half}.wavenet.\2"),
]
_STOCHASTIC = [
    (r"dp\.(post_)?flows\.0\.m", r"duration_predictor.\1flows.0.translate"),
    (r"dp\.(post_)?flows\.0\.logs", r"duration_predictor.\1flows.0.log_scale"),
    (r"dp\.(post_)?flows\.(\d+)\.pre\.(\w+)", r"duration_predictor.\1flows.{half_up}.conv_pre.\3"),
    (r"dp\.(post_)?flows\.(\d+)\.proj\.(\w+)", r"duration_predictor.\1flows.{half_up}.conv_proj.\3"),
    (r"dp\.(post_)?flows\.(\d+)\.convs\.(.*)", r"duration_predictor.\1flows.{half_up}.conv_dds.\3"),
    (r"dp\.(post_)?pre\.(\w+)", r"duration_predictor.\1conv_pre.\2"),
    (r"dp\.(post_)?proj\.(\w+)", r"duration_predictor.\1conv_proj.\2"),
    (r"dp\.(post_)?convs\.(.*)", r"duration_predictor.\1conv_dds.\2"),
    (r"dp\.cond\.(\w+)", r"duration_predictor.cond.\1"),
]
_DETERMINISTIC = [(r"dp\.((?:conv_|norm_)[12]|proj|cond)\.(\w+)", r"duration_predictor.\1.\2")]
_PARTS = [
    ("convs_sep", "convs_dilated"),
    ("convs_1x1", "convs_pointwise"),
    ("gamma", "weight"),
    ("beta", "bias"),
]


def rename(name: str, *, stochastic: bool = True) -> str | None:
    """The name in ``transformers`` of an original VITS weight, or nothing for what is not a weight.

    Flips count as flows in original VITS and not in ``transformers``: coupling layers 0, 2, 4, 6 become
    0, 1, 2, 3, and the duration predictor's splines 1, 3, 5, 7 become 1, 2, 3, 4.

    Args:
        name: The original name.
        stochastic: Whether the duration predictor is the stochastic one; the other one's weights share
            some of its names.
    """
    for pattern, replacement in [*_RENAMES, *(_STOCHASTIC if stochastic else _DETERMINISTIC)]:
        match = re.fullmatch(pattern, name)
        if match:
            number = next((int(group) for group in match.groups() if group and group.isdigit()), 0)
            text = match.expand(
                replacement.replace("{half}", str(number // 2)).replace("{half_up}", str(number // 2 + 1))
            )
            for old, new in _PARTS:
                text = text.replace(old, new)
            return text
    return None


def count(names: Iterable[str], pattern: str) -> int:
    """How many there are, counted from 0, of what a pattern's group numbers, even if some are missing."""
    return 1 + max((int(match[1]) for name in names if (match := re.fullmatch(pattern, name))), default=-1)


def is_stochastic(names: Iterable[str]) -> bool:
    """Whether the weights of these names have the stochastic duration predictor."""
    return any(name.startswith("dp.flows.") for name in names)


def generator_sizes(shapes: Shapes) -> dict[str, Any]:
    """``VitsConfig``'s fields for everything but the decoder and the posterior encoder.

    Raises:
        KeyError: A weight that tells a size is missing; the key is its name.
    """
    relative = shapes["enc_p.encoder.attn_layers.0.emb_rel_k"]
    feed_forward = shapes["enc_p.encoder.ffn_layers.0.conv_1.weight"]
    vocabulary, hidden = shapes["enc_p.emb.weight"]
    speakers, speaker_channels = shapes.get("emb_g.weight", (1, 0))
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": count(shapes, r"enc_p\.encoder\.attn_layers\.(\d+)\..*"),
        "num_attention_heads": hidden // relative[2],
        "window_size": relative[1] // 2,
        "ffn_dim": feed_forward[0],
        "ffn_kernel_size": feed_forward[2],
        "flow_size": shapes["dec.conv_pre.weight"][1],
        # Every second of original VITS's flows is a flip.
        "prior_encoder_num_flows": (count(shapes, r"flow\.flows\.(\d+)\..*") + 1) // 2,
        "prior_encoder_num_wavenet_layers": count(shapes, r"flow\.flows\.0\.enc\.in_layers\.(\d+)\..*"),
        "wavenet_kernel_size": shapes["flow.flows.0.enc.in_layers.0.weight"][2],
        "num_speakers": speakers,
        "speaker_embedding_size": speaker_channels,
    }


def posterior_sizes(shapes: Shapes) -> dict[str, Any]:
    """``VitsConfig``'s fields for the posterior encoder. Raises KeyError as :func:`generator_sizes`."""
    return {
        "spectrogram_bins": shapes["enc_q.pre.weight"][1],
        "posterior_encoder_num_wavenet_layers": count(shapes, r"enc_q\.enc\.in_layers\.(\d+)\..*"),
    }


def duration_sizes(shapes: Shapes) -> dict[str, Any]:
    """``VitsConfig``'s fields for either duration predictor. Raises KeyError as :func:`generator_sizes`."""
    if not is_stochastic(shapes):
        first = shapes["dp.conv_1.weight"]
        return {
            "use_stochastic_duration_prediction": False,
            "duration_predictor_filter_channels": first[0],
            "duration_predictor_kernel_size": first[2],
        }
    return {
        "use_stochastic_duration_prediction": True,
        "duration_predictor_num_flows": count(shapes, r"dp\.flows\.(\d+)\..*") // 2,
        "duration_predictor_kernel_size": shapes["dp.convs.convs_sep.0.weight"][2],
        "depth_separable_num_layers": count(shapes, r"dp\.convs\.convs_sep\.(\d+)\..*"),
        # A spline has a width and a height for each bin, and a slope between any two.
        "duration_predictor_flow_bins": (shapes["dp.flows.3.proj.weight"][0] + 1) // 3,
    }
