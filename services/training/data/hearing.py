"""What judges said of a sound, kept on disk: they are slow, and say the same again.

One file of JSON lines a recogniser, in the cache: a line is appended as soon as something was heard, so that work that
was stopped goes on where it was. A line that was cut off by a crash is left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from services.training.data.listening import EAR_RATE, Ears
from shared.audio import Audio, Samples
from shared.errors import UserError


class Hearing:
    """Asks the judges, unless it knows what they will say.

    Args:
        folder: Where it is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[Path, dict[str, Any]] = {}

    def transcript(self, sound: str, audio: Audio, ears: Ears) -> str | None:
        """What is said; None without a recogniser. ``sound`` is the samples' digest."""
        heard = self._ask(f"words of {ears.transcriber}", sound, audio, ears.transcribe)
        return None if heard is None else str(heard)

    def naturalness(self, sound: str, audio: Audio, ears: Ears) -> float | None:
        """DNSMOS; None where it is not installed."""
        score = self._ask("dnsmos", sound, audio, ears.naturalness)
        return None if score is None else float(score)

    def _ask(self, judge: str, sound: str, audio: Audio, ask: Callable[[Samples], Any] | None) -> Any:
        if ask is None:
            return None
        path = self._folder / f"{hashlib.sha256(judge.encode()).hexdigest()[:16]}.jsonl"
        known = self._known.get(path)
        if known is None:
            known = self._known[path] = _read(path)
        key = f"{sound}@{audio.sampling_rate}"
        if key not in known:
            known[key] = ask(audio.resampled(EAR_RATE).samples)
            _append(path, {"sound": key, "said": known[key]})
        return known[key]


def _read(path: Path) -> dict[str, Any]:
    """What is known; a line that is not whole is not."""
    known: dict[str, Any] = {}
    if not path.is_file():
        return known
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            entry = json.loads(line)
            known[entry["sound"]] = entry["said"]
        except (ValueError, KeyError, TypeError):
            continue
    return known


def _append(path: Path, entry: dict[str, Any]) -> None:
    """Add a line; on a line of its own even after one that was cut off.

    Raises:
        UserError: The cache cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0, 2)
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
    except OSError as error:
        raise UserError(
            f"What was heard cannot be kept in {path.parent} ({error.strerror or error}): make room there, or name "
            "another folder in the environment's VITS_CACHE"
        ) from error
