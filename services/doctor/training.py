"""A dataset, and what a training run of a configuration would need."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.doctor.finding import Finding, fail, note, ok
from services.doctor.machine import memory_free
from services.doctor.stores import GO_ON, HUB_SECONDS
from shared.errors import (
    DataError,
    HubUnreachableError,
    MissingExtraError,
    NotFoundError,
    ProblemsError,
    UserError,
    VitsError,
    nearest_beside,
)
from shared.registry import Registry
from shared.store import Store, default_store_url
from shared.wording import counted

if TYPE_CHECKING:
    from services.training.config import TrainingConfig
    from services.training.data.reading import Survey

#: Problems of a dataset that are shown; `vits data inspect` shows all.
SHOWN = 5
#: Bytes of training for each parameter: weights, gradients and Adam's two moments, in fp32, of both networks.
BYTES_PER_PARAMETER = 16
#: Parameters of the discriminator, whatever the model.
DISCRIMINATOR_PARAMETERS = 46.7e6
#: Bytes of everything else in a step: libraries, and what each frame of a padded batch holds on to. As measured
#: at MMS's size (docs/log.md): 7.06 GB at 16 × 400 frames in fp32, 5.11 GB in bf16, 7.81 GB at 32 × 400.
BASE_BYTES, FRAME_BYTES, FRAME_BYTES_BF16 = 0.72e9, 0.76e6, 0.46e6
#: Of which gradient checkpointing leaves so much: 3.76 GB at 16 × 400 in fp32, 2.93 GB in bf16.
CHECKPOINTED = 0.33
#: Bytes that a recording takes more when its slice is longer by the default ``segment_size``, and what checkpointing
#: leaves of them; measured from 32 to 128 frames (docs/log.md).
SLICE_BYTES, SLICE_BYTES_BF16, SLICES_CHECKPOINTED = 162e6, 90e6, 0.45
#: Frames of a second where the model does not say: 16 kHz, hops of 256.
FRAMES_PER_SECOND = 62.5
#: Bytes of a checkpoint for each parameter of both networks: weights, two moments, and the model as it is published.
CHECKPOINT_BYTES = 16


def dataset(source: str, splits: Sequence[str] = ("all",), **reading: Any) -> Iterator[Finding]:
    """Whether a dataset can be read, what is wrong with its rows, and whether it has the splits that are wanted.

    It is read as training reads it, which holds out a validation and a test split where the dataset names none.
    """
    try:
        from services.training.data.reading import survey

        found = [survey(source, split=split, **reading) for split in splits]
    except HubUnreachableError as error:
        yield fail(
            "dataset", str(error).partition("\n")[0], "give a folder of recordings, or go where the hub is"
        )
        return
    except MissingExtraError as error:
        yield fail("dataset", str(error), "pip install 'vits-suite[train]'")
        return
    except ProblemsError as error:
        yield fail("dataset", "; ".join([error.summary, *error.problems[:SHOWN]]), "vits data inspect --help")
        return
    except UserError as error:
        yield fail("dataset", str(error), "vits data inspect --help")
        return
    # Of a folder every survey has all rows, of a dataset of the hub those of its split alone.
    problems = list(dict.fromkeys(problem for one in found for problem in one.problems))
    good, bad = len({recording.row for one in found for recording in one.recordings}), len(problems)
    said = f"{source}: {counted(good, 'recording')}"
    if bad or not good:
        shown = "; ".join(problems[:SHOWN]) or "no rows"
        more = f" … and {bad - SHOWN} more" if bad > SHOWN else ""
        yield fail(
            "dataset",
            f"{said}, {counted(bad, 'bad row')}: {shown}{more}",
            f"vits data inspect {source} lists all",
        )
        return
    yield from list(_absent(found, splits)) or [ok("dataset", said)]


def _absent(found: Sequence[Survey], splits: Sequence[str]) -> Iterator[Finding]:
    """The splits that no recording is in."""
    for one, split in zip(found, splits, strict=True):
        try:
            one.only(split)
        except DataError as error:
            yield fail(
                "dataset",
                "; ".join([error.summary, *error.problems]),
                "mend train_split_name or eval_split_name; do_eval false needs no split to evaluate on",
            )


def configuration(path: Path) -> Iterator[Finding]:
    """Everything that a training run of a configuration would need."""
    try:
        from services.training.config_sources import load

        config, remarks = load([path], {})
    except ModuleNotFoundError as error:
        yield fail("configuration", f"'vits train' needs {error.name!r}", "pip install 'vits-suite[train]'")
        return
    except ProblemsError as error:
        yield fail(
            "configuration",
            "; ".join([error.summary, *error.problems]),
            "docs/configuration.md explains each key",
        )
        return
    except UserError as error:
        yield fail("configuration", str(error), "docs/configuration.md explains each key")
        return
    yield ok("configuration", f"{path} can be used")
    for remark in remarks:
        yield note("configuration", remark, "change it, if it is not meant")
    size = yield from _model(config)
    yield from dataset(
        str(config.dataset_name),
        [config.train_split_name, *([config.eval_split_name] if config.do_eval else [])],
        columns=_columns(config),
        config_name=config.dataset_config_name,
        cache_dir=config.cache_dir,
        token=config.token,
        refuse_empty_texts=False,
    )
    if size:
        yield from _room(config, size)


def _columns(config: TrainingConfig) -> Any:
    from services.training.data.recordings import Columns

    return Columns(
        audio=config.audio_column_name, text=config.text_column_name, speaker=config.speaker_id_column_name
    )


@dataclass(frozen=True)
class Size:
    """Of a model: its parameters, and frames of a second."""

    parameters: float
    frames_per_second: float


def _model(config: TrainingConfig) -> Generator[Finding, None, Size | None]:
    """Whether the base can be had, without loading or downloading it; gives its size where that can be told."""
    reference = config.model_name_or_path
    try:
        folder = Path(reference).expanduser()
        if folder.is_dir() or reference.startswith((".", "/", "~")):
            size = size_of(folder)
        else:
            size = _size_in_store(config, reference)
    except NotFoundError as error:
        if "@" in reference:
            yield fail("model", str(error), "'vits models list' shows what there is")
            return None
        return (yield from _on_hub(config, reference))
    except OSError as error:
        yield fail(
            "model",
            f"{reference} is not a model folder: {error.filename} cannot be read ({error.strerror})",
            "give a folder with config.json and model.safetensors; 'vits convert' makes one of other programs' models",
        )
        return None
    except (VitsError, ValueError, KeyError) as error:
        yield fail("model", f"{reference}: {error}", "'vits models list' shows what there is")
        return None
    yield ok("model", f"{reference}: {size.parameters / 1e6:.0f} million parameters")
    return size


def size_of(folder: Path) -> Size:
    """A model folder's size.

    Raises:
        OSError: A file is missing.
        ValueError: Its configuration is none.
    """
    return _size((folder / "config.json").read_bytes(), (folder / "model.safetensors").stat().st_size)


def _size(content: bytes, weights_bytes: float) -> Size:
    """By a model's configuration, and by the bytes of its float32 weights."""
    said = json.loads(content)
    hop_length = math.prod(said["upsample_rates"])
    return Size(weights_bytes / 4, said["sampling_rate"] / hop_length)


