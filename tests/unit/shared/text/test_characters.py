"""Parity of the character front end with ``transformers.VitsTokenizer``, and what it reports beyond that."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import VitsTokenizer

from shared.errors import TextError
from shared.text import FrontEnd, characters

#: The pad token is a letter of the alphabet, as in MMS vocabularies.
MMS_LIKE = {symbol: i for i, symbol in enumerate("kabc déñ'-")} | {"<unk>": 11}
WITH_UNKNOWN = {symbol: i for i, symbol in enumerate(["<pad>", "<unk>", *"abcé ¡!É"])}
MULTI_CHARACTER = {symbol: i for i, symbol in enumerate(["_", "AB", "a", "b", "A", " ", "<unk>"])}

BLANK = "_"
ALPHABET = "kkabcABCdéÉñÑ'- .,¡!xİß<unk>_ș你ț "


def both(folder: Path, vocab: dict[str, int], **fields: Any) -> tuple[VitsTokenizer, FrontEnd]:
    """The reference and ours on the same vocabulary."""
    path = folder / f"vocab-{abs(hash((tuple(vocab), tuple(fields.items()))))}.json"
    path.write_text(json.dumps(vocab), encoding="utf-8")
    reference = VitsTokenizer(str(path), phonemize=False, **fields)
    return reference, FrontEnd.from_spec({"kind": "characters", "vocab": vocab, "phonemize": False, **fields})


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[VitsTokenizer, FrontEnd]]:
    folder = tmp_path_factory.mktemp("vocab")
    made = []
    for vocab, pad in ((MMS_LIKE, "k"), (WITH_UNKNOWN, "<pad>"), (MULTI_CHARACTER, "_")):
        for add_blank in (True, False):
            for language in ("spa", "ron"):
                fields = {"pad_token": pad, "add_blank": add_blank, "language": language}
                made.append(both(folder, vocab, normalize=True, **fields))
                made.append(both(folder, vocab, normalize=False, **fields))
    return made


def ids_or_none(front_end: FrontEnd, text: str) -> list[int] | None:
    try:
        return list(front_end.tokenize(text).ids)
    except TextError:
        return None


@given(text=st.text(alphabet=ALPHABET, max_size=20))
@settings(max_examples=150, deadline=None)
def test_ids_equal_the_reference(pairs: list[tuple[VitsTokenizer, FrontEnd]], text: str) -> None:
    for reference, ours in pairs:
        expected = reference(text)["input_ids"]
        got = ids_or_none(ours, text)
        if got is None:  # refused: then the reference heard nothing but punctuation
            heard = reference.convert_ids_to_tokens(expected)
            assert not any(token.isalnum() for token in heard if token not in {"<pad>", "<unk>", "_", "k"})
        else:
            assert got == expected


@pytest.fixture(scope="module")
def uroman_once() -> Iterator[None]:
    """The reference loads its romaniser for each text, for seconds: lend it ours."""
    with pytest.MonkeyPatch.context() as patch:
        romaniser = characters._uroman()
        patch.setattr("uroman.Uroman", lambda: romaniser)
        yield


@given(text=st.text(alphabet="abc 你好мир", min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_uroman_ids_equal_the_reference(
    text: str, tmp_path_factory: pytest.TempPathFactory, uroman_once: None
) -> None:
    vocab = {symbol: i for i, symbol in enumerate("_abcdefghijklmnopqrstuvwxyz ")}
    reference, ours = both(
        tmp_path_factory.mktemp("vocab"), vocab, is_uroman=True, pad_token=BLANK, unk_token=BLANK
    )
    got = ids_or_none(ours, text)
    assert got == (reference(text)["input_ids"] if got is not None else None)
    assert got is not None or not text.strip()


def test_korean_is_romanised_in_process(
    tmp_path: Path, uroman_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """finetune-hf-vits, defect 12: one Perl process for each utterance. A hundred of them start none."""
    vocab = {symbol: i for i, symbol in enumerate("_abcdeghijklmnoprstuwy '-")}
    reference, ours = both(tmp_path, vocab, is_uroman=True, language="kor", pad_token=BLANK, unk_token=BLANK)
    for way_out in (subprocess, os):
        for name in ("Popen", "run", "system", "popen", "fork", "posix_spawn"):
            if hasattr(way_out, name):
                monkeypatch.setattr(way_out, name, lambda *_, **__: pytest.fail("a process was started"))
    greeting = "안녕하세요, 만나서 반갑습니다! MMS도"
    tokens = ours.tokenize(greeting)
    assert "".join(tokens.symbols[1::2]) == "annyeonghaseyo mannaseo bangabseubnida mmsdo"
    assert list(tokens.ids) == reference(greeting)["input_ids"]
    assert tokens.unknown == (",", "!")
    assert all(ours.tokenize(f"{greeting} {count}") for count in "일이삼사오육칠팔구십" * 10)


def test_spanish_never_loads_the_romaniser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(characters, "_uroman", lambda: pytest.fail("the romaniser was loaded"))
    front_end = FrontEnd.from_spec(
        {"kind": "characters", "vocab": MMS_LIKE, "language": "spa", "pad_token": "k"}
    )
    front_end.tokenize("añade café")
    romanised = FrontEnd.from_spec(
        {"kind": "characters", "vocab": MMS_LIKE, "is_uroman": True, "pad_token": "k"}
    )
    romanised.tokenize("plain ASCII needs no romaniser")


def test_what_the_vocabulary_lacks_is_reported_once_each() -> None:
    front_end = FrontEnd.from_spec({"kind": "characters", "vocab": MMS_LIKE, "pad_token": "k"})
    tokens = front_end.tokenize("¡Bad, zzz café!")
    assert tokens.unknown == ("¡", ",", "z", "f", "!")
    assert "".join(tokens.symbols[1::2]) == "bad  caé"
    assert len(tokens.symbols) == len(tokens.ids)


def test_line_breaks_separate_words() -> None:
    front_end = FrontEnd.from_spec(
        {"kind": "characters", "vocab": MMS_LIKE, "pad_token": "k", "add_blank": False}
    )
    assert front_end.tokenize("ab\ncd") == front_end.tokenize("ab cd")


def test_without_an_unknown_token_no_id_is_beyond_the_vocabulary() -> None:
    vocab = {symbol: i for i, symbol in enumerate("_ab")}
    front_end = FrontEnd.from_spec(
        {"kind": "characters", "vocab": vocab, "normalize": False, "pad_token": "_"}
    )
    tokens = front_end.tokenize("azb")
    assert tokens.ids == (0, 1, 0, 2, 0)
    assert tokens.unknown == ("z",)
    assert max(tokens.ids) < front_end.vocab_size


@pytest.mark.parametrize("text", ["", "  \n", "…!?", "你好", "\ud800", "\x00"])
def test_nothing_speakable_is_refused(text: str) -> None:
    front_end = FrontEnd.from_spec({"kind": "characters", "vocab": MMS_LIKE, "pad_token": "k"})
    with pytest.raises(TextError) as caught:
        front_end.tokenize(text)
    str(caught.value).encode("utf-8")


def test_the_unspeakable_text_is_named() -> None:
    front_end = FrontEnd.from_spec({"kind": "characters", "vocab": MMS_LIKE, "pad_token": "k"})
    with pytest.raises(TextError, match="does not know '你', '好'"):
        front_end.tokenize("你好!")


def test_lower_case_comes_first() -> None:
    vocab = {symbol: i for i, symbol in enumerate("_abAB")}
    fields = {"kind": "characters", "vocab": vocab, "add_blank": False, "pad_token": "_"}
    assert FrontEnd.from_spec(fields).tokenize("aB").symbols == ("a", "B")
    assert FrontEnd.from_spec({**fields, "lower_case": True}).tokenize("aB").symbols == ("a", "b")


#: The symbols of original VITS's English models (LJ Speech, VCTK), in the order of their embeddings.
ENGLISH = (
    '_;:,.!?¡¿—…"«»“” ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'
    "ɑɐɒæɓʙβɔɕçɗɖðʤəɘɚɛɜɝɞɟʄɡɠɢʛɦɧħɥʜɨɪʝɭɬɫɮʟɱɯɰŋɳɲɴøɵɸθœɶʘɹɺɾɻʀʁɽʂʃʈʧʉʊʋⱱʌɣɤʍχʎʏʑʐʒʔʡʕʢǀǁǂǃˈˌːˑʼʴʰʱʲʷˠˤ˞↓↑→↗↘'̩'ᵻ"
)


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer folder as the hub's ``kakao-enterprise/vits-ljs`` has it."""
    folder = tmp_path_factory.mktemp("english")
    vocab = {symbol: i for i, symbol in enumerate(dict.fromkeys(ENGLISH))}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    config = {
        "add_blank": True, "is_uroman": False, "language": "en", "normalize": True, "pad_token": "_",
        "phonemize": True, "tokenizer_class": "VitsTokenizer", "unk_token": "<unk>",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "text",
    [
        "Hello, nice world! Bye?",
        "In 1666, the year of the Great Fire; twenty-one houses, or so...",
        "She said: “Don't — please!”  Twice,   on a line.",
        "I LOVE NASA & naïve cafés.",
        "ok",
    ],
)
def test_phonemes_equal_the_reference(english: Path, text: str) -> None:
    """Models of original VITS speak from espeak-ng's phonemes of American English."""
    ours = FrontEnd.from_folder(english).tokenize(text)  # first: it also points phonemizer at its library
    assert list(ours.ids) == VitsTokenizer.from_pretrained(english)(text)["input_ids"]
    assert ours.unknown == ()
