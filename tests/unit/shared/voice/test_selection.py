"""Which variant is spoken with: what the CPU has, what was vouched for, what was measured, what is remembered."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.errors import EngineError
from shared.processor import cpu_features
from shared.voice import VoiceSpec, engine, selection
from shared.voice.engine import Arrays, computed_by, open_engine, why_not
from shared.voice.selection import choose_variant, recommended_variant, remembered_variant, usable_variants
from shared.voice.spec import Variant


@pytest.fixture
def spec(fields: dict[str, Any], tmp_path: Path) -> VoiceSpec:
    fp32 = fields["variants"]["fp32"]
    fields["variants"] = {
        "fp32": fp32,
        "bf16": {**fp32, "precision": "bf16", "requires": ["avx512_bf16", "amx_bf16"], "gate": "passed"},
        "int8": {**fp32, "precision": "int8", "requires": ["avx512_vnni"], "gate": "passed"},
        "doubtful": {**fp32, "precision": "int8"},
    }
    fields["recommended"] = ["bf16", "doubtful", "int8", "fp32"]
    spec = VoiceSpec.model_validate(fields)
    spec.write(tmp_path)
    return spec


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What the CPU has, to be changed by the test."""
    features: set[str] = set()
    monkeypatch.setattr(engine, "cpu_features", lambda: frozenset(features))
    monkeypatch.setattr(selection, "cpu_features", lambda: frozenset(features))
    return features


@pytest.mark.parametrize(
    ("features", "usable"),
    [
        ([], ["fp32"]),
        (["avx512_vnni"], ["int8", "fp32"]),
        (["amx_bf16"], ["bf16", "fp32"]),
        (["avx512_bf16", "avx512_vnni"], ["bf16", "int8", "fp32"]),
    ],
)
def test_what_the_cpu_lacks_and_what_nobody_vouches_for_is_not_used(
    spec: VoiceSpec, cpu: set[str], features: list[str], usable: list[str]
) -> None:
    cpu.update(features)
    assert usable_variants(spec) == usable
    assert recommended_variant(spec) == usable[0]


def test_a_variant_that_the_cpu_cannot_run_is_refused_with_a_way_out(
    spec: VoiceSpec, cpu: set[str], tmp_path: Path
) -> None:
    with pytest.raises(
        EngineError, match=r"bf16 needs a CPU with avx512_bf16 or amx_bf16.*Use the variant 'fp32'"
    ):
        open_engine(tmp_path, spec.variant("bf16"))


