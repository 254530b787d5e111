"""Voices in memory: within their budget, and following their names and aliases while others speak."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from services.synthesis.speaker import Order, Speaker
from services.synthesis.voices import LoadedVoice, VoiceShelf
from shared.errors import CorruptObjectError, ModelError, NotFoundError, OverloadedError, StoreError
from shared.metrics import Metrics
from shared.registry import Registry
from tests.unit.services.synthesis.conftest import FakeVoice, publish

if TYPE_CHECKING:
    from tests.unit.services.synthesis.conftest import Clock, MakeSpeaker, Opener


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def shelf(registry: Registry, opener: Opener, metrics: Metrics) -> VoiceShelf:
    return VoiceShelf(registry, opener, metrics, default="ana")


def names(shelf: VoiceShelf) -> set[str]:
    return {loaded.version.name for loaded in shelf._loaded.values()}


@pytest.fixture
def make_shelf(registry: Registry, opener: Opener, metrics: Metrics) -> Callable[..., VoiceShelf]:
    """Shelves on which every voice needs 10 bytes."""
    return partial(VoiceShelf, registry, opener, metrics, memory_of=lambda _folder, _variant: 10)


def test_the_least_recently_used_voice_makes_room_but_never_the_default(
    registry: Registry,
    make_shelf: Callable[..., VoiceShelf],
    opener: Opener,
    metrics: Metrics,
    tmp_path: Path,
) -> None:
    publish(registry, tmp_path, "eva", "one")
    forgotten: list[str] = []
    shelf = make_shelf(default="ana", memory_bytes=25, forget=forgotten.append)
    shelf.get()
    luis = shelf.get("luis")
    shelf.get("eva")
    assert names(shelf) == {"ana", "eva"}
    assert opener.opened[1].closed
    assert forgotten == [luis.key]
    assert value(metrics, "vits_voice_evictions_total") == 1
    assert value(metrics, "vits_voice_memory_bytes") == 20
    assert value(metrics, "vits_voice_loaded", voice="luis", version=luis.version.id, variant="fp32") is None
    shelf.get("luis")
    assert names(shelf) == {"ana", "luis"}


def test_a_load_is_measured_from_fetching_to_warm(
    registry: Registry, opener: Opener, metrics: Metrics, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "fetch", clock.takes(4.0, registry.fetch))
    monkeypatch.setattr(FakeVoice, "warm_up", clock.takes(2.0, FakeVoice.warm_up))
    shelf = VoiceShelf(registry, clock.takes(1.0, opener), metrics)
    for _ in range(2):
        shelf.get("ana")
    assert value(metrics, "vits_voice_load_seconds_count") == 1
    assert value(metrics, "vits_voice_load_seconds_sum") == 4.0 + 2.0 + 1.0


def test_a_voice_that_speaks_is_never_unloaded(make_shelf: Callable[..., VoiceShelf], opener: Opener) -> None:
    shelf = make_shelf(memory_bytes=15)
    leased = shelf.lease("ana")
    with pytest.raises(OverloadedError, match="no room"):
        shelf.get("luis")
    assert not opener.opened[0].closed
    shelf.release(leased)
    shelf.get("luis")
    assert names(shelf) == {"luis"}


def test_a_voice_larger_than_the_budget_says_so(make_shelf: Callable[..., VoiceShelf]) -> None:
    with pytest.raises(ModelError, match="--memory"):
        make_shelf(memory_bytes=5).get()


def test_a_voice_without_room_beside_the_default_says_so(
    registry: Registry, make_shelf: Callable[..., VoiceShelf], metrics: Metrics, tmp_path: Path
) -> None:
    """To come back later would help nobody. A newer version of the default itself takes its place."""
    shelf = make_shelf(default="ana", memory_bytes=15)
    shelf.get()
    with pytest.raises(ModelError, match=r"beside the 0 MB of the default voice.*--memory"):
        shelf.get("luis")
    new = publish(registry, tmp_path, "ana", "three")
    shelf.refresh()
    assert shelf.get().version.id == new
    assert value(metrics, "vits_voice_memory_bytes") == 10


def test_a_variant_that_was_replaced_counts_while_somebody_speaks_with_it(
    make_shelf: Callable[..., VoiceShelf], opener: Opener
) -> None:
    shelf = make_shelf(default="ana", memory_bytes=25, choose=lambda _folder, _undisturbed: "quick")
    speaking = shelf.lease()
    opener.variant = "quick"
    shelf.settle(lambda: True)
    with pytest.raises(OverloadedError, match="no room"):
        shelf.get("luis")
    shelf.release(speaking)
    shelf.get("luis")
    assert names(shelf) == {"ana", "luis"}


def test_the_default_voice_stays_when_another_is_published(
    registry: Registry, opener: Opener, metrics: Metrics, tmp_path: Path
) -> None:
    shelf = VoiceShelf(registry, opener, metrics)
    assert shelf.get().version.name == "luis"
    publish(registry, tmp_path, "eva", "one")
    shelf.refresh()
    assert shelf.get().version.name == "luis"


def test_a_name_follows_its_newest_version_and_a_version_stays(
    registry: Registry, shelf: VoiceShelf, tmp_path: Path, opener: Opener
) -> None:
    old = shelf.get("ana").version
    shelf.get(old.reference)
    new = publish(registry, tmp_path, "ana", "three")
    assert shelf.get("ana").version == old
    shelf.refresh()
    assert shelf.get("ana").version.id == new
    assert shelf.get(old.reference).version == old
    assert [voice.closed for voice in opener.opened] == [False, False]


def test_an_alias_that_moves_under_load_drops_nobody_and_mixes_no_versions(
    registry: Registry, make_speaker: MakeSpeaker, opener: Opener
) -> None:
    first, second = registry.versions("voices", "ana")
    registry.move_alias("voices", "ana", "production", first)
    text = "una frase. " * 5

    async def scene() -> None:
        speaker = make_speaker(default="ana@production")
        await speaker.warm()
        old = opener.opened[0]
        old.permits = threading.Semaphore(1)
        speaking = await speaker.start(Order(text, seed=1))
        crowd = [asyncio.create_task(speaker.speak(Order(text, seed=1))) for _ in range(5)]
        await asyncio.to_thread(wait_until, lambda: speaker.shelf.get().leases == 6)
        registry.move_alias("voices", "ana", "production", second)
        crowd += [asyncio.create_task(speaker.speak(Order(text, seed=1))) for _ in range(5)]
        await speaker.refresh()
        assert speaker.shelf.get().version.id == second
        assert [voice.closed for voice in opener.opened] == [False, False]
        crowd += [asyncio.create_task(speaker.speak(Order(text, seed=1))) for _ in range(5)]
        old.permits.release(100)
        async with speaking:
            samples = np.concatenate([samples async for samples in speaking])
        heard = [(speaking.voice_version, samples)]
        heard += [(spoken.voice_version, spoken.samples) for spoken in await asyncio.gather(*crowd)]
        alone = {
            version: FakeVoice(voice.folder).synthesize(text, seed=1).samples
            for version, voice in zip((first, second), opener.opened, strict=True)
        }
        assert not np.array_equal(alone[first], alone[second])
        for version, samples in heard:
            assert np.array_equal(samples, alone[version])
        versions = [version for version, _ in heard]
        assert versions[:6] == [first] * 6
        assert versions[-5:] == [second] * 5
        await asyncio.to_thread(wait_until, lambda: old.closed)
        assert value(speaker.metrics, "vits_voices_loaded") == 1
        assert value(speaker.metrics, "vits_voice_loaded", voice="ana", version=second, variant="fp32") == 1

    asyncio.run(scene())


def test_a_faster_variant_takes_over_and_drops_nobody(
    registry: Registry, make_speaker: MakeSpeaker, opener: Opener
) -> None:
    async def scene() -> None:
        speaker = make_speaker(default="ana", choose=lambda _folder, undisturbed: undisturbed() and "quick")
        await speaker.warm()
        old = opener.opened[0]
        old.permits = threading.Semaphore(1)
        speaking = await speaker.start(Order("una frase. " * 5, seed=1))
        await speaker.settle()
        assert len(opener.opened) == 1, "nothing is measured while somebody is speaking"
        # Whoever begins before the measurement is over keeps what they began with.
        opener.variant = "quick"
        speaker.shelf.settle(lambda: True)
        assert [voice.variant for voice in opener.opened] == ["fp32", "quick"]
        assert [voice.closed for voice in opener.opened] == [False, False]
        reference = speaker.shelf.get().version.reference
        assert speaker.shelf.in_use() == {reference: "quick"}
        await speaker.speak(Order("dos"))
        assert "dos" in opener.opened[1].calls
        old.permits.release(100)
        async with speaking:
            samples = [samples async for samples in speaking]
        assert sum(map(len, samples)) == len(opener.opened[1].synthesize("una frase. " * 5, seed=1).samples)
        await asyncio.sleep(0.05)
        assert [voice.closed for voice in opener.opened] == [True, False]
        version = speaker.shelf.get().version.id
        labels = {"voice": "ana", "version": version}
        assert value(speaker.metrics, "vits_voice_loaded", **labels, variant="quick") == 1
        assert value(speaker.metrics, "vits_voice_loaded", **labels, variant="fp32") is None
        assert value(speaker.metrics, "vits_voices_loaded") == 1
        await speaker.settle()
        assert len(opener.opened) == 2

    asyncio.run(scene())


def test_a_variant_that_cannot_be_used_leaves_everything_as_it_was(
    registry: Registry, opener: Opener, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    measured: list[Path] = []

    def choose(folder: Path, _: object) -> str:
        measured.append(folder)
        return "quick"

    shelf = VoiceShelf(registry, opener, metrics, default="ana", choose=choose)
    old = shelf.get()
    opener.error = ModelError("decoder.onnx is not a graph")
    shelf.settle(lambda: True)
    shelf.settle(lambda: True)
    assert shelf.get() is old
    assert measured == [old.folder]
    assert "stays with variant fp32" in caplog.text
    assert value(metrics, "vits_voices_loaded") == 1


def test_a_load_does_not_wait_for_a_measurement(make_speaker: MakeSpeaker) -> None:
    measuring, spoken = threading.Event(), threading.Event()
    overtaken: list[bool] = []

    def choose(_folder: Path, _undisturbed: object) -> None:
        measuring.set()
        overtaken.append(spoken.wait(5))

    async def scene() -> None:
        speaker = make_speaker(default="ana", choose=choose)
        await speaker.warm()
        settling = asyncio.create_task(speaker.settle())
        await asyncio.to_thread(measuring.wait, 5)
        await speaker.speak(Order("uno", voice="luis"))
        spoken.set()
        await settling

    asyncio.run(scene())
    assert overtaken == [True]


def test_a_load_waits_for_the_memory_of_a_measurement_which_gives_up(
    make_shelf: Callable[..., VoiceShelf], opener: Opener
) -> None:
    """Two voices and one measurement, or swap, do not fit; any two of them do."""
    measuring = threading.Event()
    loaded_meanwhile: list[int] = []

    def choose(_folder: Path, undisturbed: Callable[[], bool]) -> None:
        measuring.set()
        give_up = time.monotonic() + 5
        while undisturbed() and time.monotonic() < give_up:
            time.sleep(0.01)
        time.sleep(0.1)  # what a call of the engine still takes
        loaded_meanwhile.append(len(opener.opened) - 1)

    shelf = make_shelf(default="ana", memory_bytes=24, choose=choose)
    shelf.get()
    with ThreadPoolExecutor(1) as pool:
        settling = pool.submit(shelf.settle, lambda: True)
        assert measuring.wait(5)
        assert shelf.get("luis").version.name == "luis"
        settling.result()
    assert loaded_meanwhile == [0]
    assert len(shelf.in_use()) == 2
    shelf.close()


@pytest.mark.parametrize(
    ("others", "memory_bytes", "measured"),
    [
        ([20], 29, 0),  # the swap: 10 that speak, and 20
        ([20], 30, 1),
        ([16, 16], 30, 0),  # the measurement: 10 that speak, and half of 42
        ([16, 16], 31, 1),
    ],
)
def test_variants_are_not_measured_where_there_is_no_room_for_them(
    registry: Registry,
    opener: Opener,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
    others: list[int],
    memory_bytes: int,
    measured: int,
) -> None:
    sizes = {"fp32": 10} | {f"larger-{number}": size for number, size in enumerate(others)}
    monkeypatch.setattr("services.synthesis.voices.usable_variants", lambda _: list(sizes))
    calls: list[Path] = []

    def choose(folder: Path, _undisturbed: object) -> str:
        calls.append(folder)
        return "fp32"

    shelf = VoiceShelf(
        registry,
        opener,
        metrics,
        default="ana",
        memory_of=lambda _folder, variant: sizes[variant or "fp32"],
        memory_bytes=memory_bytes,
        choose=choose,
    )
    shelf.get()
    shelf.settle(lambda: True)
    assert len(calls) == measured
    assert shelf.get().settled


def test_a_measurement_that_is_always_disturbed_becomes_rare(
    registry: Registry, opener: Opener, metrics: Metrics
) -> None:
    """Each opens all variants, on processors that somebody is about to need."""
    measured: list[Path] = []

    def choose(folder: Path, _: object) -> None:
        measured.append(folder)

    shelf = VoiceShelf(registry, opener, metrics, default="ana", choose=choose)
    shelf.get()
    for _ in range(1000):
        shelf.settle(lambda: True)
    assert 6 < len(measured) < 12
    assert not shelf.get().settled


def test_a_broken_version_is_refused_once_and_the_old_one_stays(
    registry: Registry,
    shelf: VoiceShelf,
    opener: Opener,
    metrics: Metrics,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    old = shelf.get("ana").version
    new = publish(registry, tmp_path, "ana", "broken")
    opener.error = ModelError("decoder.onnx is not a graph")
    shelf.refresh()
    shelf.refresh()
    assert shelf.get("ana").version == old
    assert value(metrics, "vits_voice_refusals_total", voice="ana") == 1
    assert [new in record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [True]
    opener.error = None
    newest = publish(registry, tmp_path, "ana", "mended")
    shelf.refresh()
    assert shelf.get("ana").version.id == newest


def test_a_damaged_manifest_keeps_no_news_of_other_voices_away(
    registry: Registry, shelf: VoiceShelf, metrics: Metrics, tmp_path: Path
) -> None:
    old = shelf.get("ana").version
    shelf.get("luis")
    damaged, new = publish(registry, tmp_path, "ana", "two"), publish(registry, tmp_path, "luis", "two")
    path = f"voices/ana/{damaged}/manifest.json"
    registry.store.write(path, registry.store.read(path)[:-9])
    shelf.refresh()
    assert shelf.get("ana").version == old
    assert shelf.get("luis").version.id == new
    assert value(metrics, "vits_store_failures_total") == 0


def test_a_version_that_was_refused_is_tried_again_ever_less_often(
    registry: Registry, shelf: VoiceShelf, opener: Opener, metrics: Metrics, tmp_path: Path
) -> None:
    shelf.get("ana")
    new = publish(registry, tmp_path, "ana", "two")
    opener.error = MemoryError()
    tried = []
    for _ in range(12):
        shelf.refresh()
        tried.append(value(metrics, "vits_voice_refusals_total", voice="ana"))
    assert tried == [1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3]
    opener.error = None
    for _ in range(8):
        shelf.refresh()
    assert shelf.get("ana").version.id == new


def test_a_voice_with_a_bad_sha256_is_refused(
    registry: Registry, shelf: VoiceShelf, metrics: Metrics, tmp_path: Path
) -> None:
    old = shelf.get("ana").version
    new = publish(registry, tmp_path, "ana", "damaged")
    path = f"voices/ana/{new}/voice.json"
    registry.store.write(path, registry.store.read(path).replace(b"damaged", b"DAMAGED"))
    shelf.refresh()
    assert shelf.get("ana").version == old
    assert value(metrics, "vits_voice_refusals_total", voice="ana") == 1
    with pytest.raises(CorruptObjectError):
        shelf.get(f"ana/{new}")


def test_a_store_that_is_gone_later_stops_nobody_who_speaks(
    registry: Registry, speaker: Speaker, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        await speaker.warm()

        def gone(*_: object, **__: object) -> None:
            raise StoreError("the store is gone")

        for method in ("resolve", "names", "fetch"):
            monkeypatch.setattr(registry, method, gone)
        await speaker.refresh()
        assert value(metrics, "vits_store_failures_total") == 1
        assert (await speaker.speak(Order("hola"))).voice == "ana"
        with pytest.raises(StoreError):
            await speaker.speak(Order("hola", voice="luis"))
        with pytest.raises(StoreError):
            await speaker.voices()
        monkeypatch.undo()
        assert (await speaker.speak(Order("hola", voice="luis"))).voice == "luis"

    asyncio.run(scene())


def test_the_first_who_asks_hears_the_voice_and_no_stand_in(
    registry: Registry, speaker: Speaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(registry, tmp_path, "alloy", "one")
    order = Order("hola", voice="alloy", stand_in="")

    async def scene() -> None:
        warming = asyncio.create_task(speaker.warm())
        await asyncio.sleep(0)
        early = asyncio.create_task(speaker.speak(order))
        await warming
        assert (await early).voice == "alloy"
        monkeypatch.setattr(registry, "versions", None)
        assert (await speaker.speak(order)).voice == "alloy"

    asyncio.run(scene())


def test_a_voice_takes_its_stand_ins_place_with_the_next_news(
    registry: Registry, speaker: Speaker, metrics: Metrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the store could not be asked at the start, nor later."""
    order = Order("hola", voice="alloy", stand_in="")

    def gone(*_: object) -> None:
        raise StoreError("the store is gone")

    async def scene() -> None:
        monkeypatch.setattr(registry, "names", gone)
        await speaker.warm()
        monkeypatch.setattr(registry, "versions", gone)
        assert (await speaker.speak(order)).voice == "ana"
        await speaker.refresh()
        assert (await speaker.speak(order)).voice == "ana"
        assert value(metrics, "vits_store_failures_total") == 2
        monkeypatch.undo()
        version = publish(registry, tmp_path, "alloy", "one")
        await speaker.refresh()
        assert (await speaker.speak(order)).voice == "alloy"
        registry.delete(registry.resolve("voices", f"alloy/{version}"))
        await speaker.refresh()
        assert (await speaker.speak(order)).voice == "ana"

    asyncio.run(scene())


