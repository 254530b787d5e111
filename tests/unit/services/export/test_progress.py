"""What a long export says of itself, to logs and to terminals."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from services.export import progress
from services.export.progress import Progress, Terminal


def test_a_log_hears_of_each_tenth_and_of_the_end() -> None:
    said: list[str] = []
    with Progress(said.append).bar("Judging", 174) as step:
        for number in range(174):
            step(f"sentence {number}")
    assert len(said) == progress.TELLINGS
    assert said[0] == "Judging: 18 of 174 (sentence 17)"
    assert said[-1] == "Judging: 174 of 174 (sentence 173)"


def test_it_is_told_how_long_the_rest_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("services.export.progress.time.monotonic", lambda: now)
    said: list[str] = []
    with Progress(said.append).bar("Judging", 10) as step:
        for _ in range(10):
            now += 60.0
            step("")
    assert said[0] == "Judging: 1 of 10, about 9 min left"
    assert said[-1] == "Judging: 10 of 10"


def test_few_steps_are_all_told() -> None:
    said: list[str] = []
    with Progress(said.append).bar("Comparing", 3) as step:
        for _ in range(3):
            step("")
    assert said == ["Comparing: 1 of 3", "Comparing: 2 of 3", "Comparing: 3 of 3"]


def test_where_there_is_no_terminal_lines_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal().bar("Calibrating", 2) as step:
        step("1 s of speech")
        step("2 s of speech")
    assert "Calibrating: 2 of 2 (2 s of speech)" in capsys.readouterr().out


def test_a_terminal_is_shown_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        "rich.console.Console", lambda **_: Console(file=screen, force_terminal=True, width=100)
    )
    with Terminal().bar("Calibrating", 2) as step:
        step("1 s of speech")
        step("2 s of speech")
    drawn = screen.getvalue()
    assert "Calibrating: 2 s of speech" in drawn
    assert "2/2" in drawn
    assert "left:" in drawn