def test_a_machine_without_openvino_speaks_with_onnx_runtime(
    spec: VoiceSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one with arm64, where no extra brings it."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    fp32 = spec.variant("fp32")
    openvino = fp32.model_copy(update={"engine": "openvino", "gate": "reference"})
    variants = {"fp32-openvino": openvino, "fp32": fp32}
    spec = spec.model_copy(update={"variants": variants, "recommended": list(variants)})
    assert usable_variants(spec) == ["fp32"]
    assert recommended_variant(spec) == "fp32"
    with pytest.raises(EngineError, match=r"OpenVINO is not installed.*Use the variant 'fp32'"):
        open_engine(tmp_path, openvino)
    assert computed_by()["openvino"] == "not installed"


def test_a_gpu_that_is_not_there(spec: VoiceSpec) -> None:
    reason = why_not(spec.variant("fp32").model_copy(update={"device": "gpu", "precision": "fp16"}))
    assert reason is not None
    assert "serve-gpu" in reason


@pytest.mark.parametrize(
    ("text", "features"),
    [
        (
            "processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\n\nprocessor\t: 1\nflags\t\t: fpu avx2\n",
            {"avx2"},
        ),
        ("Features\t: fp asimd bf16\n", {"asimd", "bf16"}),
        ("model name\t: flags\n", set()),
    ],
)
def test_features_are_read_from_linux(tmp_path: Path, text: str, features: set[str]) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    found = cpu_features(tmp_path / "cpuinfo")
    assert features <= found
    assert "avx" not in found
    assert bool(found) == bool(features)


def test_without_proc_nothing_is_presumed(tmp_path: Path) -> None:
    assert cpu_features(tmp_path / "absent") == frozenset()


class TimedEngine:
    """Takes the time that the test says, by a clock of its own."""

    streams = 1
    opened: ClassVar[list[str]] = []
    closed: ClassVar[list[str]] = []
    now = 0.0

    def __init__(self, precision: str, seconds: float | None) -> None:
        self.precision, self.seconds = precision, seconds
        self.opened.append(precision)

    def run(self, graph: str, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        if self.seconds is None:
            raise EngineError("it is broken")
        TimedEngine.now += self.seconds
        return {}

    def close(self) -> None:
        self.closed.append(self.precision)


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> dict[str, float | None]:
    """Seconds of each precision, to be changed by the test; None for one that fails."""
    seconds: dict[str, float | None] = {"fp32": 3.0, "bf16": 2.0, "int8": 1.0}

    def open_timed(folder: Path, variant: Variant, *, threads: int | None = None) -> TimedEngine:
        return TimedEngine(variant.precision, seconds[variant.precision])

    monkeypatch.setattr(TimedEngine, "opened", [])
    monkeypatch.setattr(TimedEngine, "closed", [])
    monkeypatch.setattr(selection, "open_engine", open_timed)
    monkeypatch.setattr("shared.voice.selection.time.perf_counter", lambda: TimedEngine.now)
    return seconds


def test_the_fastest_is_chosen_once_and_remembered(
    spec: VoiceSpec, cpu: set[str], times: dict[str, float | None], tmp_path: Path
) -> None:
    cpu.update(["avx512_bf16", "avx512_vnni"])
    cache = tmp_path / "volume" / "variants.json"
    assert choose_variant(tmp_path, spec, threads=2, cache=cache) == "int8"
    assert sorted(TimedEngine.opened) == sorted(TimedEngine.closed) == ["bf16", "fp32", "int8"]
    times["fp32"] = 0.1
    assert choose_variant(tmp_path, spec, threads=2, cache=cache) == "int8"
    assert len(TimedEngine.opened) == 3
    # Another number of threads, another CPU or another voice is another question.
    assert choose_variant(tmp_path, spec, threads=1, cache=cache) == "fp32"
    cpu.add("amx_bf16")
    assert choose_variant(tmp_path, spec, threads=2, cache=cache) == "fp32"
    times["bf16"] = 0.01
    spec.model_copy(update={"licence": "MIT"}).write(tmp_path)
    assert choose_variant(tmp_path, spec, threads=2, cache=cache) == "bf16"
    assert len(json.loads(cache.read_text())) == 4


def test_hardly_faster_is_not_worth_a_change(
    spec: VoiceSpec, cpu: set[str], times: dict[str, float | None], tmp_path: Path
) -> None:
    cpu.update(["avx512_bf16", "avx512_vnni"])
    times["int8"] = 1.9
    assert choose_variant(tmp_path, spec, threads=2, cache=None) == "bf16"
    times["int8"] = 1.8
    assert choose_variant(tmp_path, spec, threads=2, cache=None) == "int8"


def test_a_measurement_that_is_disturbed_is_given_up(
    spec: VoiceSpec, cpu: set[str], times: dict[str, float | None], tmp_path: Path
) -> None:
    cpu.update(["avx512_bf16", "avx512_vnni"])
    cache = tmp_path / "variants.json"
    for quiet in range(12):
        answers = iter([True] * quiet + [False])
        chosen = choose_variant(
            tmp_path,
            spec,
            threads=2,
            cache=cache,
            undisturbed=lambda answers=answers: next(answers),  # type: ignore[misc]
        )
        assert chosen is None
        assert sorted(TimedEngine.opened) == sorted(TimedEngine.closed)
        assert remembered_variant(tmp_path, spec, threads=2, cache=cache) is None
    assert choose_variant(tmp_path, spec, threads=2, cache=cache) == "int8"
    assert remembered_variant(tmp_path, spec, threads=2, cache=cache) == "int8"


def test_a_variant_that_fails_is_left_out(
    spec: VoiceSpec, cpu: set[str], times: dict[str, float | None], tmp_path: Path
) -> None:
    cpu.update(["avx512_bf16", "avx512_vnni"])
    times["int8"] = None
    assert choose_variant(tmp_path, spec, threads=2, cache=None) == "bf16"
    assert sorted(TimedEngine.closed) == ["bf16", "fp32", "int8"]


def test_where_every_variant_fails_nothing_is_chosen(
    spec: VoiceSpec, cpu: set[str], times: dict[str, float | None], tmp_path: Path
) -> None:
    """What is spoken with stays: fp32 would be no wiser a choice, and all that is known is that none was timed."""
    cpu.update(["avx512_bf16", "avx512_vnni"])
    times.update(int8=None, bf16=None, fp32=None)
    cache = tmp_path / "variants.json"
    assert choose_variant(tmp_path, spec, threads=2, cache=cache) is None
    assert remembered_variant(tmp_path, spec, threads=2, cache=cache) is None


@pytest.mark.parametrize("content", ["", "[]", '{"x": 1', '{"x": 3}'])
def test_a_damaged_memory_is_not_believed(
    spec: VoiceSpec, cpu: set[str], times: dict[str, float | None], tmp_path: Path, content: str
) -> None:
    cpu.add("amx_bf16")
    cache = tmp_path / "variants.json"
    cache.write_text(content)
    assert choose_variant(tmp_path, spec, threads=2, cache=cache) == "bf16"
    assert "bf16" in json.loads(cache.read_text()).values()


def test_nothing_is_measured_where_there_is_no_choice(
    spec: VoiceSpec, cpu: set[str], times: dict[str, float | None], tmp_path: Path
) -> None:
    assert choose_variant(tmp_path, spec, threads=2, cache=None) == "fp32"
    assert TimedEngine.opened == []
