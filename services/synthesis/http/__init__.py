"""The HTTP door: OpenAI's speech API with fields of our own, batches, a WebSocket, OpenAPI, and a page."""

from services.synthesis.http.app import make_app

__all__ = ["make_app"]
