"""``vits data review``: a page to listen to a dataset, correct its transcripts, and reject what is no good."""

from __future__ import annotations

import argparse
from pathlib import Path

from services.training.data.listening import Listeners

HELP = "listen, correct and reject, on a page in the browser"

DESCRIPTION = """\
Open a page on this machine to go through a dataset: listen, correct the transcript, accept or reject; all of it
from the keyboard. Every change is saved at once. metadata.csv, which training reads, always holds what is not
rejected, and review.csv beside it remembers everything; no sound is ever deleted. Go on later with the same
command.
"""

EPILOG = """\
examples:
  vits data review data/ana
  vits data review data/ana --accepted-only --port 8090

The folder has to have a metadata.csv with the columns file_name and text: 'vits data prepare', 'record', 'clean' and
'fetch' make such folders. The page answers on loopback only.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="the dataset")
    parser.add_argument(
        "--accepted-only",
        action="store_true",
        help="leave out of metadata.csv what nobody has accepted yet, too",
    )
    parser.add_argument(
        "--port", type=int, default=8070, help="of the page; 0 for any (default: %(default)s)"
    )


def run(options: argparse.Namespace, listeners: Listeners) -> int:
    """Run it until it is stopped.

    Raises:
        UserError: The folder cannot be reviewed, or is being reviewed already.
    """
    from services.training.data.desk.review import Review, review_desk, sole
    from services.training.data.desk.server import tell
    from shared.errors import DataError
    from shared.folders import check_writable

    if not options.folder.is_dir():
        raise DataError(f"There is no folder {options.folder}", ["give a dataset folder of your own"])
    check_writable(options.folder, "copy it to where it can be, and review the copy")
    with sole(options.folder):
        review = Review(options.folder, accepted_only=options.accepted_only)
        desk = review_desk(review, options.port)
        tell(desk.url, "review")
        try:
            desk.serve()
        except KeyboardInterrupt:
            print()
        counts = review.counts()
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    print(f"next: vits data inspect {options.folder}")
    return 0
