"""The bar for files on their way, on a terminal and where there is none."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from services.store_cli import main
from shared.progress import byte_bar
from shared.provenance import Provenance


class Terminal(io.StringIO):
    """What is written to it, with what moves the cursor or paints."""

    def isatty(self) -> bool:
        return True

    def shown(self) -> str:
        """The words alone."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())


def watched(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard error from now on. (In a fixture pytest would put its own in its place.)"""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    return terminal


def test_the_bar_shows_what_and_how_much_and_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watched(monkeypatch)
    with byte_bar("Copying [joe]") as progress:
        assert progress
        progress(500_000, 3_000_000)
        progress(1_500_000, 3_000_000)
    *_, last = (line for line in terminal.shown().splitlines() if "Copying [joe]" in line)
    assert "1.5/3.0 MB" in last
    assert terminal.getvalue().endswith("\x1b[2K")  # the line that it was on is empty again


def test_there_is_no_bar_where_nobody_looks_on(capsys: pytest.CaptureFixture[str]) -> None:
    with byte_bar("Copying joe") as progress:
        assert progress is None
    assert capsys.readouterr() == ("", "")


def test_commands_show_it_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watched(monkeypatch)
    monkeypatch.setenv("VITS_STORE", str(tmp_path / "store"))
    (tmp_path / "voice").mkdir()
    (tmp_path / "voice" / "w").write_bytes(bytes(2_000_000))
    Provenance(licence="CC0-1.0").write(tmp_path / "voice")
    assert main(["voices", "publish", str(tmp_path / "voice"), "joe"]) == 0
    assert main(["voices", "copy", "joe", str(tmp_path / "other")]) == 0
    assert main(["voices", "verify", "joe"]) == 0
    for words in ("Publishing joe", "Copying joe/", "Verifying joe/"):
        assert re.search(rf"{words}.* 2\.0/2\.0 MB", terminal.shown()), words
