"""The texts to speak: rows of a table, read one after the other, each checked on its own."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import DataError, MissingExtraError, UserError, nearest
from shared.voice.noise import SEED_LIMIT

#: The columns that mean something, beside `text`; all others are left alone.
OPTIONAL = ("id", "speaker", "speaking_rate", "seed", "language", "noise_scale", "noise_scale_duration")
COLUMNS = ("text", *OPTIONAL)
#: Rows that are read from a Parquet file at once.
PARQUET_ROWS = 4096
MAX_SPEAKING_RATE, MIN_SPEAKING_RATE, MAX_NOISE_SCALE = 4.0, 0.25, 2.0


@dataclass(frozen=True)
class Row:
    """One text and how it is spoken; what is None is as the voice has it.

    Attributes:
        number: Place in the table, from 1.
        id: Names it in the manifest; its number where the table gives none.
        text: What to say.
        speaker: Name or number.
        speaking_rate: 2 is twice as fast.
        seed: Below 2**53; None takes one that follows from all the rest.
        language: BCP 47 tag by which numbers and the like are read.
        noise_scale: How much the sound varies.
        noise_scale_duration: How much the rhythm varies.
    """

    number: int
    id: str
    text: str
    speaker: str | None = None
    speaking_rate: float = 1.0
    seed: int | None = None
    language: str | None = None
    noise_scale: float | None = None
    noise_scale_duration: float | None = None


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be spoken.

    Attributes:
        number: Place in the table, from 1.
        id: As of `Row`.
        reason: What is wrong with it.
    """

    number: int
    id: str
    reason: str


Cells = Mapping[str, Any]


def read_rows(path: Path, names: Mapping[str, str]) -> Iterator[Row | BadRow]:
    """The rows of a CSV, TSV, JSON Lines or Parquet file.

    Args:
        path: The file; its name's ending says what it is.
        names: What the file calls our columns, where it differs: ``{"text": "sentence"}``.

    Raises:
        UserError: The file cannot be read, or is none of these.
        DataError: It has no column of texts, or none that was named.
        MissingExtraError: Parquet needs pyarrow.
    """
    for number, cells in enumerate(_cells(path, names), start=1):
        yield cells if isinstance(cells, BadRow) else _row(number, cells)


def _kind(path: Path) -> str:
    kind = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}.get(
        path.suffix.lower()
    )
    if kind is None:
        raise UserError(f"--input is {path}; give a file that ends in .csv, .tsv, .jsonl or .parquet")
    return kind


def _opened(path: Path) -> Path:
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"--input names {path}, which cannot be read: {error.strerror}") from error
    return path


def _cells(path: Path, names: Mapping[str, str]) -> Iterator[Cells | BadRow]:
    kind = _kind(path)
    _opened(path)
    if kind == "jsonl":
        yield from _json_lines(path, names)
    elif kind == "parquet":
        file = _parquet(path)
        renamed = _renamed(path, file.schema_arrow.names, names)
        for batch in file.iter_batches(PARQUET_ROWS, columns=list(renamed)):
            for cells in batch.to_pylist():
                yield {renamed[name]: value for name, value in cells.items()}
    else:
        yield from _delimited(path, names, "\t" if kind == "tsv" else ",")


def _delimited(path: Path, names: Mapping[str, str], delimiter: str) -> Iterator[Cells | BadRow]:
    csv.field_size_limit(1 << 24)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            renamed = _renamed(path, header := next(reader, []), names)
            for number, fields in enumerate(reader, start=1):
                if len(fields) == len(header):
                    yield {
                        renamed[name]: value
                        for name, value in zip(header, fields, strict=True)
                        if name in renamed
                    }
                elif fields:
                    yield BadRow(
                        number, str(number), f"has {len(fields)} columns, and the header {len(header)}"
                    )
                else:
                    yield BadRow(number, str(number), "is empty")
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read after its row {reader.line_num}: {error}. Write it as UTF-8, with quotes around "
            "texts that hold quotes, delimiters or line breaks"
        ) from error


