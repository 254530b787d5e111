"""The voices of a store: which there are, which is meant, and those that are loaded."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Protocol

from shared.errors import (
    CorruptObjectError,
    ModelError,
    NotFoundError,
    OverloadedError,
    StoreError,
    VitsError,
    nearest,
)
from shared.metrics import Metrics
from shared.provenance import commercial_warning
from shared.registry import Registry, Version, default_voice, what_there_is
from shared.text.front_end import FrontEnd
from shared.text.lexicon import Lexicon, LexiconFile
from shared.voice.runtime import Worker
from shared.voice.selection import usable_variants
from shared.voice.voice import Plan, SpeechParameters

logger = logging.getLogger("vits.voices")

#: What a variant needs while it is measured, of what it needs to speak: it has one stream, and one width of window.
MEASURED_SHARE = 0.5


class VoiceLike(Worker, Protocol):
    """The seam to the engine: `shared.voice.Voice`, or a test's stand-in."""

    @property
    def front_end(self) -> FrontEnd:
        """Reads texts."""

    @property
    def variant(self) -> str:
        """Which of the voice's variants it is."""

    def plan(
        self,
        text: str,
        parameters: SpeechParameters,
        *,
        ssml: bool = False,
        language: str | None = None,
        lexicon: Lexicon | None = None,
        timed: bool = False,
    ) -> Plan:
        """Check what is asked for, and cut the text into segments. Safe to call from several threads."""

    def sounding_samples(self, plan: Plan, number: int) -> int:
        """How many samples a segment will have, the silence after it included. Safe to call as `plan`."""

    def warm_up(self) -> None:
        """Compute what a first caller would otherwise wait for."""

    def close(self) -> None:
        """Give back what the voice holds."""


#: Opportunities that are let pass at most before something is tried again: to measure, after measurements that were
#: disturbed, or to load a version that could not be used.
MOST_REST = 256

#: Opens a voice's folder.
OpenVoice = Callable[[Path], VoiceLike]
#: Says which variant a folder is best opened with from now on, or nothing for now. It is given whether nobody
#: disturbs the measurement.
ChooseVariant = Callable[[Path, Callable[[], bool]], str | None]
#: Says how many bytes a voice is taken to need, by its folder and one of its variants: the one that it is opened with
#: where none is named.
MemoryOf = Callable[[Path, str | None], int]


@dataclass(eq=False)
class LoadedVoice:
    """A voice in memory.

    Attributes:
        version: What it is.
        voice: Speaks.
        folder: Where it was opened.
        lexicon: The operator's words for it, where there are any.
        size: Bytes of memory that it is taken to need.
        leases: How many are speaking with it; while there are any it stays.
        used: When it was last asked for, as a number that grows.
        settled: Whether it is known that no other variant of it is faster here.
        given_up: How often a measurement of its variants was disturbed.
        rest: How many opportunities to measure it lets pass before the next.
    """

    version: Version
    voice: VoiceLike
    folder: Path
    lexicon: LexiconFile | None = None
    size: int = 0
    leases: int = 0
    used: int = 0
    settled: bool = False
    given_up: int = 0
    rest: int = 0

    @property
    def key(self) -> str:
        """What it is to the scheduler: variants of one version have speeds of their own, and share no calls."""
        return f"{self.version.reference}:{self.voice.variant}"


@dataclass
class Refusal:
    """A version that could not be used; whether for good or for the moment, as with a full memory, nobody knows.

    Attributes:
        times: How often it was tried.
        rest: How many opportunities to load it are let pass before the next.
    """

    times: int = 0
    rest: int = 0


