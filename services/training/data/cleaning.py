"""What is wrong with each recording of a dataset, and what to do with it: keep it, trim it, or leave it out.

Nothing here changes anything. ``examine`` looks and listens, ``decide`` judges; the module ``decisions`` writes that
down for somebody to correct, and applies it.

Shapes: S samples.
"""

from __future__ import annotations

import hashlib
import math
import re
import statistics
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from services.training.data.activity import Span, speech_spans
from services.training.data.hearing import Hearing
from services.training.data.inspection import (
    CLIPPED_RUN,
    OUTLIER_SCORE,
    longest_full_scale_run,
    modified_z_scores,
)
from services.training.data.listening import EAR_RATE, Ears
from services.training.data.reading import Survey
from services.training.data.recordings import Recording
from shared.audio import FRAME_SECONDS, Audio, Samples, frame_levels, loudness_lufs
from shared.errors import TextError, UserError
from shared.text import FrontEnd

KEEP, TRIM, DROP = "keep", "trim", "drop"

#: Letters of the languages that are checked without a model; digits are written out in transcripts.
ALPHABETS = {"es": "abcdefghijklmnñopqrstuvwxyzáéíóúü", "en": "abcdefghijklmnopqrstuvwxyz"}

#: Two recordings whose speech differs by less than this in length may be the same. Voice activity is found in steps of
#: 32 ms, at either end, and where there is speech to the end it has what little silence follows, too.
_SAME_LENGTH_SECONDS = 0.1
#: How far their loudness profiles may be apart, on average: about 3 where ends differ so much, mostly more where sounds
#: do. It spares other pairs the comparison by which it is decided.
_SAME_PROFILE_DB = 5.0
#: How alike their waveforms are then.
_SAME_CORRELATION = 0.9
_PROFILE_BINS = 24


@dataclass(frozen=True)
class Limits:
    """What is still good enough.

    Attributes:
        margin: Seconds of silence that trimming leaves at each end.
        least_trimmed: Less silence than so many seconds is left alone.
        min_seconds: Of speech with its margins.
        max_seconds: Likewise.
        min_snr: Decibels from the noise between words to the speech.
        min_naturalness: DNSMOS's mean opinion score.
        max_cer: Character errors of what a recogniser heard against the transcript.
        doubtful_cer: From here on it is remarked on.
        max_clipped: Share of samples that are clipped.
    """

    margin: float = 0.1
    least_trimmed: float = 0.1
    min_seconds: float = 1.0
    max_seconds: float = 20.0
    min_snr: float = 15.0
    min_naturalness: float = 2.0
    max_cer: float = 0.25
    doubtful_cer: float = 0.1
    max_clipped: float = 1e-3


@dataclass(frozen=True)
class Examined:
    """One recording, looked at and listened to.

    Attributes:
        recording: It.
        split: Its split.
        seconds: Its length.
        speech: From the first word to the last, in seconds; None where nobody speaks.
        loudness: LUFS.
        snr: Decibels from the quietest twentieth to the speech; None where nobody speaks.
        clipped: Share of samples in runs at full scale.
        letters: How many letters and digits its transcript has.
        unknown: Characters that the model or the language has not.
        sound: SHA-256 of its samples; what was heard is kept under it.
        profile: [24] its loudness along the speech, in decibels below the loudest.
        heard: What a recogniser understood.
        cer: Character errors of that against the transcript.
        naturalness: DNSMOS.
        failure: Why it could not be decoded; the rest means nothing then.
    """

    recording: Recording
    split: str
    seconds: float = 0.0
    speech: Span | None = None
    loudness: float = -math.inf
    snr: float | None = None
    clipped: float = 0.0
    letters: int = 0
    unknown: tuple[str, ...] = ()
    sound: str = ""
    profile: NDArray[np.float32] = field(
        default_factory=lambda: np.zeros(_PROFILE_BINS, np.float32), repr=False
    )
    heard: str | None = None
    cer: float | None = None
    naturalness: float | None = None
    failure: str = ""

    @property
    def speaking_rate(self) -> float:
        """Letters a second of speech; 0 where nobody speaks."""
        return (
            0.0 if self.speech is None else self.letters / max(self.speech[1] - self.speech[0], FRAME_SECONDS)
        )


