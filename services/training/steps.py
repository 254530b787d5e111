"""What one training step computes. The loop sequences; the steps here compute.

All randomness of a step (noise, slices, dropout) comes from a key of (seed, step, micro-batch, process),
so a resumed run draws what the uninterrupted one would have drawn, and two passes over the same
micro-batch draw the same.

Shapes: B batch, F frames, S samples, W frames of a slice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from monotonic_align import maximum_path
from services.training.config import TrainingConfig
from services.training.dataset import Batch
from services.training.discriminator import Discriminator
from services.training.features import (
    FeatureSettings,
    linear_spectrogram,
    log_mel,
    log_mel_of,
    silent_spectrogram,
)
from services.training.losses import adversarial_loss, discriminator_loss, feature_loss, kl_loss, mel_loss
from shared.modeling import TrainingOutput, VitsForTraining
from shared.modeling.model import sequence_mask, slice_frames

#: Samples of the slice that is decoded in training, as in original VITS.
SEGMENT_SAMPLES = 8192


def seed_everything(*key: int) -> None:
    """Seed torch's generators from a key, so that what follows depends on the key alone."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def align(log_likelihood: Tensor, token_lengths: Tensor, frame_lengths: Tensor) -> Tensor:
    """The alignment search as the model wants it: [B, F, T] → [B, T]."""
    durations = maximum_path(log_likelihood, token_lengths, frame_lengths)
    assert isinstance(durations, Tensor)  # noqa: S101 - a tensor in, a tensor out
    return durations


@dataclass(frozen=True)
class Seen:
    """A batch as the networks see it."""

    batch: Batch
    spectrogram: Tensor
    """[B, bins, F]."""
    mel: Tensor
    """[B, 80, F]."""

    @classmethod
    def of(cls, batch: Batch, settings: FeatureSettings) -> Seen:
        """Compute a batch's spectrograms where it is."""
        spectrogram = linear_spectrogram(batch.padded_waveform, settings)
        return cls(batch, spectrogram, log_mel(spectrogram, settings))

    def slices(self, starts: Tensor, width: int, settings: FeatureSettings) -> tuple[Tensor, Tensor]:
        """The recording where a slice was decoded: waveform [B, 1, W·hop] and log-mel [B, 80, W].

        Past a recording's end both are silence: neither what is reflected there, nor a log-mel of 0,
        which would be loud.
        """
        hop, padding = settings.hop_length, settings.padding
        waveform = self.batch.padded_waveform[
            :, None, padding : self.batch.padded_waveform.shape[1] - padding
        ]
        waveform = slice_frames(waveform, starts * hop, width * hop)
        mel = slice_frames(self.mel, starts, width)
        inside = sequence_mask(self.batch.frame_lengths - starts, width)[:, None]
        silence = log_mel(silent_spectrogram(settings).to(mel.device), settings)
        return waveform * inside.repeat_interleave(hop, dim=2), torch.where(inside, mel, silence)


