"""When each word and token is heard: from the durations that the voice chose."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from shared.text.script import Script, Segment


@dataclass(frozen=True)
class Timed:
    """Something heard.

    Attributes:
        text: The word as the user wrote it, or the token's symbol.
        start_seconds: When it begins, from the first sample.
        end_seconds: When it is over.
    """

    text: str
    start_seconds: float
    end_seconds: float


def word_times(
    script: Script,
    durations_per_segment: Iterable[NDArray[np.int64] | Sequence[int]],
    *,
    hop_length: int,
    sampling_rate: int,
) -> list[Timed]:
    """When each word is heard.

    Args:
        script: What is spoken.
        durations_per_segment: Frames of each token, ``[T]``, for the segments spoken so far: may stop early.
            A pause alone has none (an empty one).
        hop_length: Samples of a frame.
        sampling_rate: Of the samples before any resampling, Hz.
    """
    times: list[Timed] = []
    position = 0
    for segment, durations in zip(script.segments, durations_per_segment, strict=False):
        ends = _ends(segment, durations)
        for word in segment.words:
            start, end = ends[word.first_token], ends[word.last_token]
            times.append(
                Timed(
                    word.text,
                    (position + start * hop_length) / sampling_rate,
                    (position + end * hop_length) / sampling_rate,
                )
            )
        position += ends[-1] * hop_length + segment.pause_samples(sampling_rate)
    return times


def token_times(
    script: Script,
    durations_per_segment: Iterable[NDArray[np.int64] | Sequence[int]],
    *,
    hop_length: int,
    sampling_rate: int,
) -> list[Timed]:
    """When each token is heard, blanks and markers included. Arguments are those of `word_times`."""
    times: list[Timed] = []
    position = 0
    for segment, durations in zip(script.segments, durations_per_segment, strict=False):
        ends = _ends(segment, durations)
        times += [
            Timed(
                symbol,
                (position + start * hop_length) / sampling_rate,
                (position + end * hop_length) / sampling_rate,
            )
            for symbol, start, end in zip(segment.tokens.symbols, ends, ends[1:], strict=False)
        ]
        position += ends[-1] * hop_length + segment.pause_samples(sampling_rate)
    return times


def to_json(words: Sequence[Timed], tokens: Sequence[Timed] | None = None) -> str:
    """``{"words": [{"text", "start_seconds", "end_seconds"}, …]}``, with ``tokens`` alike if given."""
    content = {"words": [asdict(word) for word in words]}
    if tokens is not None:
        content["tokens"] = [asdict(token) for token in tokens]
    return json.dumps(content, ensure_ascii=False)


def to_srt(words: Sequence[Timed]) -> str:
    """SubRip captions."""
    return "".join(
        f"{number}\n{_clock(t.start_seconds, ',')} --> {_clock(t.end_seconds, ',')}\n{_line(t.text)}\n\n"
        for number, t in enumerate(words, 1)
    )


def to_vtt(words: Sequence[Timed]) -> str:
    """WebVTT captions."""
    return "WEBVTT\n\n" + "".join(
        f"{_clock(t.start_seconds, '.')} --> {_clock(t.end_seconds, '.')}\n{escape(_line(t.text), quote=False)}\n\n"
        for t in words
    )


def _ends(segment: Segment, durations: NDArray[np.int64] | Sequence[int]) -> list[int]:
    """Where each token ends, in frames, with a zero before."""
    if len(durations) != len(segment.tokens.ids):
        raise ValueError(f"a segment of {len(segment.tokens.ids)} tokens has {len(durations)} durations")
    return [0, *accumulate(int(frames) for frames in durations)]


def _line(text: str) -> str:
    """A word on one line that no caption format takes for its own syntax."""
    return " ".join(text.split()).replace("-->", "→")


def _clock(seconds: float, mark: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{mark}{milliseconds % 1000:03d}"
