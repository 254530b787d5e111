"""Hugging Face datasets, from a folder or from the hub.

The ``datasets`` library finds and maps the files; the sound in them is always decoded by ``shared.audio``.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from services.training.data.recordings import (
    Columns,
    Recording,
    Row,
    canonical_split,
    missing_column,
    pick_column,
)
from services.training.data.tables import AUDIO_EXTENSIONS, TABLE_EXTENSIONS
from shared.audio import Audio
from shared.container import mount_advice
from shared.errors import (
    DataError,
    HubUnreachableError,
    MissingExtraError,
    UserError,
    nearest,
    nearest_beside,
)

#: How long to wait for the hub's first answer.
HUB_TIMEOUT_SECONDS = 10.0

#: Files that ``load_dataset`` finds rows in. A folder without any of them it need not be asked about.
_ROW_FILES = (".parquet", ".arrow", ".jsonl", ".json", ".csv", ".tsv", ".zip", ".tar", ".gz", ".zst")


def looks_like_id(source: str) -> bool:
    """Whether a source that is no folder may be the id of a hub dataset: ``name`` or ``owner/name``."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", source) is not None


def looks_like_file(source: str) -> bool:
    """Whether a source is called as a file of a dataset is, and a hub dataset is not."""
    return source.lower().endswith((*TABLE_EXTENSIONS, *_ROW_FILES, *AUDIO_EXTENSIONS))


def read_folder(folder: Path, split: str, columns: Columns) -> list[Row]:
    """Read a dataset that ``save_to_disk`` wrote, or a folder or file that ``load_dataset`` understands.

    Raises:
        DataError: The folder is no dataset, or has no such split or column.
        MissingExtraError: The ``datasets`` library is not installed.
    """
    if folder.is_dir() and not any(file.suffix in _ROW_FILES for file in folder.rglob("*")):
        raise DataError(
            f"{folder} is not a dataset that can be read",
            [
                "it has no table, neither metadata.csv, metadata.tsv or metadata.txt nor one a split (train.csv)",
                "nor has it the parquet, arrow or JSON files of a Hugging Face dataset",
                "write a metadata.csv with the columns file_name and text",
            ],
        )
    datasets = load_library()
    try:
        if folder.is_dir() and any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(str(folder))
        elif folder.is_dir():
            loaded = datasets.load_dataset(str(folder))
        else:
            loaded = datasets.load_dataset(folder.suffix.lstrip("."), data_files=str(folder))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{folder} is not a dataset that can be read",
            [
                "it has no metadata.csv or train.csv: write one with the columns file_name and text",
                f"nor is it a Hugging Face dataset folder: {error.__cause__ or error}",
            ],
        ) from error
    splits = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    return _rows(str(folder), splits, split, columns, folder)


def read_hub(
    name: str,
    split: str,
    columns: Columns,
    *,
    config_name: str | None,
    cache_dir: str | Path | None,
    token: str | None,
) -> list[Row]:
    """Read a dataset of the hub, from its cache where the hub cannot be reached.

    Raises:
        HubUnreachableError: No answer from the hub, and nothing in the cache.
        DataError: The hub has no such dataset, configuration or split.
        MissingExtraError: The ``datasets`` library is not installed.
    """
    datasets = load_library()
    _announce(name)
    reason = _why_unreachable(name, token)
    options: dict[str, Any] = {"cache_dir": None if cache_dir is None else str(cache_dir), "token": token}
    try:
        with _offline(reason is not None):
            loaded = datasets.load_dataset(name, config_name, **options)
    except ConnectionError as error:
        raise HubUnreachableError(unreachable_message(name, reason or str(error))) from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if reason is not None:
            raise HubUnreachableError(unreachable_message(name, reason)) from error
        raise DataError(f"The hub dataset {name} cannot be read", [str(error)]) from error
    return _rows(name, dict(loaded), split, columns, None)


@cache
def _announce(name: str) -> None:
    """Say, once, that a source is taken for a name on the hub: it may be a folder, misspelt."""
    if os.environ.get("RANK", "0") == "0":  # torchrun numbers its processes
        here = f"There is no folder {name} here{nearest_beside(Path(name)) or '.'}"
        print(here, "Taking it for a name on the Hugging Face hub", file=sys.stderr, flush=True)


