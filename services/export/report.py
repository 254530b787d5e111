"""A voice's ``report.json``: what each step of export found, a section each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPORT_FILE = "report.json"

#: The page that the gate makes of it, with players.
REPORT_PAGE = "report.html"


def add_to_report(folder: Path, sections: Mapping[str, Any]) -> None:
    """Add sections to a voice's ``report.json``, or replace them."""
    path = folder / REPORT_FILE
    document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"schema_version": 1}
    text = json.dumps({**document, **sections}, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
