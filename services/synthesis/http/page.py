"""The page at ``/``: plain files beside this module, behind a policy that lets nothing in from outside."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

_FOLDER = Path(__file__).parent / "page"

#: Paths, the files behind them, and their media types.
PAGE_FILES: dict[str, tuple[str, str]] = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
    "/page/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page/player.js": ("player.js", "text/javascript; charset=utf-8"),
    "/page/drawing.js": ("drawing.js", "text/javascript; charset=utf-8"),
    "/page/calls.js": ("calls.js", "text/javascript; charset=utf-8"),
}

#: Only our own files and our own API; no script or style inside the page, no frames, nothing sent elsewhere.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


async def page_server(request: Request) -> Response:
    """What the page must know of the server, and may: ``/page/server.json``."""
    state = request.app.state
    facts = {"grpc_port": state.grpc_port, "needs_token": state.access.needs_token}
    return JSONResponse(facts, headers=_HEADERS)


async def page_file(request: Request) -> Response:
    """One of the page's files."""
    name, media_type = PAGE_FILES[request.url.path]
    return Response((_FOLDER / name).read_bytes(), headers=_HEADERS, media_type=media_type)
