"""Noise that belongs to the utterance: the same whoever asks, whenever, and in whatever company."""

from __future__ import annotations

import enum
import secrets

import numpy as np
from numpy.typing import NDArray

#: Seeds are below this, so that they fit Philox's key and survive JSON in any language.
SEED_LIMIT = 2**53


class Stream(enum.IntEnum):
    """What the noise is for. Each stream is independent of the others."""

    DURATION = 0
    PRIOR = 1


def draw_seed() -> int:
    """A seed for a request that did not bring one."""
    return secrets.randbits(31)


def standard_normal(
    seed: int, stream: Stream, *, length: int, channels: int, segment: int = 0
) -> NDArray[np.float32]:
    """Standard normal noise, ``[channels, length]``.

    Philox4x64 (Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405) keyed by (seed, segment, stream).
    It is drawn frame by frame: the noise of the first frames is the same however many follow.

    Args:
        seed: In ``[0, SEED_LIMIT)``.
        stream: What the noise is for.
        length: Tokens or frames.
        channels: Values per token or frame.
        segment: The sentence within the utterance.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, segment << 32 | stream]))
    return np.ascontiguousarray(generator.standard_normal((length, channels), dtype=np.float32).T)
