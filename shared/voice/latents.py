"""The latents of an utterance, computed part by part as they are needed.

The flow looks a few frames to either side, as the decoder does. So the first window's latents need not wait for those
of the whole segment, of which somebody would wait for the first sound.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shared.voice.windows import Window


def _nothing(part: Window) -> NDArray[np.float32]:
    raise AssertionError(f"{part} is computed already")


class Latents:
    """Latents ``[D, F]``. Safe to use from several threads: each part is computed once.

    Args:
        channels: D.
        parts: The flow's windows, which yield the F frames in order.
        compute: What one of them yields, ``[D, last - first]``.

    Attributes:
        frames: F.
        computed_frames: What the flow reads in all, halos and padding included.
    """

    def __init__(
        self, channels: int, parts: Iterable[Window], compute: Callable[[Window], NDArray[np.float32]]
    ) -> None:
        self._waiting = list(parts)
        self._compute = compute
        self._lock = threading.Lock()
        self.frames = self._waiting[-1].last if self._waiting else 0
        self.computed_frames = sum(part.width for part in self._waiting)
        self._latents_DF = np.zeros((channels, self.frames), dtype=np.float32)

    @classmethod
    def known(cls, latents_DF: NDArray[np.float32]) -> Self:
        """Latents that are there already."""
        latents = cls(len(latents_DF), (), lambda _: latents_DF)
        latents.frames = latents.computed_frames = latents_DF.shape[1]
        latents._latents_DF = latents_DF
        return latents

    def until(self, frame: int) -> NDArray[np.float32]:
        """``[D, F]``, right before a frame at least; what lies behind may still be zero.

        Raises:
            EngineError: The computation failed. It is tried again when next asked for.
        """
        with self._lock:
            while self._waiting and self._waiting[0].first < frame:
                part = self._waiting[0]
                self._latents_DF[:, part.first : part.last] = self._compute(part)
                del self._waiting[0]
                if not self._waiting:
                    self._compute = _nothing  # and with it what it computes from
        return self._latents_DF

    def whole(self) -> NDArray[np.float32]:
        """All of them; errors are those of `until`."""
        return self.until(self.frames)
