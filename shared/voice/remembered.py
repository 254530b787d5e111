"""What was measured on this machine, in small files of JSON that several servers share.

A file that cannot be read or written costs a measurement, no more. Of two servers that remember something at the same
moment, one may be forgotten; a file is always whole.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from pathlib import Path

logger = logging.getLogger("vits.voice")


def recall(path: Path | None) -> dict[str, object]:
    """What a file remembers, by key; nothing where it is absent or damaged."""
    if path is None:
        return {}
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def remember(path: Path | None, key: str, value: object) -> None:
    """Have a file remember something, if it can."""
    if path is None:
        return
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A process's number is no name for it: in containers that share a folder, all servers may have the same.
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f"{path.stem}.", suffix=".partial", delete=False
        ) as file:
            partial = Path(file.name)
            json.dump(recall(path) | {key: value}, file)
        partial.chmod(0o644)
        partial.replace(path)
    except OSError as error:
        logger.info("what was measured is measured again next time: %s", error)
        if partial:
            with contextlib.suppress(OSError):
                partial.unlink()
