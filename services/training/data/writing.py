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


def refuse_filled(output: Path) -> None:
    """Refuse a folder that holds something, before long work is done for it.

    Raises:
        UserError: There is something of that name.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is not empty, and nothing in it is overwritten: give another --output")


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name when it is full.

    Raises:
        UserError: There is something of that name, or it cannot be written.
    """
    refuse_filled(output)
    made = output.with_name(f".{output.name}.{uuid4().hex}.partial")
    try:
        made.mkdir(parents=True)
        yield made
        if output.is_dir():
            output.rmdir()
        made.rename(output)
    except OSError as error:
        raise UserError(
            f"{output} cannot be written ({error.strerror or error}): give another --output"
        ) from error
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
