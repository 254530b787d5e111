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
from transformers.models.vits.modeling_vits import VitsStochasticDurationPredictor

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
    log_determinant = latents.new_zeros(latents.shape[0])
    for index, flow in enumerate(flows):
        latents, contribution = flow(latents, mask, global_conditioning=conditioning)
        log_determinant = log_determinant + contribution
        if index > 0:  # the flip belongs to the spline flows alone
            latents = torch.flip(latents, [1])
    return latents, log_determinant


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
