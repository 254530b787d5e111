"""The benchmark of joint training on several processes: its table, and that a worker's step runs."""

from __future__ import annotations

from pathlib import Path

from benchmarks import distributed
from benchmarks.distributed import WAYS, table


def test_efficiency_is_over_twice_one_process() -> None:
    one, whole, beside, after = WAYS
    told = table({one: [1.0, 3.0, 2.0], whole: [2.0], beside: [2.5, 2.5], after: [4.0]}, batch=3)
    rows = {line[:45].strip(): line[45:].split() for line in told.splitlines()[1:]}
    assert rows == {
        one.name: ["2.00", "1.50"],
        whole.name: ["2.00", "3.00", "100%"],
        beside.name: ["2.50", "2.40", "80%"],
        after.name: ["4.00", "1.50", "50%"],
    }


def test_a_worker_says_what_a_step_takes(small_training: Path) -> None:
    options = distributed._parser().parse_args(["--batch", "1", "--frames", "64", "--steps", "1", "--after"])
    word, seconds = distributed._measure(options, small_training).split()
    assert word == "seconds"
    assert float(seconds) > 0
