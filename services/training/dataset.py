"""From recordings to batches: what is left out and why, the tokens, the padding. ``sampler`` orders them.

Shapes: B batch, T tokens, F frames, S samples.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from services.training.config import SEGMENT_SAMPLES, TrainingConfig
from services.training.data import Recording
from services.training.data.augmentation import Augmentation
from services.training.data.cache import Progress, Treatment, decode
from services.training.data.writing import write_table
from services.training.features import FeatureSettings
from shared.audio import PCM16_FULL_SCALE, from_pcm16
from shared.errors import DataError, TextError
from shared.text import FrontEnd, Tokens
from shared.wording import counted

#: Names listed on the screen; the file has all.
_MAX_LISTED = 20
#: The same of those that are shown with their transcripts.
_MAX_NAMED = 5


@dataclass(frozen=True)
class Example:
    """One usable recording: its tokens, and where its samples are in the cache."""

    id: str
    text: str
    token_ids: tuple[int, ...]
    speaker_id: int
    index: int
    """Position in the split."""
    start: int
    """First sample in the cache."""
    samples: int
    """Length in the cache."""
    unspoken: tuple[str, ...] = ()
    """Letters, marks and digits of the text that the model has no token for, and learns to leave out."""
    row: str = ""
    """Where the dataset lists it."""


@dataclass(frozen=True)
class Dropped:
    """One recording that was left out, and why."""

    id: str
    kind: str
    """What is wrong, in the words that others with the same fault are counted by."""
    reason: str
    """What is wrong with this one."""
    row: str = ""
    """Where the dataset lists it."""


@dataclass(frozen=True)
class Batch:
    """What one step is fed, ragged items padded."""

    ids: tuple[str, ...]
    index: Tensor
    """[B] int64, the recordings' positions in the split; keys the noise that each is given."""
    input_ids: Tensor
    """[B, T] int64."""
    token_lengths: Tensor
    """[B] int64."""
    padded_waveform: Tensor
    """[B, padding + S + padding] float32; each item is reflected at its own two ends."""
    frame_lengths: Tensor
    """[B] int64."""
    speaker_id: Tensor
    """[B] int64."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return Batch(
            self.ids,
            *(
                tensor.to(device, non_blocking=True)
                for tensor in (
                    self.index,
                    self.input_ids,
                    self.token_lengths,
                    self.padded_waveform,
                    self.frame_lengths,
                    self.speaker_id,
                )
            ),
        )

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; a data loader calls this."""
        return Batch(
            self.ids,
            self.index.pin_memory(),
            self.input_ids.pin_memory(),
            self.token_lengths.pin_memory(),
            self.padded_waveform.pin_memory(),
            self.frame_lengths.pin_memory(),
            self.speaker_id.pin_memory(),
        )


