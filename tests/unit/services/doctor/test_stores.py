"""The store's probe against stores that are sound and stores that are not; the hub, there and away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from services.doctor import stores
from services.doctor.finding import Finding
from shared.errors import StoreError
from shared.store import Store


def one(findings: Iterator[Finding]) -> Finding:
    (found,) = findings
    return found


def test_a_sound_store_is_left_as_it_was(tmp_path: Path) -> None:
    root = tmp_path / "store"
    Store.open(str(root)).write("voices/x", b"y")
    found = one(stores.store(str(root)))
    assert found.status == "ok"
    assert "creates only what is absent" in found.said
    assert [item.path for item in Store.open(str(root)).list("")] == ["voices/x"]


def test_a_store_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    found = one(stores.store(str(tmp_path / "later")))
    assert found.status == "ok"
    assert not (tmp_path / "later").exists()


def test_a_back_end_that_overwrites_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(store: Store, path: str, data: bytes, **_: Any) -> None:
        store.write(path, data)

    monkeypatch.setattr(Store, "create", careless)
    tmp_path.joinpath("store").mkdir()
    found = one(stores.store(str(tmp_path / "store")))
    assert found.status == "fail"
    assert "overwrite" in found.said
    assert "If-None-Match" in found.remedy
    assert Store.open(str(tmp_path / "store")).list("") == []


def test_a_back_end_that_refuses_conditions_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Store.create
    calls = []

    def broken(store: Store, path: str, data: bytes, **more: Any) -> None:
        calls.append(path)
        if len(calls) > 1:
            raise StoreError("501 Not Implemented")
        create(store, path, data, **more)

    monkeypatch.setattr(Store, "create", broken)
    tmp_path.joinpath("store").mkdir()
    found = one(stores.store(str(tmp_path / "store")))
    assert found.status == "fail"
    assert "501" in found.said


def test_a_store_that_can_only_be_read_is_enough_to_speak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(store: Store, path: str, data: bytes, **_: Any) -> None:
        raise StoreError("access was refused")

    monkeypatch.setattr(Store, "create", refused)
    tmp_path.joinpath("store").mkdir()
    found = one(stores.store(str(tmp_path / "store")))
    assert found.status == "note"
    assert "enough to speak" in found.remedy


def test_a_store_where_nothing_may_be_deleted_can_be_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys that may put and not delete are usual where nothing is to be lost."""

    def refused(store: Store, path: str) -> None:
        raise StoreError("access was refused")

    monkeypatch.setattr(Store, "delete", refused)
    tmp_path.joinpath("store").mkdir()
    whole, left = stores.store(str(tmp_path / "store"))
    assert whole.status == "ok"
    assert "creates only what is absent" in whole.said
    assert left.status == "note"
    assert "nothing can be deleted there: access was refused. doctor/" in left.said


@pytest.mark.parametrize("url", ["ftp://nowhere", "file://unclear"])
def test_an_address_that_is_none(url: str) -> None:
    found = one(stores.store(url))
    assert found.status == "fail"
    assert "--store" in found.remedy


def test_a_file_where_the_store_should_be(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    assert one(stores.store(str(tmp_path / "store"))).status == "fail"


@pytest.fixture
def answering() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(403)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_hub_that_answers(monkeypatch: pytest.MonkeyPatch, answering: str) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", answering)
    assert one(stores.hub()).status == "ok"


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "nonsense"])
def test_a_hub_that_is_away_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    found = one(stores.hub())
    assert found.status == "note"
    assert "cannot be reached" in found.said
    assert "vits convert" in found.remedy


def test_a_hub_that_is_switched_off_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = one(stores.hub())
    assert found.status == "note"
    assert "HF_HUB_OFFLINE" in found.said
