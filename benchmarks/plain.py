"""One VITS training step, plainly: the formulas of `finetune-hf-vits`, and nothing done to make them fast.

It is what our training is held against, twice: in float64 for its mathematics
(`tests/integration/test_plain_parity.py`), and on the clock and the scales for its cost (`benchmarks.training`).
So it keeps what that trainer spends: a dense alignment path and matrix products to expand the priors by it, four
forwards of the discriminator in every step, real features with gradient, weight norm wherever that trainer has it,
the discriminator's parameters collecting gradient in the generator's step, one precision throughout.

Three things of that trainer are not repeated. Gradients that its generator step leaves in the discriminator are
cleared before they are used (they make its second discriminator step wrong, and clearing them is free). A number
that is not random is never drawn inside: noise and slices are arguments. And nothing is scheduled or logged.

The modules are those of stock `transformers`, used for what they compute correctly; the training direction of the
stochastic duration predictor is written out here, because theirs flips the channels once too often.

Shapes: B batch, T tokens, F frames, S samples, D latent channels, W frames of a slice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from transformers import VitsModel
from transformers.audio_utils import mel_filter_bank

LOG_2PI = math.log(2 * math.pi)
MEL_BINS = 80
SEGMENT_SAMPLES = 8192


@dataclass(frozen=True)
class Analysis:
    """How recordings are turned into spectrograms."""

    sampling_rate: int = 16000
    """Hz."""
    hop_length: int = 256
    n_fft: int = 1024

    @property
    def segment_frames(self) -> int:
        """Frames of the slice that is decoded."""
        return SEGMENT_SAMPLES // self.hop_length


@dataclass(frozen=True)
class Weights:
    """What each loss counts."""

    duration: float = 1.0
    kl: float = 1.5
    mel: float = 35.0
    generator: float = 1.0
    feature_maps: float = 1.0
    discriminator: float = 3.0


@dataclass(frozen=True)
class Batch:
    """A padded batch whose spectrograms were computed before training."""

    input_ids: Tensor
    """[B, T] int64."""
    token_mask: Tensor
    """[B, T], 1 where there is a token."""
    waveform: Tensor
    """[B, 1, S]."""
    spectrogram: Tensor
    """[B, n_fft / 2 + 1, F]."""
    mel: Tensor
    """[B, 80, F]."""
    frame_mask: Tensor
    """[B, F]."""
    speaker_id: Tensor | None
    """[B] int64."""


@dataclass(frozen=True)
class Noise:
    """Everything random in a step."""

    posterior: Tensor
    """[B, D, F] standard normal."""
    duration: Tensor
    """[B, 2, T] standard normal."""
    slice_starts: Tensor
    """[B] int64, the first frame of each decoded slice; the slice ends within its recording."""


@dataclass(frozen=True)
class Forward:
    """What the training forward yields."""

    waveform: Tensor
    """[B, 1, W·hop]."""
    path: Tensor
    """[B, F, T] 1 where a frame is aligned to a token."""
    duration_loss: Tensor
    """[B], already divided by the number of the batch's tokens."""
    posterior_log_std: Tensor
    """[B, D, F]."""
    flow_latents: Tensor
    """[B, D, F]."""
    prior_mean: Tensor
    """[B, D, F]."""
    prior_log_std: Tensor
    """[B, D, F]."""
    frame_mask: Tensor
    """[B, 1, F]."""


# --- Features --------------------------------------------------------------------------------------


