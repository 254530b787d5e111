"""The tree of errors is the one that its docstring draws."""

from __future__ import annotations

import re

import pytest

from shared import errors
from shared.errors import (
    ConfigError,
    DataError,
    DivergenceError,
    OverloadedError,
    RequestError,
    VitsError,
    nearest,
)


def classes(base: type[VitsError] = VitsError) -> set[type[VitsError]]:
    return {base}.union(
        *(classes(child) for child in base.__subclasses__() if child.__module__ == "shared.errors")
    )


def drawn() -> dict[str, str | None]:
    """Every class in the docstring's tree, and its parent there."""
    parents: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    ([│├└─ ]*)(\w+Error)\b", line):
            depth = len(match[1])
            above = [(d, name) for d, name in above if d < depth]
            parents[match[2]] = above[-1][1] if above else None
            above.append((depth, match[2]))
    return parents


def test_the_drawing_has_every_class_below_its_base() -> None:
    parents = drawn()
    assert {kind.__name__ for kind in classes()} == parents.keys()
    for name, parent in parents.items():
        assert parent is None or issubclass(getattr(errors, name), getattr(errors, parent)), name


def test_every_class_says_what_it_is_for() -> None:
    assert all(kind.__doc__ for kind in classes())


@pytest.mark.parametrize("kind", [ConfigError, DataError, DivergenceError])
def test_problems_are_all_told(kind: type[ConfigError | DataError | DivergenceError]) -> None:
    error = kind("Two rows cannot be used:", (row for row in ["row 1: empty", "row 7: no file"]))
    assert error.problems == ("row 1: empty", "row 7: no file")
    assert str(error) == "Two rows cannot be used:\n  - row 1: empty\n  - row 7: no file"


def test_what_errors_carry() -> None:
    assert RequestError("too long", param="input").param == "input"
    assert RequestError("too long").param is None
    assert OverloadedError("busy", retry_after_seconds=1.5).retry_after_seconds == 1.5


def test_nearest() -> None:
    assert nearest("trian", ["train", "serve"]) == ", did you mean 'train'?"
    assert nearest("qqqq", ["train", "serve"]) == ""
