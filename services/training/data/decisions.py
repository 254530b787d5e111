"""Decisions about a dataset's recordings as a table that somebody can correct, and the dataset that follows from it.

A spreadsheet program may have been at the table: separators, a byte order mark and decimal commas are understood.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from services.training.data.card import DatasetCard
from services.training.data.cleaning import DROP, KEEP, TRIM, Decision
from services.training.data.reading import MAX_LISTED_PROBLEMS, Survey
from services.training.data.recordings import Recording
from services.training.data.writing import REPORT_REMEDY, new_folder, write_table
from shared.audio import Audio, amplified, loudness_gain, write_flac
from shared.errors import DataError, UserError, nearest
from shared.folders import writing

#: What somebody may change; the other columns are there to decide by.
EDITABLE = ("decision", "text", "start", "end")
COLUMNS = (
    "decision", "id", "text", "start", "end", "reasons", "heard", "cer", "snr_db", "dnsmos", "loudness_lufs",
    "letters_per_second", "seconds", "split", "row",
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What is to become of one recording, as its line in the table says now.

    Attributes:
        id: The recording's.
        action: ``keep``, ``trim`` or ``drop``.
        text: Its transcript.
        start: Where a trimmed one begins, in seconds.
        end: Where it ends; None for its end.
    """

    id: str
    action: str
    text: str
    start: float = 0.0
    end: float | None = None


def write_decisions(decisions: Sequence[Decision], path: Path) -> Path | None:
    """Write the table. One that is there already, and may hold somebody's corrections, is moved aside.

    Returns:
        Where the former one is now, if there was one.

    Raises:
        UserError: It cannot be written there.
    """
    aside = None
    with writing(path.parent, REPORT_REMEDY):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            number = next(
                n for n in range(1, 1_000_000) if not path.with_name(f"{path.stem}.{n}.csv").exists()
            )
            aside = path.rename(path.with_name(f"{path.stem}.{number}.csv"))
        # The byte order mark is for spreadsheet programs.
        write_table(path, COLUMNS, map(_cells, decisions), encoding="utf-8-sig")
    return aside


