"""``vits data clean``: find what is wrong with recordings, let somebody decide, make a clean dataset."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

from services.training.data.card import DatasetCard, read_card
from services.training.data.cleaning import DROP, KEEP, TRIM, Decision, Limits, counts, decide, examine
from services.training.data.commands.origin import add_origin, settled
from services.training.data.decisions import (
    Verdict,
    apply_decisions,
    read_decisions,
    verdicts_of,
    write_decisions,
)
from services.training.data.hearing import Hearing
from services.training.data.listening import Listeners
from services.training.data.reading import MAX_LISTED_PROBLEMS, Survey, survey
from services.training.data.recordings import Columns
from services.training.data.writing import REPORT_REMEDY, check_output
from shared.cache import default_cache
from shared.errors import UserError
from shared.folders import check_writable
from shared.languages import language_code
from shared.provenance import UNKNOWN_LICENCE
from shared.wording import counted

HELP = "find what is wrong with recordings, and make a clean dataset of the rest"

DESCRIPTION = """\
Look at every recording of a dataset and listen to it: silence at its ends, loudness, clipping, noise, the speaking
rate, what a recogniser understood against the transcript, the same sound twice, characters that the model lacks.

Nothing is changed or deleted. A table of decisions (keep, trim or drop, with reasons) and a page to listen to them
are written beside the dataset; correct the table in any editor, then apply it with --decisions and --output. The
result is a new dataset folder, which 'vits train' takes.
"""

EPILOG = """\
examples:
  vits data clean recordings --language es
  vits data clean recordings --decisions recordings-cleaning/decisions.csv --output recordings-clean
  vits data clean recordings --language es --output recordings-clean        # both at once, decisions as they come

In the table only the columns decision, text, start and end are read back; start and end (seconds) are what a trimmed
recording keeps. Silero VAD, Whisper and DNSMOS are used where the extra 'judges' is installed, and what they said is
kept, so that a second run, or one that was stopped, does not ask again. Without them speech is found by its level, and
transcripts and noise are judged by speaking rate and signal-to-noise ratio alone.

A recording that was to be kept and cannot be read any more is named and left out; the exit code is 2 then.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "source", metavar="DATASET", help="a folder, a table file, or the id of a hub dataset"
    )
    add_reading(parser)
    parser.add_argument("--output", type=Path, metavar="DIR", help="make a clean dataset in this new folder")
    parser.add_argument("--decisions", type=Path, metavar="FILE", help="by this table, as it was corrected")
    parser.add_argument(
        "--report", type=Path, metavar="DIR",
        help="where decisions.csv and report.html go (default: DATASET-cleaning)",
    )  # fmt: skip
    parser.add_argument("--no-page", action="store_true", help="write no page, only the table")
    parser.add_argument(
        "--players", type=int, default=60, metavar="N", help="on the page (default: %(default)s)"
    )
    parser.add_argument(
        "--loudness", default="-23", metavar="LUFS",
        help="bring what is kept to this loudness, by ITU-R BS.1770; 'none' leaves it (default: %(default)s)",
    )  # fmt: skip
    add_ears(parser)
    parser.add_argument(
        "--model", type=Path, metavar="DIR",
        help="the model to be trained: recordings with characters that it lacks are left out",
    )  # fmt: skip
    limits = parser.add_argument_group("what is still good enough")
    for name, help_text in _LIMITS.items():
        limits.add_argument(
            f"--{name.replace('_', '-')}", type=float, default=getattr(Limits(), name), metavar="X",
            help=f"{help_text} (default: %(default)s)",
        )  # fmt: skip
    add_origin(parser)


_LIMITS = {
    "margin": "seconds of silence that trimming leaves at each end",
    "least_trimmed": "less silence than so many seconds is left alone",
    "min_seconds": "of speech with its margins",
    "max_seconds": "likewise",
    "min_snr": "decibels from the noise between the words to the words",
    "min_naturalness": "DNSMOS, 1 to 5",
    "max_cer": "character errors of what was heard against the transcript",
    "doubtful_cer": "from here on it is remarked on",
    "max_clipped": "share of samples that are clipped",
}


