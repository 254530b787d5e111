"""``vits evaluate``: how well a voice, a model or a folder of recordings speaks, in figures.

Here the parts meet: what scores (`services.evaluation`) knows nothing of how datasets are read, and what reads them
(`services.training.data`) knows nothing of scoring.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.arguments import Parser
from shared.audio import read_audio
from shared.errors import DataError, UserError
from shared.folders import check_writable
from shared.languages import language_code
from shared.store import default_store_url
from shared.wording import counted

if TYPE_CHECKING:
    from services.evaluation.evaluating import Evaluation, Progress
    from services.evaluation.systems import Sentence, System

_JUDGES = ("recogniser", "dnsmos", "distillmos", "likeness")

EPILOG = """\
what is measured:
  WER, CER            what a recogniser (Whisper) heard, against the text; both normalised, see docs/evaluation.md
  DNSMOS, DistillMOS  how natural it sounds to two networks trained on people's opinions, 1 to 5
  speaker likeness    cosine with the mean of the recordings' voice, 1 for the same
  mel distance, log-spectral distance (dB), F0 error (cents)
                      from the recording of the same sentence, along the cheapest alignment
  real-time factor    seconds of computing for each second of speech, on this machine
All with 95 % intervals, bootstrapped over sentences. With a dataset, the real recordings' own figures stand beside
them: no judge is absolute. A judge that is not installed is named, with what to install; nothing is fetched.

examples:
  vits evaluate my-voice@latest --data data/asterisk-es
      a voice of the store, on the sentences that training held out
  vits evaluate voices/my-voice --variant int8 --data my-recordings --split validation
      a voice folder, another of its variants, another split
  vits evaluate output/my-voice --data data/asterisk-es --limit 20
      a model that has not been exported
  vits evaluate my-voice --sentences texts.txt --language es
      a text file, a sentence a line: no recordings to compare with
  vits evaluate recordings/ --data data/asterisk-es
      speech made elsewhere, files named after the dataset's ids; without --data, only what needs no text
  vits evaluate my-voice --data corpus --recogniser models/faster-whisper-small
      a better recogniser, from a local folder

