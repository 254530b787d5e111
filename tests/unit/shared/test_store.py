"""The store, over a real folder, memory, and a small S3 server that can misbehave."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from obstore.exceptions import GenericError
from obstore.store import S3Store

import shared.store
from shared.errors import AlreadyExistsError, NotFoundError, StoreError, UserError
from shared.store import CHUNK_BYTES, FIRST_PAUSE, LONGEST_PAUSE, Store, default_store_url, digest_file


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store.open("memory://" if request.param == "memory" else (tmp_path / "store").as_uri())


# ---------------------------------------------------------------------- addresses


def test_relative_and_plain_addresses_are_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ["file://./a b", "a b", "./a b", str(tmp_path / "a b"), f"file://{tmp_path}/a%20b"]:
        store = Store.open(url)
        assert store.root == tmp_path / "a b"
        assert store.url == f"file://{tmp_path}/a%20b"
    Store.open("a b").write("x/y", b"1")
    assert (tmp_path / "a b" / "x" / "y").read_bytes() == b"1"


def test_the_default_address_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITS_STORE", raising=False)
    assert default_store_url() == "file://./store"
    monkeypatch.setenv("VITS_STORE", "s3://bucket/prefix")
    assert default_store_url() == "s3://bucket/prefix"


@pytest.mark.parametrize("url", ["file://store", "file://", "", "ftp://host/x", "http://host/x", "s3://"])
def test_an_address_of_no_known_form_is_refused_with_the_forms(url: str) -> None:
    with pytest.raises(UserError, match=r"file://\./"):
        Store.open(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@bucket/prefix",
        "gs://x@bucket/p",
        "az://c/p?sig=secret",
        "s3://bucket/p?key=secret",
        "s3:/key:secret@bucket/prefix",
    ],
)
def test_an_address_with_a_secret_in_it_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(UserError, match="carries no credentials") as caught:
        Store.open(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("s3:/bucket/x", "s3://bucket/x"),
        ("s3:bucket", "s3://bucket"),
        ("S3:/bucket", "s3://bucket"),
        ("s3//bucket/x", "s3://bucket/x"),
        ("s3:", "s3://bucket/prefix"),
        ("gs:/bucket/x", "gs://bucket/x"),
        ("az:container", "az://container"),
        ("file:/tmp/x", "file:///tmp/x"),
        ("file:x", "file://./x"),
        ("file:../x", "file://../x"),
        ("file:", "file://./store"),
        ("memory:x", "memory://x"),
    ],
)
def test_a_mistyped_address_is_not_taken_for_a_folder(url: str, meant: str) -> None:
    with pytest.raises(UserError, match=r"is not the address of a store") as caught:
        Store.open(url)
    assert f"did you mean {meant}? (A folder of that name is ./{url})" in str(caught.value)


def test_folders_that_are_called_like_schemes_are_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ["./s3:/x", "s3", "s3/x", "s3x:/x", "files:x", "./file:x"]:
        assert Store.open(name).root == tmp_path / name


def test_an_address_without_a_bucket_is_the_user_s_error() -> None:
    with pytest.raises(UserError, match=r"'s3:///x' names no bucket: write s3://bucket/x"):
        Store.open("s3:///x")


def test_buckets_of_every_provider_are_opened_with_what_their_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(StoreError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        Store.open("az://container/prefix")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    for url in ("s3://bucket/prefix", "gs://bucket/prefix", "az://container/prefix"):
        assert Store.open(url).url == Store.open(f"{url}/").url == url


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("not a folder")
    with pytest.raises(StoreError, match=f"{tmp_path}/store cannot hold a store"):
        Store.open(str(tmp_path / "store"))


def test_only_a_write_makes_the_folder(tmp_path: Path) -> None:
    store, other = Store.open(str(tmp_path / "a" / "store")), Store.open(str(tmp_path / "a" / "store"))
    assert store.list("") == []
    assert not store.exists("x")
    store.delete("x")
    with pytest.raises(NotFoundError, match="store/x does not exist"):
        store.read("x")
    assert store.lack("models") == f"{store.url} holds no models: there is no folder {tmp_path}/a/store yet"
    assert list(tmp_path.iterdir()) == []
    store.create("x", b"1")
    assert other.read("x") == store.read("x") == b"1"
    assert store.lack("models") == f"{store.url} holds no models yet"


def test_a_folder_that_cannot_be_made_is_named_by_the_first_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match=f"{tmp_path}/file/store cannot hold a store"):
        Store.open(str(tmp_path / "file" / "store")).write("x", b"1")


def test_named_memory_is_shared_and_unnamed_is_private() -> None:
    Store.open("memory://test-shared").write("x", b"1")
    assert Store.open("memory://test-shared").read("x") == b"1"
    assert Store.open("memory://test-other").list("") == []
    Store.open("memory://").write("x", b"1")
    assert Store.open("memory://").list("") == []


# ---------------------------------------------------------------------- small objects


def test_write_read_replace_delete(store: Store) -> None:
    store.write("a/b.json", b"1")
    store.write("a/b.json", b"22")
    assert store.read("a/b.json") == b"22"
    assert store.size("a/b.json") == 2
    assert store.exists("a/b.json")
    store.delete("a/b.json")
    store.delete("a/b.json")
    assert not store.exists("a/b.json")
    with pytest.raises(NotFoundError, match=f"{store.url}/a/b.json does not exist"):
        store.read("a/b.json")


def test_listing_is_sorted_and_goes_by_whole_segments(store: Store) -> None:
    for path in ["a/c", "a/b/d", "ab/x", "a/a"]:
        store.write(path, path.encode())
    assert [item.path for item in store.list("a")] == ["a/a", "a/b/d", "a/c"]
    assert [item.size for item in store.list("a")] == [3, 5, 3]
    assert [item.path for item in store.list("")] == ["a/a", "a/b/d", "a/c", "ab/x"]
    assert store.list("nothing") == []


@pytest.mark.parametrize("path", ["../x", "a/../../x", "a//b", "a/./b"])
def test_a_path_that_climbs_out_is_refused(store: Store, path: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        store.write(path, b"1")
    assert not (tmp_path / "x").exists()


def test_create_keeps_what_is_there(store: Store) -> None:
    store.create("x", b"first")
    with pytest.raises(AlreadyExistsError, match=f"{store.url}/x exists already"):
        store.create("x", b"second")
    with pytest.raises(AlreadyExistsError):
        store.create("x", b"first")
    assert store.read("x") == b"first"


def test_of_many_creators_exactly_one_wins(store: Store) -> None:
    start = threading.Barrier(16)

    def attempt(writer: int) -> bool:
        start.wait()
        try:
            store.create("a/b/x", f"writer {writer}".encode(), nonce=f"writer {writer}")
        except AlreadyExistsError:
            return False
        return True

    for _ in range(10):
        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(attempt, range(16)))
        assert won.count(True) == 1
        assert store.read("a/b/x") == f"writer {won.index(True)}".encode()
        store.delete("a/b/x")


class LostReply(Store):
    """Writes, then fails as if the connection had broken before the answer came."""

    error: Exception = StoreError("connection reset")

    def _create_once(self, path: str, data: bytes) -> None:
        super()._create_once(path, data)
        raise self.error


@pytest.mark.parametrize(
    "error", [StoreError("connection reset"), AlreadyExistsError("retried by the client")]
)
def test_a_lost_reply_is_resolved_by_the_nonce(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LostReply, "error", error)
    store = LostReply.open("memory://")
    store.create("x", b"mine, 1234", nonce="1234")
    assert store.read("x") == b"mine, 1234"
    with pytest.raises(type(error)):
        store.create("y", b"no nonce, so nobody can tell whose it is")
    other = Store(store._client, store.url)
    with pytest.raises(AlreadyExistsError):
        other.create("x", b"theirs, 5678", nonce="5678")
    with pytest.raises(ValueError, match="nonce"):
        store.create("z", b"data", nonce="absent")


# ---------------------------------------------------------------------- pauses


class OftenAway(Store):
    """Breaks off ten times before it creates anything."""

    broken = 0

    def _create_once(self, path: str, data: bytes) -> None:
        self.broken += 1
        if self.broken <= 10:
            raise StoreError("connection reset") from GenericError("connection reset")
        super()._create_once(path, data)


def pauses(seed: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long a client waits before each of its attempts, and its library before the first, by a random source."""
    taken: list[float] = []
    with monkeypatch.context() as patched:
        patched.setattr(shared.store, "random", random.Random(seed))  # noqa: S311
        patched.setattr("shared.store.time.sleep", taken.append)
        OftenAway.open("memory://").create("x", b"nonce", nonce="nonce")
        library = Store.open("s3://bucket")._client
    assert isinstance(library, S3Store)
    assert library.retry_config
    return [*taken, library.retry_config["backoff"]["init_backoff"].total_seconds()]


