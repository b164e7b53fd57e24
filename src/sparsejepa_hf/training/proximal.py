# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The proximal step of the group lasso (oi-VAE, arXiv 1802.06765, section 4)."""

import torch
from torch import Tensor


@torch.no_grad()
def proximal_step_(group_weight: Tensor, threshold: float) -> None:
    """W⁽ᵍ⁾_{·,j} ← max(0, 1 − ηλ/‖W⁽ᵍ⁾_{·,j}‖₂)·W⁽ᵍ⁾_{·,j} in place: columns within ηλ of zero become exactly zero.

    Args:
        group_weight: W (G, p, K), or a shard of it along G.
        threshold: ηλ ≥ 0.

    Raises:
        ValueError: if `threshold` is negative.
    """
    if threshold < 0:
        raise ValueError(f"threshold is {threshold}; expected learning rate times sparsity weight, at least 0.")
    if threshold == 0:
        return
    norms = torch.linalg.vector_norm(group_weight, dim=1, keepdim=True)
    # A zero column gives 0/0 without the clamp; clamped, its factor is 0 like that of any column below the threshold.
    factors = (1.0 - threshold / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_min_(0.0)
    group_weight.mul_(factors)
