"""A real browser without a window, and pages in it that complain."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
#: Sound may be played at once, and the microphone is one that beeps; both without asking.
OPTIONS = (
    "--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)  # fmt: skip


@contextmanager
def opened_browser() -> Iterator[Any]:
    """Chromium, where there is one."""
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=list(OPTIONS))
        yield opened
        opened.close()


def new_page(browser: Any, url: str) -> tuple[Any, list[str]]:
    """A page, opened, and what it complains of from then on: errors, and requests to anywhere else."""
    page = browser.new_page()
    complaints: list[str] = []
    page.on(
        "console",
        lambda message: (
            complaints.append(f"{message.text} {message.location}") if message.type == "error" else None
        ),
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith((url, "blob:")) else complaints.append(f"outside: {request.url}")
        ),
    )
    page.goto(url)
    return page, complaints


def wait_for(condition: Any) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def until(page: Any, condition: str) -> None:
    """Wait for JavaScript to be true; the page's policy forbids the browser to evaluate it by itself."""
    wait_for(lambda: page.evaluate(condition))
