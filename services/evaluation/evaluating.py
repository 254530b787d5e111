"""Scoring a system on sentences, with the recordings' own row beside it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from services.evaluation import statistics
from services.evaluation.judges import JUDGE_RATE, Judges, Score
from services.evaluation.likeness import likeness, unit
from services.evaluation.measures import Aligned
from services.evaluation.statistics import Difference, Estimate
from services.evaluation.systems import Sentence, Spoken, System
from shared.audio import Audio
from shared.errors import DataError, TextError

#: Every measure, in the order of reports: its title, its unit, whether more is better (None: neither).
MEASURES: dict[str, tuple[str, str, bool | None]] = {
    "wer": ("WER", "%", False),
    "cer": ("CER", "%", False),
    "dnsmos": ("DNSMOS", "", True),
    "distillmos": ("DistillMOS", "", True),
    "likeness": ("speaker likeness", "", True),
    "mel_distance": ("mel distance", "", False),
    "log_spectral_distance": ("log-spectral distance", "dB", False),
    "f0_error": ("F0 error", "cents", False),
    "real_time_factor": ("real-time factor", "", False),
}
#: Which judge a measure needs.
JUDGE_OF = {
    "wer": "recogniser",
    "cer": "recogniser",
    "dnsmos": "dnsmos",
    "distillmos": "distillmos",
    "likeness": "likeness",
}

#: Told what is done now, and of how much.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Clip:
    """One sentence, said by the system and perhaps recorded, with everything measured of it.

    Attributes:
        sentence: What was to be said.
        spoken: What the system said.
        score: What the judges said of that.
        recording: A person's recording.
        recording_score: What the judges said of that.
        aligned: What lies between the two.
    """

    sentence: Sentence
    spoken: Spoken
    score: Score
    recording: Audio | None = None
    recording_score: Score | None = None
    aligned: Aligned | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A system, scored.

    Attributes:
        name: The system's.
        kind: ``voice``, ``model`` or ``recordings``.
        language: What is spoken; None where nobody said.
        rows: By measure, for ``system`` and, where sentences were recorded, for ``recordings``.
        differences: System minus recordings, paired by sentence, of the measures that both have.
        missing: Judges that could not score: why, and what to do.
        not_measured: Measures that have no figure, and why.
        left_out: Sentences that could not be said, and why.
        clips: Every sentence.
        words: Words of the texts, as they are counted for the WER; None without a recogniser.
    """

    name: str
    kind: str
    language: str | None
    rows: dict[str, dict[str, Estimate]]
    differences: dict[str, Difference]
    missing: dict[str, str]
    not_measured: dict[str, str]
    left_out: dict[str, str]
    clips: list[Clip] = field(repr=False)
    words: int | None


def evaluate(
    system: System, sentences: Sequence[Sentence], judges: Judges, *, progress: Progress | None = None
) -> Evaluation:
    """Let a system say sentences, and score everything that can be scored.

    Args:
        system: What is scored.
        sentences: What it says.
        judges: Who scores it.
        progress: Told after every step.

    Raises:
        DataError: None of the sentences could be said.
        UserError: A recording cannot be used.
        EngineError: A computation failed.
    """
    told = progress or (lambda what, done, total: None)
    told("loading the judges", 0, len(sentences))
    judges.available()
    spoken, left_out = _speak(system, sentences, told)
    clips = []
    for number, (sentence, speech) in enumerate(spoken):
        clips.append(_clip(sentence, speech, judges))
        told("scoring", number + 1, len(spoken))
    rows = {"system": _row(clips, _scores(clips), own=False)}
    recorded = [clip for clip in clips if clip.recording_score is not None]
    if recorded:
        rows["recordings"] = _row(recorded, _scores(recorded, recordings=True), own=True)
    words = [clip.score.words.total for clip in clips if clip.score.words]
    return Evaluation(
        name=system.name,
        kind=system.kind,
        language=judges.language,
        rows=rows,
        differences=_differences(recorded),
        missing=dict(judges.missing),
        not_measured=_why_not(rows["system"], clips, judges),
        left_out=left_out,
        clips=clips,
        words=sum(words) if words else None,
    )


