"""Faster ways to compute a convolution give what torch's own gives, gradients included."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from transformers import VitsConfig
from transformers.models.vits.modeling_vits import VitsDilatedDepthSeparableConv

from services.training import layout, winograd
from services.training.layout import (
    convolve_along_width,
    use_channels_last,
    use_quick_dropout,
    use_tokens_of_channels,
    weight_norm_along_width,
    weights_as_they_are,
)


def gradients(network: nn.Module, inputs: Tensor, result: Tensor) -> list[Tensor]:
    direction = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)
    return list(torch.autograd.grad(result, [inputs, *network.parameters()], direction))


def computes_the_same(plain: nn.Module, ours: nn.Module, values: Tensor, *others: Tensor | None) -> Tensor:
    """Results and gradients; our result."""
    inputs = [values.clone().requires_grad_() for _ in range(2)]
    results: list[Tensor] = [
        network(one, *others) for network, one in zip((plain, ours), inputs, strict=True)
    ]
    torch.testing.assert_close(results[1], results[0])
    for expected, found in zip(
        gradients(plain, inputs[0], results[0]), gradients(ours, inputs[1], results[1]), strict=True
    ):
        torch.testing.assert_close(found, expected)
    return results[1]


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("stride", "dilation", "kernel"), [(1, 1, 5), (1, 3, 7), (4, 1, 41)])
def test_channels_last_convolutions_compute_the_same(
    groups: int, stride: int, dilation: int, kernel: int
) -> None:
    plain = nn.Sequential(
        nn.Conv1d(8, 8, kernel, stride, dilation * (kernel // 2), dilation, groups),
        nn.LeakyReLU(0.1),
        nn.Conv1d(8, 4, 1),
    ).double()
    ours = copy.deepcopy(plain)
    use_channels_last(ours)
    values = torch.randn(3, 8, 90, dtype=torch.float64)
    assert computes_the_same(plain, ours, values).stride(1) == 1  # the layout goes on to the next layer


@pytest.mark.parametrize("kernel", [4, 16])
@pytest.mark.parametrize(("more", "groups", "dilation"), [(0, 1, 1), (1, 2, 3)])
def test_transposed_convolutions_compute_the_same(kernel: int, more: int, groups: int, dilation: int) -> None:
    """And what comes after them need not turn it."""
    layer = nn.ConvTranspose1d(6, 4, kernel, kernel // 2, kernel // 4, more, groups, dilation=dilation)
    plain = nn.Sequential(layer).double()
    ours = copy.deepcopy(plain)
    use_channels_last(ours)
    values = torch.randn(3, 6, 9, dtype=torch.float64)
    assert computes_the_same(plain, ours, values).stride(1) == 1


def test_a_copy_of_a_converted_network_uses_its_own_weights() -> None:
    network = nn.Conv1d(4, 4, 3)
    use_channels_last(network)
    other = copy.deepcopy(network)
    nn.init.zeros_(other.weight)
    assert network(torch.ones(1, 4, 5)).ne(other(torch.ones(1, 4, 5))).any()


def compute_by(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Let layers of any width compute as wide ones do, or as narrow ones."""
    monkeypatch.setattr(layout, "_WIDE", 10**9 if way == "convolution" else 0)
    monkeypatch.setattr(winograd, "_WIDE", 0 if way == "minimal filtering" else 10**9)
    monkeypatch.setattr(winograd, "_MANY", 0)


