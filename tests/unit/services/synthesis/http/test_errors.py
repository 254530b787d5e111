"""The one table of errors and the one shape of them."""

from __future__ import annotations

import json

import pytest

import shared.errors
from services.synthesis.answers import public_message
from services.synthesis.http.errors import ERRORS, error_response
from shared.errors import OverloadedError, VitsError


def every_class(root: type[VitsError] = VitsError) -> list[type[VitsError]]:
    children = [kind for kind in root.__subclasses__() if kind.__module__ == shared.errors.__name__]
    return [root, *(kind for child in children for kind in every_class(child))]


def test_every_class_of_errors_has_a_row() -> None:
    assert len(every_class()) > 10
    assert [kind.__name__ for kind in every_class() if kind not in ERRORS] == []


@pytest.mark.parametrize(
    "kind", [kind for kind in every_class() if not issubclass(kind, shared.errors.ProblemsError)]
)
def test_every_error_has_openais_shape_and_clients_see_no_addresses(kind: type[VitsError]) -> None:
    address = "file:///home/operator/store"
    error = kind(address, retry_after_seconds=2.0) if issubclass(kind, OverloadedError) else kind(address)
    overloaded = isinstance(error, OverloadedError)
    response = error_response(error)
    content = json.loads(bytes(response.body))["error"]
    assert content["message"] == public_message(error)
    assert response.status_code >= 400
    assert ("retry-after" in response.headers) == overloaded
    if response.status_code >= 500 and not overloaded:  # whose messages are all made for clients
        assert address not in content["message"]
