"""The gate with judges that say what they are told to, on a tiny voice whose variants are real."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from services.evaluation import Score, log_spectral_distance
from services.evaluation.transcripts import Errors
from services.export import gate as gate_module
from services.export.gate import (
    FIRST_SENTENCES,
    SEED,
    TIMED_SENTENCES,
    Candidate,
    GateReport,
    Limits,
    Measure,
    Row,
    Verdict,
    gate,
    quality_measures,
    speaks,
    speed_measure,
)
from services.export.gate_page import settle, write_page
from services.export.progress import Progress
from services.export.sentences import GATE_WORDS, Sentences, read_sentences, sentences_for, words
from shared.errors import MissingExtraError, UserError
from shared.text import FrontEnd
from shared.text.script import plan_script
from shared.voice import Voice, VoiceSpec
from tests.unit.services.export.conftest import ALPHABET, Exported, FakeJudges, opinions

FRONT_END = FrontEnd.from_spec(
    {"kind": "characters", "vocab": {c: n for n, c in enumerate(ALPHABET)}, "add_blank": True}
)
SENTENCES = [f"la casa numero {word} de la calle" for word in ("uno", "dos", "tres", "cuatro")]
FEW = Limits(words=20, log_spectral_distance=100.0)


@pytest.fixture
def voice(stochastic: Exported, tmp_path: Path) -> Path:
    """A voice with a second variant, which is fp32 under another name."""
    folder = tmp_path / "voice"
    shutil.copytree(stochastic.folder, folder)
    opened = stochastic.voice()
    spec = opened.spec
    opened.close()
    twin = spec.variants["fp32"].model_copy(update={"gate": "ungated"})
    spec.model_copy(update={"variants": {**spec.variants, "twin": twin}}).write(folder)
    return folder


def run(
    folder: Path,
    judges: FakeJudges,
    cache: Path,
    limits: Limits = FEW,
    progress: Progress | None = None,
) -> GateReport:
    return gate(
        folder,
        [Candidate("twin")],
        sentences=SENTENCES,
        source="four sentences",
        judges=judges,
        cache=cache,
        threads=1,
        limits=limits,
        progress=progress,
    )


def alter(folder: Path, graph: str) -> None:
    """Give the twin a graph of its own, whose weights are all too large."""
    model = onnx.load(folder / f"fp32/{graph}.onnx")
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            tensor.CopyFrom(numpy_helper.from_array(1.2 * numpy_helper.to_array(tensor), tensor.name))
    (folder / "twin").mkdir()
    onnx.save(model, folder / f"twin/{graph}.onnx")
    spec = VoiceSpec.read(folder)
    twin = spec.variants["twin"].model_copy(update={graph: f"twin/{graph}.onnx"})
    spec.model_copy(update={"variants": {**spec.variants, "twin": twin}}).write(folder)


def spoken(voice: Voice, number: int) -> NDArray[np.float32]:
    """A sentence, as the gate lets it be spoken."""
    speaker = number % voice.spec.num_speakers
    utterance = voice.prepare(SENTENCES[number], speaker=speaker, seed=SEED)
    return np.concatenate(list(voice.decode(utterance)))


@pytest.mark.parametrize("graph", ["decoder", "flow"])
def test_a_variant_is_heard_itself_as_every_speaker(voice: Path, tmp_path: Path, graph: str) -> None:
    alter(voice, graph)
    with Voice.open(voice, threads=1) as exact, Voice.open(voice, variant="twin", threads=1) as twin:
        pairs = [(spoken(exact, number), spoken(twin, number)) for number in range(len(SENTENCES))]
        rate = exact.sampling_rate
    changes = [np.subtract(opinions(other), opinions(one)) for one, other in pairs]
    assert len({len(one) for one, _ in pairs}) > 1
    assert np.abs(changes).min() > 1e-5
    report = run(voice, FakeJudges(), tmp_path / "cache")
    dnsmos, distillmos, _, distance, _ = (measure.value for measure in report.verdict("twin").measures)
    np.testing.assert_allclose([dnsmos, distillmos], np.mean(changes, axis=0), rtol=1e-3)
    for drop, change in zip(report.verdict("twin").measures[:2], np.transpose(changes), strict=True):
        assert drop.low is not None
        assert drop.high is not None
        assert change.min() - 1e-6 <= drop.low < drop.value < drop.high <= change.max() + 1e-6
    assert distance == pytest.approx(np.mean([log_spectral_distance(*pair, rate) for pair in pairs]))
    assert report.about["speakers"] == "3 of 3"
    np.testing.assert_array_equal(report.heard[1].samples["twin"], pairs[1][1])


def test_other_durations_are_not_judged(voice: Path, tmp_path: Path) -> None:
    """A rounding difference in a duration shifts all that follows: the variant then speaks fp32's latents."""
    alter(voice, "encoder")
    with Voice.open(voice, threads=1) as exact, Voice.open(voice, variant="twin", threads=1) as twin:
        assert spoken(exact, 0).shape != spoken(twin, 0).shape
    report = run(voice, FakeJudges(), tmp_path / "cache")
    assert [measure.value for measure in report.verdict("twin").measures[:-1]] == [0, 0, 0, 0]


