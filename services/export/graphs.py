"""A VITS model as three ONNX graphs: encoder, flow and decoder.

Each graph is an ``nn.Module`` that uses the model's own weights and computes exactly what
``transformers.VitsModel`` computes in inference, rewritten where the original cannot be traced:

* relative-position attention gathers by index instead of padding and reshaping by length,
* the rational-quadratic spline selects with ``where`` instead of boolean indexing, and clamps its
  discriminant (a check that tracing would drop, and a rounding error there means NaN),
* the WaveNet slices by a constant instead of by a tensor,
* the speaker is looked up per row instead of once for the whole batch.

Nothing inside a graph is random, and no shape depends on data.

The decoder is written twice where a variant asks for it: as it is, for ONNX Runtime, and with each of its
convolutions over an image of height 1 (`export_decoder_2d`), for OpenVINO, whose kernels for one dimension are
slow. Weights and results are the same. ONNX Runtime is slower on the second (0.7 times).

The graphs are written by the ``torch.export``-based exporter (``dynamo=True``). The older TorchScript one
still exists in torch 2.13 but is deprecated, drops inputs that a model does not use (``speaker_id`` of a
single-speaker voice, ``duration_noise`` of a deterministic one), and bakes in lengths that pass through
Python without a word; ``torch.export`` refuses to.

Shapes: B batch, T tokens, F frames, W frames of a window, D latent channels, H attention heads,
C hidden channels, E speaker channels, K spline bins, R relative positions (2 × window + 1).
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import onnx
import torch
from google.protobuf.message import Message
from torch import Tensor, nn
from torch.nn import functional
from transformers import VitsModel
from transformers.models.vits.modeling_vits import (
    VitsAttention,
    VitsConvFlow,
    VitsDurationPredictor,
    VitsElementwiseAffine,
    VitsEncoderLayer,
    VitsResidualCouplingLayer,
    VitsStochasticDurationPredictor,
    VitsWaveNet,
)

from shared.modeling import fold_weight_norm

#: ONNX operator set of every graph. 18 is the oldest that the exporter writes natively.
OPSET = 18

#: The graphs by name, in the order in which a voice runs them: input names, then output names.
SIGNATURES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "encoder": (
        ("input_ids", "attention_mask", "speaker_id", "duration_noise"),
        ("prior_mean", "prior_log_std", "log_duration"),
    ),
    "flow": (("prior_sample", "frame_mask", "speaker_id"), ("latents",)),
    "decoder": (("latents", "speaker_id"), ("waveform",)),
}


class SpeakerConditioning(nn.Module):
    """Speaker ids to conditioning vectors, one per row of the batch; nothing for a single speaker."""

    def __init__(self, model: VitsModel) -> None:
        super().__init__()
        self.embed_speaker = model.embed_speaker if model.config.num_speakers > 1 else None

    def forward(self, speaker_id_B: Tensor) -> Tensor | None:
        """Look up ``[B]`` int64 ids: ``[B, E, 1]``, or None where the model has one speaker."""
        if self.embed_speaker is None:
            return None
        return cast("Tensor", self.embed_speaker(speaker_id_B)).unsqueeze(-1)


class RelativeAttention(nn.Module):
    """Self-attention with relative positions (Shaw et al. 2018, https://arxiv.org/abs/1803.02155).

    With ``r(i, j) = j - i`` limited to ``|r| <= window`` (positions farther apart add nothing)::

        score(i, j) = q_i · (k_j + a^K_r(i,j)) / sqrt(d)      out_i = Σ_j p(i, j) (v_j + a^V_r(i,j))
    """

    def __init__(self, attention: VitsAttention) -> None:
        super().__init__()
        self.attention = attention
        self.num_heads = attention.num_heads
        self.head_dim = attention.head_dim
        self.window = attention.window_size or 0

    def split_heads(self, states_BTC: Tensor) -> Tensor:
        """``[B, T, C]`` to ``[B, H, T, C / H]``."""
        B, T, _ = states_BTC.shape
        return states_BTC.view(B, T, self.num_heads, self.head_dim).transpose(1, 2)

    def forward(self, states_BTC: Tensor, allowed_B11T: Tensor) -> Tensor:
        """Attend over the tokens that ``allowed_B11T`` (bool) marks; returns ``[B, T, C]``."""
        B, T, C = states_BTC.shape
        query_BHTd = self.split_heads(self.attention.q_proj(states_BTC) * self.attention.scaling)
        key_BHTd = self.split_heads(self.attention.k_proj(states_BTC))
        value_BHTd = self.split_heads(self.attention.v_proj(states_BTC))

        score_BHTT = query_BHTd @ key_BHTd.transpose(2, 3)
        if self.window:
            position_T = torch.arange(T, device=states_BTC.device)
            distance_TT = position_T[None, :] - position_T[:, None]
            index_TT = distance_TT.clamp(-self.window, self.window) + self.window
            near_TT = distance_TT.abs() <= self.window
            by_distance_BHTR = query_BHTd @ self.attention.emb_rel_k[0].transpose(0, 1)
            bias_BHTT = by_distance_BHTR.gather(3, index_TT.expand(B, self.num_heads, T, T))
            score_BHTT = score_BHTT + torch.where(near_TT, bias_BHTT, 0.0)

        score_BHTT = torch.where(allowed_B11T, score_BHTT, torch.finfo(score_BHTT.dtype).min)
        weight_BHTT = functional.softmax(score_BHTT, dim=-1)
        output_BHTd = weight_BHTT @ value_BHTd
        if self.window:
            R = 2 * self.window + 1
            offset_R = torch.arange(-self.window, self.window + 1, device=states_BTC.device)
            source_TR = position_T[:, None] + offset_R[None, :]
            inside_TR = (source_TR >= 0) & (source_TR < T)
            source_TR = torch.minimum(source_TR.clamp_min(0), position_T[-1])
            near_weight_BHTR = weight_BHTT.gather(3, source_TR.expand(B, self.num_heads, T, R))
            near_weight_BHTR = torch.where(inside_TR, near_weight_BHTR, 0.0)
            output_BHTd = output_BHTd + near_weight_BHTR @ self.attention.emb_rel_v[0]
        return cast("Tensor", self.attention.out_proj(output_BHTd.transpose(1, 2).reshape(B, T, C)))


class EncoderLayer(nn.Module):
    """One transformer layer of the text encoder, with `RelativeAttention` in its attention's place."""

    def __init__(self, layer: VitsEncoderLayer) -> None:
        super().__init__()
        self.attention = RelativeAttention(layer.attention)
        self.layer_norm = layer.layer_norm
        self.feed_forward = layer.feed_forward
        self.final_layer_norm = layer.final_layer_norm

    def forward(self, states_BTC: Tensor, mask_BT1: Tensor, allowed_B11T: Tensor) -> Tensor:
        """Return the next layer's ``[B, T, C]``."""
        states_BTC = self.layer_norm(states_BTC + self.attention(states_BTC, allowed_B11T))
        return cast("Tensor", self.final_layer_norm(states_BTC + self.feed_forward(states_BTC, mask_BT1)))


def inverse_spline(
    inputs: Tensor, widths_K: Tensor, heights_K: Tensor, derivatives_K: Tensor, *, tail_bound: float
) -> Tensor:
    """Invert the monotonic rational-quadratic spline of the duration flows; the identity in its tails.

    Neural Spline Flows (Durkan et al. 2019, https://arxiv.org/abs/1906.04032), equations 6 to 8: within the
    bin that holds ``y``, the root ``ξ = 2c / (-b - sqrt(b² - 4ac))`` of a quadratic gives ``x``.

    Args:
        inputs: Values to invert, any shape ``[...]``.
        widths_K: Unnormalised bin widths ``[..., K]``.
        heights_K: Unnormalised bin heights ``[..., K]``.
        derivatives_K: Unnormalised derivatives at the inner knots ``[..., K - 1]``.
        tail_bound: The spline covers ``[-tail_bound, tail_bound]``.

    Returns:
        The inverted values, shaped like ``inputs``; finite for finite arguments.
    """
    smallest = 1e-3  # of a bin's width, of its height, and of a derivative, as `transformers` fixes them
    inside = (inputs >= -tail_bound) & (inputs <= tail_bound)
    y = inputs.clamp(-tail_bound, tail_bound)

    def knots(unnormalised_K: Tensor) -> Tensor:
        K = unnormalised_K.shape[-1]
        sizes_K = smallest + (1 - smallest * K) * functional.softmax(unnormalised_K, dim=-1)
        inner = 2 * tail_bound * torch.cumsum(sizes_K, dim=-1)[..., :-1] - tail_bound
        edge = torch.full_like(inner[..., :1], tail_bound)
        return torch.cat([-edge, inner, edge], dim=-1)

    x_knots, y_knots = knots(widths_K), knots(heights_K)
    bin_widths, bin_heights = x_knots[..., 1:] - x_knots[..., :-1], y_knots[..., 1:] - y_knots[..., :-1]
    # The tails have slope 1: softplus of this constant, plus the smallest derivative, is 1.
    outer = torch.full_like(derivatives_K[..., :1], math.log(math.exp(1 - smallest) - 1))
    slopes = smallest + functional.softplus(torch.cat([outer, derivatives_K, outer], dim=-1))

    # The last knot is no lower edge of any bin, so that y = tail_bound falls into the last bin.
    bin_index = (y[..., None] >= y_knots[..., :-1]).sum(dim=-1, keepdim=True) - 1

    def at(values: Tensor) -> Tensor:
        return values.gather(-1, bin_index)[..., 0]

    height, delta = at(bin_heights), at(bin_heights / bin_widths)
    slope, next_slope = at(slopes[..., :-1]), at(slopes[..., 1:])
    rise = y - at(y_knots[..., :-1])
    bend = rise * (slope + next_slope - 2 * delta)
    a = height * (delta - slope) + bend
    b = height * slope - bend
    c = -delta * rise
    root = 2 * c / (-b - (b * b - 4 * a * c).clamp_min(0).sqrt())
    return torch.where(inside, root * at(bin_widths) + at(x_knots[..., :-1]), inputs)


class InverseConvFlow(nn.Module):
    """A spline coupling layer of the stochastic duration predictor, from noise to durations."""

    def __init__(self, flow: VitsConvFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, latents_B2T: Tensor, mask_B1T: Tensor, conditioning_BCT: Tensor) -> Tensor:
        """Return the ``[B, 2, T]`` latents one flow nearer to log-durations."""
        flow = self.flow
        first_half, second_half = torch.split(latents_B2T, flow.half_channels, dim=1)
        states_BCT = flow.conv_dds(flow.conv_pre(first_half), mask_B1T, conditioning_BCT)
        parameters = flow.conv_proj(states_BCT) * mask_B1T
        parameters = parameters.unflatten(1, (flow.half_channels, -1)).permute(0, 1, 3, 2)
        widths, heights, derivatives = parameters.split(
            [flow.num_bins, flow.num_bins, flow.num_bins - 1], dim=-1
        )
        scale = math.sqrt(flow.filter_channels)
        second_half = inverse_spline(
            second_half, widths / scale, heights / scale, derivatives, tail_bound=flow.tail_bound
        )
        return torch.cat([first_half, second_half], dim=1) * mask_B1T


class InverseAffine(nn.Module):
    """The affine flow that ends the stochastic duration predictor."""

    def __init__(self, flow: VitsElementwiseAffine) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, latents_B2T: Tensor, mask_B1T: Tensor, conditioning_BCT: Tensor) -> Tensor:
        """Return the ``[B, 2, T]`` latents whose first channel is the log-duration."""
        return cast("Tensor", self.flow(latents_B2T, mask_B1T, reverse=True)[0])


