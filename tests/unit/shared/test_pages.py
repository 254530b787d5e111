"""Pages that need nothing else."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import jinja2
import numpy as np
import pytest

from shared import pages
from shared.audio import read_audio
from shared.errors import MissingExtraError


def test_a_template_escapes_and_misses_nothing(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text("<p>{{ said }}</p>", encoding="utf-8")
    made = pages.template(file, "install it")
    assert made.render(said="<b>") == "<p>&lt;b&gt;</p>"
    with pytest.raises(jinja2.UndefinedError):
        made.render(told="")


def test_without_jinja2_what_to_do_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(
        MissingExtraError, match=r"not installed: pip install 'vits-suite\[train\]', or --no-page"
    ):
        pages.template(tmp_path / "page.html", "pip install 'vits-suite[train]', or --no-page")


def test_a_sound_comes_out_of_its_address_again() -> None:
    samples = np.linspace(-0.5, 0.5, 1600, dtype=np.float32)
    kind, _, content = pages.sound_uri(samples, 16_000).partition(",")
    assert kind == "data:audio/flac;base64"
    heard = read_audio(base64.b64decode(content))
    assert heard.sampling_rate == 16_000
    np.testing.assert_allclose(heard.samples, samples, atol=2e-5)
