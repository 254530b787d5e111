"""What a dataset is made of: recordings, the rows that list them, the columns of a row, the splits."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.audio import Audio, read_audio
from shared.errors import UserError, nearest

#: The part of a dataset without splits that is held out, once for validation and once more for test.
HOLD_OUT_FRACTION = 0.05


_SPLIT_ALIASES = {"val": "validation", "valid": "validation", "dev": "validation", "eval": "validation"}


@dataclass(frozen=True, eq=False)
class Recording:
    """One recorded sentence. Its sound is decoded when asked for, and not kept.

    Attributes:
        id: Names it within its dataset.
        text: What is said, as its author wrote it, without surrounding space.
        speaker: Who says it, by the name that the dataset uses, or None where no speaker column was named.
        path: Its file, or None when the sound is inside the dataset's own files.
        row: Where the dataset lists it, such as ``metadata.csv:7``.
        duration_seconds: Its length by the file's header, where that states one.
        embedded: Fetches its sound, or the file that holds it, when there is no ``path``.
        embedded_edition: Tells what ``embedded`` fetches from what it fetched before the dataset was changed,
            where the dataset knows that without reading it; else empty.
    """

    id: str
    text: str
    speaker: str | None = None
    path: Path | None = None
    row: str = ""
    duration_seconds: float | None = None
    embedded: Callable[[], Path | bytes | Audio] | None = field(default=None, repr=False)
    embedded_edition: str = field(default="", repr=False)

    def source(self) -> Path | bytes | Audio:
        """Its file, the bytes of one, or its sound where the dataset holds bare samples.

        Raises:
            UserError: It has none of these.
        """
        if self.path is not None:
            return self.path
        if self.embedded is not None:
            return self.embedded()
        raise UserError(f"recording {self.id!r} has neither a file nor embedded sound")

    def fault(self, why: str) -> str:
        """Why it cannot be used, after its place and its name."""
        return f"{self.row} ({self.id or 'no id'}): {why}"

    def edition(self) -> bytes:
        """Tells its sound from any other, and from itself before it was changed.

        A file is known by its path, size and time, and embedded sound by what the dataset knows of it; only
        where there is neither is it read.

        Raises:
            UserError: It cannot be read.
        """
        if self.embedded_edition:
            return self.embedded_edition.encode()
        source = self.source()
        if isinstance(source, Path):
            try:
                status = source.stat()
            except OSError as error:
                raise UserError(f"{source} cannot be read ({error.strerror}): check the file") from error
            return f"{source.resolve()}\0{status.st_size}\0{status.st_mtime_ns}".encode()
        if isinstance(source, bytes):
            return hashlib.sha256(source).digest()
        return hashlib.sha256(source.samples.tobytes()).digest() + str(source.sampling_rate).encode()

    def audio(self, sampling_rate: int | None = None) -> Audio:
        """Decode it, mono, at its own sampling rate or resampled once to the one that is given.

        Raises:
            UserError: It cannot be decoded.
        """
        source = self.source()
        audio = source if isinstance(source, Audio) else read_audio(source)
        return audio if sampling_rate is None else audio.resampled(sampling_rate)


@dataclass(frozen=True)
class Row:
    """One row of a dataset as it was found, before anybody looked at its sound.

    Attributes:
        recording: What the row describes.
        split: The split that the dataset puts it in; None in a dataset without, or with ``train`` alone.
        problem: Why the row cannot be used, where that is known already.
    """

    recording: Recording
    split: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Columns:
    """Which columns of a dataset to read; see ``read_recordings``."""

    audio: str = "audio"
    text: str = "text"
    speaker: str | None = None
    split: str = "split"
    id: str | None = None

    #: What others call the same thing, tried when the default name is not there.
    AUDIO_NAMES = ("audio", "file_name", "filename", "file", "path", "audio_file", "audio_path", "wav", "id")
    TEXT_NAMES = (
        "text",
        "sentence",
        "transcription",
        "transcript",
        "normalized_text",
        "normalized_transcription",
    )


def pick_column(wanted: str, usual: Sequence[str], present: Sequence[str]) -> str | None:
    """The column to read: the wanted one, or, where that is only a default, the first usual name present."""
    if wanted in present:
        return wanted
    if wanted != usual[0]:
        return None
    return next((name for name in usual if name in present), None)


#: What names a column on the command line: of ``vits data inspect``, and of ``vits train``.
_COLUMN_OPTIONS = {
    "audio": ("--audio-column", "--audio_column_name"),
    "text": ("--text-column", "--text_column_name"),
    "speaker": ("--speaker-column", "--speaker_id_column_name"),
}


def missing_column(role: str, name: str, present: Sequence[str]) -> str:
    """What to tell of a column that is not there: which there are, and how to name the right one."""
    # A table's own default name is what the manual teaches.
    shown = "'file_name' (or 'audio')" if role == name == "audio" else repr(name)
    problem = f"no column {shown} for the {role}{nearest(name, present) or '.'} The columns are {', '.join(present)}"
    if role not in _COLUMN_OPTIONS:
        return problem
    inspect, train = _COLUMN_OPTIONS[role]
    return f"{problem}: say which it is with {inspect} (vits data inspect) or {train} (vits train)"


def hold_out(ids_and_speakers: Sequence[tuple[str, str | None]]) -> list[str]:
    """Split a dataset that names no splits: ``train``, ``validation`` or ``test`` for each recording.

    By rank of the id's SHA-256, so neither order nor machine matters, and one recording more moves at most
    one other across each border. A recording stays in ``train`` when its speaker has no other there.

    Fewer than three recordings are all ``train``.
    """
    names = ["train"] * len(ids_and_speakers)
    size = max(1, round(HOLD_OUT_FRACTION * len(names)))
    in_train = Counter(speaker for _, speaker in ids_and_speakers)
    by_hash = sorted(
        range(len(names)), key=lambda i: hashlib.sha256(ids_and_speakers[i][0].encode()).digest()
    )
    quota = ["validation"] * size + ["test"] * size if len(names) >= 3 else []
    for i in by_hash:
        speaker = ids_and_speakers[i][1]
        if quota and in_train[speaker] > 1:
            names[i] = quota.pop(0)
            in_train[speaker] -= 1
    return names


def canonical_split(split: str) -> str:
    """One name for each split: ``val``, ``valid``, ``dev`` and ``eval`` are ``validation``."""
    return _SPLIT_ALIASES.get(split.lower(), split)