class StochasticDurations(nn.Module):
    """Log-durations from noise: `VitsStochasticDurationPredictor` in reverse, its noise an input."""

    def __init__(self, predictor: VitsStochasticDurationPredictor, *, conditioned: bool) -> None:
        super().__init__()
        self.conv_pre, self.conv_dds, self.conv_proj = (
            predictor.conv_pre,
            predictor.conv_dds,
            predictor.conv_proj,
        )
        self.cond = predictor.cond if conditioned else None
        # In reverse, without the first spline flow: original VITS trains it and leaves it out of inference.
        affine = cast("VitsElementwiseAffine", predictor.flows[0])
        splines = cast("list[VitsConvFlow]", list(predictor.flows)[2:])
        self.flows = nn.ModuleList(
            [*(InverseConvFlow(flow) for flow in reversed(splines)), InverseAffine(affine)]
        )

    def forward(
        self, states_BCT: Tensor, mask_B1T: Tensor, speaker_BE1: Tensor | None, noise_B2T: Tensor
    ) -> Tensor:
        """Return log-durations ``[B, 1, T]``."""
        conditioning_BCT = self.conv_pre(states_BCT)
        if self.cond is not None:
            conditioning_BCT = conditioning_BCT + self.cond(speaker_BE1)
        conditioning_BCT = self.conv_proj(self.conv_dds(conditioning_BCT, mask_B1T)) * mask_B1T
        latents_B2T = noise_B2T
        for flow in self.flows:
            latents_B2T = flow(latents_B2T.flip(1), mask_B1T, conditioning_BCT)
        return latents_B2T[:, :1]


