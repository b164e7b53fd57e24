# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Linear probe: multinomial logistic regression on frozen features, tested once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsejepa_hf.evaluation._checks import check_features, check_labels, check_positive, check_same_width


DEFAULT_WEIGHT_DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
_HISTORY_SIZE = 20


@dataclass(frozen=True, eq=False)
class LinearProbeResult:
    """What :func:`linear_probe` found. Tensors are on the device of the train features.

    Attributes:
        test_accuracy: top-1 accuracy on the test set, in [0, 1].
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


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    weight_decays: Sequence[float] = DEFAULT_WEIGHT_DECAYS,
    validation_fraction: float = 0.1,
    seed: int = 0,
    max_iter: int = 200,
    tolerance: float = 1e-5,
    dtype: torch.dtype = torch.float32,
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
        validation_fraction: share of each class, to within one sample, that is split off for the choice, in (0, 1).
            The first sample drawn of every class always stays in the fitted part.
        seed: seed of the split; the global random state is neither read nor changed.
        max_iter: most L-BFGS iterations per fit.
        tolerance: a fit ends when no entry of its preconditioned gradient g exceeds it; ``|g|^2 / 2`` is about how
            far the objective is above its minimum. Rounding of the objective ends a fit too; hence float32 reaches
            about 1e-6 and float64 about 1e-7, on very ill-conditioned features less (see ``converged``).
        dtype: of the computation, ``torch.float32`` or ``torch.float64``.
        allow_unseen_classes: count test samples of classes that the train set lacks as errors, rather than refuse.

    Returns:
        The accuracies, the chosen weight decay and the fitted weights.

    Raises:
        TypeError: features are not floating point or labels are not integers.
        ValueError: a shape or range is not as stated, a feature is NaN or infinite, the train set has fewer than two
            classes or is too small to split, or the test set has a class that the train set lacks.
    """
    check_features(train_features, "train_features")
    check_features(test_features, "test_features")
    check_same_width(train_features, test_features)
    check_labels(train_labels, len(train_features), "train_labels")
    check_labels(test_labels, len(test_features), "test_labels")
    grid = _check_settings(weight_decays, validation_fraction, max_iter, tolerance, dtype)
    features = train_features.detach().to(dtype)
    classes, targets = train_labels.to(features.device, torch.int64).unique(return_inverse=True)
    test_labels = test_labels.to(classes)
    _check_classes(classes, test_labels, allow_unseen_classes)

    held_out = _validation_mask(targets, validation_fraction, seed)
    problem = _Problem(features[~held_out], targets[~held_out], len(classes))
    fits, accuracies, previous = {}, {}, None
    for weight_decay in grid:
        previous = fits[weight_decay] = problem.fit(weight_decay, max_iter, tolerance, previous)
        predictions = problem.predict(previous, features[held_out])
        accuracies[weight_decay] = _accuracy(predictions, targets[held_out])
    chosen = max(grid, key=accuracies.__getitem__)

    problem = _Problem(features, targets, len(classes))
    final = problem.fit(chosen, max_iter, tolerance, fits[chosen])
    predictions = classes[problem.predict(final, test_features.detach().to(features))]
    return LinearProbeResult(
        test_accuracy=_accuracy(predictions, test_labels),
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
        self.mean, self.scale = _moments(features)
        inputs = (features - self.mean) / self.scale
        self.variances, self.axes = torch.linalg.eigh(inputs.T @ inputs / len(inputs))
        self.inputs = inputs @ self.axes

    def predict(self, fit: _Fit, features: Tensor) -> Tensor:
        return F.linear((features - self.mean) / self.scale, fit.weight, fit.bias).argmax(dim=1)

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


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (divisor n) of each column, with 1 for columns constant up to rounding."""
    exact = features.double()
    mean, std = exact.mean(dim=0), exact.std(dim=0, correction=0)
    rounding = 10 * torch.finfo(features.dtype).eps * exact.abs().amax(dim=0)
    std = torch.where(std <= rounding, torch.ones_like(std), std)
    return mean.to(features.dtype), std.to(features.dtype)


def _validation_mask(targets: Tensor, fraction: float, seed: int) -> Tensor:
    """Boolean ``(n,)`` mask of the validation samples: systematic sampling of the shuffled, class-sorted set.

    Every class gives the floor or the ceiling of ``fraction`` times its size, less one if its first sample is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = targets.cpu()
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]
    offset = torch.rand((), dtype=torch.float64, generator=generator)
    steps = torch.floor(torch.arange(len(labels) + 1, dtype=torch.float64) * fraction + offset)
    first_of_class = torch.ones(len(labels), dtype=torch.bool)
    first_of_class[1:] = labels[order[1:]] != labels[order[:-1]]
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[order] = (steps.diff() > 0) & ~first_of_class
    if not bool(mask.any()):
        raise ValueError(
            f"validation_fraction {fraction} of {len(labels)} train samples leaves no validation sample, but at least "
            "one is expected beyond the one per class that is kept for fitting. Raise it or pass more samples."
        )
    return mask.to(targets.device)


def _accuracy(predictions: Tensor, labels: Tensor) -> float:
    return (predictions == labels).double().mean().item()


def _check_settings(
    weight_decays: Sequence[float], validation_fraction: float, max_iter: int, tolerance: float, dtype: torch.dtype
) -> list[float]:
    """Check the settings and return the grid without repetitions, strongest first."""
    if len(weight_decays) == 0:
        raise ValueError("weight_decays is empty, but at least one value is expected. Pass a grid of positive values.")
    for weight_decay in weight_decays:
        check_positive(weight_decay, "weight_decay")
        if math.isinf(weight_decay):
            raise ValueError("weight_decays holds infinity, but finite values are expected. Remove it from the grid.")
    if not 0 < validation_fraction < 1:
        raise ValueError(
            f"validation_fraction is {validation_fraction}, but a value strictly between 0 and 1 is expected. "
            "Pass 0.1 to choose the weight decay on a tenth of the train set."
        )
    check_positive(max_iter, "max_iter")
    check_positive(tolerance, "tolerance")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype is {dtype}, but torch.float32 or torch.float64 is expected. Pass one of them.")
    return sorted({float(weight_decay) for weight_decay in weight_decays}, reverse=True)


def _check_classes(classes: Tensor, test_labels: Tensor, allow_unseen_classes: bool) -> None:
    if len(classes) < 2:
        raise ValueError(
            f"train_labels holds only the class {int(classes[0])}, but at least two classes are expected. "
            "Check how the train set was drawn."
        )
    unseen = test_labels[~torch.isin(test_labels, classes)].unique().tolist()
    if unseen and not allow_unseen_classes:
        raise ValueError(
            f"test_labels holds the classes {unseen}, which train_labels lacks, but every test class is expected in "
            "the train set. Draw the train set from all classes, or pass allow_unseen_classes=True to count those "
            "test samples as errors."
        )
