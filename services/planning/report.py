"""What ``vits plan`` found: tables, JSON, and a picture."""

from __future__ import annotations

import base64
import html
import io
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.planning.answer import PERCENTILES, ROOM, Answer, Question, Row, Scaled
from services.planning.autoscaler import Scaling
from services.tables import print_table
from shared.errors import MissingExtraError, UserError
from shared.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".html", ".png", ".svg")
#: Points of a curve over time: more are not seen.
POINTS = 1500

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>vits plan</title>
<style>body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }}
table {{ border-collapse: collapse; margin: 1em 0 }} th, td {{ padding: .2em .8em; text-align: right }}
th:first-child, td:first-child {{ text-align: left }} tr.met {{ background: #e6f4e6 }} img {{ max-width: 100% }}
</style></head><body><h1>vits plan</h1><p>{said}</p><img alt="Latency against pods; pods and backlog over time"
src="data:image/svg+xml;base64,{picture}"><table><tr>{header}</tr>{rows}</table><p>{facts}</p></body></html>
"""


def to_json(question: Question, answer: Answer) -> dict[str, Any]:
    """Everything, for programs. Times are seconds; what is not a number is null."""
    profile = question.profile
    content = asdict(answer)
    content |= {
        "percentiles": PERCENTILES,
        "target": asdict(question.target),
        "load": asdict(question.load),
        "settings": asdict(question.settings),
        "machine": profile.model_dump(include={"voice", "variant", "machine", "threads", "streams"}),
    }
    return {name: _finite(value) for name, value in content.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sentences(question: Question, answer: Answer) -> list[str]:
    """The answer in words, the most important one first."""
    target, load = question.target, question.load
    aim = (
        f"a first audio within {target.first_audio_seconds:g} s for {target.percentile} % of "
        f"{load.peak:g} requests a second"
    )
    if question.fixed:
        row = next(row for row in answer.rows if row.pods == question.fixed)
        said = [f"With {counted(question.fixed, 'pod')} there {'is' if row.met else 'is not'} {aim}."]
    elif answer.pods is None:
        said = [answer.why]
    else:
        said = [
            f"With {counted(answer.pods, 'pod')} there is {aim}, and at most {target.refused:.2%} are refused."
        ]
    said.append(
        f"A pod of {counted(question.profile.threads, 'core')} computes {answer.capacity:.2f} requests a second "
        f"when it never rests; a request is {answer.audio_seconds:.1f} s of audio. Alone on an idle pod its first "
        f"audio takes {_times(answer.alone.first_audio)} s (p50 / p95 / p99)."
    )
    if answer.scaled and answer.scaling:
        said += _autoscaled(question, answer, answer.scaling, answer.scaled)
    return said


def _autoscaled(question: Question, answer: Answer, scaling: Scaling, scaled: Scaled) -> list[str]:
    """What comes of the load under an autoscaler, and which of its limits it has met."""
    row, peak = scaled.row, max(answer.pods or 0, answer.needed)
    under = (
        f"Under the autoscaler ({scaling.least} to {scaling.most} pods, {scaling.target:g} s of backlog for each) and "
        f"a {question.load.shape} load there are {row.pods:.1f} pods on average and {scaled.most_pods} at most; first "
        f"audio {_times(row.first_audio)} s, {row.refused:.2%} refused: the target is "
        f"{'' if row.met else 'not '}met."
    )
    said = [under]
    if question.roomy and scaling.most == ROOM * peak > Scaling.most:  # or else --min-pods are more
        said.append(
            f"It was given {ROOM} times what the peak needs, for want of --max-pods: the manifests' maxReplicas, "
            f"{Scaling.most}, has to be raised to that."
        )
    if scaled.at_most and (scaling.least < scaling.most or scaling.most < peak):
        more = f": give it more, --max-pods {ROOM * peak} for instance" if scaling.most < peak else ""
        said.append(
            f"For {scaled.at_most:.1%} of the time there were as many pods as it may have; the peak needs "
            f"{peak}{more}."
        )
    if answer.pods and answer.pods <= scaling.most and not row.met:
        said.append(
            f"Backlog tells of trouble only when it is there: with --min-pods {answer.pods} the peak is met, and "
            "a lower --target-backlog or a shorter --pod-start helps with what rises slowly."
        )
    if scaled.part > 1:
        said.append(f"(The autoscaler was simulated with one of every {scaled.part} pods and requests.)")
    return said


def table(answer: Answer) -> tuple[list[str], list[list[str]]]:
    """Header and rows: numbers of pods at the peak, and the autoscaler."""
    header = [
        "pods",
        "first audio p50",
        "p95",
        "p99",
        "total p50",
        "p95",
        "p99",
        "refused",
        "used",
        "audio s/s",
    ]
    priced = any(row.cost is not None for row in answer.rows)
    header += ["cost/audio h"] if priced else []
    rows = [_cells(row, f"{row.pods:g}", priced) for row in answer.rows]
    if answer.scaled:
        rows.append(_cells(answer.scaled.row, f"autoscaled, {answer.scaled.row.pods:.1f}", priced))
    return header, rows


def _cells(row: Row, pods: str, priced: bool) -> list[str]:
    cells = [
        f"{pods}{' ✓' if row.met else ''}",
        *(f"{seconds:.3f}" for seconds in (*row.first_audio, *row.total)),
        f"{row.refused:.2%}",
        f"{row.utilisation:.0%}",
        f"{row.throughput:.1f}",
    ]
    return [*cells, "–" if row.cost is None else f"{row.cost:.4f}"] if priced else cells


def print_report(question: Question, answer: Answer) -> None:
    """Print it for people."""
    header, rows = table(answer)
    print_table(header, rows, numbers=True)
    print("\n".join(sentences(question, answer)))
    print(facts(question))


def facts(question: Question) -> str:
    """On what it stands."""
    profile = question.profile
    return (
        f"Measured: {profile.voice}, {profile.variant}, {counted(profile.threads, 'thread')} in "
        f"{counted(profile.streams, 'stream')}, {profile.machine}. ✓ marks what meets the target."
    )


def check_plot(path: Path) -> None:
    """Refuse a picture that could not be written at the end.

    Raises:
        UserError: Its name or its folder is wrong.
        MissingExtraError: matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--plot is {path}; give a name that ends in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise UserError(f"--plot is {path}, and there is no folder {path.parent}: make it first")
    try:
        import matplotlib  # noqa: F401 - only whether it is there
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "--plot needs the package 'matplotlib', which is not installed: pip install matplotlib, or the extra: "
            "pip install 'vits-suite[train]'"
        ) from error


def write_plot(question: Question, answer: Answer, path: Path) -> None:
    """Latency against pods, and pods and backlog over time, as a picture or a page that needs nothing else."""
    figure = _figure(question, answer)
    if path.suffix.lower() != ".html":
        figure.savefig(path, dpi=120)
        return
    picture = io.BytesIO()
    figure.savefig(picture, format="svg")
    header, rows = table(answer)
    met = [row.met for row in answer.rows] + ([answer.scaled.row.met] if answer.scaled else [])
    path.write_text(
        PAGE.format(
            said="<br>".join(html.escape(sentence) for sentence in sentences(question, answer)),
            picture=base64.b64encode(picture.getvalue()).decode(),
            header="".join(f"<th>{html.escape(name)}</th>" for name in header),
            rows="".join(
                f"<tr{' class=met' if good else ''}>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>"
                for row, good in zip(rows, met, strict=True)
            ),
            facts=html.escape(facts(question)),
        ),
        encoding="utf-8",
    )


def _figure(question: Question, answer: Answer) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 9 if answer.scaled else 4), layout="constrained")
    latency, *rest = figure.subplots(3 if answer.scaled else 1, squeeze=False)[:, 0]
    pods = [row.pods for row in answer.rows]
    for index, percent in enumerate(PERCENTILES):
        latency.plot(pods, [row.first_audio[index] for row in answer.rows], marker="o", label=f"p{percent}")
    latency.axhline(question.target.first_audio_seconds, color="black", linestyle="--", label="target")
    latency.set(
        xlabel=f"pods at {question.load.peak:g} requests a second", ylabel="first audio, s", yscale="log"
    )
    latency.legend()
    if answer.scaled:
        replicas, backlog = rest
        samples = answer.scaled.samples[:: max(1, len(answer.scaled.samples) // POINTS)]
        hours = [sample.at / 3600 for sample in samples]
        replicas.step(hours, [sample.pods for sample in samples], where="post", label="pods")
        replicas.step(hours, [sample.ready for sample in samples], where="post", label="ready", linestyle=":")
        replicas.set(ylabel="pods", ylim=(0, None))
        replicas.legend(loc="upper left")
        rate = replicas.twinx()
        rate.plot(hours, [sample.requests_per_second for sample in samples], color="grey", alpha=0.6)
        rate.set(ylabel="requests a second (grey)", ylim=(0, None))
        backlog.plot(hours, [sample.backlog_seconds for sample in samples])
        if question.scaling:
            backlog.axhline(question.scaling.target, color="black", linestyle="--")
        backlog.set(xlabel="hours", ylabel="backlog for each pod, s")
    return figure


def _times(values: tuple[float, float, float]) -> str:
    return " / ".join(f"{value:.3f}" for value in values)