class DeterministicDurations(nn.Module):
    """Log-durations without noise: `VitsDurationPredictor`."""

    def __init__(self, predictor: VitsDurationPredictor) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(
        self, states_BCT: Tensor, mask_B1T: Tensor, speaker_BE1: Tensor | None, noise_B2T: Tensor
    ) -> Tensor:
        """Return log-durations ``[B, 1, T]``; the noise is not used."""
        return cast("Tensor", self.predictor(states_BCT, mask_B1T, speaker_BE1))


class EncoderGraph(nn.Module):
    """Tokens to the prior's statistics and log-durations."""

    def __init__(self, model: VitsModel) -> None:
        super().__init__()
        self.speaker = SpeakerConditioning(model)
        self.embed_tokens = model.text_encoder.embed_tokens
        self.embedding_scale = math.sqrt(model.config.hidden_size)
        self.layers = nn.ModuleList(
            [EncoderLayer(cast("VitsEncoderLayer", layer)) for layer in model.text_encoder.encoder.layers]
        )
        self.project = model.text_encoder.project
        self.latent_channels = model.config.flow_size
        if model.config.use_stochastic_duration_prediction:
            conditioned = model.config.num_speakers > 1
            self.durations: nn.Module = StochasticDurations(model.duration_predictor, conditioned=conditioned)
        else:
            self.durations = DeterministicDurations(cast("VitsDurationPredictor", model.duration_predictor))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, speaker_id: Tensor, duration_noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the text encoder and the duration predictor.

        Args:
            input_ids: int64 ``[B, T]``.
            attention_mask: int64 ``[B, T]``, 1 at tokens, 0 at padding.
            speaker_id: int64 ``[B]``; not read by a single-speaker model.
            duration_noise: float32 ``[B, 2, T]``, normal noise times ``noise_scale_duration``.

        Returns:
            ``prior_mean [B, T, D]``, ``prior_log_std [B, T, D]``, ``log_duration [B, T]``; zero at padding.
        """
        allowed_B11T = attention_mask[:, None, None, :] > 0
        mask_BT1 = (attention_mask > 0).to(duration_noise.dtype).unsqueeze(-1)
        mask_B1T = mask_BT1.transpose(1, 2)
        states_BTC = self.embed_tokens(input_ids) * self.embedding_scale * mask_BT1
        for layer in self.layers:
            states_BTC = layer(states_BTC, mask_BT1, allowed_B11T)
        states_BCT = (states_BTC * mask_BT1).transpose(1, 2)
        prior_BTD2 = (self.project(states_BCT) * mask_B1T).transpose(1, 2)
        prior_mean, prior_log_std = prior_BTD2.split(self.latent_channels, dim=2)
        log_duration_B1T = self.durations(states_BCT, mask_B1T, self.speaker(speaker_id), duration_noise)
        return prior_mean, prior_log_std, log_duration_B1T[:, 0]


class WaveNet(nn.Module):
    """`VitsWaveNet` with constant slices: gated dilated convolutions with residual and skip paths."""

    def __init__(self, wavenet: VitsWaveNet, *, conditioned: bool) -> None:
        super().__init__()
        self.hidden_size = wavenet.hidden_size
        self.in_layers, self.res_skip_layers = wavenet.in_layers, wavenet.res_skip_layers
        self.cond_layer = wavenet.cond_layer if conditioned else None

    def forward(self, states_BCF: Tensor, mask_B1F: Tensor, speaker_BE1: Tensor | None) -> Tensor:
        """Return the summed skip outputs ``[B, C, F]``, zero at padding."""
        C = self.hidden_size
        gates = self.cond_layer(speaker_BE1) if self.cond_layer is not None else None
        skipped_BCF = torch.zeros_like(states_BCF)
        last = len(self.in_layers) - 1
        for i, (in_layer, res_skip_layer) in enumerate(
            zip(self.in_layers, self.res_skip_layers, strict=True)
        ):
            gate = in_layer(states_BCF)
            if gates is not None:
                gate = gate + gates[:, 2 * C * i : 2 * C * (i + 1)]
            output = res_skip_layer(torch.tanh(gate[:, :C]) * torch.sigmoid(gate[:, C:]))
            if i < last:
                states_BCF = (states_BCF + output[:, :C]) * mask_B1F
                output = output[:, C:]
            skipped_BCF = skipped_BCF + output
        return skipped_BCF * mask_B1F


class InverseCoupling(nn.Module):
    """`VitsResidualCouplingLayer` from the prior to the latents (mean only, as VITS trains it)."""

    def __init__(self, layer: VitsResidualCouplingLayer, *, conditioned: bool) -> None:
        super().__init__()
        self.half_channels = layer.half_channels
        self.conv_pre, self.conv_post = layer.conv_pre, layer.conv_post
        self.wavenet = WaveNet(layer.wavenet, conditioned=conditioned)

    def forward(self, latents_BDF: Tensor, mask_B1F: Tensor, speaker_BE1: Tensor | None) -> Tensor:
        """Return the ``[B, D, F]`` latents one coupling nearer to the decoder's."""
        first_half, second_half = torch.split(latents_BDF, self.half_channels, dim=1)
        states_BCF = self.wavenet(self.conv_pre(first_half) * mask_B1F, mask_B1F, speaker_BE1)
        mean = self.conv_post(states_BCF) * mask_B1F
        return torch.cat([first_half, (second_half - mean) * mask_B1F], dim=1)


