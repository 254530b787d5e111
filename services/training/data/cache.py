"""The samples that training reads: every recording decoded once, resampled once, kept as PCM16.

A cache is two files, named by what the recordings are and by what was done to them:

``<name>.pcm16``  all samples, one recording after another, 16-bit in the machine's order
``<name>.json``   the length of each recording; written last, so that it vouches for the samples

Whoever fills a cache holds ``<name>.lock``: a second process waits, and then reads what the first has made.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from services.training.data.recordings import Recording
from shared.audio import amplified, loudness_gain, to_pcm16, trim_silence
from shared.errors import DataError, UserError
from shared.wording import counted

_log = logging.getLogger(__name__)

#: Called with (recordings done, recordings in all).
Progress = Callable[[int, int], None]
#: Called with (a recording's number, its samples): whether it counts where only so many are wanted.
Counts = Callable[[int, int], bool]

_NORMALIZED_RMS = 0.1  # -20 dBFS
#: Raised when the same recordings and treatment give other samples than before.
_VERSION = 2
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Treatment:
    """What is done to a recording before it is kept; with the recordings, what a cache is known by.

    Attributes:
        sampling_rate: Hz, the model's.
        trim_silence: Cut the silence from both ends.
        loudness: LUFS that it is brought to, or None to leave it as loud as it is.
        normalize: Bring it to an RMS of -20 dBFS; of no effect with ``loudness``.
    """

    sampling_rate: int
    trim_silence: bool = False
    loudness: float | None = None
    normalize: bool = False

    def apply(self, recording: Recording) -> Treated:
        """Decode and treat one recording.

        Raises:
            UserError: It cannot be decoded.
        """
        samples = recording.audio(self.sampling_rate).samples
        if self.trim_silence and len(samples):
            samples = trim_silence(samples, self.sampling_rate)
        gain = 1.0
        if self.loudness is not None:
            gain = loudness_gain(samples, self.sampling_rate, self.loudness)
        elif self.normalize and len(samples):
            gain = _NORMALIZED_RMS / max(float(np.sqrt(np.mean(samples**2))), 1e-5)
        held_back = False
        if gain != 1.0:
            samples, held_back = amplified(samples, gain)
        return Treated(to_pcm16(samples), held_back)


@dataclass(frozen=True)
class Treated:
    """One recording as the cache keeps it.

    Attributes:
        pcm: [S]
        held_back: Whether it stayed quieter than was asked for, so as not to clip.
    """

    pcm: NDArray[np.int16]
    held_back: bool


def decode(
    recordings: Sequence[Recording],
    treatment: Treatment,
    *,
    cache: Path,
    workers: int | None = None,
    progress: Progress | None = None,
    limit: int | None = None,
    counts: Counts = lambda _number, _samples: True,
) -> tuple[NDArray[np.int16], list[int]]:
    """Every recording's samples, one after another, through a cache on disk.

    With a limit it ends with the recording that reaches it, and the cache may hold just as many, until more are
    wanted.

    Args:
        recordings: What to decode.
        treatment: What to do to each.
        cache: Folder of the caches; any number of processes may share it.
        workers: Threads that decode; as many as there are processors when left out.
        progress: Told of each recording, when there is anything to decode.
        limit: How many recordings are enough, of those that count; None for all.
        counts: Whether a recording does, by its number and its samples.

    Returns:
        All samples, memory-mapped, and the length of each recording; more than are enough where the cache has them.

    Raises:
        DataError: Recordings cannot be decoded; it lists all of them.
        UserError: The cache cannot be written.
    """
    name = _fingerprint(recordings, treatment)
    data, index = cache / f"{name}.pcm16", cache / f"{name}.json"
    wanted = _Wanted(len(recordings), limit, counts)
    lengths = _read_index(data, index, wanted)
    if lengths is None:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with _locked(cache / f"{name}.lock"):
                lengths = _read_index(data, index, wanted)  # somebody else may have made it meanwhile
                if lengths is None:
                    lengths = _fill(recordings, wanted, treatment, data, index, workers, progress)
        except OSError as error:
            hours = sum(recording.duration_seconds or 0 for recording in recordings) / 3600
            raise UserError(
                f"The cache of samples in {cache} cannot be written ({error.strerror or error}): it takes about "
                f"{hours * 3600 * treatment.sampling_rate * 2 / 1e6:,.0f} MB. Make room there, or name another "
                "folder in the environment's VITS_CACHE"
            ) from error
    if not sum(lengths):
        return np.zeros(0, dtype=np.int16), lengths
    return np.memmap(data, dtype=np.int16, mode="r"), lengths


def _fingerprint(recordings: Sequence[Recording], treatment: Treatment) -> str:
    """Names a cache by what is in it: which sounds, of which edition, and what was done to them."""
    digest = hashlib.sha256(f"pcm16 v{_VERSION} {treatment}\n".encode())
    for recording in recordings:
        digest.update(f"{recording.id}\0".encode())
        digest.update(recording.edition())
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class _Wanted:
    """How many of the first recordings are wanted: all, or as many as it takes until enough count."""

    recordings: int
    limit: int | None
    counts: Counts

    def count(self, number: int, samples: int) -> bool:
        """Whether a recording counts; none does where all are wanted."""
        return self.limit is not None and self.counts(number, samples)

    def missing(self, counted: int) -> int:
        """How many more have to be decoded at least, when so many count."""
        return self.recordings if self.limit is None else max(0, self.limit - counted)

    def has_enough(self, lengths: Sequence[int]) -> bool:
        """Whether the first recordings' lengths are all that is wanted."""
        if len(lengths) == self.recordings:
            return True
        return not self.missing(sum(map(self.count, range(len(lengths)), lengths)))


