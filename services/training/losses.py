"""The losses of VITS, all in float32 at least.

Shapes: B batch, F frames, D latent channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from services.training.discriminator import Judgement
from shared.modeling.model import at_least_float32


def discriminator_loss(real: Sequence[Judgement], generated: Sequence[Judgement]) -> Tensor:
    """``Σ mean((1 − D(x))²) + mean(D(G(z))²)`` over the networks (least-squares GAN; VITS, equation 8)."""
    return torch.stack(
        [
            ((1 - at_least_float32(true)) ** 2).mean() + (at_least_float32(false) ** 2).mean()
            for (true, _), (false, _) in zip(real, generated, strict=True)
        ]
    ).sum()


def adversarial_loss(generated: Sequence[Judgement]) -> Tensor:
    """``Σ mean((1 − D(G(z)))²)`` over the networks (VITS, equation 9)."""
    return torch.stack([((1 - at_least_float32(score)) ** 2).mean() for score, _ in generated]).sum()


def feature_loss(real: Sequence[Judgement], generated: Sequence[Judgement]) -> Tensor:
    """``2 Σ mean|D_l(x) − D_l(G(z))|`` over networks and layers (VITS, equation 10, as it is implemented)."""
    return (
        2
        * torch.stack(
            [
                functional.l1_loss(at_least_float32(false), at_least_float32(true.detach()))
                for (_, trues), (_, falses) in zip(real, generated, strict=True)
                for true, false in zip(trues, falses, strict=True)
            ]
        ).sum()
    )


def kl_loss(
    flow_latents: Tensor,
    posterior_log_std: Tensor,
    prior_mean: Tensor,
    prior_log_std: Tensor,
    frame_mask: Tensor,
) -> Tensor:
    """The one-sample KL divergence of posterior from prior, in nats a frame (VITS, equation 3).

    ``Σ(mask · [logσp − logσq − ½ + ½(z_p − m)² e^{−2 logσp}]) / Σ mask``. The first four are [B, D, F],
    the mask [B, 1, F].
    """
    prior_log_std = at_least_float32(prior_log_std)  # float16 holds e^(-2 logσ) only down to logσ = -5.5
    divergence = (
        prior_log_std
        - at_least_float32(posterior_log_std)
        - 0.5
        + 0.5
        * (at_least_float32(flow_latents) - at_least_float32(prior_mean)) ** 2
        * torch.exp(-2 * prior_log_std)
    )
    return (divergence * frame_mask).sum() / frame_mask.sum()


def mel_loss(target: Tensor, generated: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute difference of log-mel spectrograms [B, 80, F], of frames where ``mask`` [B, 1, F] is 1."""
    if mask is None:
        return functional.l1_loss(generated, target)
    return ((generated - target).abs() * mask).sum() / (mask.sum() * target.shape[1])
