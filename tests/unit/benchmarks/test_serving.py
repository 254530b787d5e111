"""The benchmark of serving, of which only the measuring needs a quiet machine."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from benchmarks import serving
from benchmarks.serving import Bench, Figures, Results, run


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    # pytest's own time limit has the alarm.
    monkeypatch.setattr(signal, "setitimer", lambda *_: None)
    arguments = serving.parser().parse_args(["--voice", "joe", "--only", "ready", "first", "beside"])
    return Bench(arguments, Path(), cold_seconds=0.0)


def test_an_interrupted_run_goes_on(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, conditions = tmp_path / "joe.json", {"voice": "joe/1"}
    done: list[str] = []

    def part(name: str, figures: Figures) -> None:
        def measure(_: Bench) -> Figures:
            done.append(name)
            return figures

        monkeypatch.setitem(serving.PARTS, name, measure)

    def interrupted(_: Bench) -> Figures:
        raise KeyboardInterrupt

    part("ready", {"ready_warm_seconds": 5.0})
    monkeypatch.setitem(serving.PARTS, "first", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(bench, Results(path, conditions))
    assert "met: at most 6" in capsys.readouterr().out
    part("first", {"first_audio_ratio_60s": 1.31})
    part("beside", {"beside_ratio": 1.5})
    assert not run(bench, Results(path, conditions))
    assert done == ["ready", "first", "beside"]
    told = capsys.readouterr().out
    assert "MISSED: at most 1.3" in told
    assert told.count("met: ") == 2
    with pytest.raises(SystemExit, match="other conditions"):
        Results(path, {"voice": "joe/2"})


def test_a_part_that_fails_is_said_and_the_others_are_measured(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Bench) -> Figures:
        raise RuntimeError("the server answered 500")

    monkeypatch.setitem(serving.PARTS, "ready", lambda _: {"ready_warm_seconds": 5.0})
    monkeypatch.setitem(serving.PARTS, "first", broken)
    monkeypatch.setitem(serving.PARTS, "beside", lambda _: {"beside_ratio": 1.5})
    assert not run(bench, Results(None, {}))
    told = capsys.readouterr().out
    assert "NOT MEASURED: RuntimeError: the server answered 500" in told
    assert told.count("met: ") == 2
