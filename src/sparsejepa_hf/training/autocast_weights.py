# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Linear maps whose bf16 weights are kept: autocast casts weights without gradient anew at every use."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AutocastWeights:
    """bf16 copies of the weights of a module's linear maps, which bf16 autocast takes from now on.

    Results are equal to the bit, with autocast and without. A copy is taken only as long as its weight is as it was at
    the last `refresh`. The copies need two bytes a weight and are part of no checkpoint.

    Args:
        module: its weights take no gradient and lie whole on this process.
    """

    def __init__(self, module: nn.Module) -> None:
        self._linears = [part for part in module.modules() if type(part) is nn.Linear]
        self._weights = [weight for linear in self._linears for weight in linear.parameters()]
        self._copies = [weight.detach().to(torch.bfloat16, copy=True) for weight in self._weights]
        self._versions: dict[nn.Linear, list[tuple[int, int]]] = {}
        copies = iter(self._copies)
        for linear in self._linears:
            kept = {name: next(copies) for name, _ in linear.named_parameters()}
            linear.forward = partial(self._forward, linear, kept)
        self._note_versions()

    def refresh(self) -> None:
        """Takes over the weights as they now are, in one fused call."""
        torch._foreach_copy_(self._copies, self._weights)
        self._note_versions()

    def remove(self) -> None:
        """Leaves the casting to autocast again."""
        for linear in self._linears:
            del linear.forward

    def _note_versions(self) -> None:
        self._versions = {linear: _versions(linear) for linear in self._linears}

    def _forward(self, linear: nn.Linear, kept: dict[str, Tensor], states: Tensor) -> Tensor:
        if _casts_to_bf16(states.device.type) and _versions(linear) == self._versions[linear]:
            return F.linear(states, kept["weight"], kept.get("bias"))
        return F.linear(states, linear.weight, linear.bias)


def _versions(linear: nn.Linear) -> list[tuple[int, int]]:
    """Changes with every change of the weight or the bias."""
    return [(id(parameter), parameter._version) for parameter in linear.parameters()]


def _casts_to_bf16(device_type: str) -> bool:
    # Tensors without values know no autocast.
    known = device_type != "meta" and torch.is_autocast_enabled(device_type)
    return known and torch.get_autocast_dtype(device_type) is torch.bfloat16