def _cells(decision: Decision) -> list[str]:
    one = decision.examined

    def figure(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    return [
        decision.action, one.recording.id, one.recording.text, f"{decision.start:.3f}", f"{decision.end:.3f}",
        "; ".join(decision.reasons), one.heard or "", figure(one.cer, 3), figure(one.snr, 1),
        figure(one.naturalness, 2), figure(one.loudness, 1), figure(one.speaking_rate, 1), f"{one.seconds:.3f}",
        one.split, one.recording.row,
    ]  # fmt: skip


def read_decisions(path: Path, survey: Survey) -> tuple[list[Verdict], list[str]]:
    """Read a table back, in the dataset's order.

    Returns:
        A verdict for each recording; and what the table keeps and cannot be used any more, a sentence for each.

    Raises:
        DataError: It is not such a table, or not about this dataset; it lists every line that is wrong.
    """
    rows, header = _table(path)
    lacking = [name for name in ("id", "decision") if name not in header]
    if lacking:
        raise DataError(
            f"{path} is no table of decisions",
            [
                f"it lacks the column {name!r}: take the table that 'vits data clean DIR' wrote"
                for name in lacking
            ],
        )
    recordings = {recording.id: recording for recording in survey.recordings}
    verdicts: dict[str, Verdict] = {}
    problems: list[str] = []
    lost: list[str] = []
    for line, row in rows:
        if row["id"] in survey.unusable and row["id"] not in recordings:
            if row["decision"].lower() != DROP:
                lost.append(survey.unusable[row["id"]])
            continue
        problem, verdict = _verdict(row, recordings)
        if verdict is not None and verdict.id in verdicts:
            problem = f"{verdict.id!r} has a line already: remove one of the two"
        if problem:
            problems.append(f"line {line}: {problem}")
        elif verdict is not None:
            verdicts[verdict.id] = verdict
    known = {row["id"] for _, row in rows}
    problems += [
        f"{id_!r} of the dataset has no line: add one ('drop' leaves it out)"
        for id_ in recordings
        if id_ not in known
    ]
    if problems:
        listed = problems[:MAX_LISTED_PROBLEMS]
        if len(problems) > len(listed):
            listed.append(f"… and {len(problems) - len(listed)} more")
        raise DataError(f"{path} does not fit {survey.source}", listed)
    return [verdicts[recording.id] for recording in survey.recordings], lost


def _table(path: Path) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """The lines of a table with their numbers, and its header.

    Raises:
        DataError: It cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8: save it as UTF-8"
        raise DataError(f"{path} cannot be read", [str(reason)]) from error
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restval="")
    rows = [
        (reader.line_num, {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)})
        for row in reader
    ]
    return rows, [name.strip() for name in reader.fieldnames or []]


def _verdict(row: Mapping[str, str], recordings: Mapping[str, Recording]) -> tuple[str, Verdict | None]:
    """What is wrong with a line, or what it says."""
    id_, action = row["id"], row["decision"].lower()
    if id_ not in recordings:
        return f"the dataset has no recording {id_!r}{nearest(id_, list(recordings))}", None
    if action not in {KEEP, TRIM, DROP}:
        return f"decision {action!r} is none of {KEEP}, {TRIM}, {DROP}", Verdict(id_, DROP, "")
    text = row.get("text", recordings[id_].text) or ("" if "text" in row else recordings[id_].text)
    if action == DROP:
        return "", Verdict(id_, action, text)
    if not re.search(r"\w", text):
        return f"{id_!r} is kept without a transcript: write what is said, or drop it", Verdict(
            id_, action, text
        )
    if action == KEEP:
        return "", Verdict(id_, action, text)
    try:
        start = float(row.get("start", "").replace(",", ".") or 0)
        end = float(row.get("end", "").replace(",", ".") or "inf")
    except ValueError:
        return f"start {row.get('start')!r} and end {row.get('end')!r} are not both seconds", Verdict(
            id_, action, text
        )
    if not 0 <= start < end:
        return f"it begins at {start:g} s and ends at {end:g} s", Verdict(id_, action, text)
    return "", Verdict(id_, action, text, start, None if end == float("inf") else end)


def verdicts_of(decisions: Iterable[Decision]) -> list[Verdict]:
    """Decisions as they are, uncorrected."""
    return [
        Verdict(d.examined.recording.id, d.action, d.examined.recording.text, d.start, d.end)
        for d in decisions
    ]


@dataclass(frozen=True)
class Applied:
    """The dataset that was made.

    Attributes:
        folder: It.
        recordings: How many are in it.
        dropped: How many are not, as was decided.
        seconds: How long those that are in it last.
        held_back: How many are quieter than was asked for, so as not to clip.
        lost: What was to be kept and could not be, a sentence for each.
    """

    folder: Path
    recordings: int
    dropped: int
    seconds: float
    held_back: int
    lost: tuple[str, ...]


def apply_decisions(
    survey: Survey,
    verdicts: Sequence[Verdict],
    output: Path,
    *,
    card: DatasetCard,
    loudness: float | None,
    advance: Callable[[], None] = lambda: None,
) -> Applied:
    """Make a new dataset folder of what is kept; the old one is only read. What cannot be read is left out.

    Args:
        survey: The dataset's rows.
        verdicts: One for each of its recordings, in order.
        output: The folder to make; it appears whole or not at all.
        card: Of the new dataset.
        loudness: LUFS that every recording is brought to; None leaves them as they are.
        advance: Called after each recording.

    Raises:
        UserError: The folder holds something already, or cannot be written.
        DataError: Nothing is kept, or nothing of that can be read.
    """
    if not any(verdict.action != DROP for verdict in verdicts):
        raise DataError(
            f"No recording of {survey.source} is kept", ["look at the decisions, and loosen the limits"]
        )
    with new_folder(output) as made:
        (made / "audio").mkdir()
        rows: list[list[str]] = []
        lost: list[str] = []
        names: set[str] = set()
        seconds, held_back = 0.0, 0
        speakers = any(recording.speaker for recording in survey.recordings)
        for recording, split, verdict in zip(survey.recordings, survey.splits, verdicts, strict=True):
            if verdict.action != DROP:
                try:
                    sound, quiet = _treated(recording.audio(), verdict, loudness)
                except UserError as error:
                    lost.append(recording.fault(str(error)))
                else:
                    held_back += quiet
                    seconds += sound.duration_seconds
                    file = f"audio/{_file_name(recording.id, names)}.flac"
                    write_flac(made / file, sound.samples, sound.sampling_rate)
                    speaker = [recording.speaker or ""] if speakers else []
                    rows.append([file, verdict.text, split, *speaker])
            advance()
        if not rows:
            raise DataError(f"No recording of {survey.source} that is kept can be used", lost)
        columns = ["file_name", "text", "split", *(["speaker_id"] if speakers else [])]
        write_table(made / "metadata.csv", columns, rows)
        replace(card, files=len(rows)).write(made)
    dropped = sum(verdict.action == DROP for verdict in verdicts)
    return Applied(output, len(rows), dropped, seconds, held_back, tuple(lost))


def _treated(audio: Audio, verdict: Verdict, loudness: float | None) -> tuple[Audio, bool]:
    """What is kept of a recording, at its loudness; and whether it is quieter than that, lest it clip.

    Raises:
        UserError: Nothing is.
    """
    samples = audio.samples
    if verdict.action == TRIM:
        end = len(samples) if verdict.end is None else round(verdict.end * audio.sampling_rate)
        samples = samples[round(verdict.start * audio.sampling_rate) : end]
    if not len(samples):
        raise UserError(f"it ends before {verdict.start:g} s, where trimming is to begin")
    quiet = False
    if loudness is not None:
        samples, quiet = amplified(samples, loudness_gain(samples, audio.sampling_rate, loudness))
    return Audio(samples, audio.sampling_rate), quiet


def _file_name(id_: str, taken: set[str]) -> str:
    """A recording's id as the name of a file that no other has."""
    plain = re.sub(r"[^\w.-]+", "_", re.sub(r"^(audio|wavs|clips)/", "", id_)).strip("._") or "recording"
    name = next(n for n in (plain, *(f"{plain}_{k}" for k in range(2, 1_000_000))) if n.lower() not in taken)
    taken.add(name.lower())
    return name
