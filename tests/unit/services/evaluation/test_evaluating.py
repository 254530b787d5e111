"""A system scored beside the recordings; systems found; what cannot be scored refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from services.evaluation.evaluating import MEASURES, Evaluation, evaluate
from services.evaluation.judges import Judges
from services.evaluation.report import as_json, change, figure, write_html
from services.evaluation.statistics import Difference, Estimate
from services.evaluation.systems import (
    ModelSystem,
    RecordingsSystem,
    Sentence,
    Spoken,
    audio_files,
    find,
    pair,
)
from shared.audio import Audio, read_audio, write_wav
from shared.errors import DataError, ModelError, NotFoundError, RequestError, TextError, UserError
from shared.registry import Registry
from shared.store import Store
from shared.voice import Voice
from shared.voice.spec import DecoderPlan, Defaults, Variant, VoiceSpec
from tests.conftest import write_small_model
from tests.unit.services.evaluation.conftest import RATE, tone


class Buzzer:
    """Says each sentence as a buzz; one that holds ``#`` it cannot say."""

    kind = "voice"
    name = "buzzer"
    language = "es"

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, sentence: Sentence) -> Spoken:
        if "#" in (sentence.text or ""):
            raise TextError("nothing of it can be spoken")
        self.said.append(sentence.id)
        return Spoken(Audio(tone(150, rate=22050), 22050), 0.25, unknown=("ß",))


def recorded(number: int, *, speaker: str | None = None) -> Sentence:
    sound = Audio(tone(150 * 2 ** (1 / 12) + number), RATE)
    return Sentence(f"clip{number}", "hola", speaker, lambda: sound)


def scored(sentences: list[Sentence], *, judges: Judges | None = None) -> Evaluation:
    return evaluate(Buzzer(), sentences, judges or Judges(language="es"))


def test_everything_is_measured_with_the_recordings_beside_it(fake_judges: dict[str, str]) -> None:
    result = scored([recorded(number) for number in range(4)])
    system, recordings = result.rows["system"], result.rows["recordings"]
    assert set(system) == set(MEASURES)
    assert set(recordings) == {"wer", "cer", "dnsmos", "distillmos", "likeness"}
    assert set(result.differences) == {"wer", "cer", "dnsmos", "distillmos"}
    assert system["real_time_factor"].mean == pytest.approx(0.25)
    assert system["f0_error"].mean == pytest.approx(115, abs=20)  # a semitone and up to 3 Hz
    assert recordings["likeness"].mean > system["likeness"].mean
    assert (result.words, result.missing, result.not_measured, result.left_out) == (4, {}, {}, {})


def test_the_first_computation_is_not_timed(fake_judges: dict[str, str]) -> None:
    buzzer = Buzzer()
    evaluate(buzzer, [recorded(0), recorded(1)], Judges(only=[]))
    assert buzzer.said == ["clip0", "clip0", "clip1"]


def test_without_recordings_what_needs_them_is_named(fake_judges: dict[str, str]) -> None:
    result = scored([Sentence("1", "hola"), Sentence("2", "adiós")])
    assert "recordings" not in result.rows
    assert set(result.not_measured) == {"likeness", "mel_distance", "log_spectral_distance", "f0_error"}
    assert "no recordings" in result.not_measured["likeness"]