evaluation.json and evaluation.html (with players) are written into --output.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = Parser(
        prog="vits evaluate",
        description="Score a voice, a model or a folder of recordings, with the real recordings beside it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("what", metavar="WHAT", help="a folder (voice, model, recordings), or a voice or model of the store")
    add("--store", metavar="URL", help="where voices and models are found (default: $VITS_STORE, or ./store)")
    texts = made.add_argument_group("what it says")
    texts.add_argument(
        "--data", metavar="DATASET", help="a dataset, as 'vits train' reads it: texts and recordings"
    )
    texts.add_argument(
        "--split",
        default="test",
        help="of the dataset: train, validation, test or all (default: %(default)s)",
    )
    texts.add_argument("--config_name", metavar="NAME", help="configuration of a dataset that has several")
    texts.add_argument("--audio_column", default="audio", metavar="COLUMN", help="(default: %(default)s)")
    texts.add_argument("--text_column", default="text", metavar="COLUMN", help="(default: %(default)s)")
    texts.add_argument(
        "--speaker_column", metavar="COLUMN", help="names each recording's speaker (default: they are one)"
    )
    texts.add_argument("--sentences", type=Path, metavar="FILE", help="or: a text file, a sentence a line")
    texts.add_argument("--limit", type=int, metavar="N", help="no more than the first N sentences")
    how = made.add_argument_group("how it says it")
    how.add_argument("--variant", default="fp32", help="which of a voice's variants (default: %(default)s)")
    how.add_argument(
        "--speaker", metavar="NAME", help="of several (default: each sentence's own, or the first)"
    )
    how.add_argument("--seed", type=int, default=0, help="of every sentence's noise (default: %(default)s)")
    how.add_argument("--threads", type=int, metavar="N", help="of one computation (default: all)")
    judging = made.add_argument_group("who judges")
    judging.add_argument(
        "--language",
        type=language_code,
        metavar="TAG",
        help="what is spoken, such as es (default: what the voice says)",
    )
    judging.add_argument(
        "--recogniser", type=Path, metavar="DIR",
        help="a local faster-whisper model folder (default: the packaged Whisper base)",
    )  # fmt: skip
    judging.add_argument(
        "--judges", default=",".join(_JUDGES), metavar="NAME,…", help="those to ask (default: %(default)s)"
    )
    output = made.add_argument_group("what is written")
    output.add_argument(
        "--output", type=Path, default=Path("output/evaluation"), metavar="DIR", help="(default: %(default)s)"
    )
    output.add_argument(
        "--players", type=int, default=20, metavar="N",
        help="sentences to listen to, worst first (default: %(default)s)",
    )  # fmt: skip
    output.add_argument("--no-page", action="store_true", help="write no HTML page")
    return made


def main(argv: Sequence[str]) -> int:
    """Run ``vits evaluate``.

    Raises:
        UserError: The arguments, what is scored or the dataset cannot be used.
        VitsError: Something else failed.
    """
    options = parser().parse_args(argv)
    _check(options)
    from services.evaluation.evaluating import evaluate
    from services.evaluation.judges import Judges

    start = time.perf_counter()
    system, sentences = _prepare(options)
    language = options.language or system.language
    judges = Judges(recogniser=options.recogniser, language=language, only=_wanted(options.judges))
    with _progress() as told:
        result = evaluate(system, sentences[: options.limit], judges, progress=told)
    show(result)
    _write(result, options, seconds=time.perf_counter() - start)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse arguments that contradict each other, before anything is loaded.

    Raises:
        UserError: Some do.
    """
    for name in ("limit", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; give 1 or more")
    if options.players < 0:
        raise UserError(f"--players is {options.players}; give 0 or more")
    if options.data and options.sentences:
        raise UserError("--data and --sentences are given: the texts come from one of them")
    output: Path = options.output
    if output.exists() and not output.is_dir():
        raise UserError(f"--output is {output}, which is a file: give a folder")
    check_writable(output, "give another --output")


def _wanted(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


# -- What is said --------------------------------------------------------------------------------------


def _prepare(options: argparse.Namespace) -> tuple[System, list[Sentence]]:
    """What is scored, and on which sentences."""
    from services.evaluation import systems

    folder = Path(options.what).expanduser()
    if folder.is_dir() and not any((folder / name).is_file() for name in ("voice.json", "config.json")):
        return _recordings(folder, options)
    if not options.data and not options.sentences:
        raise UserError(
            "Nothing to say: give sentences by --data DATASET (with recordings to compare with) or --sentences FILE"
        )
    system = systems.find(
        options.what, options.store or default_store_url(), variant=options.variant, speaker=options.speaker,
        seed=options.seed, threads=options.threads,
    )  # fmt: skip
    return system, _read_dataset(options.data, options) if options.data else read_sentences(options.sentences)


def _recordings(folder: Path, options: argparse.Namespace) -> tuple[System, list[Sentence]]:
    """A folder of recordings: one with a table is a dataset itself; else files, whose texts are the dataset's."""
    from services.evaluation.systems import RecordingsSystem, Sentence, audio_files, pair
    from services.training.data.tables import find_tables

    if options.sentences:
        raise UserError("--sentences cannot say which text belongs to which recording: give --data DATASET")
    if find_tables(folder):
        own = _read_dataset(str(folder), options)
        files = {one.id: one.recording for one in own if one.recording}
        if not options.data:
            return RecordingsSystem(folder.name, files), [
                Sentence(one.id, one.text, one.speaker) for one in own
            ]
        known = {one.id: one for one in _read_dataset(options.data, options)}
        _check_same_texts(own, known, options.data)
        return RecordingsSystem(folder.name, files), [known[one.id] for one in own]
    found = audio_files(folder)
    reading = {name: partial(read_audio, path) for name, path in found.items()}
    system = RecordingsSystem(folder.resolve().name, reading)
    if not options.data:
        return system, [Sentence(name, None) for name in found]
    return system, pair(found, _read_dataset(options.data, options), options.data)


def _check_same_texts(own: Sequence[Sentence], known: dict[str, Sentence], where: str) -> None:
    """Refuse to compare recordings of different texts.

    Raises:
        DataError: A recording is of another text, or of none of the dataset's.
    """
    problems = [
        f"{one.id}: it says {one.text!r}, and {where} {known[one.id].text!r}"
        if one.id in known
        else f"{one.id}: {where} has no sentence of that id"
        for one in own
        if one.id not in known or known[one.id].text != one.text
    ]
    if problems:
        raise DataError(
            f"{counted(len(problems), 'recording')} of {len(own)} do not match {where}", problems[:50]
        )


def _read_dataset(source: str, options: argparse.Namespace) -> list[Sentence]:
    """A dataset's sentences, with their recordings."""
    from services.evaluation.systems import Sentence
    from services.training.data import read_recordings

    recordings = read_recordings(
        source, split=options.split, config_name=options.config_name, audio_column=options.audio_column,
        text_column=options.text_column, speaker_column=options.speaker_column,
    )  # fmt: skip
    return [Sentence(one.id, one.text or None, one.speaker, one.audio) for one in recordings]


def read_sentences(path: Path) -> list[Sentence]:
    """The lines of a text file that are not empty.

    Raises:
        UserError: It cannot be read, is not UTF-8, or is empty.
    """
    from services.evaluation.systems import Sentence

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The sentences {path} cannot be read: {error}. Give a UTF-8 text, a sentence a line"
        ) from error
    sentences = [
        Sentence(f"{path.name}:{number}", line.strip())
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not sentences:
        raise UserError(f"The sentences {path} are empty: write a sentence a line")
    return sentences


# -- What is shown and written -------------------------------------------------------------------------


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on the standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("", total=None)
        shown = ""

        def told(what: str, done: int, total: int) -> None:
            nonlocal shown
            if what != shown:
                bars.reset(bar)
                shown = what
            bars.update(bar, description=what, completed=done, total=total)

        yield told


def show(result: Evaluation) -> None:
    """Print the figures, and all that has none."""
    from rich.console import Console
    from rich.table import Table

    from services.evaluation.evaluating import MEASURES
    from services.evaluation.report import change, figure

    console = Console(highlight=False)
    recorded = result.rows.get("recordings")
    columns = [] if recorded is None else ["recordings", "difference"]
    table = Table("measure", result.kind, *columns, title=result.name)
    for name, (title, _, _) in MEASURES.items():
        if name not in result.rows["system"]:
            continue
        cells = [title, figure(name, result.rows["system"][name])]
        if recorded is not None:
            own = result.differences.get(name)
            cells += [figure(name, recorded.get(name)), change(name, own) if own else "–"]
        table.add_row(*cells)
    console.print(table)
    words = "" if result.words is None else f", {counted(result.words, 'word')}"
    console.print(
        f"{counted(len(result.clips), 'sentence')}{words}; in brackets, 95 % intervals", markup=False
    )
    for name, reason in result.missing.items():
        print(f"missing judge: {name}: {reason}")
    for name, reason in result.not_measured.items():
        if reason not in result.missing.values():
            print(f"not measured: {MEASURES[name][0]}: {reason}")
    for name, reason in list(result.left_out.items())[:10]:
        print(f"left out: {name}: {reason}")
    if len(result.left_out) > 10:
        print(f"left out: {len(result.left_out) - 10} more")


def _write(result: Evaluation, options: argparse.Namespace, *, seconds: float) -> None:
    from services.evaluation import report

    about = _about(options, seconds)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        report.write_json(result, options.output / report.JSON_FILE, about=about)
        print(f"Wrote {options.output / report.JSON_FILE}")
        if not options.no_page:
            report.write_html(result, options.output / report.HTML_FILE, about=about, players=options.players)
            print(f"Wrote {options.output / report.HTML_FILE}")
    except OSError as error:
        raise UserError(f"The evaluation cannot be written into {options.output}: {error}") from error


def _about(options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """How the figures came about."""
    given = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(options).items()
        if value is not None and name not in {"no_page", "players", "output"}
    }
    packages = (
        "vits-suite",
        "faster-whisper",
        "speechmos",
        "distillmos",
        "resemblyzer",
        "onnxruntime",
        "torch",
    )
    return {
        "arguments": given,
        "versions": {name: version for name in packages if (version := _version(name))},
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} processors",
        "took_seconds": round(seconds, 1),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
