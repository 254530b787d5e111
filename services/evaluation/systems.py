"""What speaks: a voice, a model that has not been exported, or recordings of speech that was made elsewhere."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from shared.audio import Audio, read_audio_header
from shared.errors import DataError, MissingExtraError, ModelError, NotFoundError, UserError, nearest
from shared.registry import Registry
from shared.store import Store
from shared.text import FrontEnd
from shared.voice import Voice
from shared.voice.spec import VOICE_FILE
from shared.wording import counted

#: Endings of the files that are taken for speech in a folder without a table.
AUDIO_ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".webm")


@dataclass(frozen=True)
class Sentence:
    """Something to be said.

    Attributes:
        id: Names it within its dataset.
        text: What is to be said; None where nobody wrote it down.
        speaker: Who says it, where a dataset names speakers.
        recording: Fetches a person's recording of it, where there is one.
    """

    id: str
    text: str | None
    speaker: str | None = None
    recording: Callable[[], Audio] | None = None


@dataclass(frozen=True, eq=False)
class Spoken:
    """One sentence, said.

    Attributes:
        audio: The sound.
        seconds: What computing it took; None where it was only read.
        unknown: What of the text was left out, since the voice does not know it.
    """

    audio: Audio
    seconds: float | None = None
    unknown: tuple[str, ...] = ()


class System(Protocol):
    """Says sentences."""

    @property
    def kind(self) -> str:
        """``voice``, ``model`` or ``recordings``."""
        ...

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    @property
    def language(self) -> str | None:
        """What it speaks, where it says so."""
        ...

    def say(self, sentence: Sentence) -> Spoken:
        """Say one sentence.

        Raises:
            UserError: It cannot say this one.
        """
        ...


class VoiceSystem:
    """An exported voice.

    Args:
        folder: The voice folder.
        name: What reports call it.
        variant: Which of its precisions.
        speaker: Who says every sentence; each sentence's own speaker where not given.
        seed: Of every sentence's noise.
        threads: Of one computation.

    Raises:
        ModelError: It is not a voice folder.
        NotFoundError: The voice has no such variant.
        RequestError: It has no such speaker.
        EngineError: A computation failed.
        MissingExtraError: Its texts cannot be read without an extra that is not installed.
    """

    kind = "voice"

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        variant: str = "fp32",
        speaker: str | None = None,
        seed: int = 0,
        threads: int | None = None,
    ) -> None:
        self._voice = Voice.open(folder, variant=variant, threads=threads)
        spec = self._voice.spec
        spec.speaker_id(speaker)
        self._voice.warm_up()  # so that no sentence is timed with what is prepared for its length
        self.name = f"{name} ({variant})"
        self.language = None if spec.language == "und" else spec.language
        self._speaker, self._seed = speaker, seed

    def say(self, sentence: Sentence) -> Spoken:
        """Say one sentence; see `System`."""
        own = sentence.speaker if self._voice.spec.num_speakers > 1 else None
        start = time.perf_counter()
        speech = self._voice.synthesize(sentence.text or "", speaker=self._speaker or own, seed=self._seed)
        seconds = time.perf_counter() - start
        return Spoken(Audio(speech.samples, speech.sampling_rate), seconds, speech.script.unknown)


class ModelSystem:
    """A model folder as training left it, spoken with by PyTorch.

    Args:
        folder: The model folder.
        name: What reports call it.
        speaker: Who says every sentence, by name or number; each sentence's own speaker where not given.
        seed: Of every sentence's noise.

    Raises:
        MissingExtraError: PyTorch is not installed.
        ModelError: It is not a model folder.
        UserError: It has no such speaker.
    """

    kind = "model"

    def __init__(self, folder: Path, name: str, *, speaker: str | None = None, seed: int = 0) -> None:
        try:
            import torch

            from shared.modeling import load_model, synthesize
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"A model that has not been exported speaks by the package {error.name!r}, which is not installed. "
                "Install the extra: pip install 'vits-suite[train]'"
            ) from error
        self._torch, self._synthesize = torch, synthesize
        self._model = load_model(folder)
        self._front_end = FrontEnd.from_folder(folder)
        self._speakers = _speakers_of(folder)
        self._speaker, self._seed = speaker, seed
        self._speaker_id(speaker)
        self.name = name
        spec = self._front_end.spec
        self.language: str | None = spec.get("espeak_voice") or spec.get("language")

    def say(self, sentence: Sentence) -> Spoken:
        """Say one sentence; see `System`."""
        start = time.perf_counter()
        tokens = self._front_end.tokenize(sentence.text or "")
        speech = self._synthesize(
            self._model,
            self._torch.tensor(tokens.ids),
            seed=self._seed,
            speaker_id=self._speaker_id(self._speaker or sentence.speaker),
        )
        seconds = time.perf_counter() - start
        return Spoken(Audio(speech.samples, speech.sampling_rate), seconds, tokens.unknown)

    def _speaker_id(self, speaker: str | None) -> int | None:
        """A speaker's id; None for a model of one.

        Raises:
            UserError: There is no such speaker.
        """
        count = self._model.config.num_speakers
        if count <= 1:
            return None
        if speaker is None:
            return 0
        number = int(speaker) if speaker.isascii() and speaker.isdigit() else -1
        found = self._speakers.get(speaker, number)
        if not 0 <= found < count:
            known = ", ".join(self._speakers) or f"0 to {count - 1}"
            raise UserError(
                f"The model has no speaker {speaker!r}{nearest(speaker, list(self._speakers)) or '.'} "
                f"It has {known}"
            )
        return found


def _speakers_of(folder: Path) -> dict[str, int]:
    """The names of a model's speakers; empty where it has none.

    Raises:
        ModelError: The file is there and cannot be read.
    """
    path = folder / "speakers.json"
    if not path.is_file():
        return {}
    try:
        return {
            str(name): int(number) for name, number in json.loads(path.read_text(encoding="utf-8")).items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} does not give each speaker's name an id: {error}") from error


class RecordingsSystem:
    """Speech that is there already.

    Args:
        name: What reports call it.
        files: The file of each sentence, by the sentence's id.
    """

    kind = "recordings"
    language = None

    def __init__(self, name: str, files: Mapping[str, Callable[[], Audio]]) -> None:
        self.name = name
        self._files = files

    def say(self, sentence: Sentence) -> Spoken:
        """Read one sentence's file; see `System`."""
        return Spoken(self._files[sentence.id]())


