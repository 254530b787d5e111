"""Gradients summed over processes while the backward pass that makes them is still under way.

The parameters of a network lie in buckets, those that the backward pass comes to first in the first ones. As soon as
the last gradient of a bucket is complete it is sent, in the buckets' order on every process, and summed beside the
rest of the pass. Each gradient is summed exactly once a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed
from torch import Tensor, nn

#: Bytes of a bucket, as in torch's DistributedDataParallel: large enough for a message to be worth sending.
BUCKET_BYTES = 25 * 2**20


@dataclass
class _Bucket:
    """Parameters whose gradients travel together."""

    parameters: list[nn.Parameter]
    missing: int
    """Gradients that are still to come."""
    flat: Tensor | None = None
    work: torch.distributed.Work | None = None
    sent: list[Tensor] = field(default_factory=list)


class Reducer:
    """Sums one network's gradients over all processes.

    Args:
        network: Its parameters may learn or not from step to step, on every process alike.
        order: Modules of it, as the backward passes come to them.
        bucket_bytes: Most bytes of a bucket that has more than one parameter.
    """

    def __init__(
        self, network: nn.Module, order: Sequence[nn.Module], bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        ordered = [parameter for module in order for parameter in reversed(list(module.parameters()))]
        self._parameters = list(dict.fromkeys([*ordered, *network.parameters()]))
        self._bucket_bytes = bucket_bytes
        self._buckets: list[_Bucket] = []
        self._place: dict[nn.Parameter, _Bucket] = {}
        self._hooked: set[nn.Parameter] = set()
        self._listening = False
        self._next = 0

    @contextmanager
    def overlapped(self) -> Iterator[None]:
        """The step's last backward pass over the network: gradients that it completes are sent at once."""
        self._fill()
        self._listening = True
        try:
            yield
        finally:
            self._listening = False

    def finish(self) -> None:
        """Send what no hook has sent, wait for all of it, and have the sums in the gradients."""
        if not self._buckets:
            self._fill()
        while self._next < len(self._buckets):
            self._send()
        for bucket in self._buckets:
            if bucket.work is None or bucket.flat is None:
                continue
            bucket.work.wait()
            sums = bucket.flat.split([gradient.numel() for gradient in bucket.sent])
            for gradient, summed in zip(bucket.sent, sums, strict=True):
                gradient.copy_(summed.view_as(gradient))
        self._buckets, self._place, self._next = [], {}, 0

    def _fill(self) -> None:
        """Put what learns into buckets."""
        self._buckets, self._place, self._next = [], {}, 0
        size = self._bucket_bytes
        for parameter in self._parameters:
            if not parameter.requires_grad:
                continue
            if parameter not in self._hooked:
                parameter.register_post_accumulate_grad_hook(self._completed)
                self._hooked.add(parameter)
            if size + parameter.nbytes > self._bucket_bytes:
                self._buckets.append(_Bucket([], 0))
                size = 0
            size += parameter.nbytes
            self._buckets[-1].parameters.append(parameter)
            self._buckets[-1].missing += 1
            self._place[parameter] = self._buckets[-1]

    def _completed(self, parameter: Tensor) -> None:
        """One gradient is complete; send all buckets that are, up to the first that is not."""
        if not self._listening:
            return
        assert isinstance(parameter, nn.Parameter)  # noqa: S101 - it was hooked as one
        bucket = self._place[parameter]
        assert bucket.work is None  # noqa: S101 - a second gradient would be left out of the sum
        bucket.missing -= 1
        while self._next < len(self._buckets) and self._buckets[self._next].missing <= 0:
            self._send()

    def _send(self) -> None:
        """Send the next bucket, of gradients that there are: every process has the same ones."""
        bucket = self._buckets[self._next]
        self._next += 1
        bucket.sent = [parameter.grad for parameter in bucket.parameters if parameter.grad is not None]
        if bucket.sent:
            bucket.flat = torch.cat([gradient.flatten() for gradient in bucket.sent])
            bucket.work = torch.distributed.all_reduce(bucket.flat, async_op=True)
