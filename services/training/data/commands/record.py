"""``vits data record``: a page that prompts one sentence after another, and records them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from services.training.data.card import DatasetCard, read_card
from services.training.data.commands.origin import add_origin, settled
from services.training.data.listening import Listeners
from shared.folders import check_writable
from shared.languages import language_code
from shared.provenance import UNKNOWN_LICENCE

HELP = "record sentences one by one, on a page in the browser"

DESCRIPTION = """\
Open a page on this machine that shows one sentence after another and records them from the microphone: a level meter, a
check of every take (clipped, faint, noisy), as many takes of a sentence as it needs. The folder is a dataset from the
first take on, and the same command goes on where it was stopped.
"""

EPILOG = """\
examples:
  vits data record data/ana --language es --licence private --source 'Ana García' --consent 'signed on 2026-11-02'
  vits data record data/ana --prompts sentences.txt
  vits data record data/ana                                    # goes on

Sixty sentences each in Spanish and English come with it; a text file of your own has a sentence a line. A voice
wants 150 or more: take sentences of the kind that it will have to say. A quiet room and an even distance matter
more than the microphone.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="the dataset to make, or to go on with")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--prompts", type=Path, metavar="FILE", help="sentences to read out, one a line")
    what.add_argument(
        "--language", type=language_code, metavar="TAG", help="or those that come with it: es or en"
    )
    parser.add_argument(
        "--port", type=int, default=8071, help="of the page; 0 for any (default: %(default)s)"
    )
    add_origin(parser)


def run(options: argparse.Namespace, listeners: Listeners) -> int:
    """Run it until it is stopped.

    Raises:
        UserError: The folder or the sentences cannot be used.
    """
    from services.training.data.desk import record
    from services.training.data.desk.review import sole
    from services.training.data.desk.server import tell

    check_writable(options.folder, "give another folder")
    known = read_card(options.folder) if options.folder.is_dir() else None
    prompts = None
    if options.prompts is not None:
        prompts = record.read_prompts(options.prompts)
    elif options.language is not None:
        prompts = record.shipped_prompts(options.language)
    card = settled(options, known or DatasetCard(options.folder.name, UNKNOWN_LICENCE), required=True)
    session = record.Session(options.folder, prompts)
    with sole(options.folder):
        desk = record.record_desk(session, options.port)
        replace(card, language=options.language or card.language).write(options.folder)
        tell(desk.url, "record")
        try:
            desk.serve()
        except KeyboardInterrupt:
            print()
    done = sum(session.path(index).is_file() for index in range(len(session.prompts)))
    print(f"{options.folder}: {done} of {len(session.prompts)} sentences are recorded")
    print(f"next: vits data clean {options.folder}")
    return 0
