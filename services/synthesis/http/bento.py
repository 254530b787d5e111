"""``POST /synthesize``: speech for BentoML's own client, which takes a file and knows no OpenAI."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from services.synthesis.http.door import Call
from services.synthesis.http.requests import SynthesizeRequest, parse
from services.synthesis.http.speech import Delivery, whole_audio
from shared.audio_encoding import FORMATS

#: Where BentoML's client looks for it.
PATH = "/synthesize"


async def synthesize(call: Call) -> Response:
    """``POST /synthesize``: the whole of the audio, as a file."""
    wanted = parse(call.body, SynthesizeRequest)
    order = wanted.order(wanted.input, door="http", caller=call.caller.name, request_id=call.request_id)
    async with await call.speaker.start(order) as speaking:
        delivery = Delivery(speaking, wanted, call.caller, call.access.max_audio_seconds)
        audio = await whole_audio(delivery, wanted)
    form = FORMATS[wanted.response_format]
    name = f'attachment; filename="speech.{form.extension}"'
    return Response(
        audio, headers=delivery.headers() | {"Content-Disposition": name}, media_type=form.media_type
    )


class OwnSynthesize:
    """Has our application answer ``/synthesize`` in the place of BentoML's handler.

    That one reads bodies of any length, fails on some that it cannot read, has errors of a shape of its own, and
    goes on when its client has left.

    Args:
        app: BentoML's.
        ours: Our own.
    """

    def __init__(self, app: ASGIApp, ours: ASGIApp) -> None:
        self._app = app
        self._ours = ours

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        ours = scope["type"] == "http" and scope["path"] == PATH
        await (self._ours if ours else self._app)(scope, receive, send)
