# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Accuracies and count errors from predictions and references, shared by the modules of this folder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def predicted_classes(predictions: ArrayLike, name: str = "predictions") -> np.ndarray:
    """Classes ``(n,)`` int64 from class indices ``(n,)`` or from the largest of scores ``(n, C)``, ties to the first.

    Raises:
        ValueError: the shape is another, there is no sample, an index is not an integer >= 0, or a score is NaN.
    """
    array = _matrix(predictions, name)
    if array.ndim == 2:
        return array.argmax(axis=1)
    return class_indices(array, name)


def class_indices(values: ArrayLike, name: str) -> np.ndarray:
    """``(n,)`` int64 class indices.

    Raises:
        ValueError: a value is not an integer >= 0, the shape is not ``(n,)`` or there is no value.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} has the shape {array.shape}, but (n,) with n >= 1 is expected: one class a sample.")
    wrong = array[~((array >= 0) & (array == np.floor(array)) & np.isfinite(array))]
    if wrong.size:
        raise ValueError(
            f"{name} holds {wrong[0]}, but class indices 0, 1, 2, ... are expected. "
            "Pass predicted classes, or a row of scores over the classes for every sample."
        )
    return array.astype(np.int64)


def top_k_accuracies(predictions: ArrayLike, references: ArrayLike, k: int | Sequence[int]) -> dict[int, float]:
    """Share of samples whose class is among the k with the highest scores, in [0, 1], for every k asked for.

    Args:
        predictions: scores ``(n, C)``, or class indices ``(n,)``, which allow k = 1 only. Of equal scores the lower
            class index goes first, so that k = 1 agrees with ``argmax`` and a constant score earns nothing.
        references: ``(n,)`` true classes.
        k: one number or several, each in 1 .. C.

    Raises:
        ValueError: a shape or a range is not as stated, or a score is NaN.
    """
    scores, classes = _matrix(predictions, "predictions"), class_indices(references, "references")
    _check_length(scores, classes)
    ks = [k] if isinstance(k, (int, np.integer)) else list(k)
    num_classes = scores.shape[1] if scores.ndim == 2 else 1
    for one in ks:
        if not 1 <= one <= num_classes:
            kind = f"scores of {num_classes} classes" if scores.ndim == 2 else "class indices instead of scores"
            raise ValueError(
                f"k is {one}, but predictions holds {kind}, which allow k from 1 to {num_classes}. "
                "Lower k, or pass scores over more classes."
            )
    if not ks:
        raise ValueError("k is empty, but at least one number is expected, for example k=1 or k=[1, 5].")
    if scores.ndim == 1:
        return {int(one): float((class_indices(scores, "predictions") == classes).mean()) for one in ks}
    rank = _rank_of_true_class(scores, classes)
    return {int(one): float((rank < one).mean()) for one in ks}


def class_balanced_accuracy(predictions: ArrayLike, references: ArrayLike) -> float:
    """Mean over the classes in ``references`` of the share of their samples that is predicted right, in [0, 1].

    Args:
        predictions: class indices ``(n,)`` or scores ``(n, C)``.
        references: ``(n,)`` true classes.

    Raises:
        ValueError: a shape or a range is not as stated, or a score is NaN.
    """
    predicted, classes = predicted_classes(predictions), class_indices(references, "references")
    _check_length(predicted, classes)
    total = np.bincount(classes)
    right = np.bincount(classes[predicted == classes], minlength=len(total))
    return float((right[total > 0] / total[total > 0]).mean())


def count_errors(predictions: ArrayLike, references: ArrayLike) -> dict[str, float | None]:
    """How far predicted counts are from the true ones.

    Args:
        predictions: ``(n,)`` numbers, integers or not.
        references: ``(n,)`` integers >= 0.

    Returns:
        ``exact_match``: share of predictions that, rounded to the nearest integer (halves up), are the true count,
        in [0, 1]; ``mae``: mean absolute error of the unrounded predictions, >= 0, in objects; ``r2``: 1 - squared
        error / squared deviation of the references from their mean, <= 1, of the unrounded predictions, or None
        where all references are equal, which leaves nothing to explain.

    Raises:
        ValueError: a shape or a range is not as stated, or a prediction is NaN or infinite.
    """
    counts = class_indices(references, "references").astype(np.float64)
    values = np.asarray(predictions, dtype=np.float64)
    if values.shape != counts.shape or not np.isfinite(values).all():
        raise ValueError(
            f"predictions has the shape {values.shape} with {int((~np.isfinite(values)).sum())} values that are NaN "
            f"or infinite, but {counts.shape} finite numbers are expected. Pass one predicted count a sample."
        )
    error, deviation = values - counts, counts - counts.mean()
    return {
        "exact_match": float((np.floor(values + 0.5) == counts).mean()),
        "mae": float(np.abs(error).mean()),
        "r2": float(1 - (error @ error) / (deviation @ deviation)) if deviation.any() else None,
    }


def _rank_of_true_class(scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
    num_classes = scores.shape[1]
    if classes.max() >= num_classes:
        raise ValueError(
            f"references holds the class {classes.max()}, but predictions scores {num_classes} classes, 0 to "
            f"{num_classes - 1}. Score all classes."
        )
    own = np.take_along_axis(scores, classes[:, None], axis=1)
    is_before = np.arange(num_classes) < classes[:, None]
    return ((scores > own) | ((scores == own) & is_before)).sum(axis=1)


def _matrix(predictions: ArrayLike, name: str) -> np.ndarray:
    try:
        array = np.asarray(predictions, dtype=np.float64)
    except ValueError as error:
        raise ValueError(
            f"{name} has rows of different lengths ({error}), but one score per class is expected for every sample."
        ) from error
    if array.ndim not in (1, 2) or 0 in array.shape:
        raise ValueError(
            f"{name} has the shape {array.shape}, but class indices (n,) or scores (n, C) with n >= 1 are expected."
        )
    if array.ndim == 2 and np.isnan(array).any():
        raise ValueError(
            f"{name} holds NaN in {int(np.isnan(array).any(axis=1).sum())} of {len(array)} rows, but scores are "
            "expected. Check the classifier."
        )
    return array


def _check_length(predictions: np.ndarray, references: np.ndarray) -> None:
    if len(predictions) != len(references):
        raise ValueError(
            f"There are {len(predictions)} predictions and {len(references)} references, but as many are expected. "
            "Pass both for the same samples."
        )
