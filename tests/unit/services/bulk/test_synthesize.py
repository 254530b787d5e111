"""``vits synthesize``: everything once, whatever happens in between."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from services.bulk import cli, ray_engine, worker
from services.bulk.job import Job, Shard, shards
from services.bulk.rows import BadRow, Row
from services.bulk.worker import Worker
from services.cli import main
from shared.audio import read_audio
from shared.errors import StoreError
from shared.store import Store
from shared.voice import Voice, VoiceSpec, layout
from tests.unit.services.bulk.conftest import World

ROOT = Path(__file__).parents[4]
TEXTS = [{"id": f"t{number}", "text": f"text {'abcdefghij'[number]}"} for number in range(10)]


def test_every_row_is_spoken_and_listed_in_order(world: World) -> None:
    assert world.run(world.table(*TEXTS)) == 0
    manifest = world.lines("manifest.jsonl")
    assert [record["id"] for record in manifest] == [row["id"] for row in TEXTS]
    assert [record["text"] for record in manifest] == [row["text"] for row in TEXTS]
    for record in manifest:
        audio = read_audio(world.output / record["audio"])
        assert audio.duration_seconds == pytest.approx(record["seconds"], abs=1e-3)
        assert audio.sampling_rate == record["sampling_rate"] == 16000
    summary = json.loads((world.output / "summary.json").read_text())
    assert (summary["rows"], summary["spoken"], summary["bad"]) == (10, 10, 0)
    assert (summary["licence"], summary["sources"]) == ("CC0-1.0", ["nobody"])
    assert world.lines("bad_rows.jsonl") == []
    assert world.engine.rendered == 10


def test_a_second_run_does_nothing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    table = world.table(*TEXTS)
    assert world.run(table) == 0
    before = world.files()
    assert world.run(table, "--json") == 0
    assert world.files() == before
    assert world.engine.rendered == -1, "not even the voice was opened"
    assert json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))["made"] == 0


def test_what_failed_is_gone_on_with(world: World) -> None:
    table = world.table(*TEXTS)
    world.engine.fail_at = 7
    assert world.run(table) == 5
    assert not (world.output / "summary.json").exists()
    made = {name: content for name, content in world.files().items() if name.startswith("audio/")}
    assert 0 < len(made) < 10
    world.engine.fail_at = None
    assert world.run(table) == 0
    assert world.engine.rendered == 10 - len(made), "what was there is not made again"
    after = world.files()
    assert {name: after[name] for name in made} == made, "nor written again"
    assert len(world.lines("manifest.jsonl")) == 10


def test_a_store_that_fails_loses_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    table = world.table(*TEXTS)
    create = Store.create
    count = Counter[str]()

    def failing(store: Store, path: str, data: bytes, **more: Any) -> None:
        count["writes"] += path.startswith("audio/")
        if count["writes"] == 5:
            raise StoreError("the disk is full")
        create(store, path, data, **more)

    monkeypatch.setattr(Store, "create", failing)
    assert world.run(table) == 4
    monkeypatch.setattr(Store, "create", create)
    kept = len([name for name in world.files() if name.startswith("audio/")])
    assert kept > 0
    assert world.run(table) == 0
    assert world.engine.rendered == 10 - kept
    assert len(world.lines("manifest.jsonl")) == 10


#: Speaks the table slowly, in a process that is to be killed.
SLOW_RUN = """
import sys, time
from pathlib import Path
from services.bulk import worker
from services.cli import main
from shared.voice import Voice, VoiceSpec
from tests.unit.shared.voice.conftest import FakeEngine

class Slow(FakeEngine):
    def run(self, graph, inputs):
        time.sleep(0.02)
        return super().run(graph, inputs)

def opening(*, tell, **_):
    tell(1)
    return lambda folder: Voice(VoiceSpec.read(folder), Slow())

