"""What one training step computes. The loop sequences; the steps here compute.

Nothing that a step draws depends on what was drawn before: a recording's noise and slice are keyed by (seed,
step, recording), dropout by (seed, step, micro-batch, process). So a resumed run draws what the
uninterrupted one would have drawn, two passes over the same micro-batch draw the same, and a batch draws the
same whole, in micro-batches, or shared among processes.

Every loss is a mean over the recordings, frames or tokens of the whole step, whichever micro-batch or process they
are in; gradients are summed over both. So all these divisions of a batch take the same step.

Shapes: B batch, T tokens, F frames, S samples, D latent channels, W frames of a slice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import record_function

from monotonic_align import LikelihoodError, maximum_path
from services.training.config import Stage, TrainingConfig
from services.training.dataset import Batch
from services.training.discriminator import PERIODS, Discriminator
from services.training.features import (
    FeatureSettings,
    linear_spectrogram,
    log_mel,
    log_mel_of,
    silence,
)
from services.training.layout import weights_as_they_are
from services.training.losses import adversarial_loss, discriminator_loss, feature_loss, kl_loss, mel_loss
from services.training.reducing import Reducer
from shared.errors import DivergenceError
from shared.modeling import PriorOutput, TrainingOutput, VitsForTraining
from shared.modeling.model import Aligner, at_least_float32, sequence_mask, slice_frames

if TYPE_CHECKING:
    from services.training.latents import Latents


def key_to_seed(*key: int) -> int:
    """A seed for a random generator that depends on every part of the key."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def seed_everything(*key: int) -> None:
    """Seed torch's generators from a key, so that what follows depends on the key alone."""
    torch.manual_seed(key_to_seed(*key))


@record_function("vits:alignment")
def align(log_likelihood: Tensor, token_lengths: Tensor, frame_lengths: Tensor) -> Tensor:
    """The alignment search as the model wants it: [B, F, T] → [B, T]; the processor does it, for any device.

    Raises:
        DivergenceError: The likelihood is not a number.
    """
    try:
        durations = maximum_path(log_likelihood.float(), token_lengths, frame_lengths)
    except LikelihoodError as error:
        raise DivergenceError(
            "Recordings cannot be aligned with their texts: what the model computes is not a number. See whether its "
            "weights are whole, and look for a broken recording with 'vits data inspect'.",
            [str(error).partition("\n")[0]],
        ) from error
    assert isinstance(durations, Tensor)  # noqa: S101 - a tensor in, a tensor out
    return durations


def to_device(made: Tensor, device: torch.device) -> Tensor:
    """Send what the host has made. From page-locked memory, as of any other each copy to a GPU is waited for."""
    return (made.pin_memory() if device.type == "cuda" else made).to(device, non_blocking=True)


def widest(device: torch.device) -> torch.dtype:
    """The type that sums are kept in: float64, or float32 on Apple's GPUs, which refuse it."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True)
class Seen:
    """A batch as the networks see it."""

    host: Batch
    """The batch as it was loaded; reading its numbers never waits for the device."""
    batch: Batch
    """The same on the device."""
    settings: FeatureSettings
    """How the model sees audio."""

    @classmethod
    @record_function("vits:spectrograms")
    def of(cls, batch: Batch, settings: FeatureSettings, device: torch.device | None = None) -> Seen:
        """Bring a batch to the device, where its spectrograms are computed when they are wanted."""
        return cls(batch, batch if device is None else batch.to(device), settings)

    @cached_property
    def spectrogram(self) -> Tensor:
        """[B, bins, F]."""
        return linear_spectrogram(self.batch.padded_waveform, self.settings)

    @cached_property
    def mel(self) -> Tensor:
        """[B, 80, F]."""
        return log_mel(self.spectrogram, self.settings)

    def align(self, log_likelihood: Tensor, *_lengths: Tensor) -> Tensor:
        """The alignment search: [B, F, T] → [B, T]. It waits for the likelihood alone, as the host knows the lengths.

        Raises:
            DivergenceError: The likelihood is not a number.
        """
        return align(log_likelihood, self.host.token_lengths.int(), self.host.frame_lengths.int())

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
        silent = silence(settings, mel.device, mel.dtype)
        return waveform * inside.repeat_interleave(hop, dim=2), torch.where(inside, mel, silent)


@dataclass(frozen=True)
class Draws:
    """What chance decides for one micro-batch, dropout apart."""

    posterior_noise: Tensor
    """[B, D, F] standard normal, zero past each recording's end."""
    duration_noise: Tensor
    """[B, 2, T] standard normal, zero past each text's end."""
    slice_starts: Tensor
    """[B] int64, the first frame of the slice that is decoded."""


