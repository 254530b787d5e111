"""The application: every path that HTTP serves, in one table."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute

from services.synthesis.access import Access
from services.synthesis.http.batch import batch
from services.synthesis.http.bento import PATH as SYNTHESIZE_PATH
from services.synthesis.http.bento import synthesize
from services.synthesis.http.catalogue import models, voice, voices
from services.synthesis.http.door import Call, Endpoint
from services.synthesis.http.errors import MethodError, UnknownUrlError
from services.synthesis.http.live import live
from services.synthesis.http.openapi import openapi
from services.synthesis.http.page import PAGE_FILES, page_file, page_server
from services.synthesis.http.requests import MAX_BATCH_BYTES
from services.synthesis.http.speech import speech

#: What speaks or tells of voices, by method and path.
ENDPOINTS: dict[tuple[str, str], Endpoint] = {
    ("POST", "/v1/audio/speech"): Endpoint(speech, speaking=True),
    ("POST", "/v1/audio/speech/batch"): Endpoint(batch, speaking=True, max_body_bytes=MAX_BATCH_BYTES),
    ("GET", "/v1/audio/voices"): Endpoint(voices),
    ("GET", "/v1/audio/voices/{name}"): Endpoint(voice),
    ("GET", "/v1/models"): Endpoint(models),
    ("POST", SYNTHESIZE_PATH): Endpoint(synthesize, speaking=True),
}
LIVE_PATH = "/v1/audio/speech/live"
OPENAPI_PATH = "/openapi.json"
PAGE_SERVER_PATH = "/page/server.json"


async def nothing(call: Call) -> Response:
    """Any other path or method under ``/v1``.

    Raises:
        MethodError: The path is served with another method.
        UnknownUrlError: It is not served at all.
    """
    path = call.request.url.path
    allowed = {method for (method, served), _ in ENDPOINTS.items() if _fits(served, path)}
    message = f"{call.request.scope['method']} {path} is not served here; there is " + ", ".join(
        [*(f"{method} {served}" for method, served in ENDPOINTS), f"the WebSocket {LIVE_PATH}"]
    )
    if allowed:
        raise MethodError(message, allowed=", ".join(sorted(allowed)))
    raise UnknownUrlError(message)


def _fits(served: str, path: str) -> bool:
    """Whether a path is one of those that a template stands for."""
    fixed, variable, _ = served.partition("{")
    return path.startswith(fixed) and "/" not in path[len(fixed) :] if variable else served == path


def endpoint_of(path: str) -> str | None:
    """The path of the table that a request's path fits; none where it is not served."""
    fixed = (LIVE_PATH, OPENAPI_PATH, PAGE_SERVER_PATH, *PAGE_FILES)
    return next(
        (served for served in (*(served for _, served in ENDPOINTS), *fixed) if _fits(served, path)), None
    )


def make_app() -> Starlette:
    """The application.

    Whoever serves it sets ``app.state.speaker`` first, and ``access`` and ``grpc_port`` where they are others.
    """
    routes: list[Route | WebSocketRoute] = [
        Route(path, endpoint, methods=[method]) for (method, path), endpoint in ENDPOINTS.items()
    ]
    app = Starlette(
        routes=[
            *routes,
            WebSocketRoute(LIVE_PATH, live),
            # After the others, and without methods: whatever is left under /v1 is answered in OpenAI's shape.
            Route("/v1/{path:path}", Endpoint(nothing)),
            Route(OPENAPI_PATH, openapi),
            Route(PAGE_SERVER_PATH, page_server),
            *(Route(path, page_file) for path in PAGE_FILES),
        ]
    )
    app.state.access = Access()
    app.state.grpc_port = 50051
    return app