def test_pauses_grow_and_no_two_clients_have_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = pauses(1, monkeypatch), pauses(2, monkeypatch)
    longest = [*(min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE) for attempt in range(10)), FIRST_PAUSE]
    for taken in (one, other):
        assert all(most / 2 <= pause <= most for pause, most in zip(taken, longest, strict=True))
    assert not set(one) & set(other)


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 2000, 12_345])
def test_files_of_any_size_come_back_whole(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(shared.store, "CHUNK_BYTES", 1000)
    data = bytes(i * i % 251 for i in range(size))
    (tmp_path / "in").write_bytes(data)
    expected = (size, hashlib.sha256(data).hexdigest())
    seen: list[tuple[int, int]] = []
    assert digest_file(tmp_path / "in") == expected
    assert store.upload("d/x", tmp_path / "in") == expected
    assert store.download("d/x", tmp_path / "out" / "x", progress=lambda *now: seen.append(now)) == expected
    assert (tmp_path / "out" / "x").read_bytes() == data
    assert seen == [(min(done, size), size) for done in range(1000, size + 1000, 1000)]


def test_an_upload_reports_what_it_sent_not_what_the_file_became(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared.store, "CHUNK_BYTES", 1000)
    source = tmp_path / "in"
    source.write_bytes(b"a" * 5000)
    digest = store.upload("x", source)
    source.write_bytes(b"b" * 5000)
    assert digest.sha256 == hashlib.sha256(store.read("x")).hexdigest()


@pytest.mark.parametrize("name", ["missing", "folder"])
def test_an_upload_of_something_unreadable_names_it(store: Store, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"{tmp_path}/{name} cannot be read"):
        store.upload("x", tmp_path / name)


class FailsLater(Store):
    """Serves the first range of an object only."""

    def _read_range(self, path: str, start: int, length: int) -> bytes:
        if start:
            raise StoreError("connection reset")
        return super()._read_range(path, start, length)


def test_a_failed_download_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared.store, "CHUNK_BYTES", 1000)
    store = FailsLater.open("memory://")
    store.write("x", b"n" * 5000)
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(StoreError, match="reset"):
        store.download("x", tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_a_killed_upload_to_a_folder_shows_nothing(tmp_path: Path) -> None:
    """The file is a pipe, so that the writer is certainly in the middle of it when it is killed."""
    os.mkfifo(tmp_path / "pipe")
    store = Store.open(str(tmp_path / "store"))
    code = """
import pathlib, sys
from shared.store import Store
Store.open(sys.argv[1]).upload("d/x", pathlib.Path(sys.argv[2]))
"""
    writer = subprocess.Popen(
        [sys.executable, "-c", code, store.url, str(tmp_path / "pipe")], env=environment()
    )
    with (tmp_path / "pipe").open("wb", buffering=0) as pipe:
        for _ in range(CHUNK_BYTES * 6 // 65536):
            pipe.write(b"x" * 65536)
        assert writer.poll() is None
        writer.kill()
        writer.wait()
    half = list((tmp_path / "store" / "d").iterdir())
    assert half, "the test must catch the writer with part of its file on the disk"
    assert store.list("") == []
    assert not store.exists("d/x")
    (tmp_path / "small").write_bytes(b"whole")
    store.upload("d/x", tmp_path / "small")
    assert [item.path for item in store.list("")] == ["d/x"]
    assert store.read("d/x") == b"whole"


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(shared.store.__file__).parents[1])}


