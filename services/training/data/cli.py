"""``vits data``: get recordings, find out what is wrong with them, make a dataset of them."""

from __future__ import annotations

import argparse
import importlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.training.data.listening import Listeners, nobody
from shared.arguments import Parser
from shared.languages import language_code

if TYPE_CHECKING:
    from services.training.data.inspection import Inspection

_DESCRIPTION = """\
Get recordings to train on: fetch a corpus, record sentences, or prepare recordings that nobody has written down. Find
out what is wrong with them before training does, and put it right. docs/data.md goes through it.
"""

_EPILOG = """\
examples:
  vits data fetch asterisk-es --output data/asterisk-es
  vits data inspect data/asterisk-es
  vits data inspect recordings/ --model models/my-base --speaker-column speaker
  vits data clean recordings/ --language es
  vits data prepare interviews/ --output data/ana --language es
  vits data review data/ana
  vits data record data/ana --language es

A folder of your own holds the recordings and a metadata.csv with the columns file_name and text (or
LJSpeech's 'id|text|normalised text'; or .tsv). Optional columns: speaker_id, split.
"""

_FETCH_DESCRIPTION = """\
Fetch a real corpus and make a dataset folder of it. 'asterisk-es' is 17 minutes of Mexican Spanish telephone
prompts by one voice (Allison Smith, CC-BY-SA-3.0), 13 MB, from two Debian packages that are unpacked without
root and without installing anything. Its transcripts are repaired by a reviewed table.
"""

_INSPECT_DESCRIPTION = """\
Read, decode and measure every recording of a dataset: counts, hours, lengths, loudness, speaking rate,
characters that the model does not know, and the rows that deserve a second look. Then advice: whether it is enough,
what to put right first, which base and settings suit its language and dialect, and the command to run next. Ends with
exit code 2 when rows cannot be used at all.
"""


#: The commands that have modules of their own, in ``commands``.
_COMMANDS = ("clean", "prepare", "review", "record", "augment", "push")


def main(argv: Sequence[str], *, listeners: Listeners = nobody) -> int:
    """Run ``vits data``.

    Args:
        argv: The command line.
        listeners: Finds the judges; see ``services/data.py``.

    Raises:
        UserError: The arguments, the packages or the dataset cannot be used.
    """
    options = _parser().parse_args(argv)
    if options.command in _COMMANDS:
        return int(_module(options.command).run(options, listeners))
    return _fetch(options) if options.command == "fetch" else _inspect(options)


