"""What is an address and what a path."""

from __future__ import annotations

import pytest

from shared.addresses import is_address, why_no_path


@pytest.mark.parametrize(
    "text", ["s3://b", "https://x/y", "s3:/b", "S3:b", "gs//b", "az:", "file:/x", "memory:x"]
)
def test_what_was_meant_as_an_address_is_one(text: str) -> None:
    assert is_address(text)
    assert (why_no_path(text) or "").startswith(f"{text!r} is an address; give a path on this machine")


@pytest.mark.parametrize(
    "text",
    ["", ".", "a/b", "/a//b", "~/x", "s3", "s3/x", "files:x", "a:b", "ana/voz", "./s3:/b", "ana@latest"],
)
def test_paths_and_names_are_none(text: str) -> None:
    assert not is_address(text)
    assert why_no_path(text) is None


def test_what_is_only_like_an_address_can_be_said_to_be_a_path() -> None:
    assert why_no_path("s3:/b") == "'s3:/b' is an address; give a path on this machine (./s3:/b is one)"
    assert why_no_path("./s3:/b") is None
