"""From a model to a voice that may be published: exported, quantised, judged."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from services.evaluation import Judges
from services.export.export import VARIANTS, check_variants, export_voice, language_of
from services.export.gate import (
    NEEDED_JUDGES,
    Candidate,
    gate,
    require_judges,
    require_words,
    speaks,
    without_judges,
)
from services.export.gate_page import settle
from services.export.progress import Progress
from services.export.quantization import QUANTISED, quantise
from services.export.report import add_to_report
from services.export.sentences import Sentences, read_sentences, sentences_for
from shared.cache import CACHE_REMEDY, default_cache
from shared.errors import EngineError, UserError
from shared.folders import check_writable
from shared.model_source import ModelSource
from shared.text import FrontEnd
from shared.voice import VoiceSpec
from shared.voice.engine import why_not
from shared.voice.selection import PORTABLE
from shared.voice.spec import ModelReference

#: Every variant that can be asked for.
KNOWN = VARIANTS | QUANTISED

#: Those that are made where nobody says which: fp16 is for GPUs alone.
USUAL = (PORTABLE, "fp32-openvino", "bf16", "int8-bf16", "int8", "int8-onnxruntime")

#: The variants that differ from fp32, and what each must be faster than: the first of these that the voice has,
#: `PORTABLE` otherwise.
REPLACED = {
    "bf16": ("fp32-openvino",),
    "int8-bf16": ("bf16", "fp32-openvino"),
    "int8": ("fp32-openvino",),
    "int8-onnxruntime": (),
    "fp16": (),
}


@dataclass(frozen=True)
class Wishes:
    """What a user wants of a voice.

    Attributes:
        variants: Which of `KNOWN` to make; None for `USUAL`, without those that this machine does not run.
        judge: Whether the quality gate decides; without it, what differs from fp32 is marked ``ungated``.
        language: What the voice speaks; what its text front end says where not given.
        sentences: A text file to calibrate and judge with, one sentence a line; our own list where not given.
        recogniser: A local faster-whisper model; the packaged one where not given.
    """

    variants: tuple[str, ...] | None = None
    judge: bool = True
    language: str | None = None
    sentences: Path | None = None
    recogniser: Path | None = None


def build_voice(
    source: ModelSource, folder: Path, wishes: Wishes, progress: Progress | None = None
) -> VoiceSpec:
    """Write a model's voice into a folder: only variants that agree with PyTorch, or passed the gate, or are unjudged.

    What calibration and gate found is kept in the cache: what was interrupted goes on where it stopped.

    Args:
        source: The model.
        folder: The voice folder to write. It is complete only when this function returns.
        wishes: What to make.
        progress: Is told of each step.

    Returns:
        What ``voice.json`` says.

    Raises:
        NotFoundError: There is no such variant.
        ModelError: The folder is not a model that can be exported.
        QualityError: The graphs do not compute what the model computes.
        MissingExtraError: A judge without which the gate cannot decide is not installed.
        UserError: There are no sentences to calibrate or to judge with, or too few; or the cache cannot be written.
        EngineError: This machine does not run a variant that was asked for, so that it cannot be judged here.
    """
    progress = progress or Progress()
    front_end = FrontEnd.from_folder(source.folder)
    language = wishes.language or language_of(front_end)
    sentences = read_sentences(wishes.sentences) if wishes.sentences else sentences_for(language)
    judges = Judges(recogniser=wishes.recogniser, language=language, only=NEEDED_JUDGES)
    if wishes.variants is None:
        names = _usual(wishes, sentences, judges, language, progress)
    else:
        names = check_variants(wishes.variants, KNOWN)
        _check_machine(names, wishes)
    quantised = [name for name in names if name in QUANTISED]
    judged = [name for name in names if wishes.judge and name in REPLACED and why_not(KNOWN[name]) is None]
    if sentences is None and (quantised or judged):
        raise UserError(f"{_no_sentences(language)}, or make only --variants fp32,fp32-openvino")
    cache = default_cache() / "export"
    if quantised or judged:
        check_writable(cache, CACHE_REMEDY)
    if judged:
        require_judges(judges)
    if sentences and (quantised or judged):
        sentences = sentences.in_segments(front_end, language)
    if judged and sentences:
        require_words(sentences.gate, language)  # before anything long is begun
    version = source.version
    spec = export_voice(
        source.folder,
        folder,
        provenance=source.provenance,
        model=ModelReference(name=version.name, version=version.id) if version else None,
        language=language,
        variants=[name for name in names if name in VARIANTS],
        progress=progress,
    )
    if quantised and sentences:
        if wishes.judge:
            search = speaks(folder, sentences=sentences.gate, judges=judges, cache=cache)
        else:  # a processor without the instructions would find that int8 saves nothing
            search = not any(why_not(KNOWN[name]) for name in quantised)
        made = quantise(
            folder, quantised, sentences=sentences.calibration, cache=cache, search=search, progress=progress
        )
        spec = spec.model_copy(update={"variants": spec.variants | made.variants})
        spec.write(folder)
        add_to_report(folder, {"quantisation": {"sentences": sentences.source, **made.record}})
    for name in names if wishes.judge else []:
        if name in REPLACED and name not in judged:
            progress(f"{name} is left ungated, for nobody can judge it here: {why_not(KNOWN[name])}")
    if judged and sentences:
        candidates = [Candidate(name, _replaced(name, spec)) for name in judged]
        report = gate(
            folder,
            candidates,
            sentences=sentences.gate,
            source=sentences.source,
            judges=judges,
            cache=cache,
            progress=progress,
        )
        spec = settle(folder, report, title=f"{source.name}: what its variants sound like")
    return spec


def _usual(
    wishes: Wishes,
    sentences: Sentences | None,
    judges: Judges,
    language: str,
    progress: Progress,
) -> list[str]:
    """`USUAL`, without what cannot be made or judged here, which is said."""
    lacking = {name for name in USUAL if why_not(KNOWN[name])}
    for name in sorted(lacking):
        progress(f"Left out: {name}, for {why_not(KNOWN[name])}")
    unjudged = (set(REPLACED if wishes.judge else QUANTISED) & set(USUAL)) - lacking
    if unjudged and sentences is None:
        progress(f"Left out: {', '.join(sorted(unjudged))}. {_no_sentences(language)}")
        lacking |= unjudged
    elif unjudged and wishes.judge and (reason := without_judges(judges)):
        progress(f"Left out: {', '.join(sorted(unjudged))}. {reason}")
        lacking |= unjudged
    return [name for name in USUAL if name not in lacking]


def _check_machine(names: Collection[str], wishes: Wishes) -> None:
    """Refuse what was asked for and can be neither compared with PyTorch nor judged here.

    fp16 is let through: GPUs are seldom where voices are made.

    Raises:
        EngineError: This machine does not run a variant.
    """
    for name in names:
        variant = KNOWN[name]
        reason = why_not(variant)
        if reason is None or variant.device == "gpu":
            continue
        if variant.gate == "reference":
            raise EngineError(f"{name} is not made where it cannot be compared with PyTorch: {reason}")
        if wishes.judge:
            raise EngineError(
                f"{name} cannot be judged on this machine: {reason}. Export where it runs, leave it out of "
                "--variants, or give --no-gate: then it is made and marked as ungated."
            )


def _no_sentences(language: str) -> str:
    return (
        f"There is no list of sentences for {language!r}, to calibrate and to judge with: give a text file of that "
        "language, one sentence a line (--sentences), or the right tag (--language)"
    )


def _replaced(name: str, spec: VoiceSpec) -> str:
    return next((other for other in REPLACED[name] if other in spec.variants), PORTABLE)
