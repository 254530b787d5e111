"""Measures that compare speech with speech: spectra, pitch, and the alignment that makes two readings comparable.

Everything is computed from samples alone, in float64, without any judge.

Shapes: S samples, F frames, K frequency bins, M mel bands, P steps of a path.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

Numbers = NDArray[np.float64]
Samples = NDArray[np.float32] | NDArray[np.float64]

#: Frames are this far apart and this long; the transform is the next power of two.
HOP_SECONDS = 0.010
WINDOW_SECONDS = 0.040
MEL_BANDS = 80
#: The least power that is told from silence: 100 dB below full scale.
FLOOR = 1e-10

#: Pitch is looked for between these.
F0_LOWEST_HZ, F0_HIGHEST_HZ = 60.0, 500.0
#: De Cheveigné and Kawahara's own: above it, a frame is unvoiced.
YIN_THRESHOLD = 0.15
#: Frames this far below the loudest are silence, voiced or not.
VOICED_RANGE_DB = 40.0


def power_spectrum(samples: Samples, sampling_rate: int) -> Numbers:
    """[F, K] power of Hann-windowed frames, 1 for a full-scale sinusoid; frames are centred, the ends padded."""
    size = round(WINDOW_SECONDS * sampling_rate)
    hop = round(HOP_SECONDS * sampling_rate)
    padded = np.pad(np.asarray(samples, np.float64), size // 2)
    window = np.hanning(size + 1)[:-1]
    frames = sliding_window_view(padded, size)[::hop] * window
    spectrum = np.abs(np.fft.rfft(frames, n=1 << (size - 1).bit_length())) / (window.sum() / 2)
    return np.asarray(spectrum**2, np.float64)


def log_mel(samples: Samples, sampling_rate: int) -> Numbers:
    """[F, 80] natural logarithm of the mel power spectrum, up to half the sampling rate."""
    power = power_spectrum(samples, sampling_rate)
    mel = power @ mel_filters(sampling_rate, 2 * (power.shape[1] - 1), MEL_BANDS).T
    return np.log(np.maximum(mel, FLOOR))


@cache
def mel_filters(sampling_rate: int, size: int, bands: int) -> Numbers:
    """[M, K] triangular filters of unit area on Slaney's mel scale (Auditory Toolbox, 1998): linear to 1 kHz.

    Args:
        sampling_rate: Hz.
        size: Of the transform; K is ``size // 2 + 1``.
        bands: M.
    """
    step = np.log(6.4) / 27
    mels = np.linspace(0, 15 + np.log(sampling_rate / 2 / 1000) / step, bands + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(step * (np.maximum(mels, 15) - 15)))
    bins = np.arange(size // 2 + 1) * sampling_rate / size
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    areas = 2 / (edges[2:] - edges[:-2])
    filters: Numbers = np.maximum(0, np.minimum(rising, falling)) * areas[:, None]
    filters.flags.writeable = False  # it is shared
    return filters


def log_spectral_distance(one: Samples, other: Samples, sampling_rate: int) -> float:
    """Log-spectral distance in dB of two sounds that are in step, such as two variants' from the same noise.

    The mean over frames of the root mean square over frequencies of the difference of the log power spectra
    (Gray and Markel 1976), powers below -100 dB of full scale taken as that. 0 for equal sounds.

    Args:
        one: [S]
        other: [S]; where lengths differ, both are compared up to the shorter one's end.
        sampling_rate: Hz, of both.
    """
    length = min(len(one), len(other))
    spectra = [power_spectrum(samples[:length], sampling_rate) for samples in (one, other)]
    return _log_spectral_distance(*spectra)


def _log_spectral_distance(one: Numbers, other: Numbers) -> float:
    """The same of two power spectra [F, K] of as many frames."""
    a, b = (10 * np.log10(np.maximum(power, FLOOR)) for power in (one, other))
    return float(np.sqrt(((a - b) ** 2).mean(axis=1)).mean())


def log_mel_distance(one: Samples, other: Samples, sampling_rate: int) -> float:
    """Mean absolute difference of the log-mel spectra of two sounds that are in step; see above."""
    length = min(len(one), len(other))
    a, b = (log_mel(samples[:length], sampling_rate) for samples in (one, other))
    return float(np.abs(a - b).mean())


def align(one: Numbers, other: Numbers) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The cheapest path through two sequences of features, by dynamic time warping (Sakoe and Chiba 1978).

    Args:
        one: [F, M]
        other: [G, M]

    Returns:
        The frames of each, [P] and [P], from the first pair to the last; every step goes on by one frame in one or
        in both.
    """
    cost = cdist(one, other, "cityblock")
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    for diagonal in range(rows + columns - 1):  # each depends on the two before it alone
        i = np.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        j = diagonal - i
        before = np.minimum(np.minimum(total[i, j + 1], total[i + 1, j]), total[i, j])
        total[i + 1, j + 1] = cost[i, j] + before
    path = [(rows - 1, columns - 1)]
    while path[-1] != (0, 0):
        i, j = path[-1]
        steps = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        path.append(min(steps, key=lambda step: total[step[0] + 1, step[1] + 1]))
    along = np.array(path[::-1])
    return along[:, 0], along[:, 1]