class VoiceShelf:
    """Loads voices when they are first asked for, each once, and keeps them while there is room.

    A loaded voice is served without asking the store, which may be away. `refresh` asks it for news. One voice
    is loaded at a time; nobody waits for that but those who ask for a voice that is not loaded. Variants are
    measured beside that: a load does not wait for a measurement, but for the memory that it takes, where that is
    short; the measurement gives up then.

    Args:
        registry: Where voices are found.
        open_voice: Opens a fetched folder.
        metrics: Told of what is loaded.
        default: Reference of the default voice, which is never unloaded; empty for the newest at the time of
            the first request.
        memory_of: Says how many bytes a voice is taken to need; none where not given.
        memory_bytes: What the voices together may need; 0 for no limit.
        lexicons: A folder with a lexicon ``<voice>.json`` or ``<voice>.tsv`` for each voice that has one.
        forget: Called with the `LoadedVoice.key` of what was unloaded.
        choose: Measures variants; voices stay as they were opened where not given.
    """

    def __init__(
        self,
        registry: Registry,
        open_voice: OpenVoice,
        metrics: Metrics,
        *,
        default: str = "",
        memory_of: MemoryOf = lambda _folder, _variant: 0,
        memory_bytes: int = 0,
        lexicons: Path | None = None,
        forget: Callable[[str], None] = lambda _: None,
        choose: ChooseVariant | None = None,
    ) -> None:
        self.registry = registry
        self._open_voice = open_voice
        self._metrics = metrics
        self._default = default
        self._memory_of = memory_of
        self._memory_bytes = memory_bytes
        self._lexicons = lexicons
        self._forget = forget
        self._choose = choose
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._load_goes_on = False
        self._settling = threading.Lock()
        self._measuring = 0
        """Bytes that the measurement which is going on is taken to need."""
        self._resolved: dict[str, str] = {}
        """References that were asked for, and the version that each names."""
        self._loaded: dict[str, LoadedVoice] = {}
        self._refused: dict[str, Refusal] = {}
        """Versions that could not take another's place."""
        self._names: set[str] = set()
        """Names that the store has voices of, for all that is known."""
        self._doubtful: set[str] = set()
        """Names that were asked for with a stand-in, of which there may be a voice or not."""
        self._replaced: list[LoadedVoice] = []
        """Voices that another variant has taken the place of, with which somebody still speaks."""
        self._clock = count()

    # ------------------------------------------------------------------------------------------- for callers

    def get(self, reference: str = "") -> LoadedVoice:
        """The voice that a reference names, loaded if need be; the default one for an empty reference.

        Raises:
            NotFoundError: There is no such voice.
            UserError: The reference is malformed.
            ModelError: The voice cannot be used, or needs more memory than the default voice leaves.
            StoreError: The store failed.
            OverloadedError: The voices that are speaking leave no room for it.
        """
        loaded = self.lease(reference)
        self.release(loaded)
        return loaded

    def start(self) -> LoadedVoice:
        """As `get` for the default voice; also learn of which names there are voices.

        A store that cannot tell has none, until `refresh` asks for those that are wanted.
        """
        loaded = self.get()
        try:
            self._names = set(self.registry.names("voices"))
        except StoreError as error:
            self._note_absent_store(error)
        return loaded

    def lease(self, reference: str = "", stand_in: str | None = None) -> LoadedVoice:
        """As `get`; the voice stays in memory until `release`.

        Args:
            reference: Names the voice.
            stand_in: Names the voice that is meant where there is none of the name that ``reference`` is, for all that
                is known: the store is not asked. There is none where not given.
        """
        loaded = self.lease_loaded(reference, stand_in)
        if loaded:
            return loaded
        with self._loading:
            # Somebody may have loaded it, or learnt the names, while this caller waited for its turn.
            loaded = self.lease_loaded(reference, stand_in)
            if loaded:
                return loaded
            reference = self._meant(reference, stand_in)
            version = self._resolve(reference)
            while True:
                if version.reference not in self._loaded:
                    self._load(version)
                with self._lock:
                    # One that nobody spoke with, and no name led to, may have left in this very moment.
                    if found := self._loaded.get(version.reference):
                        self._resolved[self._asked(reference)] = version.reference
                        return self._leased(found)

    def lease_loaded(self, reference: str = "", stand_in: str | None = None) -> LoadedVoice | None:
        """As `lease`, but nothing where the voice would have to be loaded first. Never waits, nor asks the store."""
        with self._lock:
            asked = self._asked(self._meant(reference, stand_in))
            # A version names itself.
            named = self._resolved.get(asked, asked)
            loaded = self._loaded.get(named)
            if loaded is None:
                return None
            self._resolved[asked] = named
            return self._leased(loaded)

    def _meant(self, reference: str, stand_in: str | None) -> str:
        """A reference, or its stand-in where no voice of that name is known of."""
        if stand_in is None:
            return reference
        self._doubtful.add(reference)
        return reference if reference in self._names else stand_in

    def _asked(self, reference: str) -> str:
        """A reference, or an empty one for the default voice, which may also be asked for by its name."""
        return "" if reference == self._default else reference

    def _leased(self, loaded: LoadedVoice) -> LoadedVoice:
        loaded.leases += 1
        loaded.used = next(self._clock)
        return loaded

    def release(self, loaded: LoadedVoice) -> None:
        """Give back what was leased."""
        with self._lock:
            loaded.leases -= 1
            forsaken = self._take_if_forsaken(loaded)
        self._close(forsaken)

    # ---------------------------------------------------------------------------------------------- loading

    def _resolve(self, reference: str) -> Version:
        if not reference and not self._default:
            # From now on that voice is the default: a voice published later does not take its place.
            self._default = default_voice(self.registry)
        meant = reference or self._default
        try:
            return self.registry.resolve("voices", meant)
        except NotFoundError as error:
            name = meant.partition("/")[0].partition("@")[0]
            names = self.registry.names("voices")
            # The registry's own messages name the store, which is not a client's business.
            if name in names:
                aliases = sorted(self.registry.aliases("voices", name))
                versions = self.registry.versions("voices", name)
                asked = meant.removeprefix(name)[1:]
                raise NotFoundError(
                    f"There is no {meant!r}: voice {name!r} has no such version or alias"
                    f"{nearest(asked, [*aliases, *versions]) or '.'} {what_there_is(aliases, versions)}"
                ) from error
            raise NotFoundError(
                f"There is no voice {name!r}{nearest(name, names) or '.'} There are: {', '.join(names) or 'none'}"
            ) from error

    def _load(self, version: Version, *, beyond: bool = False) -> LoadedVoice:
        """Load a version and warm it up.

        Args:
            version: Which.
            beyond: Load it even if too little can be unloaded for it: it is about to take another's place.
        """
        start = time.perf_counter()
        self._load_goes_on = True
        try:
            folder = self.registry.fetch(version)
            self._make_room(self._memory_of(folder, None), version, beyond=beyond)
            loaded = self._open(version, folder)
        finally:
            self._load_goes_on = False
        seconds = time.perf_counter() - start
        with self._lock:
            self._put(loaded)
        self._metrics.voice_load_seconds.observe(seconds)
        logger.info("voice %s loaded in %.2f s, variant %s", version.reference, seconds, loaded.voice.variant)
        if warning := commercial_warning(f"voice {version.reference}", version.manifest.licence):
            logger.warning("%s", warning)
        return loaded

    def _open(self, version: Version, folder: Path) -> LoadedVoice:
        voice = self._open_voice(folder)
        try:
            lexicon = self._lexicon(version.name, voice)
            voice.warm_up()
            size = self._memory_of(folder, None)
        except Exception:
            voice.close()
            raise
        return LoadedVoice(version, voice, folder, lexicon, size)

    def _put(self, loaded: LoadedVoice) -> None:
        self._loaded[loaded.version.reference] = loaded
        loaded.used = next(self._clock)
        self._tell(loaded, present=True)

    def _lexicon(self, name: str, voice: VoiceLike) -> LexiconFile | None:
        if self._lexicons is None:
            return None
        paths = [self._lexicons / f"{name}.{form}" for form in ("json", "tsv")]
        return next((LexiconFile(path, voice.front_end) for path in paths if path.is_file()), None)

    def _make_room(self, size: int, version: Version, *, beyond: bool) -> None:
        limit = self._memory_bytes
        if not limit:
            return
        with self._lock:
            default = self._loaded.get(self._resolved.get("", ""))
        # The default leaves for nobody but what is to take its own place.
        staying = default.size if default and not beyond else 0
        if staying + size > limit:
            beside = f" beside the {staying >> 20} MB of the default voice" if staying else ""
            raise ModelError(
                f"Voice {version.reference} needs about {size >> 20} MB{beside}, and the voices may use "
                f"{limit >> 20} MB together. Give the server more memory, and say so with --memory."
            )
        self._wait_for_memory(size)
        with self._lock:
            kept = self._resolved.get("")
            idle = [
                loaded
                for reference, loaded in self._loaded.items()
                if not loaded.leases and reference != kept
            ]
            needed = self._held() + size - limit
            leaving: list[LoadedVoice] = []
            for loaded in sorted(idle, key=lambda loaded: loaded.used):
                if sum(gone.size for gone in leaving) >= needed:
                    break
                leaving.append(loaded)
            if sum(gone.size for gone in leaving) < needed and not beyond:
                raise OverloadedError(
                    "The voices that are speaking leave no room in memory for another one. Try again soon",
                    retry_after_seconds=5.0,
                )
            for loaded in leaving:
                self._take(loaded)
        self._metrics.voice_evictions.inc(len(leaving))
        self._close(leaving)

    def _wait_for_memory(self, size: int) -> None:
        """Wait until a measurement has given up, if there is no room for both."""
        with self._lock:
            needed = self._held() + self._measuring + size
        if self._measuring and needed > self._memory_bytes:
            with self._settling:
                pass

    def _held(self) -> int:
        """Bytes that the voices in memory are taken to need, those included that only who speaks still has."""
        return sum(loaded.size for loaded in [*self._loaded.values(), *self._replaced])

    # ----------------------------------------------------------------------------------------------- leaving

    def _take_if_forsaken(self, loaded: LoadedVoice) -> list[LoadedVoice]:
        """Take a voice off the shelf if nobody speaks with it and no name leads to it."""
        if loaded.leases:
            return []
        reference = loaded.version.reference
        if loaded in self._replaced:
            self._replaced.remove(loaded)
            self._tell(loaded, present=False)
            return [loaded]
        if reference in self._resolved.values() or self._loaded.get(reference) is not loaded:
            return []
        self._take(loaded)
        return [loaded]

    def _take(self, loaded: LoadedVoice) -> None:
        reference = loaded.version.reference
        del self._loaded[reference]
        self._resolved = {asked: named for asked, named in self._resolved.items() if named != reference}
        self._tell(loaded, present=False)

    def _close(self, taken: list[LoadedVoice]) -> None:
        """Close voices that were taken off the shelf; without its lock, for the runtime has one of its own."""
        for loaded in taken:
            loaded.voice.close()
            self._forget(loaded.key)
            logger.info("voice %s unloaded, variant %s", loaded.version.reference, loaded.voice.variant)

    def _tell(self, loaded: LoadedVoice, *, present: bool) -> None:
        sign = 1 if present else -1
        self._metrics.voices_loaded.inc(sign)
        self._metrics.voice_memory_bytes.inc(sign * loaded.size)
        labels = loaded.version.name, loaded.version.id, loaded.voice.variant
        if present:
            self._metrics.voice_loaded.labels(*labels).set(1)
        else:
            self._metrics.voice_loaded.remove(*labels)

    # ------------------------------------------------------------------------------------------------- news

    def refresh(self) -> None:
        """Ask the store whether names and aliases have moved; load, warm and swap what has.

        Also whether there are voices of names that were asked for with a stand-in.

        Who is speaking keeps the version. A version that cannot be used is refused, and the old one stays; it is
        tried again after a while, which grows.
        """
        try:
            for name in list(self._doubtful):
                if self.registry.versions("voices", name):
                    self._names.add(name)
                else:
                    self._names.discard(name)
        except StoreError as error:
            self._note_absent_store(error)
            return
        with self._lock:
            asked = dict(self._resolved)
        for reference, old in asked.items():
            if "/" in reference:
                continue  # a version is what it is
            try:
                with self._loading:
                    self._refresh(reference, old)
            except VitsError as error:
                if isinstance(error, StoreError) and not isinstance(error, CorruptObjectError):
                    self._note_absent_store(error)
                    return
                logger.warning("voice %s stays as it is: %s", reference or "by default", error)

    def _note_absent_store(self, error: StoreError) -> None:
        self._metrics.store_failures.inc()
        logger.warning("the store cannot be asked for news of the voices: %s", error)

    def _refresh(self, reference: str, old: str) -> None:
        version = self._resolve(reference)
        new = version.reference
        if new == old:
            return
        refusal = self._refused.get(new)
        if refusal and refusal.rest:
            refusal.rest -= 1
            return
        try:
            found = self._loaded.get(new) or self._load(version, beyond=True)
        except OverloadedError:
            raise
        except StoreError as error:
            if not isinstance(error, CorruptObjectError):
                raise
            self._refuse(version, old, error)
        except Exception as error:  # whatever is wrong with it, the old version goes on
            self._refuse(version, old, error)
        else:
            self._refused.pop(new, None)
            with self._lock:
                self._resolved[reference] = new
                found.used = next(self._clock)
                forsaken = self._take_if_forsaken(self._loaded[old]) if old in self._loaded else []
            self._close(forsaken)
            logger.info("voice %s is now %s, after %s", reference or "by default", new, old)

    def _refuse(self, version: Version, old: str, error: Exception) -> None:
        refusal = self._refused.setdefault(version.reference, Refusal())
        refusal.times += 1
        refusal.rest = min(2**refusal.times, MOST_REST)
        self._metrics.voice_refusals.labels(version.name).inc()
        logger.error("voice %s cannot be used, and %s stays in its place: %s", version.reference, old, error)

    # --------------------------------------------------------------------------------------------- variants

    def in_use(self) -> dict[str, str]:
        """The variant that each loaded version speaks with, by the version's reference."""
        with self._lock:
            return {reference: loaded.voice.variant for reference, loaded in self._loaded.items()}

    def settle(self, undisturbed: Callable[[], bool]) -> None:
        """Have voices that were not measured yet measured, and those swapped of which another variant is faster.

        Who is speaking keeps the variant. One that cannot be used leaves everything as it was.

        Args:
            undisturbed: Whether nobody is speaking, so that a measurement is worth something and disturbs nobody.
        """
        if self._choose is None:
            return

        def alone() -> bool:
            return undisturbed() and not self._load_goes_on

        with self._lock:
            unsettled = [loaded for loaded in self._loaded.values() if not loaded.settled]
        for loaded in unsettled:
            if not alone():
                return
            if loaded.rest:
                loaded.rest -= 1
                continue
            try:
                with self._settling:
                    self._settle(loaded, self._choose, alone)
            except Exception as error:  # whatever is wrong with a variant, the one that speaks goes on
                loaded.settled = True
                logger.warning(
                    "voice %s stays with variant %s: %s",
                    loaded.version.reference,
                    loaded.voice.variant,
                    error,
                )
            finally:
                self._measuring = 0

    def _settle(self, old: LoadedVoice, choose: ChooseVariant, undisturbed: Callable[[], bool]) -> None:
        sizes = [self._memory_of(old.folder, name) for name in usable_variants(old.voice.spec)]
        # First all are measured side by side, then one of them, perhaps the largest, is opened to speak.
        measuring = max(int(sum(sizes) * MEASURED_SHARE), *sizes)
        with self._lock:
            most = self._held() + measuring
            fits = not self._memory_bytes or most <= self._memory_bytes
            self._measuring = measuring if fits else 0
        if not fits:
            old.settled = True
            logger.info(
                "voice %s stays with variant %s: with measuring all of them side by side, and the swap, the voices "
                "would need %d MB, which are not there",
                old.version.reference,
                old.voice.variant,
                most >> 20,
            )
            return
        chosen = choose(old.folder, undisturbed)
        if chosen is None:
            # Where somebody speaks every few seconds, to open all variants again and again is what would disturb.
            old.given_up += 1
            old.rest = min(2**old.given_up, MOST_REST)
            return
        old.settled = True
        if chosen == old.voice.variant:
            return
        new = self._open(old.version, old.folder)
        new.settled = True
        with self._lock:
            if self._loaded.get(old.version.reference) is not old:  # it was unloaded in the meantime
                forsaken = [new]
            else:
                self._put(new)
                self._replaced.append(old)
                forsaken = [*self._take_if_forsaken(old), *self._take_if_forsaken(new)]
        self._close(forsaken)
        logger.info(
            "voice %s speaks with variant %s now, after %s",
            old.version.reference,
            new.voice.variant,
            old.voice.variant,
        )

    def close(self) -> None:
        """Unload every voice. Nobody may be speaking any more."""
        with self._lock:
            leaving = list(self._loaded.values())
            for loaded in leaving:
                self._take(loaded)
            leaving += self._replaced
            self._replaced = []
        self._close(leaving)
