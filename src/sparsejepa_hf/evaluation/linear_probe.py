# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Linear probe: multinomial logistic regression on frozen features, tested once; and with few labels."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import (
    check_known_classes,
    check_open_fraction,
    check_positive,
    check_sets,
    check_several_classes,
    checked_grid,
)
from .splits import join_validation, low_shot_indices


DEFAULT_WEIGHT_DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
_HISTORY_SIZE = 20
_UNSEEN_ADVICE = (
    "Draw the train set from all classes, or pass allow_unseen_classes=True to count those test samples as errors."
)


@dataclass(frozen=True, eq=False)
class LinearProbeResult:
    """What :func:`linear_probe` found. Tensors are on the device of the train features.

    Attributes:
        test_accuracy: top-1 accuracy on the test set, in [0, 1].
        test_top5_accuracy: share of test samples whose label is among the five best-scored classes (all of them
            where there are fewer), in [0, 1].
        test_balanced_accuracy: mean over the test set's classes of the share of their samples that is predicted
            correctly, in [0, 1].
        test_predictions: ``(m,)`` int64, the predicted labels of the test set.
        validation_accuracy: accuracy of the chosen weight decay on the validation split, in [0, 1].
        weight_decay: the chosen weight decay, one of the grid.
        validation_accuracies: accuracy on the validation split of every weight decay of the grid.
        at_grid_edge: whether the choice is the smallest or largest of a grid of several; then a wider grid may
            give a better probe.
        weight: ``(C', D)`` weights for standardised features, C' classes seen in the train set.
        bias: ``(C',)`` biases.
        classes: ``(C',)`` int64, the label of each row of ``weight``.
        mean: ``(D,)`` mean of the train features.
        scale: ``(D,)`` standard deviation of the train features; 1 where a feature is constant.
        converged: whether the gradient of the final fit fell to the tolerance.
        gradient_norm: largest entry of the preconditioned gradient of the final fit.
        iterations: L-BFGS iterations of all fits together.
    """

    test_accuracy: float
    test_top5_accuracy: float
    test_balanced_accuracy: float
    test_predictions: Tensor
    validation_accuracy: float
    weight_decay: float
    validation_accuracies: dict[float, float]
    at_grid_edge: bool
    weight: Tensor
    bias: Tensor
    classes: Tensor
    mean: Tensor
    scale: Tensor
    converged: bool
    gradient_norm: float
    iterations: int

    def predict(self, features: Tensor) -> Tensor:
        """Predicted labels ``(m,)`` int64 of features ``(m, D)``, by the probe fitted on all of the train set."""
        inputs = (features.to(self.weight) - self.mean) / self.scale
        return self.classes[F.linear(inputs, self.weight, self.bias).argmax(dim=1)]

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold of the result: everything but the tensors."""
        return {
            "test_accuracy": self.test_accuracy,
            "test_top5_accuracy": self.test_top5_accuracy,
            "test_balanced_accuracy": self.test_balanced_accuracy,
            "validation_accuracy": self.validation_accuracy,
            "weight_decay": self.weight_decay,
            "validation_accuracies": {str(key): value for key, value in self.validation_accuracies.items()},
            "at_grid_edge": self.at_grid_edge,
            "converged": self.converged,
            "gradient_norm": self.gradient_norm,
            "iterations": self.iterations,
        }


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    weight_decays: Sequence[float] = DEFAULT_WEIGHT_DECAYS,
    validation: tuple[Tensor, Tensor] | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    max_iter: int = 200,
    tolerance: float = 1e-5,
    dtype: torch.dtype = torch.float32,
    num_classes: int | None = None,
    allow_unseen_classes: bool = False,
) -> LinearProbeResult:
    r"""Choose a weight decay on a validation split of the train set, refit on all of it, and test once.

    The probe minimises, over the standardised features z,

    .. math:: \frac{1}{n} \sum_i -\log \mathrm{softmax}(W z_i + b)_{y_i} + \frac{\lambda}{2} \|W\|_F^2 ,

    where the bias is not penalised. With three or more classes this is scikit-learn's ``LogisticRegression`` with
    ``C = 1 / (lambda * n)``; with two, whose two weight rows are opposite, ``C = 2 / (lambda * n)``.

    The optimiser is full-batch L-BFGS with strong Wolfe steps, run in the principal axes of the features, scaled by
    an estimate of the Hessian; this changes the speed, not the minimum. Grid fits go from strong to weak
    regularisation, each starting from the one before. Of equally accurate weight decays the strongest is taken. The
    test set enters only after the final fit. Features are standardised by the samples that a fit is made on.

    Args:
        train_features: ``(n, D)`` floating point. The computation runs on its device.
        train_labels: ``(n,)`` integers >= 0, of at least two classes; numbers may be left out.
        test_features: ``(m, D)`` floating point.
        test_labels: ``(m,)`` integers >= 0.
        weight_decays: the grid of lambda, each > 0.
        validation: features ``(v, D)`` and labels ``(v,)`` of a validation set of its own, to choose on and then to
            refit on together with the train set; without one, a part of the train set is split off.
        validation_fraction: share of each class, to within one sample, that is split off for the choice, in (0, 1).
            The first sample drawn of every class always stays in the fitted part.
        seed: seed of the split; the global random state is neither read nor changed.
        max_iter: most L-BFGS iterations per fit.
        tolerance: a fit ends when no entry of its preconditioned gradient g exceeds it; ``|g|^2 / 2`` is about how
            far the objective is above its minimum. Rounding of the objective ends a fit too; hence float32 reaches
            about 1e-6 and float64 about 1e-7, on very ill-conditioned features less (see ``converged``).
        dtype: of the computation, ``torch.float32`` or ``torch.float64``.
        num_classes: refuse labels that are not below it; by default any label is taken.
        allow_unseen_classes: count test samples of classes that the train set lacks as errors, rather than refuse.

    Returns:
        The accuracies, the chosen weight decay and the fitted weights.

    Raises:
        TypeError: features are not floating point or labels are not integers.
        ValueError: a shape or range is not as stated, a feature is NaN or infinite, the train set has fewer than two
            classes or is too small to split, or the test or validation set has a class that the train set lacks.
    """
    sets = {"train": (train_features, train_labels), "test": (test_features, test_labels)}
    check_sets(sets if validation is None else {**sets, "validation": validation}, num_classes)
    grid = _check_settings(weight_decays, validation_fraction, max_iter, tolerance, dtype)
    features = train_features.detach().to(dtype)
    if validation is not None:
        features = torch.cat([features, validation[0].detach().to(features)])
    held_out_labels = None if validation is None else validation[1]
    labels, held_out = join_validation(
        train_labels.to(features.device, torch.int64), held_out_labels, validation_fraction, seed
    )
    classes, targets = class_targets(labels, held_out)
    test_labels = test_labels.to(classes)
    if not allow_unseen_classes:
        check_known_classes(test_labels, classes, "test_labels", _UNSEEN_ADVICE)

    problem = _Problem(features[~held_out], targets[~held_out], len(classes))
    fits, accuracies, previous = {}, {}, None
    for weight_decay in grid:
        previous = fits[weight_decay] = problem.fit(weight_decay, max_iter, tolerance, previous)
        predictions = problem.scores(previous, features[held_out]).argmax(dim=1)
        accuracies[weight_decay] = accuracy(predictions, targets[held_out])
    chosen = max(grid, key=accuracies.__getitem__)

    problem = _Problem(features, targets, len(classes))
    final = problem.fit(chosen, max_iter, tolerance, fits[chosen])
    scores = problem.scores(final, test_features.detach().to(features))
    predictions = classes[scores.argmax(dim=1)]
    return LinearProbeResult(
        test_accuracy=accuracy(predictions, test_labels),
        test_top5_accuracy=top_k_accuracy(scores, classes, test_labels, 5),
        test_balanced_accuracy=balanced_accuracy(predictions, test_labels),
        test_predictions=predictions,
        validation_accuracy=accuracies[chosen],
        weight_decay=chosen,
        validation_accuracies=accuracies,
        at_grid_edge=len(grid) > 1 and chosen in (grid[0], grid[-1]),
        weight=final.weight,
        bias=final.bias,
        classes=classes,
        mean=problem.mean,
        scale=problem.scale,
        converged=final.gradient_norm <= tolerance,
        gradient_norm=final.gradient_norm,
        iterations=final.iterations + sum(fit.iterations for fit in fits.values()),
    )


@dataclass(frozen=True)
class LowShotFraction:
    """Linear probes on random subsets with one share of the labels.

    Attributes:
        fraction: share of every class's labels.
        num_labels: labels used, those of the validation split included.
        seeds: of the subsets.
        accuracies: top-1 test accuracy of each seed's probe, in [0, 1].
        weight_decays: each seed's choice.
        mean: of the accuracies.
        std: of the accuracies (divisor one less than their number); None with one seed.
    """

    fraction: float
    num_labels: int
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    weight_decays: tuple[float, ...]
    mean: float
    std: float | None

    def to_dict(self) -> dict[str, Any]:
        """The attributes, ready for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}


