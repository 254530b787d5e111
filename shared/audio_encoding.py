"""Sound to bytes while it is made: an encoder takes samples as they come and gives back what it can at once.

``wav`` and ``pcm`` are ours; ``flac``, ``mp3``, ``opus`` and ``aac`` are FFmpeg's, by PyAV, written to a target
that cannot seek, as a socket cannot.

Shapes: S samples.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from functools import cache
from typing import Protocol, cast

import av
import numpy as np
import soundfile
import soxr
from av.audio.stream import AudioStream

from shared.audio import Samples, resample, to_pcm16
from shared.errors import RequestError

#: Rates that can be asked for, in Hz: a telephone's to a studio's.
MIN_SAMPLING_RATE, MAX_SAMPLING_RATE = 8000, 48000


@dataclass(frozen=True)
class Format:
    """A format of audio.

    Attributes:
        media_type: What HTTP calls it.
        extension: What a file of it ends in.
        codec: FFmpeg's encoder; empty for ours.
        container: FFmpeg's container.
        sampling_rates: Those that the codec takes; empty for any.
        bit_rate: Bits per second; 0 for the codec's own or a lossless one.
    """

    media_type: str
    extension: str
    codec: str = ""
    container: str = ""
    sampling_rates: tuple[int, ...] = ()
    bit_rate: int = 0


#: OpenAI's formats, in its order. Speech of one channel is transparent at these bit rates.
FORMATS: dict[str, Format] = {
    "mp3": Format(
        "audio/mpeg",
        "mp3",
        "libmp3lame",
        "mp3",
        (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
        96_000,
    ),
    "opus": Format("audio/ogg", "opus", "libopus", "ogg", (8000, 12000, 16000, 24000, 48000), 48_000),
    "aac": Format(
        "audio/aac",
        "aac",
        "aac",
        "adts",
        (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
        96_000,
    ),
    "flac": Format("audio/flac", "flac", "flac", "flac"),
    "wav": Format("audio/wav", "wav"),
    "pcm": Format("audio/pcm", "pcm"),
}

#: Options of the containers: nothing about the whole file at its beginning, and pages that leave early.
_CONTAINER_OPTIONS = {
    "mp3": {"write_xing": "0", "id3v2_version": "0"},
    "ogg": {"page_duration": "20000"},
}

#: The length in a WAV header that nobody knows yet. FFmpeg and OpenAI's own service write the same.
_UNKNOWN = 0xFFFFFFFF


class Encoder(Protocol):
    """Turns samples into the bytes of one file, piece by piece.

    Attributes:
        sampling_rate: Hz of what comes out.
    """

    sampling_rate: int

    def encode(self, samples: Samples) -> bytes:
        """Take in samples [S]; give the bytes that are ready, which may be none."""

    def finish(self) -> bytes:
        """The rest of the bytes. Nothing can be taken in afterwards."""


@cache
def available_formats() -> tuple[str, ...]:
    """The formats that this machine's FFmpeg can make."""
    return tuple(name for name, wanted in FORMATS.items() if not wanted.codec or _has_codec(wanted.codec))


