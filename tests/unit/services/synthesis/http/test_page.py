"""The page at ``/``: in a real browser, without a window, and as what a strict browser is told."""

from __future__ import annotations

import asyncio
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import httpx
import pytest
import soundfile
import uvicorn
from starlette.applications import Starlette
from starlette.testclient import TestClient

from services.synthesis.access import Access, add_token
from services.synthesis.http.page import PAGE_FILES
from shared.audio import to_pcm16
from tests.browser import new_page, opened_browser, until, wait_for
from tests.unit.services.synthesis.grpc.conftest import running

if TYPE_CHECKING:
    from tests.unit.services.synthesis.http.conftest import FakeSpeaker

TEXT = "uno dos tres cuatro cinco"
#: Where programs are looked for: grpcurl comes with the extra 'dev'.
PROGRAMS = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


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
        # Found as a screen reader finds it, here and below.
        status = page.get_by_role("status").and_(page.locator("[aria-live=polite]"))
        assert "seed 7" in status.inner_text()
        words = page.get_by_role("group", name="Words")
        assert words.locator("span").all_inner_texts() == TEXT.split()

        # What is drawn is not one colour, and what is downloaded is what was spoken.
        for name in ("Waveform", "Spectrogram", "Word timing"):
            colours = page.get_by_role("img", name=name).evaluate(
                """(canvas) => {
                const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
                return new Set(new Uint32Array(data.buffer)).size; }"""
            )
            assert colours > 1, name
        with page.expect_download() as download:
            page.get_by_role("link", name="Download WAV").click()
        samples, rate = soundfile.read(io.BytesIO(download.value.path().read_bytes()), dtype="int16")
        assert rate == 16000
        assert (samples == to_pcm16(fake.spoken[0].samples)).all()

        # It is heard to its end.
        until(page, "document.getElementById('stop').disabled")

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
        assert page.get_by_role("alert").inner_text() == "nothing to say"
        assert [text for text in complaints if "400" not in text] == []


#: Notes when sound begins, and which words are marked while how much of it has been heard.
LISTEN = """() => {
    window.starts = [];
    window.marked = [];
    const Context = AudioContext;
    let context;
    window.AudioContext = class extends Context { constructor() { super(); context = this; } };
    const start = AudioBufferSourceNode.prototype.start;
    AudioBufferSourceNode.prototype.start = function (at) { starts.push(at); start.call(this, at); };
    window.heard = () => Math.max(0, context.currentTime - starts[0]);
    const words = document.getElementById('words');
    const note = () => {
        const texts = [...words.querySelectorAll('.now')].map((span) => span.textContent);
        if (texts.length) marked.push([heard(), texts]);
    };
    new MutationObserver(note).observe(words, { subtree: true, attributeFilter: ['class'] });
}"""


