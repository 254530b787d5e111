"""From a model folder to a folder in another program's format, proved to say what the model says."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.export.formats import FORMATS, piper, sherpa_onnx, transformers_js
from services.export.formats.subject import Subject
from services.export.formats.verify import verify
from services.export.formats.whole import fix_defaults
from shared.errors import ModelError, RequestError, UserError, nearest


@dataclass(frozen=True)
class _Format:
    """What a format's module does."""

    problems: Callable[[Subject], list[str]]
    write: Callable[[Subject, Path, str], Path]


_BY_NAME = {
    "sherpa-onnx": _Format(sherpa_onnx.problems, sherpa_onnx.write),
    "transformers-js": _Format(transformers_js.problems, transformers_js.write),
    "piper": _Format(piper.problems, piper.write),
}


def write_format(
    name: str,
    model_folder: Path,
    output: Path,
    *,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Write a model in a format that another program reads.

    Args:
        name: One of `FORMATS`.
        model_folder: A Hugging Face VITS folder.
        output: The folder to write into; what it holds under other names stays. Its own name is the voice's.
        progress: Called with a line about each step.

    Returns:
        The files written.

    Raises:
        RequestError: There is no such format.
        ModelError: The folder is not a model, or the format cannot carry it; every reason is named.
        ConfigError: The model's tokenizer cannot be used.
        QualityError: The graph does not compute what the model computes; nothing is written.
        UserError: ``output`` cannot be written to.
    """
    if name not in _BY_NAME:
        known = ", ".join(FORMATS)
        raise RequestError(
            f"There is no format {name!r}{nearest(name, list(FORMATS)) or '.'} There are: {known}.",
            param="format",
        )
    subject = Subject.read(model_folder)
    if problems := _BY_NAME[name].problems(subject):
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ModelError(f"{model_folder} cannot be written as {name}:\n{listed}")
    voice = output.resolve().name
    with tempfile.TemporaryDirectory(prefix="vits-format-") as temporary:
        folder = Path(temporary)
        progress(f"Writing {voice} as one graph for {name}")
        graph = _BY_NAME[name].write(subject, folder, voice)
        subject.provenance.write(folder)
        progress("Comparing with PyTorch")
        difference = verify(graph, subject)
        fix_defaults(graph)
        progress(f"The graph agrees with PyTorch within {difference:.1e}")
        written = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        try:
            shutil.copytree(folder, output, dirs_exist_ok=True)
        except (OSError, shutil.Error) as error:
            raise UserError(f"The {name} files cannot be written into {output}: {error}") from error
    return [output / path for path in written]