def _module(command: str) -> Any:
    return importlib.import_module(f"services.training.data.commands.{command}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="vits data", description=_DESCRIPTION, epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    fetch = commands.add_parser(
        "fetch", help="fetch a real corpus", description=_FETCH_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    fetch.add_argument("corpus", choices=["asterisk-es"], help="which corpus")
    fetch.add_argument("--output", required=True, type=Path, metavar="DIR", help="the dataset folder to make")
    fetch.add_argument(
        "--from", dest="downloaded", action="append", default=[], type=Path, metavar="PATH",
        help="a folder with the .deb files, or one of them, instead of asking apt; can be repeated",
    )  # fmt: skip

    inspect = commands.add_parser(
        "inspect", help="measure a dataset and list its suspect rows", description=_INSPECT_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    inspect.add_argument(
        "source", metavar="DATASET", help="a folder, a table file, or the id of a hub dataset"
    )
    inspect.add_argument("--config-name", help="the configuration of a hub dataset that has several")
    inspect.add_argument("--split", default="all", help="look at one split only (default: %(default)s)")
    inspect.add_argument(
        "--audio-column", default="audio", help="default: %(default)s, or its usual other names"
    )
    inspect.add_argument(
        "--text-column", default="text", help="default: %(default)s, or its usual other names"
    )
    inspect.add_argument("--speaker-column", help="measure each speaker against their own recordings")
    inspect.add_argument(
        "--model", type=Path, metavar="DIR", help="a model folder: report characters that it has no token for"
    )
    inspect.add_argument(
        "--language",
        type=language_code,
        metavar="TAG",
        help="what is spoken, such as es-MX, for the advice (default: the dataset's card)",
    )
    inspect.add_argument(
        "--min-seconds", type=float, default=1.0, help="shorter is suspect (default: %(default)s)"
    )
    inspect.add_argument(
        "--max-seconds", type=float, default=20.0, help="longer is suspect (default: %(default)s)"
    )
    inspect.add_argument(
        "--plots", type=Path, metavar="PATH", help="the picture to draw (default: inspect.png in the folder)"
    )
    inspect.add_argument("--no-plots", action="store_true", help="draw no picture")
    for name in _COMMANDS:
        module = _module(name)
        module.add(
            commands.add_parser(
                name, help=module.HELP, description=module.DESCRIPTION, epilog=module.EPILOG,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )  # fmt: skip
    return parser


def _fetch(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from services.training.data import asterisk
    from shared.wording import counted

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("getting 13 MB of packages", total=None)

        class Shown(asterisk.Progress):
            def start(self, total: int) -> None:
                bar.update(task, description="decoding", total=total)

            def advance(self) -> None:
                bar.advance(task)

        fetched = asterisk.fetch(options.output, downloaded=options.downloaded, progress=Shown())
    for remark in fetched.remarks:
        console.print(f"note: {remark}, but every recording and transcript in it is the reviewed one")
    total = sum(count for count, _ in fetched.splits.values())
    minutes = sum(seconds for _, seconds in fetched.splits.values()) / 60
    parts = ", ".join(f"{name} {count}" for name, (count, _) in fetched.splits.items())
    state = "is complete already, nothing to do" if fetched.reused else "made"
    print(f"{fetched.folder}: {state}: {counted(total, 'recording')}, {minutes:.1f} minutes ({parts})")
    reviewed = total + fetched.rejected
    print(
        f"left out: {fetched.rejected} of {reviewed} sentences (asterisk_es.csv says why), all words and tones"
    )
    print(f"licence CC-BY-SA-3.0, attribution in {fetched.folder / 'dataset.json'}")
    print(f"next: vits data inspect {fetched.folder}")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from services.training.data.advice import advise
    from services.training.data.inspection import inspect
    from services.training.data.reading import survey
    from services.training.data.recordings import Columns
    from services.training.data.report import print_advice, print_report
    from shared.text import FrontEnd

    front_end = None if options.model is None else FrontEnd.from_folder(options.model)
    read = Columns(options.audio_column, options.text_column, options.speaker_column)
    found = survey(options.source, split=options.split, config_name=options.config_name, columns=read)
    if options.split != "all":
        found = found.only(options.split)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("measuring", total=len(found.recordings))
        inspection = inspect(
            found, front_end=front_end, min_seconds=options.min_seconds, max_seconds=options.max_seconds,
            advance=lambda: bar.advance(task),
        )  # fmt: skip
    console = Console(highlight=False, soft_wrap=True)
    print_report(inspection, console)
    if inspection.measured:
        advice = advise(
            inspection,
            language=_language(options),
            gpu=shutil.which("nvidia-smi") is not None,
            columns=read,
            config_name=options.config_name,
        )
        print_advice(advice, console)
    if not options.no_plots and inspection.measured:
        _draw(inspection, options)
    return 2 if inspection.problems else 0


def _language(options: argparse.Namespace) -> str:
    """What is spoken: as the command line or the dataset's card says; empty where neither does."""
    from services.training.data.card import read_card

    folder = Path(options.source).expanduser()
    card = read_card(folder) if folder.is_dir() else None
    return str(options.language or (card.language if card else ""))


def _draw(inspection: Inspection, options: argparse.Namespace) -> None:
    from services.training.data.plots import draw
    from shared.errors import UserError

    source = Path(options.source).expanduser()
    folder = source if source.is_dir() else source.parent if source.is_file() else Path()
    path = options.plots or folder / "inspect.png"
    try:
        draw(inspection, path)
    except UserError as error:
        if options.plots:
            raise
        print(f"no picture: {error}")  # what was asked for is on the screen
    else:
        print(f"picture: {path}")
