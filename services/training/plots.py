"""Pictures of a training run: alignments and spectrograms by matplotlib, the report's charts as SVG."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray


def plot_alignment(durations: NDArray[np.int32], symbols: tuple[str, ...] = ()) -> Figure:
    """Which token each frame belongs to.

    Args:
        durations: [T] frames of each token.
        symbols: What to write at the tokens, where there are few enough.
    """
    tokens, frames = len(durations), int(durations.sum())
    path = np.zeros((tokens, max(frames, 1)))
    ends = np.cumsum(durations)
    for token, (end, width) in enumerate(zip(ends, durations, strict=True)):
        path[token, end - width : end] = 1
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(path, aspect="auto", origin="lower", interpolation="none", cmap="Blues")
    axes.set(xlabel="frame", ylabel="token", title="Alignment")
    if 0 < len(symbols) <= 60:
        axes.set_yticks(range(tokens), symbols, fontsize=7)
    return figure


def plot_spectrograms(**mels: NDArray[np.float32]) -> Figure:
    """Log-mel spectrograms [80, F] one above another, on one colour scale and one time axis."""
    figure = Figure(figsize=(7, 2.1 * len(mels)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(mels), sharex=True))
    low = min(float(np.percentile(mel, 2)) for mel in mels.values())
    high = max(float(mel.max()) for mel in mels.values())
    for axis, (title, mel) in zip(axes, mels.items(), strict=True):
        image = axis.imshow(mel, aspect="auto", origin="lower", vmin=low, vmax=high, cmap="magma")
        axis.set(title=title.replace("_", " "), ylabel="mel band")
    axes[-1].set_xlabel("frame")
    figure.colorbar(image, ax=list(axes), label="log magnitude")
    return figure


# -- SVG -------------------------------------------------------------------------------------------

#: A curve: its class in the page's style sheet, and its points.
Curve = tuple[str, Sequence[tuple[float, float]]]
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 420, 210, 52, 26, 10, 20
#: More points than this are averaged, bin by bin.
_MAX_POINTS = 200


def curves_svg(curves: Sequence[Curve], *, label: str, boundary: float | None = None) -> str:
    """A chart as an SVG element whose colours are the page's; points are marked where they are few.

    Args:
        curves: What to draw, the last on top. Those of the style ``points`` are marks without a line.
        label: What it shows, for those who cannot see it.
        boundary: Where to draw a vertical line, such as between two stages.
    """
    curves = [(style, _thinned(points)) for style, points in curves]
    xs = [x for _, points in curves for x, _ in points]
    ys = [y for _, points in curves for _, y in points]
    x_axis, y_axis = _Axis(min(xs), max(xs), _LEFT, _WIDTH - _RIGHT), _Axis.around(ys)
    parts = [_grid(x_axis, y_axis)]
    if boundary is not None and x_axis.low < boundary < x_axis.high:
        at = x_axis.at(boundary)
        parts.append(f'<line class="boundary" x1="{at}" x2="{at}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
    for style, points in curves:
        path = " ".join(f"{x_axis.at(x)},{y_axis.at(y)}" for x, y in points)
        parts.append(f'<polyline class="{style}" points="{path}"/>')
        if len(points) <= 40 or style == "points":  # which has no line
            parts += [
                f'<circle class="{style}" cx="{x_axis.at(x)}" cy="{y_axis.at(y)}" r="2.6">'
                f"<title>{x:g}: {y:.4g}</title></circle>"
                for x, y in points
            ]
    return _svg(parts, label)


def histogram_svg(values: Sequence[float], *, label: str, unit: str, bins: int = 24) -> str:
    """How often values occur, as an SVG element whose colours are the page's."""
    counts, edges = np.histogram(values, bins=bins)
    x_axis = _Axis(float(edges[0]), float(edges[-1]), _LEFT, _WIDTH - _RIGHT)
    y_axis = _Axis(0.0, float(counts.max()) or 1.0, _HEIGHT - _BOTTOM, _TOP)
    parts = [_grid(x_axis, y_axis, unit)]
    for count, low, high in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        left, right, top = x_axis.at(low), x_axis.at(high), y_axis.at(count)
        parts.append(
            f'<rect class="bar" x="{left}" width="{max(right - left - 1, 0.5):.1f}" y="{top}" '
            f'height="{_HEIGHT - _BOTTOM - top:.1f}"><title>{low:.2f} to {high:.2f} {unit}: {count}</title></rect>'
        )
    return _svg(parts, label)


@dataclass(frozen=True)
class _Axis:
    """Values onto pixels."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Sequence[float]) -> _Axis:
        """The vertical one, with some air above and below."""
        low, high = min(values), max(values)
        air = 0.05 * (high - low) or abs(high) * 0.05 or 1.0
        return cls(low - air, high + air, _HEIGHT - _BOTTOM, _TOP)

    def at(self, value: float) -> float:
        """Where a value lies."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, wanted: int = 4) -> list[float]:
        """Round numbers inside."""
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        step = 10 ** math.floor(math.log10(span / wanted))
        step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= wanted + 1)
        return [step * count for count in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most so many points, each the mean of its neighbours."""
    if len(points) <= _MAX_POINTS:
        return list(points)
    return [tuple(part.mean(0).tolist()) for part in np.array_split(np.asarray(points), _MAX_POINTS)]


def _grid(x_axis: _Axis, y_axis: _Axis, unit: str = "") -> str:
    """Lines and numbers behind a chart."""
    parts = []
    for value in y_axis.ticks():
        at = y_axis.at(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 3.5}" text-anchor="end">{value:.4g}</text>')
    suffix = unit and f" {unit}"
    parts += [
        f'<text x="{x_axis.at(value)}" y="{_HEIGHT - 8}" text-anchor="middle">{_short(value)}{suffix}</text>'
        for value in x_axis.ticks(5)
    ]
    return "".join(parts)


def _short(value: float) -> str:
    """``1500`` → ``1.5k``."""
    return f"{value / 1000:g}k" if abs(value) >= 10000 else f"{value:g}"


def _svg(parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )
