# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Measures of predictions, as modules of the `evaluate` library, and of features without labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import EvalPrediction


METRICS = ("classification", "counting")
# Added to the normalised singular values, as RankMe's authors do.
_EPSILON = 1e-7
_TOP = 5


def metric_path(name: str) -> str:
    """Folder of a metric, for `evaluate.load(metric_path("classification"))` and `evaluate.combine`.

    Args:
        name: one of `METRICS`.

    Raises:
        ValueError: there is no metric of this name.
    """
    if name not in METRICS:
        raise ValueError(f"The metric {name!r} is unknown; expected one of: {', '.join(METRICS)}.")
    return str(Path(__file__).parent / name)


def load_metric(name: str, **options: Any) -> Any:
    """`evaluate.load` for a metric of this package. It needs no network.

    Args:
        name: one of `METRICS`.
        options: as for `evaluate.load`, such as `num_process`, `process_id` and `keep_in_memory`.

    Returns:
        An `evaluate.Metric`.

    Raises:
        ValueError: there is no metric of this name.
    """
    # `evaluate` takes long to import, and most of this package works without it.
    import evaluate

    return evaluate.load(metric_path(name), **options)


def best_classes(scores: Tensor) -> Tensor:
    """The classes with the highest scores, best first, as the metric `classification` takes them.

    Args:
        scores: `(n, C)`. Of equal scores the lower class goes first.

    Returns:
        `(n, 5)` int64, or `(n, 1)` where there are at most five classes.
    """
    count = _TOP if scores.shape[1] > _TOP else 1
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :count]


def classification_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """What fine-tuning reports, from logits `(n, C)` and labels `(n,)`.

    Returns:
        `accuracy` (top-1), `balanced_accuracy` (mean recall of the classes that occur) and, with more than five
        classes, `top5_accuracy`, all in [0, 1]; and the mean `cross_entropy` in nats.
    """
    logits = torch.as_tensor(prediction.predictions).float()
    labels = torch.as_tensor(prediction.label_ids).long()
    metric = load_metric("classification", keep_in_memory=True)
    found = metric.compute(predictions=best_classes(logits).numpy(), references=labels.numpy())
    # The Trainer's own loss is a mean over batches, which counts the images of a smaller last batch more.
    return found | {"cross_entropy": F.cross_entropy(logits, labels).item()}


def check_features(features: Tensor, name: str = "features") -> None:
    """Raises unless `features` is a finite floating-point `(n >= 1, D >= 1)` tensor.

    Raises:
        TypeError: `features` is not a floating-point tensor.
        ValueError: the shape is another, or an entry is NaN or infinite.
    """
    if not isinstance(features, Tensor) or not features.is_floating_point():
        given = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f"{name} is {given}, but a floating-point tensor is expected. Convert it with .float() first.")
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(
            f"{name} has shape {tuple(features.shape)}, but a non-empty (n, D) tensor is expected. "
            "Pool the tokens into one vector per image first."
        )
    bad = non_finite_rows(features)
    if bad:
        raise ValueError(
            f"{name} holds NaN or infinite values in {len(bad)} of {len(features)} rows (the first is row {bad[0]}), "
            "but finite features are expected. Check the model's weights and its input."
        )


def non_finite_rows(features: Tensor) -> list[int]:
    """Indices of the rows of an `(n, D)` tensor that hold a NaN or an infinity."""
    return (~torch.isfinite(features).all(dim=1)).nonzero().flatten().tolist()


def rankme(features: Tensor) -> Tensor:
    """RankMe, the smooth effective rank of Garrido et al. (arXiv 2210.02885, equations 1 and 2).

    With singular values s, `p = s / sum(s) + 1e-7` and `RankMe = exp(-sum(p * log(p)))`. The features are not
    centred, as in the paper. Because of the 1e-7 the bounds 1 and min(n, D) hold up to about `2e-6 * min(n, D)` in
    the exponent. A fully collapsed, all-zero matrix gives about 1.

    Nothing is copied to the host here; on CUDA, torch's own SVD routine may still synchronise.

    Args:
        features: `(n, D)` floating point, finite, unchecked. The paper uses n = 25,600; n should well exceed D.

    Returns:
        0-d tensor in about [1, min(n, D)], without gradient, on the features' device; float64 if the features are,
        else float32.

    Raises:
        ValueError: the shape is not `(n, D)` or there is nothing in it.
    """
    singular_values = torch.linalg.svdvals(_matrix(features, minimum_rows=1))
    total = singular_values.sum().clamp_min(torch.finfo(singular_values.dtype).tiny)
    p = singular_values / total + _EPSILON
    return torch.exp(-(p * p.log()).sum())


def feature_std(features: Tensor) -> Tensor:
    """Mean over dimensions of the standard deviation over samples; near 0 when the representation has collapsed.

    Nothing is copied to the host.

    Args:
        features: `(n, D)` floating point with n >= 2.

    Returns:
        0-d tensor >= 0 in the features' units, without gradient, on the features' device; the standard deviation is
        the unbiased one (divisor n - 1). float64 if the features are, else float32.

    Raises:
        ValueError: the shape is not `(n >= 2, D)`.
    """
    return _matrix(features, minimum_rows=2).std(dim=0).mean()


def _matrix(features: Tensor, minimum_rows: int) -> Tensor:
    """The features without gradient, in float32 at least; only their shape is checked, which needs no host copy."""
    if features.ndim != 2 or features.shape[0] < minimum_rows or features.shape[1] < 1:
        raise ValueError(
            f"features has shape {tuple(features.shape)}, but (n, D) with n >= {minimum_rows} and D >= 1 is expected. "
            "Pool the tokens into one vector per image, or pass more images."
        )
    return features.detach().to(torch.promote_types(features.dtype, torch.float32))


