"""Where somebody speaks: Silero VAD, from the package ``silero-vad`` with its weights inside.

Shapes: S samples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.evaluation.naturalness import missing


class SileroVad:
    """Silero VAD 6 by ONNX Runtime, at its authors' thresholds.

    Raises:
        MissingJudgeError: It cannot be loaded.
    """

    def __init__(self) -> None:
        try:
            import torch

            threads = torch.get_num_threads()
            from silero_vad import get_speech_timestamps_sequence, load_silero_vad

            torch.set_num_threads(threads)  # which the package sets to one for the whole process
            self._model = load_silero_vad(sequence=True)
        except (ImportError, OSError) as error:
            raise missing("Voice activity by Silero", error, "pip install 'vits-suite[judges]'") from error
        self._timestamps = get_speech_timestamps_sequence

    def __call__(self, samples: NDArray[np.float32]) -> list[tuple[float, float]]:
        """Where somebody speaks in [S] samples at 16 kHz: (start, end) in seconds, 30 ms wider at each end."""
        found = self._timestamps(samples, self._model, sampling_rate=16_000)
        return [(span["start"] / 16_000, span["end"] / 16_000) for span in found]
