"""The judges: recognition, two opinions on naturalness, and the likeness of voices.

Each is an optional package with its weights inside; nothing is ever fetched. A judge that is missing is named with
the reason and the remedy (`Judges.missing`), and what it would have scored is None, never a guess.

Shapes: S samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from services.evaluation import likeness, naturalness, recognition
from services.evaluation.transcripts import Errors, character_errors, word_errors
from shared.audio import resample
from shared.errors import EngineError, UserError, VitsError

#: What all of them hear.
JUDGE_RATE = 16_000
#: All judges, and what each of them measures.
JUDGES = {
    "recogniser": "WER and CER",
    "dnsmos": "DNSMOS",
    "distillmos": "DistillMOS",
    "likeness": "speaker likeness",
}

#: The packages whose versions each judge's opinion depends on, and those that all depend on.
PACKAGES = {
    "recogniser": ("faster-whisper", "ctranslate2", "num2words"),
    "dnsmos": ("speechmos",),
    "distillmos": ("distillmos", "torch"),
    "likeness": ("resemblyzer", "torch"),
}
_COMMON_PACKAGES = ("numpy", "onnxruntime", "soxr")
#: Our own code that an opinion depends on.
_CODE = ("judges.py", "likeness.py", "measures.py", "naturalness.py", "recognition.py", "transcripts.py")


@dataclass(frozen=True, eq=False)
class Score:
    """What the judges said of one clip. None is what a missing judge would have said.

    Attributes:
        seconds: How long the clip is.
        dnsmos: DNSMOS P.835, overall (Reddy, Gopal and Cutler 2022): 1 to 5.
        distillmos: DistillMOS (Stahl and Gamper 2025): 1 to 5.
        transcript: What the recogniser heard.
        words: Word errors against the text, where one was given.
        characters: Character errors.
        embedding: Unit vector of the speaker, to be compared with another's by their product.
    """

    seconds: float
    dnsmos: float | None = None
    distillmos: float | None = None
    transcript: str | None = None
    words: Errors | None = None
    characters: Errors | None = None
    embedding: NDArray[np.float32] | None = None


class Recogniser(Protocol):
    """Hears words."""

    def __call__(self, samples: NDArray[np.float32]) -> str:
        """What is said in [S] samples at 16 kHz."""
        ...


class Judges:
    """The judges that are installed here, each loaded when it is first needed.

    Args:
        recogniser: A local faster-whisper (CTranslate2) model folder; the packaged Whisper base where not given.
        language: What is spoken, as BCP 47 or ISO 639: for the recogniser and for numbers in texts. Without it,
            the recogniser guesses for each clip.
        only: The judges to ask; the others are neither loaded nor called missing.

    Raises:
        UserError: ``only`` names a judge that there is not.
    """

    def __init__(
        self,
        *,
        recogniser: Path | None = None,
        language: str | None = None,
        only: Sequence[str] = tuple(JUDGES),
    ) -> None:
        strangers = sorted(set(only) - set(JUDGES))
        if strangers:
            raise UserError(f"There is no judge {', '.join(strangers)}; there are {', '.join(JUDGES)}")
        self.language = language
        self._loaders: dict[str, Callable[[], Any]] = {
            "recogniser": lambda: recognition.Whisper(recogniser, language=language),
            "dnsmos": naturalness.Dnsmos,
            "distillmos": naturalness.DistillMos,
            "likeness": likeness.SpeakerEncoder,
        }
        self._wanted = tuple(name for name in JUDGES if name in set(only))
        self._loaded: dict[str, Any] = {}
        self._missing: dict[str, str] = {}

    def available(self) -> tuple[str, ...]:
        """The judges that can score; loads those that have not been.

        Raises:
            UserError: The recogniser's folder is not one.
            CorruptObjectError: Packaged weights are not those that are pinned.
        """
        self._load()
        return tuple(self._loaded)

    @property
    def missing(self) -> Mapping[str, str]:
        """The judges that were asked for and cannot score: why, and what to do."""
        self._load()
        return dict(self._missing)

    @cached_property
    def identity(self) -> Mapping[str, str]:
        """What scores depend on beside clip and text: judges with the same identity say the same.

        The versions of each judge's packages, the recogniser's model (SHA-256), the language, and our own code.
        """
        said = {name: _versions(PACKAGES[name]) for name in self.available()}
        if "recogniser" in said:
            said["recogniser"] += f", model {recognition.digest_of(self._loaded['recogniser'].folder)[:16]}"
        code = hashlib.sha256(b"".join((Path(__file__).parent / name).read_bytes() for name in _CODE))
        said["all"] = f"{_versions(_COMMON_PACKAGES)}, code {code.hexdigest()[:16]}"
        return {"language": self.language or "guessed", **said}

    def _load(self) -> None:
        for name in self._wanted:
            if name in self._loaded or name in self._missing:
                continue
            try:
                self._loaded[name] = self._loaders[name]()
            except naturalness.MissingJudgeError as error:
                self._missing[name] = str(error)

    def score(self, samples: NDArray[np.float32], sampling_rate: int, text: str | None = None) -> Score:
        """Score one clip by every judge there is.

        Args:
            samples: [S] mono, in [-1, 1].
            sampling_rate: Hz.
            text: What was to be said; without it there are no word and character errors.

        Raises:
            UserError: The clip is empty or holds values that are not numbers.
            EngineError: A judge failed.
        """
        heard = _as_judges_hear(samples, sampling_rate)
        self._load()
        verdicts = {name: self._ask(name, judge, heard) for name, judge in self._loaded.items()}
        transcript: str | None = verdicts.get("recogniser")
        compared = text is not None and transcript is not None
        return Score(
            seconds=len(samples) / sampling_rate,
            dnsmos=verdicts.get("dnsmos"),
            distillmos=verdicts.get("distillmos"),
            transcript=transcript,
            words=word_errors(text or "", transcript or "", self.language) if compared else None,
            characters=character_errors(text or "", transcript or "", self.language) if compared else None,
            embedding=verdicts.get("likeness"),
        )

    @staticmethod
    def _ask(name: str, judge: Callable[[NDArray[np.float32]], Any], heard: NDArray[np.float32]) -> Any:
        try:
            return judge(heard)
        except VitsError:
            raise
        except Exception as error:
            raise EngineError(f"The judge {name!r} failed: {type(error).__name__}: {error}") from error


def _versions(packages: Sequence[str]) -> str:
    """Packages with their versions; one without (onnxruntime-gpu is called otherwise) left out."""
    found = []
    for package in packages:
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return ", ".join(found)


def _as_judges_hear(samples: NDArray[np.float32], sampling_rate: int) -> NDArray[np.float32]:
    """[S] at 16 kHz, in [-1, 1].

    Raises:
        UserError: There is nothing to be heard.
    """
    if samples.ndim != 1 or not len(samples):
        raise UserError(f"A clip of shape {samples.shape} cannot be judged: give mono samples, at least one")
    if not np.isfinite(samples).all():
        raise UserError("A clip holds values that are not numbers (NaN or infinity), and cannot be judged")
    heard = resample(np.asarray(samples, np.float32), sampling_rate, JUDGE_RATE)
    return np.clip(heard, -1.0, 1.0)
