"""The small JSON records that hold the store together, and how each is checked.

Every record carries its ``schema_version``, refuses keys it does not know, and is checked when it is written
as well as when it is read. The JSON Schemas in ``shared/schemas/`` are made from these classes:
``python -m shared.manifests`` writes them, and a test fails when they are stale.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from shared.errors import CorruptObjectError, UserError

Kind = Literal["models", "voices"]
KINDS: tuple[Kind, ...] = get_args(Kind)

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,99}$"
VERSION_PATTERN = r"^[0-9]{8}T[0-9]{6}-[0-9a-f]{8}$"
NONCE_PATTERN = r"^[0-9a-f]{32}$"
SHA256_PATTERN = r"^[0-9a-f]{64}$"
# A relative path of plain segments, without the characters to which a back end or a shell gives a meaning.
PATH_PATTERN = r"^[A-Za-z0-9_.+=@,() -]+(/[A-Za-z0-9_.+=@,() -]+)*$"

#: The registry's own records. A published folder's files of these names stay behind.
RESERVED = frozenset({"claim.json", "manifest.json"})

SCHEMAS = Path(__file__).parent / "schemas"


def check_name(name: str, what: str = "name") -> str:
    """Return a model's, voice's, alias's or run's name if it is well formed.

    Args:
        name: The name.
        what: What it names, for the message.

    Raises:
        UserError: It is not.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        article = "an" if what[0] in "aeiou" else "a"
        raise UserError(
            f"{name!r} cannot be {article} {what}: use lowercase letters, digits, '-', '_' and '.', "
            "begin with a letter or a digit, and stay within 100 characters"
        )
    return name


def check_path(path: str) -> str:
    """Return a file's path inside a version if it is relative and cannot climb out.

    Raises:
        ValueError: It is absolute, has an empty, ``.`` or ``..`` segment, or an unusual character.
    """
    if not re.fullmatch(PATH_PATTERN, path) or any(part in {".", ".."} for part in path.split("/")):
        raise ValueError(
            f"{path!r} cannot be a file's path: use a relative path of ASCII letters, digits and ._-+=@,()"
        )
    return path


def model_folder(reference: JsonValue) -> str | None:
    """The store's folder of the version of a model that a lineage names; None if it names something else."""
    name, _, version = str(reference).partition("/")
    is_version = re.fullmatch(NAME_PATTERN, name) and re.fullmatch(VERSION_PATTERN, version)
    return f"models/{reference}" if is_version else None


def new_version_id() -> str:
    """A version's id: UTC time to the second, and 8 random hex digits."""
    return f"{now():%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


def new_nonce() -> str:
    """32 random hex digits, by which a writer knows its own write again."""
    return secrets.token_hex(16)


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def this_writer() -> str:
    """Which process is writing, for people who read a record: ``host:process id``."""
    return f"{socket.gethostname()}:{os.getpid()}"


Name = Annotated[str, Field(pattern=NAME_PATTERN)]
VersionId = Annotated[str, Field(pattern=VERSION_PATTERN)]
Nonce = Annotated[str, Field(pattern=NONCE_PATTERN)]
Sequence = Annotated[int, Field(ge=1, le=9_999_999_999)]
FilePath = Annotated[str, Field(pattern=PATH_PATTERN), AfterValidator(check_path)]


class Record(BaseModel):
    """What all records share. Immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    schema_version: Literal[1] = 1

    def to_bytes(self) -> bytes:
        """The record as it is stored: UTF-8 JSON, indented for people."""
        return self.model_dump_json(indent=2).encode() + b"\n"


class FileEntry(BaseModel):
    """One file of a version or a checkpoint."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    path: FilePath = Field(description="relative to the version's folder, with '/' between segments")
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=SHA256_PATTERN)]


def _check_files(files: tuple[FileEntry, ...]) -> tuple[FileEntry, ...]:
    paths = {entry.path for entry in files}
    if len(paths) != len(files):
        raise ValueError("the same path is listed twice")
    for path in paths:
        parents = {path[:at] for at, character in enumerate(path) if character == "/"}
        if parents & paths:
            raise ValueError(f"{path!r} lies inside another file")
    return files


Files = Annotated[tuple[FileEntry, ...], AfterValidator(_check_files)]


class Claim(Record):
    """``claim.json``: a writer has taken this version's id. Written first."""

    kind: Kind
    name: Name
    version: VersionId
    nonce: Nonce
    writer: str
    created: AwareDatetime


