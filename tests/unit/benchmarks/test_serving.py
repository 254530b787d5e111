"""The benchmark of serving, of which only the measuring needs a quiet machine."""

from __future__ import annotations

import io
import itertools
import os
import signal
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import serving
from benchmarks.serving import Bench, Figures, Results, run
from shared.voice import VoiceSpec
from tests.unit.shared.voice.conftest import spec_fields

#: Bytes of decoders in fp32.
JOES_DECODER, MMS_SIZE = 6_761_000, 57_670_000


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Of a voice as large as Joe."""
    # pytest's own time limit has the alarm.
    monkeypatch.setattr(signal, "setitimer", lambda *_: None)
    arguments = serving.parser().parse_args(["--voice", "joe", "--only", "ready", "first", "beside"])
    folder = tmp_path / "voice"
    folder.mkdir()
    spec = VoiceSpec.model_validate(spec_fields())
    spec.write(folder)
    decoder = folder / spec.variant("fp32").decoder
    decoder.parent.mkdir()
    decoder.touch()
    os.truncate(decoder, JOES_DECODER)
    return Bench(arguments, folder, cold_seconds=0.0)


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


@pytest.mark.parametrize(
    ("name", "value", "verdict"),
    [
        ("slowest_call_seconds_once", 0.14, "met: at most 0.15"),
        ("slowest_call_seconds_once", 0.16, "MISSED: at most 0.15"),
        ("beside_worst_ratio", 2.1, "MISSED: at most 2"),
        ("first_audio_ratio_60s_long_first", 1.2, "met: at most 1.3"),
        ("first_audio_ratio_60s_long_first", 1.56, "KNOWN MISS: at most 1.3"),
    ],
)
def test_verdicts(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: float,
    verdict: str,
) -> None:
    """The longest call and the worst wait count; what is known to miss is said, and fails no run."""
    bench.arguments.only = ["calls"]
    monkeypatch.setitem(serving.PARTS, "calls", lambda _: {name: value})
    assert run(bench, Results(None, {})) == (not verdict.startswith("MISSED"))
    assert capsys.readouterr().out.rstrip().endswith(f"  {verdict}")


def test_the_longest_call_of_a_large_voice_is_for_information(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """150 ms are asked of Joe; all else is asked of every voice."""
    bench.arguments.only = ["calls", "beside"]
    figures = {"slowest_call_seconds": 0.217, "slowest_call_seconds_once": 0.278}
    monkeypatch.setitem(serving.PARTS, "calls", lambda _: {**figures, "longest_segment_tokens": 181})
    monkeypatch.setitem(serving.PARTS, "beside", lambda _: {"beside_ratio": 1.16})
    assert not run(bench, Results(None, {}))
    assert capsys.readouterr().out.count("MISSED: at most 0.15") == 2
    os.truncate(next(bench.folder.rglob("decoder.onnx")), MMS_SIZE)
    bench = Bench(bench.arguments, bench.folder, cold_seconds=0.0)
    assert run(bench, Results(None, {}))
    told = capsys.readouterr().out
    assert "0.278\n" in told
    assert told.count("met: at most") == 2
    monkeypatch.setitem(serving.PARTS, "beside", lambda _: {"beside_ratio": 2.1})
    assert not run(bench, Results(None, {}))


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


def test_the_longest_call_is_told_beside_the_medians(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    # What is spoken first of all compiles and does not count; then one call is held up.
    taken = itertools.chain([9.0] * 3, [0.1] * 7, [0.9, 0.1])

    def run(*_: object) -> dict[str, object]:
        nonlocal now
        now += next(taken)
        return {}

    def speak(voice: Any, _: str) -> None:
        for graph in ("encoder", "flow", "decoder"):
            voice.engine.run(graph, {"x": np.zeros((1, 8))})

    segment = SimpleNamespace(tokens=SimpleNamespace(ids=(1, 2, 3)))
    monkeypatch.setattr(serving, "speak", speak)
    monkeypatch.setattr(
        serving, "planned", lambda *_: SimpleNamespace(script=SimpleNamespace(segments=[segment]))
    )
    monkeypatch.setattr(serving, "time", SimpleNamespace(perf_counter=lambda: now))
    bench.__dict__["voice"] = SimpleNamespace(engine=SimpleNamespace(streams=1, run=run))
    bench.__dict__["texts"] = SimpleNamespace(asked={"2s": "uno"})
    figures = serving.calls(bench)
    assert figures["slowest_call_seconds"] == pytest.approx(0.1)
    assert figures["slowest_call_seconds_once"] == pytest.approx(0.9)


def test_what_doors_add_is_told_with_the_clients_processor_time_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {
        "engine": 1.0,
        "reading": 0.5,
        "http": 1.25,
        "http_whole": 1.5,
        "grpc": 0.75,
        "grpc_whole": 1.125,
    }
    asked: list[str] = []

    def medians(samples: dict[str, object], _: int) -> dict[str, float]:
        asked.extend(samples)
        return {name: seconds[name] for name in samples}

    monkeypatch.setattr(serving, "medians", medians)
    server = SimpleNamespace(connect=io.BytesIO, grpc_address="127.0.0.1:1")
    monkeypatch.setattr(serving, "serving", lambda *_, **__: nullcontext(server))
    bench.__dict__["voice"] = None
    bench.__dict__["texts"] = SimpleNamespace(short="uno")
    assert serving.added(bench) == {
        "engine_seconds": 1.0,
        "reading_seconds": 0.5,
        "http_added_seconds": 0.25,
        "grpc_added_seconds": -0.25,
        "http_added_seconds_with_client": 0.5,
        "grpc_added_seconds_with_client": 0.125,
    }
    assert set(asked) == set(seconds)
