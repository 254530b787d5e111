"""Settings through the environment and back."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from services.synthesis.settings import Settings, memory_limit
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


def test_every_setting_is_documented() -> None:
    page = (Path(__file__).parents[4] / "docs" / "operation.md").read_text(encoding="utf-8")
    variables = {f"VITS_{field.name.upper()}" for field in fields(Settings)}
    assert variables - set(re.findall(r"^\| `(VITS_\w+)` \|", page, re.MULTILINE)) == set()


def test_memory_is_a_part_of_what_the_container_may_have(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("1000000\n")
    assert memory_limit(limit) == 1_000_000
    limit.write_text("max\n")
    assert memory_limit(limit) == memory_limit(tmp_path / "none") > 1_000_000
    assert Settings(store="", memory_mb=3).memory_bytes == 3 << 20


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:3000"),  # noqa: S104
        ("::", "http://[::1]:3000"),
        ("fe80::1", "http://[fe80::1]:3000"),
        ("voices.example", "http://voices.example:3000"),
    ],
)
def test_the_address_to_call_is_one_that_can_be_called(host: str, url: str) -> None:
    assert Settings(store="", host=host).local_url == url


def test_a_log_format_that_is_none() -> None:
    with pytest.raises(ConfigError, match="VITS_LOG_FORMAT"):
        Settings.from_environment({"VITS_LOG_FORMAT": "xml"})


def test_every_problem_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_environment(
            {"VITS_GRPC_PORT": "many", "VITS_THREADS": "-1", "VITS_HOST": "::", "VITS_LEXICONS": "s3://a/b"}
        )
    assert [problem.partition(" ")[0] for problem in caught.value.problems] == [
        "VITS_GRPC_PORT",
        "VITS_THREADS",
        "VITS_LEXICONS",
    ]


@pytest.mark.parametrize("address", ["s3://bucket/words", "s3:/bucket/words"])
def test_lexicons_lie_in_a_folder_of_this_machine(address: str) -> None:
    told = f"VITS_LEXICONS cannot be used: '{address}' is an address; give a path on this machine"
    with pytest.raises(ConfigError, match=told):
        Settings.from_environment({"VITS_LEXICONS": address})
    assert Settings.from_environment({"VITS_LEXICONS": "./words"}).lexicons == "./words"
