# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Linear maps whose bf16 weights are kept: autocast casts weights without gradient anew at every use."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AutocastWeights:
    """bf16 copies of the weights of a module's linear maps, which bf16 autocast uses in their place from now on.

    The results are those of autocast to the bit. Without it, and in another precision, nothing changes. The copies
    take two bytes a weight and appear in no checkpoint.

    Args:
        module: its linear maps' weights lie whole on this process and take no gradient.
    """

    def __init__(self, module: nn.Module) -> None:
        self._linears = [part for part in module.modules() if type(part) is nn.Linear]
        self._weights = [weight for linear in self._linears for weight in linear.parameters()]
        self._copies = [weight.detach().to(torch.bfloat16, copy=True) for weight in self._weights]
        copies = iter(self._copies)
        for linear in self._linears:
            weight, bias = next(copies), None if linear.bias is None else next(copies)
            linear.forward = partial(_linear, linear, weight, bias)

    def refresh(self) -> None:
        """Takes over the weights as they now are, in one fused call."""
        torch._foreach_copy_(self._copies, self._weights)

    def remove(self) -> None:
        """From now on autocast casts the weights itself again."""
        for linear in self._linears:
            del linear.forward


def _linear(linear: nn.Linear, weight: Tensor, bias: Tensor | None, states: Tensor) -> Tensor:
    kind = states.device.type
    # Tensors without values know no autocast.
    if kind != "meta" and torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is weight.dtype:
        return F.linear(states, weight, bias)
    return F.linear(states, linear.weight, linear.bias)