@dataclass(frozen=True)
class PowerLawFit:
    """The power law `eigenvalue ~ rank ** -alpha` fitted to a spectrum.

    Attributes:
        alpha: the exponent, or None where fewer than two eigenvalues are left to fit, as after a collapse.
        r2: share of the variance of the log eigenvalues that the fitted line explains, <= 1, each rank weighted as
            in the fit; None without a fit. Near 1 the spectrum is a power law and `alpha` means something.
        first_rank: rank of the first eigenvalue fitted, from 1.
        last_rank: rank of the last eigenvalue fitted, at most the number of eigenvalues above rounding.
    """

    alpha: float | None
    r2: float | None
    first_rank: int
    last_rank: int


def alpha_req(features: Tensor, *, first_rank: int = 4, last_rank: int = 100) -> PowerLawFit:
    """α-ReQ (Agrawal et al., NeurIPS 2022): exponent of the decay of the eigenvalues of the features' covariance.

    A line is fitted to log eigenvalue against log rank, each rank r weighted by 1 / r, as Stringer et al. (Nature
    2019) do, so that every octave counts about alike. The authors report the best representations near alpha = 1: a
    larger one means that few directions hold the variance, a smaller one that it is spread, noise included.

    Args:
        features: `(n, D)` floating point, n >= 2. The covariance is taken in float64, of the centred features.
        first_rank: first eigenvalue of the fit, from 1; the first few often lie above the power law. The
            default range, ranks 4 to 100, is the one in common use.
        last_rank: last eigenvalue of the fit. Fewer are used where fewer are above rounding, at most min(n - 1, D).
            Compare representations of different widths over the same ranks only.

    Raises:
        TypeError: the features are not floating point.
        ValueError: they are not `(n >= 2, D)` or not finite, or not `1 <= first_rank < last_rank`.
    """
    check_features(features)
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


def _covariance_eigenvalues(features: Tensor) -> Tensor:
    """Eigenvalues above rounding of the covariance of `(n, D)` float64 features, in falling order."""
    centred = features - features.mean(dim=0)
    n, dim = centred.shape
    # Both products have the same eigenvalues apart from zeros; the smaller is cheaper.
    product = centred.T @ centred if dim <= n else centred @ centred.T
    values = torch.linalg.eigvalsh(product / (n - 1)).flip(0)[: min(n - 1, dim)]
    floor = max(n, dim) * torch.finfo(torch.float64).eps * max(values[0].item(), features.square().mean().item())
    return values[values > floor]


@dataclass(frozen=True)
class FeatureSparsity:
    """How sparse feature vectors of D entries are.

    Attributes:
        exact_zero_share: share of all entries that are exactly 0, in [0, 1].
        near_zero_share: share of all entries with `|x| <= threshold`, in [0, 1].
        l0: mean over vectors of the number of entries with `|x| > threshold`, in [0, D].
        l1: mean over vectors of the sum of absolute values, in the features' units.
        hoyer: mean over vectors of Hoyer's `(sqrt(D) - l1 / l2) / (sqrt(D) - 1)`, in [0, 1]: 0 if all entries
            have the same size, 1 if one alone is not 0. Vectors of zeros, for which it is not defined, are left out;
            None if there is no other, or if D = 1.
    """

    exact_zero_share: float
    near_zero_share: float
    l0: float
    l1: float
    hoyer: float | None


def feature_sparsity(features: Tensor, *, threshold: float = 1e-6) -> FeatureSparsity:
    """ℓ0, ℓ1 and Hoyer sparsity of feature vectors (Hurley and Rickard, arXiv 0811.4706, compare them).

    `hoyer` and `exact_zero_share` do not depend on the scale of the features; the others do.

    Args:
        features: `(n, D)` floating point.
        threshold: largest absolute value that counts as near zero, >= 0, in the features' units.

    Raises:
        TypeError: the features are not floating point.
        ValueError: they are not `(n, D)` or not finite, or the threshold is negative or not finite.
    """
    check_features(features)
    if not 0 <= threshold < math.inf:
        raise ValueError(f"threshold is {threshold}, but a finite number >= 0 is expected. Pass 0 for exact zeros.")
    size = features.detach().abs()
    near = size <= threshold
    return FeatureSparsity(
        exact_zero_share=(size == 0).double().mean().item(),
        near_zero_share=near.double().mean().item(),
        l0=(~near).sum(dim=1).double().mean().item(),
        l1=size.sum(dim=1, dtype=torch.float64).mean().item(),
        hoyer=_hoyer(size[size.any(dim=1)]),
    )


def _hoyer(size: Tensor) -> float | None:
    if len(size) == 0 or size.shape[1] == 1:
        return None
    # Scaled by its largest entry, no vector's squares can underflow or overflow.
    size = size.double() / size.amax(dim=1, keepdim=True).double()
    root = math.sqrt(size.shape[1])
    ratio = size.sum(dim=1) / size.square().sum(dim=1).sqrt()
    return ((root - ratio) / (root - 1)).clamp(0, 1).mean().item()


__all__ = [
    "METRICS",
    "FeatureSparsity",
    "PowerLawFit",
    "alpha_req",
    "classification_metrics",
    "feature_sparsity",
    "feature_std",
    "load_metric",
    "metric_path",
    "rankme",
]