class Steps:
    """The two kinds of training step, over networks and optimisers that are ready to go.

    Attributes:
        accelerator: Devices, precision, processes.
        generator: ``VitsForTraining``, wrapped or not.
        discriminator: ``Discriminator``, wrapped or not.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: TrainingConfig,
        settings: FeatureSettings,
        generator: nn.Module,
        generator_optimizer: torch.optim.Optimizer,
        discriminator: nn.Module | None = None,
        discriminator_optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.config = config
        self.settings = settings
        self.generator = generator
        self.generator_optimizer = generator_optimizer
        self.discriminator = discriminator
        self.discriminator_optimizer = discriminator_optimizer
        self.width = SEGMENT_SAMPLES // settings.hop_length

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The generator's and, in a joint stage, the discriminator's."""
        both = (self.generator_optimizer, self.discriminator_optimizer)
        return [optimizer for optimizer in both if optimizer is not None]

    def _forward(self, seen: Seen, key: Sequence[int]) -> TrainingOutput:
        """The generator's training forward, with the randomness of ``key``."""
        seed_everything(*key, self.accelerator.process_index)
        batch = seen.batch
        with self.accelerator.autocast():
            output: TrainingOutput = self.generator(
                batch.input_ids,
                batch.token_lengths,
                labels=seen.spectrogram,
                frame_lengths=batch.frame_lengths,
                speaker_id=batch.speaker_id,
                aligner=align,
                segment_frames=self.width,
            )
        return output

    def _reconstruction(self, seen: Seen, output: TrainingOutput) -> dict[str, Tensor]:
        """The losses that need no discriminator."""
        _, mel = seen.slices(output.slice_starts, self.width, self.settings)
        return {
            "mel": mel_loss(mel, log_mel_of(output.waveform[:, 0], self.settings)),
            "kl": kl_loss(
                output.flow_latents,
                output.posterior_log_std,
                output.prior_mean,
                output.prior_log_std,
                output.frame_mask,
            ),
            "duration": output.duration_loss.sum() / output.token_mask.sum(),
        }

    def _apply(self, optimizer: torch.optim.Optimizer, network: nn.Module) -> Tensor:
        """Clip, step, and leave no gradient behind; the gradient's norm before clipping."""
        limit = self.config.max_grad_norm or float("inf")
        norm = self.accelerator.clip_grad_norm_(
            [p for p in network.parameters() if p.grad is not None], limit
        )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert isinstance(norm, Tensor)  # noqa: S101 - None only under DeepSpeed, which is not used
        return norm

    def warm_up(self, seen: Sequence[Seen], step: int) -> dict[str, Tensor]:
        """First stage: only what is new in the generator learns, and no discriminator judges.

        The networks that are kept run as they will be used (dropout off): they are the teachers.

        Args:
            seen: The step's micro-batches.
            step: Keys the randomness.

        Returns:
            The losses, detached and still on the device.
        """
        totals: dict[str, Tensor] = {}
        for index, part in enumerate(seen):
            losses = self._reconstruction(part, self._forward(part, (self.config.seed, step, index)))
            self.accelerator.backward(self._weighted(losses) / len(seen))
            _accumulate(totals, losses, len(seen))
        totals["gradient_norm_generator"] = self._apply(self.generator_optimizer, self.generator)
        return totals

    def joint(self, seen: Sequence[Seen], step: int) -> dict[str, Tensor]:
        """Second stage: discriminator and generator take one step each.

        With several micro-batches the discriminator sees all of them first, through a generator without
        gradient; then the generator goes over them again with the same noise and slices. So both take
        exactly the step that one large batch would give, and no more than one micro-batch's graph is
        ever alive.

        Args:
            seen: The step's micro-batches.
            step: Keys the randomness.

        Returns:
            The losses, detached and still on the device.
        """
        assert self.discriminator is not None  # noqa: S101 - the loop gives one to every joint stage
        assert self.discriminator_optimizer is not None  # noqa: S101
        keys = [(self.config.seed, step, index) for index in range(len(seen))]
        totals: dict[str, Tensor] = {}
        output: TrainingOutput | None = None

        self.discriminator.requires_grad_(True)
        for part, key in zip(seen, keys, strict=True):
            with torch.set_grad_enabled(len(seen) == 1):  # one micro-batch: its graph serves both steps
                output = self._forward(part, key)
            loss = self._discriminate(part, output)
            self.accelerator.backward(self.config.weight_disc * loss / len(seen))
            _accumulate(totals, {"discriminator": loss}, len(seen))
        totals["gradient_norm_discriminator"] = self._apply(self.discriminator_optimizer, self.discriminator)

        # The generator's loss flows through the discriminator's activations but not into its parameters:
        # nothing of it can be left over for the discriminator's next step.
        self.discriminator.requires_grad_(False)
        for part, key in zip(seen, keys, strict=True):
            if len(seen) > 1 or output is None:
                output = self._forward(part, key)
            losses = self._reconstruction(part, output) | self._deceive(part, output)
            self.accelerator.backward(self._weighted(losses) / len(seen))
            _accumulate(totals, losses, len(seen))
        totals["gradient_norm_generator"] = self._apply(self.generator_optimizer, self.generator)
        return totals

    def _judge(self, waveform: Tensor) -> Any:
        assert self.discriminator is not None  # noqa: S101
        with self.accelerator.autocast():
            return self.discriminator(waveform)

    def _discriminate(self, seen: Seen, output: TrainingOutput) -> Tensor:
        """The discriminator's loss; one pass judges real and generated together."""
        real, _ = seen.slices(output.slice_starts, self.width, self.settings)
        judged = self._judge(torch.cat([real, output.waveform.detach()]))
        half = len(real)
        return discriminator_loss(
            [(scores[:half], []) for scores, _ in judged], [(scores[half:], []) for scores, _ in judged]
        )

    def _deceive(self, seen: Seen, output: TrainingOutput) -> dict[str, Tensor]:
        """The generator's losses before the discriminator."""
        real, _ = seen.slices(output.slice_starts, self.width, self.settings)
        with torch.no_grad():
            true = self._judge(real)
        generated = self._judge(output.waveform)
        return {"generator": adversarial_loss(generated), "feature_maps": feature_loss(true, generated)}

    def _weighted(self, losses: Mapping[str, Tensor]) -> Tensor:
        """What the generator minimises."""
        weights = {
            "mel": self.config.weight_mel,
            "kl": self.config.weight_kl,
            "duration": self.config.weight_duration,
            "generator": self.config.weight_gen,
            "feature_maps": self.config.weight_fmaps,
        }
        return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def _accumulate(totals: dict[str, Tensor], losses: Mapping[str, Tensor], parts: int) -> None:
    """Add one micro-batch's share to the step's losses."""
    for name, loss in losses.items():
        totals[name] = totals.get(name, torch.zeros_like(loss)) + loss.detach() / parts


