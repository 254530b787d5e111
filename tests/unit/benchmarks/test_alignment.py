"""The benchmark of the alignment search: its table from given times, and that it compiles, agrees and runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from benchmarks.alignment import main, table

CASES = ("field kernel", "our kernel", "field with copies", "ours with copies", "ours, dense path too")


def test_ratios_are_by_medians_and_by_best_runs() -> None:
    seconds = {(name, threads): np.array([1.0, 3.0, 2.0]) / 1000 for name in CASES for threads in (1, 2)}
    seconds["field kernel", 1] = np.array([4.0, 12.0, 8.0]) / 1000
    seconds["ours with copies", 1] = np.array([0.5, 0.1, 0.4]) / 1000
    seconds["our kernel", 2] = np.array([1.0, 1.0, 1.0]) / 1000
    lines = table(seconds).splitlines()
    assert lines[2].split() == ["field", "kernel", "8.00", "(4.00)", "2.00", "(1.00)"]
    assert [line[:24].strip() for line in lines[2:7]] == list(CASES)
    assert lines[-3:] == [
        "kernel                  4.00 times by medians, 4.00 by best runs (target 4.0)",
        "with copies             5.00 times by medians, 10.00 by best runs (target 8.0)",
        "second thread           2.00 times by medians, 1.00 by best runs (target 1.7)",
    ]


@pytest.fixture
def threads() -> Iterator[None]:
    """As many threads afterwards as before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="there is no C compiler here")
@pytest.mark.usefixtures("threads")
def test_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--batch", "2", "--tokens", "9", "--frames", "40", "--repetitions", "1"]) == 0
    told = capsys.readouterr().out
    assert "batch 2, F x T = 40 x 9, 1 runs each" in told
    assert all(name in told for name in CASES)
