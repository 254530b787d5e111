"""BentoML's own metrics of traffic, by endpoint: it counts by raw path, of which anybody can invent any number."""

from __future__ import annotations

from typing import Any

from bentoml._internal.server.http.instruments import RunnerTrafficMetricsMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from services.synthesis.http.app import endpoint_of

#: What BentoML itself serves. The other pages that it has count as any path that is not served.
BENTOML_PATHS = frozenset(["/livez", "/readyz", "/healthz", "/metrics"])
#: The endpoint of a path that is not served.
OTHER = "other"

_ASKED = "vits.asked"


class EndpointTraffic(RunnerTrafficMetricsMiddleware):
    """BentoML's middleware, which is shown the endpoint in the place of the path; what is behind it is not."""

    def __init__(self, app: ASGIApp, **options: Any) -> None:
        async def as_asked(scope: Scope, receive: Receive, send: Send) -> None:
            await app(scope.get(_ASKED, scope), receive, send)

        super().__init__(as_asked, **options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count a request."""
        if scope["type"] in {"http", "websocket"}:
            path = scope["path"]
            counted = path if path in BENTOML_PATHS else endpoint_of(path) or OTHER
            scope = {**scope, "path": counted, _ASKED: scope}
        await super().__call__(scope, receive, send)