def _read_index(data: Path, index: Path, wanted: _Wanted) -> list[int] | None:
    """The lengths of a cache's recordings, or None where it is not there, not readable, not whole or too short."""
    try:
        lengths: list[int] = json.loads(index.read_text(encoding="utf-8"))
        whole = len(lengths) <= wanted.recordings and data.stat().st_size == 2 * sum(lengths)
    except (OSError, ValueError, TypeError):
        return None
    return lengths if whole and wanted.has_enough(lengths) else None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Be the only one to fill a cache. The lock goes with the process, however that ends."""
    with path.open("w") as file:
        # A file system without locks costs double work and nothing else: files only ever appear whole.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
            for abandoned in path.parent.glob(f"{path.stem}.*{_PARTIAL}"):  # by a process that was killed
                abandoned.unlink(missing_ok=True)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _fill(
    recordings: Sequence[Recording],
    wanted: _Wanted,
    treatment: Treatment,
    data: Path,
    index: Path,
    workers: int | None,
    progress: Progress | None,
) -> list[int]:
    """Decode the recordings that are wanted into a new cache; the length of each."""
    lengths: list[int] = []
    problems: list[str] = []
    done = counted_ones = held_back = 0
    workers = workers or os.cpu_count() or 1

    def one(recording: Recording) -> Treated | str:
        try:
            return treatment.apply(recording)
        except (UserError, OSError) as error:
            return f"{recording.row or recording.id}: {error}"

    with _replacing(data) as file:
        results = _in_parallel(one, recordings, workers, lambda: wanted.missing(counted_ones))
        for done, treated in enumerate(results, start=1):
            if isinstance(treated, str):
                problems.append(treated)
            else:
                file.write(treated.pcm.tobytes())
                lengths.append(len(treated.pcm))
                held_back += treated.held_back
                counted_ones += wanted.count(done - 1, len(treated.pcm))
            if progress:
                progress(done, min(len(recordings), done + wanted.missing(counted_ones)))
        if problems:
            raise DataError(f"{len(problems)} of {counted(done, 'recording')} cannot be decoded:", problems)
    with _replacing(index) as file:
        file.write(json.dumps(lengths).encode())
    if held_back:
        _log.warning(
            "%d of %d recordings stay quieter than was asked for, because their peaks would clip: they are as "
            "loud as peaks at -1 dBFS allow",
            held_back, len(lengths),
        )  # fmt: skip
    return lengths


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that appears whole or not at all."""
    partial = path.with_name(f"{path.name}.{uuid4().hex}{_PARTIAL}")
    try:
        with partial.open("xb") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _in_parallel(
    function: Callable[[Recording], Treated | str],
    recordings: Sequence[Recording],
    workers: int,
    missing: Callable[[], int],
) -> Iterator[Treated | str]:
    """Results in order, with no more than a few recordings in memory, and none begun that may not be needed."""
    waiting: deque[Future[Treated | str]] = deque()
    coming = iter(recordings)
    with ThreadPoolExecutor(workers) as pool:
        while True:
            for recording in islice(coming, min(4 * workers, missing()) - len(waiting)):
                waiting.append(pool.submit(function, recording))
            if not waiting:
                return
            yield waiting.popleft().result()