def test_missing_and_unasked_judges_are_named(
    fake_judges: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.evaluation import naturalness

    def gone() -> None:
        raise naturalness.MissingJudgeError("DistillMOS is gone: install it")

    monkeypatch.setattr(naturalness, "DistillMos", gone)
    result = scored([recorded(0)], judges=Judges(only=["dnsmos", "distillmos"]))
    assert result.missing == {"distillmos": "DistillMOS is gone: install it"}
    assert result.not_measured["distillmos"] == "DistillMOS is gone: install it"
    assert "was not asked" in result.not_measured["wer"]
    assert "distillmos" not in result.rows["system"]


def test_sentences_that_cannot_be_said_are_left_out_of_both_rows(fake_judges: dict[str, str]) -> None:
    bad = Sentence("bad", "#", None, recorded(9).recording)
    result = scored([bad, recorded(0), recorded(1)])
    assert result.left_out == {"bad": "nothing of it can be spoken"}
    assert {row["dnsmos"].count for row in result.rows.values()} == {2}
    with pytest.raises(DataError, match="could say none of 1 sentences"):
        scored([bad])


def test_likeness_is_to_the_sentences_own_speaker(fake_judges: dict[str, str]) -> None:
    low = Audio(tone(150, rate=22050), 22050)
    high = Audio(tone(2000, harmonics=1), RATE)
    ana = [Sentence(f"a{n}", "hola", "ana", lambda: low) for n in range(2)]
    eva = [Sentence(f"e{n}", "hola", "eva", lambda: high) for n in range(2)]
    one = evaluate(Buzzer(), ana, Judges(only=["likeness"])).rows["system"]["likeness"].mean
    both = evaluate(Buzzer(), ana + eva, Judges(only=["likeness"]))
    assert one == pytest.approx(1.0, abs=1e-3)
    assert both.rows["system"]["likeness"].mean < 0.8
    assert both.rows["recordings"]["likeness"].mean == pytest.approx(1.0, abs=1e-3)


# -- Systems -------------------------------------------------------------------------------------------


@pytest.fixture
def voice_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A voice of two speakers, without graphs: what opens it speaks a buzz in their stead."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    VoiceSpec(
        model=None,
        language="es",
        sampling_rate=RATE,
        hop_length=256,
        latent_channels=4,
        num_speakers=2,
        speakers={"ana": 0, "luis": 1},
        defaults=Defaults(noise_scale=0.667, noise_scale_duration=0.8, speaking_rate=1.0),
        front_end={"kind": "characters"},
        decoder=DecoderPlan(halo_frames=4, first_window_frames=16, window_frames=64),
        token_buckets=[16],
        frame_multiple=8,
        variants={"fp32": Variant(encoder="e.onnx", flow="f.onnx", decoder="d.onnx", opset=18)},
        licence="CC0-1.0",
        sources=[],
        consent=None,
    ).write(folder)

    def open_voice(folder: Path, *, variant: str, threads: int | None) -> SimpleNamespace:
        spec = VoiceSpec.read(folder)
        spec.variant(variant)

        def synthesize(text: str, *, speaker: str | None, seed: int) -> SimpleNamespace:
            pitch = 100 + 10 * spec.speaker_id(speaker) + seed
            script = SimpleNamespace(unknown=tuple(set(text) & {"ß"}))
            assert opened.warm, "what is prepared for each length would be timed"
            return SimpleNamespace(samples=tone(pitch), sampling_rate=RATE, script=script)

        opened = SimpleNamespace(spec=spec, synthesize=synthesize, warm=False)
        opened.warm_up = lambda: setattr(opened, "warm", True)
        return opened

    monkeypatch.setattr(Voice, "open", open_voice)
    return folder


def test_a_voice(voice_folder: Path) -> None:
    voice = find(str(voice_folder), "memory://", variant="fp32", seed=5)
    assert (voice.kind, voice.name, voice.language) == ("voice", "tiny (fp32)", "es")
    spoken = voice.say(Sentence("1", "la calle ß", "luis"))
    assert np.array_equal(spoken.audio.samples, tone(115))
    assert spoken.unknown == ("ß",)
    assert spoken.seconds is not None
    chosen = find(str(voice_folder), "memory://", variant="fp32", speaker="ana")
    assert np.array_equal(chosen.say(Sentence("1", "hola", "luis")).audio.samples, tone(100))


def test_a_model(spanish_model: Path) -> None:
    model = find(str(spanish_model), "memory://", variant="fp32")
    assert (model.kind, model.name, model.language) == ("model", "model", "spa")
    spoken = model.say(Sentence("1", "la casa ß"))
    assert spoken.audio.sampling_rate == 16000
    assert len(spoken.audio.samples)
    assert spoken.seconds is not None
    assert "ß" in spoken.unknown
    again = model.say(Sentence("1", "la casa ß"))
    assert np.array_equal(again.audio.samples, spoken.audio.samples)


def test_speakers_of_a_model(tmp_path: Path) -> None:
    folder = write_small_model(tmp_path / "two", num_speakers=2)
    (folder / "speakers.json").write_text('{"ana": 0, "eva": 1}')
    ana, eva = (
        ModelSystem(folder, "two").say(Sentence("1", "hola", speaker)).audio.samples
        for speaker in ("ana", "eva")
    )
    assert ana.shape != eva.shape or not np.array_equal(ana, eva)
    chosen = ModelSystem(folder, "two", speaker="eva").say(Sentence("1", "hola", "ana")).audio.samples
    assert np.array_equal(chosen, eva)
    with pytest.raises(UserError, match="no speaker 'anna', did you mean 'ana'"):
        ModelSystem(folder, "two", speaker="anna")
    (folder / "speakers.json").write_text("[]")
    with pytest.raises(ModelError, match=r"speakers\.json"):
        ModelSystem(folder, "two")


