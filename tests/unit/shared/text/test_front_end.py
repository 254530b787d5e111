"""Opening, checking, saving and opening again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import VitsTokenizer

from shared.errors import ConfigError, ModelError
from shared.text import FrontEnd

VOCAB = {symbol: i for i, symbol in enumerate("kabcdefghijlmnopqrstuvwxyzáéíóúñ ")}
LETTER = "k"
PIPER = {"kind": "piper", "vocab": {"_": [0], "^": [1], "$": [2], "a": [3, 4]}, "espeak_voice": "es-419"}


def test_a_tokenizer_folder_that_transformers_wrote(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(VOCAB), encoding="utf-8")
    written = VitsTokenizer(str(tmp_path / "vocab.json"), pad_token=LETTER, language="spa", phonemize=False)
    folder = tmp_path / "model"
    written.save_pretrained(folder)
    front_end = FrontEnd.from_folder(folder)
    text = "Un kilo de café, kkk"
    assert list(front_end.tokenize(text).ids) == VitsTokenizer.from_pretrained(folder)(text)["input_ids"]
    assert front_end.spec["language"] == "spa"


def test_special_tokens_stored_as_objects(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(VOCAB), encoding="utf-8")
    config = {"pad_token": {"content": "k", "lstrip": False}, "phonemize": False, "model_max_length": 9}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert FrontEnd.from_folder(tmp_path).spec["pad_token"] == LETTER


@pytest.mark.parametrize("spec", [{"kind": "characters", "vocab": VOCAB, "normalize": False}, PIPER])
def test_saved_and_opened_again_it_is_the_same(spec: dict[str, Any], tmp_path: Path) -> None:
    front_end = FrontEnd.from_spec(spec)
    front_end.save(tmp_path)
    again = FrontEnd.from_folder(tmp_path)
    assert again == front_end
    assert again.spec == front_end.spec == json.loads(json.dumps(front_end.spec))
    assert {**again.spec, **spec} == again.spec


def test_the_saved_file_goes_before_the_tokenizers(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(VOCAB), encoding="utf-8")
    FrontEnd.from_spec(PIPER).save(tmp_path)
    assert FrontEnd.from_folder(tmp_path).spec["kind"] == "piper"


def test_vocab_size_counts_the_largest_id() -> None:
    assert FrontEnd.from_spec({"kind": "characters", "vocab": {"a": 0, "b": 7}}).vocab_size == 8
    assert FrontEnd.from_spec(PIPER).vocab_size == 5


def test_a_folder_without_a_front_end(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"neither front_end\.json nor vocab\.json"):
        FrontEnd.from_folder(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_file_that_is_not_a_json_object(content: str, tmp_path: Path) -> None:
    (tmp_path / "front_end.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=r"front_end\.json"):
        FrontEnd.from_folder(tmp_path)


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        FrontEnd.from_spec({"kind": "characters", "vocab": {"a": -1}, "add_blanc": True, "normalize": "yes"})
    problems = "\n".join(caught.value.problems)
    assert "vocab.a" in problems
    assert "add_blanc: no such field, did you mean 'add_blank'?" in problems
    assert "normalize" in problems


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "kind is None"),
        ({"kind": "characters", "vocab": {}}, "vocab"),
        ({"kind": "characters", "vocab": {"": 0}}, "vocab"),
        ({"kind": "characters", "vocab": {"a": 1}}, "no symbol of vocab has id 0"),
        ({"kind": "characters", "vocab": VOCAB, "is_uroman": True, "language": "spa"}, "accents of Spanish"),
        ({"kind": "piper", "vocab": {"_": [0]}, "espeak_voice": "es"}, "lacks the markers"),
        ({"kind": "piper", "vocab": {"_": [0], "^": [1], "$": []}, "espeak_voice": "es"}, "vocab"),
    ],
)
def test_a_spec_that_cannot_be(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FrontEnd.from_spec(spec)


def test_symbols_and_their_ids() -> None:
    assert FrontEnd.from_spec(PIPER).symbols == {"_": (0,), "^": (1,), "$": (2,), "a": (3, 4)}
    assert FrontEnd.from_spec({"kind": "characters", "vocab": VOCAB}).symbols["a"] == (VOCAB["a"],)


def test_more_symbols_get_the_next_ids() -> None:
    """Those that are there keep theirs, and whatever is given twice is added once."""
    front_end = FrontEnd.from_spec({"kind": "characters", "vocab": VOCAB, "pad_token": LETTER})
    size = front_end.vocab_size
    extended = front_end.extended(["a", "ç", "c\u0327", "!", "ç"])
    assert extended.spec == {**front_end.spec, "vocab": {**VOCAB, "ç": size, "!": size + 1}}
    assert front_end.vocab_size == size
    assert front_end.extended(["a"]) == front_end == front_end.extended([])
    phonemes = FrontEnd.from_spec(PIPER).extended(["ç", "a", "ɾ"])
    assert phonemes.symbols == {**FrontEnd.from_spec(PIPER).symbols, "c": (5,), "\u0327": (6,), "ɾ": (7,)}


def test_symbols_that_would_never_be_looked_up_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        FrontEnd.from_spec(PIPER).extended(["ch", "x", "", "<br>"])
    assert len(caught.value.problems) == 3
    romanised = FrontEnd.from_spec({"kind": "characters", "vocab": VOCAB, "is_uroman": True})
    with pytest.raises(ConfigError) as caught:
        romanised.extended(["한", "!"])
    assert caught.value.problems == ("'한' is not ASCII, and texts are romanised before they are read",)


def test_a_saved_front_end_is_the_folders_only_tokenizer(tmp_path: Path) -> None:
    """Stock ``transformers`` finds an equal one, or none at all: never the files of another."""
    for stale in ("vocab.json", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"):
        (tmp_path / stale).write_text('{"<unk>": 1, "pad_token": "z"}', encoding="utf-8")
    fields = {"pad_token": LETTER, "phonemize": False, "language": "spa", "add_blank": False}
    front_end = FrontEnd.from_spec({"kind": "characters", "vocab": VOCAB, **fields})
    front_end.save(tmp_path)
    stock = VitsTokenizer.from_pretrained(tmp_path)
    text = "Un kilo de café, kkk"
    assert stock(text)["input_ids"] == list(front_end.tokenize(text).ids)
    assert stock.pad_token == LETTER
    FrontEnd.from_spec(PIPER).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["front_end.json"]
