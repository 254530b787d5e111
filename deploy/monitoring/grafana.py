"""Grafana's dashboards: rows, each a question, of panels, each with a sentence on how to read it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

#: Grafana lays panels out on a grid of this width.
GRID_WIDTH = 24

#: Grafana's names of units.
SECONDS, BYTES, RATIO, COUNT, RATE = "s", "bytes", "percentunit", "short", "cps"

WELL, DOUBTFUL, BAD = "green", "orange", "red"

#: Stands in queries for the chosen namespace and servers. Outside Kubernetes there is no namespace, and all are chosen.
PODS = 'namespace=~"$namespace", instance=~"$instance"'


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: What it shows.
        description: How to read it.
        queries: A legend and a query for each line; legends may name labels, ``{{voice}}``.
        unit: Grafana's name of the unit.
        kind: A graph over time, one large number, a table of labels, or a heat map of a histogram.
        width: Of 24.
        limits: From where on a value is doubtful, and from where on bad.
        log: Whether the axis is logarithmic.
        stack: Whether the lines stand on each other.
        top: The axis ends here, for shares.
    """

    title: str
    description: str
    queries: Sequence[tuple[str, str]]
    unit: str = COUNT
    kind: Literal["timeseries", "stat", "table", "heatmap"] = "timeseries"
    width: int = 8
    limits: tuple[float, float] | None = None
    log: bool = False
    stack: bool = False
    top: float | None = None

    @property
    def height(self) -> int:
        """In cells of the grid."""
        return 4 if self.kind == "stat" else 8


@dataclass(frozen=True)
class Row:
    """Panels that answer one question."""

    question: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Dashboard:
    """A page.

    Attributes:
        uid: Its lasting name in Grafana.
        title: Its title.
        description: For whom it is.
        variables: A label of a metric to choose by, each with that metric.
        rows: From the most important question to the least.
        tags: What Grafana finds it by.
    """

    uid: str
    title: str
    description: str
    variables: Sequence[tuple[str, str]]
    rows: Sequence[Row]
    tags: Sequence[str] = field(default=("vits",))

    def to_grafana(self) -> dict[str, Any]:
        """The dashboard as Grafana imports it."""
        source = {"type": "prometheus", "uid": "${datasource}"}
        panels: list[dict[str, Any]] = []
        y = 0
        for row in self.rows:
            panels.append(
                {
                    "type": "row",
                    "title": row.question,
                    "collapsed": False,
                    "gridPos": {"x": 0, "y": y, "w": GRID_WIDTH, "h": 1},
                    "panels": [],
                }
            )
            y += 1
            x = height = 0
            for panel in row.panels:
                if x + panel.width > GRID_WIDTH:
                    x, y, height = 0, y + height, 0
                position = {"x": x, "y": y, "w": panel.width, "h": panel.height}
                panels.append({**_panel(panel), "gridPos": position, "datasource": source})
                x, height = x + panel.width, max(height, panel.height)
            y += height
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": list(self.tags),
            "schemaVersion": 39,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-3h", "to": "now"},
            "templating": {"list": [_source_variable(), *map(_variable, self.variables)]},
            "panels": [{"id": number, **panel} for number, panel in enumerate(panels, 1)],
        }

    def queries(self) -> Iterator[tuple[str, str]]:
        """Every query, with the title of its panel."""
        for row in self.rows:
            for panel in row.panels:
                for _, query in panel.queries:
                    yield panel.title, _chosen(query)


def quantile(metric: str, q: float, by: str = "") -> str:
    """A quantile of a histogram over what is chosen, apart by one label if given."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket{{$pods}}[$__rate_interval])))"


def quantiles(metric: str) -> list[tuple[str, str]]:
    """Median, 95th and 99th percentile of a histogram, with their legends."""
    return [(name, quantile(metric, q)) for name, q in (("median", 0.5), ("95 %", 0.95), ("99 %", 0.99))]


def mean(metric: str, by: str = "") -> str:
    """The mean of a histogram's observations over what is chosen, apart by one label if given."""
    of = f"by ({by}) " if by else ""
    sums, counts = (
        f"sum {of}(rate({metric}_{part}{{$pods}}[$__rate_interval]))" for part in ("sum", "count")
    )
    return f"{sums} / {counts}"


def _chosen(query: str) -> str:
    """A query of a panel, for the chosen namespace and servers."""
    return query.replace("$pods", PODS)


def _source_variable() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}


def _variable(variable: tuple[str, str]) -> dict[str, Any]:
    label, metric = variable
    return {
        "name": label,
        "label": label.capitalize(),
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": f"label_values({metric}, {label})", "refId": label},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        # Also what has no such label.
        "allValue": ".*",
        "current": {"selected": True, "text": "All", "value": "$__all"},
    }


def _panel(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": WELL, "value": None}]
    if panel.limits:
        steps += [{"color": c, "value": v} for c, v in zip((DOUBTFUL, BAD), panel.limits, strict=True)]
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if panel.top is not None:
        defaults["max"] = panel.top
    options: dict[str, Any] = {}
    match panel.kind:
        case "timeseries":
            custom: dict[str, Any] = {
                "lineWidth": 2,
                "fillOpacity": 25 if panel.stack else 8,
                "showPoints": "never",
            }
            if panel.stack:
                custom["stacking"] = {"mode": "normal"}
            if panel.log:
                custom["scaleDistribution"] = {"type": "log", "log": 10}
                del defaults["min"]
            if panel.limits:
                custom["thresholdsStyle"] = {"mode": "dashed"}
            defaults |= {"custom": custom, "color": {"mode": "palette-classic"}}
            options = {
                "legend": {
                    "displayMode": "table",
                    "placement": "bottom",
                    "calcs": ["mean", "max", "lastNotNull"],
                },
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        case "stat":
            defaults["color"] = {"mode": "thresholds"}
            options = {
                "graphMode": "area",
                "colorMode": "background" if panel.limits else "value",
                "reduceOptions": {"calcs": ["lastNotNull"]},
            }
        case "heatmap":
            options = {
                "calculate": False,
                "yAxis": {"unit": panel.unit},
                "color": {"mode": "scheme", "scheme": "Oranges"},
                "cellGap": 1,
                "tooltip": {"mode": "single", "yHistogram": True},
            }
        case "table":
            options = {"showHeader": True, "sortBy": [{"displayName": "voice"}]}
    targets = [
        {
            "refId": chr(ord("A") + number),
            "expr": _chosen(query),
            "legendFormat": legend or "__auto",
            **(
                {"format": panel.kind, "instant": panel.kind == "table"}
                if panel.kind in {"table", "heatmap"}
                else {}
            ),
        }
        for number, (legend, query) in enumerate(panel.queries)
    ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
    }
