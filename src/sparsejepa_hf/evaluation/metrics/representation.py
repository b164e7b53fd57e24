# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Label-free measures of a representation: decay of its spectrum and sparsity of its features."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .._checks import check_features


@dataclass(frozen=True)
class PowerLawFit:
    """The power law ``eigenvalue ~ rank ** -alpha`` fitted to a spectrum.

    Attributes:
        alpha: the exponent, or None where fewer than two eigenvalues are left to fit, as after a collapse.
        r2: share of the variance of the log eigenvalues that the fitted line explains, <= 1, each rank weighted as
            in the fit; None without a fit. Near 1 the spectrum is a power law and ``alpha`` means something.
        first_rank: rank of the first eigenvalue fitted, from 1.
        last_rank: rank of the last eigenvalue fitted, at most the number of eigenvalues above rounding.
    """

    alpha: float | None
    r2: float | None
    first_rank: int
    last_rank: int

    def to_dict(self) -> dict[str, Any]:
        """The attributes, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class FeatureSparsity:
    """How sparse feature vectors of D entries are.

    Attributes:
        exact_zero_share: share of all entries that are exactly 0, in [0, 1].
        near_zero_share: share of all entries with ``|x| <= threshold``, in [0, 1].
        l0: mean over vectors of the number of entries with ``|x| > threshold``, in [0, D].
        l1: mean over vectors of the sum of absolute values, in the features' units.
        hoyer: mean over vectors of Hoyer's ``(sqrt(D) - l1 / l2) / (sqrt(D) - 1)``, in [0, 1]: 0 if all entries
            have the same size, 1 if one alone is not 0. Vectors of zeros, for which it is not defined, are left out;
            None if there is no other, or if D = 1.
        zero_vectors: number of vectors of zeros alone.
        threshold: the one given, in the features' units.
    """

    exact_zero_share: float
    near_zero_share: float
    l0: float
    l1: float
    hoyer: float | None
    zero_vectors: int
    threshold: float

    def to_dict(self) -> dict[str, Any]:
        """The attributes, ready for JSON."""
        return asdict(self)


def feature_matrix(predictions: ArrayLike) -> Tensor:
    """Feature vectors, as the `evaluate` library hands them to a module, as an ``(n, D)`` float32 tensor.

    Raises:
        ValueError: the vectors differ in length, there is none, or an entry is NaN or infinite.
    """
    try:
        array = np.asarray(predictions, dtype=np.float32)
    except ValueError as error:
        raise ValueError(
            f"predictions has vectors of different lengths ({error}), but one feature vector per sample is expected, "
            "all of the same length. Add features of one kind only."
        ) from error
    features = torch.from_numpy(array)
    check_features(features, "predictions")
    return features


def alpha_req(features: Tensor, *, first_rank: int = 4, last_rank: int = 100) -> PowerLawFit:
    """α-ReQ (Agrawal et al., NeurIPS 2022): exponent of the decay of the eigenvalues of the features' covariance.

    A line is fitted to log eigenvalue against log rank, each rank r weighted by 1 / r, as Stringer et al. (Nature
    2019) do, so that every octave counts about alike. The authors report the best representations near alpha = 1: a
    larger one means that few directions hold the variance, a smaller one that it is spread, noise included.

    Args:
        features: ``(n, D)`` floating point, n >= 2. The covariance is taken in float64, of the centred features.
        first_rank: first eigenvalue of the fit, from 1; the first few often lie above the power law. The
            default range, ranks 4 to 100, is the one in common use.
        last_rank: last eigenvalue of the fit. Fewer are used where fewer are above rounding, at most min(n - 1, D).
            Compare representations of different widths over the same ranks only.

    Raises:
        TypeError: the features are not floating point.
        ValueError: they are not ``(n >= 2, D)`` or not finite, or not ``1 <= first_rank < last_rank``.
    """
    check_features(features, "features")
    if len(features) < 2:
        raise ValueError("features has 1 row, but a covariance needs at least 2. Pass more images.")
    if not 1 <= first_rank < last_rank:
        raise ValueError(
            f"first_rank is {first_rank} and last_rank {last_rank}, but 1 <= first_rank < last_rank is expected."
        )
    eigenvalues = _covariance_eigenvalues(features.detach().double())
    last = min(last_rank, len(eigenvalues))
    if last - first_rank < 1:
        return PowerLawFit(None, None, first_rank, last)
    ranks = torch.arange(first_rank, last + 1, dtype=torch.float64, device=features.device)
    x, y, weight = ranks.log(), eigenvalues[first_rank - 1 : last].log(), 1 / ranks
    weight = weight / weight.sum()
    x, y = x - (weight * x).sum(), y - (weight * y).sum()
    slope = (weight * x * y).sum() / (weight * x * x).sum()
    spread = (weight * y * y).sum()
    # A flat spectrum leaves nothing to explain.
    r2 = 1 - (weight * (y - slope * x) ** 2).sum() / spread if spread > 1e-20 else torch.ones(())
    return PowerLawFit(-slope.item(), r2.item(), first_rank, last)


def feature_sparsity(features: Tensor, *, threshold: float = 1e-6) -> FeatureSparsity:
    """ℓ0, ℓ1 and Hoyer sparsity of feature vectors (Hurley and Rickard, arXiv 0811.4706, compare them).

    ``hoyer`` and ``exact_zero_share`` do not depend on the scale of the features; the others do.

    Args:
        features: ``(n, D)`` floating point.
        threshold: largest absolute value that counts as near zero, >= 0, in the features' units.

    Raises:
        TypeError: the features are not floating point.
        ValueError: they are not ``(n, D)`` or not finite, or the threshold is negative or not finite.
    """
    check_features(features, "features")
    if not 0 <= threshold < math.inf:
        raise ValueError(f"threshold is {threshold}, but a finite number >= 0 is expected. Pass 0 for exact zeros.")
    size = features.detach().abs()
    near = size <= threshold
    l1 = size.sum(dim=1, dtype=torch.float64)
    is_zero = l1 == 0
    return FeatureSparsity(
        exact_zero_share=(size == 0).double().mean().item(),
        near_zero_share=near.double().mean().item(),
        l0=(~near).sum(dim=1).double().mean().item(),
        l1=l1.mean().item(),
        hoyer=_hoyer(size[~is_zero]),
        zero_vectors=int(is_zero.sum()),
        threshold=float(threshold),
    )


def _hoyer(size: Tensor) -> float | None:
    if len(size) == 0 or size.shape[1] == 1:
        return None
    # Scaled by its largest entry, no vector's squares can underflow or overflow.
    size = size.double() / size.amax(dim=1, keepdim=True).double()
    root = math.sqrt(size.shape[1])
    ratio = size.sum(dim=1) / size.square().sum(dim=1).sqrt()
    return ((root - ratio) / (root - 1)).clamp(0, 1).mean().item()


def _covariance_eigenvalues(features: Tensor) -> Tensor:
    """Eigenvalues above rounding of the covariance of ``(n, D)`` float64 features, in falling order."""
    centred = features - features.mean(dim=0)
    n, dim = centred.shape
    # Both products have the same eigenvalues apart from zeros; the smaller is cheaper.
    product = centred.T @ centred if dim <= n else centred @ centred.T
    values = torch.linalg.eigvalsh(product / (n - 1)).flip(0)[: min(n - 1, dim)]
    floor = max(n, dim) * torch.finfo(torch.float64).eps * max(values[0].item(), features.square().mean().item())
    return values[values > floor]
