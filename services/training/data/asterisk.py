"""The default training set: one woman's Mexican Spanish, from the telephone prompts of the Asterisk exchange.

The recordings are good; their transcripts were typed without accents, with digits for words, and not always
as they were spoken. ``asterisk_es.csv`` repairs them, one reviewed row for each recording of at least four
words:

``id``              the recording, by its file name in the package
``split``           train, validation or test; sentences with the same words are all in one split
``action``          keep or drop
``original``        the package's transcript, so that a changed package is noticed
``corrected``       what is really said
``reason``          why it is dropped, or what was changed beyond spelling and punctuation
``recogniser_cer``  character error rate of whisper-base (faster-whisper, int8, beam 5, language es) against
                    ``corrected``, without case, accents and punctuation, digits spelled out: where to look
                    first when reviewing. Numbers and doubtful words were settled by comparing the wordings'
                    likelihoods under the same model, and by reading; nobody has listened to all of them
``audio_sha256``    the first 16 hexadecimal digits of the G.722 file's hash
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from services.training.data.card import CARD_NAME, DatasetCard, read_card
from services.training.data.debian import Package, unpack
from shared.audio import read_audio, write_flac
from shared.errors import DataError, UserError
from shared.folders import check_writable

NAME = "asterisk-es"
SPEAKER = "allison"
SAMPLING_RATE = 16_000
MIN_SECONDS, MAX_SECONDS = 1.0, 20.0

PACKAGES = (
    Package(
        "asterisk-core-sounds-es-g722",
        "1.6.1-1",
        "e4e3b4281057d3b81b779298fd6be705f57411513955c518eed1bcaabbd615b8",
    ),
    Package(
        "asterisk-core-sounds-es",
        "1.6.1-1",
        "9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74",
    ),
)

_SOUNDS = Path("usr/share/asterisk/sounds/es_MX_f_Allison")
_TRANSCRIPTS = Path("usr/share/doc/asterisk-core-sounds-es/core-sounds-es.txt.gz")

ATTRIBUTION = (
    "Asterisk Core Sounds in Spanish, recorded by Allison Smith (https://www.theivrvoice.com), financed by "
    "Digium, Inc. (https://www.digium.com), licensed CC-BY-SA-3.0 "
    "(https://creativecommons.org/licenses/by-sa/3.0/). Changed: a selection, decoded to 16 kHz FLAC, "
    "transcripts corrected."
)


@dataclass(frozen=True)
class Correction:
    """One row of the table of corrections; see the module's description."""

    id: str
    split: str
    keep: bool
    original: str
    corrected: str
    reason: str
    audio_sha256: str


@dataclass(frozen=True)
class Fetched:
    """What a fetch left behind.

    Attributes:
        folder: The dataset.
        splits: The number of recordings and the seconds of speech in each split.
        rejected: How many sentences of the packages were reviewed and left out.
        remarks: Anything about the packages that a user should know.
        reused: Whether it was there already, and complete.
    """

    folder: Path
    splits: dict[str, tuple[int, float]]
    rejected: int
    remarks: tuple[str, ...] = ()
    reused: bool = False


def read_corrections() -> list[Correction]:
    """The committed table, in its order."""
    with _table().open(encoding="utf-8", newline="") as lines:
        return [
            Correction(
                id=row["id"],
                split=row["split"],
                keep=row["action"] == "keep",
                original=row["original"],
                corrected=row["corrected"],
                reason=row["reason"],
                audio_sha256=row["audio_sha256"],
            )
            for row in csv.DictReader(lines)
        ]


