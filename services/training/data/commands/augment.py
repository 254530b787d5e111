"""``vits data augment``: a dataset with varied copies of its recordings beside them."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path

from services.training.data.augmentation import (
    MAX_SEMITONES,
    MAX_SPEED_CHANGE,
    MIN_NOISE_SNR_DB,
    WARNING,
    Augmentation,
    Change,
)
from services.training.data.card import DatasetCard, read_card
from services.training.data.commands.clean import add_reading, progress, read, say_left_out
from services.training.data.listening import Listeners
from services.training.data.writing import check_output, new_folder, write_table
from shared.audio import Audio, write_flac
from shared.errors import ConfigError, DataError, UserError
from shared.provenance import UNKNOWN_LICENCE
from shared.wording import counted

HELP = "add varied copies of recordings: pitch, speed, light noise"

DESCRIPTION = f"""\
Make a new dataset that holds every recording, and of each in the training split some copies with another pitch,
speed and a little noise. Held-out recordings are only copied.

Warning: {WARNING[:73]}
{WARNING[73:]}.

'vits train' varies recordings anew in every epoch without any copies (--augment_pitch, --augment_speed,
--augment_noise_snr), which is better; this is for other programs, and to hear what it sounds like.
"""

EPILOG = """\
example:
  vits data augment data/ana --output data/ana-varied --pitch 1 --speed 0.05 --noise-snr 35

A recording that cannot be read is named and left out; the exit code is 2 then.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "source", metavar="DATASET", help="a folder, a table file, or the id of a hub dataset"
    )
    add_reading(parser)
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="the dataset folder to make"
    )
    parser.add_argument(
        "--copies", type=int, default=1, metavar="N", help="of each recording (default: %(default)s)"
    )
    parser.add_argument(
        "--pitch",
        type=float,
        default=0.0,
        metavar="SEMITONES",
        help=f"up or down by up to so many, at most {MAX_SEMITONES:g}",
    )
    parser.add_argument(
        "--speed", type=float, default=0.0, metavar="SHARE",
        help=f"faster or slower by up to this share, at most {MAX_SPEED_CHANGE:g}",
    )  # fmt: skip
    parser.add_argument(
        "--noise-snr", type=float, metavar="DB",
        help=f"white noise so many decibels below the speech, or up to 10 less; at least {MIN_NOISE_SNR_DB:g}",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=42, help="draws what is varied (default: %(default)s)")


def run(options: argparse.Namespace, listeners: Listeners) -> int:
    """Run it.

    Raises:
        ConfigError: The ranges are too wide, or nothing is varied.
        UserError: The dataset or the folder cannot be used.
    """
    augmentation = _augmentation(options)
    check_output(options.output)
    found = read(options)
    if not found.recordings:
        found.raise_problems()
    left_out = list(found.problems)
    speakers = any(recording.speaker for recording in found.recordings)
    rows: list[list[str]] = []
    varied = 0
    with new_folder(options.output) as made:
        (made / "audio").mkdir()
        with progress("varying", len(found.recordings)) as advance:
            for number, (recording, split) in enumerate(
                zip(found.recordings, found.splits, strict=True), start=1
            ):
                copies = options.copies if split == "train" else 0
                speaker = [recording.speaker or ""] if speakers else []
                try:
                    audio = recording.audio()
                except UserError as error:
                    left_out.append(recording.fault(str(error)))
                else:
                    for copy in range(copies + 1):
                        name = f"audio/{number:05d}" + (f"-{copy}" if copy else "") + ".flac"
                        change = augmentation.draw(options.seed, copy, recording.id) if copy else None
                        _write(made / name, audio, change)
                        rows.append([name, recording.text, split, _told(change), *speaker])
                    varied += copies
                advance()
        if not rows:
            raise DataError(f"No recording of {found.source} can be used", left_out)
        columns = ["file_name", "text", "split", "varied", *(["speaker_id"] if speakers else [])]
        write_table(made / "metadata.csv", columns, rows)
        folder = Path(options.source).expanduser()
        card = (read_card(folder) if folder.is_dir() else None) or DatasetCard(folder.stem, UNKNOWN_LICENCE)
        attribution = f"{card.attribution} Changed: with varied copies." if card.attribution else ""
        card = replace(
            card, name=f"{card.name}-varied", attribution=attribution, fingerprint="", files=len(rows)
        )
        card.write(made)
    print(f"{options.output}: {counted(len(rows), 'recording')}, {varied} of them varied")
    say_left_out(left_out, counted(len(rows) - varied + len(left_out), "recording"))
    print(f"Note: {WARNING}")
    print(f"next: listen to some of them, then vits data inspect {shlex.quote(str(options.output))}")
    return 2 if left_out else 0


def _write(path: Path, audio: Audio, change: Change | None) -> None:
    samples = audio.samples if change is None else change.apply(audio.samples, audio.sampling_rate)
    write_flac(path, samples, audio.sampling_rate)


def _told(change: Change | None) -> str:
    """What a copy differs in; nothing for a recording as it is."""
    if change is None:
        return ""
    noise = "" if change.noise_snr is None else f", noise {change.noise_snr:.0f} dB below"
    return f"{change.semitones:+.2f} semitones, speed {change.speed:.3f}{noise}"


def _augmentation(options: argparse.Namespace) -> Augmentation:
    """What was asked for.

    Raises:
        ConfigError: Everything that is wrong with it.
    """
    problems = []
    if not 0 <= options.pitch <= MAX_SEMITONES:
        problems.append(f"--pitch {options.pitch:g} is not between 0 and {MAX_SEMITONES:g} semitones")
    if not 0 <= options.speed <= MAX_SPEED_CHANGE:
        problems.append(f"--speed {options.speed:g} is not between 0 and {MAX_SPEED_CHANGE:g}")
    if options.noise_snr is not None and not MIN_NOISE_SNR_DB <= options.noise_snr <= 80:
        problems.append(f"--noise-snr {options.noise_snr:g} is not between {MIN_NOISE_SNR_DB:g} and 80 dB")
    if options.copies < 1:
        problems.append(f"--copies {options.copies} makes none")
    augmentation = Augmentation(options.pitch, options.speed, options.noise_snr, probability=1.0)
    if not problems and not augmentation:
        problems.append("nothing is varied: give --pitch, --speed or --noise-snr")
    if problems:
        raise ConfigError("Recordings cannot be varied like this:", problems)
    return augmentation