@torch.no_grad()
def evaluate(
    model: VitsForTraining, batches: Sequence[Batch], settings: FeatureSettings, accelerator: Accelerator
) -> dict[str, float]:
    """Losses on held-out recordings, the same for the same model.

    Every recording is encoded without noise and decoded whole, so nothing is drawn for the mel loss; the
    duration loss draws its noise from a seed of its own, and the training's generator is left as it was.

    Returns:
        ``mel`` (mean absolute log-mel difference), ``kl`` (nats a frame), ``duration`` (per token).
    """
    model.train(False)
    sums = torch.zeros(3, 2, dtype=torch.float64)
    with torch.random.fork_rng():
        for index, batch in enumerate(batches):
            seed_everything(0, index)
            batch = batch.to(accelerator.device)
            seen = Seen.of(batch, settings)
            output = model.training_forward(
                batch.input_ids,
                batch.token_lengths,
                seen.spectrogram,
                batch.frame_lengths,
                aligner=align,
                speaker_id=batch.speaker_id,
                slice_starts=torch.zeros_like(batch.frame_lengths),
            )
            speaker = model.speaker_embedding(batch.speaker_id)
            latents, _ = model.posterior(seen.spectrogram, output.frame_mask, speaker)
            decoded = log_mel_of(model.decoder(latents * output.frame_mask, speaker)[:, 0], settings)
            frames, tokens = output.frame_mask.sum(), output.token_mask.sum()
            kl = kl_loss(
                output.flow_latents,
                output.posterior_log_std,
                output.prior_mean,
                output.prior_log_std,
                output.frame_mask,
            )
            mel = mel_loss(seen.mel, decoded, output.frame_mask)
            sums += torch.tensor(
                [[mel * frames, frames], [kl * frames, frames], [output.duration_loss.sum(), tokens]]
            ).double()
    means = (sums[:, 0] / sums[:, 1]).tolist()
    return dict(zip(("mel", "kl", "duration"), means, strict=True))


def new_discriminator(seed: int) -> Discriminator:
    """A fresh discriminator that depends on the seed alone."""
    with torch.random.fork_rng():
        seed_everything(seed, -1)
        return Discriminator()