worker.Opening = opening
sys.exit(main(["synthesize", *sys.argv[1:]]))
"""


def test_a_killed_run_goes_on(world: World) -> None:
    table = world.table(
        *({"id": f"k{number}", "text": "kill " + chr(97 + number) * 3} for number in range(26))
    )
    options = ["--input", str(table), "--output", str(world.output), "--store", str(world.store)]
    options += ["--format", "wav", "--shard-rows", "4"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, *options], stderr=subprocess.DEVNULL, cwd=ROOT
    )
    try:
        while not list(world.output.glob("audio/*/*.wav")):
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    assert not (world.output / "summary.json").exists()
    left = {
        name: content
        for name, content in world.files().items()
        if name.startswith(("audio/", "shards/")) and "#" not in name
    }
    assert 0 < len(left) < 26
    assert world.run(table) == 0
    after = world.files()
    assert {name: after[name] for name in left} == left, "what was there was not written again"
    audio = [name for name in left if name.startswith("audio/")]
    assert world.engine.rendered == 26 - len(audio), "nor computed again"
    assert len(world.lines("manifest.jsonl")) == 26


def test_two_runs_at_once_write_everything_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    created: Counter[str] = Counter()
    create = Store.create

    def counting(store: Store, path: str, data: bytes, **more: Any) -> None:
        create(store, path, data, **more)
        created[path] += 1

    monkeypatch.setattr(Store, "create", counting)
    table = world.table(*({"text": f"same {'abc'[number % 3]}"} for number in range(12)), *TEXTS)
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(world.run(table))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0, 0]
    assert max(created.values()) == 1
    assert len([path for path in created if path.startswith("audio/")]) == 13, (
        "one file for each different text"
    )
    assert len(world.lines("manifest.jsonl")) == 22


def test_rows_that_cannot_be_spoken_are_listed_and_stop_nothing(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    table = world.table(
        {"id": "good", "text": "hola", "unused": [1, 2]},
        {"id": "mute", "text": "  "},
        {"id": "fast", "text": "hola", "speaking_rate": 40},
        {"id": "seedy", "text": "hola", "seed": 1.5},
        {"id": "vast", "text": "hola", "seed": 10**400},
        {"id": "half", "text": "ho\ud800la"},
        {"id": "half\ud800", "text": "hola"},
        {"id": "stranger", "text": "hola", "speaker": "eva"},
        {"id": "unknown", "text": "你好"},
        {"id": "good", "text": "otra"},
        {"id": "last", "text": "adios", "speaker": "luis", "seed": 3, "speaking_rate": "1.5"},
    )
    table.write_text(table.read_text() + "not json\n[1]\n", encoding="utf-8")
    assert world.run(table) == 0
    assert [record["id"] for record in world.lines("manifest.jsonl")] == ["good", "last"]
    bad = {record["id"]: record["error"] for record in world.lines("bad_rows.jsonl")}
    assert "has no text" in bad["mute"]
    assert "0.25 to 4" in bad["fast"]
    assert "whole number" in bad["seedy"]
    assert "whole number" in bad["vast"]
    assert "surrogate" in bad["half"]
    assert "surrogate" in bad["half\\ud800"]
    assert "no speaker 'eva'" in bad["stranger"]
    assert bad["unknown"]
    assert "earlier row" in bad["good"]
    assert "JSON" in bad["12"]
    assert "JSON object" in bad["13"]
    assert "bad_rows.jsonl says why" in capsys.readouterr().out


def test_an_address_is_everything_that_decides_the_samples() -> None:
    job = Job("s", "o", "ana/1", "fp32", "flac")
    row = Row(1, "a", "hola")
    same = [Row(9, "b", "hola"), Row(1, "a", "hola", speaking_rate=1.0)]
    other_rows = [
        Row(1, "a", "hola."),
        Row(1, "a", "hola", speaker="0"),
        Row(1, "a", "hola", speaking_rate=1.1),
        Row(1, "a", "hola", seed=5),
        Row(1, "a", "hola", language="en"),
        Row(1, "a", "hola", noise_scale=0.1),
        Row(1, "a", "hola", noise_scale_duration=0.1),
    ]
    other_jobs = [
        Job("s", "o", "ana/2", "fp32", "flac"),
        Job("s", "o", "ana/1", "bf16", "flac"),
        Job("s", "o", "ana/1", "fp32", "wav"),
        Job("s", "o", "ana/1", "fp32", "flac", sampling_rate=8000),
    ]
    assert {job.address(one) for one in same} == {job.address(row)}
    different = [job.address(one) for one in other_rows] + [one.address(row) for one in other_jobs]
    assert len({job.address(row), *different}) == 1 + len(different)
    elsewhere = Job("t", "p", "ana/1", "fp32", "flac", threads=3, streams=2)
    assert elsewhere.address(row) == job.address(row), "where it is computed decides nothing"
    assert job.seed(row) == job.seed(same[0])
    assert job.seed(other_rows[3]) == 5


def test_a_longer_table_makes_only_what_is_new(world: World) -> None:
    assert world.run(world.table(*TEXTS[:6])) == 0
    assert world.run(world.table(*TEXTS)) == 0
    assert world.engine.rendered == 4
    assert len(world.lines("manifest.jsonl")) == 10


def test_another_version_of_the_voice_speaks_anew(world: World) -> None:
    table = world.table(*TEXTS[:2])
    assert world.run(table) == 0
    old = {record["audio"] for record in world.lines("manifest.jsonl")}
    reference = world.publish()
    assert world.run(table, "--voice", reference) == 0
    assert old.isdisjoint({record["audio"] for record in world.lines("manifest.jsonl")})


def test_tables_of_every_kind_say_the_same(world: World, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"key": "a", "sentence": 'he said "hola", and left', "seed": 5},
        {"key": "b", "sentence": "two\nlines", "seed": 6},
    ]
    texts = tmp_path / "texts.csv"
    texts.write_text(
        'key,sentence,seed\na,"he said ""hola"", and left",5\nb,"two\nlines",6\n', encoding="utf-8-sig"
    )
    tabs = tmp_path / "texts.tsv"
    tabs.write_text(
        texts.read_text(encoding="utf-8-sig")
        .replace("a,", "a\t", 1)
        .replace("key,sentence,seed", "key\tsentence\tseed")
        .replace('left",5', 'left"\t5')
        .replace('b,"', 'b\t"')
        .replace('lines",6', 'lines"\t6'),
        encoding="utf-8",
    )
    columns = tmp_path / "texts.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), columns)
    read = [list(cli_rows(path)) for path in (texts, tabs, columns, world.table(*rows))]
    assert read[0][0].text == 'he said "hola", and left'
    assert read[0] == read[1] == read[2] == read[3]


def cli_rows(path: Path) -> list[Any]:
    from services.bulk.rows import read_rows

    return list(read_rows(path, {"id": "key", "text": "sentence"}))


def test_rows_of_the_wrong_width_are_bad_rows(tmp_path: Path) -> None:
    from services.bulk.rows import read_rows

    path = tmp_path / "t.csv"
    path.write_text("id,text\na,hola,more\n\nb,adios\n", encoding="utf-8")
    first, second, third = read_rows(path, {})
    assert isinstance(first, BadRow)
    assert "3 columns" in first.reason
    assert isinstance(second, BadRow)
    assert third == Row(3, "b", "adios")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--format", "flacc"], "did you mean 'flac'"),
        (["--format", "opus", "--sampling-rate", "11025"], "opus can have"),
        (["--column", "txt=sentence"], "did you mean 'text'"),
        (["--column", "text=sentence"], "no column 'sentence'"),
        (["--shard-rows", "0"], "--shard-rows is 0"),
        (["--input", "nowhere.csv"], "cannot be read"),
        (["--input", "texts.docx"], ".csv, .tsv, .jsonl or .parquet"),
        (["--voice", "eva"], "eva"),
        (["--variant", "int8"], "no variant 'int8'"),
    ],
)
def test_bad_options(world: World, options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.run(world.table(*TEXTS[:1]), *options) == 2
    assert says in capsys.readouterr().err
    assert not world.output.exists()


def test_an_empty_table_and_one_without_texts(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.run(world.table(name="empty.jsonl")) == 2
    assert "has no rows" in capsys.readouterr().err
    assert world.run(world.table({"sentence": "hola"})) == 2
    error = capsys.readouterr().err
    assert "no column 'text'" in error
    assert "--column text=NAME" in error


def test_shards_hold_their_rows_and_a_key_that_says_which() -> None:
    job = Job("s", "o", "ana/1", "fp32", "flac")
    rows = [Row(number, str(number), f"text {number}") for number in range(1, 8)]
    cut = list(shards(job, rows, 3))
    assert [row for shard in cut for row in shard.rows] == rows
    assert [len(shard.rows) for shard in cut] == [3, 3, 1]
    assert len({shard.key for shard in cut}) == 3
    assert [shard.key for shard in shards(job, rows, 3)] == [shard.key for shard in cut]
    renamed = Shard(job, (rows[0], rows[1], Row(3, "other", "text 3")))
    assert renamed.key != cut[0].key


def test_a_shard_survives_the_way_to_a_ray_worker() -> None:
    job = Job("s", "o", "ana/1", "fp32", "flac")
    shard = Shard(job, (Row(1, "a", "hola", seed=5), BadRow(2, "b", "has no text")))
    assert ray_engine.unpacked(job, ray_engine.packed(shard)) == shard


def test_a_ray_worker_speaks_as_the_local_one(world: World) -> None:
    """The worker that Ray calls, called here as Ray calls it: Ray itself is 491 MB."""
    job = Job(str(world.store), str(world.output), world.publish(), "fp32", "wav")
    shard = Shard(job, tuple(Row(n, str(n), f"text {n}") for n in range(1, 4)))
    answered = ray_engine.RayWorker(asdict(job))({"shard": [ray_engine.packed(shard)]})
    records = json.loads(answered["records"][0])
    assert [record["made"] for record in records] == [True] * 3
    worker = Worker(job)
    again = worker.speak(shard)
    worker.close()
    assert [record["made"] for record in again] == [False] * 3
    assert [record["sha256"] for record in again] == [record["sha256"] for record in records]


class FakeRay(ModuleType):
    """As much of Ray as is used, in this process. What a worker raises comes out as an error of Ray's, as there.

    Attributes:
        breaks: Raised in place of the second shard.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__("ray")
        self.breaks: Exception | None = None
        self.init = lambda **_: None
        self.cluster_resources = lambda: {"CPU": 4.0}
        self.exceptions, self.data = ModuleType("ray.exceptions"), ModuleType("ray.data")
        failed = type("RayError", (Exception,), {})
        vars(self.exceptions).update(RayError=failed, RayTaskError=type("RayTaskError", (failed,), {}))
        vars(self.data).update(
            DataContext=SimpleNamespace(get_current=SimpleNamespace),
            ActorPoolStrategy=SimpleNamespace,
            from_items=self._from_items,
        )
        for module in (self, self.exceptions, self.data):
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def _from_items(self, items: list[dict[str, str]], **_: object) -> SimpleNamespace:
        def map_batches(made: Any, *, fn_constructor_args: tuple[Any, ...], **_: object) -> SimpleNamespace:
            return SimpleNamespace(iter_rows=lambda: rows(partial(made, *fn_constructor_args)))

        def rows(made: Callable[[], Any]) -> Iterator[dict[str, str]]:
            try:
                spoken = made()
            except Exception as error:
                raise self.exceptions.RayError(
                    "The actor died because of an error in its creation"
                ) from error
            for number, item in enumerate(items):
                if number == 1 and self.breaks:
                    raise self.breaks
                try:
                    answer = spoken({"shard": [item["shard"]]})
                except Exception as error:
                    raise self.exceptions.RayTaskError("Traceback of the worker") from error
                yield {"records": answer["records"][0]}

        return SimpleNamespace(map_batches=map_batches)


