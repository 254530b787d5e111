"""How alike two voices are: embeddings of speakers, from the weights in the package ``resemblyzer``.

The network (generalised end-to-end loss, Wan et al. 2018: three LSTM layers over 40 mel bands) is computed here. The
package itself needs a voice activity detector that must be compiled and names that SciPy is about to drop; its
weights need neither.

Shapes: S samples, F frames, P partial utterances.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from services.evaluation.measures import mel_filters
from services.evaluation.naturalness import WITHOUT_DEPENDENCIES, missing
from shared.audio import FLOOR_DBFS, FRAME_SECONDS, SPEECH_RANGE_DB, frame_levels

_RATE = 16_000
_WINDOW, _HOP, _BANDS = 400, 160, 40
#: Frames of a partial utterance (1.6 s), and how far apart they begin (1 / 1.3 s).
_PARTIAL, _STEP = 160, 77
#: A last partial utterance is taken when so much of it is there.
_LEAST_COVERAGE = 0.75
#: Quieter clips are amplified to this.
_LEVEL_DBFS = -30.0
#: Silence up to this on either side of speech is kept, in frames of 20 ms.
_KEPT_SILENCE = 5


class SpeakerEncoder:
    """Embeds a voice as a unit vector of 256.

    Raises:
        MissingJudgeError: The weights or torch are not installed.
    """

    def __init__(self) -> None:
        remedy = f"pip install 'vits-suite[judges]' && {WITHOUT_DEPENDENCIES}"
        try:
            import torch

            spec = importlib.util.find_spec("resemblyzer")
            if spec is None or spec.origin is None:
                raise ModuleNotFoundError(name="resemblyzer")
        except (ImportError, OSError) as error:
            raise missing("Speaker likeness", error, remedy) from error
        file = Path(spec.origin).parent / "pretrained.pt"
        weights = torch.load(file, map_location="cpu", weights_only=True)["model_state"]
        self._torch = torch
        self._lstm = torch.nn.LSTM(_BANDS, 256, num_layers=3, batch_first=True)
        self._linear = torch.nn.Linear(256, 256)
        self._lstm.load_state_dict(
            {key[5:]: value for key, value in weights.items() if key.startswith("lstm.")}
        )
        self._linear.load_state_dict(
            {key[7:]: value for key, value in weights.items() if key.startswith("linear.")}
        )

    def __call__(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """The speaker of [S] samples at 16 kHz: the mean over overlapping 1.6 s, silence left out."""
        torch = self._torch
        mel = _mel(_amplified(_speech(samples)))
        starts = [*range(0, max(1, len(mel) - _PARTIAL + _STEP + 1), _STEP)]
        if len(starts) > 1 and (len(mel) - starts[-1]) / _PARTIAL < _LEAST_COVERAGE:
            starts.pop()
        padded = np.pad(mel, ((0, max(0, starts[-1] + _PARTIAL - len(mel))), (0, 0)))
        partial_PFM = np.stack([padded[start : start + _PARTIAL] for start in starts])
        with torch.inference_mode():
            _, (hidden, _) = self._lstm(torch.from_numpy(partial_PFM))
            embeddings = torch.relu(self._linear(hidden[-1]))
            embeddings = torch.nn.functional.normalize(embeddings, dim=1)
        return unit(embeddings.numpy().mean(axis=0))


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """A vector of the same direction and length 1; zero stays zero."""
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), np.float32)


def likeness(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Cosine of two embeddings: 1 for the same."""
    return float(np.clip(unit(one) @ unit(other), -1.0, 1.0))


def _speech(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """[S'] the samples without long silences: frames at most 40 dB below the loudest, and 100 ms around them."""
    levels = frame_levels(samples, _RATE)
    speech = levels > max(float(levels.max()) - SPEECH_RANGE_DB, FLOOR_DBFS)
    if not speech.any():
        return samples
    kept = binary_dilation(speech, np.ones(2 * _KEPT_SILENCE + 1))
    inside: NDArray[np.bool_] = np.repeat(kept, round(FRAME_SECONDS * _RATE))[: len(samples)]
    return samples[inside]


def _amplified(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """A quiet clip at -30 dBFS; others as they are."""
    level = np.sqrt(np.mean(samples.astype(np.float64) ** 2))
    gain = 10 ** (_LEVEL_DBFS / 20) / max(level, 1e-9)
    return np.asarray(samples * max(gain, 1.0), np.float32)


def _mel(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """[F, 40] mel power spectrum, not logarithmic, of centred Hann windows."""
    window = np.hanning(_WINDOW + 1)[:-1]
    padded = np.pad(samples.astype(np.float64), _WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    return np.asarray(power @ mel_filters(_RATE, _WINDOW, _BANDS).T, np.float32)
