"""AdamW of parameters in whatever layout they lie in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class AdamW(torch.optim.AdamW):
    """PyTorch's fused AdamW (Loshchilov and Hutter, 2019), of parameters that may be permuted in memory.

    PyTorch's kernel for processors goes through a parameter, its gradient and its moments side by side in memory.
    Permuted ones it copies into rows before every step, and the results back; and where the gradient lies otherwise
    than its parameter, it takes one element's for another's. Here the kernel is given all of them as the parameter
    lies. The numbers are those of rows, to the bit.
    """

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        complex_there: bool = super()._init_group(group, *lists)  # type: ignore[no-untyped-call]
        for place, parameter in enumerate(lists[0]):
            strides = parameter.stride()
            order = sorted(range(parameter.ndim), key=lambda dimension: -strides[dimension])
            if order != list(range(parameter.ndim)):
                for tensors in lists[:4]:  # parameters, gradients, first and second moments
                    tensors[place] = tensors[place].permute(order)
            lists[1][place] = lists[1][place].contiguous()
        return complex_there
