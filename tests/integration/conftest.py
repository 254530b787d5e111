"""One tiny voice and one server for all tests that only ask it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.integration.served import TINY_VOICE, Server, World, serving


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    world = World(root, root / "store")
    made = world.run(sys.executable, "-c", TINY_VOICE, str(world.root / "model"))
    assert made.returncode == 0, made.stderr
    return world


@pytest.fixture(scope="session")
def server(world: World) -> Iterator[Server]:
    with serving(world) as server:
        yield server
