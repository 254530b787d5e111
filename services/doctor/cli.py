"""``vits doctor``: look at everything that the commands need, and say what to do where it is not there."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from services.doctor import machine, stores, training
from services.doctor.finding import Finding, fail
from shared.arguments import Parser
from shared.cache import default_cache
from shared.errors import UserError
from shared.store import Store, default_store_url
from shared.wording import counted

EPILOG = """\
what it looks at:
  versions, extras, alignment kernel, processor, GPU, memory, disk, phonemizer, audio formats, store, hub
  --data:   every row of a dataset
  --config: every key, the model, the dataset, memory for a step, disk for the checkpoints; nothing is downloaded
It takes a few seconds. In the store it creates one small object and deletes it again.

examples:
  vits doctor
  vits doctor --store s3://bucket/voices
  vits doctor --config configs/spa.json
  vits doctor --data my-recordings --json

exit codes: 0 all is well, or can be done without (notes); 1 something has to be mended
"""

MARKS = {"ok": "✓", "note": "!", "fail": "✗"}

#: Checks, by what they are called in messages.
Checks = dict[str, Callable[[], Iterable[Finding]]]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(
        prog="vits doctor",
        description="Look at everything that the commands need, and say what to do where it is not there.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--store", metavar="URL", help="look at this store (default: $VITS_STORE, or ./store)")
    made.add_argument("--data", metavar="DATASET", help="look at a dataset: a folder, a table, or a hub name")
    made.add_argument(
        "--config", type=Path, metavar="FILE", help="look at what training with this file would need"
    )
    made.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return made


def checks(arguments: argparse.Namespace) -> Checks:
    """What is looked at, in this order."""
    url = arguments.store or default_store_url()
    chosen: Checks = {
        "versions": machine.versions,
        "extras": machine.extras,
        "kernel": machine.kernel,
        "processor": machine.processor,
        "GPU": machine.gpu,
        "memory": machine.memory,
        "disk": lambda: machine.disk(places(url)),
        "phonemizer": machine.phonemizer,
        "audio": machine.codecs,
        "store": lambda: stores.store(url),
        "hub": stores.hub,
    }
    if arguments.data:
        chosen["dataset"] = lambda: training.dataset(arguments.data)
    if arguments.config:
        chosen["configuration"] = lambda: training.configuration(arguments.config)
    return chosen


def places(url: str) -> dict[str, Path]:
    """Where things are written on this machine."""
    places = {"the cache": default_cache(), "temporary files": Path(tempfile.gettempdir())}
    if machine.can_train():  # serving writes nothing else, and its image has no folder for more
        places["output"] = Path.cwd()
    try:
        root = Store.open(url).root
    except UserError:
        root = None  # the store's own check tells of that
    return places | ({"the store": root} if root else {})


def run(chosen: Checks) -> Iterator[Finding]:
    """Run each check; one that breaks is a finding, and keeps no other from being run."""
    for name, check in chosen.items():
        try:
            yield from check()
        except UserError as error:
            yield fail(name, str(error), "")  # it says what to do
        except ModuleNotFoundError as error:
            yield fail(
                name, f"it needs the package {error.name!r}, which is not installed", "see the extras above"
            )
        except Exception as error:  # whatever it is: the others are wanted all the same
            yield fail(name, f"could not be looked at: {type(error).__name__}: {error}", "please report this")


def main(argv: Sequence[str]) -> int:
    """Look at everything."""
    arguments = parser().parse_args(argv)
    findings = list(run(checks(arguments)))
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    else:
        _print(findings)
    return int(any(finding.status == "fail" for finding in findings))


def _print(findings: Sequence[Finding]) -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        print(f"{MARKS[finding.status]} {finding.check:<{width}}  {finding.said}")
        if finding.remedy:
            print(f"  {'':<{width}}  → {finding.remedy}")
    failed = [finding.check for finding in findings if finding.status == "fail"]
    noted = sum(finding.status == "note" for finding in findings)
    if failed:
        print(f"\nto be mended: {', '.join(dict.fromkeys(failed))}")
    else:
        print("\nall is well" + (f", with {counted(noted, 'note')}" if noted else ""))