def _json_lines(path: Path, names: Mapping[str, str]) -> Iterator[Cells | BadRow]:
    renamed = {theirs: ours for ours in COLUMNS for theirs in [names.get(ours, ours)]}
    known = False
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                content = json.loads(line)
            except ValueError as error:
                yield BadRow(number, str(number), f"is not JSON: {error}")
                continue
            if not isinstance(content, dict):
                yield BadRow(number, str(number), "is not a JSON object")
                continue
            if not known:
                _renamed(path, list(content), names)
                known = True
            yield {renamed[name]: value for name, value in content.items() if name in renamed}


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "Parquet files need the package 'pyarrow', which is not installed: pip install pyarrow. "
            "CSV, TSV and JSON Lines need nothing."
        ) from error
    try:
        return parquet.ParquetFile(_opened(path))
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} is not a Parquet file that can be read: {error}") from error


def _renamed(path: Path, header: Sequence[str], names: Mapping[str, str]) -> dict[str, str]:
    """Our names of the columns that a file has, by its own.

    Raises:
        DataError: A column is missing.
    """
    wanted = {ours: names.get(ours, ours) for ours in COLUMNS}
    problems = [
        f"there is no column {theirs!r}{nearest(theirs, header)}"
        for ours, theirs in wanted.items()
        if theirs not in header and (ours == "text" or ours in names)
    ]
    if problems:
        there = ", ".join(map(repr, header)) or "nothing"
        raise DataError(
            f"{path} cannot be spoken. Its columns are {there}; --column text=NAME says which holds the texts:",
            problems,
        )
    return {theirs: ours for ours, theirs in wanted.items() if theirs in header}


def _row(number: int, cells: Cells) -> Row | BadRow:
    """A row, checked."""
    given = {name: value for name, value in cells.items() if value is not None and value != ""}
    # JSON can write half of a surrogate pair, which no file that is written can hold.
    row_id = str(given.get("id", number)).encode("utf-8", "backslashreplace").decode("utf-8")
    text = given.get("text")
    if not isinstance(text, str) or not text.strip():
        return BadRow(number, row_id, "has no text")
    if broken := [name for name in COLUMNS if not _whole(str(given.get(name, "")))]:
        return BadRow(
            number, row_id, f"has half of a surrogate pair, which is no character, in {', '.join(broken)}"
        )
    try:
        return Row(
            number,
            row_id,
            text,
            speaker=_text(given, "speaker"),
            speaking_rate=_within(given, "speaking_rate", MIN_SPEAKING_RATE, MAX_SPEAKING_RATE) or 1.0,
            seed=_seed(given),
            language=_text(given, "language"),
            noise_scale=_within(given, "noise_scale", 0, MAX_NOISE_SCALE),
            noise_scale_duration=_within(given, "noise_scale_duration", 0, MAX_NOISE_SCALE),
        )
    except ValueError as error:
        return BadRow(number, row_id, str(error))


def _whole(text: str) -> bool:
    """Whether all its characters are characters."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _text(given: Cells, name: str) -> str | None:
    return str(given[name]) if name in given else None


def _within(given: Cells, name: str, least: float, most: float) -> float | None:
    return _number(
        given, name, float, lambda value: least <= value <= most, f"a number from {least:g} to {most:g}"
    )


def _seed(given: Cells) -> int | None:
    seed = _number(
        given,
        "seed",
        float,
        lambda value: 0 <= value < SEED_LIMIT and value == int(value),
        "a whole number below 2^53",
    )
    return None if seed is None else int(seed)


def _number(
    given: Cells, name: str, kind: Callable[[Any], float], fits: Callable[[float], bool], must: str
) -> float | None:
    if name not in given:
        return None
    try:
        value = kind(given[name])
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value) or not fits(value):
        raise ValueError(f"{name} is {given[name]!r}; it must be {must}")
    return value
