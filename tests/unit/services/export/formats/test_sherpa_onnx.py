"""sherpa-onnx's own package speaks what our model says.

In a process of its own: it ends the process where a file is not to its liking.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from services.export.formats import sherpa_onnx
from services.export.formats.subject import Subject
from services.export.formats.write import write_format
from shared.errors import ModelError
from shared.provenance import Provenance
from shared.text import FrontEnd
from tests.unit.services.export.formats.conftest import MakeModel, MakePiperModel, say

needs_sherpa = pytest.mark.skipif(
    importlib.util.find_spec("sherpa_onnx") is None,
    reason="sherpa-onnx is not installed: pip install sherpa-onnx==2.0.1 sherpa-onnx-core==2.0.1",
)

SPEAK = """
import json, sys
import numpy, sherpa_onnx
order = json.loads(sys.argv[1])
scales = {"noise_scale": 0.0, "noise_scale_w": 0.0, "length_scale": order["length_scale"]}
files = {"model": "model.onnx", "tokens": "tokens.txt"}
vits = sherpa_onnx.OfflineTtsVitsModelConfig(**files, **scales)
model = sherpa_onnx.OfflineTtsModelConfig(vits=vits, num_threads=1)
tts = sherpa_onnx.OfflineTts(sherpa_onnx.OfflineTtsConfig(model=model))
request = sherpa_onnx.GenerationConfig()
request.sid, request.silence_scale = order["speaker"], 1.0
if order["phonemes"]:
    request.phoneme_codepoints = [[ord(c) for c in order["phonemes"]]]
audio = tts.generate(order["text"], request)
numpy.save("speech.npy", numpy.array(audio.samples, dtype=numpy.float32))
print(json.dumps([audio.sample_rate, tts.num_speakers]))
"""


def speak(
    folder: Path, text: str = "", phonemes: str = "", *, speaker: int = 0, length_scale: float = 1.0
) -> tuple[NDArray[np.float32], list[int]]:
    """What sherpa-onnx says without noise, and the sampling rate and number of speakers that it has read."""
    order = {"text": text, "phonemes": phonemes, "speaker": speaker, "length_scale": length_scale}
    done = subprocess.run(
        [sys.executable, "-c", SPEAK, json.dumps(order)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return np.load(folder / "speech.npy"), json.loads(done.stdout)


def agree(spoken: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    assert spoken.shape == expected.shape
    assert np.abs(expected).max() > 1e-3, "silence would agree with anything"
    np.testing.assert_allclose(spoken, expected, atol=1e-4)


@pytest.fixture(scope="module")
def characters(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An MMS-like model of three speakers, and what is written of it."""
    folder = make_model(num_speakers=3, speaker_embedding_size=3, speaking_rate=0.8)
    (folder / "speakers.json").write_text('{"ana": 0, "luis": 1, "eva": 2}')
    Provenance(licence="CC-BY-4.0", sources=("a corpus",), consent="in writing").write(folder)
    output = tmp_path_factory.mktemp("sherpa") / "tiny"
    written = write_format("sherpa-onnx", folder, output)
    names = ["README.md", "model.onnx", "provenance.json", "tokens.txt"]
    assert written == [output / name for name in names]
    return folder, output


