# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Argument checks shared by the evaluation protocols."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def check_features(features: Tensor, name: str) -> None:
    """Raise unless ``features`` is a finite floating-point ``(n >= 1, D >= 1)`` tensor.

    Raises:
        TypeError: ``features`` is not a floating-point tensor.
        ValueError: the shape is not ``(n, D)``, the tensor is empty, or an entry is NaN or infinite.
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
            f"{name} holds NaN or infinite values in {len(bad)} of {features.shape[0]} rows (the first is row "
            f"{bad[0]}), but finite features are expected. Check the model's weights and its input."
        )


def non_finite_rows(features: Tensor) -> list[int]:
    """Indices of the rows of an ``(n, D)`` tensor that hold a NaN or an infinity."""
    return (~torch.isfinite(features).all(dim=1)).nonzero().flatten().tolist()


def check_labels(labels: Tensor, num_features: int, name: str) -> None:
    """Raise unless ``labels`` is an integer ``(num_features,)`` tensor of values >= 0.

    Raises:
        TypeError: ``labels`` is not an integer tensor.
        ValueError: the shape is not ``(num_features,)`` or a label is negative.
    """
    if (
        not isinstance(labels, Tensor)
        or labels.is_floating_point()
        or labels.is_complex()
        or labels.dtype == torch.bool
    ):
        given = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"{name} is {given}, but an integer tensor is expected. Convert it with .long() first.")
    if labels.shape != (num_features,):
        raise ValueError(
            f"{name} has shape {tuple(labels.shape)}, but ({num_features},) is expected: one label per feature row. "
            "Pass the labels of the same samples, in the same order."
        )
    lowest = int(labels.min())
    if lowest < 0:
        raise ValueError(
            f"{name} holds the label {lowest}, but labels are expected in 0 .. C - 1. "
            "Drop the unlabelled samples or renumber the classes."
        )


def check_label_range(labels: Tensor, num_classes: int, name: str) -> None:
    """Raise ``ValueError`` if an integer label of a non-empty tensor is not below ``num_classes``."""
    largest = int(labels.max())
    if largest >= num_classes:
        raise ValueError(
            f"{name} holds the label {largest}, but labels below num_classes = {num_classes} are expected. "
            "Raise num_classes or renumber the classes."
        )


def check_known_classes(labels: Tensor, classes: Tensor, name: str, advice: str) -> None:
    """Raise ``ValueError``, ending in ``advice``, if ``labels`` has a value that is not among ``classes``."""
    unseen = labels[~torch.isin(labels, classes)].unique().tolist()
    if unseen:
        shown = f"{unseen}" if len(unseen) <= 5 else f"{unseen[:5]} and {len(unseen) - 5} more"
        raise ValueError(
            f"{name} holds the classes {shown}, which train_labels lacks, but every class of {name} is expected in "
            f"the train set. {advice}"
        )


def check_several_classes(classes: Tensor) -> None:
    """Raise ``ValueError`` unless the ``(C',)`` distinct train labels are at least two."""
    if len(classes) < 2:
        raise ValueError(
            f"train_labels holds only the class {int(classes[0])}, but at least two classes are expected. "
            "Check how the train set was drawn."
        )


def check_same_width(train_features: Tensor, test_features: Tensor, test_name: str = "test_features") -> None:
    """Raise ``ValueError`` unless both feature matrices have the same number of columns."""
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"train_features has {train_features.shape[1]} dimensions and {test_name} has "
            f"{test_features.shape[1]}, but the same number is expected. Extract both with the same model."
        )


def check_sets(sets: Mapping[str, tuple[Tensor, Tensor]], num_classes: int | None) -> None:
    """Check the features and labels of every named set, one of which is "train".

    Raises:
        TypeError: features are not floating point or labels are not integers.
        ValueError: a shape is wrong, a set is empty, a feature is NaN or infinite, a label is negative or not below
            ``num_classes``, or a set's features differ in width from the train set's.
    """
    for name, (features, labels) in sets.items():
        check_features(features, f"{name}_features")
        check_labels(labels, len(features), f"{name}_labels")
        check_same_width(sets["train"][0], features, f"{name}_features")
        if num_classes is not None:
            check_label_range(labels, num_classes, f"{name}_labels")


def check_positive(value: float, name: str) -> None:
    """Raise ``ValueError`` unless ``value`` is > 0 (NaN is refused too)."""
    if not value > 0:
        raise ValueError(f"{name} is {value}, but a value above 0 is expected. Pass a positive {name}.")


def check_open_fraction(value: float, name: str) -> None:
    """Raise ``ValueError`` unless ``value`` is strictly between 0 and 1 (NaN is refused too)."""
    if not 0 < value < 1:
        raise ValueError(
            f"{name} is {value}, but a value strictly between 0 and 1 is expected. "
            "Pass 0.1 to hold out a tenth of the train set."
        )


def checked_grid(values: Sequence[float], name: str, *, allow_zero: bool = False) -> list[float]:
    """The values without repetitions, ascending.

    Args:
        values: positive, or with ``allow_zero`` non-negative, finite numbers.
        name: what an error calls the grid.
        allow_zero: whether 0 is a value.

    Raises:
        ValueError: there is no value, or one is out of range.
    """
    if len(values) == 0:
        raise ValueError(f"{name} is empty, but at least one value is expected. Pass a grid of positive values.")
    wanted = "finite values of at least 0 are" if allow_zero else "finite values above 0 are"
    for value in values:
        if not (value > 0 or (allow_zero and value == 0)) or math.isinf(value):
            raise ValueError(f"{name} holds {value}, but {wanted} expected. Remove it from the grid.")
    return sorted({float(value) for value in values})
