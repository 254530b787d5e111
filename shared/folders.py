"""Writing folders: whether one can be written at all, and a model's so that it appears whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.container import user_advice
from shared.errors import ModelError, UserError


@contextmanager
def writing(folder: Path, remedy: str) -> Iterator[None]:
    """While inside, a folder that cannot be written is an error that names it and says what to do.

    Args:
        folder: What is written, or what is in it.
        remedy: What to do where that cannot be.

    Raises:
        UserError: It cannot be written.
    """
    try:
        yield
    except BrokenPipeError:  # nobody reads what is printed meanwhile
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{folder} cannot be written ({reason}): {remedy}{user_advice(reason)}") from error


def check_writable(folder: Path, remedy: str) -> None:
    """Make sure that a folder can be written, before long work is done for it. Nothing is left there.

    Args:
        folder: It, or where it will be made.
        remedy: What to do where that cannot be.

    Raises:
        UserError: It cannot be written.
    """
    with writing(folder, remedy):
        places = (folder, *folder.absolute().parents)
        with tempfile.TemporaryFile(dir=next(place for place in places if place.exists())):
            pass


@contextmanager
def whole_folder(output: Path, *, sources: Iterable[Path] = ()) -> Iterator[Path]:
    """A new folder to fill, which takes the place of ``output`` when the block ends without an error.

    Args:
        output: Where the finished folder goes; a model folder that is there is replaced, nothing else is.
        sources: What is being read, which must not lie in a folder that would be replaced.

    Raises:
        ModelError: ``output`` is there and is no model folder, or holds a source; nothing is written.
    """
    output = output.resolve()
    _check_replaceable(output, [source.resolve() for source in sources])
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        _replace(output, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(output: Path, new: Path) -> None:
    """Put a folder in another's place; killed in between, the old one is left beside it as ``….replaced``."""
    old = output.with_name(output.name + ".replaced")
    if output.exists():
        shutil.rmtree(old, ignore_errors=True)
        output.rename(old)
    new.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def _check_replaceable(output: Path, sources: list[Path]) -> None:
    """Refuse to write where something else than an older result would be lost.

    Raises:
        ModelError: It would.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / "config.json").is_file() or not (output / "model.safetensors").is_file():
        raise ModelError(f"{output} is there and is not a model folder. Give a new folder to write.")
    for source in sources:
        if source.is_relative_to(output):
            raise ModelError(
                f"{output} would be replaced, and it holds {source.name or source}, which is being read. "
                "Give another folder to write."
            )