# ---------------------------------------------------------------------- over HTTP


class S3Handler(BaseHTTPRequestHandler):
    """As much of S3 as the tests need, kept in ``server.objects``; ``server.faults`` are answered first."""

    server: S3Server

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.signed_by = self.headers["Authorization"]
        exists = self.path in self.server.objects
        conditional = self.headers.get("If-None-Match") == "*"
        if not (conditional and exists):
            self.server.objects[self.path] = data
        if self.server.faults:
            self.answer(self.server.faults.pop(0))
        else:
            self.answer(412 if conditional and exists else 200)

    def do_GET(self) -> None:
        if self.server.faults:
            self.answer(self.server.faults.pop(0))
        elif self.path in self.server.objects:
            self.answer(200, self.server.objects[self.path])
        else:
            self.answer(404)

    def answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"0"')
        self.send_header("Last-Modified", "Sun, 22 Nov 2026 16:00:00 GMT")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class S3Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), S3Handler)
        self.objects: dict[str, bytes] = {}
        self.faults: list[int] = []
        self.signed_by = ""


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with S3Server() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_s3_create_is_conditional(s3: S3Server) -> None:
    store = Store.open("s3://bucket/prefix/")
    assert store.url == "s3://bucket/prefix"
    store.create("a/x", b"first")
    with pytest.raises(AlreadyExistsError, match="s3://bucket/prefix/a/x exists already"):
        store.create("a/x", b"second")
    assert s3.objects == {"/bucket/prefix/a/x": b"first"}
    assert store.read("a/x") == b"first"