def unreachable_message(name: str, reason: str) -> str:
    """What to tell a user whose dataset is neither here nor within reach."""
    return (
        f"There is no folder {name!r} here{nearest_beside(Path(name)) or '.'} The Hugging Face hub, which may have a "
        f"dataset of that name, could not be reached ({reason}).\n"
        "Two ways to go on:\n"
        "  - give a folder of your own as dataset_name: metadata.csv with the columns file_name and text,\n"
        "    and the recordings beside it ('vits data fetch asterisk-es --output DIR' makes one)."
        f"{mount_advice('data')}\n"
        f"  - fetch it where there is a network ('hf download --repo-type dataset {name} --local-dir DIR'),\n"
        "    copy DIR here and give that."
    )


@dataclass(frozen=True)
class EmbeddedSound:
    """The sound of one row of a Hugging Face dataset, fetched from its memory map when called.

    Attributes:
        dataset: With the audio column alone, undecoded.
        column: Its name.
        index: The row.
        folder: What relative paths are relative to.
    """

    dataset: Any
    column: str
    index: int
    folder: Path | None

    def __call__(self) -> Path | bytes | Audio:
        """Its file's bytes, its path, or its bare samples.

        Raises:
            UserError: The row holds nothing of the kind.
        """
        value = self.dataset[self.index][self.column]
        if isinstance(value, Mapping):
            if value.get("bytes"):
                return bytes(value["bytes"])
            if value.get("array") is not None and value.get("sampling_rate"):
                samples = np.asarray(value["array"], dtype=np.float32)
                if samples.ndim != 1 or samples.size == 0:
                    raise UserError(f"its samples have the shape {samples.shape}: store mono samples [S]")
                if not np.isfinite(samples).all():
                    raise UserError("it holds values that are not numbers (NaN or infinity): record it again")
                return Audio(np.clip(samples, -1.0, 1.0), int(value["sampling_rate"]))
            value = value.get("path")
        if not isinstance(value, str) or not value:
            raise UserError("it holds no sound: store audio files (datasets.Audio) or their paths")
        return Path(value) if self.folder is None else self.folder / value


def _rows(
    source: str, splits: Mapping[str, Any], split: str, columns: Columns, folder: Path | None
) -> list[Row]:
    """The rows of the split that is asked for, or of all where there is only one to hold out from.

    Raises:
        DataError: No such split or column.
    """
    names = {canonical_split(name): name for name in splits}
    only_train = set(names) == {"train"}
    listed = ", ".join(f"{name} ({len(dataset)})" for name, dataset in splits.items())
    if split == "all" or only_train:
        chosen = list(splits)
    elif split in splits:
        chosen = [split]
    elif canonical_split(split) in names:
        chosen = [names[canonical_split(split)]]
    else:
        raise DataError(
            f"{source} has no split {split!r}{nearest(split, list(splits))}",
            [f"its splits are {listed}: name one of them"],
        )
    rows = [row for name in chosen for row in _split_rows(source, name, splits[name], columns, folder)]
    return [replace(row, split=None) for row in rows] if only_train else rows


def _split_rows(source: str, name: str, dataset: Any, columns: Columns, folder: Path | None) -> Iterator[Row]:
    """The rows of one split."""
    datasets = load_library()
    audio, text, speaker, own_id = _columns(source, dataset, columns)
    edition = _edition(dataset, audio)
    sound = dataset.select_columns([audio])
    if isinstance(dataset.features[audio], datasets.Audio):
        sound = sound.cast_column(audio, datasets.Audio(decode=False))
    texts = dataset[text][:]
    speakers = None if speaker is None else _names_of(dataset, speaker)
    ids = None if own_id is None else dataset[own_id][:]
    for index, transcript in enumerate(texts):
        problem = None
        if speakers is not None and speakers[index] in {None, ""}:
            problem = "its speaker is empty: name one, or do not ask for a speaker column"
        yield Row(
            Recording(
                id=f"{name}-{index:06d}" if ids is None else str(ids[index]),
                text="" if transcript is None else str(transcript).strip(),
                speaker=None if speakers is None else speakers[index],
                row=f"{name}[{index}]",
                embedded=EmbeddedSound(sound, audio, index, folder),
                embedded_edition=edition and f"{edition}[{index}]",
            ),
            split=name,
            problem=problem,
        )


