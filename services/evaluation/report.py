"""What is written of an evaluation: JSON for programs, one HTML file with players for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from services.evaluation.evaluating import MEASURES, Clip, Evaluation
from services.evaluation.judges import JUDGES
from services.evaluation.statistics import RESAMPLES, Difference, Estimate
from services.evaluation.transcripts import NORMALISATION, Errors
from shared.audio import Audio
from shared.pages import sound_uri, template

JSON_FILE, HTML_FILE = "evaluation.json", "evaluation.html"
#: Of so many sentences the page has players, the worst heard first.
PLAYERS = 20
_REMEDY = "pip install 'vits-suite[judges]', or --no-page"


def write_json(result: Evaluation, path: Path, *, about: Mapping[str, Any]) -> None:
    """Write everything but the sound.

    Args:
        result: What was found.
        path: Where.
        about: How it came about: arguments, versions.
    """
    path.write_text(json.dumps(as_json(result, about), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def as_json(result: Evaluation, about: Mapping[str, Any]) -> dict[str, Any]:
    """What `write_json` writes. Error rates are fractions."""
    return {
        "schema_version": 1,
        "system": {"kind": result.kind, "name": result.name, "language": result.language},
        "about": dict(about),
        "sentences": len(result.clips),
        "words": result.words,
        "seconds": sum(clip.score.seconds for clip in result.clips),
        "intervals": f"95 %, percentile bootstrap over sentences, {RESAMPLES} resamples",
        "normalisation": NORMALISATION,
        "judges": {
            name: {"measures": what, "missing": result.missing.get(name)} for name, what in JUDGES.items()
        },
        "rows": {name: {key: asdict(one) for key, one in row.items()} for name, row in result.rows.items()},
        "differences": {name: asdict(one) for name, one in result.differences.items()},
        "not_measured": result.not_measured,
        "left_out": result.left_out,
        "clips": [_clip_as_json(clip) for clip in result.clips],
    }


def _clip_as_json(clip: Clip) -> dict[str, Any]:
    scores = {"system": clip.score, "recording": clip.recording_score}
    return {
        "id": clip.sentence.id,
        "text": clip.sentence.text,
        "speaker": clip.sentence.speaker,
        "unknown": list(clip.spoken.unknown),
        "synthesis_seconds": clip.spoken.seconds,
        **{
            name: {
                "seconds": score.seconds,
                "transcript": score.transcript,
                "words": asdict(score.words) if score.words else None,
                "characters": asdict(score.characters) if score.characters else None,
                "dnsmos": score.dnsmos,
                "distillmos": score.distillmos,
            }
            for name, score in scores.items()
            if score
        },
        "aligned": vars(clip.aligned) if clip.aligned else None,
    }


def write_html(result: Evaluation, path: Path, *, about: Mapping[str, Any], players: int = PLAYERS) -> None:
    """Write one page that needs nothing else.

    Args:
        result: What was found.
        path: Where.
        about: How it came about.
        players: Sentences to be listened to: those with the most word errors, then those with the lowest DistillMOS.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    shown = sorted(result.clips, key=_badness)[:players]
    text = template(Path(__file__).with_name("report.html"), _REMEDY).render(
        result=result,
        about=about,
        measures=MEASURES,
        judges=JUDGES,
        normalisation=NORMALISATION,
        resamples=RESAMPLES,
        seconds=sum(clip.score.seconds for clip in result.clips),
        shown=shown,
        figure=figure,
        change=change,
        rate=_rate,
        player=player,
    )
    path.write_text(text, encoding="utf-8")


def _badness(clip: Clip) -> tuple[float, float]:
    score = clip.score
    return (
        -score.words.rate if score.words else 0.0,
        score.distillmos if score.distillmos is not None else 5.0,
    )


def figure(name: str, one: Estimate | None) -> str:
    """A figure with its interval, in the measure's unit: ``3.21 [3.10, 3.32]``; a dash for none."""
    return "–" if one is None else _with_interval(name, one.mean, one.low, one.high)


def change(name: str, one: Difference) -> str:
    """A difference with its sign and interval."""
    return _with_interval(name, one.mean, one.low, one.high, sign="+")


def _with_interval(name: str, mean: float, low: float | None, high: float | None, *, sign: str = "") -> str:
    unit = MEASURES[name][1]
    scale = 100.0 if unit == "%" else 1.0
    digits = {"%": 1, "dB": 2, "cents": 0}.get(unit, 3)
    ends = [f"{value * scale:{sign}.{digits}f}" for value in (mean, low, high) if value is not None]
    text = ends[0] if len(ends) == 1 else f"{ends[0]} [{ends[1]}, {ends[2]}]"
    return f"{text} {unit}".rstrip()


def _rate(errors: Errors | None) -> str:
    return "–" if errors is None else f"{errors.edits}/{errors.total}"


def player(audio: Audio) -> str:
    """Sound as an address that holds it, as FLAC."""
    return sound_uri(audio.samples, audio.sampling_rate)
