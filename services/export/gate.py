"""The quality gate: a variant is published only where it is measured to sound like fp32, and to be faster.

Every variant speaks the same held-out sentences as fp32, with the same noise. Sentence by sentence, judges score
both, and the differences are compared with `Limits`. Two judges of naturalness, because one alone passes bad
models: decoders that DNSMOS finds equal lose a whole point of DistillMOS.

A reference that nobody understands (random weights, a broken model, a weak recogniser) cannot be compared with: the
gate then says that it judged nothing, and that only speed was measured.

Shapes: S samples.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from services.evaluation import Difference, Score, compare, log_spectral_distance
from services.evaluation.statistics import estimate_ratio
from services.evaluation.transcripts import Errors
from services.export.progress import Progress, Step
from services.export.sentences import GATE_WORDS, Line, shared_out, words
from shared.cache import CACHE_REMEDY
from shared.errors import MissingExtraError, UserError
from shared.folders import writing
from shared.voice import Utterance, Voice, VoiceSpec
from shared.voice.engine import computed_by
from shared.voice.selection import PORTABLE

#: The judges without which the gate cannot decide, by the names that `services.evaluation.Judges` gives them.
NEEDED_JUDGES = ("recogniser", "dnsmos", "distillmos")

#: The noise of the gate; another than that of calibration.
SEED = 20_000

#: A reference with more word errors than this is not speech, and what it is compared with cannot be judged.
INTELLIGIBLE_WER = 0.5

#: Sentences of the reference after which that is told: an untrained model is not worth judging further.
FIRST_SENTENCES = 8

#: Sentences that are timed, and how often each.
TIMED_SENTENCES, REPEATS = 16, 3

#: Sentences that the report lets one hear.
HEARD = 4


@dataclass(frozen=True)
class Limits:
    """What a variant may lose. Means are compared with these; the report shows each mean's 95 % interval."""

    dnsmos_drop: float = 0.05
    distillmos_drop: float = 0.10
    wer_rise: float = 0.01
    """Of the upper end of the paired-bootstrap 95 % interval, not of the mean."""
    words: int = GATE_WORDS
    log_spectral_distance: float = 3.0
    """dB, the mean over sentences of `services.evaluation.log_spectral_distance`: see docs/quantization.md."""


class Judging(Protocol):
    """What the gate asks of `services.evaluation.Judges`."""

    @property
    def missing(self) -> Mapping[str, str]:
        """Judges that cannot score, and why."""
        ...

    @property
    def identity(self) -> Mapping[str, str]:
        """What scores depend on beside clip and text."""
        ...

    def score(self, samples: NDArray[np.float32], sampling_rate: int, text: str | None = None) -> Score:
        """Score one clip."""
        ...


@dataclass(frozen=True)
class Candidate:
    """A variant that wants to be published.

    Attributes:
        variant: Its name in ``voice.json``.
        replaces: The variant that it must be faster than.
    """

    variant: str
    replaces: str = PORTABLE