class FlowGraph(nn.Module):
    """A sample of the prior to the decoder's latents."""

    def __init__(self, model: VitsModel) -> None:
        super().__init__()
        self.speaker = SpeakerConditioning(model)
        conditioned = model.config.num_speakers > 1
        self.couplings = nn.ModuleList(
            [
                InverseCoupling(layer, conditioned=conditioned)
                for layer in reversed(cast("list[VitsResidualCouplingLayer]", list(model.flow.flows)))
            ]
        )

    def forward(self, prior_sample: Tensor, frame_mask: Tensor, speaker_id: Tensor) -> Tensor:
        """Run the flow backwards.

        Args:
            prior_sample: float32 ``[B, D, F]``.
            frame_mask: float32 ``[B, 1, F]``, 1 at frames, 0 at padding.
            speaker_id: int64 ``[B]``; not read by a single-speaker model.

        Returns:
            Latents ``[B, D, F]``, zero at padding.
        """
        speaker_BE1 = self.speaker(speaker_id)
        latents_BDF = prior_sample
        for coupling in self.couplings:
            latents_BDF = coupling(latents_BDF.flip(1), frame_mask, speaker_BE1)
        return latents_BDF * frame_mask


class DecoderGraph(nn.Module):
    """A window of latents to samples."""

    def __init__(self, model: VitsModel) -> None:
        super().__init__()
        self.speaker = SpeakerConditioning(model)
        self.decoder = model.decoder

    def forward(self, latents: Tensor, speaker_id: Tensor) -> Tensor:
        """Decode ``[B, D, W]`` latents and ``[B]`` speakers to a waveform ``[B, W * hop_length]``."""
        return cast("Tensor", self.decoder(latents, self.speaker(speaker_id)))[:, 0]


