"""Names of metrics, and that they are safe to import early."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from shared.metrics import Metrics, TrainingMetrics


def test_names_carry_prefix_and_base_unit() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    TrainingMetrics(registry)
    families = list(registry.collect())
    assert {family.name for family in families} >= {
        "vits_requests",
        "vits_audio_seconds",
        "vits_voices_loaded",
        "vits_training_step",
        "vits_training_evaluation_seconds",
    }
    for family in families:
        assert re.fullmatch(r"vits_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        assert not re.search(r"milli|_ms$|_mb$|_minutes", family.name)


def test_the_client_library_is_imported_late() -> None:
    code = "import sys, shared.metrics\nprint('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


DOC = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_page_and_code_agree() -> None:
    """Name, type and text of every metric, in the order of the code."""
    written = re.findall(
        r"^\| `(vits_\w+)` \| (\w+) \| (.+?) \| (.+?) \|$", DOC.read_text(encoding="utf-8"), re.MULTILINE
    )
    declared = []
    for kind in (Metrics, TrainingMetrics):
        registry = CollectorRegistry()
        metrics = kind(registry)
        by_name = {getattr(metric, "_name", ""): metric for metric in vars(metrics).values()}
        for family in registry.collect():
            labels = getattr(by_name[family.name], "_labelnames", ())
            name = family.name + ("_total" if family.type == "counter" else "")
            said = ", ".join(f"`{label}`" for label in labels) or "–"
            declared.append((name, family.type, said, family.documentation))
    assert written == declared


def test_every_attribute_is_described() -> None:
    for kind in (Metrics, TrainingMetrics):
        described = set(re.findall(r"^        (\w+): ", kind.__doc__ or "", re.MULTILINE))
        assert set(vars(kind(CollectorRegistry()))) == described


def test_promtool_accepts_the_page() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package 'prometheus')")
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for metric in vars(metrics).values():
        labels = getattr(metric, "_labelnames", ())
        if labels:
            metric.labels(*labels)
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=generate_latest(registry), capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
