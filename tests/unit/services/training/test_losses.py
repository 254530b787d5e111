"""Each loss against the formula of its paper, in plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.training.losses import adversarial_loss, discriminator_loss, feature_loss, kl_loss, mel_loss

RNG = np.random.default_rng(0)


def tensor(array: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(array).float()


def draw(*shape: int) -> NDArray[np.float64]:
    return RNG.normal(size=shape)


REAL = [(draw(3, 7), [draw(3, 2, 5), draw(3, 4)]), (draw(3, 5), [draw(3, 6)])]
FAKE = [(draw(3, 7), [draw(3, 2, 5), draw(3, 4)]), (draw(3, 5), [draw(3, 6)])]


def judgements(
    arrays: list[tuple[NDArray[np.float64], list[NDArray[np.float64]]]],
) -> list[tuple[Tensor, list[Tensor]]]:
    return [(tensor(score), [tensor(feature) for feature in features]) for score, features in arrays]


def test_discriminator() -> None:
    expected = sum(
        np.mean((1 - real) ** 2) + np.mean(fake**2) for (real, _), (fake, _) in zip(REAL, FAKE, strict=True)
    )
    assert float(discriminator_loss(judgements(REAL), judgements(FAKE))) == pytest.approx(expected, rel=1e-5)


def test_adversarial() -> None:
    expected = sum(np.mean((1 - fake) ** 2) for fake, _ in FAKE)
    assert float(adversarial_loss(judgements(FAKE))) == pytest.approx(expected, rel=1e-5)


def test_feature_maps() -> None:
    expected = 2 * sum(
        np.mean(np.abs(real - fake))
        for (_, reals), (_, fakes) in zip(REAL, FAKE, strict=True)
        for real, fake in zip(reals, fakes, strict=True)
    )
    assert float(feature_loss(judgements(REAL), judgements(FAKE))) == pytest.approx(expected, rel=1e-5)


def test_feature_maps_give_the_real_side_no_gradient() -> None:
    real, fake = (torch.randn(2, 3, requires_grad=True) for _ in range(2))
    feature_loss([(real, [real])], [(fake, [fake])]).backward()
    assert real.grad is None
    assert fake.grad is not None


def kl_arguments() -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    latents, log_q, mean, log_p = (draw(2, 4, 6) for _ in range(4))
    mask = np.ones((2, 1, 6))
    mask[1, :, 3:] = 0
    return [latents, log_q, mean, log_p], mask


def test_kl() -> None:
    (latents, log_q, mean, log_p), mask = kl_arguments()
    divergence = log_p - log_q - 0.5 + 0.5 * (latents - mean) ** 2 * np.exp(-2 * log_p)
    expected = (divergence * mask).sum() / mask.sum()
    found = kl_loss(tensor(latents), tensor(log_q), tensor(mean), tensor(log_p), tensor(mask))
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_kl_survives_a_narrow_prior(dtype: torch.dtype) -> None:
    """finetune-hf-vits, defect 4: e^(-2 log-std) overflows float16; at -10 it is e^20."""
    latents, log_q, mean = (torch.full((1, 2, 3), 0.01, dtype=dtype) for _ in range(3))
    log_p = torch.full((1, 2, 3), -10.0, dtype=dtype)
    assert not bool(torch.isfinite(torch.exp(-2 * log_p.half())).all())
    loss = kl_loss(latents, log_q, mean + 0.01, log_p, torch.ones(1, 1, 3))
    assert loss.dtype == torch.float32
    difference = float((latents - mean - 0.01)[0, 0, 0])
    assert float(loss) == pytest.approx(2 * (-10.51 + 0.5 * difference**2 * np.exp(20)), rel=0.01)


def test_adversarial_losses_are_float32_whatever_the_networks_gave() -> None:
    half = [
        (score.half() * 300, [feature.half() for feature in features]) for score, features in judgements(FAKE)
    ]
    for loss in (discriminator_loss(half, half), adversarial_loss(half), feature_loss(half, half)):
        assert loss.dtype == torch.float32
        assert bool(torch.isfinite(loss))


def test_mel() -> None:
    target, generated = draw(2, 80, 6), draw(2, 80, 6)
    mask = np.ones((2, 1, 6))
    mask[0, :, 4:] = 0
    whole = mel_loss(tensor(target), tensor(generated))
    assert float(whole) == pytest.approx(np.abs(target - generated).mean(), rel=1e-5)
    expected = np.average(np.abs(target - generated), weights=np.broadcast_to(mask, target.shape))
    assert float(mel_loss(tensor(target), tensor(generated), tensor(mask))) == pytest.approx(
        expected, rel=1e-5
    )