def in_two_dimensions(module: nn.Module) -> nn.Module:
    """A copy of a module whose convolutions over ``[B, C, W]`` are ones over ``[B, C, 1, W]``, weights alike.

    Args:
        module: Its weight norm must be folded.
    """
    module = copy.deepcopy(module)
    for name, child in list(module.named_modules()):
        if isinstance(child, nn.Conv1d | nn.ConvTranspose1d):
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, _convolution_2d(child))
    return module


def _convolution_2d(layer: nn.Conv1d | nn.ConvTranspose1d) -> nn.Conv2d | nn.ConvTranspose2d:
    kind = nn.Conv2d if isinstance(layer, nn.Conv1d) else nn.ConvTranspose2d
    assert isinstance(layer.padding, tuple)  # noqa: S101 ("same" is a word that no VITS uses)
    planar = kind(
        layer.in_channels,
        layer.out_channels,
        (1, layer.kernel_size[0]),
        stride=(1, layer.stride[0]),
        padding=(0, layer.padding[0]),
        dilation=(1, layer.dilation[0]),
        groups=layer.groups,
        bias=layer.bias is not None,
        device="meta",
    )
    planar.weight = nn.Parameter(layer.weight.detach().unsqueeze(2), requires_grad=False)
    planar.bias = layer.bias
    return planar


