"""Reading a dataset, whatever form it comes in.

``read_recordings`` looks at every row before it returns any: a row that training would trip over an hour
later is reported at once, with all the others that are wrong.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from services.training.data import hub, tables
from services.training.data.recordings import Columns, Recording, Row, canonical_split, hold_out
from shared.audio import Audio, read_audio, read_audio_header
from shared.container import mount_advice
from shared.errors import DataError, UserError, nearest_beside
from shared.wording import counted

#: More bad rows than this are counted, not listed.
MAX_LISTED_PROBLEMS = 50


def read_recordings(
    source: str | Path,
    *,
    split: str,
    config_name: str | None = None,
    audio_column: str = "audio",
    text_column: str = "text",
    speaker_column: str | None = None,
    split_column: str = "split",
    id_column: str | None = None,
    verify: bool = False,
    cache_dir: str | Path | None = None,
    token: str | None = None,
) -> list[Recording]:
    """Read one split of a dataset, in the dataset's own order.

    A dataset is one of

    - a folder (or one table file) of recordings: ``metadata.csv``, ``.tsv`` or LJSpeech's ``id|text|…``, or
      a table for each split (``train.csv``, ``validation.csv``), audio beside it or in ``wavs/``, ``audio/``
      or ``clips/``, named with or without its extension (see ``services.training.data.tables``);
    - a Hugging Face dataset in a folder: saved with ``save_to_disk``, or parquet and the like;
    - the id of one on the hub.

    A dataset that names no split, or only ``train``, is split here, the same way on every machine and
    whatever the order of its rows: the recordings with the lowest SHA-256 of their id are held out, 5 % (at
    least one) as ``validation`` and as many as ``test``; ``train`` is the rest, and every speaker keeps at
    least one recording in it. ``split="all"`` gives every recording.

    Rows without a text are read: ``prepare`` leaves them out and lists them, with all else that cannot be
    trained on.

    Args:
        source: The folder, the table file or the hub id.
        split: ``"train"``, ``"validation"`` (also val, valid, dev, eval), ``"test"``, ``"all"``, or any
            name that the dataset uses.
        config_name: The configuration of a hub dataset that has several.
        audio_column: The column with the audio. Where the dataset has no column of the default name, the
            usual other names are tried (``file_name``, ``path``, …). For a table without a header line, a
            column's number, from 0.
        text_column: The column with the transcript; likewise (``sentence``, ``transcription``, …).
        speaker_column: The column with the speaker's name; None reads no speakers.
        split_column: The column of a table that says which split a row is in, if it has one.
        id_column: A column that names each recording. By default a table's audio column names it, and a
            Hugging Face dataset's recordings are counted.
        verify: Decode every file to its end, not only its header and first frame: some seconds for every
            hour of speech.
        cache_dir: Where hub downloads are kept; the hub library's own default when None.
        token: An access token for the hub, for a dataset that is not public.

    Raises:
        DataError: Every row that cannot be read: its place, its id, what is wrong and what to do. Also a
            source that is not there, has no such split, no such column, or numbers for text.
        HubUnreachableError: The hub could not be reached and the dataset is not in its cache.
        MissingExtraError: A Hugging Face dataset without the ``datasets`` library.
    """
    columns = Columns(audio_column, text_column, speaker_column, split_column, id_column)
    found = survey(
        source, split=split, columns=columns, config_name=config_name, verify=verify, cache_dir=cache_dir,
        token=token, refuse_empty_texts=False,
    )  # fmt: skip
    found.raise_problems()
    return list(found.only(split).recordings)


@dataclass(frozen=True)
class Survey:
    """A dataset as it is, good rows and bad.

    Attributes:
        source: Where it is.
        recordings: What the good rows describe.
        splits: The split of each of them.
        problems: What is wrong with the bad rows, a sentence for each.
        unusable: The same by the row's id.
        is_split_here: Whether the dataset names no splits, so that ``splits`` is what was held out of it.
    """

    source: str
    recordings: tuple[Recording, ...]
    splits: tuple[str, ...]
    problems: tuple[str, ...]
    unusable: Mapping[str, str]
    is_split_here: bool = False

    def only(self, split: str) -> Survey:
        """One split of it, or itself for ``"all"``.

        Raises:
            DataError: No recording is in that split.
        """
        if split == "all":
            return self
        wanted = canonical_split(split)
        chosen = [pair for pair in zip(self.recordings, self.splits, strict=True) if pair[1] == wanted]
        if not chosen:
            present = ", ".join(f"{name} ({count})" for name, count in Counter(self.splits).items())
            raise DataError(
                f"{self.source} has no recordings in split {split!r}",
                [f"its splits are {present}: name one of them"],
            )
        recordings, splits = zip(*chosen, strict=True)
        return replace(self, recordings=recordings, splits=splits)

    def raise_problems(self) -> None:
        """Refuse a dataset with bad rows, or with none at all.

        Raises:
            DataError: It has; carries all of them.
        """
        if self.problems:
            listed = list(self.problems[:MAX_LISTED_PROBLEMS])
            if len(self.problems) > len(listed):
                listed.append(f"… and {len(self.problems) - len(listed)} more")
            total = len(self.problems) + len(self.recordings)
            raise DataError(
                f"{self.source}: {len(self.problems)} of {counted(total, 'row')} cannot be used", listed
            )
        if not self.recordings:
            raise DataError(f"{self.source} lists no recordings", ["add rows, or point at another dataset"])


def survey(
    source: str | Path,
    *,
    split: str = "all",
    columns: Columns | None = None,
    config_name: str | None = None,
    verify: bool = False,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    refuse_empty_texts: bool = True,
) -> Survey:
    """Look at every row of a dataset without refusing it for its bad ones; see ``read_recordings``.

    Of a Hugging Face dataset with several splits, only the one that is asked for is looked at; of a folder,
    always all.

    Raises:
        DataError: There is no such dataset, split or column, or its texts are numbers.
        HubUnreachableError: The hub could not be reached and the dataset is not in its cache.
        MissingExtraError: A Hugging Face dataset without the ``datasets`` library.
    """
    columns = columns or Columns()
    folder = Path(source).expanduser()
    tables_found = tables.find_tables(folder)
    if tables_found:
        rows = tables.read_tables(folder, tables_found, columns)
    elif folder.exists():
        rows = hub.read_folder(folder, split, columns)
    elif hub.looks_like_id(str(source)) and not hub.looks_like_file(str(source)):
        rows = hub.read_hub(
            str(source), split, columns, config_name=config_name, cache_dir=cache_dir, token=token
        )
    else:
        raise DataError(
            f"There is no dataset {source}",
            [
                f"no folder or file here has that name{nearest_beside(folder) or '.'}{mount_advice('data')}",
                "check the path, or give the id of a hub dataset (owner/name)",
            ],
        )
    _refuse_numbers_for_text(str(source), rows, columns)
    return _survey_rows(str(source), rows, verify=verify, refuse_empty_texts=refuse_empty_texts)


def _refuse_numbers_for_text(source: str, rows: Sequence[Row], columns: Columns) -> None:
    """A column of durations or of numbers of speakers passes for text, and would train a voice on noise.

    Raises:
        DataError: Every text is a number.
    """
    texts = [row.recording.text for row in rows if row.recording.text]
    if texts and all(re.fullmatch(r"[+-]?\d+([.,]\d+)?", text) for text in texts):
        raise DataError(
            f"{source}: the text column {columns.text!r} holds numbers only, such as {texts[0]}",
            ["name the column with the transcripts; numbers that are read out must be written as words"],
        )


def _survey_rows(source: str, rows: Sequence[Row], *, verify: bool, refuse_empty_texts: bool) -> Survey:
    """Look at every row's text and sound."""
    problems: list[str] = []
    unusable: dict[str, str] = {}
    recordings: list[Recording] = []
    named_splits: list[str] = []
    first_by_id: dict[str, str] = {}
    for row in rows:
        recording = row.recording
        problem = _problem_with_text(recording.text, refuse_empty=refuse_empty_texts)
        wrong = [found for found in (row.problem, problem) if found]
        if row.problem is None and recording.id in first_by_id:
            wrong.append(f"its id is used already by {first_by_id[recording.id]}: remove one of the two rows")
        first_by_id.setdefault(recording.id, recording.row)
        if not wrong:
            try:
                recordings.append(_checked(recording, verify=verify))
                named_splits.append(canonical_split(row.split or "train"))
            except UserError as error:
                wrong = [str(error)]
        if wrong:
            problems.append(recording.fault("; ".join(wrong)))
            unusable[recording.id] = problems[-1]
    is_split_here = all(row.split is None for row in rows)
    if is_split_here:
        named_splits = hold_out([(recording.id, recording.speaker) for recording in recordings])
    return Survey(source, tuple(recordings), tuple(named_splits), tuple(problems), unusable, is_split_here)


def _problem_with_text(text: str, *, refuse_empty: bool) -> str | None:
    """What is wrong with a transcript."""
    if refuse_empty and not text:
        return "its transcript is empty: write what is said, or remove the row"
    if refuse_empty and not re.search(r"\w", text):
        return f"its transcript {text!r} holds no letter: write what is said, or remove the row"
    if "\n" in text:
        return "its transcript runs over several lines: a quotation mark was probably never closed"
    return None


def _checked(recording: Recording, *, verify: bool) -> Recording:
    """Open the sound, and decode all of it on request.

    Raises:
        UserError: It cannot be opened or decoded.
    """
    source = recording.source()
    if isinstance(source, Audio):
        return replace(recording, duration_seconds=source.duration_seconds)
    if verify:
        return replace(recording, duration_seconds=read_audio(source).duration_seconds)
    return replace(recording, duration_seconds=read_audio_header(source).duration_seconds)
