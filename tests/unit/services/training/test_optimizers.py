"""AdamW of permuted parameters: PyTorch's numbers, without its copies."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from services.training import optimizers


def permuted(seed: int) -> torch.Tensor:
    """[4, 6, 5, 1], in memory as [4, 5, 6]."""
    return torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(seed)).transpose(1, 2).unsqueeze(3)


def trained(
    optimizer: type[torch.optim.AdamW], *, parameter_permuted: bool, gradient_permuted: bool
) -> list[torch.Tensor]:
    """A parameter after three steps, and its moments."""
    start = permuted(0)
    parameter = nn.Parameter(start if parameter_permuted else start.contiguous())
    optimiser = optimizer([parameter], lr=0.01, fused=True)
    for step in range(3):
        gradient = permuted(step + 1)
        parameter.grad = gradient if gradient_permuted else gradient.contiguous()
        optimiser.step()
    state = optimiser.state[parameter]
    return [parameter.detach(), state["exp_avg"], state["exp_avg_sq"]]


@pytest.mark.parametrize("parameter_permuted", [True, False])
@pytest.mark.parametrize("gradient_permuted", [True, False])
def test_it_takes_the_step_that_pytorch_takes_of_rows(
    parameter_permuted: bool, gradient_permuted: bool
) -> None:
    expected = trained(torch.optim.AdamW, parameter_permuted=False, gradient_permuted=False)
    found = trained(
        optimizers.AdamW, parameter_permuted=parameter_permuted, gradient_permuted=gradient_permuted
    )
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_nothing_is_copied() -> None:
    parameter = nn.Parameter(permuted(0))
    optimiser = optimizers.AdamW([parameter], fused=True)
    with torch.profiler.profile() as profile:
        for step in range(2):
            parameter.grad = permuted(step + 1)
            optimiser.step()
    assert "aten::_fused_adamw_" in {event.name for event in profile.events()}
    copies = [
        event
        for event in profile.events()
        if event.name == "aten::clone" and event.cpu_parent and event.cpu_parent.name == "aten::contiguous"
    ]
    assert not copies
    assert parameter.stride() == permuted(0).stride()  # and it lies where it lay
