"""Alerts, dashboards, runbook and metrics name each other; Prometheus itself tests the rules."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from deploy.monitoring.generate import DASHBOARDS, HERE, generated
from shared.metrics import Metrics, TrainingMetrics
from tests.integration.manifests import KUBERNETES, ROOT, find, render

RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((HERE / "rules.yaml").read_text())["groups"] for rule in group["rules"]
]
ALERTS = {rule["alert"] for rule in RULES if "alert" in rule}
RECORDS = {rule["record"] for rule in RULES if "record" in rule}
STORIES = yaml.safe_load((HERE / "rules-test.yaml").read_text())["tests"]
#: What the client library and Prometheus themselves add.
OTHERS = {
    "process_resident_memory_bytes",
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_max_fds",
    "up",
}
#: Labels that Prometheus gives to everything it scrapes.
SCRAPED = {"namespace", "pod", "instance", "job"}
#: Series of other programs that manifests ask for.
FOREIGN = {"nginx_ingress_controller_requests"}


def promtool(*arguments: str) -> None:
    """Run promtool, and fail with what it says."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: Debian and Ubuntu have it in the package prometheus")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def declared() -> dict[str, set[str]]:
    """Every series that our programs expose, with its labels."""
    found = {}
    for metrics in (Metrics(CollectorRegistry()), TrainingMetrics()):
        for metric in vars(metrics).values():
            if isinstance(metric, MetricWrapperBase):
                labels = set(metric._labelnames)
                (family,) = metric.describe()
                match family.type:
                    case "counter":
                        found[f"{family.name}_total"] = labels
                    case "histogram":
                        found[f"{family.name}_bucket"] = labels | {"le"}
                        found |= {f"{family.name}_{part}": labels for part in ("sum", "count")}
                    case _:
                        found[family.name] = labels
    return found


def series(query: str) -> set[str]:
    """The names of series in a query."""
    bare = re.sub(r"\{[^}]*\}|\"[^\"]*\"|\b(by|on|without)\s*\([^)]*\)", "", query)
    return set(re.findall(r"\b(?:namespace:)?(?:vits|process|nginx)_[a-z_]+(?::\w+)?|\bup\b", bare))


def labels(query: str) -> set[str]:
    """The names of labels in a query."""
    within = re.findall(r"\{([^}]*)\}", query)
    matched = {name for text in within for name in re.findall(r"(\w+)\s*[=!]", text)}
    grouped = re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", query)
    return matched | {name.strip() for text in grouped for name in text.split(",")}


def check(query: str, where: str) -> None:
    """Every series of a query exists, and every label that it names is one of theirs."""
    known = declared()
    named = series(query)
    assert named, f"{where} asks for nothing: {query}"
    unknown = named - set(known) - OTHERS - RECORDS - FOREIGN
    assert not unknown, f"{where} asks for what does not exist: {unknown}"
    theirs = set().union(*(known.get(name, set()) for name in named)) | SCRAPED
    if not named & FOREIGN:
        assert labels(query) <= theirs, f"{where} asks for labels that do not exist: {labels(query) - theirs}"


def test_prometheus_finds_the_rules_correct_and_true() -> None:
    promtool("check", "rules", str(HERE / "rules.yaml"))
    promtool("test", "rules", *(str(HERE / name) for name in ("rules-test.yaml", "rules-days-test.yaml")))


def test_prometheus_accepts_the_configuration_of_compose(tmp_path: Path) -> None:
    """The rules lie beside it there."""
    for file in (ROOT / "deploy" / "compose" / "prometheus.yaml", HERE / "rules.yaml"):
        shutil.copy(file, tmp_path)
    promtool("check", "config", str(tmp_path / "prometheus.yaml"))


def test_every_rule_has_a_story() -> None:
    checked = [check for story in STORIES for check in story.get("alert_rule_test", [])]
    spoken = {check["alertname"] for check in checked if check["exp_alerts"]}
    silent = {check["alertname"] for check in checked if not check["exp_alerts"]}
    assert spoken == silent == ALERTS
    asked = " ".join(check["expr"] for story in STORIES for check in story.get("promql_expr_test", []))
    assert {name for name in RECORDS if name not in asked} == set()


