"""Streaming encoders, judged by decoding what they made."""

from __future__ import annotations

import io
import subprocess
import sys
import wave
from itertools import pairwise

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.audio import Samples, from_pcm16, read_audio, resample, to_pcm16
from shared.audio_encoding import (
    FORMATS,
    MAX_SAMPLING_RATE,
    MIN_SAMPLING_RATE,
    available_formats,
    encode,
    next_rate,
    open_encoder,
)
from shared.errors import RequestError

LOSSLESS = ("wav", "pcm", "flac")
LOSSY = ("mp3", "opus", "aac")
RATES = (8000, 16000, 22050, 24000, 44100, 48000)
#: Samples that a codec may put before the sound and behind it: its delay, and what fills its last frame.
PADDING_SAMPLES = 3 * 1152


def speech_like(seconds: float, rate: int) -> Samples:
    """Noise of speech's band, swelling and fading, which has one place where it fits itself."""
    generator = np.random.default_rng(7)
    times = np.arange(round(seconds * rate)) / rate
    partials = [
        np.sin(2 * np.pi * (hertz * times + generator.uniform() + 20 * times**2))
        for hertz in (150, 310, 470, 900, 1400)
    ]
    sound = np.sum(partials, axis=0)
    samples: Samples = (0.1 * sound * (1 + np.sin(2 * np.pi * 3.1 * times))).astype(np.float32)
    return samples


def stream(name: str, samples: Samples, rate: int, to_rate: int | None = None, *, piece: int = 3000) -> bytes:
    encoder = open_encoder(name, rate, to_rate)
    pieces = [encoder.encode(samples[start : start + piece]) for start in range(0, len(samples), piece)]
    return b"".join([*pieces, encoder.finish()])


def decoded(name: str, content: bytes, rate: int) -> Samples:
    if name == "pcm":
        return from_pcm16(np.frombuffer(content, "<i2"))
    audio = read_audio(content)
    assert audio.sampling_rate == (48000 if name == "opus" else rate)  # what Opus always decodes to
    return resample(audio.samples, audio.sampling_rate, rate)


def likeness(heard: Samples, meant: Samples) -> float:
    """The correlation at the best shift of up to 3,000 samples, by which codecs delay."""
    meant = meant[4000:12000]
    windows = np.lib.stride_tricks.sliding_window_view(heard[4000:15000], len(meant))
    norms = np.linalg.norm(windows, axis=1) * np.linalg.norm(meant)
    return float((windows @ meant / np.maximum(norms, 1e-9)).max())


def test_the_usual_build_has_everything() -> None:
    assert set(available_formats()) == set(FORMATS)
    assert next(iter(FORMATS)) == "mp3"


@pytest.mark.parametrize("name", LOSSLESS)
@given(sizes=st.lists(st.integers(0, 9000), min_size=1, max_size=8))
@settings(max_examples=20, deadline=None)
def test_lossless_formats_give_back_every_sample(name: str, sizes: list[int]) -> None:
    samples = speech_like(max(1, sum(sizes)) / 16000, 16000)
    encoder = open_encoder(name, 16000)
    edges = np.cumsum([0, *sizes])
    content = b"".join(encoder.encode(samples[a:b]) for a, b in pairwise(edges))
    content += encoder.encode(samples[edges[-1] :]) + encoder.finish()
    assert (to_pcm16(decoded(name, content, 16000)) == to_pcm16(samples)).all()


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", LOSSY)
def test_lossy_formats_sound_the_same(name: str, rate: int) -> None:
    samples = speech_like(2, rate)
    made_at = next_rate(name, rate)
    heard = decoded(name, stream(name, samples, rate), made_at)
    assert -10 <= len(heard) - 2 * made_at <= PADDING_SAMPLES
    assert likeness(heard, resample(samples, rate, made_at)) > 0.95


@pytest.mark.parametrize("name", FORMATS)
def test_what_arrives_first_leaves_first(name: str) -> None:
    """A second of sound is on its way before the next one comes; FLAC's frames are the longest."""
    encoder = open_encoder(name, 22050)
    first = encoder.encode(speech_like(1, 22050))
    heard = decoded(name, first, encoder.sampling_rate)
    assert len(heard) / encoder.sampling_rate > 0.6


@pytest.mark.parametrize("to_rate", [8000, 24000, 48000])
def test_another_rate(to_rate: int) -> None:
    samples = speech_like(2, 22050)
    heard = decoded("pcm", stream("pcm", samples, 22050, to_rate), to_rate)
    whole = resample(samples, 22050, to_rate)
    assert abs(len(heard) - len(whole)) <= 1
    shared_length = min(len(heard), len(whole))
    np.testing.assert_allclose(heard[:shared_length], whole[:shared_length], atol=1e-3)


@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
def test_whole_and_streamed_are_the_same_sound(name: str) -> None:
    samples = speech_like(1, 16000)
    assert (
        decoded(name, encode(name, samples, 16000), 16000)
        == decoded(name, stream(name, samples, 16000), 16000)
    ).all()


def test_a_whole_wav_and_flac_tell_their_length() -> None:
    samples = speech_like(1, 16000)
    with wave.open(io.BytesIO(encode("wav", samples, 16000))) as file:
        assert file.getnframes() == 16000
    assert soundfile.info(io.BytesIO(encode("flac", samples, 16000, 24000))).frames == 24000


def test_other_readers_take_the_streamed_wav() -> None:
    samples = speech_like(1, 16000)
    content = stream("wav", samples, 16000)
    pcm = to_pcm16(samples)
    with wave.open(io.BytesIO(content)) as file:
        assert file.readframes(10**9) == pcm.tobytes()
    assert (soundfile.read(io.BytesIO(content), dtype="int16")[0] == pcm).all()


def test_rates_that_a_codec_does_not_have() -> None:
    with pytest.raises(RequestError, match="48000") as refused:
        open_encoder("opus", 16000, 22050)
    assert refused.value.param == "sampling_rate"
    with pytest.raises(RequestError, match="mp3"):
        open_encoder("ogg", 16000)
    assert next_rate("opus", 22050) == 24000
    assert next_rate("opus", 96000) == 48000
    assert next_rate("wav", 22050) == 22050


def test_limits_are_rates_that_every_format_has() -> None:
    for wanted in FORMATS.values():
        assert not wanted.sampling_rates or wanted.sampling_rates[0] == MIN_SAMPLING_RATE
        assert not wanted.sampling_rates or wanted.sampling_rates[-1] == MAX_SAMPLING_RATE


def test_nothing_is_kept_of_what_was_given_out() -> None:
    """A long text must not grow the server: what an encoder holds does not depend on how much went through."""
    program = (
        "import numpy, resource\n"
        "from shared.audio_encoding import open_encoder\n"
        "encoders = [open_encoder(f, 22050) for f in ('wav', 'flac', 'mp3', 'opus', 'aac')]\n"
        "noise = numpy.random.default_rng(0).uniform(-0.1, 0.1, 22050).astype('float32')\n"
        "def feed(seconds):\n"
        "    for _ in range(seconds):\n"
        "        for encoder in encoders: encoder.encode(noise)\n"
        "feed(20); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "feed(200); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 4000  # KiB; 200 s of them are 20 MB