def add_reading(parser: argparse.ArgumentParser) -> None:
    """The arguments that say how a dataset is read."""
    parser.add_argument("--config-name", help="the configuration of a hub dataset that has several")
    parser.add_argument(
        "--audio-column", default="audio", help="default: %(default)s, or its usual other names"
    )
    parser.add_argument(
        "--text-column", default="text", help="default: %(default)s, or its usual other names"
    )
    parser.add_argument("--speaker-column", help="the column that names the speakers, which is kept then")


def add_ears(parser: argparse.ArgumentParser) -> None:
    """The arguments that say who listens."""
    parser.add_argument(
        "--language",
        type=language_code,
        metavar="TAG",
        help="what is spoken, such as es (default: the dataset's card)",
    )
    parser.add_argument(
        "--recogniser", type=Path, metavar="DIR",
        help="a local faster-whisper model folder (default: the packaged Whisper base)",
    )  # fmt: skip
    parser.add_argument(
        "--no-recogniser", action="store_true", help="do without: much faster, and much deafer"
    )


def read(options: argparse.Namespace) -> Survey:
    """The dataset, bad rows and all."""
    columns = Columns(options.audio_column, options.text_column, options.speaker_column)
    return survey(options.source, columns=columns, config_name=options.config_name, refuse_empty_texts=False)


def run(options: argparse.Namespace, listeners: Listeners) -> int:
    """Run it.

    Raises:
        UserError: The arguments, the dataset or the table cannot be used.
    """
    loudness = _loudness(options.loudness)
    if options.decisions and not options.output:
        raise UserError("--decisions are applied to a new dataset: give its folder with --output")
    if options.output:
        check_output(options.output)
    found = read(options)
    if not found.recordings:
        found.raise_problems()
    folder = Path(options.source).expanduser()
    known = (read_card(folder) if folder.is_dir() else None) or DatasetCard(folder.stem, UNKNOWN_LICENCE)
    lost: Sequence[str] = ()
    if options.decisions:
        verdicts, lost = read_decisions(options.decisions, found)
    else:
        decisions = _look(options, found, listeners, known.language or None)
        verdicts = verdicts_of(decisions)
    return _apply(options, found, verdicts, known, loudness, lost) if options.output else 0


def _loudness(given: str) -> float | None:
    if given == "none":
        return None
    try:
        loudness = float(given)
    except ValueError:
        loudness = 0.0
    if not -70 <= loudness < 0:
        raise UserError(f"--loudness {given!r} is neither 'none' nor a loudness in LUFS, such as -23")
    return loudness


def _look(
    options: argparse.Namespace, found: Survey, listeners: Listeners, known: str | None
) -> list[Decision]:
    """Examine, decide, and write down what was decided."""
    from services.training.data import clean_report
    from shared.text import FrontEnd

    report = options.report or Path(f"{str(options.source).rstrip('/')}-cleaning")
    check_writable(report, REPORT_REMEDY)
    language = options.language or known
    wanted = ["speech", *([] if options.no_recogniser else ["recognition"]), "naturalness"]
    ears = listeners(language=language, recogniser=options.recogniser, wanted=wanted)
    for reason in ears.missing.values():
        print(f"Note: {reason}", file=sys.stderr)
    if ears.speech is None:
        print(
            "Note: without Silero VAD speech is found by its level, which takes loud noise for it",
            file=sys.stderr,
        )
    limits = Limits(**{field.name: getattr(options, field.name) for field in fields(Limits)})
    front_end = None if options.model is None else FrontEnd.from_folder(options.model)
    with progress("listening", len(found.recordings)) as advance:
        examined = examine(
            found, ears, hearing=Hearing(default_cache() / "heard"), front_end=front_end, language=language,
            advance=advance,
        )  # fmt: skip
    decisions = decide(examined, limits)
    table = report / "decisions.csv"
    aside = write_decisions(decisions, table)
    if aside:
        print(f"the former table of decisions is {aside} now", file=sys.stderr)
    command = _command(options, table)
    if not options.no_page:
        clean_report.write_page(
            decisions, report / "report.html", source=found.source, problems=found.problems, missing=ears.missing,
            limits=limits, table=table, next_command=command, players=options.players,
        )  # fmt: skip
    _say(found, decisions)
    print(f"decisions: {table}" + ("" if options.no_page else f"\nto listen to: {report / 'report.html'}"))
    if not options.output:
        print(f"next, when they are right: {command}")
    return decisions


