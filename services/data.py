"""``vits data``: training's reader of recordings, with evaluation's judges for ears (docs/adr/0008)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.training.data import cli
from services.training.data.listening import Ears


def main(argv: Sequence[str]) -> int:
    """Run ``vits data``.

    Raises:
        UserError: The arguments, the packages or the dataset cannot be used.
    """
    return cli.main(argv, listeners=listeners)


def listeners(*, language: str | None, recogniser: Path | None, wanted: Sequence[str]) -> Ears:
    """The judges that are installed, as preparing data asks for them.

    Raises:
        UserError: ``recogniser`` is no folder that faster-whisper can load.
        CorruptObjectError: Packaged weights are not those that are pinned.
    """
    from services.evaluation import activity, naturalness, recognition
    from services.evaluation.transcripts import character_errors

    loaders: dict[str, Any] = {
        "speech": activity.SileroVad,
        "recognition": lambda: recognition.Whisper(recogniser, language=language),
        "naturalness": naturalness.Dnsmos,
    }
    loaded: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name in wanted:
        try:
            loaded[name] = loaders[name]()
        except naturalness.MissingJudgeError as error:
            missing[name] = str(error)
    whisper = loaded.get("recognition")
    return Ears(
        speech=loaded.get("speech"),
        transcribe=whisper,
        transcriber="" if whisper is None else f"{whisper.folder.resolve()} {whisper.language}",
        character_errors=None
        if whisper is None
        else lambda text, heard: character_errors(text, heard, language).rate,
        naturalness=loaded.get("naturalness"),
        missing=missing,
    )
