"""transformers.js itself, in Node, speaks what our model says."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from services.export.formats import transformers_js as written_for
from services.export.formats.write import write_format
from shared.errors import ModelError, TextError
from shared.text import FrontEnd
from shared.text.specs import CharacterSpec
from tests.unit.services.export.formats.conftest import SILENT, MakeModel, MakePiperModel, say

SPEAK = """
import { env, pipeline } from '@huggingface/transformers';
const [home, name, ...texts] = process.argv.slice(2);
env.localModelPath = home; env.allowRemoteModels = false;
const synthesizer = await pipeline('text-to-speech', name);
const told = [];
for (const text of texts) {
  const speech = await synthesizer(text);
  told.push({ samples: Array.from(speech.audio), rate: speech.sampling_rate });
}
const batch = await synthesizer(texts);
console.log(JSON.stringify({ told, batch: batch.map((speech) => Array.from(speech.audio)) }));
"""

TOKENIZE = """
import { readFileSync } from 'node:fs';
import { env, AutoTokenizer } from '@huggingface/transformers';
const [home] = process.argv.slice(2);
env.localModelPath = home; env.allowRemoteModels = false;
const told = {};
for (const [name, texts] of Object.entries(JSON.parse(readFileSync(`${home}/texts.json`)))) {
  const tokenizer = await AutoTokenizer.from_pretrained(name);
  told[name] = texts.map((text) => Array.from(tokenizer(text).input_ids.data, Number));
}
console.log(JSON.stringify(told));
"""


def test_it_says_the_same(transformers_js: Callable[..., Any], make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model(speaking_rate=0.8, resblock_type="2", **SILENT)
    files = write_format("transformers-js", folder, tmp_path / "tiny")
    names = ["README.md", "config.json", "onnx/model.onnx", "provenance.json", "tokenizer.json"]
    assert files[:5] == [tmp_path / "tiny" / name for name in names]
    graph = onnx.load(tmp_path / "tiny/onnx/model.onnx").graph
    assert [value.name for value in graph.input] == ["input_ids", "attention_mask"]
    texts = ["¡Hola, MUNDO!", "El pingüino y el ñandú.", "sí"]
    said = transformers_js(SPEAK, str(tmp_path), "tiny", *texts)
    longest = 0
    for text, spoken, row in zip(texts, said["told"], said["batch"], strict=True):
        expected = say(folder, FrontEnd.from_folder(folder).tokenize(text).ids)
        assert spoken["rate"] == 16000
        assert len(spoken["samples"]) == expected.size
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(spoken["samples"], expected, atol=1e-4)
        assert not any(row[expected.size :])
        longest = max(longest, expected.size)
    assert {len(row) for row in said["batch"]} == {longest}

    block = re.search(r"```js\n(.*?)```", (tmp_path / "tiny/README.md").read_text(), re.DOTALL)
    assert block
    lines = block[1].replace("'..'", json.dumps(str(tmp_path)))
    assert transformers_js(f"{lines}console.log(speech.audio.length);") > 0


PLAIN = "_abcdefgklmnoprstuvz áéíñ'-"
SPECS: dict[str, tuple[str | list[str], dict[str, Any]]] = {
    "mms": (PLAIN, {"pad_token": "k", "unk_token": "<unk>"}),
    "blank": (PLAIN, {"pad_token": "_", "unk_token": "_"}),
    "no-blank": (PLAIN, {"add_blank": False}),
    "capitals": (PLAIN + "ABC", {}),
    "lower": (PLAIN + "ABC", {"lower_case": True}),
    "raw": (PLAIN, {"normalize": False}),
    "raw-unknown": (["<unk>", *PLAIN], {"normalize": False, "unk_token": "<unk>"}),
    "long-blank": (["<pad>", *PLAIN], {"pad_token": "<pad>"}),
    "greek": ("_αβγδεζοσςλφ ", {}),
    "romanian": ("_abcţșt ", {"language": "ron"}),
    "no-space": ("_abc", {}),
    "marks": ("_a]^[\\-.*?+$|{}()/&~# \U0001d538", {}),
}
TEXTS = [
    "la casa", "kaka ok k", "  kasa  kk ", "ÁRBOL, Niño-ñu!", "ABC abc Acá", "a\nb\tc\u00a0d\u2003e", "ΟΔΟΣ σας Λόφος",
    "țară şi ţap", "a]b^c[d\\e-f.g*", "+a$ |{x}() /&~# \U0001d538a", "_a__b_", "İstanbul ẞ", "<unk>a<pad>b",
]  # fmt: skip


def test_its_tokenizer_makes_the_same_tokens(transformers_js: Callable[..., Any], tmp_path: Path) -> None:
    expected: dict[str, dict[str, list[int]]] = {}
    for name, (symbols, fields) in SPECS.items():
        vocab = {symbol: number for number, symbol in enumerate(symbols)}
        if name == "mms":  # its blank is a letter
            vocab = {symbol: number for number, symbol in enumerate(["k", *PLAIN.replace("k", "")])}
        front_end = FrontEnd.from_spec({"kind": "characters", "vocab": vocab, **fields})
        spec = CharacterSpec.model_validate(front_end.spec)
        folder = tmp_path / name
        folder.mkdir()
        (folder / "tokenizer.json").write_text(json.dumps(written_for.tokenizer(spec)))
        (folder / "tokenizer_config.json").write_text(json.dumps(written_for._tokenizer_config(spec)))
        expected[name] = {}
        # A special token that is spelt out in a text is one only where texts are not normalised; not told in JSON.
        for text in TEXTS[:-1] if name.startswith("raw") else TEXTS:
            with contextlib.suppress(TextError):  # of nothing that this vocabulary can speak
                expected[name][text] = list(front_end.tokenize(text).ids)
        assert expected[name]
    asked = {name: list(ids) for name, ids in expected.items()}
    (tmp_path / "texts.json").write_text(json.dumps(asked))
    found = transformers_js(TOKENIZE, str(tmp_path))
    for name, ids in expected.items():
        assert dict(zip(ids, found[name], strict=True)) == ids, name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_uroman": True, "language": "kor"}, "romanised by uroman, which transformers.js does not have"),
        ({"phonemize": True}, "become phonemes of espeak-ng, which transformers.js does not have"),
    ],
)
def test_tokenizers_that_it_cannot_express(
    make_model: MakeModel, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = make_model()
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ModelError, match=message):
        write_format("transformers-js", folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_speakers_and_phonemes_cannot_be_carried(make_piper_model: MakePiperModel, tmp_path: Path) -> None:
    folder = make_piper_model(num_speakers=2, speaker_embedding_size=3)
    with pytest.raises(ModelError) as caught:
        write_format("transformers-js", folder, tmp_path / "out")
    assert "it has 2 speakers" in str(caught.value)
    assert "phonemes of espeak-ng, which transformers.js does not have" in str(caught.value)
    assert not (tmp_path / "out").exists()
