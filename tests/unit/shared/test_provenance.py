"""Licence, sources and consent, and how they join."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ModelError
from shared.provenance import (
    PROVENANCE_FILE,
    UNKNOWN_LICENCE,
    Provenance,
    commercial_warning,
    forbids_commercial_use,
)

LICENCES = ["CC0-1.0", "MIT", "CC-BY-SA-3.0", "MIT OR Apache-2.0", UNKNOWN_LICENCE]
provenances = st.builds(
    Provenance,
    licence=st.sampled_from(LICENCES),
    sources=st.lists(st.sampled_from(["a", "b", "c"]), unique=True).map(tuple),
    consent=st.sampled_from([None, "signed", "public domain"]),
)


def licence(*parts: str) -> str:
    joined = Provenance(licence=parts[0])
    for part in parts[1:]:
        joined = joined.joined(Provenance(licence=part))
    return joined.licence


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("MIT", "MIT"), "MIT"),
        (("MIT", "CC0-1.0"), "MIT AND CC0-1.0"),
        (("MIT AND CC0-1.0", "CC0-1.0 AND BSD-2-Clause"), "MIT AND CC0-1.0 AND BSD-2-Clause"),
        (("unknown", "MIT"), "MIT AND unknown"),
        (("unknown", "unknown"), "unknown"),
        (("MIT OR Apache-2.0", "CC0-1.0"), "(MIT OR Apache-2.0) AND CC0-1.0"),
        (("MIT OR Apache-2.0", "CC0-1.0", "MIT OR Apache-2.0"), "(MIT OR Apache-2.0) AND CC0-1.0"),
        (("MIT OR Apache-2.0", "MIT OR Apache-2.0"), "MIT OR Apache-2.0"),
        (("(MIT AND X) OR Y", "Z"), "((MIT AND X) OR Y) AND Z"),
    ],
)
def test_licences_all_apply(parts: tuple[str, ...], expected: str) -> None:
    assert licence(*parts) == expected


@given(provenances, provenances, provenances)
def test_joining_keeps_everything_once(a: Provenance, b: Provenance, c: Provenance) -> None:
    joined = a.joined(b)
    assert joined.joined(b) == joined
    assert joined.joined(a) == joined
    assert a.joined(b).joined(c) == a.joined(b.joined(c))
    assert set(joined.sources) == {*a.sources, *b.sources}
    for one in (a, b):
        assert one.licence in joined.licence
        assert one.consent is None or one.consent in (joined.consent or "")
    assert (UNKNOWN_LICENCE in joined.licence) == (UNKNOWN_LICENCE in {a.licence, b.licence})


@given(provenances)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, provenance: Provenance) -> None:
    folder = tmp_path_factory.mktemp("model")
    provenance.write(folder)
    assert Provenance.read(folder) == provenance


def test_a_folder_that_does_not_say(tmp_path: Path) -> None:
    assert Provenance.read(tmp_path) == Provenance(licence="unknown", sources=(), consent=None)


@pytest.mark.parametrize("content", [b"{", b'{"license": "MIT"}', b"[]", b"\xff\xfe"])
def test_a_file_of_another_form_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PROVENANCE_FILE).write_bytes(content)
    with pytest.raises(ModelError, match=r"provenance\.json is not a provenance file"):
        Provenance.read(tmp_path)


@pytest.mark.parametrize(
    ("licence", "forbidden"),
    [
        ("CC-BY-NC-4.0", True), ("CC BY-NC 4.0", True), ("CC-BY-NC-SA-4.0 AND MIT", True), ("MIT", False),
        ("MIT AND (CC-BY-NC-4.0 OR Apache-2.0)", False), ("CC-BY-NC-4.0 OR CC-BY-NC-SA-4.0", True),
        ("for non-commercial use", True), ("CC-BY-SA-3.0", False), ("unknown", False), ("NCSA", False),
    ],
)  # fmt: skip
def test_licences_that_forbid_commercial_use(licence: str, forbidden: bool) -> None:
    assert forbids_commercial_use(licence) is forbidden
    warning = commercial_warning("the voice ana", licence)
    assert (warning is not None and licence in warning) is forbidden
