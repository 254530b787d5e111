"""The training direction of the stochastic duration predictor, against its inference and its formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.vits import modeling_vits
from transformers.models.vits.modeling_vits import VitsStochasticDurationPredictor

from shared.modeling import VitsForTraining
from shared.modeling.durations import condition, flow_forward, spline, stochastic_duration_loss

MakeModel = Callable[..., VitsForTraining]
B, D, T = 3, 8, 5


@pytest.fixture
def predictor(make_model: MakeModel) -> VitsStochasticDurationPredictor:
    return make_model(num_speakers=3, speaker_embedding_size=4).duration_predictor.double()


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    """A ragged batch in float64: hidden, mask, durations, speaker and noise."""
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(T) < torch.tensor([[5], [3], [1]]))[:, None].double()

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "hidden": normal(B, D, T) * mask,
        "mask": mask,
        "durations": torch.randint(1, 9, (B, 1, T), generator=generator).double() * mask,
        "speaker": normal(B, 4, 1),
        "noise": normal(B, 2, T),
    }


def inverse(flows: Any, latents: Tensor, mask: Tensor, conditioning: Tensor) -> Tensor:
    """Every flow's own reverse, as ``transformers`` chains them to speak: a flip before each."""
    first, *splines = flows
    for flow in reversed(splines):
        latents, _ = flow(torch.flip(latents, [1]), mask, global_conditioning=conditioning, reverse=True)
    latents, _ = first(latents, mask, global_conditioning=conditioning, reverse=True)
    return latents


@pytest.mark.parametrize("chain", ["flows", "post_flows"])
def test_training_direction_then_inference_is_the_identity(
    predictor: VitsStochasticDurationPredictor, inputs: dict[str, Tensor], chain: str
) -> None:
    flows = getattr(predictor, chain)
    mask, conditioning = inputs["mask"], condition(predictor, inputs["hidden"], inputs["mask"], None)
    latents = inputs["noise"] * mask
    forward, _ = flow_forward(flows, latents, mask, conditioning)
    assert (forward - latents).abs().max() > 0.1
    torch.testing.assert_close(inverse(flows, forward, mask, conditioning), latents, atol=1e-9, rtol=0)


