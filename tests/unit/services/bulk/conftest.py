"""A voice of arithmetic in a real registry, spoken by the real worker."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from services.bulk import worker
from services.cli import main
from shared.errors import EngineError
from shared.registry import Registry
from shared.store import Store
from shared.voice import Voice, VoiceSpec
from shared.voice.engine import Arrays
from tests.unit.shared.voice.conftest import FakeEngine, spec_fields


class CountingEngine(FakeEngine):
    """Counts renderings of all voices, and fails at one of them.

    Attributes:
        rendered: Renderings so far.
        fail_at: The number of the rendering that fails; no one where None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rendered = 0
        self.fail_at: int | None = None
        self._lock = threading.Lock()

    def run(self, graph: str, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        if graph == "encoder":
            with self._lock:
                self.rendered += 1
                if self.rendered == self.fail_at:
                    raise EngineError("the engine broke")
        return super().run(graph, inputs)


class World:
    """A folder with a voice, a table and an output."""

    def __init__(self, root: Path, engine: CountingEngine) -> None:
        self.root = root
        self.engine = engine
        self.store, self.output = root / "store", root / "spoken"

    def publish(self, **changes: Any) -> str:
        """Publish the voice, in another version each time."""
        folder = self.root / f"voice{len(list(self.root.iterdir()))}"
        folder.mkdir()
        VoiceSpec.model_validate(spec_fields(**changes)).write(folder)
        registry = Registry(Store.open(str(self.store)))
        version = registry.publish(
            "voices", "ana", folder, licence="CC0-1.0", sources=["nobody"], consent=None, lineage={}
        )
        return version.reference

    def table(self, *rows: Mapping[str, object], name: str = "texts.jsonl") -> Path:
        path = self.root / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    def run(self, table: Path, *more: str) -> int:
        self.engine.rendered = -1  # warming up renders once
        options = ["--input", str(table), "--output", str(self.output), "--store", str(self.store)]
        return main(["synthesize", *options, "--shard-rows", "4", "--format", "wav", *more])

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.output / name).read_text(encoding="utf-8").splitlines()]

    def files(self) -> dict[str, tuple[int, bytes]]:
        """Every file of the output, with when it was written."""
        return {
            str(path.relative_to(self.output)): (path.stat().st_mtime_ns, path.read_bytes())
            for path in self.output.rglob("*")
            if path.is_file()
        }


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    engine = CountingEngine()

    def opening(*, tell: Callable[[int], None], **_: object) -> Callable[[Path], Voice]:
        def open_voice(folder: Path) -> Voice:
            tell(2)
            return Voice(VoiceSpec.read(folder), engine)

        return open_voice

    monkeypatch.setattr(worker, "Opening", opening)
    made = World(tmp_path, engine)
    made.publish()
    return made
