"""The benchmark of synthesis: its table from given samples, and that it runs without those whom it compares with."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from benchmarks.synthesis import (
    Paths,
    decoder_table,
    main,
    measure_decoders,
    systems,
    table_head,
    table_row,
    versions,
)
from services.export.export import VARIANTS
from shared.voice import VoiceSpec
from shared.voice.spec import Variant


def answers(*runs: tuple[float, float, float]) -> list[dict[str, float]]:
    return [{"seconds": seconds, "first": first, "audio": audio} for seconds, first, audio in runs]


def test_a_row_has_the_medians_of_each_length() -> None:
    times = {
        # Factors of 0.1, 0.3 and 0.2: the median of the ratios, not the ratio of medians.
        5: answers((0.4, 0.030, 4.0), (1.8, 0.010, 6.0), (1.6, 0.020, 8.0)),
        1: answers((0.5, 0.1, 1.0), (0.7, 0.3, 1.0)),
    }
    row = table_row("ours: int8", times, (1, 5), load=1.26, peaks={1: 123.4e6, 5: 200e6}, why="a warning")
    assert row == "| ours: int8 | 0.600 | 200 | 123 | 0.200 | 20 | 200 | 1.3 |"
    head, rule = table_head((1, 5)).splitlines()
    assert head.count("|") == rule.count("|") == row.count("|")


def test_a_row_says_what_failed_and_why() -> None:
    row = table_row(
        "piper-tts",
        {1: answers((0.5, 0.1, 1.0))},
        (1, 60),
        load=0.9,
        peaks={1: 5e7, 60: math.nan},
        why="killed",
    )
    assert row == "| piper-tts (killed) | 0.500 | 100 | 50 | failed | – | – | 0.9 |"


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Hides modules from whoever looks for them."""
    find = importlib.util.find_spec

    def hide(*names: str) -> None:
        def find_others(name: str, package: str | None = None) -> ModuleSpec | None:
            return None if name in names else find(name, package)

        monkeypatch.setattr(importlib.util, "find_spec", find_others)

    return hide


def with_variants(voice: Path, folder: Path, **more: Variant) -> Path:
    """A copy of a voice folder that says it has more variants."""
    shutil.copytree(voice, folder)
    spec = VoiceSpec.read(folder)
    spec.model_copy(update={"variants": spec.variants | more}).write(folder)
    return folder


def test_what_cannot_be_measured_is_said(
    paths: Paths, tmp_path: Path, hide: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    voice = with_variants(Path(paths.voice), tmp_path / "voice", bf16=VARIANTS["bf16"])
    hide("piper", "openvino")
    found = systems(replace(paths, voice=str(voice), piper="joe.onnx"))
    assert found == ["transformers", "onnxruntime, raw", "ours: fp32"]
    said = capsys.readouterr().out
    assert "not measured: piper-tts is not installed" in said
    assert "not measured: bf16: OpenVINO is not installed" in said


def test_who_is_installed_and_cannot_speak_the_model_is_another_matter(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: ModuleSpec(name, None))
    assert "piper-tts" in systems(replace(paths, piper="joe.onnx"))
    assert capsys.readouterr().out == "not measured: sherpa-onnx cannot speak this model\n"


def test_versions_are_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every machine has OpenVINO; the table comes all the same."""

    def version(name: str) -> str:
        if name == "openvino":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr("benchmarks.synthesis.version", version)
    assert versions() == "torch 1, transformers 1, onnxruntime 1"


def test_it_runs_without_the_others_and_says_so(
    paths: Paths, tmp_path: Path, hide: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """One round, each system in its own process; one of them cannot be opened."""
    broken = VARIANTS["fp32"].model_copy(update={"decoder": "nowhere.onnx"})
    voice = with_variants(Path(paths.voice), tmp_path / "voice", broken=broken)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "paths.json").write_text(json.dumps(vars(replace(paths, voice=str(voice)))))
    hide("piper", "sherpa_onnx")
    assert main(["--scratch", str(scratch), "--seconds", "1", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "not measured: piper-tts is not installed" in lines
    assert "not measured: sherpa-onnx is not installed" in lines
    (failed,) = [line for line in lines if line.startswith("not measured: ours: broken failed: ")]
    assert "nowhere.onnx is missing" in failed
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    table, decoders = rows[2:-4], rows[-2:]
    assert [row[0] for row in table] == ["transformers", "onnxruntime, raw", "ours: fp32"]
    assert all(float(cell) >= 0 for row in table for cell in row[1:])
    assert [row[0] for row in decoders] == ["onnxruntime, raw", "ours: fp32"]


def test_of_the_graphs_as_they_come_the_decoder_alone_is_opened_for_its_table(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    open_session = onnxruntime.InferenceSession

    def noted(path: Path, *rest: Any) -> Any:
        opened.append(path.name)
        return open_session(path, *rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", noted)
    measure_decoders(paths, 1, [])
    assert opened == ["decoder.onnx"]


def test_decoders_are_compared_with_the_first() -> None:
    times = {"raw": [0.4, 0.9, 0.3], "ours: bf16": [0.1, 0.1, 0.8], "ours: fp32": [0.8]}
    assert decoder_table(times, 156) == [
        "| decoder, 156 frames | ms | times the first |",
        "|---|---|---|",
        "| raw | 400.0 | 1.00 |",
        "| ours: bf16 | 100.0 | 4.00 |",
        "| ours: fp32 | 800.0 | 0.50 |",
    ]
