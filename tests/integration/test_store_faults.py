"""The store over a real S3 server, and over a proxy before it that does to it what networks do.

Nothing may be lost, nothing half visible, and every message has to name the object and the remedy.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

import shared.cache
import shared.collection
import shared.store
from shared.collection import Collector, Rules
from shared.copying import copy_version, damage
from shared.errors import AlreadyExistsError, CorruptObjectError, NotFoundError, StoreError
from shared.manifests import new_version_id, now
from shared.registry import Registry, Version
from shared.store import CONCURRENT_CHUNKS, Store
from tests.infra.faulty_proxy import (
    FaultyProxy,
    Handler,
    proxy_before,
    slowly,
    slowly_read,
    times,
    together,
)
from tests.infra.s3_server import S3Server, running

#: S3's smallest part of a multipart upload.
PART = 5 << 20
SHORT = timedelta(seconds=1.5)


@pytest.fixture
def proxy(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The way to the server that the tests' environment names."""
    with proxy_before(s3_server.endpoint) as proxy:
        for name, value in s3_server.environment(proxy.endpoint).items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.fixture
def store(proxy: FaultyProxy, s3_server: S3Server, tmp_path: Path) -> Store:
    """A prefix of the test's own."""
    return Store.open(f"s3://{s3_server.bucket}/{tmp_path.name}", patience=SHORT)


