"""Datasets that are a folder: a table of transcripts and the audio files that it names.

Understood are comma- (or semicolon-) separated CSV, TSV, and LJSpeech's ``id|text|normalised text``, each
with or without a header line. Without one, the first column is the audio and the last the text
(LJSpeech's normalised one, the transcript of Piper's ``id|speaker|text``), unless columns are given by
number. ``|`` tables are read as they stand; the others with CSV's quotation rules.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from services.training.data.recordings import Columns, Recording, Row, missing_column, pick_column
from shared.errors import DataError

_log = logging.getLogger(__name__)

#: Tried in this order, after the name as it stands.
AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".webm")

#: Where audio may be, relative to the table.
AUDIO_FOLDERS = (".", "wavs", "audio", "clips")

#: Of a table of transcripts.
TABLE_EXTENSIONS = (".csv", ".tsv", ".txt")

#: Tables that hold one split each, under the names that corpora give them.
_SPLIT_TABLES = ("train", "validation", "val", "valid", "dev", "eval", "test")

_SPEAKER_NAMES = ("speaker_id", "speaker", "speaker_name")


def find_tables(source: Path) -> list[Path]:
    """The tables of a dataset folder: itself if it is one, ``metadata.*``, or one for each split.

    Empty when the source is no folder of recordings; it may then be a dataset of another kind.
    """
    if source.is_file():
        return [source] if source.suffix in TABLE_EXTENSIONS else []
    named = [source / f"metadata{extension}" for extension in TABLE_EXTENSIONS]
    for table in named:
        if table.is_file():
            return [table]
    splits = [source / f"{name}{extension}" for name in _SPLIT_TABLES for extension in TABLE_EXTENSIONS]
    return [table for table in splits if table.is_file()]


def read_tables(source: Path, tables: Sequence[Path], columns: Columns) -> list[Row]:
    """Read the rows of a folder's tables; what is wrong with a row is noted in it.

    Raises:
        DataError: A table is not UTF-8, has no such column, or is empty.
    """
    one_per_split = source.is_dir() and not tables[0].stem.startswith("metadata")
    rows: list[Row] = []
    for table in tables:
        rows += _read_table(table, columns, split=table.stem if one_per_split else None)
    if {row.split for row in rows} == {"train"}:
        rows = [replace(row, split=None) for row in rows]
    return _without_doubles(rows)


@dataclass(frozen=True)
class _Layout:
    """Where in a table's lines to find what.

    Attributes:
        width: The number of columns.
        has_header: Whether the first line names them.
    """

    width: int
    has_header: bool
    audio: int
    text: int
    speaker: int | None
    split: int | None
    id: int | None


def _read_table(table: Path, columns: Columns, *, split: str | None) -> list[Row]:
    """The rows of one table."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = table.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(
            f"{table} is not UTF-8 text", [f"line {line} holds the first bad byte: save the file as UTF-8"]
        ) from error
    delimiter = _delimiter(table, text.partition("\n")[0])
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "|" else csv.QUOTE_MINIMAL
    csv.field_size_limit(10_000_000)  # an unclosed quotation mark swallows the file: report it, do not crash
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)
    # Each record with the line that it begins on.
    lines: list[tuple[int, list[str]]] = []
    begins = 1
    for cells in reader:
        if any(cell.strip() for cell in cells):
            lines.append((begins, [cell.strip() for cell in cells]))
        begins = reader.line_num + 1
    if not lines:
        raise DataError(
            f"{table} is empty", ["write one line for each recording: its file and its transcript"]
        )
    layout = _layout(table, lines[0][1], columns)
    rows = [_row(table, number, cells, layout, split) for number, cells in lines[layout.has_header :]]
    _warn_of_mixed_speakers(table, lines, layout)
    return rows


def _delimiter(table: Path, first_line: str) -> str:
    if "|" in first_line:
        return "|"
    if "\t" in first_line or table.suffix == ".tsv":
        return "\t"
    return ";" if first_line.count(";") > first_line.count(",") else ","


def _layout(table: Path, first: Sequence[str], columns: Columns) -> _Layout:
    """Find the columns, by name where the first line is a header and by number where not.

    Raises:
        DataError: A column that was asked for is not there.
    """
    asked_for = {columns.audio, columns.text, columns.speaker, columns.id}
    if not asked_for.union(Columns.AUDIO_NAMES, Columns.TEXT_NAMES).intersection(first):
        return _numbered_layout(table, first, columns)
    found: dict[str, int | None] = {}
    problems: list[str] = []
    wanted: Mapping[str, tuple[str | None, Sequence[str]]] = {
        "audio": (columns.audio, Columns.AUDIO_NAMES),
        "text": (columns.text, Columns.TEXT_NAMES),
        "speaker": (columns.speaker, ("",)),
        "id": (columns.id, ("",)),
    }
    for role, (name, usual) in wanted.items():
        column = None if name is None else pick_column(name, usual, first)
        found[role] = None if column is None else first.index(column)
        if name is not None and column is None:
            problems.append(missing_column(role, name, first))
    if problems:
        raise DataError(f"{table} lacks columns", problems)
    split = first.index(columns.split) if columns.split in first else None
    # Audio and text always have a name, so both were found.
    return _Layout(
        len(first), True, found["audio"] or 0, found["text"] or 0, found["speaker"], split, found["id"]
    )