def f0_contour(samples: Samples, sampling_rate: int) -> Numbers:
    """[F] fundamental frequency in Hz of each frame, NaN where unvoiced or silent.

    YIN (de Cheveigné and Kawahara 2002): the first dip of the cumulative-mean-normalised difference function below
    the threshold, its minimum interpolated by a parabola.
    """
    hop = round(HOP_SECONDS * sampling_rate)
    longest = int(sampling_rate / F0_LOWEST_HZ) + 1
    shortest = int(sampling_rate / F0_HIGHEST_HZ)
    frames = sliding_window_view(np.pad(np.asarray(samples, np.float64), longest), 2 * longest)[::hop]
    normalised = _normalised_difference(frames, longest)
    dips = normalised[:, shortest:]
    rising = np.diff(dips, append=np.inf) >= 0
    candidates = (dips < YIN_THRESHOLD) & rising
    lag = shortest + candidates.argmax(axis=1)
    level = 10 * np.log10(np.maximum((frames**2).mean(axis=1), FLOOR))
    voiced = candidates.any(axis=1) & (level > level.max() - VOICED_RANGE_DB) & (lag < longest - 1)
    lag = np.minimum(lag, longest - 2)
    f0 = np.full(len(frames), np.nan)
    rows = np.arange(len(frames))
    left, here, right = (normalised[rows, lag + shift] for shift in (-1, 0, 1))
    bend = left - 2 * here + right
    shift = np.where(bend > 0, (left - right) / np.where(bend > 0, 2 * bend, 1), 0)
    f0[voiced] = sampling_rate / (lag + shift)[voiced]
    return f0


def _normalised_difference(frames: Numbers, longest: int) -> Numbers:
    """[F, longest] YIN's d'(lag) of frames of twice the longest lag: 1 at lag 0."""
    size = 1 << (3 * longest).bit_length()
    head = np.fft.rfft(frames[:, :longest], n=size)
    correlation = np.fft.irfft(np.fft.rfft(frames, n=size) * head.conj(), n=size)[:, :longest]
    energy = np.cumsum(np.pad(frames**2, ((0, 0), (1, 0))), axis=1)
    moved = energy[:, longest : 2 * longest] - energy[:, :longest]  # of the samples from lag to lag + longest
    difference = np.maximum(moved[:, :1] + moved - 2 * correlation, 0)
    sums = np.cumsum(difference[:, 1:], axis=1)
    lags = np.arange(1, longest)
    with np.errstate(divide="ignore", invalid="ignore"):
        rest = np.where(sums > 1e-12, difference[:, 1:] * lags / sums, 1.0)
    return np.concatenate([np.ones((len(frames), 1)), rest], axis=1)


def f0_error_cents(one: Numbers, other: Numbers) -> float | None:
    """Root mean square difference in cents (hundredths of a semitone) of two contours [F] in step.

    Of the frames that are voiced in both; None where there are none.
    """
    both = np.isfinite(one) & np.isfinite(other)
    if not both.any():
        return None
    return float(np.sqrt(np.mean((1200 * np.log2(other[both] / one[both])) ** 2)))


class Aligned:
    """Speech beside the recording of the same sentence, frame by frame along the cheapest path between their log-mels.

    Args:
        speech: [S]
        recording: [S']
        sampling_rate: Hz, of both.
    """

    def __init__(self, speech: Samples, recording: Samples, sampling_rate: int) -> None:
        mels = [log_mel(samples, sampling_rate) for samples in (speech, recording)]
        path = align(*mels)
        powers = [power_spectrum(samples, sampling_rate) for samples in (speech, recording)]
        a, b = (mel[along] for mel, along in zip(mels, path, strict=True))
        self.mel_distance = float(np.abs(a - b).mean())
        """Mean absolute difference of the natural-log mel spectra."""
        self.log_spectral_distance = _log_spectral_distance(powers[0][path[0]], powers[1][path[1]])
        """dB."""
        contours = [f0_contour(samples, sampling_rate) for samples in (speech, recording)]
        a, b = (_at(contour, along) for contour, along in zip(contours, path, strict=True))
        self.f0_error_cents = f0_error_cents(b, a)
        """Root mean square, of the frames that are voiced in both; None where there are none."""


def _at(contour: Numbers, along: NDArray[np.intp]) -> Numbers:
    """A contour along a path, whose spectra may have a frame more at the end."""
    return contour[np.minimum(along, len(contour) - 1)]