@dataclass(frozen=True)
class Decision:
    """What to do with one recording.

    Attributes:
        examined: It.
        action: ``keep``, ``trim`` or ``drop``.
        reasons: Why it is not simply kept, or what to look at; each begins with a word to count by and a colon.
        start: Where it begins after trimming, in seconds.
        end: Where it ends.
    """

    examined: Examined
    action: str
    reasons: tuple[str, ...]
    start: float
    end: float


def examine(
    survey: Survey,
    ears: Ears,
    *,
    hearing: Hearing,
    front_end: FrontEnd | None = None,
    language: str | None = None,
    advance: Callable[[], None] = lambda: None,
) -> list[Examined]:
    """Look at every recording of a dataset, and listen to it with what ears there are.

    Args:
        survey: The dataset's rows.
        ears: The judges.
        hearing: Keeps what they said, so that a run that was stopped goes on where it was.
        front_end: Of the model that will be trained, for characters that it does not know.
        language: BCP 47, for characters that the language has not, where there is no model.
        advance: Called after each recording.

    Raises:
        UserError: What was heard cannot be kept.
    """
    found = []
    for recording, split in zip(survey.recordings, survey.splits, strict=True):
        try:
            audio = recording.audio()
        except UserError as error:
            found.append(Examined(recording, split, failure=str(error)))
        else:
            unknown = _unknown(recording.text, front_end, language)
            found.append(_examined(recording, split, audio, ears, hearing, unknown))
        advance()
    return found


def _examined(
    recording: Recording, split: str, audio: Audio, ears: Ears, hearing: Hearing, unknown: tuple[str, ...]
) -> Examined:
    spans = speech_spans(audio, ears)
    sound = hashlib.sha256(audio.samples.tobytes()).hexdigest()
    speech = (spans[0][0], min(spans[-1][1], audio.duration_seconds)) if spans else None
    one = Examined(
        recording=recording,
        split=split,
        seconds=audio.duration_seconds,
        speech=speech,
        loudness=loudness_lufs(audio.samples, audio.sampling_rate),
        snr=None if speech is None else signal_to_noise(audio, spans),
        clipped=clipped_share(audio.samples),
        letters=sum(character.isalnum() for character in recording.text),
        unknown=unknown,
        sound=sound,
    )
    if speech is None:
        return one
    one = replace(one, profile=_profile(audio, speech))
    heard = hearing.transcript(sound, audio, ears)
    return replace(
        one,
        heard=heard,
        cer=None
        if heard is None or ears.character_errors is None
        else ears.character_errors(recording.text, heard),
        naturalness=hearing.naturalness(sound, audio, ears),
    )


def signal_to_noise(audio: Audio, spans: Sequence[Span]) -> float:
    """Decibels from the quietest twentieth of all frames to the speech; at most 100, and never below 0.

    Steady noise is in every frame, so the quietest have nothing but it. What lies outside of the spans would not do:
    it is a few frames of a fading word as often as a pause. Noise that was gated away between words is not heard.
    """
    levels = frame_levels(audio.samples, audio.sampling_rate)
    middles = (np.arange(len(levels)) + 0.5) * FRAME_SECONDS
    spoken = np.zeros(len(levels), bool)
    for start, end in spans:
        spoken |= (start <= middles) & (middles < end)
    if not spoken.any():
        return 0.0
    speech = 10 * math.log10(float(np.mean(10 ** (levels[spoken] / 10))))
    return min(100.0, max(0.0, speech - float(np.percentile(levels, 5))))


def clipped_share(samples: Samples) -> float:
    """The share of samples [S] in runs of four or more at full scale."""
    if longest_full_scale_run(samples) < CLIPPED_RUN:
        return 0.0
    edges = np.flatnonzero(
        np.diff(np.concatenate([[False], np.abs(samples) >= 0.999, [False]]).astype(np.int8))
    )
    runs = np.diff(edges.reshape(-1, 2), axis=1)
    return float(runs[runs >= CLIPPED_RUN].sum()) / len(samples)


