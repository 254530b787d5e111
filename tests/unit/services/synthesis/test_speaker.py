"""What every transport relies on: voices loaded once, the loop never blocked, every caller answered."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from services.synthesis.speaker import Order, Speaker, default_workers
from services.synthesis.voices import VoiceShelf, default_voice
from shared.errors import EngineError, ModelError, NotFoundError, OverloadedError, TextError, UserError
from shared.metrics import Metrics
from shared.registry import Registry
from shared.store import Store

if TYPE_CHECKING:
    from tests.unit.services.synthesis.conftest import MakeSpeaker, Opener


def value(metrics: Metrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(name, labels)
    assert found is not None
    return found


def test_the_default_voice_is_the_one_published_last(registry: Registry, make_speaker: MakeSpeaker) -> None:
    assert default_voice(registry) == "luis"
    spoken = asyncio.run(make_speaker().speak(Order("hola")))
    assert spoken.voice == "luis"
    assert spoken.voice_version == registry.resolve("voices", "luis").id


def test_an_empty_store_says_what_to_do(opener: Opener, metrics: Metrics) -> None:
    empty = Registry(Store.open("memory://empty-of-voices"))
    with pytest.raises(NotFoundError, match=r"holds no voice yet.*make demo"):
        VoiceShelf(empty, opener, metrics).get()


def test_references_choose_name_alias_and_version(registry: Registry, speaker: Speaker) -> None:
    first, second = registry.versions("voices", "ana")
    registry.move_alias("voices", "ana", "production", first)
    for reference, expected in (("ana", second), ("ana@production", first), (f"ana/{second}", second)):
        assert asyncio.run(speaker.speak(Order("hola", voice=reference))).voice_version == expected


def test_an_unknown_voice_is_named_with_its_nearest_and_without_the_stores_address(
    registry: Registry, speaker: Speaker
) -> None:
    with pytest.raises(NotFoundError) as caught:
        asyncio.run(speaker.speak(Order("hola", voice="anna")))
    assert str(caught.value) == "There is no voice 'anna', did you mean 'ana'?; there are: ana, luis"
    with pytest.raises(NotFoundError) as caught:
        asyncio.run(speaker.speak(Order("hola", voice="ana@beta")))
    assert registry.store.url not in str(caught.value)
    with pytest.raises(UserError):
        asyncio.run(speaker.speak(Order("hola", voice="../ana")))


def test_callers_who_come_together_load_a_voice_once(speaker: Speaker, opener: Opener) -> None:
    with ThreadPoolExecutor(8) as pool:
        shelf = speaker.shelf
        voices = list(pool.map(shelf.get, ["ana", ""] * 8))
    assert len(opener.opened) == 1
    assert all(loaded is voices[0] for loaded in voices)
    assert value(speaker.metrics, "vits_voices_loaded") == 1


def test_a_voice_that_could_not_be_loaded_is_tried_again(speaker: Speaker, opener: Opener) -> None:
    opener.error = ModelError("broken")
    with pytest.raises(ModelError):
        asyncio.run(speaker.speak(Order("hola")))
    opener.error = None
    assert asyncio.run(speaker.speak(Order("hola"))).voice == "ana"


def test_warm_up_makes_ready(speaker: Speaker, opener: Opener) -> None:
    readiness = [speaker.ready]
    asyncio.run(speaker.warm())
    assert [*readiness, speaker.ready] == [False, True]
    assert len(opener.opened[0].calls) == 1


def test_a_voice_that_cannot_say_the_warm_up_text_is_ready_all_the_same(
    speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.synthesis.speaker.WARM_UP_TEXT", "mute")
    asyncio.run(speaker.warm())
    assert speaker.ready


def test_a_voice_that_breaks_at_warm_up_is_not_ready(
    speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.synthesis.speaker.WARM_UP_TEXT", "break")
    with pytest.raises(EngineError):
        asyncio.run(speaker.warm())
    assert not speaker.ready


def test_the_event_loop_goes_on_while_a_voice_computes(speaker: Speaker, opener: Opener) -> None:
    async def scene() -> None:
        await speaker.warm()
        gate = opener.opened[0].gate
        gate.clear()
        speaking = asyncio.create_task(speaker.speak(Order("hola")))
        for _ in range(5):
            await asyncio.sleep(0.001)
            assert not speaking.done()
        gate.set()
        await speaking

    asyncio.run(scene())


def test_past_the_limit_callers_are_told_when_to_come_back(make_speaker: MakeSpeaker, opener: Opener) -> None:
    async def scene() -> None:
        speaker = make_speaker(default="ana", workers=1, max_in_flight=2)
        await speaker.warm()
        gate = opener.opened[0].gate
        gate.clear()
        admitted = [asyncio.create_task(speaker.speak(Order(text))) for text in "ab"]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError) as caught:
            await speaker.speak(Order("c"))
        assert caught.value.retry_after_seconds >= 1
        gate.set()
        await asyncio.gather(*admitted)
        await speaker.speak(Order("c"))
        assert value(speaker.metrics, "vits_requests_in_flight") == 0

    asyncio.run(scene())


def test_who_goes_away_while_waiting_costs_nothing(make_speaker: MakeSpeaker, opener: Opener) -> None:
    async def scene() -> None:
        speaker = make_speaker(default="ana", workers=1)
        await speaker.warm()
        voice = opener.opened[0]
        voice.gate.clear()
        first = asyncio.create_task(speaker.speak(Order("first")))
        gone = asyncio.create_task(speaker.speak(Order("gone")))
        await asyncio.sleep(0.01)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        voice.gate.set()
        await first
        await speaker.speak(Order("last"))
        assert "gone" not in voice.calls
        assert value(speaker.metrics, "vits_requests_in_flight") == 0

    asyncio.run(scene())


def test_every_caller_of_a_crowd_gets_their_own_answer(make_speaker: MakeSpeaker) -> None:
    async def scene() -> None:
        speaker = make_speaker(default="ana", workers=4, max_in_flight=64)
        alone = {text: await speaker.speak(Order(text, seed=3)) for text in ("uno", "dos", "tres")}
        texts = ["uno", "mute", "dos", "break", "tres", "bug"] * 8
        answers = await asyncio.gather(
            *(speaker.speak(Order(text, seed=3)) for text in texts), return_exceptions=True
        )
        kinds = {"mute": TextError, "break": EngineError, "bug": ZeroDivisionError}
        for text, answer in zip(texts, answers, strict=True):
            if text in kinds:
                assert isinstance(answer, kinds[text])
            else:
                assert not isinstance(answer, BaseException)
                assert answer.samples.tobytes() == alone[text].samples.tobytes()
        assert value(speaker.metrics, "vits_requests_in_flight") == 0

    asyncio.run(scene())


def test_what_is_made_is_measured(speaker: Speaker) -> None:
    spoken = asyncio.run(speaker.speak(Order("x" * 250)))
    assert spoken.duration_seconds == 2.5
    assert value(speaker.metrics, "vits_audio_seconds_total", voice="ana") == 2.5
    assert value(speaker.metrics, "vits_synthesis_seconds_count", voice="ana") == 1


def test_closing_unloads_and_leaves_no_thread(make_speaker: MakeSpeaker, opener: Opener) -> None:
    before = threading.active_count()
    speaker = make_speaker(default="ana")
    asyncio.run(speaker.warm())
    speaker.close()
    assert not speaker.ready
    assert opener.opened[0].closed
    assert threading.active_count() == before
    assert value(speaker.metrics, "vits_voices_loaded") == 0


def test_at_least_two_orders_at_once() -> None:
    assert default_workers(0) == 2
    assert default_workers(1) >= 2
