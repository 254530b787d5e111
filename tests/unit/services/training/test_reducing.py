"""Sums of gradients over processes: each exactly once, in one order, and while the backward pass goes on.

That two processes take the step of one is in ``tests/integration/test_distributed.py``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor, nn

from services.training.reducing import Reducer

messages: list[int] = []


@pytest.fixture(autouse=True)
def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process beside this one that has the same gradients."""
    messages.clear()

    class Message:
        def __init__(self, flat: Tensor) -> None:
            self.flat = flat

        def wait(self) -> None:
            self.flat *= 2

    def all_reduce(flat: Tensor, *, async_op: bool) -> Message:
        assert async_op
        messages.append(len(flat))
        return Message(flat)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))


def gradients(layers: nn.Module) -> list[Tensor | None]:
    return [None if one.grad is None else one.grad.clone() for one in layers.parameters()]


def plain(parts: int = 1, frozen: int | None = None) -> list[Tensor | None]:
    layers = network()
    if frozen is not None:
        layers[frozen].requires_grad_(False)
    for part in range(parts):
        layers(torch.full((2, 8), 1.0 + part)).square().sum().backward()
    return gradients(layers)


def assert_doubled(layers: nn.Module, expected: list[Tensor | None]) -> None:
    for ours, theirs in zip(gradients(layers), expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, 2 * theirs, rtol=0, atol=0)


@pytest.mark.parametrize("size", [1, 300, 10**6])
@pytest.mark.parametrize("parts", [1, 3])
def test_every_gradient_is_summed_once_a_step(size: int, parts: int) -> None:
    layers = network()
    reducer = Reducer(layers, list(reversed(layers)), bucket_bytes=size)
    for _ in range(2):  # steps
        messages.clear()
        for part in range(parts):
            loss = layers(torch.full((2, 8), 1.0 + part)).square().sum()
            if part == parts - 1:
                with reducer.overlapped():
                    loss.backward()
            else:
                loss.backward()
        reducer.finish()
        assert sum(messages) == sum(one.numel() for one in layers.parameters())
        assert_doubled(layers, plain(parts))
        layers.zero_grad()


def test_sums_begin_before_the_backward_pass_has_ended() -> None:
    layers = network()
    reducer = Reducer(layers, list(reversed(layers)), bucket_bytes=300)
    seen: list[int] = []
    first = next(layers.parameters())  # the last one that the pass comes to
    with reducer.overlapped():
        first.register_hook(lambda _: seen.append(len(messages)))
        layers(torch.ones(2, 8)).square().sum().backward()
    assert seen[0] >= 3
    reducer.finish()
    assert_doubled(layers, plain())


def test_the_order_of_messages_is_the_buckets_whatever_is_complete_first() -> None:
    """As processes have to agree on it."""
    layers = network()
    reducer = Reducer(layers, list(layers), bucket_bytes=1)  # the wrong way round: nothing is ready in turn
    with reducer.overlapped():
        layers(torch.ones(2, 8)).square().sum().backward()
    reducer.finish()
    assert messages == [one.numel() for layer in layers for one in reversed(list(layer.parameters()))]
    assert_doubled(layers, plain())


def test_what_does_not_learn_is_left_out_and_comes_back() -> None:
    layers = network()
    reducer = Reducer(layers, list(reversed(layers)), bucket_bytes=300)
    for frozen in (1, None, 2):
        layers.requires_grad_(True).zero_grad()
        if frozen is not None:
            layers[frozen].requires_grad_(False)
        with reducer.overlapped():
            layers(torch.ones(2, 8)).square().sum().backward()
        reducer.finish()
        assert_doubled(layers, plain(frozen=frozen))


def test_a_pass_that_nobody_listened_to_is_summed_at_the_end() -> None:
    layers = network()
    reducer = Reducer(layers, list(reversed(layers)))
    layers(torch.ones(2, 8)).square().sum().backward()
    assert messages == []
    reducer.finish()
    assert_doubled(layers, plain())


def test_a_gradient_that_comes_twice_is_not_lost_silently() -> None:
    layers: Any = network()
    reducer = Reducer(layers, list(reversed(layers)), bucket_bytes=1)
    with reducer.overlapped():
        layers(torch.ones(2, 8)).square().sum().backward()
        with pytest.raises(AssertionError):
            layers(torch.ones(2, 8)).square().sum().backward()