def _profile(audio: Audio, speech: Span) -> NDArray[np.float32]:
    start, end = (round(at * audio.sampling_rate) for at in speech)
    levels = frame_levels(audio.samples[start:end], audio.sampling_rate)
    if not len(levels):
        return np.zeros(_PROFILE_BINS, np.float32)
    places = np.linspace(0, len(levels) - 1, _PROFILE_BINS)
    sampled = np.interp(places, np.arange(len(levels)), levels)
    return np.asarray(np.maximum(sampled - levels.max(), -40.0), np.float32)


def _unknown(text: str, front_end: FrontEnd | None, language: str | None) -> tuple[str, ...]:
    """Letters and digits that nobody will speak: punctuation is no loss."""
    if front_end is not None:
        try:
            found: Iterable[str] = front_end.tokenize(text).unknown
        except TextError:
            found = text
    else:
        alphabet = ALPHABETS.get((language or "").lower().partition("-")[0])
        if alphabet is None:
            return ()
        found = (c for c in unicodedata.normalize("NFC", text).lower() if c not in alphabet)
    return tuple(dict.fromkeys(c for c in found if c and unicodedata.category(c[0])[0] in "LMN"))


def decide(examined: Sequence[Examined], limits: Limits) -> list[Decision]:
    """What to do with each recording, in the same order."""
    rates = dict(_unusual_rates(examined))
    doubles = dict(_doubles(examined, limits))
    return [
        _decide(one, limits, rates.get(number), doubles.get(number)) for number, one in enumerate(examined)
    ]


def _decide(one: Examined, limits: Limits, rate: str | None, double: str | None) -> Decision:
    """One decision: whatever speaks for leaving it out, then what is worth a look."""
    if one.failure:
        return Decision(one, DROP, (f"unreadable: {one.failure}",), 0.0, 0.0)
    if one.speech is None:
        return Decision(one, DROP, ("silent: nobody speaks",), 0.0, one.seconds)
    start, end = _edges(one, limits)
    trimmed = start + one.seconds - end
    trims = trimmed > 0
    against = [*_faults(one, limits, end - start), *filter(None, [double])]
    remarks: list[str] = []
    if rate is not None:
        # A recogniser that understood the transcript vouches for it; without one, the rate is all there is.
        (remarks if one.cer is not None and one.cer <= limits.max_cer else against).append(rate)
    if one.cer is not None and limits.doubtful_cer < one.cer <= limits.max_cer:
        remarks.append(f"doubtful transcript: CER {one.cer:.0%}: listen and compare")
    if one.clipped and one.clipped <= limits.max_clipped:
        remarks.append(f"clipped: {one.clipped:.3%} of its samples, which is little")
    if trims:
        remarks.append(f"silence: {trimmed:.2f} s at its ends")
    action = DROP if against else TRIM if trims else KEEP
    return Decision(one, action, (*against, *remarks), start, end)


def _edges(one: Examined, limits: Limits) -> Span:
    """Where a recording begins and ends after trimming, in seconds; the whole of it where that is not worth it."""
    if one.speech is None:
        return 0.0, one.seconds
    start, end = max(0.0, one.speech[0] - limits.margin), min(one.seconds, one.speech[1] + limits.margin)
    return (start, end) if start + one.seconds - end >= limits.least_trimmed else (0.0, one.seconds)


def _faults(one: Examined, limits: Limits, seconds: float) -> Iterator[str]:
    if not re.search(r"\w", one.recording.text):
        yield "no transcript: nothing is written down"
    if seconds < limits.min_seconds:
        yield f"too short: {seconds:.2f} s"
    if seconds > limits.max_seconds:
        yield f"too long: {seconds:.1f} s: cut it up with 'vits data prepare'"
    if one.clipped > limits.max_clipped:
        yield f"clipped: {one.clipped:.2%} of its samples"
    if one.snr is not None and one.snr < limits.min_snr:
        yield f"noise: {one.snr:.0f} dB below the speech"
    if one.naturalness is not None and one.naturalness < limits.min_naturalness:
        yield f"poor sound: DNSMOS {one.naturalness:.2f}"
    if one.cer is not None and one.cer > limits.max_cer:
        yield f"transcript: CER {one.cer:.0%} against what was heard"
    if one.unknown:
        yield f"characters: nobody would speak {' '.join(one.unknown)}: write it in letters"


