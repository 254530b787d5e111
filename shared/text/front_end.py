"""The one door to the text front ends: open it from a model folder or from JSON, and tokenize."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from shared.errors import ConfigError, ModelError, TextError
from shared.text import characters, piper
from shared.text.specs import CharacterSpec, PiperSpec, Spec, parse_spec
from shared.text.tokens import Tokens, once_each

#: Holds a front end's JSON in a model folder.
FRONT_END_FILE = "front_end.json"

#: ``transformers.VitsTokenizer``'s own defaults, for a ``tokenizer_config.json`` that does not say.
TOKENIZER_DEFAULTS: dict[str, object] = {
    "add_blank": True,
    "normalize": True,
    "is_uroman": False,
    "phonemize": True,
    "language": None,
    "pad_token": "<pad>",
    "unk_token": "<unk>",
}

_TOKENIZER_FILES = ("vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


class FrontEnd:
    """Turns texts into the token ids of one model. Immutable, and safe to use from many threads."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec

    @classmethod
    def from_spec(cls, spec: Mapping[str, object], *, where: str = "this model") -> FrontEnd:
        """Open a front end from its JSON (see ``shared.text.specs``).

        Raises:
            ConfigError: Lists everything that is wrong with the JSON.
        """
        return cls(parse_spec(spec, where=where))

    @classmethod
    def from_folder(cls, folder: Path) -> FrontEnd:
        """Open the front end of a model folder: ``front_end.json``, or else a ``VitsTokenizer``'s files.

        Raises:
            ModelError: The folder has neither, or a file in it is not JSON.
            ConfigError: The files are JSON, and say something that cannot be.
        """
        if (folder / FRONT_END_FILE).is_file():
            return cls.from_spec(_read_json(folder / FRONT_END_FILE), where=str(folder / FRONT_END_FILE))
        if not (folder / "vocab.json").is_file():
            raise ModelError(
                f"{folder} has neither {FRONT_END_FILE} nor vocab.json, so no text can be turned into "
                "tokens. Copy the tokenizer's files of the model it came from into it."
            )
        config = folder / "tokenizer_config.json"
        stored = _read_json(config) if config.is_file() else {}
        fields = {
            name: _token_text(stored.get(name, default)) for name, default in TOKENIZER_DEFAULTS.items()
        }
        vocab = _read_json(folder / "vocab.json")
        return cls.from_spec({"kind": "characters", "vocab": vocab, **fields}, where=str(folder))

    @property
    def spec(self) -> dict[str, Any]:
        """The whole front end as JSON: ``FrontEnd.from_spec`` of it is an equal one."""
        return self._spec.model_dump(mode="json")

    @property
    def definition(self) -> Spec:
        """The same, checked and typed."""
        return self._spec

    @property
    def speaks_phonemes(self) -> bool:
        """Whether its tokens are phonemes that can be given in place of a text."""
        return isinstance(self._spec, PiperSpec)

    @property
    def hears_commas(self) -> bool:
        """Whether a comma leads to a token, so that the voice itself pauses at it."""
        return "," in self._spec.vocab

    @property
    def vocab_size(self) -> int:
        """How many rows the model's embedding table must have at least."""
        match self._spec:
            case CharacterSpec(vocab=vocab):
                return max(vocab.values()) + 1
            case PiperSpec(vocab=groups):
                return max(token_id for group in groups.values() for token_id in group) + 1

    @property
    def symbols(self) -> dict[str, tuple[int, ...]]:
        """Every symbol of the vocabulary and its ids: one for a character, one or more for a phoneme of Piper's."""
        match self._spec:
            case CharacterSpec(vocab=vocab):
                return {symbol: (token_id,) for symbol, token_id in vocab.items()}
            case PiperSpec(vocab=groups):
                return {symbol: tuple(group) for symbol, group in groups.items()}

    def extended(self, additions: Iterable[str]) -> FrontEnd:
        """The same front end with more symbols, which get the next free ids in their order.

        Symbols that it has already stay as they are. Phonemes of Piper's layout are decomposed, as texts are:
        ``ç`` adds the cedilla.

        Raises:
            ConfigError: Lists every symbol that would never be looked up, and why.
        """
        pieces = list(additions)
        problems = [problem for symbol in pieces if (problem := self._why_unheard(symbol))]
        if problems:
            raise ConfigError("These symbols cannot be added to the vocabulary:", problems)
        form: Literal["NFC", "NFD"] = "NFD" if isinstance(self._spec, PiperSpec) else "NFC"
        points = once_each("".join(unicodedata.normalize(form, symbol) for symbol in pieces))
        new = [point for point in points if point not in self._spec.vocab]
        ids = range(self.vocab_size, self.vocab_size + len(new))
        grouped = isinstance(self._spec, PiperSpec)
        vocab = {point: [token_id] if grouped else token_id for point, token_id in zip(new, ids, strict=True)}
        return FrontEnd.from_spec({**self.spec, "vocab": {**self.spec["vocab"], **vocab}})

    def _why_unheard(self, symbol: str) -> str | None:
        """Why no text could ever lead to a symbol, or nothing if one can."""
        if not symbol:
            return "a symbol is empty"
        if len(unicodedata.normalize("NFC", symbol)) != 1:
            return f"{symbol!r} is not one character, and texts are read by the character"
        if isinstance(self._spec, CharacterSpec) and self._spec.is_uroman and not symbol.isascii():
            return f"{symbol!r} is not ASCII, and texts are romanised before they are read"
        return None

    def save(self, folder: Path) -> None:
        """Make a model folder's tokenizer this one.

        Writes ``front_end.json`` and, for characters, the files from which ``transformers`` makes an equal
        ``VitsTokenizer``. Another tokenizer's files are removed: none could express Piper's layout, and
        ``added_tokens.json`` would claim ids that the vocabulary may use.
        """
        for stale in _TOKENIZER_FILES:
            (folder / stale).unlink(missing_ok=True)
        _write_json(folder / FRONT_END_FILE, self.spec)
        if isinstance(self._spec, CharacterSpec):
            _write_json(folder / "vocab.json", self._spec.vocab)
            fields = {name: self.spec[name] for name in TOKENIZER_DEFAULTS}
            _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "VitsTokenizer", **fields})

    def warm_up(self) -> None:
        """Load what the first text would wait for: espeak-ng, or the romaniser."""
        with suppress(TextError):
            self.tokenize("å")

    def tokenize(self, text: str) -> Tokens:
        """The tokens of one text.

        Raises:
            TextError: Nothing of the text can be spoken.
            MissingExtraError: It needs phonemes, and the extra ``phonemes`` is not installed.
            ConfigError: It needs a voice of espeak-ng that does not exist.
        """
        match self._spec:
            case CharacterSpec() as spec:
                return characters.tokenize(spec, text)
            case PiperSpec() as spec:
                return piper.tokenize(spec, text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FrontEnd) and self._spec == other._spec

    def __hash__(self) -> int:
        return hash(json.dumps(self.spec, sort_keys=True))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}. Fetch the model again.") from error
    if not isinstance(content, dict):
        raise ModelError(
            f"{path} must hold a JSON object, and holds {type(content).__name__}. Fetch the model again."
        )
    return content


def _token_text(value: object) -> object:
    """``transformers`` stores a special token as its text or as an object with a ``content``."""
    return value["content"] if isinstance(value, dict) and "content" in value else value