def test_s3_create_survives_a_reply_that_is_lost_on_the_way(s3: S3Server) -> None:
    """The server stores the object and answers 503; the client's own retry then finds it there: 412."""
    store = Store.open("s3://bucket")
    s3.faults.append(503)
    with pytest.raises(AlreadyExistsError):
        store.create("without", b"data")
    s3.faults.append(503)
    store.create("with", b"data 1234", nonce="1234")
    assert s3.objects["/bucket/with"] == b"data 1234"


def test_s3_bursts_of_503_are_waited_out(s3: S3Server) -> None:
    store = Store.open("s3://bucket")
    store.write("x", b"1")
    s3.faults += [503, 503]
    assert store.read("x") == b"1"


@pytest.mark.parametrize(
    ("status", "words"), [(403, "access was refused"), (401, "access was refused"), (400, "bucket")]
)
def test_s3_refusals_name_the_object_and_the_remedy(s3: S3Server, status: int, words: str) -> None:
    store = Store.open("s3://bucket")
    s3.faults.append(status)
    with pytest.raises(StoreError, match=words) as caught:
        store.read("a/x")
    message = str(caught.value)
    s3.faults.append(status)
    with pytest.raises(StoreError, match=f"could not list s3://bucket/a: .*{words}"):
        store.list("a")
    assert "could not read s3://bucket/a/x" in message
    assert "AWS_ACCESS_KEY_ID" in message
    assert "very-secret" not in message
    assert "\n" not in message


# ---------------------------------------------------------------------- profiles


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """AWS's file of profiles; the environment names the profile 'speech' and no keys."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_PROFILE", "speech")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_the_keys_of_a_profile_are_used(s3: S3Server, profiles: Path) -> None:
    (profiles / "credentials").write_text(
        "[speech]\naws_access_key_id = of-profile\naws_secret_access_key = s\n"
    )
    Store.open("s3://bucket").write("x", b"1")
    assert "Credential=of-profile/" in s3.signed_by


def test_a_profile_without_keys_is_asked_of_awss_own_command(s3: S3Server, profiles: Path) -> None:
    answer = '{"Version": 1, "AccessKeyId": "temporary", "SecretAccessKey": "s", "SessionToken": "t", '
    answer += '"Expiration": "2100-01-01T00:00:00+00:00"}'
    command = profiles / "aws"
    command.write_text(f"#!{sys.executable}\nprint('{answer}')\n")
    command.chmod(0o755)
    Store.open("s3://bucket").write("x", b"1")
    assert "Credential=temporary/" in s3.signed_by
    command.write_text(f"#!{sys.executable}\nraise SystemExit('The SSO session has expired')\n")
    with pytest.raises(UserError, match=r"'speech'.*has expired.*aws sso login"):
        Store.open("s3://bucket")
    command.unlink()
    with pytest.raises(UserError, match=r"does not answer: install it"):
        Store.open("s3://bucket")
    (profiles / "credentials").write_text("secret words")
    with pytest.raises(UserError, match="not a file of AWS profiles") as caught:
        Store.open("s3://bucket")
    assert "secret words" not in str(caught.value)
