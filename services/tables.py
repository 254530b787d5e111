"""How commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime

#: Characters to a line where nobody looks at a screen: more than any table has.
UNBOUNDED_WIDTH = 10_000


def time(moment: datetime) -> str:
    """A moment for people, to the second."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def size(size: int) -> str:
    """A number of bytes for people."""
    from rich.filesize import decimal

    return decimal(size)


def print_json(value: object) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(header: list[str], rows: list[list[str]], *, numbers: bool = False) -> None:
    """Print rows of cells under a header; ``numbers`` aligns all columns but the first to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    # Through a pipe there is no width to fit, and names in a store are not markup.
    width = None if sys.stdout.isatty() else UNBOUNDED_WIDTH
    console = Console(markup=False, highlight=False, emoji=False, width=width)
    table = Table(*header, box=SIMPLE_HEAD, show_header=any(header))
    for column in table.columns[1:] if numbers else []:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console.print(table)
