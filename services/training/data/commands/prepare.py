"""``vits data prepare``: hours of recordings that nobody has written down become a dataset to review."""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from services.training.data.activity import Span, cut, parted, speech_spans
from services.training.data.card import DatasetCard
from services.training.data.commands.clean import add_ears, progress, say_left_out
from services.training.data.commands.origin import add_origin, settled
from services.training.data.hearing import Hearing
from services.training.data.listening import Ears, Listeners
from services.training.data.tables import AUDIO_EXTENSIONS
from services.training.data.writing import check_output, new_folder, write_table
from shared.audio import Audio, read_audio, write_flac
from shared.cache import default_cache
from shared.errors import DataError, UserError
from shared.provenance import UNKNOWN_LICENCE
from shared.wording import counted

HELP = "turn recordings that nobody has written down into a dataset"

DESCRIPTION = """\
Cut long recordings up where the speaker pauses, write down what is said with a local Whisper model, and make a dataset
folder of the pieces: metadata.csv and audio/. Recognisers make mistakes, and a voice learns them: go through the result
with 'vits data review' before you train on it.

The recordings are only read, and one that cannot be read is named and left out. What was heard is kept, so that a run
that was stopped does not ask again.
"""

EPILOG = """\
examples:
  vits data prepare interviews/ --output data/ana --language es \\
      --licence private --source 'Ana García, interviews of 2026' --consent 'signed on 2026-11-02'
  vits data prepare talk.mp3 --output data/talk --language en --recogniser models/faster-whisper-small

Silero VAD and Whisper base come with the extra 'judges'. Without Silero speech is found by its level; without a
recogniser the texts are empty, to be typed in the review. A file is decoded whole: some 250 MB of memory an hour at
16 kHz, three times that at 48 kHz.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "recordings", nargs="+", type=Path, metavar="PATH", help="audio files, or folders of them"
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="the dataset folder to make"
    )
    parser.add_argument(
        "--min-seconds", type=float, default=1.0, metavar="X", help="of a piece (default: %(default)s)"
    )
    parser.add_argument(
        "--max-seconds", type=float, default=15.0, metavar="X", help="of a piece (default: %(default)s)"
    )
    parser.add_argument(
        "--pause", type=float, default=0.6, metavar="X",
        help="a pause of so many seconds ends a piece (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--margin", type=float, default=0.15, metavar="X",
        help="seconds that are kept before and after speech (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--speaker", help="the speaker's name, where datasets of several will be joined")
    add_ears(parser)
    add_origin(parser)


def run(options: argparse.Namespace, listeners: Listeners) -> int:
    """Run it.

    Raises:
        UserError: The arguments or none of the recordings can be used, or there is no speech in them.
    """
    _check(options)
    files = _files(options.recordings)
    card = settled(options, DatasetCard(options.output.name, UNKNOWN_LICENCE), required=True)
    ears = listeners(
        language=options.language, recogniser=options.recogniser,
        wanted=["speech", *([] if options.no_recogniser else ["recognition"])],
    )  # fmt: skip
    for reason in ears.missing.values():
        print(f"Note: {reason}", file=sys.stderr)
    if ears.transcribe is None:
        print(
            "Note: without a recogniser the texts are empty; 'vits data review' is there to type them",
            file=sys.stderr,
        )
    hearing = Hearing(default_cache() / "heard")
    rows: list[list[str]] = []
    unreadable: list[str] = []
    seconds = 0.0
    with new_folder(options.output) as made:
        (made / "audio").mkdir()
        for number, file in enumerate(files, start=1):
            try:
                audio = read_audio(file)
            except UserError as error:
                unreadable.append(str(error))
                continue
            spans = _pieces(audio, ears, options)
            with progress(f"{file.name} ({number} of {len(files)})", len(spans)) as advance:
                for piece in _written(
                    made, file, audio, spans, ears, hearing, first=len(rows), advance=advance
                ):
                    speaker = [options.speaker] if options.speaker else []
                    rows.append(
                        [
                            piece.file,
                            piece.text,
                            piece.source,
                            f"{piece.start:.3f}",
                            f"{piece.end:.3f}",
                            *speaker,
                        ]
                    )
                    seconds += piece.end - piece.start
        if len(unreadable) == len(files):
            raise DataError("No recording can be read", unreadable)
        if not rows:
            raise DataError(
                "Nobody speaks in these recordings, or never for long enough",
                [f"pieces shorter than --min-seconds {options.min_seconds:g} are left out", *unreadable],
            )
        columns = [
            "file_name",
            "text",
            "source",
            "start",
            "end",
            *(["speaker_id"] if options.speaker else []),
        ]
        write_table(made / "metadata.csv", columns, rows)
        replace(card, files=len(rows), language=options.language or "").write(made)
    written = sum(bool(row[1]) for row in rows)
    print(
        f"{options.output}: {counted(len(rows), 'piece')}, {seconds / 60:.1f} minutes, {written} with a transcript"
    )
    say_left_out(unreadable, counted(len(files), "file"))
    print(f"next: vits data review {shlex.quote(str(options.output))}")
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse lengths between which there is no room.

    Raises:
        UserError: There is none.
    """
    if not 0 < options.min_seconds < options.max_seconds:
        raise UserError(
            f"--min-seconds {options.min_seconds:g} is not between 0 and --max-seconds {options.max_seconds:g}"
        )
    if not 0 <= 4 * options.margin < options.max_seconds or options.pause <= 0:
        raise UserError("--margin must be less than a quarter of --max-seconds, and --pause above 0")
    check_output(options.output)


def _files(paths: Sequence[Path]) -> list[Path]:
    """The audio files, in order.

    Raises:
        DataError: A path is not there; no path holds any.
    """
    problems = [f"{path} is not there" for path in paths if not path.exists()]
    found: list[Path] = []
    for path in paths:
        inside = (
            sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO_EXTENSIONS)
            if path.is_dir()
            else [path]
        )
        if not inside:
            problems.append(f"{path} holds no audio file ({', '.join(AUDIO_EXTENSIONS)})")
        found += inside
    if problems:
        raise DataError("There is nothing to prepare", problems)
    return list(dict.fromkeys(found))


def _pieces(audio: Audio, ears: Ears, options: argparse.Namespace) -> list[Span]:
    spans = parted(speech_spans(audio, ears), audio, options.max_seconds - 2 * options.margin)
    return cut(
        spans, audio.duration_seconds, shortest=options.min_seconds, longest=options.max_seconds,
        pause=options.pause, margin=options.margin,
    )  # fmt: skip


@dataclass(frozen=True)
class _Piece:
    """A piece of a recording: its file, what is said in it, where it is from."""

    file: str
    text: str
    source: str
    start: float
    end: float


def _written(
    made: Path,
    file: Path,
    audio: Audio,
    spans: Sequence[Span],
    ears: Ears,
    hearing: Hearing,
    *,
    first: int,
    advance: Callable[[], None],
) -> Iterator[_Piece]:
    """Write each piece's sound, and hear what is said in it."""
    for number, (start, end) in enumerate(spans, start=first + 1):
        edges = slice(round(start * audio.sampling_rate), round(end * audio.sampling_rate))
        piece = Audio(audio.samples[edges], audio.sampling_rate)
        name = f"audio/{number:05d}.flac"
        write_flac(made / name, piece.samples, piece.sampling_rate)
        sound = hashlib.sha256(piece.samples.tobytes()).hexdigest()
        heard = hearing.transcript(sound, piece, ears) or ""
        advance()
        yield _Piece(name, " ".join(heard.split()), file.name, start, end)