@dataclass(frozen=True)
class LowShotResult:
    """What :func:`low_shot_probe` found, one entry per fraction, ascending."""

    fractions: tuple[LowShotFraction, ...]

    def to_dict(self) -> dict[str, Any]:
        """The fractions, ready for JSON."""
        return {"fractions": [entry.to_dict() for entry in self.fractions]}


def low_shot_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    fractions: Sequence[float] = (0.01, 0.1),
    seeds: Sequence[int] = (0, 1, 2),
    **settings: Any,
) -> LowShotResult:
    """:func:`linear_probe` with few labels: on class-balanced subsets (:func:`low_shot_indices`) of the train set.

    Every probe is tested on all of the test set. The weight decay is chosen inside each subset: no label outside it
    is used. The spread over seeds is that of the subset and of its validation split, not of the features' training.

    Args:
        train_features: ``(n, D)`` floating point.
        train_labels: ``(n,)`` integers >= 0.
        test_features: ``(m, D)`` floating point.
        test_labels: ``(m,)`` integers >= 0.
        fractions: shares of the labels, each in (0, 1].
        seeds: of the subsets and of the validation splits, at least one.
        settings: further arguments of :func:`linear_probe`, except ``validation`` and ``seed``.

    Raises:
        TypeError: as :func:`linear_probe`.
        ValueError: as :func:`linear_probe`; also where a subset is too small to split off a validation sample.
    """
    if settings.get("validation") is not None:
        raise ValueError(
            "validation is given, but a low-shot probe is expected to choose inside its subset, since the labels of a "
            "validation set would come on top of the few. Leave it out."
        )
    if len(seeds) == 0:
        raise ValueError("seeds is empty, but at least one is expected. Pass several to see the spread.")
    check_sets({"train": (train_features, train_labels), "test": (test_features, test_labels)}, None)
    entries = []
    for fraction in checked_grid(fractions, "fractions"):
        subsets = [low_shot_indices(train_labels, fraction, seed) for seed in seeds]
        probes = [
            linear_probe(
                train_features[subset], train_labels[subset], test_features, test_labels, seed=seed, **settings
            )
            for subset, seed in zip(subsets, seeds, strict=True)
        ]
        entries.append(_low_shot_fraction(fraction, len(subsets[0]), seeds, probes))
    return LowShotResult(tuple(entries))


