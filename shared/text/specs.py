"""The two kinds of front end, as JSON: what ``front_end.json`` and the ``front_end`` of a voice hold."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.errors import ConfigError, nearest

TokenId = Annotated[int, Field(ge=0)]
Symbol = Annotated[str, Field(min_length=1)]


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Lower-case the text before anything else.
    lower_case: bool = False


class CharacterSpec(_Spec):
    """Characters are tokens, as in ``transformers.VitsTokenizer``; the fields are that class's own."""

    kind: Literal["characters"] = "characters"
    vocab: dict[Symbol, TokenId] = Field(min_length=1)
    add_blank: bool = True
    normalize: bool = True
    is_uroman: bool = False
    phonemize: bool = False
    language: str | None = None
    pad_token: str = "<pad>"  # noqa: S105 (a vocabulary entry)
    unk_token: str = "<unk>"  # noqa: S105 (a vocabulary entry)

    @cached_property
    def entries(self) -> dict[str, list[str]]:
        """What is looked up as it stands, special tokens included, by first character, earliest first."""
        entries: dict[str, list[str]] = {}
        for entry in dict.fromkeys([*self.vocab, self.unk_token, self.pad_token]):
            if entry:
                entries.setdefault(entry[0], []).append(entry)
        return entries

    @cached_property
    def long_entries(self) -> tuple[str, ...]:
        """Those of `entries` that are longer than a character."""
        return tuple(entry for group in self.entries.values() for entry in group if len(entry) > 1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.add_blank and 0 not in self.vocab.values():
            raise ValueError("add_blank puts token 0 between the characters, and no symbol of vocab has id 0")
        if self.is_uroman and (self.language or "").split("-")[0].split("_")[0] in {"es", "spa"}:
            raise ValueError("is_uroman would strip the accents of Spanish: set is_uroman to false")
        return self


class PiperSpec(_Spec):
    """Phonemes of espeak-ng are tokens, in Piper's layout ``^ _ p _ p _ … $``."""

    kind: Literal["piper"] = "piper"
    vocab: dict[Symbol, Annotated[list[TokenId], Field(min_length=1)]]
    #: A voice of espeak-ng by its language code, such as ``es-419`` or ``en-us``.
    espeak_voice: str = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        missing = [symbol for symbol in ("^", "_", "$") if symbol not in self.vocab]
        if missing:
            raise ValueError(
                f"vocab lacks the markers {', '.join(missing)}, without which Piper's layout cannot be built"
            )
        return self


Spec = CharacterSpec | PiperSpec
KINDS: dict[str, type[CharacterSpec] | type[PiperSpec]] = {"characters": CharacterSpec, "piper": PiperSpec}


def parse_spec(spec: Mapping[str, object], *, where: str) -> Spec:
    """Check a front end's JSON.

    Args:
        spec: The decoded JSON object.
        where: What it was read from, for messages.

    Raises:
        ConfigError: Lists everything that is wrong with it.
    """
    kind = spec.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        known = ", ".join(map(repr, KINDS))
        raise ConfigError(
            f"The text front end of {where} cannot be used:", [f"kind is {kind!r}; it must be one of {known}"]
        )
    model = KINDS[kind]
    try:
        return model.model_validate(dict(spec), strict=True)
    except ValidationError as error:
        problems = []
        for detail in error.errors():
            field = ".".join(map(str, detail["loc"])) or "spec"
            if detail["type"] == "extra_forbidden":
                problems.append(f"{field}: no such field{nearest(field, list(model.model_fields))}")
            else:
                problems.append(f"{field}: {detail['msg'].removeprefix('Value error, ')}")
        raise ConfigError(f"The text front end of {where} cannot be used:", problems) from error