WAYS = ["convolution", "product", "minimal filtering"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("stride", "length"), [(3, 31), (3, 32), (3, 33), (1, 31)])
def test_along_the_width_is_along_the_height(
    monkeypatch: pytest.MonkeyPatch, stride: int, length: int, way: str
) -> None:
    """Against torch's weight norm and convolution of the images as they stand."""
    compute_by(monkeypatch, way)
    plain = nn.Conv2d(6, 10, (5, 1), (stride, 1), (2, 0)).double()
    ours = weight_norm_along_width(copy.deepcopy(plain))
    plain = weight_norm(plain)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    assert ours.weight.transpose(2, 3).is_contiguous(memory_format=torch.channels_last)
    values = torch.randn(2, 6, length, 3, dtype=torch.float64)
    inputs = [values.clone().requires_grad_() for _ in range(2)]
    along = convolve_along_width(ours, inputs[1].transpose(2, 3))
    results = [
        functional.leaky_relu(plain(inputs[0]), 0.1),
        functional.leaky_relu(along, 0.1, inplace=True).transpose(2, 3),  # as the discriminator has it
    ]
    torch.testing.assert_close(results[1], results[0])
    for expected, found in zip(
        gradients(plain, inputs[0], results[0]), gradients(ours, inputs[1], results[1]), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("way", WAYS)
def test_one_row_is_an_image_of_one(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    compute_by(monkeypatch, way)
    plain = nn.Conv1d(6, 10, 5, padding=2).double()
    ours = weight_norm_along_width(layout.WideConv1d(6, 10, 5, padding=2).double())
    plain = weight_norm(plain)
    ours.load_state_dict(plain.state_dict())
    values = torch.randn(2, 6, 31, dtype=torch.float64)
    computes_the_same(plain, ours, values)


def test_a_wide_layer_obeys_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_WIDE", 0)
    convolution = weight_norm_along_width(nn.Conv2d(6, 10, (5, 1), (3, 1), (2, 0)))
    values = torch.randn(2, 6, 3, 31)
    with torch.autocast("cpu", torch.bfloat16):
        result = convolve_along_width(convolution, values)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(
        result.float(), convolve_along_width(convolution, values), rtol=0.05, atol=0.05
    )
    functional.mse_loss(result.float(), torch.zeros_like(result.float())).backward()
    direction = dict(convolution.named_parameters())["parametrizations.weight.original1"]
    assert direction.grad is not None
    assert direction.grad.dtype == torch.float32


def test_half_precision_takes_the_gradients_of_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """By minimal filtering: of the input, and of the weight norm's parts."""
    compute_by(monkeypatch, "minimal filtering")
    convolution = weight_norm_along_width(nn.Conv2d(48, 64, (5, 1), padding=(2, 0)))
    exact = copy.deepcopy(convolution).double()
    values = torch.randn(2, 48, 3, 31)
    inputs = values.double().requires_grad_(), values.clone().requires_grad_()
    expected = convolve_along_width(exact, inputs[0])
    with torch.autocast("cpu", torch.bfloat16):
        found = convolve_along_width(convolution, inputs[1])
    for theirs, ours in zip(
        gradients(exact, inputs[0], expected), gradients(convolution, inputs[1], found), strict=True
    ):
        assert ours.dtype == torch.float32
        assert float((ours - theirs).norm() / theirs.norm()) < 0.01


@pytest.mark.parametrize("conditioned", [True, False])
def test_separable_convolutions_compute_the_same_token_by_token(conditioned: bool) -> None:
    config = VitsConfig(hidden_size=12, duration_predictor_kernel_size=3, depth_separable_num_layers=3)
    plain = VitsDilatedDepthSeparableConv(config).double()
    ours = copy.deepcopy(plain)
    use_tokens_of_channels(ours)
    mask = torch.ones(3, 1, 40, dtype=torch.float64)
    mask[1, :, 7:] = 0
    values = torch.randn(3, 12, 40, dtype=torch.float64)
    conditioning = torch.randn_like(values) if conditioned else None
    computes_the_same(plain, ours, values, mask, conditioning)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_weights_as_they_are_are_prepared_once(
    monkeypatch: pytest.MonkeyPatch, way: str, kind: torch.dtype
) -> None:
    """Inside, the second pass takes what the first has made; afterwards a changed weight is seen."""
    compute_by(monkeypatch, way)
    convolution = weight_norm_along_width(nn.Conv2d(6, 10, (5, 1), padding=(2, 0)))
    values = torch.randn(2, 6, 3, 31)

    def compute() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
            return convolve_along_width(convolution, values)

    with weights_as_they_are():
        with torch.no_grad():
            first = compute()
        second = compute()
        assert len(layout._prepared or {}) == (way != "convolution")
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    torch.testing.assert_close(compute(), first, rtol=0, atol=0)
    with torch.no_grad():
        dict(convolution.named_parameters())["parametrizations.weight.original1"][0] += 1
    assert compute()[:, 0].ne(first[:, 0]).any()


def test_in_half_precision_narrower_layers_are_not_for_minimal_filtering(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compute_by(monkeypatch, "minimal filtering")
    network = nn.Conv1d(6, 6, 5, padding=2)
    use_channels_last(network)
    monkeypatch.setattr(winograd, "convolve", lambda *_: pytest.fail("by minimal filtering"))
    with torch.autocast("cpu", torch.bfloat16):
        assert network(torch.randn(1, 6, 9)).dtype == torch.bfloat16
    with pytest.raises(pytest.fail.Exception, match="by minimal filtering"):
        network(torch.randn(1, 6, 9))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_quick_dropout_drops_and_scales_as_often_as_told(p: float) -> None:
    """Each element, whatever its place: those of a machine word share one draw."""
    dropout = nn.Dropout(p)
    use_quick_dropout(dropout)
    torch.manual_seed(0)
    values = torch.full((200, 100, 5), 3.0, requires_grad=True)  # not a whole number of fours in a row
    result = dropout(values)
    kept = result != 0
    torch.testing.assert_close(result[kept], torch.full_like(result[kept], 3 / (1 - p)))
    for place in range(4):
        share = kept.flatten()[place::4].double().mean().item()
        assert abs(share - (1 - p)) < 5 * (p * (1 - p) / 25_000) ** 0.5
    (gradient,) = torch.autograd.grad(result.sum(), values)
    torch.testing.assert_close(gradient, kept / (1 - p))
    neighbours = kept.flatten().view(-1, 4).double()
    assert torch.corrcoef(neighbours.t()).fill_diagonal_(0).abs().max() < 0.04


def test_quick_dropout_depends_on_the_seed_alone_and_rests_in_evaluation() -> None:
    dropout = nn.Dropout(0.3)
    use_quick_dropout(dropout)
    values = torch.randn(7, 3, dtype=torch.bfloat16)
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(dropout(values))
    assert results[0].dtype == torch.bfloat16
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    torch.testing.assert_close(dropout.eval()(values), values, rtol=0, atol=0)
