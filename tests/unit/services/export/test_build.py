"""Which variants a voice gets, by what was asked for and what the machine, the judges and the sentences allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any, ClassVar

import pytest

from services.export import build
from services.export.build import KNOWN, USUAL, Wishes, build_voice
from services.export.cli import main
from services.export.export import VARIANTS
from services.export.gate import Candidate, GateReport, Limits, Measure, Verdict
from services.export.progress import Progress
from services.export.quantization import QUANTISED, Quantised
from shared.errors import EngineError, MissingExtraError, NotFoundError, UserError
from shared.model_source import ModelSource
from shared.provenance import Provenance
from shared.voice import VoiceSpec
from shared.voice.spec import Variant
from tests.unit.services.export.conftest import Exported

JUDGED = set(build.REPLACED) & set(USUAL)


def machine(*features: str, openvino: bool = True, gpu: bool = False) -> Callable[[Variant], str | None]:
    """`why_not` as it answers on a machine with these CPU features, a GPU and OpenVINO or without."""

    def why_not(variant: Variant) -> str | None:
        if variant.device == "gpu" and not gpu:
            return "no GPU"
        if variant.engine == "openvino" and not openvino:
            return "no OpenVINO"
        lacking = variant.requires and not set(variant.requires) & set(features)
        return f"no {variant.requires[0]}" if lacking else None

    return why_not


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
        return Quantised({name: variant for name, variant in QUANTISED.items() if name in names}, {})

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
    monkeypatch.setattr(build, "why_not", machine("avx512_bf16", "avx512_vnni"))
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
    assert {name for name, variant in spec.variants.items() if variant.gate == "passed"} == JUDGED
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
    assert {name: spec.variants[name].gate for name in JUDGED} == dict.fromkeys(JUDGED, "ungated")


@pytest.mark.parametrize(
    ("here", "left_out"),
    [
        (machine(), {"bf16", "int8", "int8-bf16", "int8-onnxruntime"}),
        (machine("avx512_vnni"), {"bf16", "int8-bf16"}),
        (machine("avx512_bf16", "avx512_vnni"), set()),
        (machine("avx512_bf16", "avx512_vnni", openvino=False), set(USUAL) - {"fp32", "int8-onnxruntime"}),
        (machine(openvino=False), set(USUAL) - {"fp32"}),
    ],
)
def test_what_the_machine_does_not_run_is_left_out_and_said(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    here: Callable[[Variant], str | None],
    left_out: set[str],
) -> None:
    monkeypatch.setattr(build, "why_not", here)
    assert set(bench.build(language="es").variants) == set(USUAL) - left_out
    assert all(any(f"Left out: {name}, for no " in line for line in bench.said) for name in left_out)


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


def test_what_nobody_can_judge_here_is_made_only_without_the_gate(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "why_not", machine("avx512_bf16"))
    with pytest.raises(EngineError, match=r"int8 cannot be judged.*no avx512_vnni(.|\n)*--no-gate"):
        bench.build(language="es", variants=("bf16", "int8"))
    assert list(bench.output.iterdir()) == []
    spec = bench.build(language="es", variants=("bf16", "int8"), judge=False)
    assert {spec.variants[name].gate for name in ("bf16", "int8")} == {"ungated"}
    assert bench.searched is False, "this processor would find that int8 saves nothing"


def test_what_cannot_be_compared_with_pytorch_is_never_made(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "why_not", machine(openvino=False))
    with pytest.raises(EngineError, match=r"fp32-openvino is not made.*no OpenVINO"):
        bench.build(language="es", variants=("fp32-openvino",), judge=False)
    assert list(bench.output.iterdir()) == []


def test_lines_of_several_sentences_are_parted(bench: Bench, tmp_path: Path) -> None:
    names = [one + other for one in ascii_lowercase for other in ascii_lowercase]
    lines = [f"la casa de {name}. el perro de {name}." for name in names]
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    bench.build(language="es", variants=("int8",), sentences=path)
    assert len(bench.calibrated) == 2 * 32


def test_too_few_words_are_told_before_anything_is_made(bench: Bench, tmp_path: Path) -> None:
    """Lines have words enough, and the voice speaks them in pieces that most of them share."""
    names = [one + other for one in ascii_lowercase for other in ascii_lowercase]
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(f"la casa de la calle. perro {name}." for name in names), encoding="utf-8")
    bench.output = tmp_path / "voice"
    bench.output.mkdir()
    with pytest.raises(UserError, match=r"at least 2000 words.* was given 1\d\d\d .*Add sentences"):
        bench.build(language="es", variants=("int8",), sentences=path)
    assert list(bench.output.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_told_before_anything_is_made(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "file/cache"))
    bench.output = tmp_path / "voice"
    bench.output.mkdir()
    with pytest.raises(UserError, match=r"file/cache/export cannot be written .* set VITS_CACHE"):
        bench.build(language="es")
    assert list(bench.output.iterdir()) == []
    bench.build(language="es", variants=("fp32-openvino",))  # which needs none


def test_fp16_is_judged_where_there_is_a_gpu_and_else_said_to_be_ungated(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench.build(language="kor", variants=("fp16",)).variants["fp16"].gate == "ungated"
    assert any("fp16 is left ungated" in line and "no GPU" in line for line in bench.said)
    monkeypatch.setattr(build, "why_not", machine(gpu=True))
    spec = bench.build(language="es", variants=("fp16",))
    assert bench.candidates == [Candidate("fp16", "fp32")]
    assert (spec.variants["fp16"].gate, spec.recommended[0]) == ("passed", "fp16")


def test_every_variant_is_known_once_and_what_differs_is_judged() -> None:
    assert len(USUAL) == len(set(USUAL)) == len(KNOWN) - 1
    assert set(KNOWN) - set(build.REPLACED) == {n for n, v in KNOWN.items() if v.gate == "reference"}


def test_one_model_is_named_one_way(deterministic: Exported, tmp_path: Path) -> None:
    for arguments in ([], [str(deterministic.model_folder), "--model", "eva@latest"]):
        with pytest.raises(UserError, match="Name one model"):
            main([*arguments, "--store", str(tmp_path)])


def test_another_format_wants_a_folder(deterministic: Exported, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--output"):
        main([str(deterministic.model_folder), "--format", "piper", "--store", str(tmp_path)])
