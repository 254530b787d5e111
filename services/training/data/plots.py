"""One picture of a dataset: lengths, loudness, speaking rate, and transcript against sound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from services.training.data.inspection import Inspection, Measured
from shared.errors import MissingExtraError, UserError
from shared.wording import counted

#: Colour-blind safe (Okabe and Ito); train, validation, test, then any other split.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#999999")
_WARNING = "#D55E00"
_INK = "#333333"


def draw(inspection: Inspection, path: Path) -> None:
    """Draw an inspection to a PNG, or any format that matplotlib knows by its extension.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UserError: It cannot be written there.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "the picture needs matplotlib: pip install 'vits-suite[train]', or leave it out with --no-plots"
        ) from error
    figure = Figure(figsize=(12, 8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    measured = inspection.measured
    minutes = sum(one.seconds for one in measured) / 60
    title = f"{Path(inspection.source).name} – {counted(len(measured), 'recording')}, {minutes:.1f} minutes"
    figure.suptitle(title, fontsize=15, color=_INK, x=0.01, ha="left", weight="bold")
    axes = figure.subplots(2, 2)
    splits = _splits(measured)
    _histogram(axes[0, 0], splits, [one.seconds for one in measured], "Length", "seconds")
    _histogram(axes[0, 1], splits, [one.loudness_dbfs for one in measured], "Loudness of the speech", "dBFS")
    rates = [one.speaking_rate for one in measured]
    _histogram(axes[1, 0], splits, rates, "Speaking rate", "letters a second")
    _scatter(axes[1, 1], inspection, splits)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise UserError(
            f"the picture cannot be written: {error}. Name another place with --plots, or leave it out with --no-plots"
        ) from error


def _splits(measured: Sequence[Measured]) -> list[str]:
    """Their names, the usual ones first."""
    names = {one.split for one in measured}
    usual = [name for name in ("train", "validation", "test") if name in names]
    return usual + sorted(names.difference(usual))


def _histogram(axis: Any, splits: Sequence[str], values: Sequence[float], title: str, unit: str) -> None:
    """One distribution, with its median."""
    _dress(axis, title, unit, "recordings")
    if not values:
        return
    bins = min(40, max(10, round(2 * len(values) ** 0.5)))
    axis.hist(values, bins=bins, color=_COLOURS[0], edgecolor="white", linewidth=0.5)
    middle = float(np.median(values))
    axis.axvline(middle, color=_WARNING, linewidth=1.5)
    axis.set_title(f"median {middle:.1f}", loc="right", fontsize=10, color=_WARNING)
    axis.yaxis.get_major_locator().set_params(integer=True)


def _scatter(axis: Any, inspection: Inspection, splits: Sequence[str]) -> None:
    """Transcript against sound: a recording far from the band has another transcript than its own."""
    _dress(axis, "Transcript against sound", "seconds of speech", "letters in the transcript")
    outliers = inspection.rate_outliers
    for number, split in enumerate(splits):
        inside = [one for one in inspection.measured if one.split == split]
        axis.scatter(
            [one.speech_seconds for one in inside], [one.letters for one in inside], s=16, alpha=0.7,
            color=_COLOURS[min(number, len(_COLOURS) - 1)], linewidths=0, label=f"{split} ({len(inside)})",
        )  # fmt: skip
    marked = [one for one in inspection.measured if one.recording.id in outliers]
    if marked:
        axis.scatter(
            [one.speech_seconds for one in marked], [one.letters for one in marked], s=70,
            facecolors="none", edgecolors=_WARNING, linewidths=1.5, label=f"unusual rate ({len(marked)})",
        )  # fmt: skip
    for one in marked[:8]:
        axis.annotate(
            Path(one.recording.id).name, (one.speech_seconds, one.letters), xytext=(6, 4),
            textcoords="offset points", fontsize=8, color=_WARNING,
        )  # fmt: skip
    if inspection.measured:
        axis.legend(frameon=False, fontsize=9, loc="upper left")


def _dress(axis: Any, title: str, x_label: str, y_label: str) -> None:
    axis.set_title(title, loc="left", fontsize=12, color=_INK)
    axis.set_xlabel(x_label, color=_INK)
    axis.set_ylabel(y_label, color=_INK)
    axis.tick_params(colors=_INK, labelsize=9)
    axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color("#999999")
