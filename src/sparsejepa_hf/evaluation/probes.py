# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Linear probes of frozen features: logistic regression, few labels, ridge regression of counts; and their splits.

scikit-learn fits them, on the CPU: features on a GPU are copied. Its own way to a GPU (array-API dispatch) would need
an environment variable set before scipy is first imported, which a library cannot promise.
"""

from __future__ import annotations

import copy
import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, PredefinedSplit, train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import ThreadpoolController
from torch import Tensor

from .metrics import best_classes, check_features, load_metric
from .statistics import Summary, summarize


# Share of the train set that hyper-parameters are chosen on.
VALIDATION_FRACTION = 0.1
DEFAULT_WEIGHT_DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
DEFAULT_RIDGE_WEIGHT_DECAYS = (1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


@dataclass(frozen=True, eq=False)
class LinearProbeResult:
    """What [`linear_probe`] found.

    Attributes:
        test_accuracy: top-1 accuracy on the test set, in [0, 1].
        test_top5_accuracy: share of test samples whose label is among the five best-scored classes, in [0, 1]; None
            with at most five classes.
        test_balanced_accuracy: mean over the test set's classes of the share of their samples that is predicted
            correctly, in [0, 1].
        test_predictions: `(m,)` int64 on the CPU, the predicted labels of the test set.
        validation_accuracy: accuracy of the chosen weight decay on the validation part, in [0, 1].
        weight_decay: the chosen weight decay, one of the grid.
        validation_accuracies: accuracy on the validation part of every weight decay, strongest first.
        at_grid_edge: whether the choice is the smallest or largest of a grid of several; then a wider grid may
            give a better probe.
        converged: whether the final fit ended before its iterations did.
        model: the fitted scikit-learn pipeline of `StandardScaler` and `LogisticRegression`.
    """

    test_accuracy: float
    test_top5_accuracy: float | None
    test_balanced_accuracy: float
    test_predictions: Tensor
    validation_accuracy: float
    weight_decay: float
    validation_accuracies: dict[float, float]
    at_grid_edge: bool
    converged: bool
    model: Pipeline


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    weight_decays: Sequence[float] = DEFAULT_WEIGHT_DECAYS,
    validation_fraction: float = VALIDATION_FRACTION,
    seed: int = 0,
    max_iter: int = 200,
    tolerance: float = 1e-4,
    allow_unseen_classes: bool = False,
) -> LinearProbeResult:
    """Chooses a weight decay on a validation part of the train set, refits on all of it, and tests once.

    The probe minimises the mean over the n train samples of -log softmax(W z + b)[y], plus λ/2 · ‖W‖², where z are
    the standardised features. The bias b is not penalised. This is scikit-learn's `LogisticRegression` with
    `C = 1 / (λ * n)`. For two classes scikit-learn keeps the difference of the two rows of W, so `C = 2 / (λ * n)`.

    The grid goes from strong to weak weight decay, and each fit starts from the one before. Of equally accurate weight
    decays the strongest is taken. The test set enters only after the final fit. Features are standardised by the
    samples that a fit is made on. float32 features are fitted in float32 (by scikit-learn below 1.8 in float64).

    Args:
        train_features: `(n, D)` floating point.
        train_labels: `(n,)` integers >= 0, of at least two classes; numbers may be left out.
        test_features: `(m, D)` floating point.
        test_labels: `(m,)` integers >= 0.
        weight_decays: the grid of λ, each > 0.
        validation_fraction: share of the train set to choose on, at most 0.5; see [`validation_mask`].
        seed: of the split; the global random state is neither read nor changed.
        max_iter: L-BFGS iterations of a fit, at most.
        tolerance: a fit ends when no entry of its gradient exceeds it.
        allow_unseen_classes: count test samples of classes that the train set lacks as errors, rather than refuse.

    Raises:
        TypeError: features are not floating point or labels are not integers.
        ValueError: a shape or range is not as stated, a feature is NaN or infinite, the train set has fewer than two
            classes or is too small to split, or the test set has a class that the train set lacks.
    """
    features, labels = _arrays(train_features, train_labels, "train")
    inputs, targets = _arrays(test_features, test_labels, "test")
    unseen = np.setdiff1d(targets, labels)
    if len(unseen) and not allow_unseen_classes:
        raise ValueError(
            f"test_labels holds the classes {unseen.tolist()}, which train_labels lacks. Draw the train set from all "
            "classes, or pass allow_unseen_classes=True to count those test samples as errors."
        )
    grid = _strongest_first(weight_decays)
    held_out = validation_mask(train_labels, validation_fraction, seed).cpu().numpy()

    scaler = StandardScaler().fit(features[~held_out])
    fitted, validation = scaler.transform(features[~held_out]), scaler.transform(features[held_out])
    model = LogisticRegression(max_iter=max_iter, tol=tolerance, warm_start=True)
    models, accuracies = {}, {}
    for weight_decay in grid:
        models[weight_decay] = copy.deepcopy(_fit(model, weight_decay, fitted, labels[~held_out]))
        accuracies[weight_decay] = float(model.score(validation, labels[held_out]))
    chosen = max(grid, key=accuracies.__getitem__)

    scaler = StandardScaler().fit(features)
    model = _fit(models[chosen], chosen, scaler.transform(features), labels)
    scores = model.predict_proba(scaler.transform(inputs))
    ranked = model.classes_[best_classes(torch.from_numpy(scores)).numpy()]
    figures = load_metric("classification", keep_in_memory=True).compute(predictions=ranked, references=targets)
    return LinearProbeResult(
        test_accuracy=figures["accuracy"],
        test_top5_accuracy=figures.get("top5_accuracy"),
        test_balanced_accuracy=figures["balanced_accuracy"],
        test_predictions=torch.from_numpy(ranked[:, 0].copy()),
        validation_accuracy=accuracies[chosen],
        weight_decay=chosen,
        validation_accuracies=accuracies,
        at_grid_edge=len(grid) > 1 and chosen in (grid[0], grid[-1]),
        converged=int(model.n_iter_[0]) < max_iter,
        model=make_pipeline(scaler, model),
    )


def _strongest_first(weight_decays: Sequence[float]) -> list[float]:
    if not weight_decays or not all(0 < weight_decay < math.inf for weight_decay in weight_decays):
        raise ValueError(f"weight_decays is {list(weight_decays)}; expected at least one, each above 0 and finite.")
    return sorted(set(weight_decays), reverse=True)


def _fit(model: LogisticRegression, weight_decay: float, features: NDArray, labels: NDArray) -> LogisticRegression:
    """Fits the model to samples, starting from its own weights if it has some."""
    rows = 2 if len(np.unique(labels)) == 2 else 1
    # The many small products of a fit wait for the slowest BLAS thread. On cores that other processes use too, one
    # thread for each core makes a fit several times slower; half as many leave room.
    blas = ThreadpoolController().select(user_api="blas")
    threads = max((library["num_threads"] for library in blas.info()), default=1)
    with blas.limit(limits=max(1, threads // 2)), warnings.catch_warnings():
        # A probe may end before its minimum; its result says so.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.set_params(C=rows / (weight_decay * len(features))).fit(features, labels)


def low_shot_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    fraction: float = 0.01,
    seeds: Sequence[int] = (0, 1, 2),
    **settings: Any,
) -> Summary:
    """Test accuracy of [`linear_probe`] fitted on subsets of the train set, as of [`low_shot_indices`].

    Every probe is tested on all of the test set. The weight decay is chosen inside each subset: no label outside it
    is used. The spread over seeds is that of the subset and of its validation part, not of the features' training.

    Args:
        train_features: `(n, D)` floating point.
        train_labels: `(n,)` integers >= 0.
        test_features: `(m, D)` floating point.
        test_labels: `(m,)` integers >= 0.
        fraction: share of every class's labels, in (0, 1].
        seeds: of the subsets and of the validation parts, at least one.
        settings: further arguments of [`linear_probe`], except `seed`.

    Returns:
        Mean, standard deviation and number of the accuracies over `seeds`.

    Raises:
        TypeError: as [`linear_probe`].
        ValueError: as [`linear_probe`]; also where a subset is too small for a validation part.
    """
    accuracies = []
    for seed in seeds:
        rows = low_shot_indices(train_labels, fraction, seed)
        subset = train_features[rows.to(train_features.device)], train_labels[rows]
        accuracies.append(linear_probe(*subset, test_features, test_labels, seed=seed, **settings).test_accuracy)
    return summarize(accuracies)


@dataclass(frozen=True, eq=False)
class RidgeProbeResult:
    """What [`ridge_probe`] found.

    Attributes:
        test_predictions: `(m,)` float64 on the CPU.
        test_r2: coefficient of determination on the test set, at most 1; None where all test targets are equal.
        test_mae: mean absolute error on the test set, in the targets' units.
        validation_r2: coefficient of determination of the chosen weight decay on the validation part.
        weight_decay: the chosen weight decay, one of the grid.
        model: the fitted scikit-learn pipeline of `StandardScaler` and `Ridge`.
    """

    test_predictions: Tensor
    test_r2: float | None
    test_mae: float
    validation_r2: float
    weight_decay: float
    model: Pipeline


def ridge_probe(
    train_features: Tensor,
    train_targets: Tensor,
    test_features: Tensor,
    test_targets: Tensor,
    *,
    weight_decays: Sequence[float] = DEFAULT_RIDGE_WEIGHT_DECAYS,
    validation_fraction: float = VALIDATION_FRACTION,
    seed: int = 0,
) -> RidgeProbeResult:
    """Ridge regression: chooses a weight decay on a validation part of the train set, refits on all, and tests once.

    The probe minimises half the mean over the n train samples of (w·z + b - y)², plus λ/2 · ‖w‖², where z are the
    standardised features. The bias b is not penalised. This is scikit-learn's `Ridge` with `alpha = λ * n`, in
    float64. Of equally good weight decays the strongest is taken.

    Args:
        train_features: `(n, D)` floating point.
        train_targets: `(n,)` finite numbers.
        test_features: `(m, D)` floating point.
        test_targets: `(m,)` finite numbers.
        weight_decays: the grid of λ, each > 0.
        validation_fraction: share of the train set to choose on, drawn at random.
        seed: of the draw; the global random state is neither read nor changed.

    Raises:
        TypeError: features are not floating point.
        ValueError: a shape or range is not as stated, or an entry is NaN or infinite.
    """
    check_features(train_features, "train_features")
    check_features(test_features, "test_features")
    features, targets, inputs, wanted = (
        tensor.detach().cpu().double().numpy()
        for tensor in (train_features, train_targets, test_features, test_targets)
    )
    held_out = validation_mask(torch.zeros(len(features), dtype=torch.int64), validation_fraction, seed).numpy()
    grid = _strongest_first(weight_decays)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), Ridge()),
        {"ridge__alpha": [weight_decay * len(features) for weight_decay in grid]},
        cv=PredefinedSplit(np.where(held_out, 0, -1)),
        scoring="r2",
        error_score="raise",
    ).fit(features, targets)
    predictions = search.predict(inputs)
    errors = load_metric("counting", keep_in_memory=True).compute(predictions=predictions, references=wanted)
    return RidgeProbeResult(
        test_predictions=torch.from_numpy(predictions),
        test_r2=errors["r2"],
        test_mae=errors["mae"],
        validation_r2=float(search.best_score_),
        weight_decay=grid[search.best_index_],
        model=search.best_estimator_,
    )


@dataclass(frozen=True, eq=False)
class CountProbeResult:
    """What [`count_probe`] found.

    Attributes:
        classification: logistic regression over the counts as classes; its `test_accuracy` is the share of exact
            matches, as VTAB reports it.
        regression: ridge regression of the counts.
        rounded_accuracy: share of test samples whose regressed count is right after rounding to the nearest integer
            between the smallest and the largest count of the train set, in [0, 1].
    """

    classification: LinearProbeResult
    regression: RidgeProbeResult
    rounded_accuracy: float


def count_probe(
    train_features: Tensor,
    train_counts: Tensor,
    test_features: Tensor,
    test_counts: Tensor,
    *,
    weight_decays: Sequence[float] = DEFAULT_WEIGHT_DECAYS,
    validation_fraction: float = VALIDATION_FRACTION,
    seed: int = 0,
) -> CountProbeResult:
    """Counts objects from frozen features in the two usual ways.

    VTAB (Zhai et al., arXiv 1910.04867) makes CLEVR/Count a classification over the counts that occur, scored by
    exact matches: [`linear_probe`]. Regression, by [`ridge_probe`], makes use of the order of counts. Its predictions
    are also rounded, so that both give exact matches.

    Args:
        train_features: `(n, D)` floating point.
        train_counts: `(n,)` integers >= 0, of at least two values.
        test_features: `(m, D)` floating point.
        test_counts: `(m,)` integers >= 0.
        weight_decays: grid of the logistic regression.
        validation_fraction: share of the train set to choose on, stratified by count for the classification and
            random for the regression.
        seed: of the splits.

    Raises:
        TypeError: features are not floating point or counts are not integers.
        ValueError: as [`linear_probe`].
    """
    data = (train_features, train_counts, test_features, test_counts)
    choice: dict[str, Any] = {"validation_fraction": validation_fraction, "seed": seed}
    classification = linear_probe(*data, weight_decays=weight_decays, **choice)
    regression = ridge_probe(*data, **choice)
    seen = regression.test_predictions.clamp(int(train_counts.min()), int(train_counts.max()))
    rounded = load_metric("counting", keep_in_memory=True).compute(predictions=seen, references=test_counts.cpu())
    return CountProbeResult(classification, regression, rounded["exact_match"])


def validation_mask(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Chooses validation samples, stratified by class. Every class keeps a sample outside them.

    Every class of two or more samples gives about `fraction` of them. If that would be too few for one from each such
    class, as many samples are drawn as there are such classes. Classes of one sample give none.

    Args:
        labels: `(n,)` integers, n >= 1.
        fraction: share of the samples to choose, above 0 and at most 0.5.
        seed: of the choice; the global random state is neither read nor changed.

    Returns:
        Boolean `(n,)` mask of the validation samples, on the labels' device.

    Raises:
        ValueError: `fraction` is out of range, or every class has a single sample.
    """
    if not 0 < fraction <= 0.5:
        raise ValueError(
            f"validation_fraction is {fraction}, but a value above 0 and at most 0.5 is expected. "
            "Pass 0.1 to choose on a tenth of the train set."
        )
    values = labels.cpu().numpy()
    _, positions, sizes = np.unique(values, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(sizes[positions] > 1)
    if len(rows) == 0:
        raise ValueError(
            f"The {len(values)} train samples leave no validation sample, since every class has only one, which is "
            "kept for fitting. Pass more samples of each class."
        )
    count = max(round(fraction * len(rows)), int((sizes > 1).sum()))
    _, chosen = train_test_split(rows, test_size=count, random_state=seed, stratify=values[rows])
    mask = torch.zeros(len(values), dtype=torch.bool)
    mask[torch.from_numpy(chosen)] = True
    return mask.to(labels.device)


def low_shot_indices(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Draws a class-balanced subset of a labelled set, such as 1 % or 10 % of the labels.

    Every class gives `fraction` times its size, rounded to the nearest integer (halves up), and at least one
    sample. For the same labels and seed a smaller fraction's subset lies inside a larger one's.

    Args:
        labels: `(n,)` integers.
        fraction: share of every class to keep, in (0, 1].
        seed: of the choice; the global random state is neither read nor changed.

    Returns:
        Indices of the chosen samples, int64, ascending, on the labels' device.

    Raises:
        ValueError: `fraction` is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(
            f"fraction is {fraction}, but a value above 0 and at most 1 is expected. Pass 0.01 for one per cent."
        )
    # train_test_split would refuse classes of one sample, and its subsets of different sizes are not nested.
    values, generator = labels.cpu().numpy(), np.random.default_rng(seed)
    chosen = []
    for label in np.unique(values):
        rows = generator.permutation(np.flatnonzero(values == label))
        chosen.append(rows[: max(1, math.floor(fraction * len(rows) + 0.5))])
    return torch.from_numpy(np.sort(np.concatenate(chosen))).to(labels.device)


def image_hashes(images: Tensor | NDArray) -> list[bytes]:
    """A 256-bit BLAKE2b digest of every image's pixels: the same for equal images, different for any others.

    Args:
        images: uint8 `(n, ...)`.

    Raises:
        TypeError: the images are not uint8.
    """
    array = images.cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    if array.dtype != np.uint8:
        raise TypeError(f"images has dtype {array.dtype}, but uint8 is expected. Pass the stored pixels.")
    # Images of different shapes may hold the same bytes.
    shape = str(array.shape[1:]).encode()
    return [hashlib.blake2b(shape + np.ascontiguousarray(image).tobytes(), digest_size=32).digest() for image in array]


def duplicate_rows(train_hashes: Sequence[bytes], test_hashes: Sequence[bytes]) -> Tensor:
    """Test images whose exact pixels also occur in the train set (CIFAR-100 has ten).

    Args:
        train_hashes: [`image_hashes`] of the n train images.
        test_hashes: those of the m test images.

    Returns:
        Indices into the test set, int64, ascending.
    """
    seen = set(train_hashes)
    return torch.tensor([row for row, digest in enumerate(test_hashes) if digest in seen], dtype=torch.int64)


def check_labels(labels: Tensor, num_features: int, name: str) -> None:
    """Raises unless `labels` is an integer `(num_features,)` tensor of values >= 0.

    Raises:
        TypeError: `labels` is not an integer tensor.
        ValueError: the shape is another or a label is negative.
    """
    integer = isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.is_complex())
    if not integer or labels.dtype == torch.bool:
        given = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"{name} is {given}, but an integer tensor is expected. Convert it with .long() first.")
    if labels.shape != (num_features,):
        raise ValueError(
            f"{name} has shape {tuple(labels.shape)}, but ({num_features},) is expected: one label per feature row."
        )
    if int(labels.min()) < 0:
        raise ValueError(f"{name} holds the label {int(labels.min())}, but labels of at least 0 are expected.")


def _arrays(features: Tensor, labels: Tensor, name: str) -> tuple[NDArray, NDArray]:
    """Checked features, in float32 at least, and labels as scikit-learn takes them."""
    check_features(features, f"{name}_features")
    check_labels(labels, len(features), f"{name}_labels")
    features = features.detach().to("cpu", torch.promote_types(features.dtype, torch.float32))
    return features.numpy(), labels.to("cpu", torch.int64).numpy()