def test_the_word_that_is_heard_is_marked_while_the_rest_is_made(
    app: Starlette, fake: FakeSpeaker, browser: Any
) -> None:
    words = [f"slow{number:06}" for number in range(300)]
    with serving(app) as url:
        page, complaints = new_page(browser, f"{url}/")
        page.evaluate(LISTEN)
        page.get_by_label("Text", exact=True).fill(" ".join(words))
        page.get_by_role("button", name="Speak").click()
        until(page, "document.querySelectorAll('#words span').length > 20")
        fake.gate.clear()  # nothing more is made from here on
        until(page, "heard() > 0.5 && new Set(marked.map(([, texts]) => texts[0])).size > 2")
        assert fake.spoken[0].heard < fake.spoken[0].length
        assert page.locator("#download").is_hidden()
        seen = page.evaluate("marked")
        assert {len(texts) for _, texts in seen} == {1}
        numbers = [words.index(text) for _, (text,) in seen]
        assert numbers == sorted(numbers)
        times = {timed.text: timed.start_seconds for timed in fake.spoken[0].timestamps()}
        assert all(times[text] <= heard for heard, (text,) in seen)

        # Whoever stops hears none of them.
        page.keyboard.press("Escape")
        wait_for(lambda: fake.spoken[0].cancelled)
        page.evaluate("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
        assert page.locator("#words .now").count() == 0
        assert complaints == []


class Turnstile(asyncio.Event):
    """A gate that lets through so many pieces, as `FakeSpeaker.gate`."""

    pieces = 0

    async def wait(self) -> Literal[True]:
        while not self.pieces:
            await asyncio.sleep(0.01)
        self.pieces -= 1
        return True


#: How much of a canvas's width is painted at a share of its height, and where the last of it is.
PAINTED = """(canvas, height) => {
    const { width } = canvas;
    const row = Math.floor(height * (canvas.height - 1));
    const { data } = canvas.getContext('2d').getImageData(0, row, width, 1);
    const columns = [...Array(width).keys()].filter((x) => data[4 * x + 3]);
    return [columns.length / width, (columns.at(-1) ?? 0) / width];
}"""


def test_sound_is_drawn_as_it_comes_with_a_line_at_what_is_heard(
    app: Starlette, fake: FakeSpeaker, browser: Any
) -> None:
    fake.gate = gate = Turnstile()
    with serving(app) as url:
        page, complaints = new_page(browser, f"{url}/")
        page.get_by_label("Text", exact=True).fill(" ".join(["a" * 19] * 30))
        page.get_by_role("button", name="Speak").click()

        def painted(name: str, height: float) -> Any:
            return page.get_by_role("img", name=name).evaluate(PAINTED, height)

        def shares() -> list[float]:
            """How much is drawn of each picture, and where the line is, which alone is above the waveform."""
            drawn = painted("Waveform", 0.5), painted("Spectrogram", 1), painted("Word timing", 0.3)
            return [*(share for share, _ in drawn), painted("Waveform", 0)[1]]

        # Three seconds are the least that the pictures have room for.
        for third in (1 / 3, 2 / 3):
            gate.pieces = 10
            wait_for(lambda third=third: shares() == pytest.approx([third] * 4, abs=0.05))
        assert page.locator("#download").is_hidden()
        page.keyboard.press("Escape")
        wait_for(lambda: fake.spoken[0].cancelled)
        assert complaints == []


@pytest.mark.parametrize("protected", [False, True])
def test_the_calls_that_it_shows_make_the_same_sound(
    app: Starlette, fake: FakeSpeaker, browser: Any, tmp_path: Path, protected: bool
) -> None:
    text = """it's "uno" $HOME `pwd` \\ ñandú\n¿dos?"""
    token = add_token(tmp_path / "tokens.json", "web") if protected else ""
    app.state.access = Access(tmp_path / "tokens.json" if protected else None)
    with running(fake, access=app.state.access) as grpc, serving(app) as url:
        app.state.grpc_port = grpc.server.port
        page, _ = new_page(browser, f"{url}/")
        if protected:
            page.get_by_label("Token").fill(token)
            page.keyboard.press("Tab")
        until(page, "document.getElementById('voice').options.length === 3")
        page.get_by_label("Text", exact=True).fill(text)
        page.get_by_label("Voice", exact=True).select_option("luis")
        page.get_by_label("Speaker", exact=True).select_option("eva")
        page.get_by_label("Seed", exact=True).fill("7")
        page.get_by_label("Speed").fill("2")
        shown = {name: page.locator(f"#{name}").inner_text() for name in ("curl", "python", "grpc")}
        assert not protected or all(token not in call for call in shown.values())
        missing = [name for name in ("curl", "jq", "grpcurl") if not shutil.which(name, path=PROGRAMS)]
        for name, call in shown.items():
            if any(program in call.split() for program in missing):
                continue
            command = [sys.executable, "-c", call] if name == "python" else ["bash", "-c", call]
            environment = os.environ | {"PATH": PROGRAMS, "VITS_TOKEN": token, "NO_PROXY": "127.0.0.1"}
            subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=60)
            spoken = fake.spoken.pop()
            order = spoken.order
            asked = (order.text, order.voice, order.speaker, order.seed, order.speaking_rate)
            assert asked == (text, "luis", "eva", 7, 2.0), name
            samples, _ = soundfile.read(tmp_path / "speech.wav", dtype="int16")
            assert (samples == to_pcm16(spoken.samples)).all(), name
            (tmp_path / "speech.wav").unlink()
        assert fake.spoken == []
    if missing:
        pytest.skip(f"not all calls were tried: there is no {', '.join(missing)}")
