"""The alignment search in plain NumPy: slow, short, and what the kernel is tested against.

Shapes: B batch, F frames, T tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def reference_durations(
    log_likelihood: NDArray[np.float32], token_lengths: NDArray[np.int32], frame_lengths: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Frames of each token on the most likely monotonic path.

    Glow-TTS (Kim et al. 2020, algorithm 1), in float32 and in the same order of operations as the kernel, so
    that the two agree to the bit:

        Q[f, t] = x[f, t] + max(Q[f - 1, t], Q[f - 1, t - 1])

    Args:
        log_likelihood: float32 [B, F, T] without NaN or +inf inside the items.
        token_lengths: int32 [B], at least 1.
        frame_lengths: int32 [B], at least the token lengths.

    Returns:
        int32 [B, T], 0 in the padding.
    """
    durations_BT = np.zeros((log_likelihood.shape[0], log_likelihood.shape[2]), np.int32)
    for item, (tokens, frames) in enumerate(zip(token_lengths, frame_lengths, strict=True)):
        scores_FT = log_likelihood[item, :frames, :tokens]
        moved_FT = _moves(scores_FT)
        token = int(tokens) - 1
        for frame in range(int(frames) - 1, -1, -1):
            durations_BT[item, token] += 1
            if token > 0 and (token == frame or moved_FT[frame, token]):
                token -= 1
    return durations_BT


def _moves(scores_FT: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where the best path to a cell comes from the token before. A tie stays on the token."""
    frames, tokens = scores_FT.shape
    moved_FT = np.zeros((frames, tokens), np.bool_)
    stay_T = np.full(tokens, -np.inf, np.float32)
    before_first = np.float32(0.0)  # the start, one token and one frame before the first
    for frame in range(frames):
        move_T = np.concatenate([[before_first], stay_T[:-1]])
        moved_FT[frame] = move_T > stay_T
        # Sums may leave the range of float32: they do so alike here and in the kernel.
        with np.errstate(over="ignore", invalid="ignore"):
            stay_T = scores_FT[frame] + np.where(moved_FT[frame], move_T, stay_T)
        before_first = np.float32(-np.inf)
    return moved_FT
