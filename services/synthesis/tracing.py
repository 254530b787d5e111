"""One OpenTelemetry span for each order, where somebody has set up a tracer; otherwise nothing."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from services.synthesis.speaker import Speaking

trace: Any = None
with suppress(ImportError):  # BentoML brings it, but nothing here needs it
    from opentelemetry import trace


class Span:
    """The span of one order."""

    def __init__(self, span: Any) -> None:
        self._span = span

    def end(self, speaking: Speaking | None, outcome: str) -> None:
        """End it with what became of the order; no text of users is in it."""
        if self._span is None:
            return
        set_attribute = self._span.set_attribute
        set_attribute("vits.outcome", outcome)
        if speaking:
            timing = speaking.timing
            set_attribute("vits.voice", f"{speaking.voice}/{speaking.voice_version}")
            set_attribute("vits.audio_seconds", timing.audio)
            set_attribute("vits.queue_seconds", timing.queue or 0.0)
            set_attribute("vits.encoder_seconds", timing.encoder)
            set_attribute("vits.engine_seconds", timing.engine)
        self._span.end()


def begin(door: str, request_id: str) -> Span:
    """Begin the span of an order, within the caller's own where a door has one."""
    if trace is None:
        return Span(None)
    attributes = {"vits.door": door, "vits.request_id": request_id}
    return Span(trace.get_tracer("vits").start_span("vits.speak", attributes=attributes))
