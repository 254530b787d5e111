"""Vocabularies of original VITS: what each row of the text embedding stands for.

The trainer keeps its symbols in its source, not in the checkpoint. MMS writes them into ``vocab.txt``, one
a line; some forks into their ``config.json``; and the published English models use the table below.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.errors import ModelError

#: Pad, punctuation, Latin letters and the International Phonetic Alphabet: 178 rows, one character each.
#: The apostrophe is there twice; the trainer looks symbols up from the end.
ENGLISH_SYMBOLS = (
    "_"
    ';:,.!?¡¿—…"«»“” '
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    "ɑɐɒæɓʙβɔɕçɗɖðʤəɘɚɛɜɝɞɟʄɡɠɢʛɦɧħɥʜɨɪʝɭɬɫɮʟɱɯɰŋɳɲɴøɵɸθœɶʘɹɺɾɻʀʁɽʂʃʈʧʉʊʋⱱʌɣɤʍχʎʏʑʐʒʔʡʕʢǀǁǂǃ"
    "ˈˌːˑʼʴʰʱʲʷˠˤ˞↓↑→↗↘'\N{COMBINING VERTICAL LINE BELOW}'ᵻ"
)
#: Text cleaners of the original trainer that our front end has an equal of, and whether it phonemises.
_CLEANERS = {"english_cleaners2": True, "transliteration_cleaners": False}


def find(checkpoint: Path, settings: Mapping[str, Any], rows: int, vocabulary: Path | None) -> list[str]:
    """The symbols of a checkpoint, by their ids.

    Args:
        checkpoint: The generator's file; its folder may hold ``vocab.txt``.
        settings: The trainer's ``config.json``.
        rows: How many rows the text embedding has.
        vocabulary: A ``vocab.txt`` to use instead of searching.

    Raises:
        ModelError: There are none, or not as many as rows.
    """
    beside = checkpoint.parent / "vocab.txt"
    if vocabulary is None and beside.is_file():
        vocabulary = beside
    if vocabulary is not None:
        symbols, where = _read(vocabulary), str(vocabulary)
    elif isinstance(settings.get("symbols"), list):
        symbols, where = [str(symbol) for symbol in settings["symbols"]], "the symbols in its config.json"
    elif rows == len(ENGLISH_SYMBOLS):
        return list(ENGLISH_SYMBOLS)
    else:
        raise ModelError(
            f"{checkpoint} does not say which characters its {rows} tokens stand for. Write the symbols of its "
            "trainer (text/symbols.py there, in that order, the pad first) one a line into a file, and give it with "
            "--vocabulary."
        )
    if len(symbols) != rows:
        raise ModelError(
            f"{where}: {len(symbols)} symbols, but the text embedding of {checkpoint} has {rows} rows. Each line "
            "is one symbol, the space too; give the vocabulary that the model was trained with."
        )
    return symbols


def _read(path: Path) -> list[str]:
    """One symbol a line; a line may be a single space."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read as a vocabulary in UTF-8: {error}") from error
    return text.removesuffix("\n").split("\n")


def write_tokenizer(
    folder: Path,
    symbols: Sequence[str],
    *,
    add_blank: bool,
    phonemize: bool,
    is_uroman: bool,
    language: str | None,
) -> None:
    """Write ``vocab.json`` and ``tokenizer_config.json``, for ``transformers.VitsTokenizer`` and ours."""
    vocab = {symbol: number for number, symbol in enumerate(symbols)}
    tokenizer = {
        "tokenizer_class": "VitsTokenizer",
        "add_blank": add_blank,
        "normalize": True,
        "phonemize": phonemize,
        "is_uroman": is_uroman,
        "language": language,
        "pad_token": symbols[0],
        "unk_token": "<unk>",
    }
    for name, content in (("vocab.json", vocab), ("tokenizer_config.json", tokenizer)):
        text = json.dumps(content, ensure_ascii=False, indent=2)
        (folder / name).write_text(text + "\n", encoding="utf-8")


def phonemizes(data: Mapping[str, Any]) -> bool:
    """Whether a model was trained on espeak-ng's American English phonemes, with stress."""
    return any(_CLEANERS.get(cleaner, False) for cleaner in data.get("text_cleaners", ()))


def notes(symbols: Sequence[str], data: Mapping[str, Any], *, phonemize: bool) -> list[str]:
    """What a user has to know about the texts that the model understands."""
    found = []
    foreign = [cleaner for cleaner in data.get("text_cleaners", ()) if cleaner not in _CLEANERS]
    if foreign and not phonemize:
        found.append(
            f"it was trained on text cleaned by {', '.join(foreign)}, which is the trainer's own: give it text "
            "that went through the same, in training too"
        )
    long = [symbol for symbol in symbols if len(symbol) != 1]
    if long:
        found.append(
            f"{len(long)} of its symbols have several characters ({', '.join(map(repr, long[:5]))}): their rows are "
            "kept, but no text reaches them, because texts are read character by character"
        )
    return found
