"""How an utterance's latents are cut into windows: many of the decoder, one or two of the flow.

The decoder looks ``halo`` frames to either side, so a window reads that many more frames than it yields::

    latents   0──────────────────────────────────────────────F 0 0 0 …
    window 0  [ yields first_window ][halo]
    window 1            [halo][ yields window ][halo]
    window 2                             [halo][ yields the rest ][halo]

Nothing precedes frame 0: a window that reaches back to it starts there, as whole decoding does, for zeros
inside the decoder are not the same as zero latents before it. Past the end come zero latents, ``halo`` of
them at least. The plan depends on the number of frames and on the voice, never on load, and its widths are
few: one for the first window, one for the middle ones, a few for the last, which is rounded up to a multiple
of the first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.voice.spec import DecoderPlan, VoiceSpec, round_up


@dataclass(frozen=True)
class Window:
    """One call of the decoder, or of the flow.

    Attributes:
        start: First frame that it reads.
        width: Frames that it reads, those past the end being zero.
        first: First frame that it yields.
        last: Frame after the last that it yields.
    """

    start: int
    width: int
    first: int
    last: int

    @property
    def end(self) -> int:
        """Frame after the last that it reads; there may be none so late."""
        return self.start + self.width

    def cut(self, latents_DF: NDArray[np.float32]) -> NDArray[np.float32]:
        """The latents it reads, ``[1, D, width]``, with zeros past the end."""
        piece = latents_DF[:, self.start : self.end]
        cut = np.zeros((1, len(latents_DF), self.width), dtype=np.float32)
        cut[0, :, : piece.shape[1]] = piece
        return cut

    def trim(self, waveform_S: NDArray[np.float32], hop_length: int) -> NDArray[np.float32]:
        """The samples it yields, of the ``width * hop_length`` that the decoder made."""
        return waveform_S[(self.first - self.start) * hop_length : (self.last - self.start) * hop_length]


def plan_windows(frames: int, plan: DecoderPlan) -> list[Window]:
    """Cut an utterance of ``frames`` frames into windows that yield each of them once, in order."""
    windows = []
    first = 0
    while first < frames:
        if first == 0:
            most = plan.first_window_frames
        else:
            most = min(plan.window_frames, round_up(frames - first, plan.first_window_frames))
        halo_before = plan.halo_frames if first else 0
        windows.append(
            Window(
                start=max(0, first - halo_before),
                width=halo_before + most + plan.halo_frames,
                first=first,
                last=min(frames, first + most),
            )
        )
        first += most
    return windows


def plan_flow(frames: int, spec: VoiceSpec) -> list[Window]:
    """Cut an utterance of ``frames`` frames for the flow.

    What the decoder's first window reads comes first, so that a long segment is heard as soon as a short one. It costs
    two halos, so segments that are not twice as long as that part stay whole.
    """
    halo = spec.flow_halo_frames
    if halo is not None:
        decoder = spec.decoder
        width = spec.frame_bucket(decoder.first_window_frames + decoder.halo_frames + halo)
        if frames > 2 * width:
            last = width - halo
            start = max(0, last - halo)
            return [
                Window(0, width, 0, last),
                Window(start, spec.frame_bucket(frames - start), last, frames),
            ]
    return [Window(0, spec.frame_bucket(frames), 0, frames)]


def each_width(plan: DecoderPlan) -> list[Window]:
    """One window of each width that `plan_windows` makes."""
    most = plan.first_window_frames + plan.window_frames
    windows = [window for frames in range(1, most + 1) for window in plan_windows(frames, plan)]
    return list({window.width: window for window in windows}.values())
