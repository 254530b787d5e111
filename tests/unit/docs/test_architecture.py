"""The architecture's page names what is there, and all of it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
ROWS = [row.split("|")[1] for row in PAGE.splitlines() if row.startswith("| `")]
NAMED = {name.rstrip("/") for row in ROWS for name in re.findall(r"`([^`]+)`", row)}


def test_what_the_table_of_folders_names_is_there() -> None:
    assert len(NAMED) > 10
    assert [name for name in sorted(NAMED) if not (ROOT / name).exists()] == []


def test_every_folder_and_every_module_between_the_programs_has_a_row() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["packages"]
    between = {f"services/{file.name}" for file in (ROOT / "services").glob("*.py")} - {
        "services/__init__.py"
    }
    tops = {name.split("/")[0] for name in NAMED}
    assert {*packages, "configs", ".ci"} - tops == set()
    assert between - NAMED == set()


def test_every_module_of_training_that_the_page_names_is_there() -> None:
    training = PAGE.partition("\n## Training")[2].partition("\n## ")[0]
    names = set(re.findall(r"`([a-z]+(?:_[a-z]+)*)`", training)) - {
        "untrained_modules",
        "report_to",
        "reconstruction_stage_steps",
        "text_stage_steps",
        "transformers",
    }
    assert len(names) > 12
    assert [name for name in sorted(names) if not (ROOT / f"services/training/{name}.py").exists()] == []
