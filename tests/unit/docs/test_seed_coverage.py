"""The table of what the analysis document asks for is whole, and everything that it cites exists."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import json
import re
import shlex
from pathlib import Path

import pytest

from services.cli import SUBCOMMANDS, main
from tests.unit.docs.test_ancestor_defects import collected

ROOT = Path(__file__).parents[3]
TABLE = ROOT / "docs" / "seed-coverage.md"

#: The document's numbers: solutions with their parts, configurations, troubleshooting, bottlenecks.
PARTS = {
    1: "ABCD",
    2: "ABCD",
    3: "ABCD",
    4: "AB",
    5: "ABC",
    6: "AB",
    7: "ABC",
    8: "ABC",
    9: "ABC",
    10: "ABC",
    11: "ABC",
}
NUMBERS = [f"{number}{part}" for number, letters in PARTS.items() for part in letters]
NUMBERS += [f"R{number}" for number in range(1, 5)]
NUMBERS += [f"T{number}" for number in range(1, 8)]
NUMBERS += [f"B{number}" for number in range(1, 10)]


def rows() -> dict[str, list[str]]:
    """Cells of each row, by its number."""
    found: dict[str, list[str]] = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        match = re.match(r"\| *([RTB]?\d+[A-D]?) *\|", line)
        if match:
            assert match[1] not in found, f"two rows {match[1]}"
            found[match[1]] = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))[1:]]
    return found


@functools.cache
def help_of(name: str) -> str:
    """What a subcommand teaches, those below it included."""
    said = io.StringIO()
    lines: list[list[str]] = [[name, "--help"]]
    if name == "data":
        lines += [[name, command, "--help"] for command in ("inspect", "clean", "augment")]
    for line in lines:
        with (
            contextlib.suppress(SystemExit),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            main(line)
    return said.getvalue()


def test_everything_has_a_row() -> None:
    table = rows()
    assert list(table) == NUMBERS
    for number, cells in table.items():
        assert len(cells) == 3, f"row {number} has {len(cells) + 1} cells"
        assert all(cells), f"row {number} has an empty cell"


@pytest.mark.parametrize("number", NUMBERS)
def test_every_cited_test_exists(number: str) -> None:
    cited = re.findall(r"`([^`]+)`", rows()[number][2])
    assert cited, f"row {number} has no test"
    for name in cited:
        path, _, test = name.partition("::")
        assert (ROOT / path).is_file(), f"there is no {path}"
        assert test in collected(ROOT / path), f"{path} has no test {test}"


@pytest.mark.parametrize(
    "command", [*dict.fromkeys(re.findall(r"`(vits train[^`]*)`", TABLE.read_text(encoding="utf-8")))]
)
def test_every_cited_training_is_one_that_is_taken(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over a configuration that evaluates and has as many epochs as those that are shipped."""
    monkeypatch.setenv("VITS_CONFIGS", str(ROOT / "configs"))
    base = tmp_path / "base.json"
    keys = {"model_name_or_path": "m", "dataset_name": "d", "do_eval": True, "num_train_epochs": 200}
    base.write_text(json.dumps(keys), encoding="utf-8")
    assert main([*shlex.split(command)[1:], "--config", str(base), "--print_config"]) == 0
    assert json.loads(capsys.readouterr().out)["dataset_name"] == "d"


@pytest.mark.parametrize("number", NUMBERS)
def test_every_cited_command_exists(number: str) -> None:
    for command in re.findall(r"`([^`]+)`", rows()[number][1]):
        if command.startswith("vits "):
            name, *words = command.split()[1:]
            assert name in SUBCOMMANDS, command
            known = help_of(name)
            for word in words:
                if word.startswith("--"):
                    assert re.search(rf"(^|\W){word}\b", known), f"{name} has no {word}"
            if words and re.fullmatch("[a-z]+", words[0]):
                assert f"vits {name} {words[0]}" in known, command
        elif command.startswith("python -m "):
            assert importlib.util.find_spec(command.split()[2]), command
        elif command.startswith("configs/"):
            assert (ROOT / command).is_file(), command
