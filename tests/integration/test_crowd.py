"""The law, on a real (tiny, random) voice: the same text, voice and seed give the same samples in any company.

And what must not happen to those who are spoken together: engines that fail, clients that leave, overload.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from services.synthesis.speaker import Order, Speaker, Spoken
from services.synthesis.voices import VoiceShelf
from shared.errors import EngineError, OverloadedError
from shared.metrics import Metrics
from shared.registry import Registry
from shared.store import Store
from shared.voice import Voice
from shared.voice.runtime import Runtime
from shared.voice.scheduler import Policy
from tests.integration.served import World

TEXTS = [
    "hola",
    "una frase corta. y otra que es algo más larga que la primera, con una coma",
    "sin punto ni coma " * 30,
    "¿una pregunta? ¡una respuesta! " * 6,
]


@pytest.fixture(scope="module")
def registry(world: World, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(Store.open(str(world.store)), tmp_path_factory.mktemp("crowd"))


class Failing(Voice):
    """A voice whose decoder fails, now and then or for one seed."""

    fail_batches = False
    fail_seed = -1

    def decode_windows(self, windows: Any) -> list[NDArray[np.float32]]:
        if self.fail_batches and len(windows) > 1:
            raise EngineError("the batch failed")
        if any(utterance.seed == self.fail_seed for utterance, _ in windows):
            raise EngineError("this one fails in any company")
        return super().decode_windows(windows)


@pytest.fixture(params=[(1, 1), (3, 1), (2, 4)], ids=["one stream", "three streams", "batches"])
def policy(request: pytest.FixtureRequest) -> Policy:
    streams, batch = request.param
    return Policy(streams=streams, max_batch=batch, max_backlog_seconds=1000)


@pytest.fixture
def speaker(registry: Registry, policy: Policy) -> Iterator[Speaker]:
    metrics = Metrics(CollectorRegistry())
    runtime = Runtime(policy, metrics)

    def open_voice(folder: Path) -> Failing:
        return Failing.open(folder, variant="fp32", threads=1)

    speaker = Speaker(
        VoiceShelf(registry, open_voice, metrics, forget=runtime.forget_voice), runtime, metrics
    )
    yield speaker
    speaker.close()


def voice_of(speaker: Speaker) -> Failing:
    voice = speaker.shelf.get().voice
    assert isinstance(voice, Failing)
    return voice


def assert_same(samples: NDArray[np.float32], expected: NDArray[np.float32], policy: Policy) -> None:
    """To the bit, but for batches, in which an engine may add in another order."""
    if policy.max_batch == 1:
        np.testing.assert_array_equal(samples, expected)
    else:
        np.testing.assert_allclose(samples, expected, atol=1e-5)


def test_alone_in_a_crowd_streamed_and_whole_are_the_same(speaker: Speaker, policy: Policy) -> None:
    voice = voice_of(speaker)
    orders = [Order(text, seed=seed) for seed in range(6) for text in TEXTS]
    alone = {order: voice.synthesize(order.text, seed=order.seed).samples for order in orders}
    for order in orders[:4]:
        streamed = np.concatenate(list(voice.stream(order.text, seed=order.seed)))
        np.testing.assert_array_equal(streamed, alone[order])

    async def hear(order: Order) -> NDArray[np.float32]:
        await asyncio.sleep(random.Random(str(order)).random() * 0.05)  # noqa: S311
        async with await speaker.start(order) as speaking:
            return np.concatenate([samples async for samples in speaking])

    async def crowd() -> list[NDArray[np.float32]]:
        return await asyncio.gather(*(hear(order) for order in orders))

    for order, samples in zip(orders, asyncio.run(crowd()), strict=True):
        assert_same(samples, alone[order], policy)


def test_what_leaves_and_what_comes_changes_nothing_for_those_who_stay(
    speaker: Speaker, policy: Policy
) -> None:
    voice = voice_of(speaker)
    expected = voice.synthesize(TEXTS[2], seed=1).samples

    async def leave(number: int) -> None:
        async with await speaker.start(Order(TEXTS[number % 4], seed=number)) as speaking:
            await anext(speaking)

    async def scene() -> Spoken:
        staying = asyncio.create_task(speaker.speak(Order(TEXTS[2], seed=1)))
        await asyncio.gather(*(leave(number) for number in range(20)))
        return await staying

    assert_same(asyncio.run(scene()).samples, expected, policy)
    assert len(speaker.runtime) == 0
    assert speaker.shelf.get().leases == 0


def test_an_engine_that_fails_fails_those_whom_it_fails_alone(speaker: Speaker, policy: Policy) -> None:
    voice = voice_of(speaker)
    alone = {seed: voice.synthesize(TEXTS[1], seed=seed).samples for seed in range(12)}
    voice.fail_batches, voice.fail_seed = True, 5

    async def crowd() -> list[Spoken | BaseException]:
        orders = [Order(TEXTS[1], seed=seed) for seed in alone]
        return await asyncio.gather(*map(speaker.speak, orders), return_exceptions=True)

    for seed, answer in enumerate(asyncio.run(crowd())):
        if seed == 5:
            assert isinstance(answer, EngineError)
        else:
            assert isinstance(answer, Spoken)
            assert_same(answer.samples, alone[seed], policy)
    voice.fail_batches, voice.fail_seed = False, -1
    assert_same(asyncio.run(speaker.speak(Order(TEXTS[1], seed=5))).samples, alone[5], policy)


@pytest.mark.parametrize("policy", [Policy(streams=2, max_backlog_seconds=0.5)], ids=[""])
def test_ten_times_overload_leaves_nobody_unanswered_and_nothing_behind(
    speaker: Speaker, policy: Policy
) -> None:
    voice = voice_of(speaker)
    expected = {text: voice.synthesize(text, seed=3).samples for text in TEXTS}
    threads = threading.active_count()

    async def scene() -> list[Spoken | BaseException]:
        await speaker.speak(Order(TEXTS[0]))
        asking = []
        for number in range(600):
            asking.append(asyncio.create_task(speaker.speak(Order(TEXTS[number % 4], seed=3))))
            await asyncio.sleep(0.001)
        return await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 60)

    answers = asyncio.run(scene())
    spoken = 0
    for number, answer in enumerate(answers):
        if isinstance(answer, Spoken):
            np.testing.assert_array_equal(answer.samples, expected[TEXTS[number % 4]])
            spoken += 1
        else:
            assert isinstance(answer, OverloadedError)
            assert answer.retry_after_seconds >= 1
    assert 0 < spoken < len(answers)
    assert len(speaker.runtime) == 0
    assert speaker.shelf.get().leases == 0
    assert threading.active_count() <= threads + 2  # the planners