class DecoderGraph2d(nn.Module):
    """`DecoderGraph`, computed over images of height 1. Inputs and outputs are the same.

    Args:
        model: Its decoder's weight norm must be folded.
    """

    def __init__(self, model: VitsModel) -> None:
        super().__init__()
        self.speaker = SpeakerConditioning(model)
        self.decoder = in_two_dimensions(model.decoder)

    def forward(self, latents: Tensor, speaker_id: Tensor) -> Tensor:
        """Decode ``[B, D, W]`` latents and ``[B]`` speakers to a waveform ``[B, W * hop_length]``."""
        speaker_BE1 = self.speaker(speaker_id)
        speaker_BE11 = None if speaker_BE1 is None else speaker_BE1.unsqueeze(2)
        return cast("Tensor", self.decoder(latents.unsqueeze(2), speaker_BE11))[:, 0, 0]


class HalfPrecision(nn.Module):
    """A flow or decoder in fp16 within, fp32 at its inputs and outputs.

    Args:
        graph: Its weights are halved in place.
    """

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.part = graph.half()  # a module called graph is lost by the exporter

    def forward(self, *inputs: Tensor) -> Tensor:
        """Run the graph on its inputs in their order; speaker ids stay whole numbers."""
        halved = [value.half() if value.is_floating_point() else value for value in inputs]
        return cast("Tensor", self.part(*halved)).float()


GRAPHS: dict[str, type[EncoderGraph | FlowGraph | DecoderGraph]] = {
    "encoder": EncoderGraph,
    "flow": FlowGraph,
    "decoder": DecoderGraph,
}


def example_inputs(name: str, latent_channels: int) -> tuple[dict[str, Tensor], dict[str, dict[int, object]]]:
    """Inputs to trace a graph with, and which of their axes are dynamic.

    Sizes are primes larger than 1, so that the exporter takes none of them for a constant or for another.
    """
    B, T, F = 2, 13, 37
    batch, tokens, frames = (torch.export.Dim(axis, min=1) for axis in ("B", "T", "F"))
    every: dict[str, tuple[Tensor, dict[int, object]]] = {
        "input_ids": (torch.zeros(B, T, dtype=torch.int64), {0: batch, 1: tokens}),
        "attention_mask": (torch.ones(B, T, dtype=torch.int64), {0: batch, 1: tokens}),
        "speaker_id": (torch.zeros(B, dtype=torch.int64), {0: batch}),
        "duration_noise": (torch.zeros(B, 2, T), {0: batch, 2: tokens}),
        "prior_sample": (torch.zeros(B, latent_channels, F), {0: batch, 2: frames}),
        "frame_mask": (torch.ones(B, 1, F), {0: batch, 2: frames}),
        "latents": (torch.zeros(B, latent_channels, F), {0: batch, 2: frames}),
    }
    names = SIGNATURES[name][0]
    return {key: every[key][0] for key in names}, {key: every[key][1] for key in names}


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence what torch's exporter says about itself, and nothing else."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # it logs each torchvision operator that is not installed
    try:
        with warnings.catch_warnings():
            # torch.export calls a deprecated function of its own pytree module.
            warnings.filterwarnings(
                "ignore", message=r".*isinstance\(treespec, LeafSpec\)", category=FutureWarning
            )
            # Two inputs share the axis T on purpose; the exporter notes that it keeps one name for both.
            warnings.filterwarnings(
                "ignore", message="# The axis name: .* will not be used", category=UserWarning
            )
            yield
    finally:
        registration.setLevel(level)


