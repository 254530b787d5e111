"""Finding the model that a user names: a folder here, or a name in the store."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ModelError, NotFoundError, UserError
from shared.provenance import Provenance
from shared.registry import Registry, Version
from shared.store import Store


@dataclass(frozen=True)
class ModelSource:
    """A model: its folder, what is known of its origin, and its version if a registry holds it."""

    folder: Path
    name: str
    provenance: Provenance
    version: Version | None


def find_model(reference: str, store_url: str) -> ModelSource:
    """Find a model by folder or by registry reference. A model folder here goes before a name in the store.

    Raises:
        ModelError: What can only be a folder is not a model's.
        NotFoundError: It is neither; the message says what was looked for where.
        StoreError: The store failed.
    """
    folder = Path(reference).expanduser()
    if (folder / "config.json").is_file():
        name = re.sub(r"[^a-z0-9._-]+", "-", folder.resolve().name.lower()).lstrip("._-")
        return ModelSource(folder, name, Provenance.read(folder), None)
    here = f"There is no folder {reference}"
    if folder.is_dir():
        here = f"The folder {reference} is not a model's: it has no config.json"
    if reference.startswith((".", "/", "~")) or reference.count("/") > 1:
        raise ModelError(f"{here}. Give a model's folder, or the name of a model in the store")
    return _find_in_store(reference, store_url, here)


def _find_in_store(reference: str, store_url: str, here: str) -> ModelSource:
    registry = Registry(Store.open(store_url))
    try:
        version = registry.resolve("models", reference)
    except UserError as error:
        raise NotFoundError(
            f"{here}, and the store has no such model: {error}.\n"
            "Write ./FOLDER for a folder; NAME, NAME@ALIAS or NAME/VERSION for a model in the store (another: --store)"
        ) from error
    if Path(reference).expanduser().is_dir():
        print(f"{here}, so the model of the store is taken")
    print(f"Fetching {version.reference} from {registry.store.url}", flush=True)
    manifest = version.manifest
    provenance = Provenance(licence=manifest.licence, sources=manifest.sources, consent=manifest.consent)
    return ModelSource(registry.fetch(version), version.name, provenance, version)