def test_every_alert_has_an_entry_in_the_runbook_and_every_entry_an_alert() -> None:
    page = (ROOT / "docs" / "runbook.md").read_text()
    entries = re.findall(r"^### (\w+)\n\n\*(\w+)\.\*", page, re.MULTILINE)
    assert len(entries) == len(re.findall("^### ", page, re.MULTILINE))
    assert dict(entries) == {r["alert"]: r["labels"]["severity"] for r in RULES if "alert" in r}
    for rule in RULES:
        if name := rule.get("alert"):
            assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"
    anchors = set(re.findall(r"\(#(\w+)\)", page))
    assert anchors <= {name.lower() for name in ALERTS}


def test_the_runbook_says_how_alerts_link_to_it(tmp_path: Path) -> None:
    """The repository has no address of its own, and who reads an alert needs one that a browser opens."""
    page = (ROOT / "docs" / "runbook.md").read_text()
    told = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0])
    overlay = told | {"kind": "Kustomization", "components": [os.path.relpath(HERE, tmp_path)]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    objects = render(tmp_path)
    assert [thing["kind"] for thing in objects if thing["metadata"]["name"] != "vits-dashboards"] == [
        "PrometheusRule"
    ]
    shipped = (HERE / "rules.yaml").read_text()
    edit = re.findall(r"^sed '(.*?)' deploy/monitoring/rules.yaml", page, re.MULTILINE)
    edited = subprocess.run(["sed", *edit], input=shipped, text=True, capture_output=True, check=True).stdout
    for groups in (find(objects, "PrometheusRule")["spec"]["groups"], yaml.safe_load(edited)["groups"]):
        rules = [rule for group in groups for rule in group["rules"]]
        linked = {rule["alert"]: rule["annotations"].pop("runbook_url") for rule in rules if "alert" in rule}
        address = "https://wiki.example.com/vits/runbook"
        assert linked == {name: f"{address}#{name.lower()}" for name in ALERTS}
        assert [rule["expr"] for rule in rules] == [rule["expr"] for rule in RULES]


def test_the_rules_ask_for_what_exists() -> None:
    for rule in RULES:
        check(rule["expr"], rule.get("alert") or rule["record"])


def test_the_dashboards_ask_for_what_exists() -> None:
    for name, dashboard in DASHBOARDS.items():
        for title, query in dashboard.queries():
            check(query, f"{name}: {title}")
        for label, metric in dashboard.variables:
            check(f"{metric}{{{label}=''}}", name)


def test_the_queries_are_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": query.replace("$__rate_interval", "5m")}
        for number, (_, query) in enumerate(pair for d in DASHBOARDS.values() for pair in d.queries())
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", str(file))


@pytest.mark.parametrize("name", list(DASHBOARDS))
def test_a_dashboard_can_be_read(name: str) -> None:
    page = json.loads((HERE / "dashboards" / f"{name}.json").read_text())
    panels = [panel for panel in page["panels"] if panel["type"] != "row"]
    rows = [panel for panel in page["panels"] if panel["type"] == "row"]
    assert all(row["title"].endswith("?") for row in rows)
    assert all(
        panel["description"].endswith(".") and panel["fieldConfig"]["defaults"]["unit"] for panel in panels
    )
    assert len({panel["id"] for panel in page["panels"]}) == len(page["panels"])
    cells: set[tuple[int, int]] = set()
    for panel in page["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not mine & cells, f"{panel['title']} lies over another panel"
        cells |= mine


def test_a_wrong_name_is_found() -> None:
    with pytest.raises(AssertionError, match="vits_backlog_second"):
        check("sum(vits_backlog_second)", "a test")
    with pytest.raises(AssertionError, match="dor"):
        check("sum by (dor) (rate(vits_requests_total[5m]))", "a test")


@pytest.mark.parametrize("path", list(generated()), ids=lambda path: path.name)
def test_what_is_generated_is_current(path: Path) -> None:
    assert path.read_text() == generated()[path], "run 'make monitoring'"


def test_the_autoscalers_ask_for_what_exists() -> None:
    for component in ("keda", "scale-to-zero"):
        text = (KUBERNETES / "components" / component).glob("*.yaml")
        for query in re.findall(r"query: (.*)", "\n".join(path.read_text() for path in text)):
            check(query, component)
    hpa = yaml.safe_load((KUBERNETES / "components/hpa/hpa.yaml").read_text())
    assert hpa["spec"]["metrics"][0]["pods"]["metric"]["name"] in declared()
