"""A voice's own words: how names, brands and terms are spoken. A file that may change while a server runs.

JSON is one object, ``{"Nguyen": "nuyen", "GIF": {"phonemes": "dʒˈɪf"}}``. TSV has a word and its reading in
each line, phonemes between slashes: ``GIF<tab>/dʒˈɪf/``; empty lines and lines that begin with ``#`` do not
count. A word may be several words, and matches whatever its capitals unless there is an entry with the very
same ones.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from shared.errors import ConfigError
from shared.text.front_end import FrontEnd

log = logging.getLogger(__name__)

#: A lexicon may have so many words, and a file so many bytes.
MAX_ENTRIES = 20_000
MAX_BYTES = 4_000_000
#: A word or its reading may have so many characters.
MAX_LENGTH = 200
#: So many problems are told at once.
MAX_PROBLEMS = 20


@dataclass(frozen=True)
class Entry:
    """How one word is spoken: as another text, or as phonemes in IPA.

    Attributes:
        text: What is spoken in its place.
        phonemes: IPA, for voices that speak from phonemes.
    """

    text: str | None = None
    phonemes: str | None = None


@dataclass(frozen=True)
class Lexicon:
    """Words and how they are spoken; immutable.

    Attributes:
        entries: By the word as it is written.
    """

    entries: Mapping[str, Entry] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, front_end: FrontEnd | None = None) -> Lexicon:
        """Read a ``.json`` or ``.tsv`` file.

        Args:
            path: The file.
            front_end: The voice's, to refuse what it could not speak.

        Raises:
            ConfigError: Lists every row that is wrong.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"The lexicon {path} cannot be read:", [str(error)]) from error
        if len(content) > MAX_BYTES:
            raise _unusable(path, [f"it has {len(content):,} bytes; at most {MAX_BYTES:,} are read"])
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise _unusable(path, [f"it is not UTF-8: {error}"]) from error
        rows = _json_rows(path, text) if path.suffix == ".json" else _tsv_rows(text)
        entries: dict[str, Entry] = {}
        problems: list[str] = []
        for where, word, value in rows:
            entry = _entry(word, value, front_end)
            if isinstance(entry, str):
                problems.append(f"{where}: {entry}")
            elif word.strip() in entries:
                problems.append(f"{where}: {word.strip()!r} is there already; keep one of them")
            else:
                entries[word.strip()] = entry
        if len(entries) > MAX_ENTRIES:
            problems.append(f"it has {len(entries):,} words; at most {MAX_ENTRIES:,} are read")
        if problems:
            more = [f"… and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
            raise _unusable(path, problems[:MAX_PROBLEMS] + more)
        return cls(entries)

    def find(self, text: str) -> Iterator[tuple[int, int, Entry]]:
        """Where its words are in a text: first character, the one after the last, and the entry."""
        if self._pattern is None:
            return
        for match in self._pattern.finditer(text):
            entry = self.entries.get(match.group()) or self._by_lower.get(match.group().lower())
            if entry is not None:
                yield match.start(), match.end(), entry

    @cached_property
    def _by_lower(self) -> dict[str, Entry]:
        return {word.lower(): entry for word, entry in reversed(list(self.entries.items()))}

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        if not self.entries:
            return None
        words = sorted(self.entries, key=len, reverse=True)
        return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)", re.IGNORECASE)


class LexiconFile:
    """A lexicon that follows its file. Safe to use from many threads.

    A file that is not there is an empty lexicon. A file that becomes unusable leaves the last good one in
    force, is told of in the log once, and in `problem` until it is mended.

    Args:
        path: The file, ``.json`` or ``.tsv``.
        front_end: The voice's, to refuse what it could not speak.

    Raises:
        ConfigError: The file is there, and unusable from the start.
    """

    def __init__(self, path: Path, front_end: FrontEnd | None = None) -> None:
        self._path = path
        self._front_end = front_end
        self._lock = threading.Lock()
        self._seen = _state(path)
        self._lexicon = Lexicon.read(path, front_end) if self._seen else Lexicon()
        #: What is wrong with the file as it is now; nothing if it is in force.
        self.problem: str | None = None

    def current(self) -> Lexicon:
        """The lexicon in force: costs a look at the file's time and size unless it has changed."""
        state = _state(self._path)
        if state == self._seen:
            return self._lexicon
        with self._lock:
            if state != self._seen:
                self._reload()
                self._seen = state
        return self._lexicon

    def _reload(self) -> None:
        try:
            self._lexicon = Lexicon.read(self._path, self._front_end) if _state(self._path) else Lexicon()
            self.problem = None
            log.info("lexicon %s: %d words", self._path, len(self._lexicon.entries))
        except ConfigError as error:
            self.problem = str(error)
            log.warning("the lexicon before stays in force. %s", error)


def _state(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file does; nothing if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _unusable(path: Path, problems: list[str]) -> ConfigError:
    return ConfigError(f"The lexicon {path} cannot be used:", problems)


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, str, Any]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unusable(path, [f"it is not JSON: {error}"]) from error
    if not isinstance(content, dict):
        raise _unusable(path, ['it must be an object such as {"word": "reading"}'])
    for word, value in content.items():
        yield repr(word), word, value


def _tsv_rows(text: str) -> Iterator[tuple[str, str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        word, tab, reading = line.partition("\t")
        reading = reading.strip()
        if not tab:
            yield f"line {number}", word, None
        elif len(reading) > 1 and reading[0] == reading[-1] == "/":
            yield f"line {number}", word, {"phonemes": reading[1:-1]}
        else:
            yield f"line {number}", word, reading


def _entry(word: str, value: Any, front_end: FrontEnd | None) -> Entry | str:
    """An entry, or what is wrong with its row."""
    if not word.strip():
        return "the word is empty"
    if value is None:
        return "there is no reading; put a tab and the reading behind the word"
    fields = {"text": value} if isinstance(value, str) else value
    if not isinstance(fields, dict) or set(fields) not in ({"text"}, {"phonemes"}):
        return 'the reading must be a text, {"text": …} or {"phonemes": …}'
    ((kind, reading),) = fields.items()
    if not isinstance(reading, str) or not reading.strip():
        return f"its {kind} must be a text that is not empty"
    if max(len(word), len(reading)) > MAX_LENGTH:
        return f"the word or its reading is longer than {MAX_LENGTH} characters"
    if kind == "phonemes" and front_end is not None and not front_end.speaks_phonemes:
        return "this voice speaks from letters, not phonemes; give a text that is spelt as it sounds"
    return Entry(**{kind: reading.strip()})
