"""The training direction of the stochastic duration predictor.

``transformers`` carries this direction too, but flips the channels once too often: after the first
(affine) flow, in ``flows`` and in ``post_flows``. Its inference direction has no such flip, so durations
trained through it would come out wrong. Here the flip is left out, and a test checks that this
direction followed by the inference direction is the identity.

Shapes: B batch, T tokens, D hidden channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.vits.modeling_vits import VitsConvFlow, VitsStochasticDurationPredictor

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def flow_forward(
    flows: Iterable[nn.Module], latents: Tensor, mask: Tensor, conditioning: Tensor
) -> tuple[Tensor, Tensor]:
    """Run an affine flow and the spline flows after it, data to noise.

    Args:
        flows: One ``VitsElementwiseAffine``, then any number of ``VitsConvFlow``.
        latents: [B, 2, T].
        mask: [B, 1, T], 1 where there is a token.
        conditioning: [B, D, T].

    Returns:
        The transformed latents [B, 2, T] and the log-determinant [B].
    """
    affine, *splines = flows
    latents, log_determinant = affine(latents, mask)  # no flip here: flips belong to the spline flows alone
    for flow in splines:
        latents, contribution = _spline_flow(flow, latents, mask, conditioning)
        log_determinant = log_determinant + contribution
        latents = torch.flip(latents, [1])
    return latents, log_determinant


def _spline_flow(
    flow: nn.Module, latents: Tensor, mask: Tensor, conditioning: Tensor
) -> tuple[Tensor, Tensor]:
    """``VitsConvFlow`` from data to noise: one half decides how a spline bends the other."""
    assert isinstance(flow, VitsConvFlow)  # noqa: S101 - what a predictor is made of
    first, second = latents.split(flow.half_channels, dim=1)
    shape = flow.conv_proj(flow.conv_dds(flow.conv_pre(first), mask, conditioning)) * mask
    shape = shape.unflatten(1, (flow.half_channels, -1)).movedim(2, 3)
    bins = flow.num_bins
    widths, heights, slopes = shape.split([bins, bins, bins - 1], dim=3)
    scale = flow.filter_channels**-0.5
    second, log_slope = spline(second, widths * scale, heights * scale, slopes, bound=flow.tail_bound)
    return torch.cat([first, second], dim=1) * mask, (log_slope * mask).sum((1, 2))


def spline(
    values: Tensor,
    widths: Tensor,
    heights: Tensor,
    slopes: Tensor,
    *,
    bound: float,
    least: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """A monotonic rational-quadratic spline on [-bound, bound], the identity outside (Durkan et al., 2019).

    It computes every element as if it were inside and then chooses, so that no shape depends on the values and a
    step never waits for the device to know it.

    Args:
        values: [...].
        widths: [..., K] of the bins, before a softmax.
        heights: [..., K] of the bins, before a softmax.
        slopes: [..., K - 1] at the knots between them, before a softplus.
        bound: Where the identity begins; there the slope is 1.
        least: The least width and height, as a share of the whole, and the least slope.

    Returns:
        The spline's values and the logarithm of its slope there, each [...].
    """
    inside = (values >= -bound) & (values <= bound)
    clamped = values.clamp(-bound, bound)[..., None]
    left, widths = _knots(widths, bound, least)
    lower, heights = _knots(heights, bound, least)
    slopes = functional.pad(least + functional.softplus(slopes), (1, 1), value=1.0)
    # Right-open bins; the last one has its end too.
    at = ((clamped >= left).sum(-1, keepdim=True) - 1).clamp(0, widths.shape[-1] - 1)
    left, width, lower, height = (part.gather(-1, at) for part in (left, widths, lower, heights))
    before, after = slopes.gather(-1, at), slopes.gather(-1, at + 1)
    mean = height / width

    theta = (clamped - left) / width
    both = theta * (1 - theta)
    denominator = mean + (before + after - 2 * mean) * both
    result = lower + height * (mean * theta**2 + before * both) / denominator
    numerator = mean**2 * (after * theta**2 + 2 * mean * both + before * (1 - theta) ** 2)
    log_slope = numerator.log() - 2 * denominator.log()
    return (
        torch.where(inside, result.squeeze(-1), values),
        torch.where(inside, log_slope.squeeze(-1), torch.zeros_like(values)),
    )


def _knots(shares: Tensor, bound: float, least: float) -> tuple[Tensor, Tensor]:
    """Where bins begin and how long they are, each [..., K], from shares before a softmax."""
    bins = shares.shape[-1]
    shares = least + (1 - least * bins) * shares.softmax(-1)
    knots = functional.pad(shares.cumsum(-1)[..., :-1], (1, 1))
    knots = 2 * bound * knots - bound
    ends = torch.ones_like(knots[..., -1:]) * bound
    knots = torch.cat([knots[..., :-1], ends], dim=-1)
    return knots[..., :-1], knots.diff(dim=-1)


def condition(
    predictor: VitsStochasticDurationPredictor, hidden: Tensor, mask: Tensor, speaker: Tensor | None
) -> Tensor:
    """What every flow of the predictor is conditioned on: [B, D, T], from detached text hidden states."""
    inputs = predictor.conv_pre(hidden.detach())
    if speaker is not None:
        inputs = inputs + predictor.cond(speaker.detach())
    return predictor.conv_proj(predictor.conv_dds(inputs, mask)) * mask  # type: ignore[no-any-return]


def stochastic_duration_loss(
    predictor: VitsStochasticDurationPredictor,
    hidden: Tensor,
    mask: Tensor,
    durations: Tensor,
    speaker: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """The variational bound on the durations' negative log-likelihood (VITS, equation 7).

    Args:
        predictor: The stochastic duration predictor.
        hidden: [B, D, T] text hidden states; detached here.
        mask: [B, 1, T].
        durations: [B, 1, T] frames of each token.
        speaker: [B, E, 1] speaker embeddings; detached here.
        noise: [B, 2, T] standard normal; drawn when left out.

    Returns:
        [B], in nats, summed over each item's tokens.
    """
    conditioning = condition(predictor, hidden, mask, speaker)

    posterior = predictor.post_conv_dds(predictor.post_conv_pre(durations), mask)
    posterior = predictor.post_conv_proj(posterior) * mask
    if noise is None:
        noise = torch.randn(mask.shape[0], 2, mask.shape[2], device=mask.device, dtype=mask.dtype)
    noise = noise * mask
    latents, log_determinant = flow_forward(predictor.post_flows, noise, mask, conditioning + posterior)
    logit, auxiliary = latents.chunk(2, dim=1)
    log_sigmoid_jacobian = functional.logsigmoid(logit) + functional.logsigmoid(-logit)
    log_q = (
        ((-_HALF_LOG_2PI - 0.5 * noise**2) * mask).sum((1, 2))
        - log_determinant
        - (log_sigmoid_jacobian * mask).sum((1, 2))
    )

    # Variational dequantisation: a uniform-like u in (0, 1) is taken off each whole number of frames.
    dequantized = (durations - torch.sigmoid(logit)) * mask
    log_dequantized = torch.log(dequantized.clamp_min(1e-5)) * mask
    latents = torch.cat([log_dequantized, auxiliary], dim=1)
    latents, log_determinant = flow_forward(predictor.flows, latents, mask, conditioning)
    negative_log_likelihood = (
        ((_HALF_LOG_2PI + 0.5 * latents**2) * mask).sum((1, 2))
        - log_determinant
        + log_dequantized.sum((1, 2))
    )
    return negative_log_likelihood + log_q