def test_what_sounds_the_same_passes_but_for_speed_perhaps(voice: Path, tmp_path: Path) -> None:
    report = run(voice, FakeJudges(), tmp_path / "cache")
    verdict = report.verdict("twin")
    *quality, speed = verdict.measures
    assert len(quality) == 4
    assert all(measure.passed for measure in quality)
    assert [measure.value for measure in quality] == [0, 0, 0, 0]
    assert speed.low is not None
    assert verdict.passed == speed.passed == (speed.low > 1)
    assert (report.sentences, report.words) == (4, 28)


def test_a_sentence_once_scored_is_not_scored_again(voice: Path, tmp_path: Path) -> None:
    judges = FakeJudges()
    first = run(voice, judges, tmp_path / "cache")
    assert len(judges.heard) == 2 * len(SENTENCES)
    second = run(voice, judges, tmp_path / "cache")
    assert len(judges.heard) == 2 * len(SENTENCES)
    assert [m.value for m in second.verdict("twin").measures[:-1]] == [
        m.value for m in first.verdict("twin").measures[:-1]
    ]


def test_other_judges_or_engines_judge_anew(
    voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(voice, FakeJudges(), tmp_path / "cache")
    others = FakeJudges(identity={"dnsmos": "another"})
    run(voice, others, tmp_path / "cache")
    assert len(others.heard) == 2 * len(SENTENCES)
    others.heard.clear()
    run(voice, others, tmp_path / "cache")
    assert others.heard == []
    monkeypatch.setattr(gate_module, "computed_by", lambda: {"onnxruntime": "another"})
    run(voice, others, tmp_path / "cache")
    assert len(others.heard) == 2 * len(SENTENCES)


def test_a_transcript_may_hold_any_character(voice: Path, tmp_path: Path) -> None:
    judges = FakeJudges(heard_after="\u2028 and \x85")
    run(voice, judges, tmp_path / "cache")
    judges.heard.clear()
    run(voice, judges, tmp_path / "cache")
    assert judges.heard == []


def test_the_report_says_how_it_came_about(voice: Path, tmp_path: Path) -> None:
    report = run(voice, FakeJudges(identity={"dnsmos": "speechmos 1.0"}), tmp_path / "cache")
    about = report.to_json()["about"]
    assert about["judges"] == {"dnsmos": "speechmos 1.0"}
    assert about["computed_by"].keys() == {"onnxruntime", "openvino", "cpu", "cpu_features"}
    assert (about["threads"], about["sentences"]) == (1, "four sentences")
    write_page(voice, report, title="A voice")
    page = (voice / "report.html").read_text(encoding="utf-8")
    assert "speechmos 1.0" in page
    assert "four sentences" in page


def test_a_cut_off_cache_is_mended(voice: Path, tmp_path: Path) -> None:
    run(voice, FakeJudges(), tmp_path / "cache")
    for path in (tmp_path / "cache").iterdir():
        text = path.read_text(encoding="utf-8")
        path.write_text(text[: len(text) - 20], encoding="utf-8")
    judges = FakeJudges()
    run(voice, judges, tmp_path / "cache")
    assert judges.heard == [SENTENCES[-1]] * 2
    judges.heard.clear()
    run(voice, judges, tmp_path / "cache")
    assert judges.heard == []


def test_a_cache_that_cannot_be_written_is_named(voice: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/cache cannot be written .* set VITS_CACHE"):
        run(voice, FakeJudges(), tmp_path / "file/cache")


def test_other_graphs_are_judged_anew(voice: Path, tmp_path: Path) -> None:
    run(voice, FakeJudges(), tmp_path / "cache")
    path = voice / "fp32/decoder.onnx"
    model = onnx.load(path)
    model.doc_string = "other bytes"
    onnx.save(model, path)
    judges = FakeJudges()
    run(voice, judges, tmp_path / "cache")
    assert len(judges.heard) == 2 * len(SENTENCES)


def test_what_nobody_understands_is_not_judged(voice: Path, tmp_path: Path) -> None:
    judges, said = FakeJudges(wrong=100), list[str]()
    report = run(voice, judges, tmp_path / "cache", progress=Progress(said.append))
    assert "Only speed was measured" in report.why_not_judged
    assert "--recogniser" in report.why_not_judged
    assert report.why_not_judged in said
    verdict = report.verdict("twin")
    assert not verdict.passed
    assert [measure.name for measure in verdict.measures] == ["speed against fp32"]
    assert len(judges.heard) == len(SENTENCES)  # the reference alone
    assert "cannot be understood" in report.why_not_judged


def test_an_untrained_model_is_found_out_by_its_first_sentences(voice: Path, tmp_path: Path) -> None:
    judges = FakeJudges(wrong=100)
    many = [f"{sentence} {number}" for number in range(10) for sentence in SENTENCES]
    report = gate(
        voice, [Candidate("twin")], sentences=many, judges=judges, cache=tmp_path, threads=1, limits=FEW
    )
    assert judges.heard == many[:FIRST_SENTENCES]
    assert (report.sentences, report.to_json()["judged"]) == (FIRST_SENTENCES, False)
    assert not speaks(voice, sentences=many, judges=judges, cache=tmp_path, threads=1)
    assert judges.heard == many[:FIRST_SENTENCES]  # what was scored is kept
    assert speaks(voice, sentences=many, judges=FakeJudges(), cache=tmp_path / "other", threads=1)


@pytest.mark.parametrize(
    ("field", "value"),
    [("defaults", {"noise_scale": 0.5}), ("decoder", {"window_frames": 64}), ("token_buckets", [64])],
)
def test_another_way_to_speak_is_judged_anew(voice: Path, tmp_path: Path, field: str, value: Any) -> None:
    run(voice, FakeJudges(), tmp_path / "cache")
    spec = VoiceSpec.read(voice)
    old = getattr(spec, field)
    changed = value if isinstance(old, list) else old.model_copy(update=value)
    spec.model_copy(update={field: changed}).write(voice)
    judges = FakeJudges()
    run(voice, judges, tmp_path / "cache")
    assert len(judges.heard) == 2 * len(SENTENCES)


def test_missing_judges_are_named(voice: Path, tmp_path: Path) -> None:
    judges = FakeJudges(missing={"distillmos": "distillmos is not installed", "likeness": "nor this"})
    with pytest.raises(MissingExtraError, match="distillmos is not installed") as caught:
        run(voice, judges, tmp_path)
    assert "nor this" not in str(caught.value)
    assert "--no-gate" in str(caught.value)


def test_too_few_words_are_refused(voice: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 2000 words"):
        run(voice, FakeJudges(), tmp_path, Limits())


def scores(dnsmos: float = 3.0, distillmos: float = 4.0, edits: int = 0, count: int = 40) -> list[Score]:
    return [Score(1.0, dnsmos, distillmos, "", Errors(edits, 50)) for _ in range(count)]


@pytest.mark.parametrize(
    ("candidate", "distance", "failed"),
    [
        (scores(), 0.0, []),
        (scores(dnsmos=2.951), 1.0, []),
        (scores(dnsmos=2.949), 1.0, ["DNSMOS drops by 0.051, 0.001 more than the 0.05"]),
        (scores(distillmos=3.89), 1.0, ["DistillMOS drops by 0.110, 0.010 more than the 0.10"]),
        (scores(edits=1), 1.0, ["the word error rate may be 2.00 points higher"]),
        (scores(), 9.0, ["log-spectral distance from fp32 is 9.00 dB, 6.00 more than the 3.00"]),
        (scores(dnsmos=3.5, distillmos=4.5), 0.0, []),
        (scores(dnsmos=2.0, distillmos=2.0), 0.0, ["DNSMOS", "DistillMOS"]),
    ],
)
def test_each_measure_fails_alone_and_says_by_how_much(
    candidate: list[Score], distance: float, failed: list[str]
) -> None:
    rows = [Row(score, distance) for score in candidate]
    measures = quality_measures(scores(), rows, Limits())
    complaints = [measure.complaint for measure in measures if not measure.passed]
    assert len(complaints) == len(failed)
    for complaint, expected in zip(complaints, failed, strict=True):
        assert expected in complaint


def test_an_error_rate_is_held_to_its_bound_not_its_mean() -> None:
    """Half a point more on average, but on few sentences: nobody knows, so it does not pass."""
    reference = scores(count=40)
    spread = scores(count=39) + scores(edits=10, count=1)
    rate = quality_measures(reference, [Row(score, 0.0) for score in spread], Limits())[2]
    assert rate.value == pytest.approx(0.005)
    assert rate.high is not None
    assert rate.high > 0.01
    assert not rate.passed


def test_no_faster_than_what_it_replaces_fails() -> None:
    measure = speed_measure(Candidate("new", "old"), {"old": [1.0, 1.0, 1.0], "new": [0.5, 1.1, 1.2]})
    assert not measure.passed
    assert "no faster than old" in measure.complaint
    assert speed_measure(Candidate("new", "old"), {"old": [1.0, 1.0], "new": [0.5, 0.3]}).value == 2.5


@pytest.mark.parametrize(("faster", "passed"), [(1.0, False), (1.1, True)])
def test_a_little_faster_by_chance_does_not_pass(faster: float, passed: bool) -> None:
    """Two of the same are timed; in half of the cases the second has the better mean."""
    passes = 0
    for seed in range(40):
        old, new = np.random.default_rng(seed).normal(1, 0.02, (2, TIMED_SENTENCES))
        measure = speed_measure(Candidate("new", "old"), {"old": list(old), "new": list(new / faster)})
        passes += measure.passed
    assert passes == 40 if passed else passes < 6


def test_the_page_holds_players_and_verdicts(voice: Path, tmp_path: Path) -> None:
    report = run(voice, FakeJudges(), tmp_path / "cache")
    write_page(voice, report, title="A voice <of> tests")
    page = (voice / "report.html").read_text(encoding="utf-8")
    assert "A voice &lt;of&gt; tests" in page
    assert page.count("<audio") == 2 * len(SENTENCES)
    assert "http" not in page
    report.to_json()


def found(passed: bool, *, judged: bool = True) -> GateReport:
    name, complaint = ("DNSMOS change", "DNSMOS drops") if judged else ("speed against fp32", "no faster")
    measure = Measure(name, 0.0, None, None, -0.05, passed=passed, complaint=complaint)
    verdict = Verdict("twin", "fp32", judged=judged, measures=(measure,))
    why = "" if judged else "fp32 itself cannot be understood"
    figures = {"dnsmos": 3.0, "distillmos": 4.0, "wer": 0.1}
    return GateReport((verdict,), why, 4, 28, Limits(), figures, {"fp32": 20.0, "twin": 10.0})


def test_what_passed_is_marked_and_recommended(voice: Path) -> None:
    spec = settle(voice, found(passed=True), title="t")
    assert VoiceSpec.read(voice) == spec
    assert spec.variants["twin"].gate == "passed"
    assert "<p class=passed>twin passed" in (voice / "report.html").read_text(encoding="utf-8")
    assert [name for name in spec.recommended if name in ("fp32", "twin")] == ["twin", "fp32"]
    report = json.loads((voice / "report.json").read_text(encoding="utf-8"))
    assert report["gate"]["variants"]["twin"]["passed"]
    assert "parity" in report


def test_what_failed_is_taken_out_with_its_own_files_alone(voice: Path) -> None:
    spec = VoiceSpec.read(voice)
    (voice / "twin").mkdir()
    shutil.copy(voice / "fp32/decoder.onnx", voice / "twin/decoder.onnx")
    twin = spec.variants["twin"].model_copy(update={"decoder": "twin/decoder.onnx"})
    spec.model_copy(update={"variants": {**spec.variants, "twin": twin}}).write(voice)
    others = [name for name in spec.variants if name != "twin"]
    spec = settle(voice, found(passed=False), title="t")
    assert list(spec.variants) == others
    assert "<p class=failed>twin failed" in (voice / "report.html").read_text(encoding="utf-8")
    assert not (voice / "twin/decoder.onnx").exists()
    assert (voice / "fp32/decoder.onnx").exists()


def test_what_was_not_judged_stays_ungated(voice: Path) -> None:
    spec = settle(voice, found(passed=True, judged=False), title="t")
    assert spec.variants["twin"].gate == "ungated"
    page = (voice / "report.html").read_text(encoding="utf-8")
    assert '<p class="unjudged">Quality was not judged' in page
    assert "<p class=unjudged>twin stays ungated" in page
    assert "class=failed" not in page


def test_what_was_not_judged_and_is_no_faster_is_taken_out(voice: Path) -> None:
    spec = settle(voice, found(passed=False, judged=False), title="t")
    assert "twin" not in spec.variants
    assert "twin" not in spec.recommended
    assert VoiceSpec.read(voice) == spec


@pytest.mark.parametrize(
    ("judged", "passed", "told"),
    [
        (True, True, "int8 passed the quality gate: DNSMOS change -0.200, speed against fp32 1.500"),
        (True, False, "int8 failed the quality gate: DNSMOS drops by 0.200"),
        (False, True, "int8 stays ungated, for quality was not judged: speed against fp32 1.500"),
        (False, False, "int8 is left out, quality unjudged: no faster"),
    ],
)
def test_a_verdict_is_told_with_its_figures(judged: bool, passed: bool, told: str) -> None:
    quality = Measure("DNSMOS change", -0.2, None, None, -0.05, passed, "DNSMOS drops by 0.200")
    speed = Measure("speed against fp32", 1.5, 1.4, 1.6, 1.0, judged or passed, "no faster")
    measures = (quality, speed) if judged else (speed,)
    assert Verdict("int8", "fp32", judged, measures).explain() == told


@pytest.mark.parametrize("tag", ["es", "es-419", "spa", "en-us", "eng"])
def test_lists_are_long_enough_and_apart_and_each_sentence_is_one(tag: str) -> None:
    found = sentences_for(tag)
    assert found is not None
    assert words(found.gate, tag) >= GATE_WORDS
    assert found.in_segments(FRONT_END, tag) == found
    assert not set(found.gate) & set(found.calibration)
    assert len(set(found.gate)) == len(found.gate)
    assert not any(character.isdigit() for sentence in found.gate for character in sentence)


def test_a_language_without_a_list_has_none() -> None:
    assert sentences_for("und") is None


def test_a_line_of_several_sentences_is_parted_where_the_voice_parts_it() -> None:
    """What was left of a line after its first sentence was once not heard, and its words counted as errors."""
    given = Sentences(
        ("la casa. un perro.", "el numero"), ("un perro", "sin fin. la casa. la calle.", "el mar"), "a file"
    )
    found = given.in_segments(FRONT_END, "es")
    assert [text.rstrip(".") for text in found.calibration] == ["la casa", "un perro", "el numero"]
    assert "el mar" in found.gate
    assert "un perro" not in found.gate, "it calibrates, with a full stop"
    assert not set(found.gate) & set(found.calibration)
    assert [text for text in found.gate if "calle" in text] == ["la calle."]
    long = Sentences(("hola",), ("la casa de la calle " * 20,), "a file")
    assert len(long.in_segments(FRONT_END, "es").gate) > 1
    for piece in long.in_segments(FRONT_END, "es").gate:
        assert len(plan_script(piece, FRONT_END, language="es").segments) == 1
    with pytest.raises(UserError, match=r"a file: the voice cannot speak '123 '"):
        Sentences(("hola",), ("123 ",), "a file").in_segments(FRONT_END, "xx")


def test_words_are_counted_as_error_rates_count_them() -> None:
    assert words(["hola — buenas, tardes ."], "es") == 3


def test_a_file_is_shared_out(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    lines = [f"esta es la frase número {number}" for number in range(500)]
    lines.append("¡Esta es la frase número 0!")  # which calibrates
    path.write_text("\n".join(lines), encoding="utf-8")
    found = read_sentences(path)
    assert len(found.calibration) == 32
    assert len(found.gate) == 468
    with pytest.raises(UserError, match=r"1 sentences would calibrate and be judged too, the first '¡Hola!'"):
        Sentences(("hola.", "sí"), ("¡Hola!", "no"), "a file")
    path.write_text("muy corto", encoding="utf-8")
    with pytest.raises(UserError, match="needs 2000"):
        read_sentences(path)