def _numbered_layout(table: Path, first: Sequence[str], columns: Columns) -> _Layout:
    """The layout of a table without a header line."""
    problems: list[str] = []

    def number(role: str, name: str | None, default: int | None) -> int | None:
        if name is None or name in {"audio", "text", "split"}:
            return default
        if name.isdecimal() and int(name) < len(first):
            return int(name)
        problems.append(
            f"no column {name!r} for the {role}: the first line is no header, so give a number from 0 to "
            f"{len(first) - 1}, or add a header line"
        )
        return default

    layout = _Layout(
        width=len(first),
        has_header=False,
        audio=number("audio", columns.audio, 0) or 0,
        text=number("text", columns.text, len(first) - 1) or 0,
        speaker=number("speaker", columns.speaker, None),
        split=None,
        id=number("id", columns.id, None),
    )
    if len(first) < 2:
        problems.append(
            f"its first line {first[0]!r} has one column: separate file and transcript by a comma, a tab or |"
        )
    if problems:
        raise DataError(f"{table} lacks columns", problems)
    return layout


def _row(table: Path, number: int, cells: Sequence[str], layout: _Layout, split: str | None) -> Row:
    """One line of a table."""
    place = f"{table.name}:{number}"
    if len(cells) != layout.width:
        return Row(
            Recording(id=cells[0], text="", row=place),
            split,
            f"it has {len(cells)} columns where the first line has {layout.width}: check the separators and "
            "put a text that holds one in quotation marks",
        )
    named = cells[layout.audio]
    path = _find_audio(table.parent, named)
    problem = None
    if not named:
        problem = "it names no audio file: name one, or remove the row"
    elif path is None:
        folders = f"{', '.join(AUDIO_FOLDERS[1:-1])} or {AUDIO_FOLDERS[-1]}"
        problem = (
            f"its audio file {named!r} is not in {table.parent} or its folders {folders}: check the name"
        )
    speaker = None if layout.speaker is None else cells[layout.speaker]
    if speaker == "":
        problem = problem or "its speaker is empty: name one, or do not ask for a speaker column"
    own_id = _without_extension(named) if layout.id is None else cells[layout.id]
    own_split = split if layout.split is None else cells[layout.split]
    if own_split == "":
        problem = problem or "its split is empty: write train, validation or test"
    return Row(
        Recording(id=own_id, text=cells[layout.text], speaker=speaker, path=path, row=place),
        own_split,
        problem,
    )


def _without_extension(name: str) -> str:
    """A file's name as a recording's id. Only audio extensions go: ids may hold dots."""
    extension = next((e for e in AUDIO_EXTENSIONS if name.lower().endswith(e)), "")
    return name[: len(name) - len(extension)]


def _find_audio(folder: Path, name: str) -> Path | None:
    """The file that a table means by ``name``."""
    if not name:
        return None
    for place in AUDIO_FOLDERS:
        for extension in ("", *AUDIO_EXTENSIONS):
            path = folder / place / f"{name}{extension}"
            if path.is_file():
                return path
    return None


def _without_doubles(rows: Sequence[Row]) -> list[Row]:
    """Note every row whose audio file another row has named before, under whatever id."""
    first: dict[Path, str] = {}
    noted: list[Row] = []
    for row in rows:
        path = row.recording.path
        if path is not None and row.problem is None:
            before = first.setdefault(path.resolve(), row.recording.row)
            if before != row.recording.row:
                problem = f"its audio file is the one of {before}: remove one of the two rows"
                row = replace(row, problem=problem)
        noted.append(row)
    return noted


def _warn_of_mixed_speakers(table: Path, lines: Sequence[tuple[int, list[str]]], layout: _Layout) -> None:
    """Say so when several speakers are about to be trained into one voice."""
    if layout.speaker is not None or not layout.has_header:
        return
    header = lines[0][1]
    for name in _SPEAKER_NAMES:
        if name in header:
            column = header.index(name)
            speakers = {cells[column] for _, cells in lines[1:] if len(cells) > column}
            if len(speakers) > 1:
                _warn_once(table, len(speakers), name)
            return


@cache
def _warn_once(table: Path, speakers: int, column: str) -> None:
    """A table is read once for each split, but says this once a process."""
    _log.warning(
        "%s has %d speakers in its column %r, not read: they become one voice", table, speakers, column
    )
