"""Recording sentences one by one, from the browser's microphone into a dataset folder.

``prompts.json`` in the folder holds the sentences; a take is checked as soon as it arrives, and written as
``audio/0001.flac`` with a row in ``metadata.csv``. A take that is recorded again moves the former one to ``replaced/``.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from services.training.data.activity import energy_spans
from services.training.data.cleaning import clipped_share, signal_to_noise
from services.training.data.desk.server import Answer, Desk
from services.training.data.writing import replace_file, write_table
from shared.audio import Audio, encode_flac, read_audio
from shared.errors import DataError, UserError

FILES = {
    "/": "record.html", "/record.js": "record.js", "/wav.js": "wav.js", "/microphone.js": "microphone.js",
    "/desk.css": "desk.css",
}  # fmt: skip
PROMPTS_FILE = "prompts.json"
LANGUAGES = ("es", "en")

#: A take is no sentence outside of these.
SHORTEST_SECONDS, LONGEST_SECONDS = 0.4, 60.0
#: Quieter than this is a microphone that is too far away, or not switched on.
_FAINT_PEAK = 0.05
_NOISY_DB = 20.0


def shipped_prompts(language: str) -> list[str]:
    """Sentences to read out that come with the suite.

    Raises:
        UserError: There are none in this language.
    """
    root = language.lower().partition("-")[0]
    if root not in LANGUAGES:
        raise UserError(
            f"There are no sentences in {language!r} here, only in {' and '.join(LANGUAGES)}: give a text file, a "
            "sentence a line, with --prompts"
        )
    file = resources.files("services.training.data.desk") / f"prompts_{root}.json"
    return [str(sentence) for sentence in json.loads(file.read_text(encoding="utf-8"))]


def read_prompts(path: Path) -> list[str]:
    """A text file with a sentence a line; empty lines are left out.

    Raises:
        DataError: It cannot be read, or has no sentence, or has one twice.
    """
    try:
        lines = [" ".join(line.split()) for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read", [f"{error}: give a UTF-8 text file, a sentence a line"]
        ) from error
    found = [line for line in lines if line]
    problems = [
        f"{line!r} is in it twice: remove one" for line in dict.fromkeys(found) if found.count(line) > 1
    ]
    if problems or not found:
        raise DataError(f"{path} cannot be used", problems or ["it has no sentence: write one a line"])
    return found


class Session:
    """A folder that is being recorded into.

    Args:
        folder: Made where it is not there.
        prompts: The sentences; None goes on with those of the folder.

    Raises:
        UserError: The folder has other sentences, or none and none are given, or is another dataset.
    """

    def __init__(self, folder: Path, prompts: Sequence[str] | None) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        remembered = folder / PROMPTS_FILE
        if remembered.is_file():
            known = [str(sentence) for sentence in json.loads(remembered.read_text(encoding="utf-8"))]
            if prompts is not None and list(prompts) != known:
                raise UserError(
                    f"{folder} was begun with {len(known)} other sentences: leave --prompts out to go on with them, or "
                    "give another folder"
                )
            self.prompts = known
        else:
            if prompts is None:
                raise UserError("Say what is to be read out: --prompts FILE, or --language es (or en)")
            if folder.exists() and any(folder.iterdir()):
                raise UserError(f"{folder} is not empty and no recording session: give another folder")
            (folder / "audio").mkdir(parents=True, exist_ok=True)
            self.prompts = list(prompts)
            replace_file(remembered, json.dumps(self.prompts, ensure_ascii=False, indent=1).encode())
        self._write_table()

    def path(self, index: int) -> Path:
        """Where a sentence's take is, or will be."""
        return self.folder / "audio" / f"{index + 1:04d}.flac"

    def take(self, index: int, wav: bytes) -> tuple[Audio, list[str]]:
        """Check a take and keep it.

        Returns:
            It, and what is not quite right with it.

        Raises:
            UserError: It is no recording of a sentence; nothing is changed then.
        """
        audio = read_audio(wav)
        remarks = check(audio)
        with self._lock:
            path = self.path(index)
            if path.exists():
                replaced = self.folder / "replaced"
                replaced.mkdir(exist_ok=True)
                names = (replaced / f"{path.stem}-{number}.flac" for number in itertools.count(1))
                path.replace(next(name for name in names if not name.exists()))
            replace_file(path, encode_flac(audio.samples, audio.sampling_rate))
            self._write_table()
        return audio, remarks

    def _write_table(self) -> None:
        rows = [
            [f"audio/{self.path(index).name}", text]
            for index, text in enumerate(self.prompts)
            if self.path(index).is_file()
        ]
        write_table(self.folder / "metadata.csv", ["file_name", "text"], rows)


def check(audio: Audio) -> list[str]:
    """What is not quite right with a take.

    Raises:
        UserError: It is no recording of a sentence.
    """
    if not SHORTEST_SECONDS <= audio.duration_seconds <= LONGEST_SECONDS:
        raise UserError(
            f"the take lasts {audio.duration_seconds:.1f} s: read the sentence out from begin to end"
        )
    peak = float(abs(audio.samples).max())
    spans = energy_spans(audio)
    if not spans or peak < 1e-3:
        raise UserError("the take is silent: is the right microphone chosen, and switched on?")
    remarks = []
    if clipped_share(audio.samples) > 0:
        remarks.append("it is clipped: turn the microphone down, or go further away")
    elif peak < _FAINT_PEAK:
        remarks.append("it is faint: come nearer, or turn the microphone up")
    if signal_to_noise(audio, spans) < _NOISY_DB:
        remarks.append("it is noisy: close the window, switch the fan off")
    return remarks


def record_desk(session: Session, port: int = 0) -> Desk:
    """The page for a recording session."""

    def prompts(_: Sequence[str], __: bytes) -> Answer:
        listed: list[dict[str, Any]] = [
            {"index": index, "text": text, "recorded": session.path(index).is_file()}
            for index, text in enumerate(session.prompts)
        ]
        return Answer({"folder": str(session.folder), "prompts": listed})

    def sound(groups: Sequence[str], _: bytes) -> Answer:
        path = session.path(_index(groups, session))
        if not path.is_file():
            raise UserError("this sentence is not recorded yet")
        return Answer(body=path.read_bytes(), media_type="audio/flac")

    def take(groups: Sequence[str], body: bytes) -> Answer:
        audio, remarks = session.take(_index(groups, session), body)
        return Answer({"seconds": round(audio.duration_seconds, 2), "remarks": remarks})

    routes = [("GET", "/prompts", prompts), ("GET", r"/takes/(\d+)", sound), ("POST", r"/takes/(\d+)", take)]
    return Desk(FILES, routes, port)


def _index(groups: Sequence[str], session: Session) -> int:
    index = int(groups[0])
    if index >= len(session.prompts):
        raise UserError(f"there is no sentence {index}")
    return index