def spectrograms(waveform: Tensor, analysis: Analysis) -> tuple[Tensor, Tensor]:
    """Linear magnitudes [B, n_fft / 2 + 1, F] and log-mel [B, 80, F] of a waveform [B, S]."""
    edge = (analysis.n_fft - analysis.hop_length) // 2
    padded = functional.pad(waveform, (edge, edge), mode="reflect")
    window = torch.hann_window(analysis.n_fft).to(
        waveform
    )  # like the filters, rounded to float32 in any precision
    spectrum = torch.stft(
        padded, analysis.n_fft, analysis.hop_length, window=window, center=False, return_complex=True
    )
    magnitudes = (torch.view_as_real(spectrum).pow(2).sum(-1) + 1e-6).sqrt()
    filters = mel_filter_bank(
        num_frequency_bins=analysis.n_fft // 2 + 1,
        num_mel_filters=MEL_BINS,
        min_frequency=0.0,
        max_frequency=analysis.sampling_rate // 2,
        sampling_rate=analysis.sampling_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    mel = torch.from_numpy(filters.T).float().to(waveform) @ magnitudes
    return magnitudes, mel.clamp(min=1e-5).log()


def collate(
    waveforms: Sequence[Tensor],
    tokens: Sequence[Sequence[int]],
    analysis: Analysis,
    speaker_id: Tensor | None = None,
) -> Batch:
    """Analyse each recording [S] alone, then pad everything with zeros, tokens included."""
    frames = [len(waveform) // analysis.hop_length for waveform in waveforms]
    longest, most = max(frames), max(map(len, tokens))
    count, dtype = len(waveforms), waveforms[0].dtype
    batch = Batch(
        input_ids=torch.zeros(count, most, dtype=torch.long),
        token_mask=torch.zeros(count, most, dtype=dtype),
        waveform=torch.zeros(count, 1, longest * analysis.hop_length, dtype=dtype),
        spectrogram=torch.zeros(count, analysis.n_fft // 2 + 1, longest, dtype=dtype),
        mel=torch.zeros(count, MEL_BINS, longest, dtype=dtype),
        frame_mask=torch.zeros(count, longest, dtype=dtype),
        speaker_id=speaker_id,
    )
    for row, (waveform, ids) in enumerate(zip(waveforms, tokens, strict=True)):
        magnitudes, mel = spectrograms(waveform[None], analysis)
        batch.input_ids[row, : len(ids)] = torch.tensor(ids)
        batch.token_mask[row, : len(ids)] = 1
        samples = frames[row] * analysis.hop_length
        batch.waveform[row, 0, :samples] = waveform[:samples]
        batch.spectrogram[row, :, : frames[row]] = magnitudes[0]
        batch.mel[row, :, : frames[row]] = mel[0]
        batch.frame_mask[row, : frames[row]] = 1
    return batch


def cut(values: Tensor, starts: Tensor, width: int) -> Tensor:
    """[B, C, F] → [B, C, width], each item from its own start."""
    return torch.stack(
        [row[:, start : start + width] for row, start in zip(values, starts.tolist(), strict=True)]
    )


# --- The generator ---------------------------------------------------------------------------------


def apply_weight_norm(model: VitsModel) -> None:
    """Weight norm wherever that trainer has it: the decoder and the flow's outer convolutions too.

    The WaveNets of flow and posterior encoder have it from the start.
    """
    generator = cast("Any", model)
    generator.decoder.apply_weight_norm()
    for coupling in generator.flow.flows:
        weight_norm(coupling.conv_pre)
        weight_norm(coupling.conv_post)


def dense_path(scores: Tensor, mask: Tensor) -> Tensor:
    """The most likely monotonic path as a matrix, by dynamic programming in float32 on the host.

    Args:
        scores: [B, F, T] log-likelihoods.
        mask: [B, F, T].

    Returns:
        [B, F, T], ones and zeros, of the scores' dtype.
    """
    scores_BFT = scores.detach().cpu().numpy().astype(np.float32)
    path_BFT = np.zeros_like(scores_BFT)
    for item in range(len(scores_BFT)):
        frames, tokens = int(mask[item, :, 0].sum()), int(mask[item, 0].sum())
        best_FT = np.full((frames, tokens + 1), -np.inf, np.float32)  # column 0: before the first token
        best_FT[0, 1] = scores_BFT[item, 0, 0]
        for frame in range(1, frames):
            stay, move = best_FT[frame - 1, 1:], best_FT[frame - 1, :-1]
            best_FT[frame, 1:] = np.maximum(stay, move) + scores_BFT[item, frame, :tokens]
        token = tokens
        for frame in range(frames - 1, -1, -1):
            path_BFT[item, frame, token - 1] = 1
            if frame and best_FT[frame - 1, token] < best_FT[frame - 1, token - 1]:
                token -= 1
    return torch.from_numpy(path_BFT).to(scores)


def _through(
    flows: Sequence[nn.Module], latents: Tensor, mask: Tensor, given: Tensor
) -> tuple[Tensor, Tensor]:
    """The affine flow, then each spline flow and a swap of the two channels; with log|det| [B]."""
    affine, *splines = flows
    latents, logdet = affine(latents, mask, global_conditioning=given)
    for spline in splines:
        latents, change = spline(latents, mask, global_conditioning=given)
        latents, logdet = latents.flip(1), logdet + change
    return latents, logdet


def _normal_nll(values: Tensor, mask: Tensor) -> Tensor:
    """[B], −log of the standard normal density, summed where the mask is 1."""
    return (0.5 * (LOG_2PI + values.square()) * mask).sum((1, 2))


def stochastic_duration_bound(
    predictor: Any, hidden: Tensor, mask: Tensor, durations: Tensor, speaker: Tensor | None, noise: Tensor
) -> Tensor:
    """[B] nats: the variational bound of VITS, equation 7, with both flows written out.

    `hidden` [B, D, T], `mask` [B, 1, T], `durations` [B, 1, T], `speaker` [B, E, 1], `noise` [B, 2, T].
    """
    text = predictor.conv_pre(hidden.detach())
    if speaker is not None:
        text = text + predictor.cond(speaker.detach())
    text = predictor.conv_proj(predictor.conv_dds(text, mask)) * mask
    spoken = predictor.post_conv_dds(predictor.post_conv_pre(durations), mask)
    spoken = predictor.post_conv_proj(spoken) * mask

    noise = noise * mask
    drawn, logdet_q = _through(list(predictor.post_flows), noise, mask, text + spoken)
    u, v = drawn[:, :1], drawn[:, 1:]
    logdet_q = logdet_q + ((functional.logsigmoid(u) + functional.logsigmoid(-u)) * mask).sum((1, 2))
    log_q = -_normal_nll(noise, mask) - logdet_q

    remaining = ((durations - torch.sigmoid(u)) * mask).clamp_min(1e-5).log() * mask
    latents, logdet_p = _through(list(predictor.flows), torch.cat([remaining, v], 1), mask, text)
    nll = _normal_nll(latents, mask) - (logdet_p - remaining.sum((1, 2)))
    return nll + log_q


def forward(model: VitsModel, batch: Batch, noise: Noise, analysis: Analysis) -> Forward:
    """The training forward."""
    generator = cast("Any", model)
    token_mask, frame_mask = batch.token_mask[:, None], batch.frame_mask[:, None]
    speaker = None
    if generator.config.num_speakers > 1 and batch.speaker_id is not None:
        speaker = generator.embed_speaker(batch.speaker_id).unsqueeze(-1)
    text = generator.text_encoder(
        input_ids=batch.input_ids,
        padding_mask=token_mask.transpose(1, 2),
        attention_mask=batch.token_mask,
        return_dict=True,
    )
    hidden = text.last_hidden_state.transpose(1, 2)
    mean, log_std = text.prior_means.transpose(1, 2), text.prior_log_variances.transpose(1, 2)

    encoder = generator.posterior_encoder
    encoded = encoder.wavenet(encoder.conv_pre(batch.spectrogram) * frame_mask, frame_mask, speaker)
    posterior_mean, posterior_log_std = (encoder.conv_proj(encoded) * frame_mask).chunk(2, 1)
    latents = (posterior_mean + noise.posterior * posterior_log_std.exp()) * frame_mask
    flow_latents = generator.flow(latents, frame_mask, speaker)

    with torch.no_grad():  # log N(z; m, σ), its square multiplied out
        precision = (-2 * log_std).exp()
        scores = (-0.5 * LOG_2PI - log_std).sum(1, keepdim=True)
        scores = scores + (-0.5 * flow_latents.square()).transpose(1, 2) @ precision
        scores = scores + flow_latents.transpose(1, 2) @ (mean * precision)
        scores = scores - (0.5 * mean.square() * precision).sum(1, keepdim=True)
        path = dense_path(scores, frame_mask.transpose(1, 2) * token_mask)
    durations = path.sum(1, keepdim=True)

    if generator.config.use_stochastic_duration_prediction:
        loss = stochastic_duration_bound(
            generator.duration_predictor, hidden, token_mask, durations, speaker, noise.duration
        )
    else:
        predicted = generator.duration_predictor(hidden, token_mask, speaker)
        loss = (predicted - (durations + 1e-6).log() * token_mask).square().sum((1, 2))

    slices = cut(latents, noise.slice_starts, analysis.segment_frames)
    return Forward(
        waveform=generator.decoder(slices, speaker),
        path=path,
        duration_loss=loss / token_mask.sum(),
        posterior_log_std=posterior_log_std,
        flow_latents=flow_latents,
        prior_mean=(path @ mean.transpose(1, 2)).transpose(1, 2),
        prior_log_std=(path @ log_std.transpose(1, 2)).transpose(1, 2),
        frame_mask=frame_mask,
    )


# --- The discriminator -----------------------------------------------------------------------------


class _Judge(nn.Module):
    """One network: leaky convolutions, all of whose outputs are features, the last the score."""

    period: int | None

    def __init__(self, convolutions: Iterable[nn.Module], final: nn.Module, period: int | None) -> None:
        super().__init__()
        self.convs = nn.ModuleList([weight_norm(convolution) for convolution in convolutions])
        self.final_conv = weight_norm(final)
        self.period = period

    def forward(self, waveform: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[B, 1, S] → scores [B, N] and features."""
        hidden, features = waveform, []
        if self.period is not None:
            short = (self.period - waveform.shape[2] % self.period) % self.period
            hidden = functional.pad(hidden, (0, short), mode="reflect")
            hidden = hidden.view(len(hidden), 1, -1, self.period)
        for convolution in self.convs:
            hidden = functional.leaky_relu(convolution(hidden), 0.1)
            features.append(hidden)
        hidden = self.final_conv(hidden)
        return hidden.flatten(1), [*features, hidden]


class PlainDiscriminator(nn.Module):
    """One scale network and five period networks; parameters are named as in our own."""

    def __init__(
        self,
        scale_channels: Sequence[int] = (1, 16, 64, 256, 1024),
        period_channels: Sequence[int] = (1, 32, 128, 512, 1024),
        periods: Sequence[int] = (2, 3, 5, 7, 11),
    ) -> None:
        super().__init__()
        first, *strided = pairwise(scale_channels)
        wide = scale_channels[-1]
        scale: list[nn.Module] = [nn.Conv1d(*first, 15, padding=7)]
        for depth, (before, after) in enumerate([*strided, (wide, wide)], start=1):
            scale.append(nn.Conv1d(before, after, 41, stride=4, padding=20, groups=4**depth))
        scale.append(nn.Conv1d(wide, wide, 5, padding=2))
        judges = [_Judge(scale, nn.Conv1d(wide, 1, 3, padding=1), None)]
        wide = period_channels[-1]
        for period in periods:
            folded = [
                nn.Conv2d(*pair, (5, 1), stride=(3, 1), padding=(2, 0)) for pair in pairwise(period_channels)
            ]
            folded.append(nn.Conv2d(wide, wide, (5, 1), padding=(2, 0)))
            judges.append(_Judge(folded, nn.Conv2d(wide, 1, (3, 1), padding=(1, 0)), period))
        self.discriminators = nn.ModuleList(judges)

    def forward(self, waveform: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """[B, 1, S] → every network's scores, and every network's features."""
        judged = [judge(waveform) for judge in self.discriminators]
        return [scores for scores, _ in judged], [features for _, features in judged]


# --- The losses and the step -----------------------------------------------------------------------


def discriminator_loss(real: Sequence[Tensor], generated: Sequence[Tensor]) -> Tensor:
    """Least squares: real to 1, generated to 0."""
    total = real[0].new_zeros(())
    for true, false in zip(real, generated, strict=True):
        total = total + (1 - true).square().mean() + false.square().mean()
    return total


def generator_losses(
    result: Forward,
    generated_mel: Tensor,
    real_mel: Tensor,
    scores: Sequence[Tensor],
    real_features: Sequence[Sequence[Tensor]],
    features: Sequence[Sequence[Tensor]],
) -> dict[str, Tensor]:
    """The five losses of the generator, unweighted."""
    difference = result.flow_latents - result.prior_mean
    kl = result.prior_log_std - result.posterior_log_std - 0.5
    kl = kl + 0.5 * difference.square() * (-2 * result.prior_log_std).exp()
    matching = scores[0].new_zeros(())
    for trues, falses in zip(real_features, features, strict=True):
        for true, false in zip(trues, falses, strict=True):
            matching = matching + (true.detach() - false).abs().mean()
    return {
        "duration": result.duration_loss.sum(),
        "mel": (real_mel - generated_mel).abs().mean(),
        "kl": (kl * result.frame_mask).sum() / result.frame_mask.sum(),
        "feature_maps": 2 * matching,
        "generator": torch.stack([(1 - score).square().mean() for score in scores]).sum(),
    }


@dataclass
class PlainStep:
    """Two networks and their optimisers. Dropout is off when the networks are in evaluation mode."""

    generator: VitsModel
    discriminator: PlainDiscriminator
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    analysis: Analysis
    weights: Weights
    max_grad_norm: float = 1.0

    def __call__(self, batch: Batch, noise: Noise) -> dict[str, float]:
        """The discriminator's step, then the generator's.

        Returns:
            The losses, unweighted.
        """
        hop, width = self.analysis.hop_length, self.analysis.segment_frames
        result = forward(self.generator, batch, noise, self.analysis)
        real_mel = cut(batch.mel, noise.slice_starts, width)
        _, generated_mel = spectrograms(result.waveform.squeeze(1), self.analysis)
        real = cut(batch.waveform, noise.slice_starts * hop, width * hop)

        real_scores, _ = self.discriminator(real)
        scores, _ = self.discriminator(result.waveform.detach())
        judging = discriminator_loss(real_scores, scores)
        self.discriminator_optimizer.zero_grad()  # what the last generator step left there
        (self.weights.discriminator * judging).backward()
        self._apply(self.discriminator, self.discriminator_optimizer)

        _, real_features = self.discriminator(real)
        scores, features = self.discriminator(result.waveform)
        losses = generator_losses(result, generated_mel, real_mel, scores, real_features, features)
        total = torch.stack([getattr(self.weights, name) * loss for name, loss in losses.items()]).sum()
        total.backward()
        self._apply(self.generator, self.generator_optimizer)
        return {name: loss.item() for name, loss in (losses | {"discriminator": judging}).items()}

    def _apply(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        torch.nn.utils.clip_grad_norm_(network.parameters(), self.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
