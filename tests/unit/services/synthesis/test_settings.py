"""Settings through the environment and back."""

from __future__ import annotations

import pytest

from services.synthesis.settings import Settings
from shared.errors import ConfigError


def test_there_and_back() -> None:
    settings = Settings(
        store="s3://bucket",
        voice="joe@production",
        host="::1",
        http_port=1,
        grpc_port=2,
        threads=3,
        tokens="/etc/vits/tokens.json",
        max_audio_seconds=5,
        grace_seconds=4,
    )
    assert Settings.from_environment(settings.to_environment()) == settings


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITS_STORE", "memory://x")
    assert Settings.from_environment({}) == Settings(store="memory://x")
    assert Settings.from_environment({"VITS_VOICE": "", "VITS_GRPC_PORT": ""}) == Settings(store="memory://x")


def test_every_problem_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_environment({"VITS_GRPC_PORT": "many", "VITS_THREADS": "-1", "VITS_HOST": "::"})
    assert [problem.partition(" ")[0] for problem in caught.value.problems] == [
        "VITS_GRPC_PORT",
        "VITS_THREADS",
    ]
