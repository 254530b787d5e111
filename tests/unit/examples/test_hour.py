"""The hour of training: what it makes of the figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from examples.hour.__main__ import CONFIG, MODEL, OUTPUT, summary, table
from examples.stages import Stage
from services.training.config_sources import load


def evaluation(wer: float, **more: float) -> dict[str, Any]:
    rows = {
        "system": {"wer": {"mean": wer}, **{name: {"mean": value} for name, value in more.items()}},
        "recordings": {"wer": {"mean": 0.095}, **{name: {"mean": 9.0} for name in more}},
    }
    return {"rows": rows, "sentences": 14, "words": 137}


@pytest.mark.parametrize(("wer", "verdict"), [(0.349, "met"), (0.5, "missed by 0.150")])
def test_the_table_has_three_voices_and_the_truth(wer: float, verdict: str) -> None:
    lines = table(evaluation(1.08, likeness=0.45), evaluation(wer, likeness=0.8)).splitlines()
    assert lines[0].split() == ["before", "after", "recordings"]
    assert lines[1].split() == ["WER", "1.080", f"{wer:.3f}", "0.095"]
    assert lines[2].split() == ["likeness", "0.450", "0.800", "9.000"]
    assert lines[3].endswith(verdict)


def test_the_summary_says_how_long_training_took_and_where_the_figures_are() -> None:
    first = summary("WER", Stage("training", 3540.4), "")
    assert first.splitlines()[:2] == [
        "WER",
        "training took 3540 s, since it was last started",
    ]
    for page in ("report.html", "evaluation-before/evaluation.html", "evaluation-after/evaluation.html"):
        assert str(OUTPUT / page) in first
    again = summary("WER", Stage("training", 2.1, reused=True), first)
    assert again == first  # the time is the training's, not that of finding it done
    assert "training was not timed" in summary("WER", Stage("training", 2.1, reused=True), "")


def test_what_is_trained_is_what_is_exported_and_scored() -> None:
    """And the split that scores it is neither trained on nor evaluated on in training."""
    config, _ = load([Path(__file__).parents[3] / CONFIG], {})
    assert config.published_name == MODEL
    assert config.output_dir == OUTPUT
    assert "test" not in {config.train_split_name, config.eval_split_name}
