"""Names of metrics, and that they are safe to import early."""

from __future__ import annotations

import re
import subprocess
import sys

from prometheus_client import CollectorRegistry

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
