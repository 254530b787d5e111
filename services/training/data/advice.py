"""What to do next with a dataset of this size, language and dialect: the base, the settings, the exact command.

The amounts are those of the guide that this suite began with: 80 to 150 recordings or 15 to 30 minutes at least,
500 to 1,000 or one to three hours recommended, 2,000 or five hours and more at best; one dialect throughout.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from services.training.data.inspection import Inspection, Measured
from services.training.data.recordings import Columns


@dataclass(frozen=True)
class Amount:
    """A class of size.

    Attributes:
        name: It.
        recordings: So many at least, of one speaker.
        minutes: And so many minutes at least.
        epochs: Passes over the recordings to plan for.
        advice: What to expect, and what to do.
    """

    name: str
    recordings: int
    minutes: float
    epochs: int
    advice: str


#: The largest first.
AMOUNTS = (
    Amount("optimal", 2000, 300, 100, "enough for a voice that is your speaker's own; fewer epochs will do"),
    Amount("recommended", 500, 60, 200, "a good voice, when the recordings are clean and alike"),
    Amount(
        "the minimum", 80, 15, 200, "fine-tuning only, and every bad recording counts: clean it, listen to it"
    ),
    Amount(
        "too little", 0, 0, 200, "a voice will sound like its base, or stammer; record more before you train"
    ),
)

#: Regions of Spanish and what they are called; espeak knows Spain's and Latin America's.
_SPANISH = {
    "ES": "Castilian", "MX": "Mexican", "AR": "Argentine", "CO": "Colombian", "CL": "Chilean", "PE": "Peruvian",
    "US": "United States", "419": "Latin American",
}  # fmt: skip
#: Words that end as verbs of vosotros do, and are none: numbers up to noventaiséis, and plurals of nouns.
_NO_VOSOTROS = (
    r"dieciséis|veintiséis|\w+(?:enta|inta)iséis|jerséis|bonsáis|samuráis|paipáis|espráis|guirigáis"
)
#: Words of Spain alone, and of voseo.
_VOSOTROS = re.compile(
    rf"\b(vosotr[oa]s|vuestr[oa]s?|(?!(?:{_NO_VOSOTROS})\b)\w{{2,}}(áis|éis))\b", re.IGNORECASE
)
_VOSEO = re.compile(r"\b(vos|sos|tenés|querés|podés|sabés|decís|vení|andá|mirá)\b", re.IGNORECASE)
#: In fewer of the texts than this a form is a quotation.
_TELLING_SHARE = 0.02

_MANY_SPEAKERS = "configs/multi-speaker.json"

#: What the commands call a hub dataset's configuration, and the columns with audio, text and speaker.
_CLEAN_READS = ("--config-name", "--audio-column", "--text-column", "--speaker-column")
_TRAIN_READS = (
    "--dataset_config_name", "--audio_column_name", "--text_column_name", "--speaker_id_column_name"
)  # fmt: skip


def amount_of(measured: Sequence[Measured]) -> Amount:
    """The class of one speaker's recordings; both their number and their length count."""
    minutes = sum(one.seconds for one in measured) / 60
    return next(a for a in AMOUNTS if len(measured) >= a.recordings and minutes >= a.minutes)


def advise(
    inspection: Inspection,
    *,
    language: str,
    gpu: bool,
    columns: Columns | None = None,
    config_name: str | None = None,
) -> list[str]:
    """What to do next, a sentence or a command each.

    Args:
        inspection: What was found out about the dataset.
        language: BCP 47 of what is spoken; empty where nobody knows.
        gpu: Whether training would have one.
        columns: Those that were read.
        config_name: The configuration that was read of a hub dataset.
    """
    columns = columns or Columns()
    return [
        *_on_amount(inspection),
        *_on_language(inspection, language),
        *_on_faults(inspection, _reading(_CLEAN_READS, columns, config_name)),
        *_on_training(inspection, language, gpu, _reading(_TRAIN_READS, columns, config_name)),
    ]


def _reading(keys: Sequence[str], columns: Columns, config_name: str | None) -> list[str]:
    """The arguments by which a command reads a dataset as it was read here; none for what is usual."""
    usual = Columns()
    told = (
        config_name,
        columns.audio if columns.audio != usual.audio else None,
        columns.text if columns.text != usual.text else None,
        columns.speaker,
    )
    return [word for key, value in zip(keys, told, strict=True) if value for word in (key, value)]


def _trained(inspection: Inspection) -> list[Measured]:
    return [one for one in inspection.measured if one.split == "train"] or list(inspection.measured)


def _on_amount(inspection: Inspection) -> Iterator[str]:
    by_speaker: dict[str | None, list[Measured]] = {}
    for one in _trained(inspection):
        by_speaker.setdefault(one.recording.speaker, []).append(one)
    for speaker, measured in sorted(by_speaker.items(), key=lambda item: str(item[0]))[:10]:
        amount = amount_of(measured)
        minutes = sum(one.seconds for one in measured) / 60
        whose = f"{speaker}: " if len(by_speaker) > 1 else ""
        yield f"{whose}{len(measured)} recordings, {minutes:.0f} minutes to train on is {amount.name}: {amount.advice}"
        better = AMOUNTS[max(0, AMOUNTS.index(amount) - 1)]
        if better is not amount:
            missing = f"{max(0, better.recordings - len(measured))} recordings"
            length = f"{max(0.0, better.minutes - minutes):.0f} minutes"
            yield f"{whose}{missing} or {length} more, whichever is later, would be {better.name}"