def _low_shot_fraction(
    fraction: float, num_labels: int, seeds: Sequence[int], probes: Sequence[LinearProbeResult]
) -> LowShotFraction:
    accuracies = tuple(probe.test_accuracy for probe in probes)
    return LowShotFraction(
        fraction=fraction,
        num_labels=num_labels,
        seeds=tuple(seeds),
        accuracies=accuracies,
        weight_decays=tuple(probe.weight_decay for probe in probes),
        mean=statistics.fmean(accuracies),
        std=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
    )


@dataclass(frozen=True, eq=False)
class _Fit:
    weight: Tensor
    bias: Tensor
    gradient_norm: float
    iterations: int


class _Problem:
    """One set of samples to fit: standardised once, rotated once to its principal axes, then fitted per decay."""

    def __init__(self, features: Tensor, targets: Tensor, num_classes: int) -> None:
        self.targets, self.num_classes = targets, num_classes
        self.mean, self.scale = moments(features)
        inputs = (features - self.mean) / self.scale
        self.variances, self.axes = principal_axes(inputs)
        self.inputs = inputs @ self.axes

    def scores(self, fit: _Fit, features: Tensor) -> Tensor:
        return F.linear((features - self.mean) / self.scale, fit.weight, fit.bias)

    def fit(self, weight_decay: float, max_iter: int, tolerance: float, start: _Fit | None) -> _Fit:
        scales = self._scales(weight_decay)
        parameters = self._initial(start, scales)
        optimizer = torch.optim.LBFGS(
            [parameters],
            max_iter=max_iter,
            max_eval=2 * max_iter,
            tolerance_grad=tolerance,
            tolerance_change=tolerance**2,
            history_size=_HISTORY_SIZE,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            loss, parameters.grad = self._objective(parameters, scales, weight_decay)
            return loss

        optimizer.step(closure)
        closure()
        solution = parameters * scales
        return _Fit(
            weight=solution[:, :-1] @ self.axes.T,
            bias=solution[:, -1].clone(),
            gradient_norm=parameters.grad.abs().max().item(),
            iterations=optimizer.state[parameters]["n_iter"],
        )

    def _scales(self, weight_decay: float) -> Tensor:
        # At uniform predictions the Hessian is about p (1 - p) * covariance + weight decay, with p = 1 / C. Scaling
        # every axis by its inverse square root makes it about the identity, which L-BFGS solves in few steps.
        spread = (self.num_classes - 1) / self.num_classes**2
        curvature = spread * self.variances.clamp_min(0) + weight_decay
        floor = curvature.max() * torch.finfo(curvature.dtype).eps
        bias_curvature = curvature.new_full((1,), spread)
        return torch.cat([curvature.clamp_min(floor), bias_curvature]).rsqrt()

    def _initial(self, start: _Fit | None, scales: Tensor) -> Tensor:
        if start is None:
            return scales.new_zeros(self.num_classes, len(scales))
        return torch.cat([start.weight @ self.axes, start.bias[:, None]], dim=1) / scales

    def _objective(self, parameters: Tensor, scales: Tensor, weight_decay: float) -> tuple[Tensor, Tensor]:
        # The gradient is written out: it needs no autograd, so the caller's grad or inference mode does not matter.
        solution = parameters * scales
        weight = solution[:, :-1]
        log_p = F.linear(self.inputs, weight, solution[:, -1]).log_softmax(dim=1)
        # Summed in float64: a line search near the minimum compares losses that differ by less than float32 shows.
        loss = F.nll_loss(log_p, self.targets, reduction="none").double().mean()
        loss = loss + weight_decay / 2 * weight.double().square().sum()

        residual = log_p.exp_()
        rows = torch.arange(len(residual), device=residual.device)
        residual[rows, self.targets] -= 1
        residual /= len(residual)
        weight_gradient = residual.T @ self.inputs + weight_decay * weight
        return loss, torch.cat([weight_gradient, residual.sum(dim=0)[:, None]], dim=1) * scales


def principal_axes(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Variances ``(r,)`` and axes ``(D, r)`` of centred inputs ``(n, D)``, r = min(n, D): a ridge solution has no part
    outside the space that the samples span, so few samples of many dimensions are solved in few."""
    if len(inputs) >= inputs.shape[1]:
        return tuple(torch.linalg.eigh(inputs.T @ inputs / len(inputs)))
    _, singular_values, axes = torch.linalg.svd(inputs, full_matrices=False)
    return singular_values.square() / len(inputs), axes.T


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (divisor n) of each column, with 1 for columns constant up to rounding."""
    exact = features.double()
    mean, std = exact.mean(dim=0), exact.std(dim=0, correction=0)
    rounding = 10 * torch.finfo(features.dtype).eps * exact.abs().amax(dim=0)
    std = torch.where(std <= rounding, torch.ones_like(std), std)
    return mean.to(features.dtype), std.to(features.dtype)


def class_targets(labels: Tensor, held_out: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct labels, ascending, and every sample's position among them.

    Args:
        labels: ``(n,)`` integer labels of train and validation samples.
        held_out: ``(n,)`` boolean mask of the validation samples.

    Raises:
        ValueError: there are fewer than two classes, or the validation samples have one that the others lack.
    """
    classes = labels[~held_out].unique()
    check_several_classes(classes)
    advice = "Drop those samples or add some of these classes to the train set."
    check_known_classes(labels[held_out], classes, "validation_labels", advice)
    return classes, torch.searchsorted(classes, labels)


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Share of equal entries of two ``(m,)`` tensors."""
    return (predictions == labels).double().mean().item()


def top_k_accuracy(scores: Tensor, classes: Tensor, labels: Tensor, k: int) -> float:
    """Share of samples whose label is among the k best-scored classes.

    Args:
        scores: ``(m, C)``, higher is better.
        classes: ``(C,)`` the label of every column.
        labels: ``(m,)``.
        k: >= 1; C where C is smaller.
    """
    best = classes[scores.topk(min(k, scores.shape[1]), dim=1).indices]
    return (best == labels[:, None]).any(dim=1).double().mean().item()


def class_accuracies(predictions: Tensor, labels: Tensor) -> dict[int, float]:
    """Of every class among ``(m,)`` labels, the share of its samples that is predicted correctly."""
    present, positions, sizes = labels.unique(return_inverse=True, return_counts=True)
    hits = torch.zeros(len(present), dtype=torch.float64, device=labels.device)
    hits.index_add_(0, positions, (predictions == labels).double())
    return dict(zip(present.tolist(), (hits / sizes).tolist(), strict=True))


def balanced_accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Mean of :func:`class_accuracies`: accuracy with every class of the labels weighing the same."""
    shares = class_accuracies(predictions, labels).values()
    return math.fsum(shares) / len(shares)


def _check_settings(
    weight_decays: Sequence[float], validation_fraction: float, max_iter: int, tolerance: float, dtype: torch.dtype
) -> list[float]:
    """Check the settings and return the grid without repetitions, strongest first."""
    grid = checked_grid(weight_decays, "weight_decays")
    check_open_fraction(validation_fraction, "validation_fraction")
    check_positive(max_iter, "max_iter")
    check_positive(tolerance, "tolerance")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype is {dtype}, but torch.float32 or torch.float64 is expected. Pass one of them.")
    return grid[::-1]
