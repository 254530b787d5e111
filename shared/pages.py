"""Pages that are one HTML file each and need nothing else: their templates, and sounds inside them."""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path
from typing import Any

from shared.audio import Samples, encode_flac
from shared.errors import MissingExtraError


@cache
def template(path: Path, remedy: str) -> Any:
    """A jinja2 template, which escapes what it is given and does not take a name that it was not given.

    Args:
        path: The file.
        remedy: What to do where jinja2 is not installed, such as ``pip install 'vits-suite[train]'``.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"The page is made with jinja2, which is not installed: {remedy}") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(path.parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment.get_template(path.name)


def data_uri(content: bytes, media_type: str) -> str:
    """A file as an address that holds it."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def sound_uri(samples: Samples, sampling_rate: int) -> str:
    """Sound [S] as an address that holds it, as FLAC."""
    return data_uri(encode_flac(samples, sampling_rate), "audio/flac")