def build_graph(name: str, model: VitsModel) -> nn.Module:
    """One graph as a module that shares the model's weights; folds their weight norm, in the model itself."""
    part = GRAPHS[name](model).eval()
    fold_weight_norm(part)
    return part.requires_grad_(requires_grad=False)


def export_graph(name: str, model: VitsModel, path: Path) -> None:
    """Write one graph of a model as a single fp32 ONNX file.

    Args:
        name: ``encoder``, ``flow`` or ``decoder``.
        model: Any ``transformers.VitsModel``, or a subclass with the same parts. It loses its weight norm
            and its gradients: a copy would not help, since torch deletes a parametrised weight from the class
            that a deep copy shares with its original.
        path: The file to write.
    """
    _write(build_graph(name, model), name, model, path)


def build_decoder_2d(model: VitsModel) -> nn.Module:
    """The decoder over images of height 1, as a module with weights of its own; folds the model's weight norm."""
    fold_weight_norm(model.decoder)
    return DecoderGraph2d(model).eval().requires_grad_(requires_grad=False)


def export_decoder_2d(model: VitsModel, path: Path) -> None:
    """Write the decoder as a single fp32 ONNX file of two-dimensional convolutions, for OpenVINO.

    Args:
        model: As for `export_graph`; it loses its decoder's weight norm.
        path: The file to write. Its inputs and outputs are those of the ``decoder`` of `SIGNATURES`.
    """
    _write(build_decoder_2d(model), "decoder", model, path)


def export_fp16(name: str, model: VitsModel, path: Path) -> None:
    """Write the flow or the decoder with weights and arithmetic in fp16, its inputs and outputs in fp32.

    Args:
        name: ``flow`` or ``decoder``.
        model: As for `export_graph`; it loses its weight norm, and keeps its precision.
        path: The file to write.
    """
    _write(HalfPrecision(copy.deepcopy(build_graph(name, model))).eval(), name, model, path)


def _write(graph: nn.Module, name: str, model: VitsModel, path: Path) -> None:
    inputs, dynamic_axes = example_inputs(name, model.config.flow_size)
    input_names, output_names = SIGNATURES[name]
    axes = tuple(dynamic_axes.values())
    # torch.export wants the axes of arguments that a function collects as one of its arguments.
    dynamic_shapes: Any = (axes,) if isinstance(graph, HalfPrecision) else axes
    with quiet_exporter():
        program = torch.onnx.export(
            graph,
            tuple(inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=dynamic_shapes,
            verbose=False,
        )
    assert program is not None  # noqa: S101 (None is only for a file name, which was not given)
    model_proto = program.model_proto
    _forget_origins(model_proto)
    onnx.save(model_proto, path)


def _forget_origins(part: Message) -> None:
    """Take out what the exporter notes about each node: stack traces, with the folders of whoever exports.

    A graph then depends on the model alone, and so does what is known of it by its bytes.
    """
    for field, value in part.ListFields():
        if field.name == "metadata_props":
            part.ClearField(field.name)
        elif field.message_type is not None and field.name != "initializer":
            for inner in value if field.is_repeated else [value]:
                _forget_origins(inner)
