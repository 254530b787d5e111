"""``VitsForTraining``: the VITS of ``transformers`` with the training forward that it leaves out.

Everything that ``transformers`` has is used as it is; what stands here is what it lacks: the training
forward, the corrected duration loss, and HiFi-GAN's second residual block for imported Piper voices.

Shapes: B batch, T tokens, F frames, S samples, D latent channels, W frames of a training slice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import record_function
from transformers import AutoConfig, VitsConfig, VitsModel
from transformers.models.vits.modeling_vits import VitsStochasticDurationPredictor

from shared.errors import ModelError
from shared.modeling.durations import stochastic_duration_loss

#: Finds the alignment: (log-likelihood [B, F, T], token lengths [B], frame lengths [B]) → durations [B, T].
Aligner = Callable[[Tensor, Tensor, Tensor], Tensor]


@strict
class VitsResblock2Config(VitsConfig):
    """A VITS whose decoder uses HiFi-GAN's ResBlock2, as Piper's low and medium voices do.

    It has a ``model_type`` of its own so that stock ``transformers`` refuses such a folder instead of
    loading it with random decoder weights. ``VitsModel.from_pretrained`` does not heed model types; what
    stops it is that the dilations are written below a key, where it insists on a list.
    """

    model_type = "vits_resblock2"
    resblock_type: str = "2"
    resblock_kernel_sizes: list[int] | tuple[int, ...] = (3, 5, 7)
    resblock_dilation_sizes: list[Any] | tuple[Any, ...] | dict[str, Any] = (  # type: ignore[assignment]
        (1, 2),
        (2, 6),
        (3, 12),
    )

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.resblock_dilation_sizes, dict):
            self.resblock_dilation_sizes = self.resblock_dilation_sizes["resblock2"]
        cast("Any", super()).__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON has it."""
        return {**super().to_dict(), "resblock_dilation_sizes": {"resblock2": self.resblock_dilation_sizes}}


AutoConfig.register("vits_resblock2", VitsResblock2Config, exist_ok=True)


def resblock_type(config: VitsConfig) -> str:
    """``"1"`` or ``"2"``: which of HiFi-GAN's residual blocks a configuration asks for."""
    return str(getattr(config, "resblock_type", "1"))


class ResBlock2(nn.Module):
    """HiFi-GAN's ResBlock2: one dilated convolution a residual step instead of two.

    The attribute is called ``convs``, as in every published checkpoint of this block.
    """

    def __init__(
        self, channels: int, kernel_size: int, dilations: list[int], leaky_relu_slope: float
    ) -> None:
        super().__init__()
        self.leaky_relu_slope = leaky_relu_slope
        self.convs = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel_size, dilation=d, padding=d * (kernel_size - 1) // 2)
            for d in dilations
        )

    def apply_weight_norm(self) -> None:
        """Parametrise every weight by magnitude and direction."""
        for convolution in self.convs:
            nn.utils.parametrizations.weight_norm(convolution)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, C, S] → [B, C, S]."""
        for convolution in self.convs:
            hidden = hidden + convolution(functional.leaky_relu(hidden, self.leaky_relu_slope))
        return hidden


@dataclass
class PriorOutput:
    """What text and latents have to do with each other. All in float32 at least, whatever the autocast."""

    latents: Tensor
    """[B, D, F] the posterior sample."""
    durations: Tensor
    """[B, T] int32 frames of each token, from the alignment search."""
    duration_loss: Tensor
    """[B] nats (stochastic) or squared error (deterministic), summed over the tokens of each item."""
    posterior_log_std: Tensor
    """[B, D, F]."""
    flow_latents: Tensor
    """[B, D, F] the posterior sample carried through the flow."""
    prior_mean: Tensor
    """[B, D, F] the text's prior, expanded by the alignment."""
    prior_log_std: Tensor
    """[B, D, F]."""
    token_mask: Tensor
    """[B, 1, T]."""
    frame_mask: Tensor
    """[B, 1, F]."""


@dataclass
class TrainingOutput(PriorOutput):
    """What one whole training forward yields."""

    waveform: Tensor
    """[B, 1, W·hop] the decoded slice."""
    slice_starts: Tensor
    """[B] int64, the first frame of each slice."""


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def sequence_mask(lengths: Tensor, maximum: int) -> Tensor:
    """[B] lengths → [B, maximum] booleans, true below each length."""
    return torch.arange(maximum, device=lengths.device)[None, :] < lengths[:, None]