def test_transformers_own_inference_undoes_the_training_direction(
    predictor: VitsStochasticDurationPredictor, inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves the first spline out, which transforms the auxiliary channel only."""
    predictor = predictor.float()
    values = {name: value.float() for name, value in inputs.items()}
    mask, speaker = values["mask"], values["speaker"]
    conditioning = condition(predictor, values["hidden"], mask, speaker)
    log_durations = torch.log(values["durations"].clamp_min(1e-5)) * mask
    latents = torch.cat([log_durations, values["noise"][:, :1] * mask], 1)
    forward, _ = flow_forward(predictor.flows, latents, mask, conditioning)

    monkeypatch.setattr(torch, "randn", lambda *shape: forward)
    spoken = predictor(values["hidden"], mask, speaker, reverse=True)
    torch.testing.assert_close(spoken, log_durations, atol=1e-5, rtol=0)


def test_log_determinant_is_that_of_the_jacobian(
    predictor: VitsStochasticDurationPredictor, inputs: dict[str, Tensor]
) -> None:
    mask = torch.ones(1, 1, 3, dtype=torch.float64)
    conditioning = condition(predictor, inputs["hidden"][:1, :, :3], mask, inputs["speaker"][:1])

    def flat(values: Tensor) -> Tensor:
        return flow_forward(predictor.flows, values.view(1, 2, 3), mask, conditioning)[0].flatten()

    start = inputs["noise"][0, :, :3].flatten()
    jacobian: Tensor = torch.autograd.functional.jacobian(flat, start)
    _, log_determinant = flow_forward(predictor.flows, start.view(1, 2, 3), mask, conditioning)
    assert log_determinant.item() == pytest.approx(torch.linalg.slogdet(jacobian)[1].item(), abs=1e-9)
    assert abs(log_determinant.item()) > 0.1


def plain_duration_loss(
    predictor: Any, hidden: Tensor, mask: Tensor, durations: Tensor, speaker: Tensor, noise: Tensor
) -> Tensor:
    """VITS's bound for one item, token by token, without any of the code under test.

    −log p(d − u, ν) + log q(u, ν), each density by its change of variables.
    """
    log_normal: Any = torch.distributions.Normal(0.0, 1.0).log_prob
    x = predictor.conv_pre(hidden) + predictor.cond(speaker)
    x = predictor.conv_proj(predictor.conv_dds(x, mask)) * mask
    h = predictor.post_conv_proj(predictor.post_conv_dds(predictor.post_conv_pre(durations), mask)) * mask

    def chain(flows: Any, z: Tensor, conditioning: Tensor) -> tuple[Tensor, Tensor]:
        affine = flows[0]
        total = affine.log_scale.sum() * mask.sum()
        z = (affine.translate + torch.exp(affine.log_scale) * z) * mask
        for flow in list(flows)[1:]:
            z, determinant = flow(z, mask, global_conditioning=conditioning)
            z = z[:, [1, 0]]
            total = total + determinant
        return z, total

    tokens = int(mask.sum())
    noise = noise * mask
    z_q, determinant_q = chain(predictor.post_flows, noise, x + h)
    u = torch.sigmoid(z_q[:, 0])
    log_q = log_normal(noise[..., :tokens]).sum() - determinant_q
    log_q = log_q - torch.log(u * (1 - u))[..., :tokens].sum()
    z_0 = torch.log((durations[:, 0] - u).clamp_min(1e-5)) * mask[:, 0]
    z, determinant_p = chain(predictor.flows, torch.stack([z_0, z_q[:, 1]], 1), x)
    log_p = log_normal(z[..., :tokens]).sum() + determinant_p - z_0.sum()
    loss: Tensor = log_q - log_p
    return loss


def test_loss_is_the_formula_of_vits(
    predictor: VitsStochasticDurationPredictor, inputs: dict[str, Tensor]
) -> None:
    loss = stochastic_duration_loss(predictor, **inputs)
    expected = [
        plain_duration_loss(predictor, **{name: value[i : i + 1] for name, value in inputs.items()})
        for i in range(B)
    ]
    torch.testing.assert_close(loss, torch.stack(expected).flatten(), atol=1e-9, rtol=0)


def test_loss_of_transformers_differs_by_the_extra_flip(
    predictor: VitsStochasticDurationPredictor, inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Theirs with the flip after the affine flow cancelled is ours; untouched it is not."""
    monkeypatch.setattr(torch, "randn", lambda *shape: inputs["noise"])

    def theirs() -> Tensor:
        loss: Tensor = predictor(
            inputs["hidden"], inputs["mask"], inputs["speaker"], durations=inputs["durations"]
        )
        return loss

    ours = stochastic_duration_loss(predictor, **inputs)
    assert ((theirs() - ours).abs() > 1e-3).all()
    affine: Any = modeling_vits.VitsElementwiseAffine.forward

    def flipped(self: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        latents, determinant = affine(self, *args, **kwargs)
        return torch.flip(latents, [1]), determinant

    monkeypatch.setattr(modeling_vits.VitsElementwiseAffine, "forward", flipped)
    torch.testing.assert_close(theirs(), ours, atol=1e-9, rtol=0)


def test_loss_is_a_bound_that_better_durations_tighten(
    predictor: VitsStochasticDurationPredictor, inputs: dict[str, Tensor]
) -> None:
    """A few steps of gradient descent on fixed noise make the durations likelier."""
    optimizer = torch.optim.Adam(predictor.parameters(), lr=1e-2)
    before = after = math.inf
    for step in range(15):
        loss = stochastic_duration_loss(predictor, **inputs).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        before, after = (loss.item() if step == 0 else before), loss.item()
    assert after < before - 5


def test_gradient_never_reaches_text_or_speaker(
    predictor: VitsStochasticDurationPredictor, inputs: dict[str, Tensor]
) -> None:
    inputs["hidden"].requires_grad_()
    inputs["speaker"].requires_grad_()
    stochastic_duration_loss(predictor, **inputs).sum().backward()
    assert inputs["hidden"].grad is None
    assert inputs["speaker"].grad is None
    unreached = [name for name, parameter in predictor.named_parameters() if parameter.grad is None]
    assert unreached == []


def test_padding_takes_no_part(predictor: VitsStochasticDurationPredictor, inputs: dict[str, Tensor]) -> None:
    ragged = stochastic_duration_loss(predictor, **inputs)
    alone = stochastic_duration_loss(
        predictor,
        inputs["hidden"][1:2, :, :3],
        inputs["mask"][1:2, :, :3],
        inputs["durations"][1:2, :, :3],
        inputs["speaker"][1:2],
        inputs["noise"][1:2, :, :3],
    )
    torch.testing.assert_close(ragged[1:2], alone, atol=1e-9, rtol=0)


def test_noise_is_drawn_when_left_out(
    predictor: VitsStochasticDurationPredictor, inputs: dict[str, Tensor]
) -> None:
    del inputs["noise"]
    first = stochastic_duration_loss(predictor, **inputs)
    assert first.dtype == torch.float64
    assert not torch.equal(first, stochastic_duration_loss(predictor, **inputs))


@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_the_spline_is_transformers(spread: float) -> None:
    """Values and slopes, inside, outside and on the ends."""
    generator = torch.Generator().manual_seed(0)
    values = spread * torch.randn(3, 1, 50, generator=generator, dtype=torch.float64)
    values[0, 0, :4] = torch.tensor([-5.0, 5.0, 7.0, -1e4])
    widths, heights = torch.randn(2, 3, 1, 50, 10, generator=generator, dtype=torch.float64)
    slopes = torch.randn(3, 1, 50, 9, generator=generator, dtype=torch.float64)
    expected = modeling_vits._unconstrained_rational_quadratic_spline(values, widths, heights, slopes)
    for ours, theirs in zip(spline(values, widths, heights, slopes, bound=5.0), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_splines_gradient_is_finite_far_outside() -> None:
    values = torch.tensor([[-1e6, -5.0, 0.0, 5.0, 1e6]], requires_grad=True)
    shape = torch.zeros(1, 5, 10, requires_grad=True)
    result, log_slope = spline(values, shape, shape, shape[..., :9], bound=5.0)
    (result.sum() + log_slope.sum()).backward()
    assert values.grad is not None
    assert bool(torch.isfinite(values.grad).all())
    assert values.grad[0, [0, 4]].tolist() == [1, 1]
    assert shape.grad is not None
    assert bool(torch.isfinite(shape.grad).all())
