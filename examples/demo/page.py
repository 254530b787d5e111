"""One HTML page with everything to look at and listen to; it needs no other file, and links the run's report."""

from __future__ import annotations

import base64
import os
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from matplotlib.figure import Figure

from examples.demo.compare import Comparison
from examples.stages import Stage
from shared.audio import Audio, encode_wav

#: What is drawn of the log: title, and key of each curve.
_CURVES = {
    "Mel loss": {"training": "mel", "held out": "eval_mel"},
    "KL divergence": {"training": "kl", "held out": "eval_kl"},
    "Duration loss": {"training": "duration", "held out": "eval_duration"},
    "Adversaries": {
        "discriminator": "discriminator",
        "generator": "generator",
        "feature maps": "feature_maps",
    },
}


def data_url(kind: str, data: bytes) -> str:
    """Bytes as a URL that holds them."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture(figure: Figure) -> str:
    """A figure as a URL."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return data_url("image/png", buffer.getvalue())


def player(audio: Audio) -> str:
    """Sound as a URL."""
    return data_url("audio/wav", encode_wav(audio.samples, audio.sampling_rate))


def plot_curves(history: list[dict[str, float]], warm_up_steps: int) -> Figure:
    """The losses over the steps, and where the second stage begins: after ``warm_up_steps``, if there were any."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    for axis, (title, curves) in zip(figure.subplots(2, 2).flat, _CURVES.items(), strict=True):
        for label, key in curves.items():
            points = [(row["step"], row[key]) for row in history if key in row]
            if points:
                axis.plot(
                    *zip(*points, strict=True),
                    label=label,
                    marker="o" if "held" in label else None,
                    markersize=4,
                )
        if warm_up_steps and title != "Adversaries":
            axis.axvline(warm_up_steps, color="grey", linewidth=0.8, linestyle=":")
        if title == "KL divergence":
            axis.set_yscale("log")
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    return figure


def write_page(path: Path, result: Comparison, stages: list[Stage], served: Path, report: Path) -> None:
    """Write the page.

    Args:
        path: Where.
        result: What changed.
        stages: What was done so far.
        served: The WAV that the server answered with.
        report: The training's own report, linked if it is there.
    """
    environment = Environment(
        loader=PackageLoader("examples.demo", "."), autoescape=select_autoescape(["html"])
    )
    environment.globals.update(player=player)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        environment.get_template("page.html").render(
            result=result,
            stages=stages,
            report=os.path.relpath(report, path.parent) if report.is_file() else None,
            served=data_url("audio/wav", served.read_bytes()),
            curves=Markup(picture(plot_curves(result.history, result.warm_up_steps))),  # noqa: S704 - our own base64
            alignment=Markup(picture(result.alignment)),  # noqa: S704
            spectrograms=Markup(picture(result.spectrograms)),  # noqa: S704
        ),
        encoding="utf-8",
    )
