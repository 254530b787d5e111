"""``vits models`` and ``vits voices``."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from services import cli
from services.store_cli import main
from shared.copying import copy_version
from shared.errors import CorruptObjectError, NotFoundError, StoreError, UserError
from shared.manifests import Kind, now
from shared.provenance import Provenance
from shared.registry import Registry, Version
from shared.runs import TRAINER_FILE, Run
from shared.store import Digest, Store


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


def test_a_mistyped_address_is_not_an_empty_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITS_STORE", "s3:/bucket")
    assert cli.main(["voices", "list"]) == 2
    assert "did you mean s3://bucket?" in capsys.readouterr().err
    assert cli.main(["models", "publish", str(tmp_path), "joe", "--store", "s3:///x"]) == 2
    assert "names no bucket" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


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


def test_an_alias_that_is_there_already_is_not_moved_again(
    versions: list[Version], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = versions
    for version in (old, new, new):
        assert main(["voices", "promote", version.reference, "production"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"joe@production is now {new.id} (move 2)",
        f"joe@production is already {new.id} (move 2)",
    ]
    history = Registry(Store.open(str(tmp_path / "store"))).history("voices", "joe", "production")
    assert [move.version for move in history] == [old.id, new.id]


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

    def answer(*arguments: str) -> Any:
        assert main(["voices", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    move = answer("promote", old.reference, "latest")
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
    answer("promote", new.reference, "latest")
    back = answer("rollback", "joe", "latest")
    assert answer("history", "joe", "latest")[-1] == back
    assert (back["sequence"], back["version"]) == (3, old.id)


def test_what_is_published_and_deleted_is_told_in_json(
    versions: list[Version],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And nothing else on standard output: not the question before it, either."""
    folder = tmp_path / "another"
    folder.mkdir()
    (folder / "w").write_bytes(b"weights")
    Provenance(licence="CC0-1.0").write(folder)
    assert main(["voices", "publish", str(folder), "ana", "--json"]) == 0
    published = json.loads(capsys.readouterr().out)
    ana = Registry(Store.open(str(tmp_path / "store"))).resolve("voices", "ana")
    assert published == {"name": "ana", "version": ana.id}

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for options, typed, deleted in (["--dry-run"], "", False), ([], "y\n", True):
        monkeypatch.setattr("sys.stdin", Terminal(typed))
        assert main(["voices", "delete", ana.reference, *options, "--json"]) == 0
        told = capsys.readouterr()
        assert json.loads(told.out) == [{"reference": ana.reference, "deleted": deleted}]
        assert ("Delete 1 of the voices" in told.err) == deleted
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    with pytest.raises(UserError, match="--json shows nothing that could be confirmed"):
        main(["voices", "delete", "joe", "--purge", "--reason", "letter", "--json"])
    assert main(["voices", "show", "joe"]) == 0
    with pytest.raises(NotFoundError):
        main(["voices", "show", ana.reference])


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


# ---------------------------------------------------------------------- upkeep


