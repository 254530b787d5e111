"""The OpenAPI document: it describes what is served, and requests made from it never make the server fail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from jsonschema import Draft202012Validator
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from services.synthesis.http.app import LIVE_PATH, OPENAPI_PATH, PAGE_SERVER_PATH, make_app
from services.synthesis.http.openapi import document
from services.synthesis.http.page import PAGE_FILES

if TYPE_CHECKING:
    from tests.unit.services.synthesis.http.conftest import FakeSpeaker

CHECKS = (not_a_server_error, content_type_conformance, response_schema_conformance)

served = make_app()
schema = schemathesis.openapi.from_asgi("/openapi.json", served).exclude(path=LIVE_PATH)


@pytest.fixture
def speaking(fake: FakeSpeaker) -> Starlette:
    served.state.speaker = fake
    return served


@schema.parametrize()
@settings(
    max_examples=12,
    deadline=None,
    database=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.filter_too_much,
    ],
)
def test_no_request_is_a_failure_of_the_server(case: Any, speaking: Starlette) -> None:
    # A batch of a thousand texts is encoded meanwhile; the default of 10 s is short for that on a busy machine.
    case.call_and_validate(checks=CHECKS, timeout=300)


def test_it_describes_what_is_served() -> None:
    """Everything but the page and itself; `test_serve` asks the same of the whole server."""
    described = {
        (method.upper(), path)
        for path, operations in document()["paths"].items()
        for method in operations
        if method != "parameters"
    }
    is_served = {
        (method, route.path)
        for route in served.routes
        if isinstance(route, Route) and route.methods
        for method in route.methods - {"HEAD"}
    }
    assert described == is_served - {
        ("GET", path) for path in (OPENAPI_PATH, PAGE_SERVER_PATH, *PAGE_FILES)
    } | {("GET", LIVE_PATH)}


def test_it_is_sound(http: TestClient) -> None:
    answer = http.get("/openapi.json").json()
    assert answer["openapi"].startswith("3.1")
    schemas = answer["components"]["schemas"]
    for content in schemas.values():
        Draft202012Validator.check_schema(content)
    references = set()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            references.update([node["$ref"]] if "$ref" in node else [])
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(answer)
    assert {reference.removeprefix("#/components/schemas/") for reference in references} <= set(schemas)
    speech = schemas["SpeechRequest"]["properties"]
    ours = "speaker seed noise_scale noise_scale_duration timestamps sampling_rate language ssml priority"
    assert set(ours.split()) <= set(speech)
    assert all("description" in field for name, field in speech.items() if name != "speed")


@pytest.mark.parametrize("path", ["/v1/audio/speech", "/synthesize"])
def test_statuses_that_happen_are_described(http: TestClient, path: str) -> None:
    responses = document()["paths"][path]["post"]["responses"]
    for body, status in (
        ({"input": "uno"}, 200),
        ({}, 400),
        ({"input": "uno", "voice": "x"}, 404),
        ({"input": "break"}, 500),
    ):
        answer = http.post(path, json=body)
        assert answer.status_code == status
        described = responses[str(status)]
        assert answer.headers["content-type"] in described["content"]
        ours = {
            name.title() for name in answer.headers if name.startswith(("x-vits-", "content-disposition"))
        }
        assert ours <= set(described.get("headers", ()))
