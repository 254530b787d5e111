"""Pictures of a training run: alignments and spectrograms."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray


def plot_alignment(durations: NDArray[np.int32], symbols: tuple[str, ...] = ()) -> Figure:
    """Which token each frame belongs to.

    Args:
        durations: [T] frames of each token.
        symbols: What to write at the tokens, where there are few enough.
    """
    tokens, frames = len(durations), int(durations.sum())
    path = np.zeros((tokens, max(frames, 1)))
    ends = np.cumsum(durations)
    for token, (end, width) in enumerate(zip(ends, durations, strict=True)):
        path[token, end - width : end] = 1
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(path, aspect="auto", origin="lower", interpolation="none", cmap="Blues")
    axes.set(xlabel="frame", ylabel="token", title="Alignment")
    if 0 < len(symbols) <= 60:
        axes.set_yticks(range(tokens), symbols, fontsize=7)
    return figure


def plot_spectrograms(**mels: NDArray[np.float32]) -> Figure:
    """Log-mel spectrograms [80, F] one above another, on one colour scale and one time axis."""
    figure = Figure(figsize=(9, 2.4 * len(mels)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(mels), sharex=True))
    low = min(float(np.percentile(mel, 2)) for mel in mels.values())
    high = max(float(mel.max()) for mel in mels.values())
    for axis, (title, mel) in zip(axes, mels.items(), strict=True):
        image = axis.imshow(mel, aspect="auto", origin="lower", vmin=low, vmax=high, cmap="magma")
        axis.set(title=title.replace("_", " "), ylabel="mel band")
    axes[-1].set_xlabel("frame")
    figure.colorbar(image, ax=list(axes), label="log magnitude")
    return figure
