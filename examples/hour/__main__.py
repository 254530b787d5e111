"""An hour of training on two processor cores: does an English voice learn to speak Spanish that is understood?

Trains on the demo's recordings by configs/spa-cpu-hour.json, exports, and lets `vits evaluate` score the base, the
trained model and the recordings themselves on the test split, which neither training nor the choice of its settings
has seen. Each stage is the command that a user would type; what an earlier run has finished is used again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from examples.stages import BASE, DATA, Stage, Stages, explained, fetch_base, vits

CONFIG, OUTPUT = Path("configs/spa-cpu-hour.json"), Path("output/spa-cpu-hour")
MODEL = "spa-cpu-hour"
#: The share of words that may be misheard.
TARGET_WER = 0.35
_MEASURES = {
    "wer": "WER",
    "cer": "CER",
    "distillmos": "DistillMOS",
    "dnsmos": "DNSMOS",
    "likeness": "likeness",
}


def table(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The figures of three voices, a measure a line, and whether the target is met.

    Args:
        before: What `vits evaluate` wrote of the base.
        after: What it wrote of the trained model.
    """
    rows = {
        "before": before["rows"]["system"],
        "after": after["rows"]["system"],
        "recordings": after["rows"]["recordings"],
    }
    lines = [f"{'':<12}" + "".join(f"{name:>12}" for name in rows)]
    for key, title in _MEASURES.items():
        if all(key in row for row in rows.values()):
            lines.append(f"{title:<12}" + "".join(f"{row[key]['mean']:>12.3f}" for row in rows.values()))
    wer = rows["after"].get("wer", {}).get("mean")
    if wer is not None:
        verdict = "met" if wer < TARGET_WER else f"missed by {wer - TARGET_WER:.3f}"
        lines.append(f"aim: a WER below {TARGET_WER}: {verdict}")
    lines.append(f"{after['sentences']} sentences, {after['words']} words of the test split")
    return "\n".join(lines)


def summary(figures: str, training: Stage, earlier: str) -> str:
    """The figures, how long the training took, and where more is to be seen and heard.

    Args:
        figures: The table.
        training: Its stage.
        earlier: The summary of the run before, which knows how long a training took that is used again.
    """
    took = f"training took {training.seconds:.0f} s, since it was last started"
    if training.reused:
        lines = earlier.splitlines()
        took = next((line for line in lines if line.startswith("training took")), "training was not timed")
    pages = {
        "training": OUTPUT / "report.html",
        "before": OUTPUT / "evaluation-before" / "evaluation.html",
        "after": OUTPUT / "evaluation-after" / "evaluation.html",
    }
    return "\n".join([figures, took, *(f"{name:<12}{page}" for name, page in pages.items())])


def run(limit: list[str]) -> None:
    """All stages."""
    stages = Stages()
    with stages.stage("recordings", makes=DATA / "dataset.json"):
        vits("data", "fetch", "asterisk-es", "--output", DATA)
    with stages.stage("base voice", makes=BASE / "config.json"):
        fetch_base()
    with stages.stage("training", makes=OUTPUT / "model.safetensors") as training:
        vits("train", "--config", CONFIG, "--output_dir", OUTPUT)
    with stages.stage("export"):
        vits("export", f"{MODEL}@latest", "--language", "es", "--variants", "fp32")
    figures = []
    for title, model in (("before", BASE), ("after", OUTPUT)):
        folder = OUTPUT / f"evaluation-{title}"
        with stages.stage(f"evaluation, {title}"):
            vits("evaluate", model, "--data", DATA, "--language", "es", "--output", folder, *limit)
        figures.append(json.loads((folder / "evaluation.json").read_text(encoding="utf-8")))
    file = OUTPUT / "figures.txt"
    told = summary(table(*figures), training, file.read_text(encoding="utf-8") if file.is_file() else "")
    file.write_text(told + "\n", encoding="utf-8")
    print(f"\n{told}\n{'figures':<12}{file}")


def main() -> int:
    """Run it; Ctrl-C and SIGTERM end it with everything that it started."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.hour",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--limit", metavar="N", help="evaluate the first N sentences only")
    limit = parser.parse_args().limit
    return explained("train-hour", lambda: run(["--limit", limit] if limit else []))


if __name__ == "__main__":
    sys.exit(main())
