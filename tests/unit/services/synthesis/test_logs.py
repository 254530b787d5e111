"""Log lines: one for people, one for machines."""

from __future__ import annotations

import json
import logging

from services.synthesis.logs import JsonFormatter, TextFormatter


def record(**extra: object) -> logging.LogRecord:
    made = logging.LogRecord("vits.speaker", logging.INFO, "speaker.py", 1, "spoken: %d", (5,), None)
    made.__dict__.update(extra)
    return made


def test_json_is_one_object_a_line() -> None:
    line = JsonFormatter().format(record(details={"request_id": "r", "text": "a\nb \ud800"}))
    assert "\n" not in line
    line.encode()
    content = json.loads(line)
    assert content["message"] == "spoken: 5"
    assert content["level"] == "INFO"
    assert content["request_id"] == "r"
    assert content["text"] == "a\nb \ud800"
    assert content["time"].endswith("+00:00")


def test_json_carries_tracebacks() -> None:
    try:
        raise ValueError("why")
    except ValueError as error:
        made = record(exc_info=(type(error), error, error.__traceback__))
    assert "ValueError: why" in json.loads(JsonFormatter().format(made))["exception"]


def test_text_names_the_request() -> None:
    line = TextFormatter().format(record(details={"door": "http", "request_id": "r", "voice": ""}))
    assert line.endswith("INFO vits.speaker: spoken: 5 (door http, request_id r)")
    assert TextFormatter().format(record()).endswith("spoken: 5")