def _command(options: argparse.Namespace, table: Path) -> str:
    """What applies the table: to the same dataset, read in the same way, with what was said of it."""
    source = str(options.source).rstrip("/")
    said = {
        "--config-name": (options.config_name, None),
        "--audio-column": (options.audio_column, "audio"),
        "--text-column": (options.text_column, "text"),
        "--speaker-column": (options.speaker_column, None),
        "--language": (options.language, None),
        "--loudness": (options.loudness, "-23"),
    }
    given = [
        part for name, (value, default) in said.items() if value != default for part in (name, str(value))
    ]
    output = str(options.output or f"{source}-clean")
    return shlex.join(
        ["vits", "data", "clean", source, *given, "--decisions", str(table), "--output", output]
    )


def _say(found: Survey, decisions: Sequence[Decision]) -> None:
    """The findings in words."""
    actions = Counter(decision.action for decision in decisions)
    print(f"{found.source}: " + ", ".join(f"{name} {actions[name]}" for name in (KEEP, TRIM, DROP)))
    for kind, row in counts(decisions).items():
        told = ", ".join(f"{name} {count}" for name, count in row.items() if count)
        print(f"  {kind}: {told}")
    unreadable = [d.examined.recording.fault(d.examined.failure) for d in decisions if d.examined.failure]
    problems = [*found.problems, *unreadable]
    if problems:
        print(f"  {counted(len(problems), 'row')} cannot be used at all, and would be left out:")
        for problem in problems[:MAX_LISTED_PROBLEMS]:
            print(f"    {problem}")
        if len(problems) > MAX_LISTED_PROBLEMS:
            print(f"    … and {len(problems) - MAX_LISTED_PROBLEMS} more")


def _apply(
    options: argparse.Namespace,
    found: Survey,
    verdicts: Sequence[Verdict],
    known: DatasetCard,
    loudness: float | None,
    lost: Sequence[str],
) -> int:
    """Make the clean dataset. ``lost`` is what was to be kept and is known to be unusable."""
    card = settled(options, known, required=False)
    changed = "cleaned: a selection, silence trimmed" + ("" if loudness is None else f", {loudness:g} LUFS")
    card = replace(
        card,
        name=f"{known.name}-clean",
        attribution=f"{card.attribution} Changed: {changed}.".strip() if card.attribution else "",
        language=options.language or known.language,
        fingerprint="",
    )
    with progress("writing", len(verdicts)) as advance:
        made = apply_decisions(found, verdicts, options.output, card=card, loudness=loudness, advance=advance)
    print(
        f"{made.folder}: {counted(made.recordings, 'recording')}, {made.seconds / 60:.1f} minutes; "
        f"{made.dropped} left out"
    )
    missed = [*lost, *made.lost]
    say_left_out(missed, f"{made.recordings + len(missed)} that were to be kept")
    others = len(found.problems) - len(lost)
    if others:
        print(f"  {counted(others, 'row')} of {found.source} cannot be used; vits data inspect says why")
    if made.held_back:
        print(f"  {made.held_back} are quieter than {loudness:g} LUFS, because their peaks would clip")
    print(f"next: vits data inspect {shlex.quote(str(made.folder))}")
    return 2 if missed else 0


def say_left_out(reasons: Sequence[str], of: str) -> None:
    """Name what cannot be used and is left out, if anything is.

    Args:
        reasons: A sentence for each.
        of: How many there are in all, and of what.
    """
    if reasons:
        print(f"  cannot be used, and left out: {len(reasons)} of {of}")
        for reason in reasons:
            print(f"    {reason}")


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[], None]]:
    """A bar on the terminal; yields what advances it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