def _size_in_store(config: TrainingConfig, reference: str) -> Size:
    store = Store.open(config.store or default_store_url())
    try:
        version = Registry(store).resolve("models", reference)
    except UserError as error:  # no name that a store could have is one that the hub may
        raise NotFoundError(str(error)) from error
    weights = sum(entry.bytes for entry in version.manifest.files if entry.path == "model.safetensors")
    return _size(store.read(f"{version.prefix}/config.json"), weights)


def _on_hub(config: TrainingConfig, name: str) -> Generator[Finding, None, Size | None]:
    """Whether the hub has a model, asked once."""
    try:
        from huggingface_hub import HfApi, try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
    except ModuleNotFoundError as error:
        yield fail(
            "model", f"asking the hub for {name} needs {error.name!r}", "pip install 'vits-suite[train]'"
        )
        return None
    try:
        cached = try_to_load_from_cache(
            name, "config.json", cache_dir=config.cache_dir, revision=config.model_revision
        )
        if isinstance(cached, str):
            yield ok("model", f"{name} is in the hub's cache")
            weights = Path(cached).with_name("model.safetensors")
            return _size(Path(cached).read_bytes(), weights.stat().st_size) if weights.exists() else None
        found = HfApi().model_info(
            name, revision=config.model_revision, token=config.token, timeout=HUB_SECONDS
        )
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError):
        yield fail(
            "model",
            f"{name} is no folder, not in the store, and not on the hub, or not for this user"
            f"{nearest_beside(Path(name))}",
            "check the spelling; 'vits models list' shows the store's; a private model needs a token",
        )
        return None
    except Exception as error:  # of whichever HTTP client the hub's library is built on
        reason = str(error.__cause__ or error).partition("\n")[0]
        yield fail(
            "model", f"{name} is no folder, not in the store, and the hub cannot be reached ({reason})", GO_ON
        )
        return None
    yield ok("model", f"{name} is on the hub")
    return Size(found.safetensors.total, FRAMES_PER_SECOND) if found.safetensors else None