@dataclass(frozen=True)
class Measure:
    """One thing that the gate measured.

    Attributes:
        name: What.
        value: The candidate's mean difference from fp32, or its figure.
        low: Lower end of its 95 % interval, where it has one.
        high: Upper end.
        limit: What it was compared with; None where it is for information.
        passed: Whether that was met.
        complaint: What to say where it was not.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    limit: float | None
    passed: bool
    complaint: str = ""


@dataclass(frozen=True)
class Verdict:
    """What came of one candidate.

    Attributes:
        variant: Its name.
        replaces: The variant that it was to be faster than.
        judged: Whether quality could be judged at all.
        measures: All of them, passed or not.
    """

    variant: str
    replaces: str
    judged: bool
    measures: tuple[Measure, ...]

    @property
    def passed(self) -> bool:
        """Judged, and nothing failed."""
        return self.judged and all(measure.passed for measure in self.measures)

    @property
    def complaints(self) -> list[str]:
        """Which measures failed, and by how much."""
        return [measure.complaint for measure in self.measures if not measure.passed]

    def explain(self) -> str:
        """One line for people."""
        if self.complaints:
            what = "failed the quality gate" if self.judged else "is left out, quality unjudged"
            return f"{self.variant} {what}: {'; '.join(self.complaints)}"
        what = "passed the quality gate" if self.judged else "stays ungated, for quality was not judged"
        figures = (f"{measure.name} {measure.value:.3f}" for measure in self.measures)
        return f"{self.variant} {what}: {', '.join(figures)}"


@dataclass(frozen=True)
class GateReport:
    """What the gate found.

    Attributes:
        verdicts: One a candidate.
        why_not_judged: Empty where quality was judged; else why not.
        sentences: How many were scored.
        words: Words in them, as the error rate counts them.
        limits: What was allowed.
        reference: fp32's own figures: ``dnsmos``, ``distillmos``, ``wer``.
        milliseconds: Time to speak the timed sentences, by variant: the sum of each sentence's fastest.
        about: How it came about: judges, engines, processor, threads, sentences, speakers, day.
        heard: What the page lets one hear.
    """

    verdicts: tuple[Verdict, ...]
    why_not_judged: str
    sentences: int
    words: int
    limits: Limits
    reference: Mapping[str, float]
    milliseconds: Mapping[str, float]
    about: Mapping[str, Any] = field(default_factory=dict)
    heard: Sequence[Heard] = field(default=(), repr=False)

    def verdict(self, variant: str) -> Verdict:
        """The verdict on a variant."""
        return next(verdict for verdict in self.verdicts if verdict.variant == variant)

    def to_json(self) -> dict[str, Any]:
        """For ``report.json``."""
        return {
            "judged": not self.why_not_judged,
            "why_not_judged": self.why_not_judged or None,
            "sentences": self.sentences,
            "words": self.words,
            "seed": SEED,
            "about": dict(self.about),
            "limits": asdict(self.limits),
            "reference": {"variant": PORTABLE, **self.reference},
            "milliseconds": dict(self.milliseconds),
            "variants": {
                verdict.variant: {
                    "passed": verdict.passed,
                    "replaces": verdict.replaces,
                    "measures": [asdict(measure) for measure in verdict.measures],
                }
                for verdict in self.verdicts
            },
        }


@dataclass(frozen=True)
class Heard:
    """A sentence that the report lets one hear, as each variant says it."""

    text: str
    sampling_rate: int
    samples: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Row:
    """One sentence of one variant, judged."""

    score: Score
    distance: float


def gate(
    folder: Path,
    candidates: Sequence[Candidate],
    *,
    sentences: Sequence[str],
    source: str = "",
    judges: Judging,
    cache: Path,
    threads: int | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> GateReport:
    """Measure variants of a voice against its fp32.

    Args:
        folder: The voice folder; ``voice.json`` lists the candidates already.
        candidates: Which to measure.
        sentences: What they say, the speakers in turn: held out from calibration, one segment each.
        source: Where the sentences are from, for the report.
        judges: Who scores.
        cache: A folder that may be kept from run to run: a sentence once scored is not scored again.
        threads: Threads of the engines; all that this process may use where not given.
        limits: What is allowed.
        progress: Is told of each step.

    Raises:
        MissingExtraError: A judge without which nothing can be decided is not installed.
        UserError: There are too few words, or the cache cannot be written.
    """
    limits, progress = limits or Limits(), progress or Progress()
    require_judges(judges)
    spec = VoiceSpec.read(folder)
    require_words(sentences, spec.language, least=limits.words)
    lines = shared_out(sentences, spec.num_speakers)
    names = list(dict.fromkeys([PORTABLE, *(name for c in candidates for name in (c.replaces, c.variant))]))
    voices = {name: Voice.open(folder, variant=name, threads=threads) for name in names}
    try:
        scorer = _Scorer(folder, voices, judges, cache)
        rows: dict[str, list[Row]] = {}
        judged = [PORTABLE, *(candidate.variant for candidate in candidates)]
        with progress.bar("Judging", len(judged) * len(lines)) as step:
            rows[PORTABLE] = scorer.rows(PORTABLE, lines[:FIRST_SENTENCES], step)
            why_not = not_understood(rows[PORTABLE])
            if not why_not:
                rows[PORTABLE] += scorer.rows(PORTABLE, lines[FIRST_SENTENCES:], step)
                why_not = not_understood(rows[PORTABLE])
            for name in [] if why_not else judged[1:]:
                rows[name] = scorer.rows(name, lines, step)
        if why_not:
            progress(why_not)
        times = time_variants(voices, lines[:TIMED_SENTENCES], progress)
        speed = {name: 1000 * sum(values) for name, values in times.items()}
        reference = [row.score for row in rows[PORTABLE]]
        verdicts = []
        for candidate in candidates:
            faster = speed_measure(candidate, times)
            quality = [] if why_not else quality_measures(reference, rows[candidate.variant], limits)
            verdicts.append(Verdict(candidate.variant, candidate.replaces, not why_not, (*quality, faster)))
            progress(verdicts[-1].explain())
        heard = scorer.hear(lines[:HEARD])
        figures = reference_figures(reference)
    finally:
        for voice in voices.values():
            voice.close()
    return GateReport(
        tuple(verdicts),
        why_not,
        len(reference),
        sum(score.words.total for score in reference if score.words),
        limits,
        figures,
        speed,
        {
            "date": datetime.now(UTC).date().isoformat(),
            "sentences": source,
            "speakers": f"{len({line.speaker for line in lines[: len(reference)]})} of {spec.num_speakers}",
            "judges": dict(judges.identity),
            "threads": threads or len(os.sched_getaffinity(0)),
            "computed_by": computed_by(),
        },
        heard,
    )


def speaks(
    folder: Path, *, sentences: Sequence[str], judges: Judging, cache: Path, threads: int | None = None
) -> bool:
    """Whether a voice can be understood, by the first sentences of its reference; what is scored is kept.

    Args:
        folder: The voice folder.
        sentences: Those that `gate` will be given.
        judges: Who scores.
        cache: As for `gate`.
        threads: As for `gate`.
    """
    with Voice.open(folder, threads=threads) as voice:
        scorer = _Scorer(folder, {PORTABLE: voice}, judges, cache)
        lines = shared_out(sentences[:FIRST_SENTENCES], voice.spec.num_speakers)
        return not not_understood(scorer.rows(PORTABLE, lines, lambda about: None))


def not_understood(rows: Sequence[Row]) -> str:
    """Why nothing can be judged beside such a reference; nothing where it can be understood."""
    rate = reference_figures([row.score for row in rows])["wer"]
    if rate <= INTELLIGIBLE_WER:
        return ""
    return (
        f"{PORTABLE} itself cannot be understood (word error rate {rate:.0%}): an untrained or broken model, sentences "
        "of another language, or a language in which the recogniser is weak, as Whisper base is in many: then give a "
        "better one with --recogniser. Only speed was measured"
    )


def without_judges(judges: Judging) -> str:
    """Why the gate cannot run, judge by judge; nothing where it can."""
    reasons = [f"  - {judges.missing[name]}" for name in NEEDED_JUDGES if name in judges.missing]
    return "\n".join(["The quality gate cannot run without its judges:", *reasons]) if reasons else ""


def require_judges(judges: Judging) -> None:
    """Refuse to go on where the gate cannot run.

    Raises:
        MissingExtraError: A judge without which nothing can be decided is not installed.
    """
    if reason := without_judges(judges):
        raise MissingExtraError(f"{reason}\nWith --no-gate the voice is published and marked as ungated.")


def require_words(sentences: Sequence[str], language: str, *, least: int = GATE_WORDS) -> None:
    """Refuse to judge by too few words.

    Args:
        sentences: In the pieces that a voice speaks at once.
        language: Of the voice.
        least: Words that an error rate takes.

    Raises:
        UserError: They have fewer.
    """
    count = words(sentences, language)
    if count < least:
        raise UserError(
            f"The gate needs at least {least} words to tell an error rate, and was given {count} (what "
            "several lines have in common counts once). Add sentences, one a line."
        )


def time_variants(
    voices: Mapping[str, Voice], lines: Sequence[Line], progress: Progress
) -> dict[str, list[float]]:
    """Seconds that each variant takes for each sentence: the fastest of some, the variants taking turns."""
    for voice in voices.values():
        for line in lines:
            voice.synthesize(line.text, speaker=line.speaker, seed=SEED)
    best = {name: [float("inf")] * len(lines) for name in voices}
    with progress.bar("Timing the variants in turn", REPEATS * len(lines)) as step:
        for _ in range(REPEATS):
            for index, line in enumerate(lines):
                for name, voice in voices.items():
                    begin = time.perf_counter()
                    voice.synthesize(line.text, speaker=line.speaker, seed=SEED)
                    best[name][index] = min(best[name][index], time.perf_counter() - begin)
                step("")
    return best


def speed_measure(candidate: Candidate, times: Mapping[str, Sequence[float]]) -> Measure:
    """How many times faster a candidate is than what it replaces: the ratio of their times for all sentences.

    The lower end of its 95 % interval counts: of two variants that are the same one always measures a little faster.
    """
    found = estimate_ratio(times[candidate.replaces], times[candidate.variant])
    bound = found.mean if found.low is None else found.low
    return Measure(
        name=f"speed against {candidate.replaces}",
        value=found.mean,
        low=found.low,
        high=found.high,
        limit=1.0,
        passed=bound > 1,
        complaint=f"it may be no faster than {candidate.replaces}, which it would replace ({bound:.2f} times, "
        f"95 % bound; mean {found.mean:.2f})",
    )


def reference_figures(scores: Sequence[Score]) -> dict[str, float]:
    """fp32's own figures."""
    errors = [score.words for score in scores if score.words is not None]
    return {
        "dnsmos": statistics.fmean(score.dnsmos or 0.0 for score in scores),
        "distillmos": statistics.fmean(score.distillmos or 0.0 for score in scores),
        "wer": sum(error.edits for error in errors) / max(1, sum(error.total for error in errors)),
    }