def _has_codec(name: str) -> bool:
    try:
        av.codec.Codec(name, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def open_encoder(format: str, from_rate: int, to_rate: int | None = None) -> Encoder:  # noqa: A002 - the field's name
    """Open an encoder.

    Args:
        format: One of `available_formats`.
        from_rate: Hz of what will be taken in.
        to_rate: Hz wanted; where not given, that of what is taken in, or the next that the codec knows.

    Raises:
        RequestError: There is no such format here, or the codec does not know the rate that is wanted.
    """
    if format not in available_formats():
        raise RequestError(
            f"response_format: {format!r} is not available here; there is {', '.join(available_formats())}",
            param="response_format",
        )
    rate = to_rate or next_rate(format, from_rate)
    check_sampling_rate(format, rate)
    encoder: Encoder
    if format == "pcm":
        encoder = _Pcm(rate)
    elif format == "wav":
        encoder = _Wav(rate)
    else:
        encoder = _Ffmpeg(FORMATS[format], rate)
    return encoder if rate == from_rate else _Resampled(encoder, from_rate)


def next_rate(format: str, sampling_rate: int) -> int:  # noqa: A002 - the field's name
    """The lowest rate of a format that loses nothing of a sound of this rate; the format's highest at worst."""
    rates = FORMATS[format].sampling_rates or (sampling_rate,)
    return next((rate for rate in rates if rate >= sampling_rate), rates[-1])


def check_sampling_rate(format: str, sampling_rate: int) -> None:  # noqa: A002 - the field's name
    """Refuse a rate that a format cannot have.

    Raises:
        RequestError: It says which ones it can.
    """
    rates = FORMATS[format].sampling_rates
    if rates and sampling_rate not in rates:
        listed = ", ".join(map(str, rates))
        raise RequestError(
            f"sampling_rate: is {sampling_rate}; {format} can have {listed}", param="sampling_rate"
        )


def encode(format: str, samples: Samples, from_rate: int, to_rate: int | None = None) -> bytes:  # noqa: A002
    """The bytes of a whole file of ``samples`` [S]; arguments and errors are those of `open_encoder`."""
    encoder = open_encoder(format, from_rate, to_rate)
    if format not in {"wav", "flac"}:
        return encoder.encode(samples) + encoder.finish()
    # These two have a length in their header, and here it is known.
    buffer = io.BytesIO()
    pcm = to_pcm16(resample(samples, from_rate, encoder.sampling_rate))
    soundfile.write(buffer, pcm, encoder.sampling_rate, format=format.upper(), subtype="PCM_16")
    return buffer.getvalue()


def wav_header(sampling_rate: int) -> bytes:
    """The 44 bytes before mono PCM16 in a WAV file whose length is not known yet."""
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF", _UNKNOWN, b"WAVE",
        b"fmt ", 16, 1, 1, sampling_rate, 2 * sampling_rate, 2, 16,
        b"data", _UNKNOWN,
    )  # fmt: skip


def _pcm_bytes(samples: Samples) -> bytes:
    return to_pcm16(samples).astype("<i2").tobytes()


class _Pcm:
    """Signed 16-bit little-endian samples and nothing else."""

    def __init__(self, sampling_rate: int) -> None:
        self.sampling_rate = sampling_rate

    def encode(self, samples: Samples) -> bytes:
        return _pcm_bytes(samples)

    def finish(self) -> bytes:
        return b""


class _Wav(_Pcm):
    """The same behind a header of unknown length."""

    _begun = False

    def encode(self, samples: Samples) -> bytes:
        return self._header() + _pcm_bytes(samples)

    def finish(self) -> bytes:
        return self._header()

    def _header(self) -> bytes:
        header = b"" if self._begun else wav_header(self.sampling_rate)
        self._begun = True
        return header


class _Written:
    """What a container writes to. It has no ``seek``, so that the container does without."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def write(self, data: bytes) -> int:
        self._bytes += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._bytes)
        self._bytes.clear()
        return taken


class _Ffmpeg:
    """A codec and a container of FFmpeg's."""

    def __init__(self, wanted: Format, sampling_rate: int) -> None:
        self.sampling_rate = sampling_rate
        self._written = _Written()
        options = {"flush_packets": "1", **_CONTAINER_OPTIONS.get(wanted.container, {})}
        self._container = av.open(self._written, "w", format=wanted.container, options=options)
        self._stream = cast("AudioStream", self._container.add_stream(wanted.codec, rate=sampling_rate))
        self._stream.layout = "mono"
        if wanted.bit_rate:
            self._stream.bit_rate = wanted.bit_rate
        self._time = 0

    def encode(self, samples: Samples) -> bytes:
        if len(samples):
            frame = av.AudioFrame.from_ndarray(to_pcm16(samples)[np.newaxis], format="s16", layout="mono")
            frame.sample_rate = self.sampling_rate
            frame.pts = self._time
            self._time += len(samples)
            self._container.mux(self._stream.encode(frame))
        return self._written.take()

    def finish(self) -> bytes:
        if self._time:
            self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._written.take()


class _Resampled:
    """An encoder behind a change of the sampling rate."""

    def __init__(self, encoder: Encoder, from_rate: int) -> None:
        self.sampling_rate = encoder.sampling_rate
        self._encoder = encoder
        self._resampler = soxr.ResampleStream(from_rate, self.sampling_rate, 1, dtype="float32", quality="HQ")

    def encode(self, samples: Samples) -> bytes:
        return self._encoder.encode(self._resampler.resample_chunk(samples))

    def finish(self) -> bytes:
        rest = self._resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
        return self._encoder.encode(rest) + self._encoder.finish()