def _edition(dataset: Any, audio: str) -> str:
    """Tells two editions of a dataset's sound apart without reading it.

    Empty where that cannot be: the sound is in files of its own, or the dataset is in memory alone.
    """
    from pyarrow import compute, types  # type: ignore[import-untyped]

    column = dataset.data.column(audio)
    kinds = {field.name for field in column.type} if types.is_struct(column.type) else set()
    inside = "array" in kinds
    if "bytes" in kinds:
        inside = compute.struct_field(column, "bytes").null_count == 0
    files = [Path(file["filename"]) for file in dataset.cache_files]
    if not inside or not files:
        return ""
    stamps = [f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return hashlib.sha256("\n".join([dataset._fingerprint, audio, *stamps]).encode()).hexdigest()


def _names_of(dataset: Any, column: str) -> list[str | None]:
    """The speakers as strings; the names of a ``ClassLabel`` column, not its numbers."""
    feature = dataset.features[column]

    def name_of(value: Any) -> str:
        if hasattr(feature, "int2str"):
            return str(feature.int2str(value))
        # Integers with gaps become floats in many a table.
        return str(int(value) if isinstance(value, float) and value.is_integer() else value)

    return [None if value is None else name_of(value) for value in dataset[column][:]]


def _columns(source: str, dataset: Any, columns: Columns) -> tuple[str, str, str | None, str | None]:
    """The names of the audio, text, speaker and id columns.

    Raises:
        DataError: One that was asked for is not there, or not of the right kind.
    """
    present: Sequence[str] = dataset.column_names
    audio = pick_column(columns.audio, Columns.AUDIO_NAMES, present)
    text = pick_column(columns.text, Columns.TEXT_NAMES, present)
    wanted = {
        "audio": (columns.audio, audio is not None),
        "text": (columns.text, text is not None),
        "speaker": (columns.speaker, columns.speaker is None or columns.speaker in present),
        "id": (columns.id, columns.id is None or columns.id in present),
    }
    listed = ", ".join(present)
    problems = [
        missing_column(role, str(name), present) for role, (name, found) in wanted.items() if not found
    ]
    if audio is None or text is None or problems:
        raise DataError(f"{source} lacks columns", problems)
    kind = getattr(dataset.features[text], "dtype", "lists")
    if kind not in {"string", "large_string"}:
        raise DataError(
            f"{source}: the text column {text!r} holds {kind} and no text",
            [f"name the column with the transcripts; the columns are {listed}"],
        )
    return audio, text, columns.speaker, columns.id


def _why_unreachable(name: str, token: str | None) -> str | None:
    """Ask the hub for the dataset once, without the long retries of a download; None when it answered.

    Raises:
        DataError: It answered that there is no such dataset, or none for this user.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        HfApi().dataset_info(name, timeout=HUB_TIMEOUT_SECONDS, token=token)
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set"
    except (RepositoryNotFoundError, GatedRepoError) as error:
        raise DataError(
            f"There is no dataset {name!r} here or on the hub",
            [
                f"no folder here has that name{nearest_beside(Path(name)) or '.'}{mount_advice('data')}",
                "check the spelling; for a folder of your own give its path",
                "for a private or gated dataset, accept its terms on the hub and log in with 'hf auth login'",
            ],
        ) from error
    except Exception as error:  # of whichever HTTP client this version of the hub library is built on
        return str(error) or type(error).__name__
    return None


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """Make the hub libraries look in their caches only; they read the environment but once, at import."""
    import huggingface_hub.constants

    datasets = load_library()
    before = (datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE)
    if wanted:
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before


def load_library() -> Any:
    """The ``datasets`` library, which is slow to import and only needed here.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "Hugging Face datasets need the package 'datasets': pip install 'vits-suite[train]', "
            "or give a folder with metadata.csv"
        ) from error
    return datasets
