# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Label-free diagnostics of a representation: effective rank and spread."""

from __future__ import annotations

import torch
from torch import Tensor


_EPSILON = 1e-7


def rankme(features: Tensor) -> Tensor:
    """RankMe, the smooth effective rank of Garrido et al. (arXiv 2210.02885, equations 1 and 2).

    With singular values s, ``p = s / sum(s) + 1e-7`` and ``RankMe = exp(-sum(p * log(p)))``. The features are not
    centred, as in the paper. Because of the 1e-7 the bounds 1 and min(n, D) hold up to about
    ``2e-6 * min(n, D)`` in the exponent. A fully collapsed, all-zero matrix gives about 1.

    Nothing is copied to the host here; on CUDA, torch's own SVD routine may still synchronise.

    Args:
        features: ``(n, D)`` floating point, finite, unchecked. The paper uses n = 25,600; n should well exceed D.

    Returns:
        0-d tensor in about [1, min(n, D)], without gradient, on the features' device; float64 if the features are,
        else float32.

    Raises:
        ValueError: the shape is not ``(n, D)`` or there is nothing in it.
    """
    _check_matrix(features, minimum_rows=1)
    singular_values = torch.linalg.svdvals(_at_least_float32(features))
    total = singular_values.sum().clamp_min(torch.finfo(singular_values.dtype).tiny)
    p = singular_values / total + _EPSILON
    return torch.exp(-(p * p.log()).sum())


def feature_std(features: Tensor) -> Tensor:
    """Mean over dimensions of the standard deviation over samples; near 0 when the representation has collapsed.

    Nothing is copied to the host.

    Args:
        features: ``(n, D)`` floating point with n >= 2.

    Returns:
        0-d tensor >= 0 in the features' units, without gradient, on the features' device; the standard deviation is
        the unbiased one (divisor n - 1). float64 if the features are, else float32.

    Raises:
        ValueError: the shape is not ``(n >= 2, D)``.
    """
    _check_matrix(features, minimum_rows=2)
    return _at_least_float32(features).std(dim=0).mean()


def _at_least_float32(features: Tensor) -> Tensor:
    return features.detach().to(torch.promote_types(features.dtype, torch.float32))


def _check_matrix(features: Tensor, minimum_rows: int) -> None:
    if features.ndim != 2 or features.shape[0] < minimum_rows or features.shape[1] < 1:
        raise ValueError(
            f"features has shape {tuple(features.shape)}, but (n, D) with n >= {minimum_rows} and D >= 1 is expected. "
            "Pool the tokens into one vector per image, or pass more images."
        )
