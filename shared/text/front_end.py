"""The one door to the text front ends: open it from a model folder or from JSON, and tokenize."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.errors import ModelError
from shared.text import characters, piper
from shared.text.specs import CharacterSpec, PiperSpec, Spec, parse_spec
from shared.text.tokens import Tokens

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
    def vocab_size(self) -> int:
        """How many rows the model's embedding table must have at least."""
        match self._spec:
            case CharacterSpec(vocab=vocab):
                return max(vocab.values()) + 1
            case PiperSpec(vocab=groups):
                return max(token_id for group in groups.values() for token_id in group) + 1

    def save(self, folder: Path) -> None:
        """Write ``front_end.json`` into a model folder."""
        text = json.dumps(self.spec, ensure_ascii=False, indent=2)
        (folder / FRONT_END_FILE).write_text(text + "\n", encoding="utf-8")

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