def quality_measures(reference: Sequence[Score], rows: Sequence[Row], limits: Limits) -> list[Measure]:
    """Compare a candidate's scores with fp32's, sentence by sentence."""
    found = compare(reference, [row.score for row in rows])
    distances = [row.distance for row in rows]
    distance = statistics.fmean(distances)
    return [
        _drop("DNSMOS", found["dnsmos"], limits.dnsmos_drop),
        _drop("DistillMOS", found["distillmos"], limits.distillmos_drop),
        _rise(found["wer"], limits.wer_rise),
        Measure(
            name="log-spectral distance (dB)",
            value=distance,
            low=None,
            high=None,
            limit=limits.log_spectral_distance,
            passed=distance <= limits.log_spectral_distance,
            complaint=f"its log-spectral distance from fp32 is {distance:.2f} dB, "
            f"{distance - limits.log_spectral_distance:.2f} more than the {limits.log_spectral_distance:.2f} allowed",
        ),
    ]


def _drop(name: str, found: Difference, limit: float) -> Measure:
    return Measure(
        name=f"{name} change",
        value=found.mean,
        low=found.low,
        high=found.high,
        limit=-limit,
        passed=-found.mean <= limit,
        complaint=f"{name} drops by {-found.mean:.3f}, {-found.mean - limit:.3f} more than the {limit:.2f} allowed",
    )