def read_transcripts(path: Path) -> dict[str, str]:
    """The package's own transcripts, ``name: text`` a line; of two with one name the first counts."""
    transcripts: dict[str, str] = {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            name, colon, text = line.partition(":")
            if colon and not line.startswith(";"):
                transcripts.setdefault(name.strip(), text.strip())
    return transcripts


def fetch(output: Path, *, downloaded: Sequence[Path] = (), progress: Progress | None = None) -> Fetched:
    """Make the dataset folder, or leave it alone when it is complete.

    It is made beside its final place and renamed at the end, so a folder of that name is always complete.

    Args:
        output: The folder to make.
        downloaded: Where the two ``.deb`` files are, when apt is not to be asked.
        progress: Told of each recording that is written.

    Raises:
        UserError: The packages cannot be had, or ``output`` holds something else or cannot be written.
        DataError: The package's contents are not those that were reviewed.
    """
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        return _complete(output)
    check_writable(output.absolute().parent, "give another --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        tree, remarks = unpack(PACKAGES, work, downloaded=downloaded)
        made = work / "dataset"
        (made / "audio").mkdir(parents=True)
        made.chmod(0o755)
        splits = build(tree, read_corrections(), made, progress=progress)
        if output.exists():
            output.rmdir()
        made.rename(output)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Fetched(output, splits, _rejected(), tuple(remarks))


class Progress:
    """Told how far a fetch is; this one keeps silent."""

    def start(self, total: int) -> None:
        """The packages are unpacked and ``total`` recordings will be written."""

    def advance(self) -> None:
        """One more is written."""


def build(
    tree: Path, corrections: Sequence[Correction], made: Path, *, progress: Progress | None = None
) -> dict[str, tuple[int, float]]:
    """Turn unpacked packages into a dataset in the folder ``made``, which has a folder ``audio``.

    Returns:
        The number of recordings and the seconds of speech in each split.

    Raises:
        DataError: Recordings or transcripts that are missing or not those that were reviewed.
    """
    progress = progress or Progress()
    transcripts = read_transcripts(tree / _TRANSCRIPTS) if (tree / _TRANSCRIPTS).is_file() else {}
    problems = [
        f"{correction.id}: {problem}"
        for correction in corrections
        for problem in _changes(correction, tree / _SOUNDS / f"{correction.id}.g722", transcripts)
    ]
    if problems:
        raise DataError(
            f"The packages' contents differ in {len(problems)} places from those of version "
            f"{PACKAGES[0].version}, for which the transcripts were reviewed. Get that version from "
            "https://snapshot.debian.org and give its folder: --from FOLDER",
            problems[:20],
        )
    kept = [correction for correction in corrections if correction.keep]
    progress.start(len(kept))
    rows: list[dict[str, str]] = []
    for correction in kept:
        audio = read_audio((tree / _SOUNDS / f"{correction.id}.g722").read_bytes(), format="g722")
        audio = audio.resampled(SAMPLING_RATE)
        if not MIN_SECONDS <= audio.duration_seconds <= MAX_SECONDS:
            raise DataError(
                f"The table of corrections keeps {correction.id}",
                [f"it lasts {audio.duration_seconds:.1f} s, not {MIN_SECONDS:.0f} to {MAX_SECONDS:.0f} s"],
            )
        name = f"audio/{correction.id.replace('/', '-')}.flac"
        write_flac(made / name, audio.samples, audio.sampling_rate)
        rows.append(
            {
                "file_name": name,
                "text": correction.corrected,
                "speaker_id": SPEAKER,
                "split": correction.split,
                "duration_seconds": f"{audio.duration_seconds:.3f}",
            }
        )
        progress.advance()
    with (made / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    _write_card(made, len(rows))
    return _tally(rows)


def _changes(correction: Correction, sound: Path, transcripts: dict[str, str]) -> Iterable[str]:
    """How a recording differs from the one that was reviewed."""
    if not sound.is_file():
        yield "its recording is missing"
    elif hashlib.sha256(sound.read_bytes()).hexdigest()[:16] != correction.audio_sha256:
        yield "its recording is another one"
    found = transcripts.get(correction.id, "")
    if found != correction.original:
        yield f"its transcript is {found!r} where {correction.original!r} was reviewed"


def _write_card(made: Path, files: int) -> None:
    """Write ``dataset.json`` and a README, so that the licence travels with the recordings."""
    card = DatasetCard(
        name=NAME,
        licence="CC-BY-SA-3.0",
        sources=tuple(f"Debian package {package.name} {package.version}" for package in PACKAGES),
        attribution=ATTRIBUTION,
        language="es-MX",
        fingerprint=_fingerprint(),
        files=files,
    )
    card.write(made)
    (made / "README.md").write_text(
        f"# {NAME}\n\nMexican Spanish telephone prompts, one speaker, {files} recordings, 16 kHz mono FLAC."
        f"\n\n{ATTRIBUTION}\n\n"
        "What is made from these recordings carries the same licence and this attribution.\n",
        encoding="utf-8",
    )


def _complete(output: Path) -> Fetched:
    """What a folder holds that is there already.

    Raises:
        UserError: It is another dataset, another edition of this one, or has lost files.
    """
    card = read_card(output) if output.is_dir() else None
    if card is None or card.name != NAME:
        raise UserError(f"{output} holds something else (no {CARD_NAME} of {NAME}): give another --output")
    if card.fingerprint != _fingerprint():
        raise UserError(
            f"{output} was made from another edition of the transcripts: remove it, or give another --output"
        )
    with (output / "metadata.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    missing = [row["file_name"] for row in rows if not (output / row["file_name"]).is_file()]
    if missing or len(rows) != card.files:
        raise UserError(
            f"{output} has lost {len(missing)} of {card.files} recordings: remove it and fetch again"
        )
    return Fetched(output, _tally(rows), _rejected(), reused=True)


def _rejected() -> int:
    return sum(not correction.keep for correction in read_corrections())


def _tally(rows: Iterable[Mapping[str, str]]) -> dict[str, tuple[int, float]]:
    """The number of recordings and the seconds of speech in each split of a ``metadata.csv``."""
    splits = dict.fromkeys(("train", "validation", "test"), (0, 0.0))
    for row in rows:
        count, seconds = splits[row["split"]]
        splits[row["split"]] = (count + 1, seconds + float(row["duration_seconds"]))
    return splits


def _fingerprint() -> str:
    return hashlib.sha256(_table().read_bytes()).hexdigest()


def _table() -> Path:
    return Path(str(resources.files("services.training.data") / "asterisk_es.csv"))
