"""From recordings to batches: one decode, one resample, a PCM16 cache, and an order that can be resumed.

Shapes: B batch, T tokens, F frames, S samples.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from services.training.config import TrainingConfig
from services.training.data import Recording
from services.training.features import FeatureSettings
from shared.audio import from_pcm16, to_pcm16
from shared.errors import DataError, TextError, UserError
from shared.text import FrontEnd

#: Called with (recordings done, recordings in all).
Progress = Callable[[int, int], None]
_NORMALIZED_RMS = 0.1  # -20 dBFS


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


@dataclass(frozen=True)
class Dropped:
    """One recording that was left out, and why."""

    id: str
    reason: str


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
    """Usable recordings over a memory-mapped cache of their samples at the model's rate."""

    def __init__(
        self, examples: Sequence[Example], pcm: NDArray[np.int16], settings: FeatureSettings
    ) -> None:
        self.examples = list(examples)
        self.pcm = pcm
        self.settings = settings

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def waveform(self, example: Example) -> NDArray[np.float32]:
        """[S] in [-1, 1]."""
        return from_pcm16(self.pcm[example.start : example.start + example.samples])

    def frames(self, example: Example) -> int:
        """Whole frames in an example."""
        return example.samples // self.settings.hop_length

    @property
    def hours(self) -> float:
        """Length of all examples."""
        return sum(example.samples for example in self.examples) / self.settings.sampling_rate / 3600

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Pad examples into a batch."""
        hop, padding = self.settings.hop_length, self.settings.padding
        tokens = max(len(example.token_ids) for example in examples)
        frames = [self.frames(example) for example in examples]
        input_ids = torch.zeros(len(examples), tokens, dtype=torch.long)
        padded = torch.zeros(len(examples), max(frames) * hop + 2 * padding)
        for row, example in enumerate(examples):
            input_ids[row, : len(example.token_ids)] = torch.tensor(example.token_ids)
            waveform = np.pad(self.waveform(example), padding, mode="reflect")[
                : frames[row] * hop + 2 * padding
            ]
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


def speaker_map(recordings: Iterable[Recording], known: Mapping[str, int] | None = None) -> dict[str, int]:
    """Speaker names to ids: the known ones as they are, new ones after them in sorted order."""
    ids = dict(known or {})
    for name in sorted(
        {recording.speaker for recording in recordings if recording.speaker is not None} - ids.keys()
    ):
        ids[name] = max(ids.values(), default=-1) + 1
    return ids


def keep_speaker(recordings: Sequence[Recording], wanted: int | str | None) -> list[Recording]:
    """Only one speaker's recordings, in training and evaluation alike.

    Raises:
        DataError: Nobody is called that.
    """
    if wanted is None:
        return list(recordings)
    kept = [recording for recording in recordings if recording.speaker == str(wanted)]
    if not kept:
        present = sorted({recording.speaker for recording in recordings if recording.speaker is not None})
        raise DataError(
            f"filter_on_speaker_id {wanted!r} keeps no recording.",
            [
                f"the dataset's speakers are {', '.join(present[:20])}"
                if present
                else "no speakers were read: set speaker_id_column_name to the column that names them"
            ],
        )
    return kept


def _fingerprint(recordings: Sequence[Recording], rate: int, normalize: bool) -> str:
    """Names a cache by what is in it: which files, how large and how old, at what rate."""
    digest = hashlib.sha256(f"pcm16 v1 {rate} {normalize}\n".encode())
    for recording in recordings:
        digest.update(f"{recording.id}\0".encode())
        if recording.path is not None:
            status = recording.path.stat()
            digest.update(f"{recording.path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        else:
            source = recording.source()
            if isinstance(source, Path):
                source = source.read_bytes()
            digest.update(source if isinstance(source, bytes) else source.samples.tobytes())
    return digest.hexdigest()[:32]


def decode(
    recordings: Sequence[Recording],
    rate: int,
    *,
    cache: Path,
    normalize: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[NDArray[np.int16], list[int]]:
    """Every recording at one rate, one after another, through a cache on disk.

    Args:
        recordings: What to decode.
        rate: Hz.
        cache: Folder of the caches; one PCM16 file for each dataset and rate.
        normalize: Scale every recording to an RMS of -20 dBFS.
        workers: Threads that decode; as many as there are processors when left out.
        progress: Told of each recording.

    Returns:
        All samples, memory-mapped, and the length of each recording.

    Raises:
        DataError: Recordings cannot be decoded; it lists all of them.
    """
    name = _fingerprint(recordings, rate, normalize)
    data, index = cache / f"{name}.pcm16", cache / f"{name}.json"
    if not (index.is_file() and data.is_file()):
        cache.mkdir(parents=True, exist_ok=True)
        lengths, problems = [], []

        def one(recording: Recording) -> NDArray[np.int16] | str:
            try:
                samples = recording.audio(rate).samples
            except UserError as error:
                return f"{recording.row or recording.id}: {error}"
            if normalize:
                samples = samples * (_NORMALIZED_RMS / max(float(np.sqrt(np.mean(samples**2))), 1e-5))
            return to_pcm16(samples)

        partial = data.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as file, ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            for done, pcm in enumerate(pool.map(one, recordings), start=1):
                if isinstance(pcm, str):
                    problems.append(pcm)
                else:
                    file.write(pcm.tobytes())
                    lengths.append(len(pcm))
                if progress:
                    progress(done, len(recordings))
        if problems:
            partial.unlink()
            raise DataError(f"{len(problems)} of {len(recordings)} recordings cannot be decoded:", problems)
        partial.replace(data)
        partial_index = index.with_suffix(f".{os.getpid()}.partial")
        partial_index.write_text(json.dumps(lengths))
        partial_index.replace(index)  # last: an index means that the samples are complete
    lengths = json.loads(index.read_text())
    if not sum(lengths):
        return np.zeros(0, dtype=np.int16), lengths
    return np.memmap(data, dtype=np.int16, mode="r"), lengths


def prepare(
    recordings: Sequence[Recording],
    front_end: FrontEnd,
    settings: FeatureSettings,
    config: TrainingConfig,
    *,
    speakers: Mapping[str, int],
    cache: Path,
    limit: int | None = None,
    progress: Progress | None = None,
) -> tuple[Examples, list[Dropped]]:
    """Decode, tokenise and filter one split.

    Args:
        recordings: The split.
        front_end: The model's text front end.
        settings: The model's view of audio.
        config: Its filters and its limits.
        speakers: Ids of the speakers' names; empty for a model of one.
        cache: Folder of the PCM16 caches.
        limit: Keep only the first so many usable ones.
        progress: Told of each recording.

    Returns:
        The usable examples, and every recording that was left out with its reason.
    """
    pcm, lengths = decode(
        recordings,
        settings.sampling_rate,
        cache=cache,
        normalize=config.do_normalize,
        workers=config.preprocessing_num_workers,
        progress=progress,
    )
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    examples: list[Example] = []
    dropped: list[Dropped] = []
    for recording, start, samples in zip(recordings, starts, lengths, strict=False):
        text = recording.text.lower() if config.do_lower_case else recording.text
        try:
            tokens = front_end.tokenize(text)
        except TextError as error:
            dropped.append(Dropped(recording.id, str(error)))
            continue
        reason = _reason_to_drop(len(tokens.ids), samples, settings, config)
        if reason:
            dropped.append(Dropped(recording.id, reason))
            continue
        speaker = speakers.get(recording.speaker or "", 0)
        examples.append(Example(recording.id, text, tokens.ids, speaker, len(examples), int(start), samples))
    return Examples(examples[:limit], pcm, settings), dropped


def _reason_to_drop(
    tokens: int, samples: int, settings: FeatureSettings, config: TrainingConfig
) -> str | None:
    """Why a recording cannot be trained on, or nothing."""
    seconds, frames = samples / settings.sampling_rate, samples // settings.hop_length
    if seconds > config.max_duration_in_seconds:
        return f"{seconds:.1f} s is longer than max_duration_in_seconds {config.max_duration_in_seconds}"
    if seconds < config.min_duration_in_seconds:
        return f"{seconds:.2f} s is shorter than min_duration_in_seconds {config.min_duration_in_seconds}"
    if tokens > config.max_tokens_length:
        return f"{tokens} tokens are more than max_tokens_length {config.max_tokens_length}"
    if tokens > frames:
        return (
            f"{tokens} tokens do not fit into {frames} frames: is the transcript longer than the recording?"
        )
    if frames * settings.hop_length <= settings.padding:
        return f"{frames} frames are too short to analyse"
    return None


def batch_plan(
    lengths: Sequence[int],
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    group_by_length: bool,
    rank: int = 0,
    world: int = 1,
) -> list[list[int]]:
    """The batches of one epoch, the same for the same arguments, so that a position is all there is to save.

    Args:
        lengths: Frames of every example.
        batch_size: Examples a batch.
        seed: The run's.
        epoch: From 0.
        group_by_length: Sort by length within every 16 batches, then shuffle the batches.
        rank: This process.
        world: All processes; each gets as many batches as the others, of disjoint examples.

    Returns:
        Indices of examples, batch by batch. What does not fill a batch for every process is wrapped around.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    wanted = -(-len(order) // (batch_size * world)) * batch_size * world
    if len(order) >= batch_size * world:  # short of one whole round, a small batch is better than repeats
        order = np.resize(order, wanted)
    if group_by_length:
        window = batch_size * 16
        order = np.concatenate(
            [
                sorted(order[start : start + window], key=lambda index: lengths[index])
                for start in range(0, len(order), window)
            ]
        ).astype(int)
    batches = [order[start : start + batch_size].tolist() for start in range(0, len(order), batch_size)]
    if group_by_length:
        batches = [batches[index] for index in generator.permutation(len(batches))]
    return batches[rank::world] or [batches[rank % len(batches)]]
