"""What a dataset is like, and which of its rows deserve a second look before training."""

from __future__ import annotations

import hashlib
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from services.training.data.reading import Survey
from services.training.data.recordings import Recording
from shared.audio import FLOOR_DBFS, FRAME_SECONDS, SPEECH_RANGE_DB, Samples, frame_levels, to_pcm16
from shared.errors import TextError, UserError
from shared.text import FrontEnd

#: Quieter speech than this is as good as silence.
SILENT_DBFS = -50.0

#: Silence at either end that a model would have to learn as part of the sentence.
LONG_SILENCE_SECONDS = 1.0

#: A recording this much louder or quieter than the middle one stands out.
LOUDNESS_RANGE_DB = 10.0

#: So many samples in a row at full scale are clipped, not a peak that just touches it.
CLIPPED_RUN = 4

#: Characters that occur in no more recordings than this are hardly ever learnt.
RARE_RECORDINGS = 3

#: Modified z-score beyond which a speaking rate is an outlier.
#: Iglewicz and Hoaglin, How to Detect and Handle Outliers (1993): 0.6745 (x - median) / MAD, 3.5.
OUTLIER_SCORE = 3.5


@dataclass(frozen=True)
class Measured:
    """One recording, measured.

    Attributes:
        recording: It.
        split: Its split.
        seconds: Its length.
        leading_seconds: Silence before the first speech.
        trailing_seconds: Silence after the last.
        loudness_dbfs: Root mean square of its speech frames, in decibels below full scale.
        peak: Its largest magnitude.
        clipped: Whether it has a run of samples at full scale.
        letters: How many letters and digits its transcript has.
        audio_hash: Tells equal sounds.
    """

    recording: Recording
    split: str
    seconds: float
    leading_seconds: float
    trailing_seconds: float
    loudness_dbfs: float
    peak: float
    clipped: bool
    letters: int
    audio_hash: str

    @property
    def speech_seconds(self) -> float:
        """Its length without the silence at its ends."""
        return max(self.seconds - self.leading_seconds - self.trailing_seconds, FRAME_SECONDS)

    @property
    def speaking_rate(self) -> float:
        """Letters a second."""
        return self.letters / self.speech_seconds


@dataclass(frozen=True)
class Suspect:
    """A row that deserves a second look.

    Attributes:
        row: Where the dataset lists it.
        id: Its recording.
        reason: Why, and what to do.
        kind: A word for what is wrong, to count by.
    """

    row: str
    id: str
    reason: str
    kind: str


@dataclass(frozen=True)
class Inspection:
    """All that was found out about a dataset.

    Attributes:
        source: The dataset.
        measured: Its good recordings.
        suspects: The rows to look at.
        problems: The rows that cannot be used at all, a sentence for each.
        characters: In how many recordings each character occurs, capitals counted as small letters.
        unknown: Of those, the ones outside the model's vocabulary; None without a model.
    """

    source: str
    measured: tuple[Measured, ...]
    suspects: tuple[Suspect, ...]
    problems: tuple[str, ...]
    characters: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] | None = None

    @property
    def rate_outliers(self) -> frozenset[str]:
        """The ids of the recordings whose speaking rate stands out."""
        return frozenset(suspect.id for suspect in self.suspects if suspect.kind == "speaking rate")


def inspect(
    survey: Survey,
    *,
    front_end: FrontEnd | None = None,
    min_seconds: float = 1.0,
    max_seconds: float = 20.0,
    advance: Callable[[], None] = lambda: None,
) -> Inspection:
    """Decode and measure every recording of a dataset.

    Args:
        survey: The dataset's rows.
        front_end: Of the model that will be trained; finds characters that it does not know.
        min_seconds: Shorter recordings are suspect.
        max_seconds: Longer recordings are suspect.
        advance: Called after each recording.
    """
    measured: list[Measured] = []
    problems = list(survey.problems)
    for recording, split in zip(survey.recordings, survey.splits, strict=True):
        try:
            measured.append(measure(recording, split))
        except UserError as error:
            problems.append(f"{recording.row} ({recording.id}): {error}")
        advance()
    unknown = None if front_end is None else _unknown_characters(measured, front_end)
    suspects = [
        *_wrong_lengths(measured, min_seconds, max_seconds),
        *_bad_sounds(measured),
        *_loudness_outliers(measured),
        *_rate_outliers(measured),
        *_doubles(measured),
    ]
    order = {one.recording.row: number for number, one in enumerate(measured)}
    suspects.sort(key=lambda suspect: order[suspect.row])
    characters = Counter(character for one in measured for character in set(one.recording.text.lower()))
    return Inspection(survey.source, tuple(measured), tuple(suspects), tuple(problems), characters, unknown)


