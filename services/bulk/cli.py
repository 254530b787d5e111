"""``vits synthesize``: a table of texts in, audio files and a manifest out."""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.arguments import Parser
from shared.errors import UserError, nearest
from shared.store import Store, default_store_url
from shared.wording import counted

if TYPE_CHECKING:
    from services.bulk.job import Job, Shard
    from services.bulk.worker import Record
    from shared.registry import Version

EPILOG = """\
input: CSV, TSV, JSON Lines or Parquet, read as a stream. The column 'text' is needed; 'id' names a row (its number
does otherwise); 'speaker', 'speaking_rate', 'seed', 'language', 'noise_scale' and 'noise_scale_duration' are used where
they are there. Other columns are left alone.

output: a folder or any store.
  audio/ab/cdef….flac   each text's audio, at an address that is the hash of voice version, variant, text, parameters
  manifest.jsonl        id, text, audio, sha256, seconds, seed… of each row that was spoken
  bad_rows.jsonl        the rows that could not be, with reasons; they stop nothing
  summary.json          voice, licence and counts; written last

Run it again after anything that stopped it, with the same arguments: what is there is not made again, and when
everything is there it does nothing. Several runs may work on one output at once. docs/bulk.md tells more.

examples:
  vits synthesize --input texts.csv --output spoken
  vits synthesize --input texts.parquet --output s3://bucket/spoken --voice joe@production --format opus
  vits synthesize --input lines.jsonl --output spoken --column text=sentence --column id=key
  vits synthesize --input texts.parquet --output s3://bucket/spoken --engine ray --ray-address auto
"""

#: How often a line is printed where there is no screen for a bar.
LINE_SECONDS = 30.0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(
        prog="vits synthesize",
        description="Speak a table of texts, of any length, into a store; resumable, and nothing is made twice.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--input", type=Path, required=True, metavar="FILE", help=".csv, .tsv, .jsonl or .parquet")
    add("--output", required=True, metavar="URL", help="a folder, s3://…, gs://… or az://…")
    add(
        "--column",
        action="append",
        default=[],
        metavar="OURS=THEIRS",
        help="what the file calls one of our columns; may be given several times",
    )
    add("--store", metavar="URL", help="the store of the voice (default: $VITS_STORE, or ./store)")
    add("--voice", metavar="NAME", default="", help="name, name@alias or name/version (default: the newest)")
    add("--variant", default="auto", help="its precision (default: what its export recommends here)")
    add("--format", default="flac", help="of the audio (default: %(default)s)")
    add("--sampling-rate", type=count, metavar="HZ", help="of the audio (default: the voice's)")
    add(
        "--shard-rows", type=count, default=500, metavar="N", help="rows done together (default: %(default)s)"
    )
    add("--threads", type=count, default=0, help="of a worker (default: every CPU; 2 with Ray)")
    add("--streams", type=count, default=0, help="computations at once in a worker (default: the best here)")
    add("--engine", choices=("local", "ray"), default="local", help="who computes (default: %(default)s)")
    add("--workers", type=count, default=0, help="Ray: most workers (default: as many as there is room for)")
    add(
        "--ray-address",
        metavar="ADDRESS",
        default="",
        help="Ray: the cluster (default: $RAY_ADDRESS, or a new one)",
    )
    add("--json", action="store_true", help="print the summary as JSON")
    return made