@pytest.fixture(scope="module")
def phonemes(make_piper_model: MakePiperModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Piper-like model with the second residual block, and what is written of it."""
    folder = make_piper_model(resblock_type="2")
    output = tmp_path_factory.mktemp("sherpa") / "tiny"
    write_format("sherpa-onnx", folder, output)
    return folder, output


@needs_sherpa
@pytest.mark.parametrize("text", ["hola, mundo", "ÁRBOL añejo", "Él\u00a0oyó"])
def test_a_character_model_says_the_same_from_text(characters: tuple[Path, Path], text: str) -> None:
    folder, output = characters
    ids = FrontEnd.from_folder(folder).tokenize(text).ids
    said = []
    for speaker in (0, 2):
        said.append(say(folder, ids, speaker=speaker))
        spoken, facts = speak(output, text, speaker=speaker, length_scale=1 / 0.8)
        assert facts == [16000, 3]
        agree(spoken, said[-1])
    assert said[0].shape != said[1].shape or np.abs(said[0] - said[1]).max() > 1e-3


@needs_sherpa
def test_a_piper_model_says_the_same_from_phonemes(phonemes: tuple[Path, Path]) -> None:
    folder, output = phonemes
    tokens = FrontEnd.from_folder(folder).tokenize("hello, what a day")
    spoken, facts = speak(output, phonemes="".join(s for s in tokens.symbols if s not in "^_$"))
    assert facts == [16000, 1]
    agree(spoken, say(folder, tokens.ids))


@needs_sherpa
@pytest.mark.parametrize("kind", ["characters", "phonemes"])
def test_the_lines_in_its_readme_speak(kind: str, request: pytest.FixtureRequest) -> None:
    _, output = request.getfixturevalue(kind)
    block = re.search(r"```python\n(.*?)```", (output / "README.md").read_text(), re.DOTALL)
    assert block
    done = subprocess.run(
        [sys.executable, "-c", block[1]], cwd=output, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    seconds = re.fullmatch(r"([\d.]+) seconds", done.stdout.strip())
    assert seconds
    assert float(seconds[1]) > 0


def test_the_readme_carries_speakers_scales_and_licence(characters: tuple[Path, Path]) -> None:
    text = (characters[1] / "README.md").read_text()
    for expected in ("# tiny", "ana 0, luis 1, eva 2", "1.25", "CC-BY-4.0", "a corpus", "in writing"):
        assert expected in text
    assert Provenance.read(characters[1]) == Provenance.read(characters[0])


def test_capitals_and_other_spaces_have_tokens(characters: tuple[Path, Path]) -> None:
    lines = (characters[1] / "tokens.txt").read_text(encoding="utf-8").split("\n")
    table = dict(line.rsplit(" ", 1) for line in lines[:-1])
    assert table["Á"] == table["á"]
    assert table["\u00a0"] == table[" "]
    assert "A" not in table, "sherpa-onnx lower-cases ASCII by itself"
    assert table["_"] == "0"


def edit(folder: Path, name: str, **changes: Any) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_uroman": True, "language": "kor"}, "romanised by uroman, which sherpa-onnx does not have"),
        ({"phonemize": True}, "are phonemes of espeak-ng"),
    ],
)
def test_tokenizers_that_it_cannot_express(
    make_model: MakeModel, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = make_model()
    edit(folder, "tokenizer_config.json", **changes)
    with pytest.raises(ModelError, match=message):
        write_format("sherpa-onnx", folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_problems_are_told_at_once(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model()
    edit(folder, "vocab.json", A=5, Z=6, **{"\t": 7})
    edit(folder, "tokenizer_config.json", is_uroman=True, language="kor")
    with pytest.raises(ModelError) as caught:
        write_format("sherpa-onnx", folder, tmp_path / "out")
    assert "capitals AZ" in str(caught.value)
    assert "'\\t', which tokens.txt cannot hold" in str(caught.value)
    assert "uroman" in str(caught.value)


def test_phonemes_of_several_ids_are_refused(make_piper_model: MakePiperModel) -> None:
    folder = make_piper_model()
    spec = json.loads((folder / "front_end.json").read_text())
    spec["vocab"]["a"] = [6, 7]
    spec["vocab"]["aɪ"] = [7]
    (folder / "front_end.json").write_text(json.dumps(spec))
    subject = Subject.read(folder)
    assert sherpa_onnx.problems(subject) == ["its phonemes a have several ids each, and tokens.txt holds one"]
    assert "aɪ" not in sherpa_onnx.tokens_of(subject)
