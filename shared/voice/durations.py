"""Log-durations to frames, and the prior stretched over them.

Shapes: T tokens, F frames, D latent channels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.errors import EngineError


def exact_frames(log_duration_T: NDArray[np.float32], *, speaking_rate: float) -> NDArray[np.float32]:
    """Frames of each token before they are rounded up, ``exp(log_duration) / speaking_rate``: ``[T]``."""
    with np.errstate(over="ignore"):
        return np.exp(log_duration_T) * np.float32(1.0 / speaking_rate)


def frame_counts(
    log_duration_T: NDArray[np.float32], *, speaking_rate: float, max_frames_per_token: float
) -> NDArray[np.int64]:
    """Frames of each token: `exact_frames` rounded up, as in `VitsModel.forward`.

    Args:
        log_duration_T: float32 ``[T]``, of real tokens only.
        speaking_rate: Larger is faster.
        max_frames_per_token: The most that the tokens may last on average.

    Returns:
        int64 ``[T]``; at least one frame in all.

    Raises:
        EngineError: The durations are not finite, or so long that the model must be broken.
    """
    exact_T = exact_frames(log_duration_T, speaking_rate=speaking_rate)
    total = float(exact_T.sum(dtype=np.float64))
    if not total <= max_frames_per_token * len(exact_T):  # also when it is NaN
        raise EngineError(
            f"The model asks for {total:.3g} frames to speak {len(exact_T)} tokens. "
            "Its durations are broken: train it further, or export an earlier checkpoint."
        )
    counts_T = np.ceil(exact_T).astype(np.int64)
    if counts_T.sum() == 0:
        counts_T[0] = 1
    return counts_T


def expand_prior(
    mean_TD: NDArray[np.float32],
    log_std_TD: NDArray[np.float32],
    counts_T: NDArray[np.int64],
    noise_DF: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Sample the prior, each token's statistics held for its frames: ``mean + noise * exp(log_std)``.

    Args:
        mean_TD: ``[T, D]``.
        log_std_TD: ``[T, D]``.
        counts_T: Frames of each token; they sum to F.
        noise_DF: ``[D, F]`` normal noise times ``noise_scale``.

    Returns:
        float32 ``[D, F]``.
    """
    token_F = np.repeat(np.arange(len(counts_T)), counts_T)
    # exp before the stretch: there are several times fewer tokens than frames.
    return mean_TD.T[:, token_F] + noise_DF * np.exp(log_std_TD.T)[:, token_F]
