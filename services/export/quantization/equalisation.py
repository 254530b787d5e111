"""Cross-layer equalisation: channels of one stream are scaled so that one grid serves all of them.

A tensor has one scale for all its channels, so a channel ten times quieter than the loudest is left with a
tenth of the steps. A positive scale per channel passes through leaky ReLU and additions and is undone in the
weights that read the stream (Nagel et al. 2019, https://arxiv.org/abs/1906.04721); how far to go is a trade
between activations and weights, as in SmoothQuant (Xiao et al. 2022, https://arxiv.org/abs/2211.10438):

    s_c = (median_c' range_c' / range_c)^α

α = 0 leaves everything as it is, α = 1 gives every channel the same range.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from services.export.quantization.calibration import Samples
from services.export.quantization.decoder import Decoder, Stream, scale_stream

#: Channels that never say anything are not blown up beyond this.
LARGEST_SCALE = 64.0


def equalise(
    decoder: Decoder, samples: Mapping[str, Samples], *, alpha: float, percentile: float
) -> dict[str, Samples]:
    """Scale the streams of a decoder, and the samples of its tensors with them.

    Args:
        decoder: The decoder, which is changed; what it computes is not, but for rounding.
        samples: ``[C, N]`` of each tensor that a convolution reads.
        alpha: How far, from 0 to 1.
        percentile: What counts as a channel's range.

    Returns:
        The samples of the decoder as it is now.
    """
    scaled = dict(samples)
    for stream in decoder.streams():
        scale_C = stream_scale(stream, samples, alpha=alpha, percentile=percentile)
        scale_stream(decoder, stream, scale_C)
        for tensor in {layer.input for layer in stream.readers}:
            scaled[tensor] = (samples[tensor] * scale_C[:, None]).astype(np.float16)
    return scaled


def stream_scale(
    stream: Stream, samples: Mapping[str, Samples], *, alpha: float, percentile: float
) -> NDArray[np.float32]:
    """The scale ``[C]`` of each channel of a stream."""
    ranges = [
        np.percentile(np.abs(samples[tensor].astype(np.float32)), percentile, axis=1)
        for tensor in sorted({layer.input for layer in stream.readers})
    ]
    range_C = np.maximum.reduce(ranges)
    middle = float(np.median(range_C))
    if middle <= 0:
        return np.ones(len(range_C), dtype=np.float32)
    wanted_C = middle / np.maximum(range_C, middle / LARGEST_SCALE)
    return np.asarray(wanted_C**alpha, dtype=np.float32)
