"""Spans, by OpenTelemetry's own SDK where somebody has set it up; nothing where nobody has."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.synthesis import tracing
from services.synthesis.speaker import Order, Speaker
from shared.errors import EngineError

if TYPE_CHECKING:
    from tests.unit.services.synthesis.conftest import Opener


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "trace", provider)
    return exporter


def test_each_text_is_a_span_that_does_not_say_what_was_said(
    speaker: Speaker, opener: Opener, spans: InMemorySpanExporter
) -> None:
    asyncio.run(speaker.speak(Order("un secreto", door="grpc", request_id="r-1")))
    with pytest.raises(EngineError):
        asyncio.run(speaker.speak(Order("break", door="http", request_id="r-2")))
    spoken, failed = spans.get_finished_spans()
    assert spoken.name == "vits.speak"
    assert spoken.attributes
    told = dict(spoken.attributes)
    assert (told["vits.door"], told["vits.request_id"], told["vits.outcome"]) == ("grpc", "r-1", "spoken")
    assert str(told["vits.voice"]).startswith("ana/")
    assert told["vits.audio_seconds"] == pytest.approx(0.1)
    assert "secreto" not in str(told)
    assert failed.attributes
    assert (failed.attributes["vits.request_id"], failed.attributes["vits.outcome"]) == ("r-2", "failed")


def test_without_opentelemetry_nothing_is_missing(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "trace", None)
    assert asyncio.run(speaker.speak(Order("hola"))).duration_seconds == 0.04
