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
)
from services.training.data.card import DatasetCard, read_card
from services.training.data.commands.clean import add_reading, progress, read
from services.training.data.listening import Listeners
from services.training.data.writing import new_folder, write_table
from shared.audio import write_flac
from shared.errors import ConfigError
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
    found = read(options)
    found.raise_problems()
    speakers = any(recording.speaker for recording in found.recordings)
    rows: list[list[str]] = []
    with new_folder(options.output) as made:
        (made / "audio").mkdir()
        with progress("varying", len(found.recordings)) as advance:
            for number, (recording, split) in enumerate(
                zip(found.recordings, found.splits, strict=True), start=1
            ):
                audio = recording.audio()
                copies = options.copies if split == "train" else 0
                for copy in range(copies + 1):
                    name = f"audio/{number:05d}" + (f"-{copy}" if copy else "") + ".flac"
                    change = augmentation.draw(options.seed, copy, recording.id) if copy else None
                    samples = (
                        audio.samples if change is None else change.apply(audio.samples, audio.sampling_rate)
                    )
                    write_flac(made / name, samples, audio.sampling_rate)
                    what = (
                        ""
                        if change is None
                        else f"{change.semitones:+.2f} semitones, speed {change.speed:.3f}"
                    )
                    if change is not None and change.noise_snr is not None:
                        what += f", noise {change.noise_snr:.0f} dB below"
                    speaker = [recording.speaker or ""] if speakers else []
                    rows.append([name, recording.text, split, what, *speaker])
                advance()
        columns = ["file_name", "text", "split", "varied", *(["speaker_id"] if speakers else [])]
        write_table(made / "metadata.csv", columns, rows)
        folder = Path(options.source).expanduser()
        card = (read_card(folder) if folder.is_dir() else None) or DatasetCard(folder.stem, UNKNOWN_LICENCE)
        attribution = f"{card.attribution} Changed: with varied copies." if card.attribution else ""
        card = replace(
            card, name=f"{card.name}-varied", attribution=attribution, fingerprint="", files=len(rows)
        )
        card.write(made)
    print(
        f"{options.output}: {counted(len(rows), 'recording')}, {len(rows) - len(found.recordings)} of them varied"
    )
    print(f"Note: {WARNING}")
    print(f"next: listen to some of them, then vits data inspect {shlex.quote(str(options.output))}")
    return 0


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