def measure(recording: Recording, split: str) -> Measured:
    """Decode and measure one recording.

    Raises:
        UserError: It cannot be decoded.
    """
    audio = recording.audio()
    levels = frame_levels(audio.samples, audio.sampling_rate)
    speech = np.flatnonzero(levels > max(float(levels.max()) - SPEECH_RANGE_DB, FLOOR_DBFS))
    leading = trailing = 0.0
    loudness = FLOOR_DBFS
    if len(speech):
        leading = float(speech[0]) * FRAME_SECONDS
        trailing = float(len(levels) - 1 - speech[-1]) * FRAME_SECONDS
        loudness = 10 * math.log10(float(np.mean(10 ** (levels[speech] / 10))))
    return Measured(
        recording=recording,
        split=split,
        seconds=audio.duration_seconds,
        leading_seconds=leading,
        trailing_seconds=trailing,
        loudness_dbfs=loudness,
        peak=float(np.abs(audio.samples).max()),
        clipped=longest_full_scale_run(audio.samples) >= CLIPPED_RUN,
        letters=sum(character.isalnum() for character in recording.text),
        audio_hash=hashlib.sha256(to_pcm16(audio.samples).tobytes()).hexdigest(),
    )


def longest_full_scale_run(samples: Samples) -> int:
    """The largest number of neighbouring samples that are all at full scale."""
    edges = np.diff(np.concatenate([[False], np.abs(samples) >= 0.999, [False]]).astype(np.int8))
    runs = np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
    return int(runs.max(initial=0))


def modified_z_scores(values: Sequence[float]) -> list[float]:
    """How far each value is from the median, in robust standard deviations; all 0 when most are equal."""
    if not values:
        return []
    middle = statistics.median(values)
    deviation = statistics.median(abs(value - middle) for value in values)
    return [0.0 if deviation == 0 else 0.6745 * (value - middle) / deviation for value in values]


def _suspect(one: Measured, kind: str, reason: str) -> Suspect:
    return Suspect(one.recording.row, one.recording.id, reason, kind)


def _wrong_lengths(measured: Iterable[Measured], shortest: float, longest: float) -> Iterable[Suspect]:
    for one in measured:
        if one.seconds < shortest:
            yield _suspect(one, "too short", f"lasts {one.seconds:.2f} s, less than {shortest:g} s")
        elif one.seconds > longest:
            yield _suspect(one, "too long", f"lasts {one.seconds:.1f} s, more than {longest:g} s: cut it up")


def _bad_sounds(measured: Iterable[Measured]) -> Iterable[Suspect]:
    for one in measured:
        if one.loudness_dbfs < SILENT_DBFS:
            yield _suspect(one, "silent", f"is as good as silent ({one.loudness_dbfs:.0f} dBFS)")
            continue
        if one.clipped:
            yield _suspect(one, "clipped", "is clipped at full scale: record it again with less gain")
        for place, seconds in (("begins", one.leading_seconds), ("ends", one.trailing_seconds)):
            if seconds > LONG_SILENCE_SECONDS:
                yield _suspect(one, "silence", f"{place} with {seconds:.1f} s of silence: trim it")


def _loudness_outliers(measured: Sequence[Measured]) -> Iterable[Suspect]:
    """Recordings far from the middle loudness of their speaker."""
    for group in _by_speaker(measured):
        middle = statistics.median(one.loudness_dbfs for one in group)
        for one in group:
            apart = one.loudness_dbfs - middle
            if abs(apart) > LOUDNESS_RANGE_DB and one.loudness_dbfs >= SILENT_DBFS:
                word = "louder" if apart > 0 else "quieter"
                yield _suspect(one, "loudness", f"is {abs(apart):.0f} dB {word} than most: level it")


def _rate_outliers(measured: Sequence[Measured]) -> Iterable[Suspect]:
    """Recordings whose transcript is too long or too short for their sound: often the wrong transcript."""
    for group in _by_speaker(measured):
        scores = modified_z_scores([math.log(one.speaking_rate) for one in group])
        middle = statistics.median(one.speaking_rate for one in group)
        for one, score in zip(group, scores, strict=True):
            if abs(score) > OUTLIER_SCORE:
                yield _suspect(
                    one,
                    "speaking rate",
                    f"has {one.speaking_rate:.1f} letters a second where {middle:.1f} are usual: "
                    "compare transcript and sound",
                )


def _doubles(measured: Iterable[Measured]) -> Iterable[Suspect]:
    """Equal sounds, and equal sentences on both sides of a split."""
    sounds: dict[str, Measured] = {}
    texts: dict[str, list[Measured]] = defaultdict(list)
    for one in measured:
        first = sounds.setdefault(one.audio_hash, one)
        if first is not one:
            yield _suspect(
                one, "duplicate", f"is the same sound as {first.recording.row}: remove one of them"
            )
        words = " ".join(re.findall(r"\w+", one.recording.text.lower()))
        elsewhere = next((other for other in texts[words] if other.split != one.split), None)
        if elsewhere is not None:
            yield _suspect(
                one,
                "in two splits",
                f"({one.split}) says the same words as {elsewhere.recording.row} ({elsewhere.split}): "
                "put both in one split",
            )
        texts[words].append(one)


def _by_speaker(measured: Iterable[Measured]) -> Iterable[list[Measured]]:
    groups: dict[str | None, list[Measured]] = defaultdict(list)
    for one in measured:
        groups[one.recording.speaker].append(one)
    return groups.values()


def _unknown_characters(measured: Iterable[Measured], front_end: FrontEnd) -> Counter[str]:
    """What the model has no token for, and in how many recordings."""
    unknown: Counter[str] = Counter()
    for one in measured:
        try:
            unknown.update(set(front_end.tokenize(one.recording.text).unknown))
        except TextError:
            unknown.update(set(one.recording.text))
    return unknown