@dataclass(frozen=True)
class Shares:
    """How much of the whole step one micro-batch is: what its mean losses are multiplied with."""

    recordings: Tensor
    frames: Tensor
    tokens: Tensor

    def weigh(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Losses that add up, over micro-batches and processes, to the step's means."""
        by = {"kl": self.frames, "duration": self.tokens}
        return {name: loss * by.get(name, self.recordings) for name, loss in losses.items()}


class Steps:
    """The kinds of training step, over networks and optimisers that are ready to go.

    The networks are plain modules on the accelerator's device; gradients are summed over processes here, once a
    step and network.

    Attributes:
        accelerator: Devices, precision, processes.
        generator: ``VitsForTraining``.
        discriminator: ``Discriminator``, in a joint stage.
        optimizers: The generator's and, in a joint stage, the discriminator's.
        stage: Which stage of the run this is.
        first_step: Where the stage begins, for what changes in its course.
        latents: The recordings' latents, in a text stage.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: TrainingConfig,
        settings: FeatureSettings,
        generator: VitsForTraining,
        generator_optimizer: torch.optim.Optimizer,
        discriminator: Discriminator | None = None,
        discriminator_optimizer: torch.optim.Optimizer | None = None,
        *,
        stage: Stage = "joint",
        first_step: int = 0,
        latents: Latents | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.config = config
        self.settings = settings
        self.generator = generator
        self.generator_optimizer = generator_optimizer
        self.discriminator = discriminator
        self.discriminator_optimizer = discriminator_optimizer
        self.stage = stage
        self.first_step = first_step
        self._reducers = self._make_reducers() if accelerator.num_processes > 1 else {}
        self.latents = latents
        self.width = settings.frames(config.segment_size)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The generator's and, in a joint stage, the discriminator's."""
        both = (self.generator_optimizer, self.discriminator_optimizer)
        return [optimizer for optimizer in both if optimizer is not None]

    def take(self, seen: Sequence[Seen], step: int) -> dict[str, Tensor]:
        """The step of whatever stage this is."""
        if self.stage == "joint":
            return self.joint(seen, step)
        losses = {"new_modules": self._unjudged, "reconstruction": self._repeated, "text": self._text}
        return self.alone(seen, step, losses[self.stage])

    def alone(
        self, seen: Sequence[Seen], step: int, losses_of: Callable[[Seen, int, int], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """A step without a discriminator: the generator learns, or some of it.

        The networks that are kept run as they will be used (dropout off): they are the teachers.

        Args:
            seen: The step's micro-batches.
            step: Keys the randomness.
            losses_of: The stage's losses of a micro-batch, a step, and the micro-batch's place in it.

        Returns:
            The losses, detached and still on the device: this process's share of the step's means.
        """
        totals: dict[str, Tensor] = {}
        for index, (part, shares) in enumerate(zip(seen, self._shares(seen), strict=True)):
            losses = shares.weigh(losses_of(part, step, index))
            with self._overlapped(self.generator, last=index == len(seen) - 1):
                self._scaled(self._weighted(losses, step)).backward()
            _accumulate(totals, losses)
        totals["gradient_norm_generator"] = self._apply(
            self.generator_optimizer, self.generator, self.config.max_grad_norm
        )
        return totals

    def joint(self, seen: Sequence[Seen], step: int) -> dict[str, Tensor]:
        """Second stage: discriminator and generator take one step each.

        With several micro-batches the discriminator sees all of them first, through a generator without
        gradient; then the generator goes over them again with the same noise and slices. So both take
        exactly the step that one large batch would give, and no more than one micro-batch's graph is
        ever alive.

        Before ``discriminator_start_step`` of the stage there is no discriminator, and in the
        ``frozen_discriminator_steps`` from there on it judges and does not learn.

        Args:
            seen: The step's micro-batches.
            step: Keys the randomness.

        Returns:
            The losses, detached and still on the device: this process's share of the step's means.
        """
        judged = step - self.first_step - self.config.discriminator_start_step
        if judged < 0:
            return self.alone(seen, step, self._unjudged)
        assert self.discriminator is not None  # noqa: S101 - the loop gives one to every joint stage
        assert self.discriminator_optimizer is not None  # noqa: S101
        parts = list(zip(seen, self._shares(seen), strict=True))
        totals: dict[str, Tensor] = {}
        output: TrainingOutput | None = None

        if judged >= self.config.frozen_discriminator_steps:
            self.discriminator.requires_grad_(True)
            for index, (part, shares) in enumerate(parts):
                with torch.set_grad_enabled(len(parts) == 1):  # one micro-batch: its graph serves both steps
                    output = self._forward(part, step, index)
                with self._overlapped(self.discriminator, last=index == len(parts) - 1):
                    _accumulate(totals, self._teach_discriminator(part, output, shares))
            limit = self.config.discriminator_max_grad_norm
            totals["gradient_norm_discriminator"] = self._apply(
                self.discriminator_optimizer,
                self.discriminator,
                self.config.max_grad_norm if limit is None else limit,
            )

        # The generator's loss flows through the discriminator's activations but not into its parameters:
        # nothing of it can be left over for the discriminator's next step.
        self.discriminator.requires_grad_(False)
        for index, (part, shares) in enumerate(parts):
            if len(parts) > 1 or output is None:
                output = self._forward(part, step, index)
            losses = shares.weigh(self._reconstruction(part, output))
            opinion, pull = self._deceive(part, output, shares, step)
            # What the discriminator's networks think has been taken back to the waveform already.
            ends: list[tuple[Tensor, Tensor | None]] = [(self._scaled(self._weighted(losses, step)), None)]
            if output.waveform.requires_grad:  # something that made it learns
                ends.append((output.waveform, pull.to(output.waveform)))
            with self._overlapped(self.generator, last=index == len(parts) - 1):
                torch.autograd.backward([end for end, _ in ends], [gradient for _, gradient in ends])
            _accumulate(totals, losses | opinion)
            output = None
        totals["gradient_norm_generator"] = self._apply(
            self.generator_optimizer, self.generator, self.config.max_grad_norm
        )
        return totals

    # -- Its parts -----------------------------------------------------------------------------------

    def draws(self, part: Seen, step: int) -> Draws:
        """What chance decides for a micro-batch; each recording's share depends on the recording and the step alone."""
        batch = part.host
        kind = self.generator.dtype
        channels, room = self.generator.config.flow_size, batch.frame_lengths - self.width + 1
        posterior = torch.zeros(len(batch.ids), int(batch.frame_lengths.max()), channels, dtype=kind)
        duration = torch.zeros(len(batch.ids), batch.input_ids.shape[1], 2, dtype=kind)
        starts = torch.zeros(len(batch.ids), dtype=torch.long)
        for row, index in enumerate(batch.index.tolist()):
            source = torch.Generator().manual_seed(key_to_seed(self.config.seed, step, index))
            starts[row] = (torch.rand((), generator=source) * room[row].clamp_min(1)).long()
            for noise, length in ((posterior, batch.frame_lengths), (duration, batch.token_lengths)):
                noise[row, : length[row]] = torch.randn(
                    int(length[row]), noise.shape[2], dtype=kind, generator=source
                )
        device = part.batch.padded_waveform.device
        return Draws(
            to_device(posterior.transpose(1, 2), device),
            to_device(duration.transpose(1, 2), device),
            to_device(starts, device),
        )

    def _shares(self, seen: Sequence[Seen]) -> list[Shares]:
        """What part of the whole step each micro-batch is, over all processes."""
        sizes = torch.tensor(
            [
                [len(part.host.ids), int(part.host.frame_lengths.sum()), int(part.host.token_lengths.sum())]
                for part in seen
            ],
            dtype=torch.float64,
        )
        totals, device = sizes.sum(0), self.accelerator.device
        if self.accelerator.num_processes > 1:
            on_device = to_device(totals.to(widest(device)), device)
            torch.distributed.all_reduce(on_device)
            shares = (to_device(sizes.to(on_device.dtype), device) / on_device).float()
        else:
            shares = to_device((sizes / totals).to(self.generator.dtype), device)
        return [Shares(*row) for row in shares]

    def _forward(self, part: Seen, step: int, index: int) -> TrainingOutput:
        """The generator's training forward, with the step's randomness."""
        draws = self.draws(part, step)
        seed_everything(self.config.seed, step, index, self.accelerator.process_index)  # for dropout
        batch = part.batch
        with self.accelerator.autocast():
            output: TrainingOutput = self.generator(
                batch.input_ids,
                batch.token_lengths,
                labels=part.spectrogram,
                frame_lengths=batch.frame_lengths,
                speaker_id=batch.speaker_id,
                aligner=self._aligner(part, step),
                segment_frames=self.width,
                slice_starts=draws.slice_starts,
                posterior_noise=draws.posterior_noise,
                duration_noise=draws.duration_noise,
            )
        return output

    def _prior(self, part: Seen, step: int, index: int) -> PriorOutput:
        """The generator's forward from known latents on, with the step's randomness."""
        assert self.latents is not None  # noqa: S101 - the loop gives them to every text stage
        draws, batch = self.draws(part, step), part.batch
        seed_everything(self.config.seed, step, index, self.accelerator.process_index)  # for dropout
        with self.accelerator.autocast():
            return self.generator.prior_forward(
                batch.input_ids,
                batch.token_lengths,
                *self.latents.of(part),
                batch.frame_lengths,
                speaker_id=batch.speaker_id,
                aligner=part.align,
                posterior_noise=draws.posterior_noise,
                duration_noise=draws.duration_noise,
            )

    def _unjudged(self, part: Seen, step: int, index: int) -> dict[str, Tensor]:
        """The losses that need no discriminator: the first stage's, and joint training's before there is one."""
        return self._reconstruction(part, self._forward(part, step, index))

    def _repeated(self, part: Seen, step: int, index: int) -> dict[str, Tensor]:
        """The reconstruction stage's losses: posterior encoder and decoder learn to say again what was recorded.

        A variational autoencoder whose prior is the standard normal (Kingma and Welling, 2014,
        https://arxiv.org/abs/1312.6114). Of each recording only the slice that is decoded is encoded, with as many
        frames around it as the posterior encoder sees. Nothing is dropped out, so that ``index`` makes no difference.
        """
        draws, batch, reach = self.draws(part, step), part.batch, self.generator.posterior_reach
        width = self.width + 2 * reach
        starts = draws.slice_starts - reach  # in what lies around a recording
        inside = sequence_mask(batch.frame_lengths - starts, width) & ~sequence_mask(-starts, width)
        padded = functional.pad(part.spectrogram, (reach, 0))
        spectrogram = slice_frames(padded, draws.slice_starts, width)
        speaker = self.generator.speaker_embedding(batch.speaker_id)
        with self.accelerator.autocast():
            found = self.generator.posterior(spectrogram, inside[:, None].to(spectrogram.dtype), speaker)
            mean, log_std = (values[:, :, reach : reach + self.width] for values in found)
            noise = slice_frames(draws.posterior_noise, draws.slice_starts, self.width)
            waveform = self.generator.decoder(mean + noise * torch.exp(log_std), speaker)
        _, mel = part.slices(draws.slice_starts, self.width, self.settings)
        there = inside[:, None, reach : reach + self.width]
        divergence = 0.5 * (mean**2 + torch.exp(2 * log_std) - 1) - log_std
        return {
            "mel": mel_loss(mel, log_mel_of(at_least_float32(waveform)[:, 0], self.settings)),
            "kl": (divergence * there).sum() / there.sum(),
        }

    def _text(self, part: Seen, step: int, index: int) -> dict[str, Tensor]:
        """The text stage's losses: text encoder, flow and duration predictor learn to expect the recordings' latents.

        Posterior encoder and decoder stay as they are, so that the latents are known beforehand and nothing is
        decoded: what is minimised is the divergence of posterior and prior, and the duration loss. With a fixed
        posterior that is maximum likelihood, as of Glow-TTS (Kim et al., 2020, https://arxiv.org/abs/2005.11129).
        """
        return self._prior_losses(self._prior(part, step, index))

    def _aligner(self, part: Seen, step: int) -> Aligner:
        """The alignment search, on a likelihood with ``alignment_noise`` (VITS2; Kong et al., 2023, section 2.3).

        The noise is in standard deviations of each recording's own likelihood. It depends on the recording and the step
        alone, and nothing else is drawn from its generator.
        """
        faded = 1 - (step - self.first_step) / self.config.alignment_noise_steps
        scale = self.config.alignment_noise * max(0.0, faded)
        if not scale or self.stage != "joint":
            return part.align
        batch = part.host
        noise = torch.zeros(len(batch.ids), int(batch.frame_lengths.max()), batch.input_ids.shape[1])
        lengths = zip(batch.frame_lengths.tolist(), batch.token_lengths.tolist(), strict=True)
        for row, (index, (frames, tokens)) in enumerate(zip(batch.index.tolist(), lengths, strict=True)):
            source = torch.Generator().manual_seed(key_to_seed(self.config.seed, step, index, 1))
            noise[row, :frames, :tokens] = torch.randn(frames, tokens, generator=source)
        there = to_device(noise, part.batch.padded_waveform.device)

        def search(log_likelihood: Tensor, token_lengths: Tensor, frame_lengths: Tensor) -> Tensor:
            frames, tokens = log_likelihood.shape[1:]
            inside = (
                sequence_mask(frame_lengths, frames)[:, :, None]
                & sequence_mask(token_lengths, tokens)[:, None]
            )
            count = inside.sum((1, 2), keepdim=True)
            values = log_likelihood * inside
            mean = values.sum((1, 2), keepdim=True) / count
            variance = ((values - mean) ** 2 * inside).sum((1, 2), keepdim=True) / count
            return part.align(log_likelihood + scale * variance.sqrt() * there)

        return search

    @record_function("vits:losses")
    def _reconstruction(self, part: Seen, output: TrainingOutput) -> dict[str, Tensor]:
        """The losses that need no discriminator."""
        _, mel = part.slices(output.slice_starts, self.width, self.settings)
        loss = mel_loss(mel, log_mel_of(output.waveform[:, 0], self.settings))
        return {"mel": loss} | self._prior_losses(output)

    def _prior_losses(self, output: PriorOutput) -> dict[str, Tensor]:
        """The losses that need nothing decoded."""
        return {
            "kl": kl_loss(
                output.flow_latents,
                output.posterior_log_std,
                output.prior_mean,
                output.prior_log_std,
                output.frame_mask,
            ),
            "duration": output.duration_loss.sum() / output.token_mask.sum(),
        }

    def _judge(self, network: nn.Module, waveform: Tensor) -> Any:
        with self.accelerator.autocast():
            return network(waveform)

    def _teach_discriminator(self, part: Seen, output: TrainingOutput, shares: Shares) -> dict[str, Tensor]:
        """The discriminator's gradients: network by network, so that one network's activations are alive at a time.

        One pass judges real and generated together.
        """
        assert self.discriminator is not None  # noqa: S101
        real, _ = part.slices(output.slice_starts, self.width, self.settings)
        both, half = torch.cat([real, output.waveform.detach()]), len(real)
        total = torch.zeros((), device=real.device)
        for network in self.discriminator.discriminators:
            scores, _ = self._judge(network, both)
            loss = discriminator_loss([(scores[:half], [])], [(scores[half:], [])]) * shares.recordings
            self._scaled(self.config.weight_disc * loss).backward()
            total = total + loss.detach()
        return {"discriminator": total}

    def _deceive(
        self, part: Seen, output: TrainingOutput, shares: Shares, step: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """What the discriminator makes of the generated slices, and its (scaled) gradient there: [B, 1, W·hop].

        Real features are computed once and without gradient; again, one network is alive at a time.
        """
        assert self.discriminator is not None  # noqa: S101
        real, _ = part.slices(output.slice_starts, self.width, self.settings)
        generated = output.waveform.detach().requires_grad_()
        totals: dict[str, Tensor] = {}
        for network in self.discriminator.discriminators:
            with weights_as_they_are():  # for both passes
                with torch.no_grad():
                    true = self._judge(network, real)
                judged = self._judge(network, generated)
            losses = shares.weigh(
                {"generator": adversarial_loss([judged]), "feature_maps": feature_loss([true], [judged])}
            )
            self._scaled(self._weighted(losses, step)).backward()
            _accumulate(totals, losses)
        assert generated.grad is not None  # noqa: S101 - every network has reached it
        return totals, generated.grad

    def _weighted(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        """What the generator minimises."""
        divergence, own = self.config.weight_kl, self.config.new_modules_weight_kl
        if self.stage == "new_modules" and own is not None:
            divergence = own
        elif self.stage == "reconstruction":
            divergence = self.config.reconstruction_stage_weight_kl
        elif self.stage == "joint" and self.config.kl_annealing_steps:
            divergence *= min(1.0, (step - self.first_step + 1) / self.config.kl_annealing_steps)
        weights = {
            "mel": self.config.weight_mel,
            "kl": divergence,
            "duration": self.config.weight_duration,
            "generator": self.config.weight_gen,
            "feature_maps": self.config.weight_fmaps,
        }
        return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()

    def _make_reducers(self) -> dict[nn.Module, Reducer]:
        """What sums the networks' gradients, in the order in which backward passes come to their parts."""
        generator = self.generator
        order = [generator.decoder, generator.duration_predictor, generator.flow, generator.posterior_encoder]
        reducers: dict[nn.Module, Reducer] = {generator: Reducer(generator, [*order, generator.text_encoder])}
        if self.discriminator is not None:  # its networks take their passes one after the other
            reducers[self.discriminator] = Reducer(
                self.discriminator, list(self.discriminator.discriminators)
            )
        return reducers

    def _overlapped(self, network: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Sums over processes begin inside, where this is the step's last micro-batch."""
        return self._reducers[network].overlapped() if last and self._reducers else nullcontext()

    def _scaled(self, loss: Tensor) -> Tensor:
        """The loss as float16 wants it: large enough for its gradients not to vanish."""
        scaler = self.accelerator.scaler
        return loss if scaler is None else scaler.scale(loss)

    @record_function("vits:clipping and optimisers")
    def _apply(self, optimizer: torch.optim.Optimizer, network: nn.Module, limit: float) -> Tensor:
        """Sum gradients over processes, clip, step, and leave none behind; their norm before clipping."""
        if self._reducers:
            self._reducers[network].finish()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        scaler = self.accelerator.scaler
        if scaler is not None:
            scaler.unscale_(optimizer)
        norm = nn.utils.get_total_norm(gradients)
        if limit:
            nn.utils.clip_grads_with_norm_(list(network.parameters()), limit, norm)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return norm


def _accumulate(totals: dict[str, Tensor], losses: Mapping[str, Tensor]) -> None:
    """Add one micro-batch's share to the step's losses."""
    for name, loss in losses.items():
        totals[name] = totals.get(name, torch.zeros_like(loss)) + loss.detach()


def new_discriminator(
    seed: int, periods: Sequence[int] = PERIODS, resolutions: Sequence[tuple[int, int, int]] = ()
) -> Discriminator:
    """A fresh discriminator that depends on the seed alone."""
    with torch.random.fork_rng():
        seed_everything(seed, -1)
        return Discriminator(periods, resolutions)
