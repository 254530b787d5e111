"""The table of the ancestor's defects is whole, and every test that it cites exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TABLE = ROOT / "docs" / "ancestor-defects.md"


def rows() -> dict[int, list[str]]:
    """Cells of each row, by the defect's number."""
    found: dict[int, list[str]] = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if re.match(r"\| *\d", line):
            number, *cells = (cell.strip() for cell in line.strip().strip("|").split("|"))
            assert int(number) not in found, f"two rows for defect {number}"
            found[int(number)] = cells
    return found


def collected(path: Path) -> set[str]:
    """What pytest would collect from a file: `name` and `Class::name`."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return {name for name in found if name.rpartition("::")[2].startswith("test_")}


def test_every_defect_has_a_row() -> None:
    table = rows()
    assert sorted(table) == list(range(1, 29))
    for number, cells in table.items():
        assert len(cells) == 3, f"row {number} has {len(cells) + 1} cells"
        assert all(cells), f"row {number} has an empty cell"


@pytest.mark.parametrize("number", range(1, 29))
def test_every_cited_test_exists(number: int) -> None:
    cited = re.findall(r"`([^`]+)`", rows()[number][2])
    assert cited, f"defect {number} has no test"
    for name in cited:
        path, _, test = name.partition("::")
        assert (ROOT / path).is_file(), f"there is no {path}"
        assert test in collected(ROOT / path), f"{path} has no test {test}"