def _rise(found: Difference, limit: float) -> Measure:
    bound = found.mean if found.high is None else found.high
    return Measure(
        name="word error rate change",
        value=found.mean,
        low=found.low,
        high=found.high,
        limit=limit,
        passed=bound <= limit,
        complaint=f"the word error rate may be {100 * bound:.2f} points higher (95 % bound; mean "
        f"{100 * found.mean:+.2f}), {100 * (bound - limit):.2f} more than the {100 * limit:.0f} allowed",
    )


class _Scorer:
    """Speaks and scores, and remembers what was scored."""

    def __init__(self, folder: Path, voices: Mapping[str, Voice], judges: Judging, cache: Path) -> None:
        self.folder, self.voices, self.judges, self.cache = folder, voices, judges, cache

    def rows(self, variant: str, lines: Sequence[Line], step: Step) -> list[Row]:
        """Score a variant on sentences, from the cache where they are in it."""
        path = self.cache / f"gate-{self.fingerprint(variant)}.jsonl"
        with writing(path.parent, CACHE_REMEDY):
            path.parent.mkdir(parents=True, exist_ok=True)
        known = _read_rows(path)
        rows = []
        for line in lines:
            if line not in known:
                known[line] = self.judge(variant, line)
                with writing(path.parent, CACHE_REMEDY), path.open("a", encoding="utf-8") as file:
                    # On a line of its own, even after one that was cut off.
                    file.write("\n" + _row_to_json(line, known[line]))
            rows.append(known[line])
            step(variant)
        return rows

    def fingerprint(self, variant: str) -> str:
        """Of all that a row depends on: the graphs and how they are run, how the voice speaks, and who hears it."""
        around = [SEED, dict(self.judges.identity), computed_by()]
        digest = hashlib.sha256(json.dumps(around, sort_keys=True).encode())
        for name in dict.fromkeys([PORTABLE, variant]):
            entry = self.voices[name].spec.variant(name)
            digest.update(entry.model_dump_json(exclude={"gate"}).encode())
            for graph in (entry.encoder, entry.flow, entry.decoder):
                digest.update((self.folder / graph).read_bytes())
        spec = self.voices[PORTABLE].spec
        speaking = {"front_end", "defaults", "decoder", "token_buckets", "frame_multiple"}
        digest.update(spec.model_dump_json(include=speaking).encode())
        return digest.hexdigest()[:16]

    def judge(self, variant: str, line: Line) -> Row:
        """Score one sentence."""
        reference = _prepare(self.voices[PORTABLE], line)
        expected = _decode(self.voices[PORTABLE], reference)
        samples = expected
        if variant != PORTABLE:
            samples = _decode(self.voices[variant], self.in_step(variant, line, reference))
        rate = self.voices[PORTABLE].sampling_rate
        score = self.judges.score(samples, rate, line.text)
        return Row(score, log_spectral_distance(expected, samples, rate))

    def in_step(self, variant: str, line: Line, reference: Utterance) -> Utterance:
        """A variant's own latents; fp32's where a rounding difference gave a token another duration."""
        own = _prepare(self.voices[variant], line)
        if np.array_equal(own.durations, reference.durations):
            return own
        return replace(reference, tokens=own.tokens)

    def hear(self, lines: Sequence[Line]) -> list[Heard]:
        """Every variant's samples of some sentences."""
        rate = self.voices[PORTABLE].sampling_rate
        return [
            Heard(
                line.text,
                rate,
                {name: _decode(voice, _prepare(voice, line)) for name, voice in self.voices.items()},
            )
            for line in lines
        ]


