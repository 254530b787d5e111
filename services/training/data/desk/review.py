"""Listening through a dataset's transcripts: what is right, what has to be corrected, what is left out.

``review.csv`` in the dataset's folder remembers every recording's state and its first transcript; ``metadata.csv``
follows from it, without what was rejected, and is what training reads. Both are replaced whole after every single
edit. Each row has a revision: an edit that was made over an older one, in another tab, is refused and shown what is
there now.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

from services.training.data.desk.server import Answer, Desk
from services.training.data.writing import write_table
from shared.audio import encode_flac, read_audio
from shared.errors import DataError, UserError

OPEN, ACCEPTED, REJECTED = "open", "accepted", "rejected"
STATES = (OPEN, ACCEPTED, REJECTED)

FILES = {"/": "review.html", "/review.js": "review.js", "/desk.css": "desk.css"}
#: What every browser plays as it is.
_PLAYED = {".wav": "audio/wav", ".flac": "audio/flac", ".mp3": "audio/mpeg", ".ogg": "audio/ogg"}
_STATE_COLUMNS = ("state", "revision", "first_text")
MAX_TEXT = 2000


@dataclass(frozen=True)
class Entry:
    """One recording under review.

    Attributes:
        file: As the table names it.
        text: Its transcript now.
        state: ``open``, ``accepted`` or ``rejected``.
        revision: How often it was changed.
        first_text: Its transcript before anybody touched it.
        others: The other columns of the table.
    """

    file: str
    text: str
    state: str = OPEN
    revision: int = 0
    first_text: str = ""
    others: tuple[str, ...] = ()


class Review:
    """A dataset folder under review; one process at a time.

    Args:
        folder: With a ``metadata.csv`` that has a header.
        accepted_only: Leave out of ``metadata.csv`` what nobody has accepted yet, too.

    Raises:
        DataError: The folder has no such table, or its memory was spoiled.
    """

    def __init__(self, folder: Path, *, accepted_only: bool = False) -> None:
        self.folder, self.accepted_only = folder, accepted_only
        self._lock = threading.Lock()
        self._table, self._memory = folder / "metadata.csv", folder / "review.csv"
        self._columns, rows = _read_table(self._table)
        self.entries = self._merged(rows)
        self._seen = b""
        self._save()

    def _merged(self, rows: Sequence[dict[str, str]]) -> list[Entry]:
        """The rows of the table with what is remembered of them; a table that was edited by hand is right."""
        remembered: dict[str, dict[str, str]] = {}
        if self._memory.is_file():
            columns, lines = _read_table(self._memory)
            if not set(_STATE_COLUMNS) <= set(columns) or not all(
                (line["revision"] or "0").isdecimal() for line in lines
            ):
                raise DataError(
                    f"{self._memory} is not as a review writes it",
                    [
                        "bring back the one that was written, or move it aside: then every recording is open again"
                    ],
                )
            remembered = {line["file_name"]: line for line in lines}
        entries = []
        for row in rows:
            known = remembered.pop(row["file_name"], None)
            others = tuple(row[name] for name in self._columns if name not in {"file_name", "text"})
            entry = Entry(row["file_name"], row["text"], first_text=row["text"], others=others)
            if known is not None:
                state = known["state"] if known["state"] in STATES else OPEN
                entry = replace(
                    entry, state=OPEN if state == REJECTED else state, revision=int(known["revision"] or 0),
                    first_text=known["first_text"],
                )  # fmt: skip
            entries.append(entry)
        gone = [
            Entry(
                file, row["text"],
                # Left out because nobody had accepted it, or else rejected, here or by hand.
                state=OPEN if row["state"] == OPEN and self.accepted_only else REJECTED,
                revision=int(row["revision"] or 0), first_text=row["first_text"],
                others=tuple(row.get(name, "") for name in self._columns if name not in {"file_name", "text"}),
            )
            for file, row in remembered.items()
        ]  # fmt: skip
        return sorted([*entries, *gone], key=lambda entry: entry.file)

    def edit(self, index: int, revision: int, *, text: str | None = None, state: str | None = None) -> Entry:
        """Change one recording, and save it.

        Args:
            index: Its place.
            revision: The one that was changed.
            text: Its transcript from now on.
            state: Its state from now on.

        Raises:
            StaleError: It was changed elsewhere meanwhile.
            UserError: The text or state will not do, or somebody else has written the table.
        """
        with self._lock:
            entry = self.entries[index]
            if revision != entry.revision:
                raise StaleError(entry)
            if state is not None and state not in STATES:
                raise UserError(f"there is no state {state!r}")
            changed = replace(
                entry, text=entry.text if text is None else _cleaned(text), state=state or entry.state,
                revision=entry.revision + 1,
            )  # fmt: skip
            if changed.state == ACCEPTED and not re.search(r"\w", changed.text):
                raise UserError("write what is said before you accept it, or reject it")
            if self._table.read_bytes() != self._seen:
                raise UserError(
                    f"{self._table} was changed by somebody else: end this, look at it, start again; nothing is lost"
                )
            self.entries[index] = changed
            try:
                self._save()
            except OSError:
                self.entries[index] = entry
                raise
            return changed

    def counts(self) -> dict[str, int]:
        """How many recordings are in each state."""
        return {state: sum(entry.state == state for entry in self.entries) for state in STATES}

    def _save(self) -> None:
        others = [name for name in self._columns if name not in {"file_name", "text"}]
        write_table(
            self._memory,
            ["file_name", "text", *_STATE_COLUMNS, *others],
            [[e.file, e.text, e.state, str(e.revision), e.first_text, *e.others] for e in self.entries],
        )
        wanted = {ACCEPTED} if self.accepted_only else {ACCEPTED, OPEN}
        self._seen = write_table(
            self._table,
            ["file_name", "text", *others],
            [[e.file, e.text, *e.others] for e in self.entries if e.state in wanted],
        )


class StaleError(UserError):
    """A recording was changed elsewhere meanwhile.

    Attributes:
        entry: What it is now.
    """

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        super().__init__("it was changed in another tab: this is what is there now")


def _cleaned(text: str) -> str:
    """A transcript on one line.

    Raises:
        UserError: It is too long for one.
    """
    text = " ".join(text.split())
    if len(text) > MAX_TEXT:
        raise UserError(f"the text has {len(text)} characters; {MAX_TEXT} are the most")
    return text


def _read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows.

    Raises:
        DataError: It is not there, or has not the columns file_name and text.
    """
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""), restval="")
        rows = [{key: (value or "") for key, value in row.items() if isinstance(key, str)} for row in reader]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read",
            [
                "give a folder that 'vits data prepare', 'record' or 'clean' made; 'clean' makes one of any dataset"
            ],
        ) from error
    columns = list(reader.fieldnames or [])
    if not {"file_name", "text"} <= set(columns):
        raise DataError(
            f"{path} has not the columns file_name and text",
            ["'vits data clean' makes such a folder of any dataset"],
        )
    return columns, rows