def _unusual_rates(examined: Sequence[Examined]) -> Iterator[tuple[int, str]]:
    """Transcripts that are too long or too short for their sound, by speaker."""
    groups: dict[str | None, list[int]] = {}
    for number, one in enumerate(examined):
        if one.speaking_rate > 0:
            groups.setdefault(one.recording.speaker, []).append(number)
    for numbers in groups.values():
        rates = [examined[number].speaking_rate for number in numbers]
        middle = statistics.median(rates)
        for number, rate, score in zip(
            numbers, rates, modified_z_scores(list(map(math.log, rates))), strict=True
        ):
            if abs(score) > OUTLIER_SCORE:
                yield number, f"speaking rate: {rate:.1f} letters a second where {middle:.1f} are usual"


def _doubles(examined: Sequence[Examined], limits: Limits) -> Iterator[tuple[int, str]]:
    """Recordings whose sound came before, if at another level, with other silence, or through another codec."""
    rank = {number: place for place, number in enumerate(_by_worth(examined, limits))}
    lengths = {n: one.speech[1] - one.speech[0] for n, one in enumerate(examined) if one.speech is not None}
    order = sorted(lengths, key=lengths.__getitem__)
    doubled: set[int] = set()
    for place, number in enumerate(order):
        for other in order[place + 1 :]:
            if lengths[other] - lengths[number] > _SAME_LENGTH_SECONDS:
                break
            worse, better = (number, other) if rank[number] > rank[other] else (other, number)
            if worse not in doubled and _same(examined[number], examined[other]):
                doubled.add(worse)
                yield worse, f"duplicate: the same sound as {examined[better].recording.id}"


def _by_worth(examined: Sequence[Examined], limits: Limits) -> list[int]:
    """Which of two equal ones to keep: one that has no fault, as otherwise neither would stay; then the one that was
    better understood, then a held-out one, then the first."""

    def faulty(one: Examined) -> bool:
        start, end = _edges(one, limits)
        return any(_faults(one, limits, end - start))

    return sorted(
        range(len(examined)),
        key=lambda n: (
            faulty(examined[n]),
            examined[n].cer if examined[n].cer is not None else 0.0,
            examined[n].split == "train",
            n,
        ),
    )


def _same(one: Examined, other: Examined) -> bool:
    if one.sound == other.sound:
        return True
    if float(np.mean(np.abs(one.profile - other.profile))) > _SAME_PROFILE_DB:
        return False
    from scipy.signal import correlate  # slow to import, and rarely needed

    try:
        first, second = (_speech_of(examined) for examined in (one, other))
    except UserError:
        return False  # it was readable; whoever copies it will name it
    energy = math.sqrt(float(np.sum(first**2)) * float(np.sum(second**2)))
    return energy > 0 and float(np.max(correlate(first, second, method="fft"))) / energy >= _SAME_CORRELATION


def _speech_of(one: Examined) -> Samples:
    audio = one.recording.audio(EAR_RATE)
    start, end = one.speech or (0.0, one.seconds)
    return audio.samples[round(start * EAR_RATE) : round(end * EAR_RATE)]


def counts(decisions: Iterable[Decision]) -> Mapping[str, Mapping[str, int]]:
    """For each kind of reason, how many recordings of each action have it, the most frequent first."""
    found: dict[str, dict[str, int]] = {}
    for decision in decisions:
        for kind in dict.fromkeys(reason.partition(":")[0] for reason in decision.reasons):
            row = found.setdefault(kind, {KEEP: 0, TRIM: 0, DROP: 0})
            row[decision.action] += 1
    return dict(sorted(found.items(), key=lambda item: -sum(item[1].values())))
