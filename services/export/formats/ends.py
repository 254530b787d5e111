"""Heads that more than one format has."""

from __future__ import annotations

#: From the lengths of the rows to the mask of their tokens.
_MASK = """
    head_zero = Constant <value_int = 0> ()
    head_one = Constant <value_int = 1> ()
    head_column = Constant <value_ints = [1]> ()
    token_count_1 = Shape <start = 1, end = 2> (input_ids)
    token_count = Squeeze (token_count_1)
    token_position = Range (head_zero, token_count, head_one)
    length_B1 = Unsqueeze ({lengths}, head_column)
    is_token = Less (token_position, length_B1)
    attention_mask = Cast <to = 7> (is_token)
"""

_YIELDED = "int64[B, T] input_ids, int64[B, T] attention_mask"


def speaker(*, several: bool) -> tuple[str, str]:
    """The input ``sid`` and the node that takes it, for a model of several speakers; nothing for one."""
    return (", int64[B] sid", "    speaker_id = Identity (sid)\n") if several else ("", "")


def piper_head(*, several_speakers: bool) -> str:
    """The inputs of a Piper voice: ``scales`` are noise, length and noise of the durations."""
    declared, taken = speaker(several=several_speakers)
    return f"""
head (int64[B, T] input, int64[B] input_lengths, float[3] scales{declared}) => ({_YIELDED}) {{
    input_ids = Identity (input)
    noise_scale, length_scale, noise_scale_duration = Split <axis = 0, num_outputs = 3> (scales)
{_MASK.format(lengths="input_lengths")}{taken}}}
"""


#: The output of a Piper voice.
PIPER_TAIL = """
tail (float[B, S] silent_after_end) => (float[B, 1, 1, S] output) {
    channel_axes = Constant <value_ints = [1, 2]> ()
    output = Unsqueeze (silent_after_end, channel_axes)
}
"""


def vits_head(*, several_speakers: bool) -> str:
    """The inputs of sherpa-onnx's other VITS models, in the order in which it feeds them, whatever their names."""
    declared, taken = speaker(several=several_speakers)
    return f"""
head (
    int64[B, T] x, int64[B] x_length, float[1] noise_scale, float[1] length_scale, float[1] noise_scale_w{declared}
) => ({_YIELDED}) {{
    input_ids = Identity (x)
    noise_scale_duration = Identity (noise_scale_w)
{_MASK.format(lengths="x_length")}{taken}}}
"""


#: The output of sherpa-onnx's other VITS models.
VITS_TAIL = """
tail (float[B, S] silent_after_end) => (float[B, 1, S] y) {
    channel_axis_of_y = Constant <value_ints = [1]> ()
    y = Unsqueeze (silent_after_end, channel_axis_of_y)
}
"""
