"""Which variant of a voice to speak with on this machine.

`recommended_variant` says it at once, from what export wrote and from what the CPU can do. `choose_variant`
measures: it decodes a few windows with each variant that may be used, interleaved, and takes the fastest. The
result is remembered in a file, by the voice's contents, the CPU and the number of threads; `remembered_variant`
looks it up.

A variant may be used if this machine can run it and somebody vouches for it: the parity check (``reference``)
or the quality gate (``passed``). ``fp32`` may always be used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from shared.errors import VitsError
from shared.processor import cpu_features
from shared.voice.engine import Engine, open_engine, why_not
from shared.voice.remembered import recall, remember
from shared.voice.spec import VOICE_FILE, Variant, VoiceSpec

logger = logging.getLogger("vits.voice")

#: The variant that every voice has and every machine runs.
PORTABLE = "fp32"

#: A variant must be so many times faster than the recommended one to take its place.
WORTH = 1.1

#: Rounds of the measurement; of each variant's calls the median counts.
ROUNDS = 3


def usable_variants(spec: VoiceSpec) -> list[str]:
    """The variants that may be used here, from the one presumed fastest to the slowest; `PORTABLE` at least."""
    names = [*spec.recommended, *(name for name in spec.variants if name not in spec.recommended)]
    return [name for name in names if _usable(name, spec.variants[name])] or [PORTABLE]


def recommended_variant(spec: VoiceSpec) -> str:
    """The first of the variants that export recommends which may be used here; `PORTABLE` if none may."""
    usable = usable_variants(spec)
    return next((name for name in spec.recommended if name in usable), PORTABLE)


def remembered_variant(
    folder: Path, spec: VoiceSpec, *, threads: int | None, cache: Path | None
) -> str | None:
    """What `choose_variant` says without measuring; None where it would have to."""
    usable = usable_variants(spec)
    if len(usable) == 1:
        return usable[0]
    known = recall(cache).get(_key(folder, usable, threads))
    return str(known) if known in usable else None


def choose_variant(
    folder: Path,
    spec: VoiceSpec,
    *,
    threads: int | None,
    cache: Path | None,
    undisturbed: Callable[[], bool] = lambda: True,
) -> str | None:
    """The fastest variant that may be used here, by a measurement of a few seconds.

    The recommended one stays where another is hardly faster.

    Args:
        folder: The voice folder.
        spec: Its ``voice.json``.
        threads: As for `open_engine`.
        cache: A file to remember the result in; where it cannot be written, the next call measures again.
        undisturbed: Asked before each call; as soon as it is not so any more, the measurement is given up.

    Returns:
        Its name. A variant that fails is left out, and logged. None where the measurement was given up, or where
        every variant failed.
    """
    known = remembered_variant(folder, spec, threads=threads, cache=cache)
    if known:
        return known
    usable = usable_variants(spec)
    seconds = measure_variants(folder, spec, usable, threads=threads, undisturbed=undisturbed)
    if not seconds:  # given up, or nothing could be measured: whatever is spoken with stays
        return None
    fastest = min(seconds, key=lambda name: seconds[name])
    recommended = recommended_variant(spec)
    if recommended in seconds and seconds[recommended] < seconds[fastest] * WORTH:
        fastest = recommended
    logger.info(
        "variants by speed: %s",
        ", ".join(
            f"{name} {1000 * seconds[name]:.1f} ms" for name in sorted(seconds, key=lambda n: seconds[n])
        ),
    )
    remember(cache, _key(folder, usable, threads), fastest)
    return fastest


def measure_variants(
    folder: Path,
    spec: VoiceSpec,
    names: list[str],
    *,
    threads: int | None,
    undisturbed: Callable[[], bool] = lambda: True,
) -> dict[str, float] | None:
    """Seconds that flow and decoder take for one full window, by variant; without those that fail.

    None where it was disturbed.
    """
    engines: dict[str, Engine] = {}
    try:
        for name in names:
            if not undisturbed():
                return None
            try:
                engines[name] = open_engine(folder, spec.variants[name], threads=threads)
                _window(engines[name], spec)  # what is prepared at the first call
            except VitsError as error:
                logger.warning("the variant %s cannot be used: %s", name, error)
                failed = engines.pop(name, None)
                if failed:
                    failed.close()
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(ROUNDS):  # interleaved, so that what else the machine does falls on all alike
            for name, engine in engines.items():
                if not undisturbed():
                    return None
                start = time.perf_counter()
                _window(engine, spec)
                seconds[name].append(time.perf_counter() - start)
        return {name: statistics.median(values) for name, values in seconds.items()}
    finally:
        for engine in engines.values():
            engine.close()


def _window(engine: Engine, spec: VoiceSpec) -> None:
    width = spec.decoder.window_frames + 2 * spec.decoder.halo_frames
    frames = spec.frame_bucket(spec.decoder.window_frames)
    speaker_id = np.zeros(1, dtype=np.int64)
    shape = (1, spec.latent_channels, frames)
    generator = np.random.default_rng(0)
    engine.run(
        "flow",
        {
            "prior_sample": generator.standard_normal(shape, dtype=np.float32),
            "frame_mask": np.ones((1, 1, frames), dtype=np.float32),
            "speaker_id": speaker_id,
        },
    )
    latents = generator.standard_normal((*shape[:2], width), dtype=np.float32)
    engine.run("decoder", {"latents": latents, "speaker_id": speaker_id})


def _usable(name: str, variant: Variant) -> bool:
    return (name == PORTABLE or variant.gate != "ungated") and why_not(variant) is None


def _key(folder: Path, usable: list[str], threads: int | None) -> str:
    """What the fastest variant depends on."""
    said = (folder / VOICE_FILE).read_bytes()
    machine = [sorted(cpu_features()), len(os.sched_getaffinity(0)), threads, usable]
    return hashlib.sha256(said + json.dumps(machine).encode()).hexdigest()
