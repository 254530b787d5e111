"""The review page: edits that are saved at once, two tabs, strangers, and a person at the keyboard."""

from __future__ import annotations

import csv
import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from services.training.data import cli, read_recordings
from services.training.data.desk.review import FILES, Review, StaleError, review_desk, sole
from services.training.data.desk.server import Desk
from services.training.data.writing import replace_file
from shared.errors import DataError, UserError
from tests.browser import new_page, until, wait_for
from tests.unit.services.training.data.conftest import Folder

TABLE = "file_name,text,source\naudio/1.wav,ola mundo,x\naudio/2.flac,dos,y\naudio/3.wav,,z\n"
SOUNDS = ["audio/1.wav", "audio/2.flac", "audio/3.wav"]


@pytest.fixture
def reviewed(folder: Folder) -> Path:
    return folder(TABLE, SOUNDS)


def rows(root: Path) -> list[dict[str, str]]:
    with (root / "metadata.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def asked(
    desk: Desk, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, Any, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", desk.port, timeout=20)
    own = {"Origin": f"http://127.0.0.1:{desk.port}"} | {k.replace("_", "-"): v for k, v in headers.items()}
    connection.request(method, path, body, {name: value for name, value in own.items() if value})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    is_json = answer.headers["Content-Type"].startswith("application/json")
    return answer.status, json.loads(content) if is_json else content, dict(answer.headers)


@contextmanager
def at_desk(review: Review) -> Iterator[Desk]:
    desk = review_desk(review)
    with desk.serving():
        yield desk


def test_a_separator_of_lines_inside_a_text_does_not_cut_its_row(folder: Folder) -> None:
    """Unicode has more of them than a CSV table has."""
    reviewed = folder("file_name,text\naudio/1.wav,hola\u2028mundo\x85\naudio/2.flac,dos\n", SOUNDS)
    review = Review(reviewed)
    assert [(entry.file, entry.text) for entry in review.entries] == [
        ("audio/1.wav", "hola\u2028mundo\x85"),
        ("audio/2.flac", "dos"),
    ]
    assert [row["file_name"] for row in rows(reviewed)] == ["audio/1.wav", "audio/2.flac"]
    assert len(read_recordings(reviewed, split="all")) == 2


def test_a_spoiled_memory_is_explained_and_left_as_it_is(reviewed: Path) -> None:
    Review(reviewed)
    memory = reviewed / "review.csv"
    for spoiled in (
        "file_name,text\naudio/1.wav,uno\n",
        memory.read_text().replace(",open,0,", ",open,one,"),
    ):
        memory.write_text(spoiled)
        with pytest.raises(DataError, match="is not as a review writes it"):
            Review(reviewed)
        assert memory.read_text() == spoiled


def test_every_edit_is_on_the_disk_at_once_and_nothing_is_lost(reviewed: Path) -> None:
    review = Review(reviewed)
    review.edit(0, 0, text="  hola \n mundo ", state="accepted")
    assert rows(reviewed)[0] == {"file_name": "audio/1.wav", "text": "hola mundo", "source": "x"}
    review.edit(1, 0, state="rejected")
    assert [row["file_name"] for row in rows(reviewed)] == ["audio/1.wav", "audio/3.wav"]
    assert [recording.text for recording in read_recordings(reviewed, split="all")] == ["hola mundo", ""]
    with pytest.raises(UserError, match="before you accept"):
        review.edit(2, 0, state="accepted")
    again = Review(reviewed)  # another day
    assert [(e.file, e.text, e.state) for e in again.entries] == [
        ("audio/1.wav", "hola mundo", "accepted"), ("audio/2.flac", "dos", "rejected"), ("audio/3.wav", "", "open"),
    ]  # fmt: skip
    assert again.entries[0].first_text == "ola mundo"
    again.edit(1, 1, state="open")
    assert [row["text"] for row in rows(reviewed)] == ["hola mundo", "dos", ""]
    assert (reviewed / "audio/2.flac").is_file()


def test_what_nobody_accepted_can_be_left_out(reviewed: Path) -> None:
    review = Review(reviewed, accepted_only=True)
    assert rows(reviewed) == []
    review.edit(0, 0, state="accepted")
    assert [row["file_name"] for row in rows(reviewed)] == ["audio/1.wav"]
    assert [entry.state for entry in Review(reviewed, accepted_only=True).entries] == [
        "accepted",
        "open",
        "open",
    ]


def test_a_table_that_was_edited_by_hand_is_right(reviewed: Path) -> None:
    review = Review(reviewed)
    review.edit(0, 0, text="hola")
    table = reviewed / "metadata.csv"
    table.write_text("file_name,text,source\naudio/1.wav,HOLA,x\naudio/3.wav,tres,z\n", encoding="utf-8")
    with pytest.raises(UserError, match="somebody else"):
        review.edit(0, 1, text="y")
    assert "HOLA" in table.read_text(encoding="utf-8")
    again = Review(reviewed)
    assert [(e.file, e.text, e.state) for e in again.entries] == [
        ("audio/1.wav", "HOLA", "open"), ("audio/2.flac", "dos", "rejected"), ("audio/3.wav", "tres", "open"),
    ]  # fmt: skip


def test_two_tabs_cannot_overwrite_each_other(reviewed: Path) -> None:
    review = Review(reviewed)
    review.edit(0, 0, text="la primera")
    with pytest.raises(StaleError) as stale:
        review.edit(0, 0, text="la segunda")
    assert stale.value.entry.text == "la primera"
    with at_desk(review) as desk:
        status, told, _ = asked(
            desk, "POST", "/rows/0", json.dumps({"revision": 0, "text": "la segunda"}).encode()
        )
        assert (status, told["row"]["text"], told["row"]["revision"]) == (409, "la primera", 1)
    assert rows(reviewed)[0]["text"] == "la primera"
    with sole(reviewed), pytest.raises(UserError, match="already"), sole(reviewed):
        pass


def test_the_command_keeps_what_was_said_until_it_was_stopped(
    reviewed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C is how a review ends; meanwhile a second one of the same folder is refused."""
    command, serve = ["review", str(reviewed), "--accepted-only", "--port", "0"], Desk.serve

    def a_person(desk: Desk) -> None:
        monkeypatch.setattr(Desk, "serve", serve)
        with pytest.raises(UserError, match="already"):
            cli.main(command)
        with desk.serving():
            edit = {"revision": 0, "text": "hola mundo", "state": "accepted"}
            assert asked(desk, "POST", "/rows/0", json.dumps(edit).encode())[0] == 200
        raise KeyboardInterrupt

    monkeypatch.setattr(Desk, "serve", a_person)
    assert cli.main(command) == 0
    assert [(row["file_name"], row["text"]) for row in rows(reviewed)] == [("audio/1.wav", "hola mundo")]
    told = capsys.readouterr().out
    assert "1 accepted" in told
    assert f"next: vits data inspect {reviewed}" in told


def test_folders_that_are_no_datasets_are_refused(tmp_path: Path, folder: Folder) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        Review(tmp_path)
    with pytest.raises(DataError, match="file_name and text"):
        Review(folder("a|b\n", []))


def test_strangers_are_turned_away(reviewed: Path) -> None:
    edit = json.dumps({"revision": 0, "text": "x"}).encode()
    with at_desk(Review(reviewed)) as desk:
        for origin in ("http://evil.example", f"http://localhost:{desk.port}", ""):
            assert asked(desk, "POST", "/rows/0", edit, Origin=origin)[0] == 403
        assert asked(desk, "GET", "/rows", Host=f"evil.example:{desk.port}")[0] == 421
        assert asked(desk, "GET", "/../server.py")[0] == 404
        assert asked(desk, "GET", "/sounds/7")[0] == 400
        for wrong in (
            b"",
            b"[]",
            b"{}",
            b'{"revision": "0"}',
            b'{"revision": 0, "text": 1}',
            b'{"revision": 0, "a": 1}',
        ):
            assert asked(desk, "POST", "/rows/0", wrong)[0] == 400, wrong
        assert (
            asked(desk, "POST", "/rows/0", json.dumps({"revision": 0, "text": "a" * 2001}).encode())[0] == 400
        )
        assert rows(reviewed)[0]["text"] == "ola mundo"
        assert asked(desk, "POST", "/rows/0", edit)[0] == 200


def test_a_disk_that_fails_is_told_and_loses_nothing(reviewed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        if path.name == "metadata.csv":  # there was room for the first of the two tables
            raise OSError(28, "No space left on device")
        replace_file(path, content)

    with at_desk(Review(reviewed)) as desk:
        monkeypatch.setattr("services.training.data.writing.replace_file", full)
        status, told, _ = asked(desk, "POST", "/rows/0", json.dumps({"revision": 0, "text": "hola"}).encode())
        assert status == 500
        assert "No space left" in told["error"]
        assert rows(reviewed)[0]["text"] == "ola mundo"
        monkeypatch.undo()
        assert asked(desk, "POST", "/rows/0", json.dumps({"revision": 0, "text": "hola"}).encode())[0] == 200
        (reviewed / "audio/1.wav").unlink()
        assert asked(desk, "GET", "/sounds/0")[0] == 500
    assert rows(reviewed)[0]["text"] == "hola"


def test_the_page_lets_nothing_in(reviewed: Path) -> None:
    with at_desk(Review(reviewed)) as desk:
        for path in FILES:
            status, content, headers = asked(desk, "GET", path)
            assert status == 200
            policy = headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert b"http:" not in content
            assert b"https:" not in content
        for path, kind in (("/sounds/0", "audio/wav"), ("/sounds/1", "audio/flac")):
            status, content, headers = asked(desk, "GET", path)
            assert (status, headers["Content-Type"]) == (200, kind)
            assert content == (reviewed / SOUNDS[int(path[-1])]).read_bytes()


def test_a_person_at_the_keyboard(reviewed: Path, browser: Any) -> None:
    with at_desk(Review(reviewed)) as desk:
        page, complaints = new_page(browser, desk.url)
        until(page, "document.getElementById('text').value === 'ola mundo'")
        until(page, "document.getElementById('sound').duration > 0.9")

        # Typing is saved after a moment, before anything is accepted.
        page.keyboard.press("e")
        page.keyboard.press("Control+a")
        page.keyboard.type("hola mundo")
        wait_for(lambda: rows(reviewed)[0]["text"] == "hola mundo")
        assert page.locator("#first").inner_text() == "at first: ola mundo"

        # Another tab has the same recording, and is slower.
        other, _ = new_page(browser, desk.url)
        until(other, "document.getElementById('text').value === 'hola mundo'")
        page.keyboard.press("Control+Enter")  # accepts, and goes on
        until(page, "document.getElementById('text').value === 'dos'")
        other.keyboard.press("x")
        until(other, "document.getElementById('error').textContent.includes('another tab')")
        assert other.locator("#state").inner_text() == "accepted"
        assert [row["file_name"] for row in rows(reviewed)] == SOUNDS

        # Rejecting goes on; without a text nothing is accepted.
        page.keyboard.press("Escape")
        page.keyboard.press("x")
        until(page, "document.getElementById('file').textContent === 'audio/3.wav'")
        wait_for(lambda: [row["file_name"] for row in rows(reviewed)] == ["audio/1.wav", "audio/3.wav"])
        page.keyboard.press("Enter")
        until(page, "document.getElementById('error').textContent.includes('before you accept')")
        page.keyboard.press("ArrowUp")
        until(page, "document.getElementById('file').textContent === 'audio/2.flac'")
        page.keyboard.press("o")
        wait_for(lambda: len(rows(reviewed)) == 3)
        until(page, "document.getElementById('counts').textContent.startsWith('2 open, 1 accepted')")
        assert [text for text in complaints if "400" not in text and "409" not in text] == []