@record_function("vits:alignment")
def log_likelihood(latents: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """The Gaussian log-likelihood of every frame under every token's prior.

    ``Σ_D −½log2π − logσ − ½(z−m)²/σ²``, as four terms so that no [B, D, F, T] tensor is ever built. In
    float32 at least: ``exp(−2 logσ)`` overflows float16.

    Args:
        latents: [B, D, F].
        mean: [B, D, T].
        log_std: [B, D, T].

    Returns:
        [B, F, T] float32.
    """
    with torch.autocast(latents.device.type, enabled=False):
        latents, mean, log_std = (at_least_float32(values) for values in (latents, mean, log_std))
        precision = torch.exp(-2 * log_std)
        constant = (-0.5 * math.log(2 * math.pi) - log_std - 0.5 * mean**2 * precision).sum(1)
        frames = latents.transpose(1, 2)
        return (
            torch.baddbmm(constant[:, None, :], -0.5 * frames**2, precision) + frames @ (mean * precision)
        ).contiguous()


def expand(values: Tensor, durations: Tensor, frames: int) -> Tensor:
    """Repeat each token's values for its frames: [B, D, T] and [B, T] → [B, D, frames], zero past the end."""
    ends = durations.cumsum(1)
    positions = torch.arange(frames, device=values.device)
    positions = positions.to(ends.dtype).repeat(len(ends), 1)
    token = torch.searchsorted(ends, positions, right=True)
    inside = (token < values.shape[2]).unsqueeze(1)
    token = token.clamp_max(values.shape[2] - 1).unsqueeze(1).expand(-1, values.shape[1], -1)
    return values.gather(2, token) * inside


def slice_frames(values: Tensor, starts: Tensor, width: int) -> Tensor:
    """Cut [B, C, F] to [B, C, width] from each item's own start; zero where a slice runs past the end."""
    positions = starts[:, None] + torch.arange(width, device=values.device)
    inside = positions < values.shape[2]
    index = positions.clamp_max(values.shape[2] - 1).unsqueeze(1).expand(-1, values.shape[1], -1)
    return values.gather(2, index) * inside.unsqueeze(1)


def _check_speakers(speaker_id: Tensor | None, texts: int) -> None:
    """One speaker would be spread over all texts without a word."""
    if speaker_id is not None and speaker_id.shape != (texts,):
        raise ModelError(
            f"speaker_id has the shape {[*speaker_id.shape]} for {texts} texts: give one id for each text, [{texts}]"
        )


class VitsForTraining(VitsModel):
    """VITS for synthesis (as inherited) and for training (when ``labels`` are given)."""

    def __init__(self, config: VitsConfig) -> None:
        super().__init__(config)
        # Original VITS drops no layers, and the draw that decides comes from NumPy's unseeded generator.
        self.text_encoder.encoder.layerdrop = 0.0
        if resblock_type(config) == "2":
            stages = len(config.upsample_rates)
            self.decoder.resblocks = nn.ModuleList(
                ResBlock2(
                    config.upsample_initial_channel // 2 ** (stage + 1),
                    kernel_size,
                    list(dilations),
                    config.leaky_relu_slope,
                )
                for stage in range(stages)
                for kernel_size, dilations in zip(
                    config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True
                )
            )

    @property
    def hop_length(self) -> int:
        """Samples of one frame: the product of the decoder's upsampling rates."""
        return math.prod(self.config.upsample_rates)

    def speaker_embedding(self, speaker_id: Tensor | None) -> Tensor | None:
        """[B] ids → [B, E, 1], or nothing for a model of one speaker."""
        if self.config.num_speakers <= 1 or speaker_id is None:
            return None
        return self.embed_speaker(speaker_id).unsqueeze(-1)  # type: ignore[no-any-return]

    def forward(self, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """Synthesise as ``VitsModel`` does, or, given ``labels``, run :meth:`training_forward`."""
        if labels is None:
            return super().forward(*args, **kwargs)
        return cast("Any", self.training_forward)(*args, labels=labels, **kwargs)

    def training_forward(
        self,
        input_ids: Tensor,
        token_lengths: Tensor,
        labels: Tensor,
        frame_lengths: Tensor,
        *,
        aligner: Aligner,
        speaker_id: Tensor | None = None,
        segment_frames: int = 32,
        slice_starts: Tensor | None = None,
        posterior_noise: Tensor | None = None,
        duration_noise: Tensor | None = None,
    ) -> TrainingOutput:
        """One pass through everything that the losses need.

        Args:
            input_ids: [B, T] int64.
            token_lengths: [B] int.
            labels: [B, bins, F] linear spectrogram of the recording.
            frame_lengths: [B] int.
            aligner: The alignment search.
            speaker_id: [B] int64, for a model of several speakers.
            segment_frames: Frames of the decoded slice (8192 samples, in original VITS).
            slice_starts: [B] the first frame of each slice; drawn when left out. Evaluation fixes it.
            posterior_noise: [B, D, F] standard normal; drawn when left out.
            duration_noise: [B, 2, T] standard normal; drawn when left out.

        A clip shorter than a slice is decoded whole, followed by zero latents.

        Raises:
            ModelError: There are not as many speakers as texts.
        """
        _check_speakers(speaker_id, len(input_ids))
        frame_mask = sequence_mask(frame_lengths, labels.shape[2])[:, None, :].to(labels.dtype)
        prior = self.prior_forward(
            input_ids,
            token_lengths,
            *self.posterior(labels, frame_mask, self.speaker_embedding(speaker_id)),
            frame_lengths,
            aligner=aligner,
            speaker_id=speaker_id,
            posterior_noise=posterior_noise,
            duration_noise=duration_noise,
        )
        if slice_starts is None:
            room = (frame_lengths - segment_frames + 1).clamp_min(1)
            slice_starts = (torch.rand(len(room), device=room.device) * room).long()
        segment = slice_frames(prior.latents, slice_starts, segment_frames)
        waveform = self.decoder(segment, self.speaker_embedding(speaker_id))
        return TrainingOutput(**vars(prior), waveform=at_least_float32(waveform), slice_starts=slice_starts)

    def prior_forward(
        self,
        input_ids: Tensor,
        token_lengths: Tensor,
        posterior_mean: Tensor,
        posterior_log_std: Tensor,
        frame_lengths: Tensor,
        *,
        aligner: Aligner,
        speaker_id: Tensor | None = None,
        posterior_noise: Tensor | None = None,
        duration_noise: Tensor | None = None,
    ) -> PriorOutput:
        """The part of :meth:`training_forward` between posterior encoder and decoder: text, flow and durations.

        Args:
            input_ids: [B, T] int64.
            token_lengths: [B] int.
            posterior_mean: [B, D, F].
            posterior_log_std: [B, D, F].
            frame_lengths: [B] int.
            aligner: The alignment search.
            speaker_id: [B] int64, for a model of several speakers.
            posterior_noise: [B, D, F] standard normal; drawn when left out.
            duration_noise: [B, 2, T] standard normal; drawn when left out.

        Raises:
            ModelError: There are not as many speakers as texts.
        """
        _check_speakers(speaker_id, len(input_ids))
        mean, log_std = posterior_mean, posterior_log_std
        token_mask = sequence_mask(token_lengths, input_ids.shape[1])[:, None, :].to(mean.dtype)
        frame_mask = sequence_mask(frame_lengths, mean.shape[2])[:, None, :].to(mean.dtype)
        speaker = self.speaker_embedding(speaker_id)

        text = self.text_encoder(
            input_ids=input_ids,
            padding_mask=token_mask.transpose(1, 2),
            # With four dimensions it is taken as it is; from two, transformers would look into it and wait.
            attention_mask=((1 - token_mask) * torch.finfo(token_mask.dtype).min)[:, None].expand(
                -1, -1, token_mask.shape[2], -1
            ),
            return_dict=True,
        )
        hidden = text.last_hidden_state.transpose(1, 2)
        prior_mean = text.prior_means.transpose(1, 2)
        prior_log_std = text.prior_log_variances.transpose(1, 2)

        if posterior_noise is None:
            posterior_noise = torch.randn_like(mean)
        latents = (mean + posterior_noise * torch.exp(log_std)) * frame_mask
        flow_latents = self.flow(latents, frame_mask, speaker)

        with torch.no_grad():
            scores = log_likelihood(flow_latents, prior_mean, prior_log_std)
            durations = aligner(scores, token_lengths.int(), frame_lengths.int())
        duration_loss = self.duration_loss(hidden, token_mask, durations, speaker, duration_noise)
        frames = mean.shape[2]
        return PriorOutput(
            latents=latents,
            durations=durations,
            duration_loss=duration_loss,
            posterior_log_std=at_least_float32(log_std),
            flow_latents=at_least_float32(flow_latents),
            prior_mean=expand(at_least_float32(prior_mean), durations, frames),
            prior_log_std=expand(at_least_float32(prior_log_std), durations, frames),
            token_mask=token_mask,
            frame_mask=frame_mask,
        )

    def posterior(
        self, spectrogram: Tensor, frame_mask: Tensor, speaker: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The posterior's mean and log-std, each [B, D, F] float32, without drawing from it."""
        encoder = self.posterior_encoder
        hidden = encoder.wavenet(encoder.conv_pre(spectrogram) * frame_mask, frame_mask, speaker)
        mean, log_std = (at_least_float32(encoder.conv_proj(hidden)) * frame_mask).chunk(2, dim=1)
        return mean, log_std

    @property
    def posterior_reach(self) -> int:
        """Frames on either side that the posterior of a frame depends on."""
        config = self.config
        dilations = (
            config.wavenet_dilation_rate**n for n in range(config.posterior_encoder_num_wavenet_layers)
        )
        return sum((config.wavenet_kernel_size - 1) // 2 * dilation for dilation in dilations)

    def duration_loss(
        self,
        hidden: Tensor,
        token_mask: Tensor,
        durations: Tensor,
        speaker: Tensor | None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """[B] the duration predictor's loss, summed over each item's tokens; the text is detached.

        Stochastic: the bound of :func:`stochastic_duration_loss`. Deterministic: the squared error of
        ``log(frames + 1e-6)``. In float32, because the spline divides by small bin widths.
        """
        frames = durations[:, None, :] * token_mask
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = at_least_float32(hidden)
            predictor: nn.Module = self.duration_predictor
            if isinstance(predictor, VitsStochasticDurationPredictor):
                return stochastic_duration_loss(predictor, hidden, token_mask, frames, speaker, noise)
            predicted = predictor(hidden, token_mask, speaker)
            target = torch.log(frames + 1e-6) * token_mask
            squared: Tensor = (predicted - target) ** 2
            return (squared * token_mask).sum((1, 2))
