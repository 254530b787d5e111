"""The voices of a store: which there are, which is meant, and those that are loaded."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shared.errors import NotFoundError, nearest
from shared.metrics import Metrics
from shared.registry import Registry, Version

logger = logging.getLogger("vits.voices")


class ScriptLike(Protocol):
    """What the transports read of a speech's script."""

    @property
    def unknown(self) -> tuple[str, ...]:
        """Characters that the voice left out."""


class SpeechLike(Protocol):
    """What the transports read of a speech."""

    @property
    def samples(self) -> NDArray[np.float32]:
        """``[S]``, within [-1, 1]."""

    @property
    def sampling_rate(self) -> int:
        """Hz."""

    @property
    def seed(self) -> int:
        """The seed that was used."""

    @property
    def script(self) -> ScriptLike:
        """What was spoken."""


class VoiceLike(Protocol):
    """The seam to the engine: `shared.voice.Voice`, or a test's stand-in."""

    def synthesize(
        self,
        text: str,
        *,
        speaker: str | int | None = None,
        seed: int | None = None,
        speaking_rate: float = 1.0,
        noise_scale: float | None = None,
        noise_scale_duration: float | None = None,
    ) -> SpeechLike:
        """Speak a text. Safe to call from several threads."""

    def close(self) -> None:
        """Give back what the voice holds."""


#: Opens a voice's folder.
OpenVoice = Callable[[Path], VoiceLike]


@dataclass(frozen=True)
class LoadedVoice:
    """A voice in memory, and the version that it is."""

    version: Version
    voice: VoiceLike


def default_voice(registry: Registry) -> str:
    """The voice that speaks when nobody says which: the one published last.

    Raises:
        NotFoundError: The store holds no voice.
        StoreError: The store failed.
    """
    names = registry.names("voices")
    if not names:
        raise NotFoundError(
            f"{registry.store.lack('voice')}. 'make demo' trains and exports one; "
            "'vits export' makes one from a model. Another store is given with --store."
        )
    return max(names, key=lambda name: registry.resolve("voices", name).manifest.created)


class VoiceShelf:
    """Loads voices when they are first asked for, each once.

    A reference keeps the version that it named when it was first asked for.

    Args:
        registry: Where voices are found.
        open_voice: Opens a fetched folder.
        metrics: Told of what is loaded.
        default: Reference of the default voice; empty for the newest.
    """

    def __init__(
        self, registry: Registry, open_voice: OpenVoice, metrics: Metrics, *, default: str = ""
    ) -> None:
        self.registry = registry
        self._open_voice = open_voice
        self._metrics = metrics
        self._default = default
        self._lock = threading.Lock()
        self._resolved: dict[str, str] = {}
        self._loaded: dict[str, LoadedVoice] = {}

    def get(self, reference: str = "") -> LoadedVoice:
        """The voice that a reference names, loaded if need be; the default one for an empty reference.

        Raises:
            NotFoundError: There is no such voice.
            UserError: The reference is malformed.
            ModelError: The voice cannot be used.
            StoreError: The store failed.
        """
        loaded = self._loaded.get(self._resolved.get(reference, ""))
        if loaded:
            return loaded
        with self._lock:
            version = self._resolve(reference)
            if version.reference not in self._loaded:
                self._loaded[version.reference] = self._load(version)
            self._resolved[reference] = version.reference
            return self._loaded[version.reference]

    def _resolve(self, reference: str) -> Version:
        meant = reference or self._default or default_voice(self.registry)
        try:
            return self.registry.resolve("voices", meant)
        except NotFoundError as error:
            name = meant.partition("/")[0].partition("@")[0]
            names = self.registry.names("voices")
            # The registry's own messages name the store, which is not a client's business.
            if name in names:
                raise NotFoundError(
                    f"There is no {meant!r}: voice {name!r} has no such version or alias"
                ) from error
            raise NotFoundError(
                f"There is no voice {name!r}{nearest(name, names)}; there are: {', '.join(names) or 'none'}"
            ) from error

    def _load(self, version: Version) -> LoadedVoice:
        start = time.perf_counter()
        voice = self._open_voice(self.registry.fetch(version))
        seconds = time.perf_counter() - start
        self._metrics.voice_load_seconds.observe(seconds)
        self._metrics.voices_loaded.inc()
        logger.info("voice %s loaded in %.2f s", version.reference, seconds)
        return LoadedVoice(version, voice)

    def close(self) -> None:
        """Unload every voice."""
        with self._lock:
            for loaded in self._loaded.values():
                loaded.voice.close()
                self._metrics.voices_loaded.dec()
            self._loaded.clear()
            self._resolved.clear()
