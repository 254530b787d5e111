"""The latents of the training recordings, computed once: what the text stage learns from.

Shapes: B batch, D latent channels, F frames.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from services.training.features import FeatureSettings, linear_spectrogram
from services.training.steps import Seen, to_device
from shared.modeling import VitsForTraining


class Latents:
    """Means and log-stds of the posterior, kept from the first time that a recording is seen.

    Each is computed from the recording alone and in float32, so that what it is does not depend on the batch
    that it was first seen in: a resumed run computes the same. They are kept on the host as float16, whose
    rounding is far below the posterior's own spread: 0.77 kB a frame, 240 MB for an hour of speech at 22.05 kHz.

    Args:
        model: Its posterior encoder must not change while this is in use.
        settings: The model's view of audio.
        keep: Whether a recording is always the same; where it is varied, each is computed whenever it is seen.
    """

    def __init__(self, model: VitsForTraining, settings: FeatureSettings, *, keep: bool = True) -> None:
        self._model = model
        self._keep = keep
        self._settings = settings
        self._kept: dict[int, Tensor] = {}

    def of(self, part: Seen) -> tuple[Tensor, Tensor]:
        """Mean and log-std of a batch's recordings, each [B, D, F] float32 on the device, zero past their ends."""
        rows = []
        for row, index in enumerate(part.host.index.tolist()):
            found = self._kept.get(index)
            if found is None:
                found = self._compute(part, row).half().cpu()
                if self._keep:
                    self._kept[index] = found
            rows.append(found)
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True).transpose(1, 2)
        mean, log_std = to_device(padded, part.batch.padded_waveform.device).float().chunk(2, dim=1)
        return mean, log_std

    @torch.no_grad()
    def _compute(self, part: Seen, row: int) -> Tensor:
        """[F, 2 D] of one recording."""
        settings, batch = self._settings, part.batch
        samples = int(part.host.frame_lengths[row]) * settings.hop_length + 2 * settings.padding
        spectrogram = linear_spectrogram(batch.padded_waveform[row : row + 1, :samples], settings)
        everywhere = torch.ones_like(spectrogram[:, :1])
        speaker = self._model.speaker_embedding(batch.speaker_id[row : row + 1])
        with torch.autocast(spectrogram.device.type, enabled=False):
            mean, log_std = self._model.posterior(spectrogram, everywhere, speaker)
        return torch.cat([mean, log_std], dim=1)[0].t()