class Manifest(Record):
    """``manifest.json``: what a version consists of and where it comes from. Written last."""

    kind: Kind
    name: Name
    version: VersionId
    nonce: Nonce = Field(description="the nonce of the claim that this manifest completes")
    created: AwareDatetime
    licence: Annotated[str, Field(min_length=1)] = Field(description="SPDX identifier where there is one")
    sources: tuple[str, ...] = Field(description="the recordings and models that went in")
    consent: str | None = Field(description="what the speaker agreed to, and where that is recorded")
    lineage: dict[str, JsonValue] = Field(
        description="base model, run, step, configuration: whatever made it"
    )
    files: Files

    @property
    def total_bytes(self) -> int:
        """The size of all files together."""
        return sum(entry.bytes for entry in self.files)

    @property
    def made_from(self) -> tuple[str, ...]:
        """The store's folders of the versions that its lineage names: the model of a voice, the base of a model."""
        references = [self.lineage.get("base")]
        match self.lineage.get("model"):
            case {"name": str(name), "version": str(version)}:
                references.insert(0, f"{name}/{version}")
        return tuple(folder for reference in references if (folder := model_folder(reference)))


class Alias(Record):
    """``aliases/<kind>/<name>/<alias>/<sequence>.json``: a move of an alias. The highest sequence counts."""

    kind: Kind
    name: Name
    alias: Name
    sequence: Sequence
    version: VersionId
    nonce: Nonce
    writer: str
    created: AwareDatetime


class Lease(Record):
    """``runs/<run>/lease/<sequence>.json``: a trainer owns the run until a higher sequence appears."""

    run: Name
    sequence: Sequence
    nonce: Nonce
    writer: str
    created: AwareDatetime


class Checkpoint(Record):
    """``runs/<run>/checkpoints/<step>/manifest.json``: a complete resumable state. Written last."""

    run: Name
    step: Annotated[int, Field(ge=0, le=9_999_999_999)]
    lease: Sequence = Field(description="the owner's lease; the files lie in a folder named after it")
    nonce: Nonce
    created: AwareDatetime
    files: Files

    @property
    def total_bytes(self) -> int:
        """The size of all files together."""
        return sum(entry.bytes for entry in self.files)

    @model_validator(mode="after")
    def _has_files(self) -> Checkpoint:
        if not self.files:
            raise ValueError("a checkpoint without files")
        return self


class WithdrawnVersion(BaseModel):
    """One version of a withdrawal."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    kind: Kind
    name: Name
    version: VersionId
    why: str = Field(description="how it was found")
    bytes: Annotated[int, Field(ge=0)]

    @property
    def prefix(self) -> str:
        """Its folder in the store."""
        return f"{self.kind}/{self.name}/{self.version}"


class Withdrawal(Record):
    """``audit/<id>.json``: what is about to be deleted because a speaker withdrew consent. Stays for good."""

    id: VersionId
    nonce: Nonce
    writer: str
    created: AwareDatetime
    reason: Annotated[str, Field(min_length=1)]
    asked: tuple[str, ...] = Field(description="what was asked for, in words")
    versions: tuple[WithdrawnVersion, ...]
    runs: tuple[str, ...] = Field(description="runs whose state is deleted")
    datasets: tuple[str, ...] = Field(
        default=(), description="recordings of which nothing is published any more, as lineages name them"
    )
    aliases: tuple[str, ...] = Field(description="aliases that point to nothing from now on")
    undecided: tuple[str, ...] = Field(description="what stays because its lineage does not tell")


class WithdrawalOutcome(Record):
    """``audit/<id>-done.json``: the withdrawal was carried out. Stays for good."""

    id: VersionId
    nonce: Nonce
    created: AwareDatetime
    remaining: tuple[str, ...] = Field(description="objects that are still there; none when all went well")


RECORDS: dict[str, type[Record]] = {
    "alias": Alias,
    "checkpoint": Checkpoint,
    "claim": Claim,
    "lease": Lease,
    "manifest": Manifest,
    "withdrawal": Withdrawal,
    "withdrawal_outcome": WithdrawalOutcome,
}

AnyRecord = TypeVar("AnyRecord", bound=Record)


def parse(record: type[AnyRecord], data: bytes, where: str) -> AnyRecord:
    """Read a record.

    Args:
        record: The class that it should be of.
        data: Its bytes.
        where: The object's address, for the message.

    Raises:
        CorruptObjectError: It is not JSON, not of the schema, or of a schema that this release does not know.
    """
    try:
        return record.model_validate_json(data)
    except ValidationError as error:
        raise CorruptObjectError(
            f"{where} is no {record.__name__.lower()} that this release can read ({problems_of(error)}). "
            "It was damaged, written by hand, or written by a newer release: upgrade, or publish it again"
        ) from error


def problems_of(error: ValidationError) -> str:
    """What is wrong with a record, on one line: the first three problems."""
    return "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'the whole'}: {problem['msg']}"
        for problem in error.errors()[:3]
    )


def json_schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schema (2020-12) of every record, by the name of its file in ``shared/schemas/``."""
    return {
        name: {"$schema": "https://json-schema.org/draft/2020-12/schema", **record.model_json_schema()}
        for name, record in RECORDS.items()
    }


def schema_text(schema: dict[str, Any]) -> str:
    """A JSON Schema as its file is written."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for schema_name, schema_body in json_schemas().items():
        (SCHEMAS / f"{schema_name}.json").write_text(schema_text(schema_body), encoding="utf-8")
