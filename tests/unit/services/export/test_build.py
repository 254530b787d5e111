"""Which variants a voice gets, by what was asked for and what the machine, the judges and the sentences allow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from services.export import build
from services.export.build import KNOWN, USUAL, Wishes, build_voice
from services.export.cli import main
from services.export.export import VARIANTS
from services.export.gate import Candidate, GateReport, Limits, Measure, Verdict
from services.export.progress import Progress
from services.export.quantization import QUANTISED, Quantised
from shared.errors import MissingExtraError, NotFoundError, UserError
from shared.model_source import ModelSource
from shared.provenance import Provenance
from shared.voice import VoiceSpec
from tests.unit.services.export.conftest import Exported

ALL_FEATURES = frozenset({"avx512_bf16", "amx_bf16", "avx512_vnni"})


class Judges:
    """Judges that are installed, or not, and never asked."""

    absent: ClassVar[dict[str, str]] = {}

    def __init__(self, **_: Any) -> None:
        self.missing = self.absent


class Bench:
    """A workbench: what was exported is a copy, what was calibrated and judged is remembered."""

    def __init__(self, voice: Exported, output: Path) -> None:
        self.voice, self.output = voice, output
        self.said: list[str] = []
        self.calibrated: Sequence[str] = ()
        self.candidates: list[Candidate] = []
        self.failing: set[str] = set()
        self.speaks = True
        self.searched: bool | None = None

    def export(
        self, _model: Path, folder: Path, *, variants: Sequence[str], language: str, **_: Any
    ) -> VoiceSpec:
        spec = VoiceSpec.read(self.voice.folder)
        chosen = {name: VARIANTS[name] for name in dict.fromkeys(["fp32", *variants])}
        spec = spec.model_copy(
            update={"variants": chosen, "language": language, "recommended": [*reversed(chosen)]}
        )
        spec.write(folder)
        return spec

    def quantise(
        self, folder: Path, names: Sequence[str], *, sentences: Sequence[str], search: bool, **_: Any
    ) -> Quantised:
        self.calibrated, self.searched = sentences, search
        source = VoiceSpec.read(folder).variants["fp32"]
        made = {
            name: source.model_copy(update={"engine": "openvino", "precision": "int8", "requires": requires})
            for name, requires in QUANTISED.items()
            if name in names
        }
        return Quantised({name: v.model_copy(update={"gate": "ungated"}) for name, v in made.items()}, {})

    def gate(
        self, folder: Path, candidates: Sequence[Candidate], *, sentences: Sequence[str], **_: Any
    ) -> GateReport:
        assert not set(sentences) & set(self.calibrated)
        self.candidates = list(candidates)
        verdicts = []
        for candidate in candidates:
            passed = candidate.variant not in self.failing
            measure = Measure("dnsmos_drop", 0.2, 0.1, 0.3, 0.05, passed, "DNSMOS fell by 0.2")
            verdicts.append(Verdict(candidate.variant, candidate.replaces, True, (measure,)))
        figures = {"dnsmos": 3.2, "distillmos": 4.0, "wer": 0.05}
        timed = ["fp32", *(candidate.variant for candidate in candidates)]
        speed = {name: 1000.0 - place for place, name in enumerate(timed)}
        return GateReport(tuple(verdicts), "", 1, 2000, Limits(), figures, speed)

    def build(self, **wishes: Any) -> VoiceSpec:
        source = ModelSource(self.voice.model_folder, "eva", Provenance(), None)
        return build_voice(source, self.output, Wishes(**wishes), Progress(self.said.append))


@pytest.fixture
def bench(deterministic: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(deterministic, tmp_path)
    monkeypatch.setattr(build, "export_voice", made.export)
    monkeypatch.setattr(build, "quantise", made.quantise)
    monkeypatch.setattr(build, "gate", made.gate)
    monkeypatch.setattr(build, "speaks", lambda *_, **__: made.speaks)
    monkeypatch.setattr(build, "Judges", Judges)
    monkeypatch.setattr(Judges, "absent", {})
    monkeypatch.setattr(build, "cpu_features", lambda: ALL_FEATURES)
    monkeypatch.setattr(build, "why_not", lambda variant: None)
    return made


def test_all_that_is_usual_is_made_and_judged(bench: Bench) -> None:
    spec = bench.build(language="es")
    assert set(spec.variants) == set(USUAL)
    assert {c.variant: c.replaces for c in bench.candidates} == {
        "bf16": "fp32-openvino",
        "int8-bf16": "bf16",
        "int8": "fp32-openvino",
        "int8-onnxruntime": "fp32",
    }
    assert {name for name, variant in spec.variants.items() if variant.gate == "passed"} == set(
        build.REPLACED
    )
    assert VoiceSpec.read(bench.output) == spec


def test_what_fails_is_not_in_the_voice(bench: Bench) -> None:
    bench.failing = {"int8"}
    spec = bench.build(language="es")
    assert set(spec.variants) == set(USUAL) - {"int8"}
    assert "int8" not in spec.recommended


@pytest.mark.parametrize("speaks", [True, False])
def test_layers_are_searched_where_there_is_speech_to_measure(bench: Bench, speaks: bool) -> None:
    bench.speaks = speaks
    bench.build(language="es")
    assert bench.searched is speaks


def test_without_the_gate_nothing_is_vouched_for(bench: Bench) -> None:
    spec = bench.build(language="es", judge=False)
    assert bench.candidates == []
    assert {name: spec.variants[name].gate for name in build.REPLACED} == dict.fromkeys(
        build.REPLACED, "ungated"
    )


@pytest.mark.parametrize(
    ("here", "left_out"),
    [
        (frozenset(), {"bf16", "int8", "int8-bf16", "int8-onnxruntime"}),
        (frozenset({"avx512_vnni"}), {"bf16", "int8-bf16"}),
        (frozenset({"avx512_bf16", "avx512_vnni"}), set()),
    ],
)
def test_what_the_processor_does_not_compute_is_left_out_and_said(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, here: frozenset[str], left_out: set[str]
) -> None:
    monkeypatch.setattr(build, "cpu_features", lambda: here)
    assert set(bench.build(language="es").variants) == set(USUAL) - left_out
    assert all(any(name in line for line in bench.said) for name in left_out)


def test_without_sentences_or_judges_only_the_exact_is_made_and_it_is_said(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(bench.build(language="kor").variants) == {"fp32", "fp32-openvino"}
    assert "--sentences" in bench.said[-1]
    monkeypatch.setattr(Judges, "absent", {"dnsmos": "pip install speechmos"})
    assert set(bench.build(language="es").variants) == {"fp32", "fp32-openvino"}
    assert "pip install speechmos" in bench.said[-1]
    assert bench.calibrated == ()


def test_asked_for_by_name_the_same_is_refused_before_anything_is_made(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="no list of sentences for 'kor'"):
        bench.build(language="kor", variants=("bf16",))
    with pytest.raises(NotFoundError, match="did you mean 'int8'"):
        bench.build(language="es", variants=("int9",))
    monkeypatch.setattr(Judges, "absent", {"dnsmos": "pip install speechmos"})
    with pytest.raises(MissingExtraError, match=r"speechmos(.|\n)*--no-gate"):
        bench.build(language="es", variants=("int8",))
    assert list(bench.output.iterdir()) == []


def test_what_cannot_be_computed_here_is_made_when_asked_for_and_left_ungated(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "why_not", lambda variant: "no CPU" if variant.precision == "int8" else None)
    spec = bench.build(language="es", variants=("bf16", "int8"))
    assert (spec.variants["bf16"].gate, spec.variants["int8"].gate) == ("passed", "ungated")
    assert any("int8 is left ungated: no CPU" in line for line in bench.said)


def test_every_variant_is_known_once_and_what_differs_is_judged() -> None:
    assert len(USUAL) == len(set(USUAL)) == len(KNOWN) - 1
    exact = {name for name, variant in VARIANTS.items() if variant.gate == "reference"}
    assert set(USUAL) == exact | set(build.REPLACED)


def test_one_model_is_named_one_way(deterministic: Exported, tmp_path: Path) -> None:
    for arguments in ([], [str(deterministic.model_folder), "--model", "eva@latest"]):
        with pytest.raises(UserError, match="Name one model"):
            main([*arguments, "--store", str(tmp_path)])


def test_another_format_wants_a_folder(deterministic: Exported, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--output"):
        main([str(deterministic.model_folder), "--format", "piper", "--store", str(tmp_path)])