@pytest.fixture
def registry(store: Store, tmp_path: Path) -> Registry:
    return Registry(store, tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "voice"
    (folder / "fp32").mkdir(parents=True)
    (folder / "voice.json").write_text("{}")
    (folder / "fp32" / "decoder.onnx").write_bytes(bytes(range(256)) * 400)
    return folder


def publish(registry: Registry, folder: Path) -> Version:
    return registry.publish("voices", "joe", folder, licence="MIT", sources=[], consent=None, lineage={})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def to(method: str, words: str = "") -> Callable[[Handler], bool]:
    return lambda handler: handler.command == method and words in handler.path


def reset(handler: Handler) -> None:
    handler.reset()


def reset_in_the_middle(handler: Handler) -> None:
    handler.rfile.read(int(handler.headers["Content-Length"]) // 2)
    handler.reset()


def unavailable(handler: Handler) -> None:
    handler.refuse(503)


def deaf(handler: Handler) -> None:
    """The server does what it is asked, and the connection breaks before it can say so."""
    handler.ask()
    handler.reset()


def answer_in_half(handler: Handler) -> None:
    """The server does what it is asked, and the connection breaks before it has said all of it."""
    answer, content = handler.ask()
    handler.send_response(answer.status)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.reset()


# ---------------------------------------------------------------------- the server itself


def test_the_server_keeps_what_the_registry_relies_on(registry: Registry, folder: Path) -> None:
    version = publish(registry, folder)
    registry.move_alias("voices", "joe", "production", version.id)
    assert contents(registry.fetch(registry.resolve("voices", "joe@production"))) == contents(folder)
    with pytest.raises(AlreadyExistsError, match="exists already"):
        registry.store.create(f"{version.prefix}/manifest.json", b"another")


def test_a_large_file_goes_in_parts_and_comes_in_pieces(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared.store, "CHUNK_BYTES", PART)
    (tmp_path / "large").write_bytes(b"0123456789abcdef" * ((2 * PART + 1000) // 16))
    sent = store.upload("large", tmp_path / "large")
    seen: list[tuple[int, int]] = []
    assert store.download("large", tmp_path / "back", progress=lambda *at: seen.append(at)) == sent
    assert (tmp_path / "back").read_bytes() == (tmp_path / "large").read_bytes()
    assert [done for done, _ in seen] == [PART, 2 * PART, sent.bytes]


def test_pieces_of_a_file_are_on_their_way_at_once(
    store: Store, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every one of them waits at the proxy for the others."""
    monkeypatch.setattr(shared.store, "CHUNK_BYTES", PART)
    (tmp_path / "large").write_bytes(bytes(PART * CONCURRENT_CHUNKS))
    proxy.faults.append(together(CONCURRENT_CHUNKS, to("PUT", "partNumber")))
    sent = store.upload("large", tmp_path / "large")
    proxy.faults[:] = [together(CONCURRENT_CHUNKS, to("GET", "large"))]
    assert store.download("large", tmp_path / "back") == sent
    for words in ("PUT", "GET"):
        assert len([line for line in proxy.requests if line.startswith(words)]) == CONCURRENT_CHUNKS


# ---------------------------------------------------------------------- connections


@pytest.mark.parametrize("file", ["claim.json", "decoder.onnx", "manifest.json"])
def test_a_reset_in_mid_upload_is_mended_where_it_passes(
    registry: Registry, proxy: FaultyProxy, folder: Path, file: str
) -> None:
    proxy.faults.append(times(2, to("PUT", file), reset_in_the_middle))
    version = publish(registry, folder)
    assert len([line for line in proxy.requests if line.startswith("PUT") and file in line]) == 3
    assert damage(registry.store, version) == []
    assert registry.versions("voices", "joe") == [version.id]


@pytest.mark.parametrize("file", ["claim.json", "voice.json", "decoder.onnx", "manifest.json"])
def test_an_upload_that_keeps_being_reset_leaves_nothing_to_be_seen(
    registry: Registry, proxy: FaultyProxy, folder: Path, file: str
) -> None:
    old = publish(registry, folder)
    fault = times(99, to("PUT", file), reset_in_the_middle)
    proxy.faults.append(fault)
    with pytest.raises(StoreError, match=rf"could not \w+ s3://voices/.*{file}: .*") as caught:
        publish(registry, folder)
    assert "AWS_ACCESS_KEY_ID" in str(caught.value)
    assert registry.versions("voices", "joe") == [old.id]
    proxy.faults.clear()
    assert registry.resolve("voices", "joe") == old
    new = publish(registry, folder)
    assert registry.resolve("voices", "joe") == new
    assert contents(registry.fetch(new)) == contents(folder)


def test_a_reset_part_of_a_large_upload_is_sent_again(
    store: Store, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared.store, "CHUNK_BYTES", PART)
    (tmp_path / "large").write_bytes(b"0123456789abcdef" * (2 * PART // 16))
    proxy.faults.append(times(1, to("PUT", "partNumber=2"), reset_in_the_middle))
    sent = store.upload("large", tmp_path / "large")
    assert store.download("large", tmp_path / "back") == sent
    proxy.faults.append(times(99, to("PUT", "partNumber=2"), reset_in_the_middle))
    with pytest.raises(StoreError, match=r"could not write s3://voices/.*/other"):
        store.upload("other", tmp_path / "large")
    assert not store.exists("other")


def test_an_answer_that_is_lost_does_not_publish_or_promote_twice(
    registry: Registry, proxy: FaultyProxy, folder: Path
) -> None:
    for words in ("claim.json", "manifest.json", "aliases/"):
        proxy.faults.append(times(1, to("PUT", words), deaf))
    version = publish(registry, folder)
    registry.move_alias("voices", "joe", "production", version.id)
    assert registry.versions("voices", "joe") == [version.id]
    assert [move.version for move in registry.history("voices", "joe", "production")] == [version.id]


def test_an_answer_that_is_lost_at_the_end_of_a_large_upload_does_no_harm(
    store: Store, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared.store, "CHUNK_BYTES", PART)
    (tmp_path / "large").write_bytes(b"0123456789abcdef" * (2 * PART // 16))
    proxy.faults.append(times(1, to("POST", "uploadId"), deaf))
    sent = store.upload("large", tmp_path / "large")
    assert store.download("large", tmp_path / "back") == sent
    assert len([line for line in proxy.requests if line.startswith("POST") and "uploadId" in line]) == 2


@pytest.mark.parametrize(
    ("where", "fault", "parts"),
    [(to("PUT", "partNumber=2"), reset_in_the_middle, 3), (to("POST", "uploadId"), answer_in_half, 0)],
    ids=["a part", "the last answer"],
)
def test_a_copy_that_breaks_off_goes_on_with_what_it_lacks(
    registry: Registry,
    proxy: FaultyProxy,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: Callable[[Handler], bool],
    fault: Callable[[Handler], None],
    parts: int,
) -> None:
    """In a file's second part, or when the file is there and only the word of it is not."""
    monkeypatch.setattr(shared.store, "CHUNK_BYTES", PART)
    (folder / "weights").write_bytes(b"0123456789abcdef" * (5 * PART // 2 // 16))
    source = Registry(Store.open(str(tmp_path / "source")))
    version = publish(source, folder)
    proxy.faults.append(times(99, where, fault))
    with pytest.raises(StoreError, match=rf"could not write s3://voices/.*{version.prefix}/weights: .*"):
        copy_version(source.store, version, registry)
    assert registry.names("voices") == []
    proxy.faults.clear()
    before = len(proxy.requests)
    assert copy_version(source.store, version, registry)
    again = [line for line in proxy.requests[before:] if line.startswith("PUT")]
    assert len([line for line in again if "weights" in line and "partNumber" in line]) == parts
    assert not [line for line in again if "voice.json" in line or "decoder.onnx" in line]
    assert contents(registry.fetch(registry.resolve("voices", version.reference))) == contents(folder)


def test_bursts_of_503_are_waited_out_and_lasting_ones_explained(
    registry: Registry, proxy: FaultyProxy, folder: Path
) -> None:
    for method in ("PUT", "GET", "HEAD"):
        proxy.faults.append(times(2, to(method), unavailable))
    version = publish(registry, folder)
    assert contents(registry.fetch(version)) == contents(folder)
    proxy.faults[:] = [times(999, lambda _: True, unavailable)]
    with pytest.raises(
        StoreError, match=r"could not read s3://voices/.*manifest\.json: .*503.*the service answers"
    ):
        registry.resolve("voices", version.reference)


@pytest.fixture
def strict(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The same store, whose client gives up what is silent for less than the links below take for a file."""
    monkeypatch.setattr(shared.store, "READ_TIMEOUT", timedelta(seconds=0.4))
    return Store.open(store.url, patience=timedelta(seconds=20))


def test_a_slow_link_only_takes_time(
    registry: Registry, strict: Store, proxy: FaultyProxy, folder: Path, tmp_path: Path
) -> None:
    version = publish(registry, folder)
    proxy.send = slowly(80_000)
    seen: list[int] = []
    Registry(strict, tmp_path / "cache").fetch(version, progress=lambda done, _: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] == version.manifest.total_bytes


def test_an_upload_over_a_slow_link_only_takes_time(
    strict: Store, proxy: FaultyProxy, folder: Path, tmp_path: Path
) -> None:
    proxy.receive = slowly_read(80_000)
    seen: list[int] = []
    version = Registry(strict, tmp_path / "cache").publish(
        "voices",
        "joe",
        folder,
        licence="MIT",
        sources=[],
        consent=None,
        lineage={},
        progress=lambda done, _: seen.append(done),
    )
    assert seen == sorted(seen)
    assert seen[-1] == version.manifest.total_bytes
    sent = [line for line in proxy.requests if line.startswith("PUT") and "decoder.onnx" in line]
    assert len(sent) == 1  # it was not given up and sent again
    assert damage(strict, version) == []


@pytest.fixture
def silence(proxy: FaultyProxy) -> Iterator[None]:
    """A server that takes every request, and never says a word."""
    over = threading.Event()

    def silent(handler: Handler) -> bool:
        over.wait()
        handler.reset()
        return True

    proxy.faults.append(silent)
    yield
    over.set()


@pytest.mark.usefixtures("silence")
@pytest.mark.parametrize(
    ("timeout", "act"),
    [
        *(("READ_TIMEOUT", act) for act in ("read", "list", "create", "download")),
        *(("REQUEST_TIMEOUT", act) for act in ("write", "upload")),
    ],
)
def test_a_server_that_falls_silent_is_given_up(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout: str, act: str
) -> None:
    monkeypatch.setattr(shared.store, timeout, timedelta(seconds=0.2))
    monkeypatch.setattr(shared.store, "CHUNK_BYTES", PART)
    (tmp_path / "large").write_bytes(bytes(2 * PART))
    impatient = Store.open(store.url, patience=timedelta(seconds=0.05))
    acts: dict[str, Callable[[], object]] = {
        "read": lambda: impatient.read("voices/x"),
        "list": lambda: impatient.list("voices"),
        "create": lambda: impatient.create("voices/x", b"nonce", nonce="nonce"),
        "write": lambda: impatient.write("voices/x", b"1"),
        "upload": lambda: impatient.upload("voices/x", tmp_path / "large"),
        "download": lambda: impatient.download("voices/x", tmp_path / "back"),
    }
    with pytest.raises(StoreError, match=rf"could not [\w ]+ {store.url}/voices.*the service answers"):
        acts[act]()


def test_an_answer_that_does_not_end_is_given_up(
    store: Store, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("x", bytes(100_000))
    proxy.send = slowly(50_000)
    monkeypatch.setattr(shared.store, "REQUEST_TIMEOUT", timedelta(seconds=0.3))
    with pytest.raises(StoreError, match=rf"could not read {store.url}/x: .*the service answers"):
        Store.open(store.url, patience=timedelta(seconds=0.05)).read("x")


def test_a_reader_cut_off_goes_on_in_its_next_attempt(
    registry: Registry, proxy: FaultyProxy, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared.store, "CHUNK_BYTES", 10_000)
    monkeypatch.setattr(shared.store, "CONCURRENT_CHUNKS", 1)
    version = publish_whole(registry, folder, monkeypatch)
    ranges: list[str] = []

    def late(handler: Handler) -> bool:
        ranges.append(handler.headers.get("Range", ""))
        return handler.command == "GET" and len(ranges) > 5

    proxy.faults.append(times(99, late, reset))
    with pytest.raises(StoreError, match=r"decoder\.onnx"):
        registry.fetch(version)
    first = [each for each in ranges if each]
    proxy.faults.clear()
    before = len(proxy.requests)
    assert contents(registry.fetch(version)) == contents(folder)
    assert first
    assert len([line for line in proxy.requests[before:] if line.startswith("GET")]) < 12


def publish_whole(registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Version:
    """Published in one piece: parts this small S3 does not take."""
    with monkeypatch.context() as usual:
        usual.setattr(shared.store, "CHUNK_BYTES", 8 << 20)
        return publish(registry, folder)


# ---------------------------------------------------------------------- access


def test_a_server_that_does_not_come_up_fails_the_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Skipped, none of these would ever run again, and nobody would hear of it."""
    monkeypatch.setattr("tests.infra.s3_server.shutil.which", lambda *_, **__: "/bin/false")
    with pytest.raises(pytest.fail.Exception, match="S3 server does not start"), running(tmp_path):
        pass


def test_a_wrong_secret_is_told_from_other_trouble(
    s3_server: S3Server, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment(secret="not-the-secret").items():  # noqa: S106
        monkeypatch.setenv(name, value)
    registry = Registry(Store.open(f"s3://{s3_server.bucket}/x", patience=SHORT), tmp_path)
    for act in (lambda: registry.names("voices"), lambda: publish(registry, folder)):
        with pytest.raises(
            StoreError, match=r"s3://voices/x/voices.*access was refused.*AWS_SECRET"
        ) as caught:
            act()
        assert "not-the-secret" not in str(caught.value)


def test_a_missing_bucket_is_called_missing(
    s3_server: S3Server, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    registry = Registry(Store.open("s3://nowhere/x", patience=SHORT), tmp_path)
    for act in (lambda: registry.names("voices"), lambda: publish(registry, folder)):
        with pytest.raises(StoreError, match=r"s3://nowhere/x/voices.*no such bucket.*Create it"):
            act()


# ---------------------------------------------------------------------- several at once


def test_two_publishers_of_one_id_publish_two_versions(
    registry: Registry, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both draw the same id first."""
    same, lock, drawn = new_version_id(), threading.Lock(), [0]

    def draw() -> str:
        with lock:
            drawn[0] += 1
            return same if drawn[0] <= 2 else new_version_id()

    monkeypatch.setattr("shared.registry.new_version_id", draw)
    start = threading.Barrier(2)

    def one(number: int) -> Version:
        mine = tmp_path / f"mine-{number}"
        mine.mkdir()
        (mine / "weights").write_text(f"of {number}")
        start.wait()
        return publish(registry, mine)

    with ThreadPoolExecutor(2) as pool:
        versions = list(pool.map(one, range(2)))
    assert len({version.id for version in versions}) == 2
    assert same in {version.id for version in versions}
    for number, version in enumerate(versions):
        assert (registry.fetch(version) / "weights").read_text() == f"of {number}"


PROMOTES = """
import sys
from shared.registry import Registry
from shared.store import Store
registry = Registry(Store.open(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(5):
    registry.move_alias("voices", "joe", "production", sys.argv[2])
"""


def test_two_promoters_of_one_alias_lose_no_move(registry: Registry, folder: Path) -> None:
    versions = [publish(registry, folder) for _ in range(2)]
    promoters = [
        subprocess.Popen(
            [sys.executable, "-c", PROMOTES, registry.store.url, version.id],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(shared.store.__file__).parents[1],
        )
        for version in versions
    ]
    for promoter in promoters:
        assert promoter.stdout
        promoter.stdout.readline()
    for promoter in promoters:
        promoter.communicate("go\n")
        assert promoter.returncode == 0
    moves = registry.history("voices", "joe", "production")
    assert [move.sequence for move in moves] == list(range(1, 11))
    assert sorted(move.version for move in moves) == sorted([versions[0].id] * 5 + [versions[1].id] * 5)


def test_readers_of_an_alias_are_never_without_during_a_collection(
    registry: Registry, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aliased: set[str] = set()
    for number in range(5):
        (folder / "voice.json").write_text(f'{{"number": {number}}}')
        version = publish(registry, folder)
        if number < 2:
            registry.move_alias("voices", "joe", "production", version.id)
            aliased.add(version.id)
    kept = aliased | {registry.versions("voices", "joe")[-1]}  # within a second, any may be the newest
    later = now() + timedelta(days=2)
    monkeypatch.setattr(shared.collection, "now", lambda: later)
    stop = threading.Event()
    read: list[bytes] = []

    def reader(number: int) -> None:
        while not stop.is_set() or not read:
            mine = Registry(Store.open(registry.store.url), tmp_path / f"reader-{number}")
            read.append(contents(mine.fetch(mine.resolve("voices", "joe@production")))["voice.json"])

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(reader, number) for number in range(2)]
        collector = Collector(registry, Rules(newest=1))
        try:
            gone = [garbage for garbage in collector.find() if collector.delete(garbage)]
        finally:
            stop.set()
        for future in readers:
            future.result()
    assert len(gone) == 5 - len(kept)
    assert set(read) == {b'{"number": 1}'}
    assert set(registry.versions("voices", "joe")) == kept


def test_a_reader_of_a_version_that_goes_meanwhile_is_told_so(
    registry: Registry, proxy: FaultyProxy, folder: Path
) -> None:
    version = publish(registry, folder)
    registry.delete(version)
    with pytest.raises(NotFoundError, match=rf"{version.reference} was deleted.*Use another version"):
        registry.fetch(version)


def test_a_reader_in_the_middle_of_a_file_that_is_collected_is_told_so_and_uses_nothing_of_it(
    registry: Registry, proxy: FaultyProxy, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = publish_whole(registry, folder, monkeypatch)
    (folder / "voice.json").write_text('{"number": 2}')
    monkeypatch.setattr("shared.registry.new_version_id", lambda: f"{now():%Y}1231T235959-89abcdef")
    new = publish_whole(registry, folder, monkeypatch)
    monkeypatch.setattr(shared.store, "CHUNK_BYTES", 10_000)
    monkeypatch.setattr(shared.store, "CONCURRENT_CHUNKS", 1)
    later = now() + timedelta(days=2)
    monkeypatch.setattr(shared.collection, "now", lambda: later)
    collector = Collector(registry, Rules(newest=1))
    (garbage,) = collector.find()
    pieces, gone = [0], [False]

    def collected_at_the_third_piece(handler: Handler) -> bool:
        if handler.command == "GET" and "decoder.onnx" in handler.path:
            pieces[0] += 1
            if pieces[0] == 3:
                gone[0] = collector.delete(garbage)
        return False

    proxy.faults.append(collected_at_the_third_piece)
    with pytest.raises(NotFoundError, match=rf"{old.reference} was deleted.*Use another version"):
        registry.fetch(old)
    assert gone == [True]
    assert pieces == [3]
    assert not list(registry.cache.rglob("decoder.onnx"))
    assert contents(registry.fetch(registry.resolve("voices", "joe"))) == contents(folder)
    assert registry.versions("voices", "joe") == [new.id]


# ---------------------------------------------------------------------- damage


def test_a_truncated_object_is_named_and_never_used(registry: Registry, folder: Path) -> None:
    version = publish(registry, folder)
    path = f"{version.prefix}/fp32/decoder.onnx"
    registry.store.write(path, (folder / "fp32" / "decoder.onnx").read_bytes()[:1000])
    with pytest.raises(
        CorruptObjectError, match=rf"{path} does not match its manifest: 1000 bytes.*Publish it again"
    ):
        registry.fetch(version)
    assert not list(registry.cache.rglob("decoder.onnx"))
    assert len(damage(registry.store, version)) == 1
    other = Registry(Store.open("memory://"))
    with pytest.raises(CorruptObjectError, match=path):
        copy_version(registry.store, version, other)
    assert other.names("voices") == []


def test_an_answer_cut_short_is_asked_for_again(registry: Registry, proxy: FaultyProxy, folder: Path) -> None:
    version = publish(registry, folder)
    usual = proxy.send
    cut: list[int] = []

    def short(handler: Handler, content: bytes) -> None:
        if len(content) > 10_000 and not cut:
            cut.append(len(content))
            handler.wfile.write(content[:5000])
            handler.reset()
        else:
            usual(handler, content)

    proxy.send = short
    assert contents(registry.fetch(version)) == contents(folder)
    assert cut


def test_a_full_cache_disk_is_told_and_spoils_nothing(
    registry: Registry, folder: Path, tmp_path: Path
) -> None:
    """A real one: a file system of 64 kB in memory."""
    version = publish(registry, folder)
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no small disk can be made here: mounting needs root")
    try:
        with pytest.raises(StoreError, match=rf"{version.prefix} of s3://.*No space left.*VITS_CACHE"):
            Registry(registry.store, disk).fetch(version)
        assert not list(disk.glob("voices/*/*/fp32/*"))
        assert contents(Registry(registry.store, tmp_path / "cache").fetch(version)) == contents(folder)
    finally:
        shared.cache._in_use.clear()
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