def test_ray_speaks_a_table_and_tells_what_its_workers_say(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error of a worker is what it would be without Ray, with its own words and exit code."""
    FakeRay(monkeypatch)
    table = world.table(*TEXTS)
    world.engine.fail_at = 7
    assert world.run(table, "--engine", "ray") == 5
    assert "the engine broke" in capsys.readouterr().err
    world.engine.fail_at = None
    assert world.run(table, "--engine", "ray") == 0
    assert [record["id"] for record in world.lines("manifest.jsonl")] == [row["id"] for row in TEXTS]


def test_a_voice_that_a_ray_worker_cannot_have_is_told_as_that(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    FakeRay(monkeypatch)

    def unreachable(*_: object) -> Worker:
        raise StoreError("The store does not answer from this node")

    monkeypatch.setattr(ray_engine, "Worker", unreachable)
    assert world.run(world.table(*TEXTS), "--engine", "ray") == 4
    assert "The store does not answer from this node" in capsys.readouterr().err


def test_a_ray_cluster_that_fails_says_so_and_is_gone_on_with(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = FakeRay(monkeypatch)
    table = world.table(*TEXTS)
    ray.breaks = ray.exceptions.RayError("The node died.\n\tnode_id: 5")
    assert world.run(table, "--engine", "ray") == 5
    said = capsys.readouterr().err
    assert "the Ray cluster failed: The node died. What has been spoken is kept" in said
    ray.breaks = ray.exceptions.RayTaskError("Traceback of a bug")
    with pytest.raises(ray.exceptions.RayTaskError, match="of a bug"):
        world.run(table, "--engine", "ray")
    ray.breaks = None
    assert world.run(table, "--engine", "ray", "--json") == 0
    assert 0 < json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))["made"] < len(TEXTS)


def test_without_ray_the_extra_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert world.run(world.table(*TEXTS[:1]), "--engine", "ray") == 2
    assert "vits-suite[ray]" in capsys.readouterr().err


def test_the_layout_is_remembered_apart_from_the_servers(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A server would not take it: its calls may not be that long."""

    def open_voice(folder: Path, **_: object) -> Voice:
        return Voice(VoiceSpec.read(folder), world.engine)

    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(worker, "Opening", layout.Opening)
    monkeypatch.setattr(layout, "measure", lambda _voice, _streams: (1.0, 0.1))
    monkeypatch.setattr(Voice, "open", open_voice)
    assert world.run(world.table(*TEXTS), "--threads", "2") == 0
    assert list(json.loads((tmp_path / "cache/bulk/layouts.json").read_text()).values()) == [1]


def test_tally_counts(capsys: pytest.CaptureFixture[str]) -> None:
    tally = cli.Tally(4)
    tally.add({"made": True, "seconds": 3600.0})
    tally.add({"made": False, "seconds": 5.0})
    tally.add({"error": "no"})
    tally.skip(1)
    assert tally.done == 4
    assert str(tally) == "1 spoken, 1.00 h of audio, 2 there before, 1 bad"


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["synthesize", "--help"])
    assert "manifest.jsonl" in capsys.readouterr().out
