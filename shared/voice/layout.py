"""Several narrow computations at once, or one wide one: whichever makes more audio on this machine.

Which it is depends on the voice, the engine and the machine, so it is measured, once, and remembered. So is
which of a voice's variants is the fastest, but that takes longer: a voice opens with the one that its export
recommends, and again with another when there was time to measure.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from shared.processor import cpu_model
from shared.text.tokens import Tokens
from shared.voice.latents import Latents
from shared.voice.memory import memory_of
from shared.voice.remembered import recall, remember
from shared.voice.selection import choose_variant, recommended_variant, remembered_variant
from shared.voice.spec import VoiceSpec
from shared.voice.voice import Utterance, Voice
from shared.voice.windows import plan_windows

logger = logging.getLogger("vits.layout")

#: Several streams must be so much faster than one: a lone caller waits longer for them.
WORTH = 1.1
#: Calls that each stream makes while it is measured, after one that does not count.
CALLS = 3


class Opening:
    """Opens voices, all of them in the layout that was best for the first.

    Args:
        variant: As for `Voice.open`; of ``auto`` the fastest, once it is known.
        threads: Threads that all computations use together; every CPU where 0.
        streams: Computations at once; measured where 0.
        max_call_seconds: Several streams are not taken if one of their calls lasts longer.
        memory: A folder with files that remember what was measured; none where not given.
        memory_bytes: Several streams are not tried where the voice would need more with them; 0 for no limit.
        tell: Told of the streams as soon as they are known.
    """

    def __init__(
        self,
        *,
        variant: str,
        threads: int = 0,
        streams: int = 0,
        max_call_seconds: float = 0.15,
        memory: Path | None = None,
        memory_bytes: int = 0,
        tell: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._variant = variant
        self._threads = threads or len(os.sched_getaffinity(0))
        self._streams = streams
        self._max_call_seconds = max_call_seconds
        self._memory = memory / "layouts.json" if memory else None
        self._variants = memory / "variants.json" if memory else None
        self._memory_bytes = memory_bytes
        self._tell = tell
        self._chosen: dict[Path, str] = {}
        if streams:
            tell(streams)

    def __call__(self, folder: Path) -> Voice:
        """Open a voice folder; errors are those of `Voice.open`."""
        if not self._streams:
            self._streams = self._remembered(folder) or self._choose(folder)
            self._tell(self._streams)
        return self._open(folder, self._streams)

    def memory_of(self, folder: Path, variant: str | None = None) -> int:
        """Bytes that a voice is taken to need if it is opened now; of streams that are not measured yet, for one.

        Args:
            folder: The voice folder.
            variant: Which variant; where not given, the one that it is opened with.

        Raises:
            ModelError: It is not a voice folder.
            NotFoundError: The voice has no such variant.
        """
        return self._needed(folder, variant, self._streams or self._remembered(folder) or 1)

    def _needed(self, folder: Path, variant: str | None, streams: int) -> int:
        spec = VoiceSpec.read(folder)
        graphs = spec.variant(variant or self._variant_of(folder, spec))
        return memory_of(folder, graphs, streams, speakers=spec.num_speakers)

    def _open(self, folder: Path, streams: int) -> Voice:
        variant = self._variant_of(folder, VoiceSpec.read(folder))
        return Voice.open(folder, variant=variant, threads=self._threads, streams=streams)

    def _variant_of(self, folder: Path, spec: VoiceSpec) -> str:
        """The variant that a voice is opened with."""
        if self._variant != "auto":
            return self._variant
        known = remembered_variant(folder, spec, threads=self._threads, cache=self._variants)
        return self._chosen.get(folder) or known or recommended_variant(spec)

    def choose(self, folder: Path, undisturbed: Callable[[], bool]) -> str | None:
        """The variant to open a voice with, measured if it has to be; see `choose_variant`.

        Returns:
            Its name; from now on it is opened with that one. None where it could not be measured.
        """
        if self._variant != "auto":
            return self._variant
        chosen = choose_variant(
            folder,
            VoiceSpec.read(folder),
            threads=self._threads,
            cache=self._variants,
            undisturbed=undisturbed,
        )
        if chosen:
            self._chosen[folder] = chosen
        return chosen

    def _choose(self, folder: Path) -> int:
        best, most = 1, 0.0
        for streams in self._candidates(folder):
            voice = self._open(folder, streams)
            try:
                speed, slowest = measure(voice, streams)
            finally:
                voice.close()
            logger.info(
                "%d streams: %.1f s of audio a second, %.0f ms a call", streams, speed, slowest * 1000
            )
            if streams == 1 or (speed > most * WORTH and slowest <= self._max_call_seconds):
                best, most = streams, speed
        remember(self._memory, self._key(folder), best)
        return best

    def _candidates(self, folder: Path) -> list[int]:
        """Numbers of streams worth trying for which there is memory; one stream in any case."""
        tried = candidates(self._threads)
        if self._memory_bytes:
            fitting = [number for number in tried if self._needed(folder, None, number) <= self._memory_bytes]
            return fitting or tried[:1]
        return tried

    def _key(self, folder: Path) -> str:
        """What the layout depends on; a home folder may be that of several machines."""
        most = max(self._candidates(folder))
        return f"{folder.parent.name}/{folder.name} {self._variant} {self._threads} {most} {cpu_model()}"

    def _remembered(self, folder: Path) -> int:
        streams = recall(self._memory).get(self._key(folder))
        return streams if isinstance(streams, int) and 1 <= streams <= self._threads else 0


def candidates(threads: int) -> list[int]:
    """Numbers of streams worth trying, one first."""
    return sorted({1, max(1, threads // 2), threads})


def measure(voice: Voice, streams: int) -> tuple[float, float]:
    """Decode full windows on all streams at once.

    Returns:
        Audio seconds made in a second, and seconds of the slowest call.
    """
    plan = voice.spec.decoder
    frames = plan.first_window_frames + 2 * plan.window_frames
    window = max(plan_windows(frames, plan), key=lambda window: window.width)
    latents_DF = np.random.default_rng(0).standard_normal(
        (voice.spec.latent_channels, frames), dtype=np.float32
    )
    utterance = Utterance(
        Tokens((), (), ()), np.array([frames]), Latents.known(latents_DF), [window], 0, seed=0
    )

    def call(_: int) -> float:
        begun = time.perf_counter()
        voice.decode_window(utterance, window)
        return time.perf_counter() - begun

    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(call, range(streams)))
        begun = time.perf_counter()
        seconds = list(pool.map(call, range(streams * CALLS)))
        elapsed = time.perf_counter() - begun
    audio = (window.last - window.first) * voice.spec.hop_length / voice.sampling_rate * len(seconds)
    return audio / elapsed, max(seconds)