def _room(config: TrainingConfig, size: Size) -> Iterator[Finding]:
    """Memory and disk that the run will take, by measurements of other runs."""
    need, (free, where) = step_bytes(config, size) / 1e9, _memory_of(config)
    fits = fitting_batch(config, size, free * 1e9)
    said = f"a step takes about {need:.1f} GB, of {free:.1f} GB free{where}"
    usual = type(config).model_fields["segment_size"].default
    shorter = f"segment_size {usual}, " if config.segment_size > usual else ""
    if need <= free:
        yield ok("memory of a step", said)
    elif fits:
        yield fail(
            "memory of a step",
            said,
            f"per_device_train_batch_size {fits} fits; gradient_accumulation_steps makes up for it. Or "
            f"gradient_checkpointing, {shorter}a smaller max_duration_in_seconds, or configs/low-memory.json",
        )
    else:
        yield fail(
            "memory of a step", said, "not even one recording fits: configs/low-memory.json, or more memory"
        )
    yield from _disk(config, size)


def _memory_of(config: TrainingConfig) -> tuple[float, str]:
    """Gigabytes that are free where steps are taken, and where that is if not on the processor."""
    if not config.use_cpu:
        try:
            import torch  # which takes seconds
        except ImportError:  # nothing is trained here
            return memory_free(), ""
        if torch.cuda.is_available():
            return torch.cuda.mem_get_info()[0] / 1e9, " on the GPU"
    return memory_free(), ""


def step_bytes(config: TrainingConfig, size: Size, batch: int | None = None) -> float:
    """Bytes that a step takes at its largest, about."""
    recordings = batch or config.per_device_train_batch_size
    frames = recordings * config.max_duration_in_seconds * size.frames_per_second
    if config.max_frames_per_batch:
        frames = min(frames, config.max_frames_per_batch)
    half = config.bf16 or config.fp16
    each, slice_ = (FRAME_BYTES_BF16, SLICE_BYTES_BF16) if half else (FRAME_BYTES, SLICE_BYTES)
    if config.gradient_checkpointing:
        each, slice_ = each * CHECKPOINTED, slice_ * SLICES_CHECKPOINTED
    # What a frame takes has the default's slices in it; with shorter ones nothing shrinks by more than they do.
    share: float = config.segment_size / type(config).model_fields["segment_size"].default
    held = max(each * frames + slice_ * recordings * (share - 1), min(share, 1) * each * frames)
    return BASE_BYTES + BYTES_PER_PARAMETER * (size.parameters + DISCRIMINATOR_PARAMETERS) + held


def fitting_batch(config: TrainingConfig, size: Size, free: float) -> int:
    """The largest batch that fits so many bytes; 0 where none does."""
    sizes = range(config.per_device_train_batch_size, 0, -1)
    return next((batch for batch in sizes if step_bytes(config, size, batch) <= free), 0)


def _disk(config: TrainingConfig, size: Size) -> Iterator[Finding]:
    each = CHECKPOINT_BYTES * (size.parameters + DISCRIMINATOR_PARAMETERS)
    kept = (config.save_total_limit or 10) + config.keep_best + 1
    need = each * kept / 1e9
    place = config.output_dir.absolute()
    there = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(there).free / 1e9
    many = "" if config.save_total_limit else " (ten of them, for save_total_limit does not bound them)"
    said = f"{kept} checkpoints take about {need:.1f} GB{many}, of {free:.1f} GB free in {config.output_dir}"
    if need <= free:
        yield ok("disk of the run", said)
    else:
        yield fail("disk of the run", said, "set save_total_limit and keep_best lower, or another output_dir")
