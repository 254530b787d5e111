"""Where somebody speaks, and how long audio is cut there.

Silero VAD says where speech is, when it is installed; otherwise the level does, which takes any loud noise for speech.

Shapes: S samples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from services.training.data.listening import EAR_RATE, Ears
from shared.audio import FLOOR_DBFS, FRAME_SECONDS, SPEECH_RANGE_DB, Audio, frame_levels

Span = tuple[float, float]

#: Shorter pauses do not part speech.
_PAUSE_SECONDS = 0.1


def speech_spans(audio: Audio, ears: Ears) -> list[Span]:
    """Where somebody speaks: (start, end) in seconds, in order; empty where nobody does."""
    if ears.speech is None:
        return energy_spans(audio)
    return [(float(start), float(end)) for start, end in ears.speech(audio.resampled(EAR_RATE).samples)]


def energy_spans(audio: Audio) -> list[Span]:
    """Where it is at most 40 dB quieter than the loudest 20 ms."""
    levels = frame_levels(audio.samples, audio.sampling_rate)
    loud = levels > max(float(levels.max(initial=FLOOR_DBFS)) - SPEECH_RANGE_DB, FLOOR_DBFS)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], loud, [False]]).astype(np.int8)))
    spans = [(start * FRAME_SECONDS, end * FRAME_SECONDS) for start, end in edges.reshape(-1, 2).tolist()]
    return list(_joined(spans, _PAUSE_SECONDS))


def _joined(spans: Sequence[Span], pause: float) -> Iterator[Span]:
    """Spans with shorter pauses between them than ``pause`` made one."""
    held: Span | None = None
    for span in spans:
        if held is not None and span[0] - held[1] < pause:
            held = (held[0], span[1])
            continue
        if held is not None:
            yield held
        held = span
    if held is not None:
        yield held


def parted(spans: Sequence[Span], audio: Audio, longest: float) -> list[Span]:
    """Speech without a pause for longer than ``longest`` seconds, parted where it is quietest on the way."""
    levels = frame_levels(audio.samples, audio.sampling_rate)
    parts: list[Span] = []
    for start, end in spans:
        while end - start > longest:
            # No part is shorter than a third of the longest, the last one neither.
            first = round((start + longest / 3) / FRAME_SECONDS)
            last = int(min(start + longest, end - longest / 3) / FRAME_SECONDS)
            edge = (first + int(np.argmin(levels[first:last])) + 0.5) * FRAME_SECONDS
            parts.append((start, edge))
            start = edge
        parts.append((start, end))
    return parts


def cut(
    spans: Sequence[Span], duration: float, *, shortest: float, longest: float, pause: float, margin: float
) -> list[Span]:
    """Cut speech into pieces of a sentence or so.

    Neighbouring spans are joined while the pause between them is shorter than ``pause`` and the piece stays within
    ``longest``. A span that is too long by itself is shared out evenly; pieces that are too short are left out.

    Args:
        spans: Where somebody speaks, in order, in seconds.
        duration: The whole's length.
        shortest: Of a piece.
        longest: Of a piece, margins included.
        pause: A longer one ends a piece.
        margin: What is kept before and after, where no neighbour is in the way.

    Returns:
        (start, end) of each piece, in order; they do not overlap.
    """
    room = longest - 2 * margin
    parts: list[Span] = []
    for start, end in spans:
        count = max(1, math.ceil((end - start) / room - 1e-9))
        edges = np.linspace(start, end, count + 1).tolist()
        parts += list(itertools.pairwise(edges))
    pieces: list[Span] = []
    for start, end in parts:
        if pieces and start - pieces[-1][1] < pause and end - pieces[-1][0] <= room:
            pieces[-1] = (pieces[-1][0], end)
        else:
            pieces.append((start, end))
    spread: list[Span] = []
    for number, (start, end) in enumerate(pieces):
        before = 0.0 if number == 0 else (pieces[number - 1][1] + start) / 2
        after = duration if number + 1 == len(pieces) else (end + pieces[number + 1][0]) / 2
        spread.append((max(start - margin, before), min(end + margin, after)))
    return [(start, end) for start, end in spread if end - start >= shortest]
