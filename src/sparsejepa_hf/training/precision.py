# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What bf16 costs: small changes of weights, casts of weights that no gradient moves, slow products on some CPUs."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Tokens, inputs and outputs of a linear map of a small ViT: a product takes milliseconds.
_PRODUCT = (512, 192, 768)
_TURNS = 5
# Two times of the same product differ by a few per cent.
_NOISE = 1.1


def require_full_precision(parameters: Iterable[tuple[str, Tensor]], are_averages: bool = False) -> None:
    """Refuses weights to train, and averages of them, in half precision: a change of less than 1/256 would be lost.

    Args:
        parameters: names and parameters; of those, only what takes a gradient is looked at.
        are_averages: look at all of them.

    Raises:
        ValueError: one of them is bf16 or fp16.
    """
    half = {name: p.dtype for name, p in parameters if (p.requires_grad or are_averages) and p.itemsize < 4}
    if half:
        name, dtype = next(iter(half.items()))
        raise ValueError(
            f"{len(half)} weights that training moves, such as {name}, are held in {dtype}; expected float32, since "
            "small steps and the moving average are lost to rounding in half precision. Hold the model in float32, by "
            "from_pretrained(..., dtype=torch.float32) or model.float(), and set bf16=True to compute in bf16."
        )


@contextmanager
def precision_kept(model: nn.Module) -> Iterator[None]:
    """What is cast in place here, as for an evaluation in half precision, is as it was afterwards."""
    parameters = [(parameter, parameter.data) for parameter in model.parameters()]
    buffers = [(part, name, buffer) for part in model.modules() for name, buffer in part.named_buffers(recurse=False)]
    try:
        yield
    finally:
        for parameter, data in parameters:
            if parameter.dtype != data.dtype:
                parameter.data = data.to(parameter.device)
        for part, name, buffer in buffers:
            now = getattr(part, name)
            if now.dtype != buffer.dtype:
                setattr(part, name, buffer.to(now.device))


class AutocastWeights:
    """bf16 copies of the weights of a module's linear maps, which bf16 autocast takes from now on.

    Autocast casts weights without a gradient anew at every use. With the copies, results are equal to the bit, with
    autocast and without. A copy is used only as long as its weight is as it was at the last `refresh`. The copies need
    two bytes a weight and are part of no checkpoint.

    Args:
        module: its weights take no gradient and lie whole on this process.
    """

    def __init__(self, module: nn.Module) -> None:
        self._linears = [part for part in module.modules() if type(part) is nn.Linear]
        self._weights: list[Tensor] = [weight for linear in self._linears for weight in linear.parameters()]
        self._copies = [weight.detach().to(torch.bfloat16, copy=True) for weight in self._weights]
        self._versions: dict[nn.Linear, list[tuple[int, int]]] = {}
        copies = iter(self._copies)
        for linear in self._linears:
            kept = {name: next(copies) for name, _ in linear.named_parameters()}
            linear.forward = partial(self._forward, linear, kept)  # type: ignore[method-assign]
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


def product_seconds(dtype: torch.dtype) -> float:
    """Shortest time of a small linear map on this CPU; time that other processes take does not count."""
    tokens, width, outputs = _PRODUCT
    states, weight = torch.ones(tokens, width, dtype=dtype), torch.ones(outputs, width, dtype=dtype)
    turns = []
    # The first turn pays for what is set up once.
    for _ in range(1 + _TURNS):
        start = time.thread_time()
        F.linear(states, weight)
        turns.append(time.thread_time() - start)
    return min(turns[1:])


def warn_of_slow_bf16() -> None:
    """Warns if a product takes longer in bf16 than in fp32."""
    half, full = product_seconds(torch.bfloat16), product_seconds(torch.float32)
    # A coarse clock may not see a product at all.
    if half > _NOISE * full > 0:
        logger.warning(
            f"bf16 is on, but on this CPU a matrix product takes {half / full:.1f} times as long in bf16 as in fp32. "
            "Training is probably faster with bf16 set to false."
        )
