"""A whole VITS model as one ONNX graph: tokens in, a waveform out.

Our voices keep encoder, flow and decoder apart and leave noise and durations to the host; the formats of others
want everything in one. So the three graphs are written as ever (`services.export.graphs`: weight norm folded,
spline clamped) and joined here by a few nodes that do the host's part: the noise, the durations, the expansion
of the prior. A format adds its own head (from its inputs to ours) and tail (from our waveform to its output).

The nodes are in ONNX's text form. Shapes: B batch, T tokens, F frames, S samples, D latent channels.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import compose, helper, parser
from transformers import VitsModel

from services.export.graphs import OPSET, SIGNATURES, export_graph

#: ONNX file format, as old as the readers need: 10 is what opset 18 is written in by torch's exporter.
IR_VERSION = 10

#: The noise that the graph draws, by the names that the nodes below give it: ``[B, 2, T]`` and ``[B, F, D]``.
DURATION_NOISE, PRIOR_NOISE = "unit_duration_noise", "unit_noise_BFD"

#: Before the encoder: noise for the durations, drawn anew in each run.
BEFORE = """
before (int64[B, T] input_ids, float[1] noise_scale_duration) => (float[B, 2, T] duration_noise) {
    channel_axis = Constant <value_ints = [1]> ()
    two_channels = Constant <value_ints = [1, 2, 1]> ()
    ids_B1T = Unsqueeze (input_ids, channel_axis)
    ids_B2T = Expand (ids_B1T, two_channels)
    unit_duration_noise = RandomNormalLike <dtype = 1> (ids_B2T)
    duration_noise = Mul (unit_duration_noise, noise_scale_duration)
}
"""

#: Between encoder and flow: durations in frames, and the prior's statistics repeated for them and sampled.
#: Frame f belongs to the first token whose end, the sum of the durations up to it, lies beyond f.
BETWEEN = """
between (
    int64[B, T] input_ids, int64[B, T] attention_mask, float[1] noise_scale, float[1] length_scale,
    float[B, T, D] prior_mean, float[B, T, D] prior_log_std, float[B, T] log_duration
) => (float[B, D, F] prior_sample, float[B, 1, F] frame_mask, int64[B] frames) {
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    last_axis = Constant <value_ints = [-1]> ()
    middle_axis = Constant <value_ints = [1]> ()

    token_mask = Cast <to = 1> (attention_mask)
    duration = Exp (log_duration)
    masked_duration = Mul (duration, token_mask)
    scaled_duration = Mul (masked_duration, length_scale)
    whole_duration = Ceil (scaled_duration)
    durations = Cast <to = 7> (whole_duration)
    spoken = ReduceSum <keepdims = 0> (durations, last_axis)
    frames = Max (spoken, one)
    most_frames = ReduceMax <keepdims = 0> (frames)

    position_F = Range (zero, most_frames, one)
    frames_B1 = Unsqueeze (frames, last_axis)
    inside_BF = Less (position_F, frames_B1)
    inside_B1F = Unsqueeze (inside_BF, middle_axis)
    frame_mask = Cast <to = 1> (inside_B1F)

    end_BT = CumSum (durations, one)
    end_B1T = Unsqueeze (end_BT, middle_axis)
    position_F1 = Unsqueeze (position_F, last_axis)
    passed_BFT = GreaterOrEqual (position_F1, end_B1T)
    counted_BFT = Cast <to = 7> (passed_BFT)
    past_BF = ReduceSum <keepdims = 0> (counted_BFT, last_axis)
    shape = Shape <start = 1, end = 2> (input_ids)
    last_token = Sub (shape, one)
    token_BF = Min (past_BF, last_token)
    token_BF1 = Unsqueeze (token_BF, last_axis)
    mean_BFD = GatherND <batch_dims = 1> (prior_mean, token_BF1)
    log_std_BFD = GatherND <batch_dims = 1> (prior_log_std, token_BF1)

    unit_noise_BFD = RandomNormalLike <dtype = 1> (mean_BFD)
    std_BFD = Exp (log_std_BFD)
    noise_BFD = Mul (unit_noise_BFD, std_BFD)
    scaled_noise_BFD = Mul (noise_BFD, noise_scale)
    sample_BFD = Add (mean_BFD, scaled_noise_BFD)
    prior_sample = Transpose <perm = [0, 2, 1]> (sample_BFD)
}
"""

#: After the decoder: silence where a row of a batch is over, which the decoder would fill with a hum.
AFTER = """
after (float[B, S] decoder_waveform, int64[B] frames) => (float[B, S] silent_after_end) {{
    start = Constant <value_int = 0> ()
    step = Constant <value_int = 1> ()
    hop_length = Constant <value_int = {hop_length}> ()
    silence = Constant <value_float = 0.0> ()
    column = Constant <value_ints = [1]> ()
    S = Shape <start = 1, end = 2> (decoder_waveform)
    S_scalar = Squeeze (S)
    sample_S = Range (start, S_scalar, step)
    samples_B = Mul (frames, hop_length)
    samples_B1 = Unsqueeze (samples_B, column)
    sounds = Less (sample_S, samples_B1)
    silent_after_end = Where (sounds, decoder_waveform, silence)
}}
"""


@dataclass(frozen=True)
class Ends:
    """How a format's inputs become ours, and our waveform its output: two graphs in ONNX's text form."""

    head: str
    """Takes what the format feeds and yields ``input_ids [B, T]``, ``attention_mask [B, T]``, ``noise_scale [1]``,
    ``length_scale [1]``, ``noise_scale_duration [1]`` and, for a model of several speakers, ``speaker_id [B]``.
    What it does not yield must be an input of its own, or have a value in ``defaults``."""
    tail: str
    """Takes ``silent_after_end [B, S]`` and yields what the format reads."""
    defaults: Mapping[str, float]
    """Values of inputs ``[1]`` that need not be fed."""


def build_whole(model: VitsModel, ends: Ends, metadata: Mapping[str, object]) -> onnx.ModelProto:
    """A model as one graph.

    Args:
        model: It loses its weight norm and its gradients.
        ends: The format's inputs and output.
        metadata: Written into the file's ``metadata_props`` as text.

    Returns:
        The model, checked.
    """
    parts = {name: parser.parse_graph(text) for name, text in (("head", ends.head), ("before", BEFORE))}
    parts["between"] = parser.parse_graph(BETWEEN)
    parts["after"] = parser.parse_graph(AFTER.format(hop_length=math.prod(model.config.upsample_rates)))
    parts["tail"] = parser.parse_graph(ends.tail)
    for name in SIGNATURES:
        parts[name] = _exported(name, model)
    order = ["head", "before", "encoder", "between", "flow", "decoder", "after", "tail"]
    defaults = [helper.make_tensor(name, 1, [1], [value]) for name, value in ends.defaults.items()]
    graph = helper.make_graph(
        nodes=[node for name in order for node in parts[name].node],
        name="vits",
        inputs=[*parts["head"].input, *(helper.make_tensor_value_info(t.name, 1, [1]) for t in defaults)],
        outputs=list(parts["tail"].output),
        initializer=[*(tensor for name in SIGNATURES for tensor in parts[name].initializer), *defaults],
    )
    whole = helper.make_model(
        graph,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="vits-suite",
    )
    helper.set_model_props(whole, {key: str(value) for key, value in metadata.items()})
    onnx.checker.check_model(whole, full_check=True)
    return whole


def _exported(name: str, model: VitsModel) -> onnx.GraphProto:
    """One of our three graphs, its inner names marked with its own, so that no two are alike.

    Inputs and outputs keep theirs, by which the parts find each other; but the decoder's waveform is not yet
    the format's.
    """
    with tempfile.TemporaryDirectory(prefix="vits-format-") as folder:
        path = Path(folder) / f"{name}.onnx"
        export_graph(name, model, path)
        part = onnx.load(path)
    part = compose.add_prefix(
        part, f"{name}_", rename_inputs=False, rename_outputs=name == "decoder", rename_functions=False
    )
    return part.graph


def fix_defaults(path: Path) -> None:
    """Take away the inputs that need not be fed, so that the values in the file are the only ones.

    ONNX Runtime can override them while they are inputs, which a comparison without noise needs, and warns of
    each of them whenever it loads the file, which nobody needs.
    """
    whole = onnx.load(path)
    defaults = {tensor.name for tensor in whole.graph.initializer}
    needed = [value for value in whole.graph.input if value.name not in defaults]
    if len(needed) < len(whole.graph.input):
        del whole.graph.input[:]
        whole.graph.input.extend(needed)
        onnx.save(whole, path)