def _prepare(voice: Voice, line: Line) -> Utterance:
    return voice.prepare(line.text, speaker=line.speaker, seed=SEED)


def _decode(voice: Voice, utterance: Utterance) -> NDArray[np.float32]:
    return np.concatenate(list(voice.decode(utterance)))


def _row_to_json(line: Line, row: Row) -> str:
    score = row.score
    return json.dumps(
        {
            "sentence": line.text,
            "speaker": line.speaker,
            "seconds": score.seconds,
            "dnsmos": score.dnsmos,
            "distillmos": score.distillmos,
            "transcript": score.transcript,
            "words": asdict(score.words) if score.words else None,
            "distance": row.distance,
        },
        ensure_ascii=False,
    )


def _read_rows(path: Path) -> dict[Line, Row]:
    """What was scored before; a last line that was cut off is left out."""
    rows: dict[Line, Row] = {}
    if not path.is_file():
        return rows
    # Not splitlines(), which would part texts at other characters too.
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            values = json.loads(line)
        except ValueError:
            continue
        errors = Errors(**values["words"]) if values["words"] else None
        score = Score(
            seconds=values["seconds"],
            dnsmos=values["dnsmos"],
            distillmos=values["distillmos"],
            transcript=values["transcript"],
            words=errors,
        )
        rows[Line(values["sentence"], values["speaker"])] = Row(score, values["distance"])
    return rows
