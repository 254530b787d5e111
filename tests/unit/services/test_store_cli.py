"""``vits models`` and ``vits voices``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services import cli
from services.store_cli import main
from shared.errors import NotFoundError, UserError
from shared.provenance import Provenance
from shared.registry import Registry, Version
from shared.store import Store


@pytest.fixture
def versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Version]:
    """Two versions of one voice in the store that the commands use by default."""
    monkeypatch.setenv("VITS_STORE", str(tmp_path / "store"))
    folder = tmp_path / "voice"
    folder.mkdir()
    (folder / "voice.json").write_text("{}" + " " * 1498)
    registry = Registry(Store.open(str(tmp_path / "store")))
    return [
        registry.publish(
            "voices",
            "joe",
            folder,
            licence="CC0-1.0",
            sources=["[a] corpus"],
            consent=None,
            lineage={"run": "demo"},
        )
        for _ in range(2)
    ]


def test_promote_list_show_history(versions: list[Version], capsys: pytest.CaptureFixture[str]) -> None:
    old, new = versions
    assert main(["voices", "promote", "joe", "production"]) == 0
    assert main(["voices", "promote", f"joe/{old.id}", "production"]) == 0
    assert capsys.readouterr().out == (
        f"joe@production is now {new.id} (move 1)\njoe@production is now {old.id} (move 2)\n"
    )
    assert main(["voices", "list"]) == 0
    listed = capsys.readouterr().out
    for part in ["joe", new.id, f"production → {old.id}", "1.5 kB", "UTC"]:
        assert part in listed
    assert main(["voices", "show", "joe@production"]) == 0
    shown = capsys.readouterr().out
    for part in [old.id, "CC0-1.0", "[a] corpus", '"demo"', "voice.json", old.manifest.files[0].sha256[:16]]:
        assert part in shown
    assert main(["voices", "history", "joe", "production"]) == 0
    history = capsys.readouterr().out
    assert history.index(old.id) < history.index(new.id)


def test_a_pipe_gets_every_cell_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "voice").mkdir()
    (tmp_path / "voice" / "voice.json").write_text("{}")
    consent = "the speaker agreed, in writing, on a page that says so at some length, " * 5
    Provenance(licence="CC0-1.0", consent=consent.strip()).write(tmp_path / "voice")
    store = ("--store", str(tmp_path / "store"))
    assert main(["voices", "publish", str(tmp_path / "voice"), "joe", *store]) == 0
    assert main(["voices", "show", "joe", *store]) == 0
    assert consent.strip() in capsys.readouterr().out


def test_json_output_is_complete(versions: list[Version], capsys: pytest.CaptureFixture[str]) -> None:
    old, new = versions

    def answer(*arguments: str) -> object:
        assert main(["voices", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    move = answer("promote", old.reference, "latest")
    assert isinstance(move, dict)
    assert (move["sequence"], move["version"]) == (1, old.id)
    assert answer("history", "joe", "latest") == [move]
    assert answer("list") == [
        {
            "name": "joe",
            "newest": new.id,
            "aliases": {"latest": old.id},
            "bytes": 1500,
            "created": new.manifest.created.isoformat(),
        }
    ]
    assert answer("show", "joe") == json.loads(old.manifest.model_dump_json())


def test_an_empty_store_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", "--store", str(tmp_path / "other")]) == 0
    there_is_none = f"holds no models: there is no folder {tmp_path}/other yet"
    assert capsys.readouterr().out == f"file://{tmp_path}/other {there_is_none}\n"
    assert not (tmp_path / "other").exists()  # a mistyped address leaves nothing behind
    (tmp_path / "other").mkdir()
    assert main(["models", "list", "--store", str(tmp_path / "other")]) == 0
    assert capsys.readouterr().out == f"file://{tmp_path}/other holds no models yet\n"
    assert main(["models", "list", "--json", "--store", str(tmp_path / "other")]) == 0
    assert capsys.readouterr().out == "[]\n"


def test_mistakes_are_answered(versions: list[Version], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotFoundError, match="did you mean 'joe'"):
        main(["voices", "show", "jo"])
    assert cli.main(["voices", "show", "jo"]) == 2
    assert "vits voices: " in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["voices", "--help"])
    assert stopped.value.code == 0
    assert "vits voices promote joe production" in capsys.readouterr().out


def test_a_published_folder_can_be_used_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, url = tmp_path / "model", str(tmp_path / "store")
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    Provenance(licence="CC0-1.0", sources=("a corpus",)).write(folder)
    assert main(["models", "publish", str(folder), "mine", "--store", url]) == 0
    version = Registry(Store.open(url)).resolve("models", "mine")
    assert version.reference in capsys.readouterr().out
    assert (version.manifest.licence, version.manifest.sources) == ("CC0-1.0", ("a corpus",))
    with pytest.raises(UserError, match="nowhere"):
        main(["models", "publish", str(tmp_path / "nowhere"), "mine", "--store", url])
