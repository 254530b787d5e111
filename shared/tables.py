"""Tables for people, on standard output."""

from __future__ import annotations

import sys
from collections.abc import Sequence

#: Characters to a line where nobody looks at a screen: more than any table has.
UNBOUNDED_WIDTH = 10_000


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> None:
    """Print a table.

    Args:
        header: Of the columns; no header where all are empty.
        rows: Their cells, which are not markup.
        numbers: Whether every column but the first is aligned to the right.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    # Through a pipe there is no width to fit.
    width = None if sys.stdout.isatty() else UNBOUNDED_WIDTH
    console = Console(markup=False, highlight=False, emoji=False, width=width)
    table = Table(box=SIMPLE_HEAD, show_header=any(header))
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if numbers and number else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
