"""``GET /v1/audio/voices``, ``/v1/audio/voices/{name}`` and ``/v1/models``: what there is to speak with."""

from __future__ import annotations

import json
import logging
from functools import lru_cache
from typing import Any

from starlette.responses import JSONResponse, Response

from services.synthesis.http.door import Call
from services.synthesis.http.requests import OPENAI_MODELS, OUR_MODEL
from services.synthesis.speaker import Speaker
from shared.errors import CorruptObjectError, NotFoundError
from shared.registry import Registry, Version

logger = logging.getLogger("vits.http")

#: What the voices API tells of ``voice.json``.
_SPEC_FIELDS = ("language", "sampling_rate", "num_speakers", "speakers", "defaults")


async def voices(call: Call) -> Response:
    """``GET /v1/audio/voices``."""
    return JSONResponse({"voices": [told for _, told in await listed(call.speaker)]})


async def voice(call: Call) -> Response:
    """``GET /v1/audio/voices/{name}``."""
    version = await call.speaker.voice(call.request.path_params["name"])
    return JSONResponse(await describe(call.speaker, version))


async def listed(speaker: Speaker) -> list[tuple[Version, dict[str, Any]]]:
    """The voices, with what `describe` tells of each; one that cannot be read hides no other.

    Raises:
        StoreError: The store failed.
    """
    found = []
    for version in await speaker.voices():
        try:
            found.append((version, await describe(speaker, version)))
        except (CorruptObjectError, NotFoundError) as error:  # damaged, or deleted in this moment
            logger.error("voice %s is not listed: %s", version.reference, error)
    return found


async def describe(speaker: Speaker, version: Version) -> dict[str, Any]:
    """Name, version, licence, sources and consent of a voice, and what can be asked of it.

    ``variant`` is what it speaks with here; None while it is not loaded.

    Raises:
        NotFoundError: It was deleted.
        CorruptObjectError: It is damaged.
        StoreError: The store failed.
    """
    spec = await speaker.ask(_spec, speaker.shelf.registry, version.reference, version.prefix)
    return {
        "id": version.name,
        "name": version.name,
        "version": version.id,
        "variant": speaker.shelf.in_use().get(version.reference),
        "created": version.manifest.created.isoformat(),
        "licence": version.manifest.licence,
        "sources": list(version.manifest.sources),
        "consent": version.manifest.consent,
        **{field: spec[field] for field in _SPEC_FIELDS if field in spec},
    }


@lru_cache(maxsize=1000)
def _spec(registry: Registry, reference: str, prefix: str) -> dict[str, Any]:
    """``voice.json`` of a version, which never changes, so it is read once."""
    path = f"{prefix}/voice.json"
    try:
        content = json.loads(registry.store.read(path))
    except ValueError as error:
        raise CorruptObjectError(f"{registry.store.address(path)} is not JSON: {error}") from error
    return content if isinstance(content, dict) else {}


async def models(call: Call) -> Response:
    """``GET /v1/models``: OpenAI's list. Each voice can be asked for as a model, too."""
    versions = await call.speaker.voices()
    created = {version.name: int(version.manifest.created.timestamp()) for version in versions}
    aliases = dict.fromkeys((OUR_MODEL, *OPENAI_MODELS), min(created.values(), default=0))
    listed = [
        {"id": name, "object": "model", "created": when, "owned_by": OUR_MODEL}
        for name, when in (aliases | created).items()
    ]
    return JSONResponse({"object": "list", "data": listed})
