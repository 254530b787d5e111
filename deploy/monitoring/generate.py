"""Write what is made of other files here: Grafana's dashboards, and the rules as Kubernetes' PrometheusRule.

``make monitoring`` runs it; a test tells when what it wrote is stale.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from deploy.monitoring.serving import SERVING
from deploy.monitoring.training import TRAINING

HERE = Path(__file__).parent

DASHBOARDS = {"serving": SERVING, "training": TRAINING}


def prometheus_rule() -> dict[str, Any]:
    """The rules as the object that Prometheus' operator reads."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "vits", "labels": {"app.kubernetes.io/name": "vits"}},
        "spec": yaml.safe_load((HERE / "rules.yaml").read_text()),
    }


def generated() -> dict[Path, str]:
    """What every file that is made here has to hold."""
    made = {
        HERE / "dashboards" / f"{name}.json": json.dumps(dashboard.to_grafana(), indent=1, ensure_ascii=False)
        + "\n"
        for name, dashboard in DASHBOARDS.items()
    }
    rule = yaml.safe_dump(prometheus_rule(), sort_keys=False, width=120, allow_unicode=True)
    made[HERE / "prometheus-rule.yaml"] = f"# Made of rules.yaml by 'make monitoring'.\n{rule}"
    return made


if __name__ == "__main__":
    for path, content in generated().items():
        path.write_text(content)
