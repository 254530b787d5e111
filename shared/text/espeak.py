"""espeak-ng in process, through ``phonemizer`` and the library that ``espeakng_loader`` ships.

espeak-ng is one big global: it keeps the current voice, and a reader's state between the clauses of a text.
So there is one copy of it in a process, and one text at a time goes through it. A server, which may not die of a
text, has it in another process: `isolate`.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from shared.errors import ConfigError, MissingExtraError
from shared.text.espeak_process import EspeakProcess

#: ``espeakCHARS_UTF8`` and ``espeakPHONEMES_IPA`` of espeak-ng's ``speak_lib.h``.
CHARACTERS_UTF8 = 1
PHONEMES_IPA = 0x02

#: Words of another language come out between flags: ``(en)sˈɒftweə(es)``.
LANGUAGE_FLAG = re.compile(r"\([^)]+\)")

#: The marks that end a clause. ``¡`` and ``¿`` end one too, without being spoken of in the tokens.
CLAUSE_END = re.compile(r"\.{3,}|[.,;:?!…–—¡¿]")

#: Dashes separate clauses as a semicolon does; the rest of the marks that are kept stand for themselves.
MARKS = {mark: mark for mark in ".,;:?!"} | {"–": ";", "—": ";"}

#: So many points may come close together; espeak-ng crashes at some forty.
MOST_POINTS = 5
CROWDED = re.compile(rf"(?:[^.\s]{{1,12}}\.+){{{MOST_POINTS},}}")

_lock = threading.Lock()


def _load_library() -> None:
    """Point ``phonemizer`` at the bundled library.

    Raises:
        MissingExtraError: The extra ``phonemes`` is not installed.
    """
    try:
        import espeakng_loader
        from phonemizer.backend.espeak.wrapper import EspeakWrapper
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"This voice speaks from phonemes; the package {error.name!r}, which makes them, is missing. "
            "Install the extra (espeak-ng is under the GPL-3.0): pip install 'vits-suite[phonemes]'"
        ) from error
    EspeakWrapper.set_library(espeakng_loader.get_library_path())
    EspeakWrapper.set_data_path(espeakng_loader.get_data_path())


class _Espeak:
    """One copy of the library, and the voice that it speaks at present. Hold the lock while using it."""

    def __init__(self) -> None:
        _load_library()
        from phonemizer.backend.espeak.wrapper import EspeakWrapper

        self._wrapper: Any = EspeakWrapper()
        self._voice: str | None = None

    def select(self, voice: str) -> None:
        """Speak as ``voice`` from now on. Without a voice the library crashes the process."""
        if voice == self._voice:
            return
        try:
            self._wrapper.set_voice(voice)
        except RuntimeError as error:
            raise ConfigError(
                "The text front end cannot be used:",
                [f"espeak_voice: espeak-ng has no voice {voice!r}; it has 'es-419' or 'en-us', for example"],
            ) from error
        self._voice = voice

    def clauses(self, text: str) -> Iterator[tuple[str, str, bool]]:
        """Read a text clause by clause: phonemes, the text read for them, whether it is the last.

        ``phonemizer``'s own ``text_to_phonemes`` would hide where each clause ended.
        """
        pointer = ctypes.pointer(ctypes.c_char_p(text.encode("utf-8")))
        while (before := pointer.contents.value) is not None:
            spoken = self._wrapper._espeak.text_to_phonemes(pointer, CHARACTERS_UTF8, PHONEMES_IPA)
            after = pointer.contents.value
            read = before if after is None else before[: len(before) - len(after)]
            yield (spoken or b"").decode("utf-8"), read.decode("utf-8"), after is None


#: One for the process, made when first needed.
_espeak = cache(_Espeak)


def clause_mark(clause: str, *, last: bool) -> str:
    """The mark that ended a clause, from the text that espeak-ng read for it.

    Args:
        clause: The stretch of text; unless it is the last, it ends with one character of the next clause,
            which espeak-ng had to read to know that this one was over.
        last: Whether the text ends here.
    """
    tail = re.search(r"\W*$" if last else r"\W*(?=.$)", clause, re.DOTALL)
    end = CLAUSE_END.search(tail.group()) if tail else None
    return MARKS.get(end.group(), "") if end else ""


def survivable(text: str) -> str:
    """A text that espeak-ng lives through, as long as the text: spaces for points between crowded letters.

    espeak-ng takes ``A.B.C.`` for one word, and writes beyond its buffer when that is long: some forty
    letters kill the process.
    """
    if text.count(".") < MOST_POINTS:
        return text
    return CROWDED.sub(lambda run: run.group()[:-1].replace(".", " ") + run.group()[-1], text)


@dataclass(frozen=True)
class Clause:
    """One clause of a text.

    Attributes:
        sounds: Its phonemes in IPA with stress marks, words separated by spaces; may be empty.
        mark: The punctuation that ended it, or nothing.
        end: Where the next clause begins in the text.
    """

    sounds: str
    mark: str
    end: int


def read_clauses(text: str, voice: str) -> list[Clause]:
    """A text's clauses with their phonemes, flags of language switches removed.

    Arguments and errors are those of `phonemes`.
    """
    return read_many([(text, voice)])[text, voice]


def read_many(texts: Sequence[tuple[str, str]]) -> dict[tuple[str, str], list[Clause]]:
    """Pairs of a text and a voice, each read as by `read_clauses`: one question, where each would wake a process."""
    with _lock:
        read = _call("many", [(survivable(text), voice) for text, voice in texts])
    return {pair: _as_clauses(clauses) for pair, clauses in zip(texts, read, strict=True)}


def _as_clauses(read: Sequence[tuple[str, str, bool]]) -> list[Clause]:
    clauses = []
    position = 0
    for spoken, clause, last in read:
        position += len(clause)
        sounds = LANGUAGE_FLAG.sub("", spoken).strip()
        clauses.append(
            Clause(
                sounds, clause_mark(clause, last=last) if sounds else "", position if last else position - 1
            )
        )
    return clauses


def phonemes(text: str, voice: str) -> str:
    """A text's phonemes in IPA with stress marks, its punctuation kept where it was.

    Follows Piper: espeak-ng cuts the text into clauses, and each clause's closing mark (``. , ; : ? !``, a
    dash as ``;``) is kept behind its phonemes, while brackets, quotes, ``¿`` and ``¡`` are dropped. Piper
    cuts at sentence ends and speaks the pieces apart; here one text is one utterance, and clauses are
    joined by a space. Flags of language switches are removed.

    Args:
        text: What to speak; control characters and lone surrogates must have been removed.
        voice: espeak-ng's language code.

    Raises:
        ConfigError: espeak-ng has no such voice.
        MissingExtraError: The extra ``phonemes`` is not installed.
    """
    return " ".join(clause.sounds + clause.mark for clause in read_clauses(text, voice) if clause.sounds)


def phonemes_like_transformers(text: str) -> str:
    """American English phonemes exactly as ``transformers.VitsTokenizer`` makes them.

    Raises:
        MissingExtraError: The extra ``phonemes`` is not installed.
    """
    with _lock:
        spoken: str = _call("like_transformers", survivable(text))
    return re.sub(r"\s+", " ", spoken)


# ------------------------------------------------------------------------------------ in which process


def _clauses(text: str, voice: str) -> list[tuple[str, str, bool]]:
    espeak = _espeak()
    espeak.select(voice)
    return list(espeak.clauses(text))


def _many(texts: Sequence[tuple[str, str]]) -> list[list[tuple[str, str, bool]]]:
    return [IN_PROCESS["clauses"](text, voice) for text, voice in texts]


def _like_transformers(text: str) -> str:
    _load_library()
    import phonemizer

    spoken: str = phonemizer.phonemize(
        text, language="en-us", backend="espeak", strip=True, preserve_punctuation=True, with_stress=True
    )
    return spoken


#: What runs inside espeak-ng, by name.
IN_PROCESS: dict[str, Callable[..., Any]] = {
    "clauses": _clauses,
    "many": _many,
    "like_transformers": _like_transformers,
}


def _in_process(function: str, *arguments: object) -> Any:
    return IN_PROCESS[function](*arguments)


_call: Callable[..., Any] = _in_process


def isolate() -> None:
    """From now on, have texts read in a process of its own, so that one on which espeak-ng dies kills nothing else."""
    global _call
    _call = EspeakProcess()