def count(text: str) -> int:
    """A whole number, 0 or more."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def columns(pairs: Sequence[str]) -> dict[str, str]:
    """What the file calls our columns.

    Raises:
        UserError: One is not of the form OURS=THEIRS, or not ours.
    """
    from services.bulk.rows import COLUMNS

    names = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        if not equals or not theirs or ours not in COLUMNS:
            raise UserError(
                f"--column is {pair!r}{nearest(ours, COLUMNS) or '.'} Give OURS=THEIRS, where OURS is one of "
                f"{', '.join(COLUMNS)}"
            )
        names[ours] = theirs
    return names


def main(argv: Sequence[str]) -> int:
    """Speak a table."""
    arguments = parser().parse_args(argv)
    names = columns(arguments.column)
    if not arguments.shard_rows:
        raise UserError("--shard-rows is 0; give 1 or more")
    job, version = prepare(arguments)
    from services.bulk.job import shards
    from services.bulk.rows import read_rows

    def table() -> Iterator[Shard]:
        return shards(job, read_rows(arguments.input, names), arguments.shard_rows)

    output = Store.open(job.output)
    begun = time.monotonic()
    print(f"reading {arguments.input}", file=sys.stderr)
    keys, rows = [], 0
    for shard in table():
        keys.append(shard.key)
        rows += len(shard.rows)
    if not keys:
        raise UserError(f"{arguments.input} has no rows")
    summary = finished(output, keys)
    if summary is None:
        done = {item.path.rpartition("/")[2].removesuffix(".jsonl") for item in output.list("shards")}
        tally = Tally(rows)
        speak(arguments, job, table, keys, done, output, tally)
        summary = finish(output, keys, job, version, rows)
        summary["made"], summary["engine_seconds"] = tally.counts["made"], round(time.monotonic() - begun, 1)
    else:
        summary["made"] = 0
    tell(summary, output, as_json=arguments.json)
    return 0


def prepare(arguments: argparse.Namespace) -> tuple[Job, Version]:
    """Find the voice, and check everything that does not depend on a row.

    Raises:
        VitsError: Something cannot be.
    """
    from services.bulk.job import Job
    from shared.audio_encoding import available_formats, check_sampling_rate
    from shared.registry import Registry, default_voice
    from shared.voice import VoiceSpec
    from shared.voice.selection import recommended_variant

    if arguments.format not in available_formats():
        raise UserError(
            f"--format is {arguments.format!r}{nearest(arguments.format, available_formats()) or '.'} "
            f"There is {', '.join(available_formats())}"
        )
    if arguments.sampling_rate is not None:
        check_sampling_rate(arguments.format, arguments.sampling_rate)
    store = Store.open(arguments.store or default_store_url())
    registry = Registry(store)
    version = registry.resolve("voices", arguments.voice or default_voice(registry))
    spec = VoiceSpec.read(registry.fetch(version))
    variant = recommended_variant(spec) if arguments.variant == "auto" else arguments.variant
    spec.variant(variant)
    job = Job(
        store=_absolute(arguments.store or default_store_url()),
        output=_absolute(arguments.output),
        voice=version.reference,
        variant=variant,
        format=arguments.format,
        sampling_rate=arguments.sampling_rate,
        threads=arguments.threads,
        streams=arguments.streams,
    )
    return job, version


def _absolute(url: str) -> str:
    """A store's URL that means the same in another process."""
    store = Store.open(url)
    return store.url if store.root else url


# ---------------------------------------------------------------------------------------------- speaking


def speak(
    arguments: argparse.Namespace,
    job: Job,
    table: Callable[[], Iterator[Shard]],
    keys: Sequence[str],
    done: set[str],
    output: Store,
    tally: Tally,
) -> None:
    """Speak the shards that are not done.

    It begins anywhere among them, so that of several runs each has its own to do; before each it looks whether
    another run has done it in the meantime.
    """
    pending = [number for number, key in enumerate(keys) if key not in done]
    begin = pending[secrets.randbelow(len(pending))] if pending else 0

    def waiting() -> Iterator[Shard]:
        for shard in chain(islice(table(), begin, None), islice(table(), begin)):
            if shard.key in done or output.exists(shard.path):
                tally.skip(len(shard.rows))
            else:
                yield shard

    with shown(tally):
        if arguments.engine == "ray":
            from services.bulk import ray_engine

            for records in ray_engine.speak(
                job, waiting(), workers=arguments.workers, address=arguments.ray_address
            ):
                for record in records:
                    tally.add(record)
            return
        from services.bulk.worker import Worker

        with ExitStack() as stack:
            worker: Worker | None = None
            for shard in waiting():
                if worker is None:
                    worker = Worker(job)
                    stack.callback(worker.close)
                worker.speak(shard, tally.add)


