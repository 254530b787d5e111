"""What the gate leaves in a voice: ``report.json``, ``report.html`` with players, and the variants that passed."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.export.gate import GateReport, Heard, Measure, Verdict
from services.export.report import REPORT_PAGE, add_to_report
from shared.pages import sound_uri
from shared.voice import VoiceSpec
from shared.voice.selection import PORTABLE

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .3rem .8rem; text-align: right }
th:first-child, td:first-child { text-align: left } tr { border-bottom: 1px solid #ddd }
.passed { color: #0a6b2d } .failed { color: #a40000 } .unjudged { color: #8a5a00 }
audio { width: 15rem; vertical-align: middle }
p.note { color: #555 }
"""


def settle(folder: Path, report: GateReport, *, title: str) -> VoiceSpec:
    """Leave in a voice folder the variants that passed, marked so, and the report; the others are taken out.

    What could not be judged stays ``ungated``, unless it was measured to be no faster than what it would replace.

    Args:
        folder: The voice folder.
        report: What the gate found.
        title: Of the page.

    Returns:
        What ``voice.json`` says now; ``recommended`` is in the order of measured speed.
    """
    spec = VoiceSpec.read(folder)
    variants = dict(spec.variants)
    for verdict in report.verdicts:
        if verdict.passed:
            variants[verdict.variant] = variants[verdict.variant].model_copy(update={"gate": "passed"})
        elif verdict.complaints:
            del variants[verdict.variant]
    by_speed = sorted(
        (name for name in variants if name in report.milliseconds), key=report.milliseconds.__getitem__
    )
    others = [name for name in spec.recommended if name in variants and name not in by_speed]
    spec = spec.model_copy(update={"variants": variants, "recommended": [*others, *by_speed]})
    for path in _files_of_failed(folder, report, spec):
        path.unlink(missing_ok=True)
    spec.write(folder)
    add_to_report(folder, {"gate": report.to_json()})
    write_page(folder, report, title=title)
    return spec


def _files_of_failed(folder: Path, report: GateReport, spec: VoiceSpec) -> list[Path]:
    """Graphs that only failed variants read."""
    before = VoiceSpec.read(folder).variants
    failed = [before[verdict.variant] for verdict in report.verdicts if verdict.variant not in spec.variants]
    kept = {
        path
        for variant in spec.variants.values()
        for path in (variant.encoder, variant.flow, variant.decoder)
    }
    read = {path for variant in failed for path in (variant.encoder, variant.flow, variant.decoder)}
    return [folder / path for path in sorted(read - kept)]


def write_page(folder: Path, report: GateReport, *, title: str) -> None:
    """Write ``report.html`` into a voice folder."""
    parts = [
        "<!doctype html>",
        f'<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>',
        f"<h1>{escape(title)}</h1>",
        _summary(report),
        *(_verdict(verdict) for verdict in report.verdicts),
        _speeds(report),
        _about(report),
        _players(report.heard),
        "</html>",
    ]
    (folder / REPORT_PAGE).write_text("\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def _summary(report: GateReport) -> str:
    if report.why_not_judged:
        return f'<p class="unjudged">Quality was not judged: {escape(report.why_not_judged)}.</p>'
    figures = report.reference
    return (
        f"<p>{report.sentences} held-out sentences of {report.words} words, spoken by every variant with the noise "
        f"of {PORTABLE}, which scores DNSMOS {figures['dnsmos']:.3f}, DistillMOS {figures['distillmos']:.3f} and a "
        f"word error rate of {figures['wer']:.1%}. Differences are a variant's minus {PORTABLE}'s, with the 95 % "
        "interval of a paired bootstrap over sentences. Drops in naturalness are held to their means, the word error "
        "rate to the upper end of its interval.</p>"
    )


def _verdict(verdict: Verdict) -> str:
    state = "passed" if verdict.passed else "failed" if verdict.complaints else "unjudged"
    rows = "".join(_row(measure) for measure in verdict.measures)
    return (
        f"<h2>{escape(verdict.variant)}</h2><p class={state}>{escape(verdict.explain())}</p>"
        "<table><tr><th>measure</th><th>value</th><th>interval</th><th>limit</th><th></th></tr>"
        f"{rows}</table>"
    )


def _row(measure: Measure) -> str:
    interval = (
        "" if measure.low is None or measure.high is None else f"{measure.low:+.3f} to {measure.high:+.3f}"
    )
    limit = "" if measure.limit is None else f"{measure.limit:+.3f}"
    state = "passed" if measure.passed else "failed"
    return (
        f"<tr><td>{escape(measure.name)}</td><td>{measure.value:+.3f}</td><td>{interval}</td><td>{limit}</td>"
        f"<td class={state}>{state}</td></tr>"
    )


def _speeds(report: GateReport) -> str:
    base = report.milliseconds[PORTABLE]
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{value:.0f} ms</td><td>{base / value:.2f}</td></tr>"
        for name, value in report.milliseconds.items()
    )
    return (
        "<h2>Speed here</h2><table><tr><th>variant</th><th>time</th><th>times as fast as "
        f"{PORTABLE}</th></tr>{rows}</table><p class=note>From text to samples, the fastest of several turns.</p>"
    )


def _about(report: GateReport) -> str:
    """How it came about."""
    if not report.about:
        return ""
    about = {key: value for key, value in report.about.items() if key not in ("judges", "computed_by")}
    engines = {key: text for key, text in report.about["computed_by"].items() if key != "cpu_features"}
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>"
        for name, value in {**about, **engines, **report.about["judges"]}.items()
    )
    return f"<h2>How it was judged</h2><table>{rows}</table>"


def _players(heard: Sequence[Heard]) -> str:
    if not heard:
        return ""
    names = list(heard[0].samples)
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = "".join(
        f"<tr><td>{escape(one.text)}</td>"
        + "".join(f"<td>{_player(one.samples[name], one.sampling_rate)}</td>" for name in names)
        + "</tr>"
        for one in heard
    )
    return f"<h2>Listen</h2><table><tr><th>sentence</th>{head}</tr>{rows}</table>"


def _player(samples: NDArray[np.float32], sampling_rate: int) -> str:
    return f'<audio controls preload="none" src="{sound_uri(samples, sampling_rate)}"></audio>'