@contextmanager
def sole(folder: Path) -> Iterator[None]:
    """Be the only process that writes into a folder.

    Raises:
        UserError: Another one is.
    """
    with (folder / ".desk.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{folder} is open in another 'vits data review' or 'record' already: use that one"
            ) from error
        yield


def review_desk(review: Review, port: int = 0) -> Desk:
    """The page for a review."""

    def shown(index: int, entry: Entry) -> dict[str, Any]:
        return {
            "index": index, "file": entry.file, "text": entry.text, "state": entry.state,
            "revision": entry.revision, "first": entry.first_text,
        }  # fmt: skip

    def rows(_: Sequence[str], __: bytes) -> Answer:
        listed = [shown(index, entry) for index, entry in enumerate(review.entries)]
        return Answer({"folder": str(review.folder), "rows": listed})

    def sound(groups: Sequence[str], _: bytes) -> Answer:
        entry = review.entries[_index(groups, review)]
        path = review.folder / entry.file
        if path.suffix in _PLAYED:
            return Answer(body=path.read_bytes(), media_type=_PLAYED[path.suffix])
        audio = read_audio(path)
        return Answer(body=encode_flac(audio.samples, audio.sampling_rate), media_type="audio/flac")

    def edit(groups: Sequence[str], body: bytes) -> Answer:
        index = _index(groups, review)
        wanted = _json(body)
        try:
            entry = review.edit(index, wanted["revision"], text=wanted.get("text"), state=wanted.get("state"))
        except StaleError as stale:
            return Answer({"error": str(stale), "row": shown(index, stale.entry)}, HTTPStatus.CONFLICT)
        return Answer({"row": shown(index, entry), "counts": review.counts()})

    routes = [("GET", "/rows", rows), ("GET", r"/sounds/(\d+)", sound), ("POST", r"/rows/(\d+)", edit)]
    return Desk(FILES, routes, port)


def _index(groups: Sequence[str], review: Review) -> int:
    index = int(groups[0])
    if index >= len(review.entries):
        raise UserError(f"there is no recording {index}")
    return index


def _json(body: bytes) -> dict[str, Any]:
    """An edit as the page sends it.

    Raises:
        UserError: It is of another form.
    """
    try:
        found = json.loads(body)
        types = {"revision": int, "text": str | None, "state": str | None}
        good = isinstance(found, dict) and "revision" in found
        good = good and all(name in types and isinstance(value, types[name]) for name, value in found.items())
    except ValueError:
        good = False
    if not good:
        raise UserError("an edit is a JSON object with revision, and text or state")
    return dict(found)