class Tally:
    """Counts rows while they are done.

    Attributes:
        rows: In all.
        counts: ``made``, ``there``, ``bad``.
        audio_seconds: Of what was made.
        on_change: Called after each change.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.counts: Counter[str] = Counter()
        self.audio_seconds = 0.0
        self.on_change: Callable[[], None] = lambda: None

    def add(self, record: Record) -> None:
        """A row is done."""
        kind = "bad" if "error" in record else "made" if record["made"] else "there"
        self.counts[kind] += 1
        self.audio_seconds += record["seconds"] if kind == "made" else 0.0
        self.on_change()

    def skip(self, rows: int) -> None:
        """So many rows were done before."""
        self.counts["there"] += rows
        self.on_change()

    @property
    def done(self) -> int:
        """Rows that need nothing more."""
        return self.counts.total()

    def __str__(self) -> str:
        made = f"{self.counts['made']:,} spoken, {self.audio_seconds / 3600:.2f} h of audio"
        return f"{made}, {self.counts['there']:,} there before, {self.counts['bad']:,} bad"


@contextmanager
def shown(tally: Tally) -> Iterator[None]:
    """A bar with the time that remains; a line now and then where there is no screen."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if not sys.stderr.isatty():
        begun = told = time.monotonic()

        def line() -> None:
            nonlocal told
            now = time.monotonic()
            if now - told >= LINE_SECONDS:
                told = now
                left = (now - begun) / tally.done * (tally.rows - tally.done)
                print(f"{tally.done:,} of {tally.rows:,} rows, {left:.0f} s left: {tally}", file=sys.stderr)

        tally.on_change = line
        yield
        return
    with Progress(
        TextColumn("rows"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task("", total=tally.rows)
        tally.on_change = lambda: bar.update(task, completed=tally.done, description=str(tally))
        yield


# ---------------------------------------------------------------------------------------------- the end


def _fingerprint(keys: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def finished(output: Store, keys: Sequence[str]) -> dict[str, Any] | None:
    """The summary of an earlier run that did exactly these shards; nothing where there was none."""
    from services.bulk.job import SUMMARY_FILE

    if not output.exists(SUMMARY_FILE):
        return None
    try:
        summary: dict[str, Any] = json.loads(output.read(SUMMARY_FILE))
    except ValueError:
        return None
    return summary if summary.get("fingerprint") == _fingerprint(keys) else None


def finish(output: Store, keys: Sequence[str], job: Job, version: Version, rows: int) -> dict[str, Any]:
    """Write manifest, bad rows and summary out of what the shards say."""
    from services.bulk.job import BAD_ROWS_FILE, MANIFEST_FILE, SUMMARY_FILE, from_lines, to_lines

    seconds, bad = 0.0, 0
    with tempfile.TemporaryDirectory(prefix="vits-synthesize-") as folder:
        manifest, faults = Path(folder, MANIFEST_FILE), Path(folder, BAD_ROWS_FILE)
        with manifest.open("wb") as spoken, faults.open("wb") as unspoken:
            for key in keys:
                records = from_lines(output.read(f"shards/{key}.jsonl"))
                failed = [record for record in records if "error" in record]
                unspoken.write(to_lines(failed))
                spoken.write(to_lines(record for record in records if "error" not in record))
                bad += len(failed)
                seconds += sum(record.get("seconds", 0.0) for record in records)
        output.upload(BAD_ROWS_FILE, faults)
        output.upload(MANIFEST_FILE, manifest)
    said: Mapping[str, Any] = {
        "schema_version": 1,
        "fingerprint": _fingerprint(keys),
        "voice": job.voice,
        "variant": job.variant,
        "format": job.format,
        "licence": version.manifest.licence,
        "sources": list(version.manifest.sources),
        "consent": version.manifest.consent,
        "rows": rows,
        "spoken": rows - bad,
        "bad": bad,
        "audio_seconds": round(seconds, 2),
    }
    output.write(SUMMARY_FILE, json.dumps(said, indent=2, ensure_ascii=False).encode() + b"\n")
    return dict(said)


def tell(summary: Mapping[str, Any], output: Store, *, as_json: bool) -> None:
    """Say what came of it."""
    from services.bulk.job import BAD_ROWS_FILE

    if as_json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return
    hours = summary["audio_seconds"] / 3600
    print(
        f"{output.url}: {counted(summary['spoken'], 'row')} spoken, {hours:.3f} h of audio, "
        f"{summary['made']} made now, voice {summary['voice']} ({summary['variant']}), licence {summary['licence']}"
    )
    if summary["bad"]:
        print(
            f"  {counted(summary['bad'], 'row')} could not be spoken: {output.address(BAD_ROWS_FILE)} says why"
        )