def test_rollback_goes_back_as_far_as_it_is_asked(
    versions: list[Version], capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = versions
    for version in (old, new, old, new):
        assert main(["voices", "promote", version.reference, "production"]) == 0
    capsys.readouterr()
    assert main(["voices", "rollback", "joe", "production"]) == 0
    assert capsys.readouterr().out == f"joe@production is now {old.id} (move 5)\n"
    with pytest.raises(NotFoundError, match="has not pointed to another version before"):
        main(["voices", "rollback", "joe", "production"])


def test_diff_shows_files_manifest_and_the_keys_of_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VITS_STORE", str(tmp_path / "store"))
    registry = Registry(Store.open(str(tmp_path / "store")))
    folder = tmp_path / "voice"
    folder.mkdir()
    (folder / "same.txt").write_text("same")

    def publish(rate: int, licence: str, extra: str) -> Version:
        for file in folder.glob("*.onnx"):
            file.unlink()
        (folder / extra).write_bytes(b"x")
        (folder / "voice.json").write_text(json.dumps({"audio": {"rate": rate}, "name": "joe"}))
        return registry.publish(
            "voices", "joe", folder, licence=licence, sources=[], consent=None, lineage={}
        )

    old, new = publish(16000, "MIT", "a.onnx"), publish(22050, "CC0-1.0", "b.onnx")
    assert main(["voices", "diff", old.reference, new.reference, "--json"]) == 0
    changes = {
        (row["where"], row["what"]): (row["old"], row["new"])
        for row in json.loads(capsys.readouterr().out)["changes"]
    }
    assert changes[("manifest", "licence")] == ('"MIT"', '"CC0-1.0"')
    assert changes[("voice.json", "audio.rate")] == ("16000", "22050")
    assert changes[("a.onnx", "")] == ("1 byte", "not there")
    assert changes[("b.onnx", "")] == ("not there", "1 byte")
    assert not any(where == "same.txt" for where, _ in changes)
    assert main(["voices", "diff", old.reference, new.reference]) == 0
    assert "audio.rate" in capsys.readouterr().out
    assert main(["voices", "diff", "joe", "joe"]) == 0
    assert "hold the same" in capsys.readouterr().out


def test_verify_names_what_is_damaged_and_aliases_that_hang(
    versions: list[Version], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = versions
    assert main(["voices", "verify", "--all"]) == 0
    assert "none" in capsys.readouterr().out
    registry = Registry(Store.open(str(tmp_path / "store")))
    registry.move_alias("voices", "joe", "production", old.id)
    registry.delete(old)
    registry.store.write(f"{new.prefix}/voice.json", b"{}")
    with pytest.raises(CorruptObjectError, match="2 of 2"):
        main(["voices", "verify", "--all", "--json"])
    problems = {each["reference"]: each["problems"] for each in json.loads(capsys.readouterr().out)}
    assert "does not match its manifest" in problems[new.reference][0]
    assert old.id in problems["joe@production"][0]
    with pytest.raises(UserError, match="--all"):
        main(["voices", "verify"])


def test_copy_brings_a_voice_with_its_model_and_alias(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VITS_STORE", str(tmp_path / "store"))
    registry = Registry(Store.open(str(tmp_path / "store")))
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "w").write_bytes(b"weights")
    described: dict[str, Any] = {"licence": "MIT", "sources": [], "consent": None}
    model = registry.publish("models", "joe", folder, lineage={"base": "facebook/mms"}, **described)
    lineage: dict[str, Any] = {"model": {"name": "joe", "version": model.id}}
    voice = registry.publish("voices", "joe", folder, lineage=lineage, **described)
    other = str(tmp_path / "other")
    assert main(["voices", "copy", "joe", other, "--alias", "production", "--with-lineage", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [each["copied"] for each in answer["versions"]] == [True, True]
    target = Registry(Store.open(other))
    assert target.resolve("voices", "joe@production") == voice
    assert target.resolve("models", model.reference) == model
    target.fetch(voice)
    assert main(["voices", "copy", "joe", other]) == 0
    assert "was already in" in capsys.readouterr().out
    with pytest.raises(UserError, match="is the store that it would be copied from"):
        main(["voices", "copy", "joe", str(tmp_path / "store")])


def test_an_interrupted_copy_goes_on_and_shows_nothing_before(
    versions: list[Version], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Store.open(str(tmp_path / "other"))
    (tmp_path / "two").mkdir()
    for name in "ab":
        (tmp_path / "two" / name).write_bytes(name.encode() * 1000)
    source = Registry(Store.open(str(tmp_path / "store")))
    version = source.publish(
        "voices", "two", tmp_path / "two", licence="MIT", sources=[], consent=None, lineage={}
    )
    sent: list[str] = []
    upload = Store.upload_pieces

    def once(self: Store, path: str, pieces: Iterator[bytes]) -> Digest:
        if sent == [f"{version.prefix}/a"]:
            sent.append("broken")
            raise StoreError("connection reset")
        sent.append(path)
        return upload(self, path, pieces)

    monkeypatch.setattr(Store, "upload_pieces", once)
    with pytest.raises(StoreError, match="reset"):
        copy_version(source.store, version, Registry(other))
    assert Registry(other).names("voices") == []
    assert copy_version(source.store, version, Registry(other))
    assert sent == [f"{version.prefix}/a", "broken", f"{version.prefix}/b"]
    Registry(other).fetch(Registry(other).resolve("voices", "two"))


def test_gc_says_what_would_go_and_then_deletes_it(
    versions: list[Version], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, _ = versions
    later = now() + timedelta(days=2)
    assert main(["voices", "gc", "--keep", "1"]) == 0
    assert "nothing to collect" in capsys.readouterr().out
    monkeypatch.setattr("shared.collection.now", lambda: later)
    assert main(["voices", "gc", "--keep", "1", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert old.prefix in out
    assert "kB would be freed" in out
    assert main(["voices", "gc", "--keep", "1", "--json"]) == 0
    assert [each["deleted"] for each in json.loads(capsys.readouterr().out)] == [True]
    with pytest.raises(NotFoundError):
        main(["voices", "show", old.reference])


def test_delete_wants_to_be_sure(
    versions: list[Version], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = versions
    main(["voices", "promote", new.reference, "production"])
    with pytest.raises(UserError, match="may be another version tomorrow"):
        main(["voices", "delete", "joe", "--yes"])
    with pytest.raises(UserError, match="joe@production points to"):
        main(["voices", "delete", new.reference, "--yes"])
    with pytest.raises(UserError, match="--dry-run first"):
        main(["voices", "delete", old.reference])
    assert main(["voices", "delete", old.reference, "--dry-run"]) == 0
    assert "would be deleted" in capsys.readouterr().out
    assert main(["voices", "show", old.reference]) == 0
    assert main(["voices", "delete", old.reference, "--yes"]) == 0
    with pytest.raises(NotFoundError):
        main(["voices", "show", old.reference])


@pytest.fixture
def generations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Version]:
    """A model, one that was made from it, and that one's voice."""
    monkeypatch.setenv("VITS_STORE", str(tmp_path / "store"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    registry = Registry(Store.open(str(tmp_path / "store")))

    def publish(kind: Kind, **lineage: Any) -> Version:
        return registry.publish(
            kind, "ana", tmp_path / "folder", licence="MIT", sources=[], consent=None, lineage=lineage
        )

    base = publish("models", dataset="ana.csv")
    child = publish("models", base=base.reference, dataset="more.csv")
    return [base, child, publish("voices", model={"name": "ana", "version": child.id})]


def test_a_version_from_which_something_comes_is_not_deleted(
    generations: list[Version], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A purge finds it by that version."""
    base, child, voice = generations
    for options in (["--yes"], ["--dry-run"]):
        with pytest.raises(UserError, match=rf"{base.reference} stays.*consent: {child.prefix}\. Delete"):
            main(["models", "delete", base.reference, *options])
    with pytest.raises(UserError, match=rf"{child.reference} stays.*{voice.prefix}"):
        main(["models", "delete", base.reference, child.reference, "--yes"])
    (tmp_path / "state").mkdir()
    state = {"base": child.reference, "global_step": 1, "max_steps": 2}
    (tmp_path / "state" / TRAINER_FILE).write_text(json.dumps(state))
    Run.acquire(Store.open(str(tmp_path / "store")), "further").save_checkpoint(1, tmp_path / "state")
    assert main(["voices", "delete", voice.reference, "--yes"]) == 0
    with pytest.raises(UserError, match=r"runs/further.*gc"):
        main(["models", "delete", child.reference, "--yes"])
    assert main(["models", "show", child.reference]) == 0


def test_a_family_is_deleted_at_once_the_youngest_first(generations: list[Version]) -> None:
    base, child, voice = generations
    assert main(["voices", "delete", voice.reference, "--yes"]) == 0
    assert main(["models", "delete", base.reference, child.reference, "--yes"]) == 0
    with pytest.raises(NotFoundError):
        main(["models", "show", "ana"])


def test_what_is_made_from_a_version_while_delete_asks_keeps_it(
    generations: list[Version], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, child, voice = generations
    assert main(["voices", "delete", voice.reference, "--yes"]) == 0
    registry = Registry(Store.open(str(tmp_path / "store")))

    def meanwhile(*_: object) -> None:
        lineage: dict[str, Any] = {"model": {"name": "ana", "version": child.id}}
        registry.publish(
            "voices", "new", tmp_path / "folder", licence="MIT", sources=[], consent=None, lineage=lineage
        )

    monkeypatch.setattr("services.store_upkeep._ask", meanwhile)
    with pytest.raises(UserError, match=rf"{child.reference} stays.*voices/new"):
        main(["models", "delete", child.reference])
    assert main(["models", "show", child.reference]) == 0


def test_a_purge_by_a_version_that_is_gone_is_shown_and_recorded(
    generations: list[Version], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, child, voice = generations
    Registry(Store.open(str(tmp_path / "store"))).delete(base)
    assert main(["models", "delete", "--purge", "--dataset", "more.csv", "--dry-run"]) == 0
    assert main(["models", "delete", base.reference, "--purge", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "not there any more; what was made from it goes" in out
    assert main(["models", "delete", base.reference, "--purge", "--reason", "letter", "--yes", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["gone"] == [base.prefix]
    assert {each["reference"] for each in answer["versions"]} == {child.reference, voice.reference}
    record = json.loads(Path(answer["audit"][0].removeprefix("file://")).read_text())
    assert base.id in {each["version"] for each in record["versions"]}


def test_a_version_that_is_promoted_while_delete_asks_stays(
    versions: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _ = versions
    monkeypatch.setattr(
        "services.store_upkeep._ask", lambda *_: main(["voices", "promote", old.reference, "production"])
    )
    with pytest.raises(UserError, match="joe@production points to"):
        main(["voices", "delete", old.reference])
    assert main(["voices", "show", "joe@production"]) == 0


def test_a_copy_that_was_collected_meanwhile_does_not_become_visible(
    versions: list[Version], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _ = versions
    target = Registry(Store.open(str(tmp_path / "other")))
    upload = Store.upload_pieces

    def then_collected(store: Store, path: str, pieces: Iterator[bytes]) -> Digest:
        digest = upload(store, path, pieces)
        target.remove_leftovers(old.prefix)
        return digest

    source = Store.open(str(tmp_path / "store"))
    with monkeypatch.context() as slow:
        slow.setattr(Store, "upload_pieces", then_collected)
        with pytest.raises(StoreError, match=r"claim\.json is gone.*copy it again"):
            copy_version(source, old, target)
    assert target.names("voices") == []
    assert copy_version(source, old, target)
    target.fetch(target.resolve("voices", old.reference))


def test_a_purge_is_shown_recorded_and_honest(
    versions: list[Version], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="--reason"):
        main(["voices", "delete", "joe", "--purge"])
    with pytest.raises(UserError, match="say whose"):
        main(["voices", "delete", "--purge", "--dry-run"])
    with pytest.raises(UserError, match="go with --purge"):
        main(["voices", "delete", "--dataset", "x"])
    capsys.readouterr()
    assert main(["voices", "delete", "joe", "--purge", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for part in [
        *(version.prefix for version in versions),
        "Cannot be reached",
        "backups",
        "Nothing was deleted",
    ]:
        assert part in shown
    assert main(["voices", "list"]) == 0
    assert "joe" in capsys.readouterr().out
    assert main(["voices", "delete", "joe", "--purge", "--reason", "letter", "--yes", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["deleted"]
    assert len(answer["audit"]) == 2
    assert answer["datasets"] == []
    assert main(["voices", "list"]) == 0
    assert "holds no voices" in capsys.readouterr().out


def test_a_purge_that_goes_on_says_so(
    versions: list[Version], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["voices", "delete", "joe", "--purge"]
    create = Store.create

    def breaks(store: Store, path: str, data: bytes, *, nonce: str | None = None) -> None:
        if path.endswith("-done.json"):
            raise StoreError("the store is away")
        create(store, path, data, nonce=nonce)

    with monkeypatch.context() as away:
        away.setattr(Store, "create", breaks)
        with pytest.raises(StoreError, match="away"):
            main([*command, "--reason", "letter", "--yes"])
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == 0
    assert "by the same words" in capsys.readouterr().out
    assert main([*command, "--reason", "letter", "--yes", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (len(answer["begun"]), answer["deleted"]) == (1, True)
    assert sorted(answer["gone"]) == sorted(version.prefix for version in versions)
    with pytest.raises(NotFoundError):
        main([*command, "--dry-run"])


@pytest.mark.parametrize("arguments", [["gc", "--older-than", "soon"], ["gc", "--keep", "0"], ["verifi"]])
def test_options_of_no_known_form_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["voices", *arguments])
