"""Sound in memory: decoding, resampling, PCM16 and WAV.

Everything in the suite is mono float32 in [-1, 1]; full scale in PCM16 is 32,767 on both sides, so that
reading a PCM16 file and writing it again gives the same samples.

Shapes: S samples, C channels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import av
import av.error
import numpy as np
import soundfile
import soxr
from av.audio.resampler import AudioResampler
from av.container import InputContainer
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from shared.errors import UserError

Samples: TypeAlias = NDArray[np.float32]

PCM16_FULL_SCALE = 32767.0

#: Sample formats that PCM16 holds without loss; all others are decoded to float.
_INTEGER_FORMATS = {"s16", "s16p", "u8", "u8p"}
#: The same in libsndfile's words.
_INTEGER_SUBTYPES = {"PCM_16", "PCM_S8", "PCM_U8"}

#: In a WAV file FFmpeg searches megabytes for streams of other kinds, which takes longer than decoding it.
_WAV_OPTIONS = {"probesize": "16384"}

#: Bytes by which the size in a WAV file's header may be wrong without anything being lost.
_WAV_SLOPPINESS = 256

#: Sizes from here on are what a program writes that does not know the size beforehand.
_WAV_UNKNOWN_SIZE = 0x7FFFFFFF

#: What libsndfile says of a FLAC file that was streamed, and so does not tell its length.
_UNKNOWN_FRAMES = 2**63 - 1

#: Frames in which levels are measured.
FRAME_SECONDS = 0.02

#: A frame is speech when it is at most this much below the recording's loudest.
SPEECH_RANGE_DB = 40.0

#: The level given to digital silence.
FLOOR_DBFS = -100.0

#: What is left of the silence before and after speech: a soft onset or a fading end is quieter than speech.
TRIM_MARGIN_SECONDS = 0.05

#: No change of loudness brings a peak above this.
PEAK_LIMIT_DBFS = -1.0


@dataclass(frozen=True, eq=False)
class Audio:
    """Decoded sound.

    Attributes:
        samples: [S] mono, in [-1, 1].
        sampling_rate: Samples per second.
    """

    samples: Samples
    sampling_rate: int

    @property
    def duration_seconds(self) -> float:
        """How long it sounds."""
        return len(self.samples) / self.sampling_rate

    def resampled(self, sampling_rate: int) -> Audio:
        """The same sound at another rate, or itself when the rate is the same."""
        if sampling_rate == self.sampling_rate:
            return self
        return Audio(resample(self.samples, self.sampling_rate, sampling_rate), sampling_rate)


@dataclass(frozen=True)
class AudioHeader:
    """What a file says of itself before it is decoded.

    Attributes:
        sampling_rate: Samples per second.
        channels: Number of channels.
        duration_seconds: Its length, where the container states it.
    """

    sampling_rate: int
    channels: int
    duration_seconds: float | None


def read_audio(source: Path | bytes, *, format: str | None = None) -> Audio:  # noqa: A002 - PyAV's own word
    """Decode a whole file of any format that FFmpeg knows, and mix it down to mono (the channels' mean).

    Args:
        source: A file, or the bytes of one.
        format: The container's name where the bytes do not tell it, such as ``"g722"``.

    Raises:
        UserError: The file is missing, undecodable, empty or holds values that are not numbers.
    """
    decoded = _read_plainly(source) if format is None else None
    samples_CS, sampling_rate = _read_by_ffmpeg(source, format) if decoded is None else decoded
    if samples_CS.shape[1] == 0:
        raise UserError(f"{_name(source)} holds no audio: record it again or leave it out")
    mono_S = samples_CS[0].astype(np.float32)
    for channel_S in samples_CS[1:]:  # faster than a mean over interleaved channels
        mono_S += channel_S
    if len(samples_CS) > 1:
        mono_S /= len(samples_CS)
    if samples_CS.dtype == np.int16:
        mono_S /= np.float32(PCM16_FULL_SCALE)
    elif not np.isfinite(mono_S).all():
        raise UserError(
            f"{_name(source)} holds values that are not numbers (NaN or infinity): write it again"
        )
    # Lossy codecs overshoot full scale by a little.
    return Audio(np.clip(mono_S, -1.0, 1.0, out=mono_S), sampling_rate)


def _read_plainly(source: Path | bytes) -> tuple[NDArray[Any], int] | None:
    """Decode a WAV, FLAC or MP3 file by libsndfile, which is 1.7 to five times as fast with them as FFmpeg.

    Returns:
        [C, S] int16 or float32 and the sampling rate; None for anything else and for a file with a fault, which
        is FFmpeg's to judge.
    """
    if not (_is_wav(source) or _beginning(source).startswith(b"fLaC") or _is_counted_mp3(source)):
        return None
    try:
        with soundfile.SoundFile(source if isinstance(source, Path) else io.BytesIO(source)) as file:
            if file.frames == _UNKNOWN_FRAMES:
                return None
            samples_SC = file.read(
                dtype="int16" if file.subtype in _INTEGER_SUBTYPES else "float32", always_2d=True
            )
            return (samples_SC.T, file.samplerate) if len(samples_SC) == file.frames else None
    except soundfile.LibsndfileError:
        return None


def _read_by_ffmpeg(source: Path | bytes, container_format: str | None) -> tuple[NDArray[Any], int]:
    """Decode a file of any kind: [C, S] int16 or float32, and the sampling rate."""
    with _opened(source, container_format) as container:
        stream = container.streams.audio[0]
        integer = stream.format.name in _INTEGER_FORMATS
        resampler = AudioResampler(format="s16p" if integer else "fltp")
        chunks = [
            converted.to_ndarray()  # [C, S]
            for frame in (*container.decode(stream), None)
            for converted in resampler.resample(frame)
        ]
        samples_CS = np.concatenate(chunks, axis=1) if chunks else np.zeros((1, 0), np.float32)
        return samples_CS.astype(np.int16 if integer else np.float32, copy=False), stream.rate


def read_audio_header(source: Path | bytes, *, format: str | None = None) -> AudioHeader:  # noqa: A002
    """Open a file and decode its first frame: a cheap proof that it is sound.

    Raises:
        UserError: The file is missing, no sound, undecodable or empty.
    """
    with _opened(source, format) as container:
        stream = container.streams.audio[0]
        if next(container.decode(stream), None) is None:
            raise UserError(f"{_name(source)} holds no audio: record it again or leave it out")
        duration = None
        if stream.duration is not None and stream.time_base is not None:
            duration = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration = container.duration / av.time_base
        return AudioHeader(stream.rate, stream.channels, duration)


def resample(samples: Samples, from_rate: int, to_rate: int) -> Samples:
    """Change the sampling rate, with soxr to 20 bits, four more than PCM16 has; the identity for equal rates.

    Args:
        samples: [S]
        from_rate: Samples per second of the input.
        to_rate: Samples per second wanted.

    Returns:
        [round(S * to_rate / from_rate)]; it can overshoot [-1, 1] by a little, as any band-limited
        resampling of a full-scale signal does.
    """
    if from_rate == to_rate:
        return samples
    resampled: Samples = soxr.resample(samples, from_rate, to_rate, quality="HQ")
    return resampled.astype(np.float32, copy=False)


def to_pcm16(samples: Samples) -> NDArray[np.int16]:
    """Float in [-1, 1], any shape, to PCM16: clipped, then rounded to the nearest step."""
    pcm: NDArray[np.int16] = np.rint(np.clip(samples, -1.0, 1.0) * PCM16_FULL_SCALE).astype(np.int16)
    return pcm


def from_pcm16(pcm: NDArray[np.int16]) -> Samples:
    """PCM16, any shape, to float in [-1, 1]; the one value below the scale (-32,768) becomes -1."""
    samples: Samples = np.maximum(pcm.astype(np.float32) / np.float32(PCM16_FULL_SCALE), np.float32(-1.0))
    return samples


def encode_wav(samples: Samples, sampling_rate: int) -> bytes:
    """The bytes of a mono PCM16 WAV file of ``samples`` [S]."""
    buffer = io.BytesIO()
    soundfile.write(buffer, to_pcm16(samples), sampling_rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def write_wav(path: Path, samples: Samples, sampling_rate: int) -> None:
    """Write ``samples`` [S] as a mono PCM16 WAV file."""
    path.write_bytes(encode_wav(samples, sampling_rate))


def encode_flac(samples: Samples, sampling_rate: int) -> bytes:
    """The bytes of a mono 16-bit FLAC file of ``samples`` [S]: the samples of a WAV in half its bytes."""
    buffer = io.BytesIO()
    soundfile.write(buffer, to_pcm16(samples), sampling_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def write_flac(path: Path, samples: Samples, sampling_rate: int) -> None:
    """Write ``samples`` [S] as a mono 16-bit FLAC file."""
    path.write_bytes(encode_flac(samples, sampling_rate))


def frame_levels(samples: Samples, sampling_rate: int) -> NDArray[np.float64]:
    """The level of each 20 ms frame in dBFS, where a full-scale square wave is 0; [ceil(S / frame)]."""
    size = max(1, round(FRAME_SECONDS * sampling_rate))
    starts = np.arange(0, len(samples), size)
    power = np.add.reduceat(samples.astype(np.float64) ** 2, starts)
    power /= np.diff(np.append(starts, len(samples)))
    levels: NDArray[np.float64] = 10 * np.log10(np.maximum(power, 10 ** (FLOOR_DBFS / 10)))
    return levels


def trim_silence(samples: Samples, sampling_rate: int) -> Samples:
    """Cut the silence from both ends, but for 50 ms.

    Speech is what is at most 40 dB below the loudest 20 ms, so the recording's own level does not matter;
    noise that is louder than that is not cut.

    Args:
        samples: [S], S > 0.
        sampling_rate: Samples per second.

    Returns:
        A part of ``samples``, or all of it when it is nothing but digital silence.
    """
    levels = frame_levels(samples, sampling_rate)
    speech = np.flatnonzero(levels > max(float(levels.max()) - SPEECH_RANGE_DB, FLOOR_DBFS))
    if not len(speech):
        return samples
    frame, margin = max(1, round(FRAME_SECONDS * sampling_rate)), round(TRIM_MARGIN_SECONDS * sampling_rate)
    return samples[max(0, int(speech[0]) * frame - margin) : (int(speech[-1]) + 1) * frame + margin]


def loudness_lufs(samples: Samples, sampling_rate: int) -> float:
    """Integrated loudness of mono sound by ITU-R BS.1770-4: K-weighted, gated at -70 LUFS and at -10 LU.

    Sound that is shorter than one block of 400 ms is measured as one block.

    Args:
        samples: [S]
        sampling_rate: Samples per second.

    Returns:
        LUFS; minus infinity for silence.
    """
    from scipy.signal import lfilter  # slow to import, and not needed to serve

    weighted = samples.astype(np.float64)
    for numerator, denominator in k_weighting(sampling_rate):
        weighted = lfilter(numerator, denominator, weighted)
    step = round(0.1 * sampling_rate)  # blocks of 400 ms that overlap by three quarters
    tenths = np.mean(weighted[: len(weighted) // step * step].reshape(-1, step) ** 2, axis=1)
    blocks = (
        sliding_window_view(tenths, 4).mean(axis=1)
        if len(tenths) >= 4
        else np.mean(weighted**2, keepdims=True)
    )
    blocks = blocks[blocks > 10 ** ((-70 + 0.691) / 10)]
    if not len(blocks):
        return -math.inf
    blocks = blocks[blocks > np.mean(blocks) / 10]
    return -0.691 + 10 * math.log10(float(np.mean(blocks)))


def k_weighting(sampling_rate: int) -> list[tuple[list[float], list[float]]]:
    """The two filters of ITU-R BS.1770-4, a high shelf and a high pass, at any sampling rate.

    The standard tabulates them for 48 kHz alone; these are the analogue filters behind its table, as derived by
    B. De Man, Evaluation of Implementations of the EBU R128 Loudness Measurement (AES 145, 2018).

    Returns:
        Numerator and denominator of each.
    """
    k, q = math.tan(math.pi * 1681.974450955533 / sampling_rate), 0.7071752369554196
    high = 10 ** (3.999843853973347 / 20)
    middle = high**0.4996667741545416
    scale = 1 + k / q + k * k
    shelf = (
        [
            (high + middle * k / q + k * k) / scale,
            2 * (k * k - high) / scale,
            (high - middle * k / q + k * k) / scale,
        ],
        [1.0, 2 * (k * k - 1) / scale, (1 - k / q + k * k) / scale],
    )
    k, q = math.tan(math.pi * 38.13547087602444 / sampling_rate), 0.5003270373238773
    scale = 1 + k / q + k * k
    high_pass = ([1.0, -2.0, 1.0], [1.0, 2 * (k * k - 1) / scale, (1 - k / q + k * k) / scale])
    return [shelf, high_pass]


def loudness_gain(samples: Samples, sampling_rate: int, wanted: float) -> float:
    """The factor that brings ``samples`` [S] to ``wanted`` LUFS; silence has no loudness and stays."""
    measured = loudness_lufs(samples, sampling_rate)
    return 10 ** ((wanted - measured) / 20) if math.isfinite(measured) else 1.0


def amplified(samples: Samples, gain: float) -> tuple[Samples, bool]:
    """Scale ``samples`` [S] by ``gain``, or by less where a peak would pass -1 dBFS.

    Returns:
        The scaled samples, and whether the gain was held back.
    """
    peak, limit = float(np.abs(samples).max(initial=0.0)), 10 ** (PEAK_LIMIT_DBFS / 20)
    held_back = peak * gain > limit
    return samples * np.float32(limit / peak if held_back else gain), held_back


def _name(source: Path | bytes) -> str:
    """What to call a source in a message."""
    return str(source) if isinstance(source, Path) else f"an embedded recording ({len(source):,} bytes)"


def _beginning(source: Path | bytes, start: int = 0, count: int = 12) -> bytes:
    """Its first bytes, or fewer; nothing where it cannot be opened, which is FFmpeg's to say."""
    if isinstance(source, bytes):
        return source[start : start + count]
    try:
        with source.open("rb") as file:
            file.seek(start)
            return file.read(count)
    except OSError:
        return b""


def _is_counted_mp3(source: Path | bytes) -> bool:
    """Whether a source is an MP3 file that says how many frames it has, so that a missing one is noticed.

    Such files begin, after a tag where there is one (ID3v2), with a frame that holds ``Xing`` or ``Info``.
    """
    header = _beginning(source)
    start = 0
    if header.startswith(b"ID3") and len(header) >= 10:
        start = 10 + sum(byte << shift for byte, shift in zip(header[6:10], (21, 14, 7, 0), strict=True))
    frame = _beginning(source, start, 64)
    is_layer_3 = len(frame) > 1 and frame[0] == 0xFF and frame[1] & 0xE6 == 0xE2
    return is_layer_3 and (b"Xing" in frame or b"Info" in frame)


def _is_wav(source: Path | bytes) -> bool:
    """Whether a source is a WAV file.

    Raises:
        UserError: It is one, and its end is missing; FFmpeg would read what is left of it without a word.
    """
    header = _beginning(source)
    if header[:4] != b"RIFF" or header[8:] != b"WAVE":
        return False
    size = source.stat().st_size if isinstance(source, Path) else len(source)
    promised = 8 + int.from_bytes(header[4:8], "little")
    if size + _WAV_SLOPPINESS < promised < _WAV_UNKNOWN_SIZE:
        raise UserError(
            f"{_name(source)} is cut short: it has {size:,} bytes of {promised:,}. Copy or record it again"
        )
    return True


@contextmanager
def _opened(source: Path | bytes, container_format: str | None) -> Iterator[InputContainer]:
    """Open a source that has an audio stream; every failure of FFmpeg becomes a ``UserError``."""
    if isinstance(source, Path) and not source.is_file():
        raise UserError(f"{source} does not exist or is no file: check the path")
    try:
        file = str(source) if isinstance(source, Path) else io.BytesIO(source)
        options = _WAV_OPTIONS if _is_wav(source) else None
        with av.open(file, mode="r", format=container_format, options=options) as container:
            if not container.streams.audio:
                raise UserError(f"{_name(source)} has no sound in it: give an audio file")
            yield container
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{_name(source)} cannot be decoded ({reason}): convert it to WAV or FLAC, or leave it out"
        ) from error
