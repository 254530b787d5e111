"""Reading and writing model folders: ordinary Hugging Face VITS folders, plus the discriminator's file."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, VitsConfig
from transformers.utils import logging as transformers_logging

from shared.container import mount_advice
from shared.errors import HubUnreachableError, ModelError, NotFoundError, nearest_beside
from shared.modeling.model import VitsForTraining
from shared.modeling.weight_norm import folded_state_dict

DISCRIMINATOR_FILE = "discriminator.safetensors"
#: Where ``finetune-hf-vits``'s ``*-train`` checkpoints keep their discriminator: in the model's own file.
EMBEDDED_DISCRIMINATOR = "discriminator."
#: Files beside the weights that travel with a model, whatever its tokenizer.
_COMPANIONS = (
    "vocab.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "front_end.json",
    "provenance.json",
    "speakers.json",
    "README.md",
)
_HUB_FILES = ["*.json", "*.safetensors", "*.md"]


def fetch_from_hub(
    repository: str, *, revision: str = "main", token: str | None = None, cache_dir: str | None = None
) -> Path:
    """Download a model folder from the Hugging Face hub, or find it in the hub's local cache.

    Raises:
        HubUnreachableError: The hub could not be reached and the cache does not have the model.
        NotFoundError: The hub has no such model or revision, will not show it without a token, or could
            not have one by this name.
    """
    near = nearest_beside(Path(repository))  # a folder, misspelt, comes here too
    try:
        return Path(
            snapshot_download(
                repository, revision=revision, token=token, cache_dir=cache_dir, allow_patterns=_HUB_FILES
            )
        )
    except HFValidationError as error:
        raise NotFoundError(
            f"{repository!r} is neither a local folder nor in the store, and cannot be a name on the model hub, "
            f"where models are called 'owner/model'. Check the spelling{near or '.'}"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise NotFoundError(
            f"The model hub has no model {repository!r} at revision {revision!r}, or it is private. "
            f"Give a token that may read it, or check the spelling{near or '.'}"
        ) from error
    except Exception as error:  # whatever the HTTP library beneath the hub's client raises
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise HubUnreachableError(
            f"There is no folder {repository!r} here{near or '.'} Nor is it in the store, and the model hub could not "
            f"be reached to download it ({reason}). Two ways to go on without the hub:\n"
            "  1. a local folder: copy the model's folder here from a machine that has it, and set "
            f'"model_name_or_path" to its path.{mount_advice("models")}\n'
            "  2. a store: on a machine that has the model's folder, run 'vits models publish FOLDER NAME --store "
            'URL\' once, and here set "model_name_or_path" to NAME, with the same --store URL.'
        ) from error


def load_config(folder: Path) -> VitsConfig:
    """Read a model folder's configuration.

    Raises:
        ModelError: There is none, or it is not a VITS one.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is not a model folder: it has no config.json. A model folder is what 'vits train' and "
            "'vits convert' write, or a VITS or MMS model downloaded from the model hub."
        )
    try:
        config = AutoConfig.from_pretrained(folder)
    except (ValueError, OSError, TypeError, KeyError, StrictDataclassError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be read: {error}") from error
    if not isinstance(config, VitsConfig):
        raise ModelError(
            f"{folder} holds a model of type {config.model_type!r}; only VITS models (MMS-TTS, original VITS, "
            "converted Piper voices) can be used."
        )
    return config


def load_model(folder: str | Path) -> VitsForTraining:
    """Load a model folder, in float32 and evaluation mode, on the CPU.

    Args:
        folder: A Hugging Face VITS folder.

    Raises:
        ModelError: The folder is not a VITS model, or weights are missing from it.
    """
    folder = Path(folder)
    model, report = read_weights(folder, load_config(folder))
    missing = report["missing_keys"]
    if missing:
        listed = ", ".join(sorted(missing)[:5])
        raise ModelError(
            f"{folder} lacks {len(missing)} of the model's weights ({listed}, …). The download or copy is "
            "incomplete, or its config.json belongs to another model."
        )
    return model


def read_weights(folder: Path, config: VitsConfig, **options: Any) -> tuple[VitsForTraining, dict[str, Any]]:
    """A model of a configuration with a folder's weights, in evaluation mode, and ``transformers``' report.

    Raises:
        ModelError: The weights cannot be read or do not fit.
    """
    transformers_logging.disable_progress_bar()  # a bar for a second's work hides the lines that matter
    loaded: tuple[VitsForTraining, dict[str, Any]]
    try:
        loaded = cast("Any", VitsForTraining).from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=True,
            use_safetensors=True,  # nothing is ever unpickled
            **options,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"The weights in {folder} cannot be loaded: {error}") from error
    loaded[0].train(False)
    return loaded


def read_discriminator(folder: Path) -> dict[str, Tensor] | None:
    """The discriminator's weights in a model folder, or nothing where it has none.

    Reads our own ``discriminator.safetensors`` and ``finetune-hf-vits``'s ``*-train`` checkpoints, which keep
    the same tensors under ``discriminator.`` in the model's file.

    Raises:
        ModelError: The file that they would be in cannot be read.
    """
    own = folder / DISCRIMINATOR_FILE
    if own.is_file():
        return _load(own, ", or remove it to train with a new discriminator")
    embedded: dict[str, Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        for name, tensor in _load(path).items():
            if name.startswith(EMBEDDED_DISCRIMINATOR):
                embedded[name.removeprefix(EMBEDDED_DISCRIMINATOR)] = tensor
    return embedded or None


def _load(path: Path, otherwise: str = "") -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        ModelError: It cannot be read.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{path} cannot be loaded: {error}. If its download or copy is incomplete, fetch it again{otherwise}."
        ) from error


def save_model(model: VitsForTraining, folder: Path, *, companions: Path | None = None) -> None:
    """Write a model folder that stock ``transformers`` can load (unless it has ResBlock2).

    The decoder's weight norm, which only training uses, is folded; the posterior encoder's and the
    flow's stays, as ``transformers`` expects it.

    Args:
        model: The model; it is not changed.
        folder: Where to write; created.
        companions: A model folder whose tokenizer and other small files are copied along.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("decoder.")}
    state |= {f"decoder.{name}": value for name, value in folded_state_dict(model.decoder).items()}
    state = {name: value.contiguous().cpu() for name, value in state.items()}
    transformers_logging.disable_progress_bar()
    config = model.config
    model.config = copy.deepcopy(config)  # save_pretrained writes into it
    try:
        model.save_pretrained(folder, state_dict=state)
        if config.model_type == "vits":  # the name of the class that everybody has, instead of ours
            model.config.architectures = ["VitsModel"]
            model.config.save_pretrained(folder)
    finally:
        model.config = config
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o666 & ~_umask())  # safetensors lets the owner alone read what it writes
    if companions is not None and companions.resolve() != folder.resolve():
        for name in _COMPANIONS:
            if (companions / name).is_file() and _describes(companions / name, model.config):
                shutil.copyfile(companions / name, folder / name)


def _describes(companion: Path, config: VitsConfig) -> bool:
    """Whether a companion can be true of a model that its own has become: other speakers, another rate."""
    if companion.name == "speakers.json":
        return config.num_speakers > 1
    if companion.name == "preprocessor_config.json":
        rate = json.loads(companion.read_text(encoding="utf-8")).get("sampling_rate", config.sampling_rate)
        return bool(rate == config.sampling_rate)
    return True


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
