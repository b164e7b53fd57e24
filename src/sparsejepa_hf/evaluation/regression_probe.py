# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Ridge regression on frozen features, and counting objects by regression and by classification."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._checks import (
    check_features,
    check_labels,
    check_open_fraction,
    check_same_width,
    checked_grid,
    non_finite_rows,
)
from .linear_probe import LinearProbeResult, accuracy, linear_probe, moments, principal_axes
from .splits import validation_mask


DEFAULT_RIDGE_WEIGHT_DECAYS = (1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
_CRITERIA = ("r2", "mae")


@dataclass(frozen=True)
class RegressionScores:
    """How predictions ``(m, T)`` differ from targets.

    Attributes:
        r2: coefficient of determination, averaged over the T targets, at most 1; None where a target is constant.
        mae: mean absolute error over all entries, in the targets' units.
        rmse: root of the mean squared error over all entries, in the targets' units.
    """

    r2: float | None
    mae: float
    rmse: float

    def to_dict(self) -> dict[str, Any]:
        """The attributes, ready for JSON."""
        return dict(vars(self))


@dataclass(frozen=True, eq=False)
class RegressionProbeResult:
    """What :func:`regression_probe` found. Tensors are float64, on the device of the train features.

    Attributes:
        test: scores on the test set.
        validation: scores of the chosen weight decay on the validation split.
        weight_decay: the chosen weight decay, one of the grid.
        validation_grid: scores on the validation split of every weight decay of the grid, strongest first.
        criterion: what was chosen by, ``"r2"`` or ``"mae"``.
        at_grid_edge: whether the choice is the smallest or largest of a grid of several; then a wider grid may
            give a better probe.
        test_predictions: of the shape of the test targets.
        weight: ``(T, D)`` weights for standardised features.
        bias: ``(T,)`` biases.
        mean: ``(D,)`` mean of the features fitted on.
        scale: ``(D,)`` standard deviation of the features fitted on; 1 where a feature is constant.
    """

    test: RegressionScores
    validation: RegressionScores
    weight_decay: float
    validation_grid: dict[float, RegressionScores]
    criterion: str
    at_grid_edge: bool
    test_predictions: Tensor
    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor

    def predict(self, features: Tensor) -> Tensor:
        """Predictions ``(m, T)`` for features ``(m, D)``."""
        return (features.to(self.weight) - self.mean) / self.scale @ self.weight.T + self.bias

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold of the result: everything but the tensors."""
        return {
            "test": self.test.to_dict(),
            "validation": self.validation.to_dict(),
            "weight_decay": self.weight_decay,
            "validation_grid": {str(key): scores.to_dict() for key, scores in self.validation_grid.items()},
            "criterion": self.criterion,
            "at_grid_edge": self.at_grid_edge,
        }


@dataclass(frozen=True, eq=False)
class CountProbeResult:
    """What :func:`count_probe` found.

    Attributes:
        classification: logistic regression over the counts as classes; its ``test_accuracy`` is the share of exact
            matches, as VTAB reports it.
        regression: ridge regression of the counts, its scores those of the predictions before rounding.
        rounded_accuracy: share of test samples whose rounded prediction is the count, in [0, 1].
        rounded: scores of the rounded predictions.
        rounded_predictions: ``(m,)`` int64, the ridge's predictions rounded to the nearest integer between the
            smallest and the largest count of the train set.
    """

    classification: LinearProbeResult
    regression: RegressionProbeResult
    rounded_accuracy: float
    rounded: RegressionScores
    rounded_predictions: Tensor

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold of the result: everything but the tensors."""
        return {
            "classification": self.classification.to_dict(),
            "regression": self.regression.to_dict(),
            "rounded_accuracy": self.rounded_accuracy,
            "rounded": self.rounded.to_dict(),
        }


def regression_probe(
    train_features: Tensor,
    train_targets: Tensor,
    test_features: Tensor,
    test_targets: Tensor,
    *,
    weight_decays: Sequence[float] = DEFAULT_RIDGE_WEIGHT_DECAYS,
    criterion: str = "r2",
    validation: tuple[Tensor, Tensor] | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> RegressionProbeResult:
    r"""Ridge regression in closed form: choose a weight decay on a validation split, refit on all, test once.

    The probe minimises, over the standardised features z,

    .. math:: \frac{1}{2 n} \sum_i \|W z_i + b - y_i\|_2^2 + \frac{\lambda}{2} \|W\|_F^2 ,

    where the bias is not penalised: scikit-learn's ``Ridge`` with ``alpha = lambda * n``. One eigendecomposition of
    the features' covariance, in float64, serves all weight decays. Of equally good ones the strongest is taken.

    Args:
        train_features: ``(n, D)`` floating point. The computation runs on its device.
        train_targets: ``(n,)`` or ``(n, T)`` finite numbers.
        test_features: ``(m, D)`` floating point.
        test_targets: ``(m,)`` or ``(m, T)`` finite numbers.
        weight_decays: the grid of lambda, each > 0.
        criterion: what is best on the validation split: the largest ``"r2"`` or the smallest ``"mae"``.
        validation: features ``(v, D)`` and targets of a validation set of its own, to choose on and then to refit on
            together with the train set; without one, a random part of the train set is split off.
        validation_fraction: share of the train set to split off, in (0, 1).
        seed: seed of the split; the global random state is neither read nor changed.

    Raises:
        TypeError: features are not floating point or targets are not numbers.
        ValueError: a shape or range is not as stated, an entry is NaN or infinite, the train set is too small to
            split, or the criterion is R² and a target is constant over the validation samples.
    """
    sets = {"train": (train_features, train_targets), "test": (test_features, test_targets)}
    _check_regression_sets(sets if validation is None else {**sets, "validation": validation})
    grid = checked_grid(weight_decays, "weight_decays")[::-1]
    check_open_fraction(validation_fraction, "validation_fraction")
    if criterion not in _CRITERIA:
        raise ValueError(f"criterion is {criterion!r}, but one of {_CRITERIA} is expected. Pass one of them.")
    features = train_features.detach().double()
    targets = _columns(train_targets).to(features)
    if validation is None:
        held_out = validation_mask(torch.zeros(len(features), dtype=torch.int64), validation_fraction, seed)
    else:
        held_out = torch.arange(len(features) + len(validation[0])) >= len(features)
        features = torch.cat([features, validation[0].detach().to(features)])
        targets = torch.cat([targets, _columns(validation[1]).to(features)])
    held_out = held_out.to(features.device)

    ridge = _Ridge(features[~held_out], targets[~held_out])
    scores = {decay: _scores(ridge.predict(decay, features[held_out]), targets[held_out]) for decay in grid}
    chosen = _choose(scores, criterion)
    final = _Ridge(features, targets)
    predictions = final.predict(chosen, test_features.detach().to(features))
    return RegressionProbeResult(
        test=_scores(predictions, _columns(test_targets).to(features)),
        validation=scores[chosen],
        weight_decay=chosen,
        validation_grid=scores,
        criterion=criterion,
        at_grid_edge=len(grid) > 1 and chosen in (grid[0], grid[-1]),
        test_predictions=predictions.view(test_targets.shape),
        weight=final.weight(chosen),
        bias=final.bias,
        mean=final.mean,
        scale=final.scale,
    )


def count_probe(
    train_features: Tensor,
    train_counts: Tensor,
    test_features: Tensor,
    test_counts: Tensor,
    *,
    classification_weight_decays: Sequence[float] | None = None,
    regression_weight_decays: Sequence[float] = DEFAULT_RIDGE_WEIGHT_DECAYS,
    validation: tuple[Tensor, Tensor] | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    allow_unseen_classes: bool = False,
) -> CountProbeResult:
    """Count objects from frozen features in the two usual ways.

    VTAB (Zhai et al., arXiv 1910.04867) makes CLEVR/Count a classification over the counts that occur, scored by
    exact matches: :func:`linear_probe`. Regression uses that counts are ordered: :func:`regression_probe`, also
    rounded to the nearest count within the range seen, so that both give exact matches.

    Args:
        train_features: ``(n, D)`` floating point.
        train_counts: ``(n,)`` integers >= 0, of at least two values.
        test_features: ``(m, D)`` floating point.
        test_counts: ``(m,)`` integers >= 0.
        classification_weight_decays: grid of the logistic regression; by default that of :func:`linear_probe`.
        regression_weight_decays: grid of the ridge regression.
        validation: features ``(v, D)`` and counts ``(v,)`` of a validation set of its own.
        validation_fraction: share of the train set to split off without one, in (0, 1); stratified by count for the
            classification, at random for the regression.
        seed: seed of the splits.
        allow_unseen_classes: let the classification count test samples of counts that the train set lacks as errors.

    Raises:
        TypeError: features are not floating point or counts are not integers.
        ValueError: as :func:`linear_probe` and :func:`regression_probe`.
    """
    check_features(train_features, "train_features")
    check_labels(train_counts, len(train_features), "train_counts")
    shared = {"validation": validation, "validation_fraction": validation_fraction, "seed": seed}
    data = (train_features, train_counts, test_features, test_counts)
    decays = {} if classification_weight_decays is None else {"weight_decays": classification_weight_decays}
    classification = linear_probe(*data, **decays, **shared, allow_unseen_classes=allow_unseen_classes)
    regression = regression_probe(*data, weight_decays=regression_weight_decays, **shared)
    rounded = regression.test_predictions.round().clamp(int(train_counts.min()), int(train_counts.max()))
    counts = test_counts.to(rounded)
    return CountProbeResult(
        classification=classification,
        regression=regression,
        rounded_accuracy=accuracy(rounded, counts),
        rounded=_scores(rounded[:, None], counts[:, None]),
        rounded_predictions=rounded.long(),
    )


class _Ridge:
    """One set of samples: standardised and decomposed once, then solved for any weight decay."""

    def __init__(self, features: Tensor, targets: Tensor) -> None:
        self.mean, self.scale = moments(features)
        self.bias = targets.mean(dim=0)
        inputs = (features - self.mean) / self.scale
        self.variances, self.axes = principal_axes(inputs)
        self.products = self.axes.T @ (inputs.T @ (targets - self.bias) / len(inputs))

    def weight(self, weight_decay: float) -> Tensor:
        """``(T, D)``."""
        solution = self.products / (self.variances.clamp_min(0) + weight_decay)[:, None]
        return (self.axes @ solution).T

    def predict(self, weight_decay: float, features: Tensor) -> Tensor:
        """``(m, T)``."""
        return (features - self.mean) / self.scale @ self.weight(weight_decay).T + self.bias


def _columns(targets: Tensor) -> Tensor:
    return targets.detach()[:, None] if targets.ndim == 1 else targets.detach()


def _scores(predictions: Tensor, targets: Tensor) -> RegressionScores:
    errors = predictions - targets
    spread = (targets - targets.mean(dim=0)).square().sum(dim=0)
    constant = (targets == targets[0]).all(dim=0)
    r2 = None if bool(constant.any()) else (1 - errors.square().sum(dim=0) / spread).mean().item()
    return RegressionScores(r2, errors.abs().mean().item(), math.sqrt(errors.square().mean().item()))


def _choose(scores: dict[float, RegressionScores], criterion: str) -> float:
    if criterion == "mae":
        return min(scores, key=lambda decay: scores[decay].mae)
    if any(entry.r2 is None for entry in scores.values()):
        raise ValueError(
            "A target is constant over the validation samples, but R² is only defined where it varies. "
            "Pass criterion='mae', or more validation samples."
        )
    return max(scores, key=lambda decay: scores[decay].r2)


def _check_regression_sets(sets: dict[str, tuple[Tensor, Tensor]]) -> None:
    width = sets["train"][1].shape[1:] if isinstance(sets["train"][1], Tensor) else ()
    for name, (features, targets) in sets.items():
        check_features(features, f"{name}_features")
        check_same_width(sets["train"][0], features, f"{name}_features")
        if not isinstance(targets, Tensor) or targets.is_complex() or targets.dtype == torch.bool:
            given = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
            raise TypeError(
                f"{name}_targets is {given}, but a tensor of numbers is expected. Convert it with .float()."
            )
        if targets.ndim not in (1, 2) or len(targets) != len(features) or targets.shape[1:] != width:
            raise ValueError(
                f"{name}_targets has shape {tuple(targets.shape)}, but {(len(features), *width)} is expected: one row "
                "per feature row and as many targets in every set. Pass the targets of the same samples."
            )
        if targets.ndim == 2 and targets.shape[1] == 0:
            raise ValueError(f"{name}_targets has no column, but at least one target is expected. Pass one.")
        bad = non_finite_rows(_columns(targets))
        if bad:
            raise ValueError(
                f"{name}_targets holds NaN or infinite values in {len(bad)} of {len(targets)} rows (the first is row "
                f"{bad[0]}), but finite targets are expected. Leave these samples out."
            )
