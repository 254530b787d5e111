"""The recording page: takes that are checked and kept, and a browser with a microphone that beeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.training.data import read_recordings
from services.training.data.desk.record import (
    FILES,
    LANGUAGES,
    Session,
    check,
    read_prompts,
    record_desk,
    shipped_prompts,
)
from services.training.data.desk.server import Desk
from shared.audio import Audio, encode_wav, read_audio
from shared.errors import DataError, UserError
from tests.browser import new_page, until, wait_for
from tests.unit.services.training.data.conftest import Tone
from tests.unit.services.training.data.desk.test_review import asked

PROMPTS = ["Uno.", "Dos.", "Tres."]


@contextmanager
def at_desk(session: Session) -> Iterator[Desk]:
    desk = record_desk(session)
    with desk.serving():
        yield desk


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_sentences_that_come_with_it_cover_their_language(language: str) -> None:
    prompts = shipped_prompts(f"{language}-XX")
    assert len(prompts) == len(set(prompts)) == 60
    letters = set("".join(prompts).lower())
    assert letters >= set(
        {"es": "abcdefghijlmnñopqrstuvxyzáéíóú¿¡", "en": "abcdefghijklmnopqrstuvwxyz"}[language]
    )
    with pytest.raises(UserError, match="--prompts"):
        shipped_prompts("fr")


def test_sentences_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "sentences.txt"
    file.write_text("\ufeffUno.\n\n  Dos  y tres.\n", encoding="utf-8")
    assert read_prompts(file) == ["Uno.", "Dos y tres."]
    file.write_text("Uno.\nUno.\n", encoding="utf-8")
    with pytest.raises(DataError, match="twice"):
        read_prompts(file)
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="no sentence"):
        read_prompts(file)


def test_no_former_take_is_written_over_where_an_older_one_was_removed(tmp_path: Path, tone: Tone) -> None:
    session = Session(tmp_path / "ana", PROMPTS)
    for pitch in (220.0, 330.0, 440.0):
        session.take(0, encode_wav(np.pad(tone(1.0, pitch), 4800), 16_000))
    replaced = tmp_path / "ana" / "replaced"
    second = (replaced / "0001-2.flac").read_bytes()
    (replaced / "0001-1.flac").unlink()
    session.take(0, encode_wav(np.pad(tone(1.0, 550.0), 4800), 16_000))
    assert (replaced / "0001-2.flac").read_bytes() == second
    assert (replaced / "0001-1.flac").is_file()


def test_takes_make_a_dataset_and_former_takes_stay(tmp_path: Path, tone: Tone) -> None:
    session = Session(tmp_path / "ana", PROMPTS)
    first, second = (np.pad(tone(1.0, pitch), 4800) for pitch in (220.0, 330.0))
    session.take(1, encode_wav(first, 16_000))
    session.take(1, encode_wav(second, 16_000))
    (recording,) = read_recordings(tmp_path / "ana", split="all")
    assert (recording.id, recording.text) == ("audio/0002", "Dos.")
    np.testing.assert_allclose(recording.audio().samples, second, atol=1e-4)
    np.testing.assert_allclose(read_audio(tmp_path / "ana/replaced/0002-1.flac").samples, first, atol=1e-4)
    with pytest.raises(UserError, match="silent"):
        session.take(0, encode_wav(np.zeros(16_000, np.float32), 16_000))
    with pytest.raises(UserError, match="lasts"):
        session.take(1, encode_wav(tone(0.2), 16_000))
    with pytest.raises(UserError, match="decoded"):
        session.take(1, b"no sound at all")
    assert len(read_recordings(tmp_path / "ana", split="all")) == 1
    going_on = Session(tmp_path / "ana", None)
    assert going_on.prompts == PROMPTS
    with pytest.raises(UserError, match="other sentences"):
        Session(tmp_path / "ana", ["Cuatro."])
    with pytest.raises(UserError, match="no recording session"):
        Session(tmp_path, PROMPTS)
    with pytest.raises(UserError, match="read out"):
        Session(tmp_path / "eva", None)


def test_what_is_not_quite_right_is_said(tone: Tone) -> None:
    def room(sound: np.ndarray) -> np.ndarray:
        return np.pad(sound, 4800)

    noise = 0.03 * np.random.default_rng(0).standard_normal(16_000 + 9600, dtype=np.float32)
    assert check(Audio(room(tone(1.0)), 16_000)) == []
    assert "clipped" in check(Audio(np.clip(room(10 * tone(1.0)), -1, 1), 16_000))[0]
    assert "faint" in check(Audio(room(tone(1.0, level=0.02)), 16_000))[0]
    assert "noisy" in check(Audio(room(tone(1.0, level=0.1)) + noise, 16_000))[0]


def test_the_page_lets_nothing_in(tmp_path: Path, tone: Tone) -> None:
    with at_desk(Session(tmp_path / "ana", PROMPTS)) as desk:
        for path in FILES:
            status, content, headers = asked(desk, "GET", path)
            assert status == 200
            assert "default-src 'none'" in headers["Content-Security-Policy"]
            assert b"http:" not in content
        wav = encode_wav(np.pad(tone(1.0), 4800), 16_000)
        assert asked(desk, "POST", "/takes/0", wav, Origin="http://evil.example")[0] == 403
        assert asked(desk, "POST", "/takes/9", wav)[0] == 400
        assert asked(desk, "POST", "/takes/0", b"x")[0] == 400
        assert asked(desk, "GET", "/takes/0")[0] == 400
        status, told, _ = asked(desk, "POST", "/takes/0", wav)
        assert (status, told["remarks"], told["seconds"]) == (200, [], 1.6)
        assert asked(desk, "GET", "/takes/0")[0] == 200


def test_a_person_with_a_microphone(tmp_path: Path, browser: Any) -> None:
    """Chromium's own stand-in for a microphone beeps once a second."""
    root = tmp_path / "ana"
    with at_desk(Session(root, PROMPTS)) as desk:
        page, complaints = new_page(browser, desk.url)
        until(page, "document.getElementById('prompt').textContent === 'Uno.'")
        page.keyboard.press("Space")
        until(page, "document.getElementById('record').textContent === 'Stop'")
        until(page, "document.getElementById('level').value > -40")  # a beep was heard
        page.wait_for_timeout(1200)
        page.keyboard.press("Space")
        until(page, "document.getElementById('status').textContent.startsWith('Saved')")
        (recording,) = read_recordings(root, split="all")
        audio = recording.audio()
        assert recording.text == "Uno."
        assert audio.duration_seconds > 1.0
        assert audio.sampling_rate >= 44_100
        assert float(np.abs(audio.samples).max()) > 0.05

        # It is heard, recorded again, and the next one comes.
        page.keyboard.press("p")
        until(page, "document.getElementById('sound').duration > 0.9")
        page.get_by_role("button", name="Record again").click()
        page.wait_for_timeout(1500)
        page.keyboard.press("Space")
        wait_for(lambda: (root / "replaced/0001-1.flac").is_file())
        until(page, "document.getElementById('status').textContent.startsWith('Saved')")
        page.keyboard.press("Enter")
        until(page, "document.getElementById('prompt').textContent === 'Dos.'")
        assert page.locator("#counts").inner_text() == "1 of 3 recorded"
        assert json.loads((root / "prompts.json").read_text(encoding="utf-8")) == PROMPTS
        assert complaints == []
