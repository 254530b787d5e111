"""``GET /v1/audio/voices``, ``/v1/audio/voices/{name}`` and ``/v1/models``: what there is to speak with."""

from __future__ import annotations

import asyncio
import json
from functools import lru_cache
from typing import Any

from starlette.responses import JSONResponse, Response

from services.synthesis.http.door import Call
from services.synthesis.http.requests import OPENAI_MODELS, OUR_MODEL
from services.synthesis.speaker import Speaker
from shared.errors import NotFoundError, nearest
from shared.registry import Registry, Version

#: What the voices API tells of ``voice.json``.
_SPEC_FIELDS = ("language", "sampling_rate", "num_speakers", "speakers", "defaults")


async def voices(call: Call) -> Response:
    """``GET /v1/audio/voices``."""
    versions = await call.speaker.voices()
    listed = await asyncio.gather(*(describe(call.speaker, version) for version in versions))
    return JSONResponse({"voices": listed})


async def voice(call: Call) -> Response:
    """``GET /v1/audio/voices/{name}``."""
    name = call.request.path_params["name"]
    versions = {version.name: version for version in await call.speaker.voices()}
    if name not in versions:
        raise NotFoundError(
            f"There is no voice {name!r}{nearest(name, list(versions))}; "
            f"there are: {', '.join(versions) or 'none'}"
        )
    return JSONResponse(await describe(call.speaker, versions[name]))


async def describe(speaker: Speaker, version: Version) -> dict[str, Any]:
    """Name, version, licence, sources and consent of a voice, and what can be asked of it.

    ``variant`` is what it speaks with here; None while it is not loaded.
    """
    spec = await asyncio.to_thread(_spec, speaker.shelf.registry, version.reference, version.prefix)
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
    content = json.loads(registry.store.read(f"{prefix}/voice.json"))
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