class Examples(Dataset[Example]):
    """Usable recordings over a memory-mapped cache of their samples at the model's rate.

    Args:
        examples: The recordings.
        pcm: The cache.
        settings: The model's view of audio.
        augmentation: How batches of a training epoch vary them.
        seed: Draws what is varied.
        segment_size: Samples of the slice that is decoded in training, which a varied recording keeps room for.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        pcm: NDArray[np.int16],
        settings: FeatureSettings,
        *,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        segment_size: int = SEGMENT_SAMPLES,
    ) -> None:
        self.examples = list(examples)
        self.pcm = pcm
        self.settings = settings
        self.augmentation = augmentation or Augmentation()
        self.seed = seed
        self.segment_size = segment_size

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def waveform(self, example: Example, epoch: int | None = None) -> NDArray[np.float32]:
        """[S] in [-1, 1]; varied as training's ``epoch`` hears it, where one is given."""
        samples = from_pcm16(self.pcm[example.start : example.start + example.samples])
        change = None if epoch is None else self.augmentation.draw(self.seed, epoch, example.id)
        if change is None:
            return samples
        # No faster than leaves a frame for every token, and a segment to decode.
        hop = self.settings.hop_length
        least = max(len(example.token_ids) * hop, -(-self.segment_size // hop) * hop)
        return change.apply(samples, self.settings.sampling_rate, min_samples=least)

    def peak(self, example: Example) -> float:
        """The largest of an example's samples, whatever its sign, of 1."""
        pcm = self.pcm[example.start : example.start + example.samples]
        return max(int(pcm.max()), -int(pcm.min())) / PCM16_FULL_SCALE

    def frames(self, example: Example) -> int:
        """Whole frames in an example."""
        return self.settings.frames(example.samples)

    def most_frames(self, example: Example) -> int:
        """Whole frames that it can come to when it is varied, which a batch must have room for."""
        slowest = 1 - self.augmentation.speed if self.augmentation else 1
        return self.settings.frames(math.ceil(example.samples / slowest))

    @property
    def hours(self) -> float:
        """Length of all examples."""
        return sum(example.samples for example in self.examples) / self.settings.sampling_rate / 3600

    def collate(self, examples: Sequence[Example], epoch: int | None = None) -> Batch:
        """Pad examples into a batch; varied as training's ``epoch`` hears them, where one is given."""
        hop, padding = self.settings.hop_length, self.settings.padding
        tokens = max(len(example.token_ids) for example in examples)
        waveforms = [self.waveform(example, epoch) for example in examples]
        frames = [self.settings.frames(len(waveform)) for waveform in waveforms]
        input_ids = torch.zeros(len(examples), tokens, dtype=torch.long)
        padded = torch.zeros(len(examples), max(frames) * hop + 2 * padding)
        for row, example in enumerate(examples):
            input_ids[row, : len(example.token_ids)] = torch.tensor(example.token_ids)
            waveform = np.pad(waveforms[row], padding, mode="reflect")[: frames[row] * hop + 2 * padding]
            padded[row, : len(waveform)] = torch.from_numpy(waveform)
        return Batch(
            ids=tuple(example.id for example in examples),
            index=torch.tensor([example.index for example in examples]),
            input_ids=input_ids,
            token_lengths=torch.tensor([len(example.token_ids) for example in examples]),
            padded_waveform=padded,
            frame_lengths=torch.tensor(frames),
            speaker_id=torch.tensor([example.speaker_id for example in examples]),
        )


class HeldOut(Sequence[Batch]):
    """The evaluation's batches, which never change: recordings of like length share one.

    Each is padded anew whenever it is asked for, so that one alone is in memory.

    Args:
        examples: The split; none for no batch.
        size: Recordings in a batch.
    """

    def __init__(self, examples: Examples | None, size: int) -> None:
        self.examples = examples
        count = len(examples) if examples else 0
        order = sorted(range(count), key=lambda index: examples.frames(examples[index]) if examples else 0)
        self.batches = [order[start : start + size] for start in range(0, count, size)]

    def __len__(self) -> int:
        return len(self.batches)

    @overload
    def __getitem__(self, number: int) -> Batch: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Batch]: ...
    def __getitem__(self, number: int | slice) -> Batch | Sequence[Batch]:
        if isinstance(number, slice):
            part = HeldOut(None, 1)
            part.examples, part.batches = self.examples, self.batches[number]
            return part
        return self._collate(self.batches[number])

    @property
    def recordings(self) -> list[int]:
        """All of them in the batches' order, each to be asked for by :meth:`alone`."""
        return [index for batch in self.batches for index in batch]

    def digest(self) -> str | None:
        """Tells what the figures depend on beside the model: recordings, their texts, the slices' length. None
        without recordings.
        """
        if not self.batches or self.examples is None:
            return None
        digest = hashlib.sha256(f"{self.examples.segment_size}\n".encode())
        for example in self.examples.examples:
            digest.update(f"{example.token_ids} {example.speaker_id} {example.samples}\n".encode())
            digest.update(self.examples.pcm[example.start : example.start + example.samples].tobytes())
        return digest.hexdigest()

    def alone(self, recording: int) -> Batch:
        """A batch of one recording, which nothing pads."""
        return self._collate([recording])

    def _collate(self, indices: Sequence[int]) -> Batch:
        assert self.examples is not None  # noqa: S101 - there is no batch without examples
        return self.examples.collate([self.examples[index] for index in indices])


def normalise_text(text: str, config: TrainingConfig) -> str:
    """A text as the model is to see it: training's, evaluation's and the sample sentences alike.

    Accents are joined to their letters (Unicode NFC, as vocabularies have them), any white space is one
    blank, and with ``do_lower_case`` there are no capitals.
    """
    text = " ".join(unicodedata.normalize("NFC", text).split())
    return text.lower() if config.do_lower_case else text


def keep_speaker(
    recordings: Sequence[Recording],
    wanted: int | str | None,
    *,
    role: str = "training",
    split: str = "train",
) -> list[Recording]:
    """Only one speaker's recordings, in training and evaluation alike.

    Args:
        recordings: Those of a split.
        wanted: The speaker; None for all.
        role: What the split is for, ``training`` or ``evaluation``.
        split: Its name.

    Raises:
        DataError: Nobody in it is called that.
    """
    if wanted is None:
        return list(recordings)
    kept = [recording for recording in recordings if recording.speaker == str(wanted)]
    if not kept:
        present = sorted({recording.speaker for recording in recordings if recording.speaker is not None})
        problems = [
            f"its speakers are {', '.join(present[:20])}"
            if present
            else "no speakers were read: set speaker_id_column_name to the column that names them"
        ]
        if present and role == "evaluation":
            problems.append(
                "where the dataset names no splits, a twentieth is held out, whoever speaks in it: give another "
                "--eval_split_name, or train without evaluations: --do_eval false"
            )
        raise DataError(
            f"filter_on_speaker_id {wanted!r} keeps no recording of the {role} split {split!r}.", problems
        )
    return kept


def prepare(
    recordings: Sequence[Recording],
    front_end: FrontEnd,
    settings: FeatureSettings,
    config: TrainingConfig,
    *,
    speakers: Mapping[str, int],
    trained: Collection[str] = (),
    cache: Path,
    limit: int | None = None,
    progress: Progress | None = None,
    augmentation: Augmentation | None = None,
) -> tuple[Examples, list[Dropped]]:
    """Decode, tokenise and filter one split.

    Args:
        recordings: The split.
        front_end: The model's text front end.
        settings: The model's view of audio.
        config: Its filters and its limits.
        speakers: Ids of the speakers' names; empty for a model of one.
        trained: Who speaks in the training split; nobody where it names none.
        cache: Folder of the PCM16 caches.
        limit: Keep only the first so many usable ones; what comes after them is not looked at.
        progress: Told of each recording, when there is anything to decode.
        augmentation: How the split is varied when it is trained on.

    Returns:
        The usable examples, and every recording that was left out of those looked at, with its reason.

    Raises:
        DataError: Recordings cannot be decoded.
    """
    treatment = Treatment(
        settings.sampling_rate, config.trim_silence, config.loudness, normalize=config.do_normalize
    )

    def judged(number: int, samples: int) -> Tokens | _Fault:
        """A recording's tokens, or what makes it unusable."""
        recording = recordings[number]
        text = normalise_text(recording.text, config)
        fault = _fault_of_text(text) or _fault_of_speaker(recording, speakers, trained)
        if fault is not None:
            return fault
        try:
            tokens = front_end.tokenize(text)
        except TextError as error:
            return "nothing in the text that the model can speak", str(error)
        return _fault_of_length(len(tokens.ids), samples, settings, config) or tokens

    pcm, lengths = decode(
        recordings,
        treatment,
        cache=cache,
        workers=config.preprocessing_num_workers,
        progress=progress,
        limit=limit,
        counts=lambda number, samples: not isinstance(judged(number, samples), tuple),
    )
    examples: list[Example] = []
    dropped: list[Dropped] = []
    start = 0
    for number, samples in enumerate(lengths):
        if len(examples) == limit:  # the cache may have more
            break
        recording, found = recordings[number], judged(number, samples)
        if isinstance(found, tuple):
            dropped.append(Dropped(recording.id, *found, recording.row))
        else:
            text, speaker = normalise_text(recording.text, config), speakers.get(recording.speaker or "", 0)
            examples.append(
                Example(
                    recording.id, text, found.ids, speaker, len(examples), start, samples, unspoken(found),
                    recording.row,
                )
            )  # fmt: skip
        start += samples
    usable = Examples(
        examples,
        pcm,
        settings,
        augmentation=augmentation,
        seed=config.seed,
        segment_size=config.segment_size,
    )
    return usable, dropped


def unspoken(tokens: Tokens) -> tuple[str, ...]:
    """Letters, marks and digits of a text that the model has no token for; punctuation is no loss."""
    return tuple(symbol for symbol in tokens.unknown if unicodedata.category(symbol[0])[0] in "LMN")


#: What is wrong in general, and in particular.
_Fault = tuple[str, str]


def _fault_of_text(text: str) -> _Fault | None:
    if not text:
        return "empty text", "its text is empty"
    if not re.search(r"\w", text):
        return "empty text", f"its text {text!r} holds no letter"
    return None


def _fault_of_speaker(
    recording: Recording, speakers: Mapping[str, int], trained: Collection[str]
) -> _Fault | None:
    """Held-out recordings of somebody whom nobody trains: the model has no such voice."""
    known = speakers or trained
    if not known or recording.speaker is None or recording.speaker in known:
        return None
    among = f"the {len(known)}" if len(known) > 1 else "those"
    return (
        "a speaker that is not in the training split",
        f"its speaker {recording.speaker!r} is not among {among} of the training split",
    )


def _fault_of_length(
    tokens: int, samples: int, settings: FeatureSettings, config: TrainingConfig
) -> _Fault | None:
    seconds, frames = samples / settings.sampling_rate, settings.frames(samples)
    segment = settings.frames(config.segment_size)
    if seconds > config.max_duration_in_seconds:
        kind = f"longer than max_duration_in_seconds {config.max_duration_in_seconds}"
        return kind, f"{seconds:.1f} s is {kind}"
    if seconds < config.min_duration_in_seconds:
        kind = f"shorter than min_duration_in_seconds {config.min_duration_in_seconds}"
        return kind, f"{seconds:.2f} s is {kind}"
    if frames < segment:
        kind = f"shorter than segment_size {config.segment_size}"
        needed = config.segment_size / settings.sampling_rate
        return kind, f"{frames} frames are {kind}, which is {segment} frames or {needed:.2f} s"
    if tokens > config.max_tokens_length:
        limit = f"than max_tokens_length {config.max_tokens_length}"
        return f"more tokens {limit}", f"{tokens} tokens are more {limit}"
    if tokens > frames:
        return (
            "more tokens than frames",
            f"{tokens} tokens do not fit into {frames} frames: is the transcript longer than the recording?",
        )
    return None


def describe_dropped(dropped: Sequence[Dropped]) -> list[str]:
    """What was left out, for the screen: how many for each reason, then the first names."""
    lines = [f"{count:6,} {kind}" for kind, count in Counter(item.kind for item in dropped).most_common()]
    lines += [f"left out {item.id}: {item.reason}" for item in dropped[:_MAX_LISTED]]
    if len(dropped) > _MAX_LISTED:
        lines.append(f"… and {len(dropped) - _MAX_LISTED:,} more")
    return lines


def write_dropped(path: Path, dropped: Mapping[str, Sequence[Dropped]]) -> None:
    """Write everything that was left out, a CSV line each; no file where that is nothing.

    Args:
        path: The file; one from an earlier run is replaced.
        dropped: By the name of the split.
    """
    if not any(dropped.values()):
        path.unlink(missing_ok=True)
        return
    rows = [
        [split, item.id, item.row, item.kind, item.reason]
        for split, items in dropped.items()
        for item in items
    ]
    write_table(path, ["split", "id", "row", "kind", "reason"], rows)


def describe_unspoken(examples: Mapping[str, Examples], listed_in: str) -> list[str]:
    """Transcripts that say more than the model has tokens for, for the screen: the characters, then the first names.

    Args:
        examples: By the name of the split.
        listed_in: Where all of them are listed, as the end of a sentence.
    """
    lacking = [example for usable in examples.values() for example in usable.examples if example.unspoken]
    if not lacking:
        return []
    symbols = Counter(symbol for example in lacking for symbol in example.unspoken)
    told = ", ".join(f"{symbol!r} ({count})" for symbol, count in symbols.most_common(_MAX_LISTED))
    summary = (
        f"{counted(len(lacking), 'transcript')} with characters that the model has no token for, so that it learns to "
        f"leave out what is said there: {told}{listed_in}"
    )
    lines = [
        summary,
        *(f"  {example.row} ({example.id}): {example.text}" for example in lacking[:_MAX_NAMED]),
    ]
    if len(lacking) > _MAX_NAMED:
        lines.append(f"  … and {len(lacking) - _MAX_NAMED:,} more")
    return lines


def write_unspoken(path: Path, examples: Mapping[str, Examples]) -> None:
    """Write every transcript that says more than the model has tokens for, a CSV line each; no file without any.

    Args:
        path: The file; one from an earlier run is replaced.
        examples: By the name of the split.
    """
    rows = [
        [split, example.id, example.row, " ".join(example.unspoken), example.text]
        for split, usable in examples.items()
        for example in usable.examples
        if example.unspoken
    ]
    if rows:
        write_table(path, ["split", "id", "row", "characters", "text"], rows)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def decoding_progress(console_enabled: bool, what: str = "decoding") -> Iterator[Progress | None]:
    """A bar on the terminal for ``prepare(progress=…)``, shown only while there is anything to decode.

    Args:
        console_enabled: Whether there is anybody to show it to; nothing is yielded otherwise.
        what: Its label.
    """
    if not console_enabled:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)
