# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Argument checks shared by the evaluation protocols."""

from __future__ import annotations

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


def check_same_width(train_features: Tensor, test_features: Tensor) -> None:
    """Raise ``ValueError`` unless both feature matrices have the same number of columns."""
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"train_features has {train_features.shape[1]} dimensions and test_features has "
            f"{test_features.shape[1]}, but the same number is expected. Extract both with the same model."
        )


def check_positive(value: float, name: str) -> None:
    """Raise ``ValueError`` unless ``value`` is > 0 (NaN is refused too)."""
    if not value > 0:
        raise ValueError(f"{name} is {value}, but a value above 0 is expected. Pass a positive {name}.")
