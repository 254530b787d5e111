"""Pictures and sound of a run's evaluations, on disk, for its report.

They lie in ``OUTPUT_DIR/runs/artefacts`` with an index, so that a resumed run's report still has those from
before. Of a long run only some evaluations are kept, spread over it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
from matplotlib.figure import Figure
from numpy.typing import NDArray

INDEX_FILE = "index.json"
#: Evaluations that are kept, spread over the run; the first and the last are always among them.
MAX_EVALUATIONS = 16


@dataclass(frozen=True)
class Artefact:
    """One picture or sound.

    Attributes:
        step: Where it was made.
        kind: ``figure`` (PNG) or ``audio`` (FLAC).
        name: What it is one of; the same at every evaluation.
        title: For the reader.
        file: Its file's name in the folder.
    """

    step: int
    kind: str
    name: str
    title: str
    file: str


def read_index(folder: Path) -> list[Artefact]:
    """Everything that is there, oldest first; nothing where there is no folder, or its index is not ours."""
    try:
        return [Artefact(**item) for item in json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):  # pictures are not worth stopping a training for
        return []


class Artefacts:
    """Writes them.

    Args:
        folder: Where they go; made when there is something to put there.
        first_step: Where the run goes on from; what an earlier one left there for later steps is removed.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self.folder = folder
        self._items = read_index(folder)
        if self._items:
            # A run from its beginning starts afresh; what a resumed one saw at its own step is its own.
            self._keep([item for item in self._items if item.step <= first_step and first_step > 0])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers are kept elsewhere."""

    def figure(self, step: int, name: str, figure: Figure, title: str) -> None:
        """Keep a picture as PNG."""
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=90)
        self._add(step, "figure", name, title, data.getvalue(), "png")

    def audio(
        self, step: int, name: str, samples: NDArray[np.float32], sampling_rate: int, title: str
    ) -> None:
        """Keep sound as 16-bit FLAC, which every browser plays."""
        data = io.BytesIO()
        soundfile.write(data, np.clip(samples, -1, 1), sampling_rate, format="FLAC", subtype="PCM_16")
        self._add(step, "audio", name, title, data.getvalue(), "flac")

    def close(self) -> None:
        """Everything is written already."""

    def _add(self, step: int, kind: str, name: str, title: str, data: bytes, suffix: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = f"{name.replace('/', '-')}-{step}.{suffix}"
        (self.folder / file).write_bytes(data)
        added = Artefact(step, kind, name, title, file)
        self._items = [item for item in self._items if item.file != file] + [added]
        self._keep(_thinned(self._items))

    def _keep(self, items: list[Artefact]) -> None:
        """Write the index of what stays, then delete what does not."""
        gone = {item.file for item in self._items} - {item.file for item in items}
        partial = self.folder / f"{INDEX_FILE}.partial"
        partial.write_text(json.dumps([asdict(item) for item in items], indent=1), encoding="utf-8")
        partial.replace(self.folder / INDEX_FILE)
        for file in gone:
            (self.folder / file).unlink(missing_ok=True)
        self._items = items


def _thinned(items: list[Artefact]) -> list[Artefact]:
    """Not more than :data:`MAX_EVALUATIONS` steps: the one with the closest neighbours goes."""
    steps = sorted({item.step for item in items})
    if len(steps) <= MAX_EVALUATIONS:
        return items
    crowded = min(range(1, len(steps) - 1), key=lambda at: steps[at + 1] - steps[at - 1])
    return [item for item in items if item.step != steps[crowded]]
