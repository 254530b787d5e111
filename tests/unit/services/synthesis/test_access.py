"""Tokens, quotas and the longest audio."""

from __future__ import annotations

import asyncio
import hmac
import json
import os
from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.synthesis.access import Access, Caller, add_token, metered, read_tokens, token_hash
from shared.errors import AccessError, ConfigError, QuotaError, RequestError


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_a_file_everybody_may_speak() -> None:
    caller = Access().check(None)
    caller.charge(1e9)
    assert Access().check("Basic x").name == ""
    caller.check_quota()


def test_a_token_is_made_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    token = add_token(path, "web")
    other = add_token(path, "batch", audio_seconds_per_hour=60)
    assert token.startswith("vits_")
    assert len(token) > 40
    assert token != other
    assert token not in path.read_text()
    assert token_hash(token) in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    assert [known.name for known in read_tokens(path)] == ["web", "batch"]
    access = Access(path)
    assert access.check(f"Bearer {token}").name == "web"
    assert access.check(f"bearer  {other}").name == "batch"
    with pytest.raises(ConfigError, match="already"):
        add_token(path, "web")


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic vits_x", "Bearer vits_x", "Bearer \ud800", "vits_x"]
)
def test_others_are_refused(tmp_path: Path, header: str | None) -> None:
    add_token(tmp_path / "tokens.json", "web")
    with pytest.raises(AccessError):
        Access(tmp_path / "tokens.json").check(header)


@pytest.mark.parametrize("right", [False, True])
def test_every_hash_is_compared_in_constant_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: bool
) -> None:
    """Of the right token, too, and not only up to it: how long it takes must not tell which it is."""
    path = tmp_path / "tokens.json"
    tokens = [add_token(path, name) for name in ("web", "batch", "night")]
    access = Access(path)
    compared: list[tuple[str, str]] = []

    def compare(known: str, given: str) -> bool:
        compared.append((known, given))
        return hmac.compare_digest(known, given)

    monkeypatch.setattr("services.synthesis.access.hmac", SimpleNamespace(compare_digest=compare))
    given = tokens[0] if right else "vits_x"
    with nullcontext() if right else pytest.raises(AccessError):
        access.check(f"Bearer {given}")
    assert compared == [(token_hash(token), token_hash(given)) for token in tokens]


@given(header=st.text())
def test_no_header_is_a_failure_of_the_server(tmp_path_factory: pytest.TempPathFactory, header: str) -> None:
    path = tmp_path_factory.mktemp("tokens") / "tokens.json"
    add_token(path, "web")
    with pytest.raises(AccessError):
        Access(path).check(header)


def test_a_quota_is_spent_and_fills_again(tmp_path: Path) -> None:
    clock = Clock()
    token = f"Bearer {add_token(tmp_path / 'tokens.json', 'web', audio_seconds_per_hour=60)}"
    access = Access(tmp_path / "tokens.json", clock=clock)
    access.check(token).charge(59)
    access.check(token).charge(11)  # what has begun is finished: the debt is paid by waiting
    with pytest.raises(QuotaError) as refused:
        access.check(token)
    assert access.check(token, speaking=False).name == "web"
    wait = refused.value.retry_after_seconds
    assert wait == pytest.approx(10 * 60 + 1)
    clock.now += wait - 1.5
    with pytest.raises(QuotaError):
        access.check(token)
    clock.now += 1.5
    access.check(token)
    clock.now += 1e6
    access.check(token).charge(60)  # never more than an hour's worth
    with pytest.raises(QuotaError):
        access.check(token)


@given(charges=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1000)), max_size=30))
def test_whoever_waits_as_told_is_let_in(charges: list[tuple[float, float]]) -> None:
    clock = Clock()
    caller = Caller("x", audio_seconds_per_hour=100, clock=clock)
    for seconds, pause in charges:
        clock.now += pause
        try:
            caller.check_quota()
        except QuotaError as error:
            clock.now += max(1.0, error.retry_after_seconds)
            caller.check_quota()
        caller.charge(seconds)


def test_the_file_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "tokens.json"
    clock = Clock()
    first = f"Bearer {add_token(path, 'first', audio_seconds_per_hour=10)}"
    access = Access(path, clock=clock)
    access.check(first).charge(20)
    second = f"Bearer {add_token(path, 'second')}"
    assert access.check(second).name == "second"
    with pytest.raises(QuotaError):  # still in debt
        access.check(first)
    path.write_text("{")
    os.utime(path, ns=(1, 1))
    assert access.check(second).name == "second"
    assert "the old ones stay" in caplog.text
    path.write_text('{"tokens": []}')
    with pytest.raises(AccessError):
        access.check(second)


def test_every_problem_of_a_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    good = {"name": "a", "sha256": "0" * 64}
    lines = [
        good,
        good,
        {"name": 1, "sha256": "X", "audio_seconds_per_hour": True},
        "x",
        good | {"colour": 1},
    ]
    path.write_text(json.dumps({"tokens": lines}))
    with pytest.raises(ConfigError) as refused:
        Access(path)
    text = str(refused.value)
    for problem in (
        "two tokens are called 'a'",
        "token 3: name",
        "token 3: sha256",
        "token 3: audio_seconds_per_hour",
        "token 4: is not an object",
        "token 5: there is no field 'colour'",
    ):
        assert problem in text
    for content in ("[]", "{}", "", '{"tokens": 3}'):
        path.write_text(content)
        with pytest.raises(ConfigError):
            Access(path)
    with pytest.raises(ConfigError, match="--new-token"):
        Access(tmp_path / "missing.json")


class Half:
    """Speaks three half seconds."""

    sampling_rate = 16000

    async def __aiter__(self) -> AsyncIterator[NDArray[np.float32]]:
        for _ in range(3):
            yield np.zeros(8000, np.float32)


def test_audio_is_charged_as_it_is_made_and_has_a_limit() -> None:
    async def listen(caller: Caller, limit: float) -> int:
        heard = 0
        try:
            async for samples in metered(Half(), caller, limit):
                heard += len(samples)
        except RequestError:
            return -heard
        return heard

    caller = Caller("x", audio_seconds_per_hour=2, clock=Clock())
    assert asyncio.run(listen(caller, 2.0)) == 24000
    caller.check_quota()
    assert asyncio.run(listen(caller, 1.0)) == -16000
    with pytest.raises(QuotaError):
        caller.check_quota()
