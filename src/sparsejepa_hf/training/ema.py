# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Exponential moving average of parameters."""

from collections.abc import Iterable

import torch
from torch import Tensor


def local_shard(parameter: Tensor) -> Tensor:
    """The part of a parameter that lies on this process: the parameter itself, or an FSDP2 shard."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def full_tensor(parameter: Tensor) -> Tensor:
    """The whole of a parameter: the parameter itself, or what all processes' FSDP2 shards of it make together."""
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


@torch.no_grad()
def ema_update_(targets: Iterable[Tensor], sources: Iterable[Tensor], momentum: float) -> None:
    """θ̄ ← m θ̄ + (1−m) θ in place, for all tensors in one fused call.

    Args:
        targets: θ̄; may be sharded exactly like `sources`.
        sources: θ.
        momentum: m in [0, 1).

    Raises:
        ValueError: if `momentum` is outside [0, 1); at 1 the target would never follow.
    """
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum is {momentum}; expected a number in [0, 1): at 1 the target would never follow.")
    targets, sources = [local_shard(t) for t in targets], [local_shard(s) for s in sources]
    torch._foreach_lerp_(targets, sources, 1.0 - momentum)
