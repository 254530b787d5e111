"""Recordings varied a little, so that a small set looks larger: pitch, speed, light noise.

Pitch is moved by resampling (soxr), speed by FFmpeg's ``atempo``, which is WSOLA (Verhelst and Roelands 1993): it
shifts stretches of the waveform against each other where they match best and leaves their pitch alone. One pass of
each serves both, and nothing is done to a recording whose draw comes to nothing.

What is drawn depends on (seed, epoch, recording) alone, so a resumed run hears what an uninterrupted one would have.

Shapes: S samples.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fractions import Fraction

import av
import av.error
import av.filter
import numpy as np
import soxr

from shared.audio import Samples

#: Said wherever augmentation is switched on.
WARNING = (
    "augmentation can hurt quality if overdone: a voice learns whatever it hears, shifted pitch and noise included. "
    "Use it where there is little data, keep it light, and listen"
)

#: The seed's ranges; what is beyond them is refused.
MAX_SEMITONES = 2.0
MAX_SPEED_CHANGE = 0.1
#: Louder noise than this is not light any more.
MIN_NOISE_SNR_DB = 20.0
#: How much quieter than asked for noise may be drawn.
_NOISE_RANGE_DB = 10.0
#: Smaller changes of tempo than this are not worth a pass.
_LEAST_TEMPO_CHANGE = 1e-4
#: What ``atempo`` still holds back at its input's end, at most.
_FLUSH_SECONDS = 0.1


@dataclass(frozen=True)
class Change:
    """What is done to one recording.

    Attributes:
        semitones: Its pitch is moved by so many.
        speed: It is spoken so many times as fast.
        noise_snr: White noise is added, so many decibels below it; none where None.
        noise_seed: Draws that noise.
    """

    semitones: float = 0.0
    speed: float = 1.0
    noise_snr: float | None = None
    noise_seed: int = 0

    def apply(self, samples: Samples, sampling_rate: int, *, min_samples: int = 0) -> Samples:
        """The changed recording: [round(S / speed)], and never louder than full scale.

        Args:
            samples: [S]
            sampling_rate: Samples per second.
            min_samples: The speed is held back so that at least so many are left.
        """
        speed = self.speed
        if min_samples > 0:
            speed = min(speed, max(1.0, len(samples) / min_samples))
        changed = moved(samples, sampling_rate, pitch=2 ** (self.semitones / 12), speed=speed)
        if self.noise_snr is not None:
            changed = noisy(changed, self.noise_snr, self.noise_seed)
        peak = float(np.abs(changed).max(initial=0.0))
        return changed if peak <= 1.0 else changed / np.float32(peak)


@dataclass(frozen=True)
class Augmentation:
    """How recordings are varied; of no effect by default.

    Attributes:
        semitones: Pitch moves by up to so many, up or down.
        speed: Speed changes by up to this share, either way: 0.1 is 0.9 to 1.1.
        noise_snr: Noise is added at this signal-to-noise ratio in decibels, or up to 10 dB quieter; none where None.
        probability: The share of recordings that are changed, drawn anew each time.
    """

    semitones: float = 0.0
    speed: float = 0.0
    noise_snr: float | None = None
    probability: float = 0.5

    def __bool__(self) -> bool:
        return self.probability > 0 and bool(self.semitones or self.speed or self.noise_snr is not None)

    def draw(self, seed: int, epoch: int, recording: str) -> Change | None:
        """What happens to a recording in an epoch; None where it is left as it is.

        Args:
            seed: The run's.
            epoch: From 0.
            recording: Its id.
        """
        if not self:
            return None
        key = hashlib.sha256(f"augmentation {seed} {epoch} {recording}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(key, "little"))
        chosen, semitones, speed, noise = generator.random(4)
        if chosen >= self.probability:
            return None
        return Change(
            semitones=self.semitones * (2 * semitones - 1),
            speed=1 + self.speed * (2 * speed - 1),
            noise_snr=None if self.noise_snr is None else self.noise_snr + _NOISE_RANGE_DB * noise,
            noise_seed=int(generator.integers(2**63)),
        )


def moved(samples: Samples, sampling_rate: int, *, pitch: float, speed: float) -> Samples:
    """The same sentence at another pitch and speed.

    Args:
        samples: [S]
        sampling_rate: Samples per second.
        pitch: Factor of every frequency.
        speed: Factor of the tempo.

    Returns:
        [round(S / speed)]
    """
    wanted = round(len(samples) / speed)
    if pitch != 1.0:
        # Played at the old rate, 1/pitch times as many samples sound pitch times as high, and as fast.
        samples = soxr.resample(samples, sampling_rate * pitch, sampling_rate, quality="HQ")
    tempo = len(samples) / wanted if wanted else 1.0
    if abs(tempo - 1) > _LEAST_TEMPO_CHANGE:
        samples = _atempo(samples, sampling_rate, tempo)
    moved_S = np.zeros(wanted, np.float32)
    moved_S[: len(samples)] = samples[:wanted]
    return moved_S


def noisy(samples: Samples, snr: float, seed: int) -> Samples:
    """Samples [S] with white Gaussian noise ``snr`` decibels below their root mean square; silence stays silent."""
    level = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0
    noise = np.random.default_rng(seed).standard_normal(len(samples), dtype=np.float32)
    return samples + np.float32(level * 10 ** (-snr / 20)) * noise


def _atempo(samples: Samples, sampling_rate: int, tempo: float) -> Samples:
    """[S] at another tempo by FFmpeg: about S / tempo samples, and some of silence."""
    graph = av.filter.Graph()
    source = graph.add_abuffer(
        sample_rate=sampling_rate, format="flt", layout="mono", time_base=Fraction(1, sampling_rate)
    )
    stretch, sink = graph.add("atempo", f"{tempo:.9f}"), graph.add("abuffersink")
    source.link_to(stretch)
    stretch.link_to(sink)
    graph.configure()
    flushed = np.pad(samples, (0, round(_FLUSH_SECONDS * sampling_rate)))
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(flushed[None]), format="flt", layout="mono")
    frame.sample_rate, frame.pts = sampling_rate, 0
    source.push(frame)
    source.push(None)
    pieces = []
    while True:
        try:
            pieces.append(graph.pull().to_ndarray()[0])
        except av.error.EOFError:
            return np.concatenate(pieces)
