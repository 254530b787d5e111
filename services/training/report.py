"""A run's report: one HTML file that needs nothing else, to look at and listen to while it trains and after."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from services.training import summary
from services.training.artefacts import Artefact, read_index
from services.training.plots import Curve, curves_svg, histogram_svg
from services.training.session import Session
from shared.pages import data_uri, template

REPORT_FILE = "report.html"
#: What has a chart, in this order, and what it is called there.
_CHARTS = {
    "mel": "Mel loss",
    "kl": "KL divergence, nats a frame",
    "duration": "Duration loss, per token",
    "generator": "Adversarial loss",
    "feature_maps": "Feature matching",
    "discriminator": "Discriminator loss",
    "mel_distance": "Mel distance of speech from recording, aligned",
    "longest_token": "Share of a recording that one token takes",
    "gradient_norm_generator": "Gradient norm, generator",
    "gradient_norm_discriminator": "Gradient norm, discriminator",
    "learning_rate": "Learning rate",
}
_MIME = {"png": "image/png", "flac": "audio/flac"}


def write(session: Session) -> Path:
    """Write ``report.html`` into the output folder, at once or not at all.

    Returns:
        Its path.
    """
    folder = session.config.output_dir
    changed, rest = summary.configuration(session.config)
    artefacts = _chosen(read_index(folder / "runs" / "artefacts"))
    text = template(Path(__file__).with_name("report.html"), "pip install 'vits-suite[train]'").render(
        session=session,
        state=session.state,
        plan=session.plan,
        splits=summary.splits(session),
        histogram=_histogram,
        newest=summary.newest_evaluation(session),
        heard=summary.heard(session),
        charts=_charts(session),
        steps=sorted({item.step for item in artefacts}),
        speech=_rows(artefacts, "audio"),
        figures=_rows(artefacts, "figure"),
        data_uri=lambda item: _data_uri(folder / "runs" / "artefacts" / item.file),
        changed=changed,
        rest=rest,
        versions=summary.versions(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / REPORT_FILE
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path


def _chosen(artefacts: Iterable[Artefact]) -> list[Artefact]:
    """Those of the first evaluation, of the one half-way, and of the last."""
    artefacts = list(artefacts)
    steps = sorted({item.step for item in artefacts})
    if not steps:
        return []
    middle = min(steps, key=lambda step: abs(step - (steps[0] + steps[-1]) / 2))
    return [item for item in artefacts if item.step in {steps[0], middle, steps[-1]}]


def _rows(artefacts: Iterable[Artefact], kind: str) -> dict[str, dict[int, Artefact]]:
    """Artefacts of a kind by their title, then by their step."""
    rows: dict[str, dict[int, Artefact]] = {}
    for item in artefacts:
        if item.kind == kind:
            rows.setdefault(f"{item.name}\0{item.title}", {})[item.step] = item
    return rows


def _data_uri(path: Path) -> str:
    """A file as an address that holds it; empty if it is gone."""
    try:
        data = path.read_bytes()
    except OSError:
        return ""
    return data_uri(data, _MIME[path.suffix[1:]])


def _charts(session: Session) -> list[tuple[str, str]]:
    """Titles and SVG of everything that was logged."""
    history: list[dict[str, Any]] = session.state.log_history
    boundary = session.plan.warm_up or None
    charts = []
    for name, title in _CHARTS.items():
        curves: list[Curve] = [
            ("train", [(entry["step"], entry[name]) for entry in history if name in entry]),
            ("held-out", [(e["step"], e[f"eval_{name}"]) for e in history if f"eval_{name}" in e]),
        ]
        drawn = [curve for curve in curves if curve[1]]
        if drawn:
            charts.append((title, curves_svg(drawn, label=title, boundary=boundary)))
    return charts


def _histogram(split: summary.Split) -> str:
    return histogram_svg(split.seconds, label=f"Lengths of the {split.name} recordings", unit="s")