def _on_language(inspection: Inspection, language: str) -> Iterator[str]:
    root, _, region = language.partition("-")
    if not root:
        yield "say what is spoken, with its region (--language es-MX): base, phonemes and judges depend on it"
        return
    if root.lower() not in {"es", "spa"}:
        if not region:
            yield f"{language}: one accent throughout gives the best voice; say which with --language {language}-REGION"
        return
    if region:
        named = _SPANISH.get(region.upper(), region)
        yield f"{named} Spanish ({language}): keep to it; recordings in another dialect blur how the voice speaks"
    else:
        known = ", ".join(f"es-{code} {name}" for code, name in _SPANISH.items())
        yield f"say which Spanish (--language es-REGION; {known}): one dialect throughout gives the best voice"
    texts = Counter(
        form
        for one in inspection.measured
        for form, pattern in (("vosotros", _VOSOTROS), ("voseo", _VOSEO))
        if pattern.search(one.recording.text)
    )
    telling = [form for form, count in texts.items() if count >= _TELLING_SHARE * len(inspection.measured)]
    if len(telling) == 2:
        yield "the texts have vosotros and voseo: are there two dialects in it?"
    if "vosotros" in telling and region and region.upper() != "ES":
        yield f"the texts say vosotros, which is Castilian, not {_SPANISH.get(region.upper(), region)}"


def _on_faults(inspection: Inspection, reading: Sequence[str]) -> Iterator[str]:
    kinds = Counter(suspect.kind for suspect in inspection.suspects)
    if kinds:
        told = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        yield f"clean it first ({told}): {_shell('vits', 'data', 'clean', inspection.source, *reading)}"


def _on_training(inspection: Inspection, language: str, gpu: bool, reading: Sequence[str]) -> Iterator[str]:
    trained = _trained(inspection)
    speakers = {one.recording.speaker for one in trained}
    amount = amount_of(max((_of(trained, speaker) for speaker in speakers), key=len, default=[]))
    if amount is AMOUNTS[-1]:
        root = language.partition("-")[0].lower()
        if root in {"es", "en"}:
            yield f"next: {_shell('vits', 'data', 'record', 'more-recordings', '--language', root)}"
        else:
            record = _shell("vits", "data", "record", "more-recordings", "--prompts", "sentences.txt")
            yield f"next: write sentences to read out into a text file, sentences.txt, one a line; then: {record}"
        return
    command = ["vits", "train", "--config", "configs/piper.json"]
    base = "the Piper voice that 'make demo' converts (models/joe); with a GPU, MMS of the language instead"
    if gpu:
        code = _ON_THE_HUB.get(language.partition("-")[0].lower())
        base = "a training checkpoint of MMS on the hub, which may not be used commercially (CC BY-NC 4.0)"
        if code is None:
            convert = _shell(
                "vits", "convert", "mms-discriminator", "--language_code", "CODE", "--output", "models/mms"
            )
            base += f"; of this language make one first, with its ISO 639-3 code: {convert}"
        command[-1] = "configs/eng.json" if code == "eng" else "configs/spa.json"
        if code not in {"spa", "eng"}:
            command += ["--model_name_or_path", f"ylacombe/mms-tts-{code}-train" if code else "models/mms"]
    if len(speakers) > 1:
        command += ["--config", _MANY_SPEAKERS]
    command += ["--dataset_name", inspection.source, *reading]
    if gpu:
        command += ["--num_train_epochs", str(amount.epochs)]
    elif voice := _espeak_voice(language):
        command += ["--espeak_voice", voice]
    yield f"base: {base}"
    if amount.name == "the minimum":
        yield "little data: --augment_speed 0.05 --augment_pitch 0.5 may help; it can also hurt, so listen to both"
    yield f"next: {_shell(*command)}"


def _of(measured: Sequence[Measured], speaker: str | None) -> list[Measured]:
    return [one for one in measured if one.recording.speaker == speaker]


#: What MMS calls the languages that have a training checkpoint on the hub, by ISO 639. The shipped configurations of
#: others than Spanish and English are those of a dataset: they name its columns, and one of its speakers.
_ON_THE_HUB = {
    "es": "spa", "spa": "spa", "en": "eng", "eng": "eng", "ko": "kor", "kor": "kor", "gu": "guj", "guj": "guj",
    "mr": "mar", "mar": "mar", "ta": "tam", "tam": "tam",
}  # fmt: skip


def _espeak_voice(language: str) -> str:
    """espeak-ng's voice for a language and region; empty where nobody knows."""
    root, _, region = language.lower().partition("-")
    if root in {"es", "spa"}:
        return "es" if region == "es" else "es-419"
    if root in {"en", "eng"}:
        return "en-gb" if region == "gb" else "en-us"
    return root


def _shell(*words: str) -> str:
    return shlex.join(words)