def test_voices_and_models_of_a_store(
    voice_folder: Path, spanish_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))
    url = f"file://{tmp_path / 'store'}"
    registry = Registry(Store.open(url))
    kept: dict[str, Any] = {"licence": "CC0-1.0", "sources": [], "consent": None, "lineage": {}}
    registry.publish("models", "ana", spanish_model, **kept)
    assert find("ana", url, variant="fp32").kind == "model"
    registry.publish("voices", "ana", voice_folder, **kept)
    assert find("ana", url, variant="fp32").kind == "voice"
    with pytest.raises(NotFoundError, match=r"no folder eva.*neither a voice nor a model"):
        find("eva", url, variant="fp32")
    with pytest.raises(NotFoundError, match=r"no folder \./eva"):
        find("./eva", url, variant="fp32")
    with pytest.raises(NotFoundError, match="no variant 'int9'"):
        find("ana", url, variant="int9")
    with pytest.raises(RequestError, match="no speaker 'eva'"):
        find("ana", url, variant="fp32", speaker="eva")


def test_files_are_paired_with_sentences_by_their_ids(tmp_path: Path) -> None:
    for name in ("one.wav", "deep/two.flac.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_wav(tmp_path / name, tone(200), RATE)
    (tmp_path / "notes.txt").write_text("not a sound")
    files = audio_files(tmp_path)
    assert sorted(files) == ["deep/two.flac", "one"]
    paired = pair(
        files, [Sentence("audio/one", "uno"), Sentence("two.flac", "dos"), Sentence("x", "x")], "data"
    )
    assert {one.id: one.text for one in paired} == {"one": "uno", "deep/two.flac": "dos"}
    system = RecordingsSystem("mine", {name: partial(read_audio, path) for name, path in files.items()})
    assert [len(system.say(one).audio.samples) for one in paired] == [RATE, RATE]


def test_files_that_no_sentence_or_two_belong_to_are_all_named(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("one", "two", "three")}
    twice = [Sentence("a/two", "dos"), Sentence("b/two", "2"), Sentence("three", "tres")]
    with pytest.raises(DataError, match="2 recordings of 3") as caught:
        pair(files, twice, "data")
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["one", "two"]


def test_folders_that_cannot_be_judged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no recordings"):
        audio_files(tmp_path)
    (tmp_path / "broken.wav").write_bytes(b"RIFF, or so it says")
    (tmp_path / "empty.flac").touch()
    write_wav(tmp_path / "good.wav", tone(200), RATE)
    write_wav(tmp_path / "good.WAV", tone(200), RATE)
    with pytest.raises(DataError) as caught:
        audio_files(tmp_path)
    text = str(caught.value)
    assert all(name in text for name in ("broken.wav", "empty.flac", "have one name"))


# -- Reports -------------------------------------------------------------------------------------------


def test_the_json_is_json(fake_judges: dict[str, str]) -> None:
    result = scored([recorded(0)])
    text = json.dumps(as_json(result, {"arguments": {}}), allow_nan=False)
    read = json.loads(text)
    assert read["rows"]["system"]["dnsmos"] == {"mean": 3.0, "low": None, "high": None, "count": 1}
    assert read["clips"][0]["system"]["transcript"] == "hola"
    assert read["judges"]["dnsmos"] == {"measures": "DNSMOS", "missing": None}


def test_the_page_needs_nothing_else_and_trusts_no_text(fake_judges: dict[str, str], tmp_path: Path) -> None:
    fake_judges["heard"] = "<script>alert(1)</script>"
    sentences = [*(recorded(number) for number in range(3)), Sentence("lonely", "<b>sola</b>")]
    write_html(scored(sentences), tmp_path / "page.html", about={"seed": 0}, players=4)
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:audio/flac;base64,") == 4 + 3
    assert "<script>" not in page
    assert "&lt;b&gt;sola" in page
    assert "http" not in page
    assert "Missing judges" not in page
    write_html(scored(sentences), tmp_path / "page.html", about={"seed": 0}, players=2)
    assert (tmp_path / "page.html").read_text().count("<audio") <= 4


def test_the_page_names_who_is_missing(fake_judges: dict[str, str], tmp_path: Path) -> None:
    result = scored([recorded(0)], judges=Judges(only=["dnsmos"]))
    result.missing["likeness"] = "the weights are not here"
    write_html(result, tmp_path / "page.html", about={})
    page = (tmp_path / "page.html").read_text()
    assert "Missing judges" in page
    assert "the weights are not here" in page


def test_figures_in_their_units() -> None:
    assert figure("wer", Estimate(0.1234, 0.1, 0.15, 9)) == "12.3 [10.0, 15.0] %"
    assert figure("dnsmos", Estimate(3.0, None, None, 1)) == "3.000"
    assert figure("f0_error", Estimate(101.4, 90.0, 110.0, 9)) == "101 [90, 110] cents"
    assert figure("cer", None) == "–"
    assert change("wer", Difference(0.01, -0.01, 0.02, 9, 0.1, 0.11, 90)) == "+1.0 [-1.0, +2.0] %"
