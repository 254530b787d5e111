"""What every door relies on: the loop never blocked, every caller answered, nothing computed in vain."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from services.synthesis.speaker import MAX_QUESTIONS, MAX_WAITING_FOR_VOICES, Order, Speaker
from services.synthesis.voices import VoiceShelf
from shared.errors import (
    DeadlineError,
    EngineError,
    ModelError,
    NotFoundError,
    OverloadedError,
    RequestError,
    StoppingError,
    TextError,
    UserError,
)
from shared.metrics import Metrics
from shared.registry import Registry, Version, default_voice
from shared.store import Store
from shared.voice import Plan
from shared.voice.scheduler import UNMEASURED_CHARACTER, UNMEASURED_DECODE, UNMEASURED_RENDER
from tests.unit.services.synthesis.conftest import FakeVoice

if TYPE_CHECKING:
    from tests.unit.services.synthesis.conftest import Clock, MakeSpeaker, Opener


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
    assert str(caught.value) == "There is no voice 'anna', did you mean 'ana'? There are: ana, luis"
    versions = registry.versions("voices", "ana")
    registry.move_alias("voices", "ana", "production", versions[0])
    for reference, near in (("ana@beta", "."), ("ana@prodction", ", did you mean 'production'?")):
        with pytest.raises(NotFoundError) as caught:
            asyncio.run(speaker.speak(Order("hola", voice=reference)))
        assert str(caught.value) == (
            f"There is no {reference!r}: voice 'ana' has no such version or alias{near} "
            f"Its aliases: production. Its versions: {', '.join(versions)}"
        )
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
    assert len(opener.opened) == 1


def test_a_voice_that_breaks_at_warm_up_is_not_ready(
    speaker: Speaker, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise EngineError("broken")

    monkeypatch.setattr("tests.unit.services.synthesis.conftest.FakeVoice.warm_up", fail, raising=False)
    monkeypatch.setattr("shared.voice.Voice.warm_up", fail)
    with pytest.raises(EngineError):
        asyncio.run(speaker.warm())
    assert not speaker.ready
    assert opener.opened[0].closed


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


def test_the_first_piece_is_heard_before_the_last_is_made(speaker: Speaker, opener: Opener) -> None:
    async def scene() -> None:
        await speaker.warm()
        voice = opener.opened[0]
        text = "una frase. " * 30
        voice.permits = threading.Semaphore(1)
        async with await speaker.start(Order(text, seed=1)) as speaking:
            first = await anext(speaking)
            assert 0 < len(first) <= 8 * 160
            assert len(voice.calls) <= 3
            voice.permits.release(100)
            rest = [samples async for samples in speaking]
        whole = voice.synthesize(text, seed=1)
        assert np.concatenate([first, *rest]).tobytes() == whole.samples.tobytes()
        assert len(speaking.durations) == 30

    asyncio.run(scene())


def test_words_are_timed_as_they_are_heard(speaker: Speaker) -> None:
    async def scene() -> None:
        async with await speaker.start(Order("uno dos. tres", timed=True)) as speaking:
            assert speaking.timestamps() == []
            await anext(speaking)
            assert [timed.text for timed in speaking.timestamps()] == ["uno", "dos."]
            async for _ in speaking:
                pass
            words = speaking.timestamps()
        assert [timed.text for timed in words] == ["uno", "dos.", "tres"]
        assert words[2].start_seconds == pytest.approx(8 * 0.01 + 0.1)
        tokens = speaking.token_timestamps()
        assert "".join(timed.text for timed in tokens) == "uno dos.tres"
        assert tokens[-1].end_seconds == pytest.approx(12 * 0.01 + 0.1)

    asyncio.run(scene())


def test_a_text_that_would_be_far_too_long_is_refused_before_it_is_spoken(
    make_speaker: MakeSpeaker, opener: Opener
) -> None:
    async def scene() -> None:
        speaker = make_speaker(default="ana", max_audio_seconds=1.0)
        with pytest.raises(RequestError, match=r"about 6 s long, and longer than the 1 s") as caught:
            await speaker.speak(Order("x" * 100))  # a character of a voice that was not measured: 0.065 s
        assert caught.value.param == "text"
        assert opener.opened[0].calls == ["warm-up"]
        # This voice speaks a character in 0.01 s, which is known by now.
        await speaker.speak(Order("x" * 10))
        await speaker.speak(Order("x" * 100))
        for slow in (Order("x" * 160), Order("x" * 40, speaking_rate=0.25)):
            with pytest.raises(RequestError):
                await speaker.speak(slow)
        assert len(speaker.runtime) == 0
        assert speaker.shelf.get().leases == 0
        labels = {"door": "", "voice": "", "outcome": "refused"}
        assert value(speaker.metrics, "vits_requests_total", **labels) == 3

    asyncio.run(scene())


def test_a_text_that_may_be_too_long_is_measured_before_it_is_spoken(
    make_speaker: MakeSpeaker, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        speaker = make_speaker(default="ana", max_audio_seconds=1.0)
        await speaker.speak(Order("x" * 10))  # from now on it is known that a character takes 0.01 s
        voice = opener.opened[0]
        rendered = len(voice.calls)
        measured: list[int] = []
        samples_of = voice.sounding_samples

        def sounding_samples(plan: Plan, number: int) -> int:
            measured.append(samples_of(plan, number))
            return measured[-1]

        monkeypatch.setattr(voice, "sounding_samples", sounding_samples)
        # 0.5 s and 0.52 s with 0.1 s between them.
        with pytest.raises(RequestError, match=r"about 1 s long, and longer than the 1 s") as caught:
            await speaker.start(Order("x" * 49 + ". " + "x" * 52))
        assert caught.value.param == "text"
        assert len(voice.calls) == rendered, "nothing of it was spoken"
        assert sum(measured) / 16000 == pytest.approx(1.12)
        assert len(speaker.runtime) == speaker.shelf.get().leases == 0
        measured.clear()
        spoken = await speaker.speak(Order("x" * 29 + ". " + "x" * 60))
        assert len(spoken.samples) == sum(measured) == 16000
        measured.clear()
        await speaker.speak(Order("x" * 60))
        assert measured == [], "what is clearly not too long is spoken at once"

    asyncio.run(scene())


def test_past_the_limit_callers_are_told_when_to_come_back(make_speaker: MakeSpeaker, opener: Opener) -> None:
    async def scene() -> None:
        speaker = make_speaker(default="ana", workers=1, max_backlog_seconds=0.2)
        await speaker.warm()
        gate = opener.opened[0].gate
        gate.clear()
        admitted = [asyncio.create_task(speaker.speak(Order(text * 20))) for text in "ab"]
        await asyncio.sleep(0.02)
        with pytest.raises(OverloadedError) as caught:
            await speaker.speak(Order("c"))
        assert caught.value.retry_after_seconds >= 1
        gate.set()
        await asyncio.gather(*admitted)
        await speaker.speak(Order("c"))
        assert value(speaker.metrics, "vits_requests_in_flight") == 0
        labels = {"door": "", "voice": "", "outcome": "overloaded"}
        assert value(speaker.metrics, "vits_requests_total", **labels) == 1

    asyncio.run(scene())


def test_who_goes_away_while_waiting_costs_nothing(make_speaker: MakeSpeaker, opener: Opener) -> None:
    async def scene() -> None:
        speaker = make_speaker(default="ana", workers=1)
        await speaker.warm()
        voice = opener.opened[0]
        voice.gate.clear()
        first = asyncio.create_task(speaker.speak(Order("first")))
        await asyncio.sleep(0.01)
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
        assert speaker.shelf.get().leases == 0

    asyncio.run(scene())


def test_only_so_many_wait_for_voices_that_are_not_loaded(
    speaker: Speaker, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        await speaker.warm()
        gate = threading.Event()
        resolve = speaker.shelf.registry.resolve

        def hang(*arguments: Any) -> Version:
            assert gate.wait(10)
            return resolve(*arguments)

        monkeypatch.setattr(speaker.shelf.registry, "resolve", hang)
        waiting = [
            asyncio.create_task(speaker.speak(Order("hola", voice="luis")))
            for _ in range(MAX_WAITING_FOR_VOICES)
        ]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="wait for voices that are not loaded") as full:
            await speaker.speak(Order("hola", voice="luis"))
        assert full.value.retry_after_seconds == 5
        # Neither does that hold up the voices that are there, nor is it said of news that can wait.
        assert (await speaker.speak(Order("hola"))).voice == "ana"
        await speaker.refresh()
        gate.set()
        assert {spoken.voice for spoken in await asyncio.gather(*waiting)} == {"luis"}
        assert len(opener.opened) == 2
        assert all(loaded.leases == 0 for loaded in map(speaker.shelf.get, ["", "luis"]))
        labels = {"door": "", "voice": "", "outcome": "overloaded"}
        assert value(speaker.metrics, "vits_requests_total", **labels) == 1

    asyncio.run(scene())


def test_questions_that_a_store_does_not_answer_hold_up_nobody_else(
    speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        await speaker.warm()
        gate = threading.Event()

        def hang(_: str) -> list[str]:
            assert gate.wait(10)
            return []

        monkeypatch.setattr(speaker.shelf.registry, "names", hang)
        asking = [asyncio.create_task(speaker.voices()) for _ in range(MAX_QUESTIONS)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="wait for answers of the store"):
            await speaker.voices()
        # Encoding, among other things, has the threads that these would have taken.
        assert await asyncio.to_thread(int, "7") == 7
        gate.set()
        assert await asyncio.gather(*asking) == [[]] * MAX_QUESTIONS

    asyncio.run(scene())


def test_a_store_that_does_not_answer_holds_up_no_voice_that_stands_in(
    speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    def hang(*_: Any) -> list[str]:
        assert gate.wait(10)
        return []

    async def scene() -> None:
        await speaker.warm()
        for method in ("names", "versions", "resolve"):
            monkeypatch.setattr(speaker.shelf.registry, method, hang)
        order = Order("hola", voice="alloy", stand_in="")
        assert (await speaker.speak(order)).voice == "ana"
        refreshing = asyncio.create_task(speaker.refresh())
        crowd = await asyncio.gather(*(speaker.speak(order) for _ in range(MAX_QUESTIONS + 1)))
        assert {spoken.voice for spoken in crowd} == {"ana"}
        assert not refreshing.done()
        monkeypatch.undo()
        gate.set()
        await refreshing

    asyncio.run(scene())


def test_giving_up_tells_who_waits_for_a_voice_and_closing_does_not_wait_for_its_store(
    speaker: Speaker, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    resolve = speaker.shelf.registry.resolve

    def hang(*arguments: Any) -> Version:
        assert gate.wait(10)
        return resolve(*arguments)

    async def scene() -> None:
        await speaker.warm()
        monkeypatch.setattr(speaker.shelf.registry, "resolve", hang)
        waiting = [asyncio.create_task(speaker.speak(Order("hola", voice="luis"))) for _ in range(3)]
        await asyncio.sleep(0.01)
        speaker.give_up()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [StoppingError] * 3
        assert not await asyncio.to_thread(speaker.close, 0.01)
        assert opener.opened[0].closed

    asyncio.run(scene())
    gate.set()
    assert speaker.close()


def test_who_leaves_in_mid_speech_stops_costing(speaker: Speaker, opener: Opener) -> None:
    async def scene() -> None:
        await speaker.warm()
        voice = opener.opened[0]
        voice.permits = threading.Semaphore(1)
        async with await speaker.start(Order("una frase. " * 50)) as speaking:
            await anext(speaking)
        voice.permits.release(100)
        await speaker.speak(Order("otro"))
        assert len(voice.calls) <= 4
        assert len(speaker.runtime) == 0
        # What was being computed for it when it left ends a moment later.
        async with asyncio.timeout(10):
            while speaker.shelf.get().leases:
                await asyncio.sleep(0.001)
        labels = {"door": "", "voice": "ana", "outcome": "cancelled"}
        assert value(speaker.metrics, "vits_requests_total", **labels) == 1

    asyncio.run(scene())


def test_nobody_computes_far_ahead_of_a_slow_reader(make_speaker: MakeSpeaker, opener: Opener) -> None:
    async def scene() -> None:
        speaker = make_speaker(default="ana", buffer_seconds=0.5)
        await speaker.warm()
        text, before = "x" * 2000, opener.opened[0].decoded
        async with await speaker.start(Order(text, seed=1)) as speaking:
            await asyncio.sleep(0.1)
            assert opener.opened[0].decoded - before < 6
            # Nor does it hold up anybody else, or count against them.
            assert speaker.runtime.backlog_seconds() == 0
            await speaker.speak(Order("otro"))
            samples = [samples async for samples in speaking]
        assert sum(map(len, samples)) == 2000 * 160

    asyncio.run(scene())


def test_a_deadline_that_passes_in_the_queue_is_answered(make_speaker: MakeSpeaker, opener: Opener) -> None:
    async def scene() -> None:
        speaker = make_speaker(default="ana", workers=1)
        await speaker.warm()
        voice = opener.opened[0]
        voice.gate.clear()
        running = asyncio.create_task(speaker.speak(Order("first")))
        await asyncio.sleep(0.01)
        with pytest.raises(DeadlineError):
            await speaker.speak(Order("late", deadline_seconds=0.5))
        voice.gate.set()
        await running
        assert "late" not in voice.calls
        labels = {"door": "", "voice": "ana", "outcome": "late"}
        assert value(speaker.metrics, "vits_requests_total", **labels) == 1
        assert len(speaker.runtime) == 0

    asyncio.run(scene())


def test_a_deadline_that_passes_in_mid_speech_ends_it(speaker: Speaker, opener: Opener) -> None:
    async def scene() -> None:
        await speaker.warm()
        voice = opener.opened[0]
        voice.permits = threading.Semaphore(1)
        async with await speaker.start(Order("una. dos. tres. " * 9, deadline_seconds=0.5)) as speaking:
            await asyncio.sleep(0.55)
            voice.permits.release(100)
            with pytest.raises(DeadlineError):
                async for _ in speaking:
                    pass

    asyncio.run(scene())


def test_every_caller_of_a_crowd_gets_their_own_answer(make_speaker: MakeSpeaker, opener: Opener) -> None:
    async def scene() -> None:
        speaker = make_speaker(default="ana", workers=4, max_batch=4)
        texts = ["uno", "dos. y tres", "tres cuatro cinco seis siete ocho nueve diez"]
        alone = {text: await speaker.speak(Order(text, seed=3)) for text in texts}
        crowd = [*texts, "mute", "break", "bug"] * 8
        answers = await asyncio.gather(
            *(speaker.speak(Order(text, seed=3)) for text in crowd), return_exceptions=True
        )
        kinds = {"mute": TextError, "break": EngineError, "bug": ZeroDivisionError}
        for text, answer in zip(crowd, answers, strict=True):
            if text in kinds:
                assert isinstance(answer, kinds[text])
            else:
                assert not isinstance(answer, BaseException)
                assert answer.samples.tobytes() == alone[text].samples.tobytes()
                assert answer.samples.tobytes() == opener.opened[0].synthesize(text, seed=3).samples.tobytes()
        assert value(speaker.metrics, "vits_requests_in_flight") == 0
        assert speaker.shelf.get().leases == 0

    asyncio.run(scene())


def test_what_is_made_is_measured(
    make_speaker: MakeSpeaker, opener: Opener, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("plan", 2.0), ("render", 0.5), ("decode_windows", 0.25)):
        monkeypatch.setattr(FakeVoice, name, clock.takes(seconds, getattr(FakeVoice, name)))

    async def scene() -> Speaker:
        speaker = make_speaker(default="ana", workers=1, clock=clock)
        await speaker.warm()
        voice = opener.opened[0]
        voice.permits = threading.Semaphore(1)
        async with await speaker.start(Order("uno dos. tres cuatro.", door="http")) as speaking:
            voice.permits.release()
            assert sum([len(samples) async for samples in speaking]) == 0.3 * 16000
        return speaker

    metrics = asyncio.run(scene()).metrics
    assert value(metrics, "vits_audio_seconds_total", voice="ana") == pytest.approx(0.3)
    # A window of 8 of 8 frames, then 12 frames in windows of 8.
    ana, http, encoder, flow = {"voice": "ana"}, {"door": "http"}, {"graph": "encoder"}, {"graph": "flow"}
    for name, labels, count, total in (
        ("queue_seconds", {}, 1, 2.0),
        ("encoder_seconds", ana, 2, 2 * 0.5),
        ("decoder_call_seconds", ana, 3, 3 * 0.25),
        ("first_audio_seconds", http, 1, 2.0 + 0.5 + 0.25),
        ("total_seconds", http, 1, 2.0 + 2 * 0.5 + 3 * 0.25),
        ("real_time_factor_ratio", ana, 1, (2 * 0.5 + 3 * 0.25) / 0.3),
        ("decoder_batch_windows", {}, 3, 3),
        ("window_occupancy_ratio", {}, 3, 1 + 1 + 4 / 8),
        ("padding_ratio", encoder, 2, (1 - 8 / 64) + (1 - 12 / 64)),
        ("padding_ratio", flow, 2, 0 + (1 - 12 / 16)),
    ):
        assert value(metrics, f"vits_{name}_count", **labels) == count, name
        assert value(metrics, f"vits_{name}_sum", **labels) == pytest.approx(total), name
    labels = {"door": "http", "voice": "ana", "outcome": "spoken"}
    assert value(metrics, "vits_requests_total", **labels) == 1


def test_what_waits_is_the_backlog_and_how_long_it_waited_is_measured(
    make_speaker: MakeSpeaker, opener: Opener, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("render", 0.5), ("decode_windows", 0.25)):
        monkeypatch.setattr(FakeVoice, name, clock.takes(seconds, getattr(FakeVoice, name)))

    async def scene() -> None:
        speaker = make_speaker(default="ana", workers=1, clock=clock)
        await speaker.warm()
        opener.opened[0].gate.clear()
        assert value(speaker.metrics, "vits_backlog_seconds") == 0
        waiting = [asyncio.create_task(speaker.speak(Order("uno."))) for _ in range(2)]
        while len(speaker.runtime) < 2:
            await asyncio.sleep(0.001)
        predicted = 2 * len("uno.") * UNMEASURED_CHARACTER * (UNMEASURED_RENDER + UNMEASURED_DECODE)
        assert value(speaker.metrics, "vits_backlog_seconds") == pytest.approx(predicted)
        opener.opened[0].gate.set()
        await asyncio.gather(*waiting)
        assert value(speaker.metrics, "vits_backlog_seconds") == 0
        # The first at once; the second when the first was rendered and decoded.
        assert value(speaker.metrics, "vits_queue_seconds_count") == 2
        assert value(speaker.metrics, "vits_queue_seconds_sum") == pytest.approx(0 + 0.5 + 0.25)

    asyncio.run(scene())


def test_calls_of_an_engine_that_fail_are_counted(speaker: Speaker) -> None:
    for text in ("break", "uno", "bug"):
        with suppress(EngineError, ZeroDivisionError):
            asyncio.run(speaker.speak(Order(text)))
    assert value(speaker.metrics, "vits_engine_failures_total", voice="ana") == 2
    assert value(speaker.metrics, "vits_decoder_call_seconds_count", voice="ana") == 1


@pytest.mark.parametrize("log_text", [False, True])
def test_orders_are_logged_without_what_they_say_unless_asked(
    make_speaker: MakeSpeaker, caplog: pytest.LogCaptureFixture, log_text: bool
) -> None:
    speaker = make_speaker(default="ana", log_text=log_text)
    with caplog.at_level(logging.INFO, "vits"):
        asyncio.run(speaker.speak(Order("un secreto", request_id="r-1")))
    record = caplog.records[-1]
    details = record.__dict__["details"]
    assert details["request_id"] == "r-1"
    assert details["outcome"] == "spoken"
    assert details["audio_seconds"] == 0.1
    assert ("secreto" in json.dumps(details)) == log_text
    assert "secreto" not in record.getMessage()


def test_a_server_that_stops_takes_nothing_more_and_finishes_what_runs(
    speaker: Speaker, opener: Opener
) -> None:
    async def scene() -> None:
        await speaker.warm()
        opener.opened[0].gate.clear()
        running = asyncio.create_task(speaker.speak(Order("una frase")))
        await asyncio.sleep(0.01)
        speaker.drain()
        assert not speaker.ready
        with pytest.raises(StoppingError, match="stopping"):
            await speaker.speak(Order("otra"))
        opener.opened[0].gate.set()
        assert (await running).duration_seconds == 0.09

    asyncio.run(scene())


def test_closing_answers_who_waits_and_leaves_no_thread(make_speaker: MakeSpeaker, opener: Opener) -> None:
    before = threading.active_count()

    async def scene() -> None:
        speaker = make_speaker(default="ana", workers=1)
        await speaker.warm()
        voice = opener.opened[0]
        voice.gate.clear()
        waiting = [asyncio.create_task(speaker.speak(Order(text))) for text in "abc"]
        await asyncio.sleep(0.02)
        threading.Timer(0.05, voice.gate.set).start()
        await asyncio.to_thread(speaker.close)
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(answer, OverloadedError) for answer in answers)
        assert voice.closed
        assert value(speaker.metrics, "vits_voices_loaded") == 0
        assert value(speaker.metrics, "vits_requests_in_flight") == 0

    asyncio.run(scene())
    assert threading.active_count() == before