def audio_files(folder: Path) -> dict[str, Path]:
    """The sounds in a folder and below it, by their path within it without the ending.

    Raises:
        DataError: There are none, or two of one name, or some that cannot be read.
    """
    found: dict[str, Path] = {}
    problems = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in AUDIO_ENDINGS or not path.is_file():
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            problems.append(f"{path} and {found[name].name} have one name: remove one of them")
        found.setdefault(name, path)
        try:
            read_audio_header(path)
        except UserError as error:
            problems.append(str(error))
    if not found:
        endings = ", ".join(AUDIO_ENDINGS)
        raise DataError(f"{folder} holds no recordings", [f"give a folder with audio files ({endings})"])
    if problems:
        raise DataError(f"{folder}: {counted(len(problems), 'recording')} cannot be used", problems)
    return found


def pair(files: Mapping[str, Path], sentences: Sequence[Sentence], where: str) -> list[Sentence]:
    """The sentence of each file, by its id or the last part of it.

    Raises:
        DataError: Files that no sentence belongs to; carries all of them.
    """
    by_id = {sentence.id: sentence for sentence in sentences}
    names = Counter(sentence.id.rpartition("/")[2] for sentence in sentences)
    by_name = {name: one for one in sentences if names[name := one.id.rpartition("/")[2]] == 1}
    paired, problems = [], []
    for name, path in files.items():
        sentence = by_id.get(name) or by_name.get(name.rpartition("/")[2])
        if sentence is None:
            problems.append(
                f"{path.name}: {where} has no sentence of that id: name files after its ids, or widen --split"
            )
        else:
            paired.append(replace(sentence, id=name))
    if problems:
        raise DataError(f"{counted(len(problems), 'recording')} of {len(files)} have no text", problems[:50])
    return paired


def find(
    reference: str,
    store_url: str,
    *,
    variant: str,
    speaker: str | None = None,
    seed: int = 0,
    threads: int | None = None,
) -> VoiceSystem | ModelSystem:
    """A voice's or a model's folder, or a voice or a model of the store; voices go before models.

    Raises:
        NotFoundError: It is none of them; the message says what was looked for where.
        ModelError: The folder is unusable.
        StoreError: The store failed.
    """
    folder = Path(reference).expanduser()
    if (folder / VOICE_FILE).is_file():
        return VoiceSystem(
            folder, folder.resolve().name, variant=variant, speaker=speaker, seed=seed, threads=threads
        )
    if (folder / "config.json").is_file():
        return ModelSystem(folder, folder.resolve().name, speaker=speaker, seed=seed)
    if reference.startswith((".", "/", "~")):
        raise NotFoundError(f"There is no folder {reference}: give a voice's, a model's or one of recordings")
    registry = Registry(Store.open(store_url))
    try:
        version = registry.resolve("voices", reference)
    except NotFoundError as error:
        try:
            version = registry.resolve("models", reference)
        except NotFoundError:
            raise NotFoundError(
                f"There is no folder {reference}, and {registry.store.url} has neither a voice nor a model of that "
                f"name: {error}"
            ) from error
        return ModelSystem(registry.fetch(version), version.reference, speaker=speaker, seed=seed)
    return VoiceSystem(
        registry.fetch(version),
        version.reference,
        variant=variant,
        speaker=speaker,
        seed=seed,
        threads=threads,
    )
