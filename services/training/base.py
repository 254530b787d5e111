"""The model that a run starts from: a folder, a version in the store, or a name on the hub."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from services.training.config import TrainingConfig
from shared.errors import ModelError, NotFoundError, UserError
from shared.modeling import VitsForTraining, load_model, read_discriminator
from shared.modeling.initialization import initialize
from shared.modeling.loading import fetch_from_hub
from shared.provenance import Provenance
from shared.registry import Registry
from shared.store import Store
from shared.text import FrontEnd


@dataclass
class Base:
    """A loaded base."""

    folder: Path
    model: VitsForTraining
    front_end: FrontEnd
    discriminator: dict[str, Tensor] | None
    """Stored weights, or none for a base without a discriminator."""
    untrained: tuple[str, ...]
    """Modules that are fresh and have to be taught before the rest."""
    speakers: dict[str, int]
    """Names and ids of the speakers that it knows."""
    provenance: Provenance
    resumed_optimizers: list[dict[str, Any]] | None = None


def find_model(config: TrainingConfig, store: Store) -> Path:
    """A local folder for ``model_name_or_path``.

    A folder wins; then the store, for a plain name, ``name@alias`` or ``name/version``; then the hub.

    Raises:
        NotFoundError: The reference is the store's own, and the store does not have it.
        HubUnreachableError: Only the hub could have it, and it cannot be reached.
    """
    reference = config.model_name_or_path
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return folder
    if reference.startswith((".", "/", "~")):
        raise ModelError(f"model_name_or_path: there is no folder {reference}")
    registry = Registry(store)
    try:
        return registry.fetch(registry.resolve("models", reference))
    except UserError as error:  # not in the store, or not even a name that a store could have
        if "@" in reference or ("/" not in reference and not isinstance(error, NotFoundError)):
            raise
    return fetch_from_hub(
        reference, revision=config.model_revision, token=config.token, cache_dir=config.cache_dir
    )


def load_base(config: TrainingConfig, store: Store) -> Base:
    """Find and load the base, and make fresh what the configuration wants fresh.

    Raises:
        UserError: It cannot be found or used.
    """
    folder = find_model(config, store)
    model = load_model(folder)
    front_end = FrontEnd.from_folder(Path(config.tokenizer_name) if config.tokenizer_name else folder)
    if config.espeak_voice:
        if front_end.spec["kind"] != "piper":
            raise ModelError(
                f"espeak_voice: {folder} reads characters, not phonemes; leave espeak_voice out."
            )
        front_end = FrontEnd.from_spec({**front_end.spec, "espeak_voice": config.espeak_voice})
    if config.override_speaker_embeddings and model.config.num_speakers > 1:
        initialize(model.embed_speaker)
    if config.override_vocabulary_embeddings:
        initialize(model.text_encoder.embed_tokens)
    speakers = folder / "speakers.json"
    return Base(
        folder=folder,
        model=model,
        front_end=front_end,
        discriminator=read_discriminator(folder),
        untrained=tuple(getattr(model.config, "untrained_modules", None) or ()),
        speakers=json.loads(speakers.read_text(encoding="utf-8")) if speakers.is_file() else {},
        provenance=Provenance.read(folder),
    )