def _speak(
    system: System, sentences: Sequence[Sentence], told: Progress
) -> tuple[list[tuple[Sentence, Spoken]], dict[str, str]]:
    """Everything that the system can say; and what it cannot, and why.

    Raises:
        DataError: It can say nothing.
    """
    spoken: list[tuple[Sentence, Spoken]] = []
    left_out: dict[str, str] = {}
    warm = system.kind == "recordings"
    for number, sentence in enumerate(sentences):
        try:
            if not warm:  # the first computation of all is slower than any other
                system.say(sentence)
                warm = True
            spoken.append((sentence, system.say(sentence)))
        except TextError as error:
            left_out[sentence.id] = str(error)
        told("speaking", number + 1, len(sentences))
    if not spoken:
        raise DataError(
            f"{system.name} could say none of {len(sentences)} sentences",
            [f"{name}: {reason}" for name, reason in list(left_out.items())[:10]] or ["there were none"],
        )
    return spoken, left_out


def _clip(sentence: Sentence, speech: Spoken, judges: Judges) -> Clip:
    score = judges.score(speech.audio.samples, speech.audio.sampling_rate, sentence.text)
    if sentence.recording is None:
        return Clip(sentence, speech, score)
    recording = sentence.recording()
    said, recorded = (audio.resampled(JUDGE_RATE).samples for audio in (speech.audio, recording))
    return Clip(
        sentence,
        speech,
        score,
        recording,
        judges.score(recording.samples, recording.sampling_rate, sentence.text),
        Aligned(said, recorded, JUDGE_RATE),
    )


def _scores(clips: Iterable[Clip], *, recordings: bool = False) -> list[Score]:
    return [clip.recording_score if recordings and clip.recording_score else clip.score for clip in clips]


def _row(clips: Sequence[Clip], scores: Sequence[Score], *, own: bool) -> dict[str, Estimate]:
    """Every measure that there are figures for; ``own`` where the scores are the recordings' own."""
    row: dict[str, Estimate] = {}
    for name, errors in (
        ("wer", [score.words for score in scores if score.words]),
        ("cer", [score.characters for score in scores if score.characters]),
    ):
        if errors:
            row[name] = statistics.estimate_rate(errors)
    values: dict[str, list[float | None]] = {
        "dnsmos": [score.dnsmos for score in scores],
        "distillmos": [score.distillmos for score in scores],
        "likeness": _likenesses(clips, scores, own=own),
    }
    if not own:
        aligned = [clip.aligned for clip in clips if clip.aligned]
        values["mel_distance"] = [one.mel_distance for one in aligned]
        values["log_spectral_distance"] = [one.log_spectral_distance for one in aligned]
        values["f0_error"] = [one.f0_error_cents for one in aligned]
    for name, figures in values.items():
        known = [value for value in figures if value is not None]
        if known:
            row[name] = statistics.estimate(known)
    timed = [(clip.spoken.seconds, clip.score.seconds) for clip in clips if clip.spoken.seconds is not None]
    if timed and not own:
        row["real_time_factor"] = statistics.estimate_ratio(*zip(*timed, strict=True))
    return row


def _likenesses(clips: Sequence[Clip], scores: Sequence[Score], *, own: bool) -> list[float | None]:
    """Of each score, the cosine with the mean of its speaker's recordings; a recording's own is left out."""
    recorded: dict[str | None, list[NDArray[np.float32]]] = defaultdict(list)
    for clip in clips:
        if clip.recording_score and clip.recording_score.embedding is not None:
            recorded[clip.sentence.speaker].append(clip.recording_score.embedding)
    found: list[float | None] = []
    for clip, score in zip(clips, scores, strict=True):
        others = recorded[clip.sentence.speaker]
        if own:
            others = [other for other in others if other is not score.embedding]
        if score.embedding is None or not others:
            found.append(None)
        else:
            found.append(likeness(score.embedding, unit(np.mean(others, axis=0))))
    return found


def _differences(recorded: Sequence[Clip]) -> dict[str, Difference]:
    """System minus recordings, of what judges hear in one clip alone."""
    if not recorded:
        return {}
    return statistics.compare(_scores(recorded, recordings=True), _scores(recorded))


def _why_not(row: Mapping[str, Estimate], clips: Sequence[Clip], judges: Judges) -> dict[str, str]:
    """Why each measure without a figure has none."""
    reasons = {}
    for name in MEASURES:
        if name in row:
            continue
        judge = JUDGE_OF.get(name)
        if judge is not None and judge in judges.missing:
            reasons[name] = judges.missing[judge]
        elif judge is not None and judge not in judges.available():
            reasons[name] = f"the judge {judge!r} was not asked"
        elif name in {"wer", "cer"}:
            reasons[name] = "there are no texts to compare with"
        elif name == "real_time_factor":
            reasons[name] = "recordings are read, not computed"
        elif name == "f0_error" and any(clip.aligned for clip in clips):
            reasons[name] = "no frame is voiced in speech and recording alike"
        else:
            reasons[name] = "there are no recordings of these sentences to compare with"
    return reasons
