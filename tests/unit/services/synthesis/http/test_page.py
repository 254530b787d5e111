"""The page at ``/``: in a real browser, without a window, and as what a strict browser is told."""

from __future__ import annotations

import io
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import soundfile
import uvicorn
from starlette.applications import Starlette
from starlette.testclient import TestClient

from services.synthesis.http.page import PAGE_FILES
from shared.audio import to_pcm16
from tests.browser import new_page, opened_browser, until, wait_for

if TYPE_CHECKING:
    from tests.unit.services.synthesis.http.conftest import FakeSpeaker

TEXT = "uno dos tres cuatro cinco"


@contextmanager
def serving(app: Starlette) -> Iterator[str]:
    """A real server on a free port."""
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{taken.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.mark.parametrize("path", PAGE_FILES)
def test_files_and_their_policy(http: TestClient, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_nothing_comes_from_outside_and_nothing_is_inline(http: TestClient) -> None:
    everything = "".join(http.get(path).text for path in PAGE_FILES)
    assert set(re.findall(r"https?://[^\"]*", everything)) <= {"http://www.w3.org/2000/svg"}  # a name
    page = http.get("/").text
    assert re.findall(r"<script(?![^>]* src=)|<style|\sstyle=|\son[a-z]+=|javascript:", page) == []
    labelled = set(re.findall(r'<label for="([^"]+)"', page))
    assert set(re.findall(r'<(?:input|select|textarea) id="([^"]+)"', page)) <= labelled


def test_a_client_that_leaves_ends_the_work(app: Starlette, fake: FakeSpeaker) -> None:
    body = {"input": "slow " * 500, "response_format": "pcm"}
    with serving(app) as url:
        with httpx.stream("POST", f"{url}/v1/audio/speech", json=body) as answer:
            next(answer.iter_bytes())
        wait_for(lambda: fake.spoken[0].cancelled)
    count = fake.metrics.registry.get_sample_value
    assert count("vits_responses_total", {"door": "http", "code": "200"}) == 1


def test_a_client_that_leaves_before_the_first_sound_ends_the_work(app: Starlette, fake: FakeSpeaker) -> None:
    with serving(app) as url:
        fake.gate.clear()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/audio/speech", json={"input": "uno"}, timeout=0.5)
        wait_for(lambda: fake.spoken and fake.spoken[0].cancelled)


def test_an_answer_that_fails_in_the_middle_is_not_taken_for_a_whole_one(app: Starlette) -> None:
    body = {"input": "break late, after the first piece", "response_format": "pcm"}
    with serving(app) as url, pytest.raises(httpx.RemoteProtocolError):
        httpx.post(f"{url}/v1/audio/speech", json=body)


@pytest.fixture
def browser() -> Iterator[Any]:
    with opened_browser() as opened:
        yield opened


def test_in_a_browser(app: Starlette, fake: FakeSpeaker, browser: Any) -> None:
    with serving(app) as url:
        page, complaints = new_page(browser, f"{url}/")
        until(page, "document.getElementById('voice').options.length === 3")

        # By keyboard alone.
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        page.get_by_label("Text", exact=True).focus()
        page.keyboard.type(TEXT)
        page.get_by_label("Voice", exact=True).select_option("luis")
        page.get_by_label("Speaker", exact=True).select_option("eva")
        page.get_by_label("Seed", exact=True).fill("7")
        page.get_by_label("Speed").fill("2")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("#download:not([hidden])")
        order = fake.spoken[0].order
        assert (order.text, order.voice, order.speaker, order.seed, order.speaking_rate) == (
            TEXT,
            "luis",
            "eva",
            7,
            2.0,
        )
        assert "seed 7" in page.locator("#status").inner_text()
        assert page.locator("#words span").all_inner_texts() == TEXT.split()

        # What is drawn is not one colour, and what is downloaded is what was spoken.
        for name in ("waveform", "spectrogram", "timing"):
            colours = page.evaluate(
                f"""() => {{ const canvas = document.getElementById('{name}');
                const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
                return new Set(new Uint32Array(data.buffer)).size; }}"""
            )
            assert colours > 1, name
        with page.expect_download() as download:
            page.get_by_role("link", name="Download WAV").click()
        samples, rate = soundfile.read(io.BytesIO(download.value.path().read_bytes()), dtype="int16")
        assert rate == 16000
        assert (samples == to_pcm16(fake.spoken[0].samples)).all()

        # It is heard to its end, and the word that is heard is marked on the way.
        until(page, "document.getElementById('stop').disabled")

        for name, said in (
            ("curl", "/v1/audio/speech"),
            ("python", "OpenAI("),
            ("grpc", "SynthesisService/Synthesize"),
        ):
            call = page.locator(f"#{name}").inner_text()
            assert said in call
            assert "cuatro" in call

        # Stopping stops the server, too; what is wrong is said.
        page.get_by_label("Text", exact=True).fill("slow " * 300)
        page.get_by_role("button", name="Speak").click()
        until(page, "document.querySelectorAll('#words span').length > 2")
        page.keyboard.press("Escape")
        wait_for(lambda: fake.spoken[1].cancelled)
        assert complaints == []
        page.get_by_label("Text", exact=True).fill("mute")
        page.get_by_role("button", name="Speak").click()
        until(page, "document.getElementById('error').textContent === 'nothing to say'")
        assert [text for text in complaints if "400" not in text] == []
