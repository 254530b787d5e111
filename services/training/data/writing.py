"""Writing dataset folders so that they, and what is in them, appear whole or not at all."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from shared.errors import UserError
from shared.folders import check_writable, writing

#: What to do where the table of decisions or its page cannot be written.
REPORT_REMEDY = "name another folder with --report"


def check_output(output: Path, option: str = "--output") -> None:
    """Refuse a folder that cannot be made, before long work is done for it.

    Args:
        output: It.
        option: What it was given as.

    Raises:
        UserError: It holds something, or cannot be written.
    """
    remedy = f"give another {option}"
    with writing(output, remedy):
        filled = output.exists() and (not output.is_dir() or any(output.iterdir()))
    if filled:
        raise UserError(f"{output} is not empty, and nothing in it is overwritten: {remedy}")
    if output.exists():
        remedy = f"give a new folder in {output} as {option}"
    check_writable(output.absolute().parent, remedy)  # where it is filled


@contextmanager
def new_folder(output: Path, option: str = "--output") -> Iterator[Path]:
    """A folder to fill, which takes its name when it is full.

    Args:
        output: It.
        option: What it was given as.

    Raises:
        UserError: There is something of that name, or it cannot be written.
    """
    check_output(output, option)
    made = output.with_name(f".{output.name}.{uuid4().hex}.partial")
    try:
        with writing(output, f"give another {option}"):
            made.mkdir(parents=True)
            yield made
            if output.is_dir():
                output.rmdir()
            made.rename(output)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def write_table(
    path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]], *, encoding: str = "utf-8"
) -> bytes:
    """Write a CSV table with its header; one that is there already is replaced at once.

    Returns:
        What is in the file now.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    content = text.getvalue().encode(encoding)
    replace_file(path, content)
    return content


def replace_file(path: Path, content: bytes) -> None:
    """Write a file that its readers see as it was or as it will be, and nothing between."""
    partial = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
