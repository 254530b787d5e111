"""The records: what they refuse, and that their committed schemas say the same."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import CorruptObjectError, UserError
from shared.manifests import (
    RECORDS,
    SCHEMAS,
    Checkpoint,
    Manifest,
    check_name,
    check_path,
    json_schemas,
    new_nonce,
    new_version_id,
    now,
    parse,
    schema_text,
)
from shared.registry import Registry
from shared.runs import Run
from shared.store import Store
from shared.withdrawal import Withdrawals


def manifest(**changes: object) -> dict[str, Any]:
    """A sound manifest as JSON, with some keys changed."""
    record = {
        "schema_version": 1,
        "kind": "models",
        "name": "joe",
        "version": "20260102T030405-89abcdef",
        "nonce": "0" * 32,
        "created": "2026-01-02T03:04:05Z",
        "licence": "CC0-1.0",
        "sources": ["a corpus"],
        "consent": None,
        "lineage": {"run": "joe", "step": 3},
        "files": [{"path": "config.json", "bytes": 2, "sha256": "a" * 64}],
    }
    return {**record, **changes}


def schema(name: str) -> dict[str, Any]:
    return dict(json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", RECORDS)
def test_the_committed_schema_is_current(name: str) -> None:
    generated = json_schemas()[name]
    jsonschema.Draft202012Validator.check_schema(generated)
    committed = (SCHEMAS / f"{name}.json").read_text(encoding="utf-8")
    assert committed == schema_text(generated), "stale: run python -m shared.manifests"


def test_what_is_really_written_satisfies_the_schemas(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    store = Store.open(str(tmp_path / "store"))
    registry = Registry(store)
    version = registry.publish(
        "models",
        "joe",
        tmp_path / "model",
        licence="MIT",
        sources=["corpus"],
        consent="yes",
        lineage={"step": 1},
    )
    registry.move_alias("models", "joe", "latest", version.id)
    Run.acquire(store, "joe").save_checkpoint(7, tmp_path / "model")
    withdrawals = Withdrawals(Registry(store, tmp_path / "cache"))
    other = registry.publish(
        "models", "ana", tmp_path / "model", licence="MIT", sources=[], consent=None, lineage={}
    )
    withdrawals.carry_out(withdrawals.plan("models", [other.reference]), reason="letter")
    record, outcome = sorted((item.path for item in store.list("audit")), key=len)
    written = {
        "claim": f"{version.prefix}/claim.json",
        "manifest": f"{version.prefix}/manifest.json",
        "alias": "aliases/models/joe/latest/0000000001.json",
        "lease": "runs/joe/lease/0000000001.json",
        "checkpoint": "runs/joe/checkpoints/0000000007/manifest.json",
        "withdrawal": record,
        "withdrawal_outcome": outcome,
    }
    assert written.keys() == RECORDS.keys()
    for name, path in written.items():
        data = store.read(path)
        jsonschema.validate(json.loads(data), schema(name))
        assert parse(RECORDS[name], data, path).to_bytes() == data


@pytest.mark.parametrize(
    "changes",
    [
        {"schema_version": 2},
        {"schema_version": "1"},
        {"kind": "runs"},
        {"name": "Joe"},
        {"name": "../joe"},
        {"version": "1"},
        {"nonce": "short"},
        {"created": None},
        {"licence": ""},
        {"licence": None},
        {"sources": "a corpus"},
        {"lineage": []},
        {"surprise": 1},
        {"files": [{"path": "/etc/passwd", "bytes": 2, "sha256": "a" * 64}]},
        {"files": [{"path": "a//b", "bytes": 2, "sha256": "a" * 64}]},
        {"files": [{"path": "a\\b", "bytes": 2, "sha256": "a" * 64}]},
        {"files": [{"path": "a", "bytes": -1, "sha256": "a" * 64}]},
        {"files": [{"path": "a", "bytes": 1, "sha256": "A" * 64}]},
        {"files": [{"path": "a", "bytes": 1, "sha256": "a" * 63}]},
        {"files": [{"path": "a", "bytes": 1}]},
    ],
)
def test_a_damaged_manifest_is_refused_by_class_and_schema(changes: dict[str, object]) -> None:
    jsonschema.validate(manifest(), schema("manifest"))
    damaged = manifest(**changes)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(damaged, schema("manifest"))
    with pytest.raises(CorruptObjectError, match=next(iter(changes))) as caught:
        parse(Manifest, json.dumps(damaged).encode(), "s3://bucket/manifest.json")
    assert "s3://bucket/manifest.json is no manifest" in str(caught.value)


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["../x"], "relative"),
        (["a/../../x"], "relative"),
        (["a", "a"], "twice"),
        (["a", "a/b"], "inside another"),
    ],
)
def test_paths_that_a_schema_cannot_judge_are_refused_too(paths: list[str], words: str) -> None:
    files = [{"path": path, "bytes": 1, "sha256": "a" * 64} for path in paths]
    with pytest.raises(CorruptObjectError, match=words):
        parse(Manifest, json.dumps(manifest(files=files)).encode(), "x")


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"[]", b"\xff\xfe", b"{}"])
def test_what_is_no_record_at_all_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptObjectError, match="x is no manifest"):
        parse(Manifest, data, "x")


def test_a_checkpoint_lists_files() -> None:
    with pytest.raises(ValueError, match="without files"):
        Checkpoint(run="joe", step=1, lease=1, nonce=new_nonce(), created=now(), files=())


@given(st.text(alphabet="aZ09._-+=@,() /\\:#%?*ñ\n\0", max_size=12))
def test_an_accepted_path_stays_inside_and_names_one_file(path: str) -> None:
    try:
        check_path(path)
    except ValueError:
        return
    parts = PurePosixPath(path).parts
    assert "/".join(parts) == path
    assert not {"", ".", "..", "/"} & set(parts)
    assert not set(path) & set("\\:#%?*ñ\n\0")


@pytest.mark.parametrize(
    "path", ["config.json", "int8/decoder.onnx", "a b/c-d_e.1", "model-00001-of-00002.safetensors"]
)
def test_ordinary_paths_are_accepted(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize("name", ["joe", "mms-spa_2.1", "0", "a" * 100])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "Joe", "joe/x", "..", ".joe", "-joe", "josé", "a b", "a" * 101, "joe\n", "joe@x"]
)
def test_bad_names_are_told_what_is_allowed(name: str) -> None:
    with pytest.raises(UserError, match="cannot be a voice: use lowercase letters"):
        check_name(name, "voice")
    with pytest.raises(UserError, match="cannot be an alias: use lowercase letters"):
        check_name(name, "alias")


def test_version_ids_are_distinct_and_in_order_of_time() -> None:
    ids = [new_version_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert [one.partition("-")[0] for one in ids] == sorted(one.partition("-")[0] for one in ids)
