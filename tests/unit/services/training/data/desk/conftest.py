"""A browser for the pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser import opened_browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, one for the tests of a page; two open at once would share an event loop."""
    with opened_browser() as opened:
        yield opened