def test_a_store_that_is_gone_at_the_start_is_said(
    registry: Registry, make_speaker: MakeSpeaker, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "store")
    speaker = make_speaker(default="ana")
    with pytest.raises((NotFoundError, StoreError)):
        asyncio.run(speaker.warm())
    assert not speaker.ready


def test_who_gives_up_while_a_voice_loads_does_not_keep_it(speaker: Speaker, opener: Opener) -> None:
    async def scene() -> None:
        asking = asyncio.create_task(speaker.speak(Order("hola")))
        await asyncio.sleep(0.005)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        loaded: LoadedVoice = await speaker.warm()
        await asyncio.sleep(0.01)
        assert loaded.leases == 0

    asyncio.run(scene())


def test_a_lexicon_is_the_voices_own_and_read_again(
    registry: Registry, opener: Opener, metrics: Metrics, tmp_path: Path
) -> None:
    (tmp_path / "ana.json").write_text('{"Nguyen": "nuyen"}')
    shelf = VoiceShelf(registry, opener, metrics, lexicons=tmp_path)
    lexicon = shelf.get("ana").lexicon
    assert lexicon is not None
    assert lexicon.current().entries["Nguyen"].text == "nuyen"
    assert shelf.get("luis").lexicon is None


def test_the_store_is_not_asked_for_what_is_loaded_by_another_name(
    shelf: VoiceShelf, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the default voice's name, or by a version, as the second sentence of a text in pieces is."""
    default = shelf.get()
    monkeypatch.setattr(shelf.registry, "resolve", None)
    assert shelf.get("ana") is shelf.get(default.version.reference) is default
    assert len(opener.opened) == 1
