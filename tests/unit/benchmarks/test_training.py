"""The benchmark of training: its tables from given steps, and that our step and the plain one run."""

from __future__ import annotations

import sys
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from benchmarks import plain, training
from benchmarks.training import SIZES, Case, Result, length_table, line_through, measure, speed_table

GB = 10**9


def test_ratios_are_of_pairs_and_marks_and_meet_their_targets_or_not() -> None:
    batch, frames = SIZES[-1]
    told = speed_table(
        {
            Case(batch, frames, plain=True): Result([4.0, 10.0, 6.0], 8 * GB),
            Case(batch, frames): Result([2.5, 5.0, 6.0], 7 * GB),  # the ratio of the medians is 1.2
            Case(batch, frames, "bf16"): Result([4.0, 4.0, 4.0], 6 * GB),
            Case(batch, frames, "bf16", checkpointing=True): Result([5.0, 5.0, 5.0], 3 * GB),
        }
    )
    assert f"batch {batch} of {frames} frames" in told
    rows = {
        line[:28].strip(): line[28:].split()
        for line in told.splitlines()
        if line.startswith(("plain", "ours"))
    }
    assert rows["plain step, fp32"] == ["6.00", "4.00", f"{batch / 6:.2f}", "8.00"]
    assert rows["ours, bf16, checkpointing"] == ["5.00", "5.00", f"{batch / 5:.2f}", "3.00"]
    assert "fp32: 1.60 times as fast as the plain step (target: 1.3 times: met)" in told
    assert "bf16: 1.50 times as fast as the plain step (target: 2.0 times: MISSED)" in told
    assert "bf16: 75% of the plain step's memory (target: at most 75%: met)" in told
    assert "bf16: checkpointing saves 50% of memory, 1.25 times the time (target: at least 30%: met)" in told


def test_memory_by_length_tells_how_many_frames_fit() -> None:
    results = {
        Case(4, frames, "bf16", checkpointing=saving): Result(
            [1.0], 2_060_000_000 + 4 * frames * (500_000 if saving else 1_000_000)
        )
        for frames in (100, 200, 300)
        for saving in (False, True)
    }
    told = length_table(results)
    assert "as it is: 2.1 GB and 1.00 GB for every 1,000 frames of a batch" in told
    assert "with checkpointing: 2.1 GB and 0.50 GB for every 1,000 frames of a batch" in told
    assert "5,100 in 8 GB" in told  # 0.9 of it, without the fixed part
    assert line_through({1: 5, 2: 7, 4: 11}) == pytest.approx((3, 2))


@pytest.mark.parametrize("case", [Case(2, 64), Case(2, 64, checkpointing=True), Case(2, 64, plain=True)])
def test_a_step_runs(small_training: Path, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    small = partial(plain.PlainDiscriminator, (1, 4, 16, 64, 256), (1, 2, 4, 8, 16))
    monkeypatch.setattr(plain, "PlainDiscriminator", small)
    to_begin_with, found = islice(measure(case, small_training), 2)
    assert not to_begin_with.seconds
    assert len(found.seconds) == 1
    assert found.peak_bytes > 0


def test_what_is_compared_takes_turns() -> None:
    cases = training.speed_cases([(2, 64), (4, 64)], full=True)
    groups = training.in_turns(cases)
    compared = [[Case(batch, 64, plain=True), Case(batch, 64), Case(batch, 64, "bf16")] for batch in (2, 4)]
    assert [group for group in groups if len(group) > 1] == compared
    assert sorted(map(repr, cases)) == sorted(repr(case) for group in groups for case in group)


def test_steps_are_taken_in_turns_in_processes_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every process sets up first, and none steps before it is told to."""
    script = (
        "import json, os, sys\n"
        "for number, _ in enumerate(sys.stdin):\n"
        "    with open(sys.argv[1], 'a') as file: print(os.getpid(), number, file=file)\n"
        "    print(json.dumps({'seconds': [number] if number else [], 'peak_bytes': 10 + number}), flush=True)\n"
    )
    monkeypatch.setattr(
        training, "command", lambda *_: [sys.executable, "-c", script, str(tmp_path / "steps")]
    )
    results = training.run_in_turns([Case(1, 64), Case(1, 64, plain=True)], tmp_path, steps=2)
    assert results == [Result([1, 2], 12), Result([1, 2], 12)]
    steps = [line.split() for line in (tmp_path / "steps").read_text().splitlines()]
    assert [number for _, number in steps] == ["0", "0", "1", "1", "2", "2"]
    assert len({process for process, _ in steps}) == len({process for process, _ in steps[:2]}) == 2


def test_a_measurement_that_fails_shows_its_errors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "command", lambda *_: [sys.executable, "-c", "raise SystemExit('no room')"])
    with pytest.raises(SystemExit, match="a measurement failed"):
        training.run_in_turns([Case(1, 64)], tmp_path, steps=1)
    assert "no room" in capsys.readouterr().err


def test_every_case_is_measured_as_often_as_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All steps of a case together, and the highest of its marks."""
    marks = iter(range(1, 100))
    monkeypatch.setattr(
        training, "run_in_turns", lambda cases, *_: [Result([1.0, 2.0], next(marks)) for _ in cases]
    )
    cases = [Case(1, 64), Case(1, 64, plain=True)]
    results = training.repeat(cases, tmp_path, repetitions=3, steps=2)
    assert [len(results[case].seconds) for case in cases] == [6, 6]
    assert max(result.peak_bytes for result in results.values()) == 6
