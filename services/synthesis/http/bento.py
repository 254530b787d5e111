"""``POST /synthesize``: speech for BentoML's own client, which takes a file and knows no OpenAI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from services.synthesis.http.door import request_id_of
from services.synthesis.http.errors import error_response
from services.synthesis.http.requests import SpeechRequest, parse
from services.synthesis.http.speech import Delivery, whole_audio
from shared.audio_encoding import FORMATS


async def synthesized(state: Any, headers: Mapping[str, str], asked: Mapping[str, Any]) -> Response:
    """Speak a text, and answer with the whole of it.

    Args:
        state: The application's, which has the speaker and the access.
        headers: The request's.
        asked: Fields of `SpeechRequest`.

    Returns:
        The audio, or an error as every other path answers it.
    """
    response: Response
    try:
        caller = state.access.check(headers.get("authorization"))
        wanted = parse(json.dumps(asked), SpeechRequest)
        order = wanted.order(
            wanted.input,
            door="http",
            caller=caller.name,
            request_id=request_id_of(headers.get("x-request-id")),
        )
        speaking = await state.speaker.start(order)
        delivery = Delivery(speaking, wanted, caller, state.access.max_audio_seconds)
        audio = await whole_audio(delivery, wanted)
        form = FORMATS[wanted.response_format]
        name = f'attachment; filename="speech.{form.extension}"'
        response = Response(
            audio, headers=delivery.headers() | {"Content-Disposition": name}, media_type=form.media_type
        )
    except Exception as error:
        response = error_response(error)
    state.speaker.metrics.responses.labels("http", str(response.status_code)).inc()
    return response
