# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Weighted k-nearest-neighbour classification of frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import (
    check_features,
    check_label_range,
    check_labels,
    check_open_fraction,
    check_positive,
    check_same_width,
    check_sets,
    checked_grid,
)
from .linear_probe import accuracy, balanced_accuracy, top_k_accuracy
from .splits import join_validation


DEFAULT_KS = (1, 5, 10, 20, 50, 100, 200)
DEFAULT_TEMPERATURES = (0.04, 0.07, 0.1)


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    num_classes: int | None = None,
    chunk_size: int = 512,
) -> float:
    """Top-1 accuracy of the weighted kNN classifier of Wu et al. (arXiv 1805.01978, section 3.4), as DINO uses it.

    A test class that the train set lacks can never be predicted: its samples count as errors.

    Args:
        train_features: ``(n, D)`` floating point, the memory bank.
        train_labels: ``(n,)`` integers in 0 .. C - 1.
        test_features: ``(m, D)`` floating point.
        test_labels: ``(m,)`` integers in 0 .. C - 1.
        k: number of neighbours, 1 .. n.
        temperature: softmax temperature of the vote, > 0.
        num_classes: C; by default one more than the largest label given.
        chunk_size: test rows compared at once; memory grows with ``chunk_size * n``.

    Returns:
        The share of test samples whose best-scored class is their label, in [0, 1].

    Raises:
        TypeError: features are not floating point or labels are not integers.
        ValueError: shapes or ranges are not as stated, or a feature is NaN or infinite.
    """
    check_features(train_features, "train_features")
    check_features(test_features, "test_features")
    check_labels(train_labels, len(train_features), "train_labels")
    check_labels(test_labels, len(test_features), "test_labels")
    if num_classes is None:
        num_classes = 1 + max(int(train_labels.max()), int(test_labels.max()))
    check_label_range(test_labels, num_classes, "test_labels")
    scores = knn_predict(
        train_features,
        train_labels,
        test_features,
        k=k,
        temperature=temperature,
        num_classes=num_classes,
        chunk_size=chunk_size,
    )
    return (scores.argmax(dim=1) == test_labels.to(scores.device)).double().mean().item()


def knn_predict(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    num_classes: int | None = None,
    chunk_size: int = 512,
) -> Tensor:
    """Class scores of the weighted kNN vote: the k nearest by cosine similarity s each add exp(s / temperature).

    Scores are divided by their sum over the classes, which leaves the predicted class unchanged and keeps small
    temperatures from overflowing. An all-zero feature vector has similarity 0 to every other.

    Args:
        train_features: ``(n, D)`` floating point, the memory bank. The computation runs on its device.
        train_labels: ``(n,)`` integers in 0 .. C - 1.
        test_features: ``(m, D)`` floating point.
        k: number of neighbours, 1 .. n.
        temperature: softmax temperature of the vote, > 0.
        num_classes: C; by default one more than the largest train label.
        chunk_size: test rows compared at once; memory grows with ``chunk_size * n``.

    Returns:
        ``(m, C)`` scores in [0, 1] whose rows sum to 1, on the device of ``train_features``; float64 if the train
        features are, else float32.

    Raises:
        TypeError: features are not floating point or labels are not integers.
        ValueError: shapes or ranges are not as stated, or a feature is NaN or infinite.
    """
    check_features(train_features, "train_features")
    check_labels(train_labels, len(train_features), "train_labels")
    check_features(test_features, "test_features")
    check_same_width(train_features, test_features)
    check_positive(temperature, "temperature")
    check_positive(chunk_size, "chunk_size")
    _check_k(k, len(train_features))
    if num_classes is None:
        num_classes = 1 + int(train_labels.max())
    check_label_range(train_labels, num_classes, "train_labels")

    dtype = torch.promote_types(train_features.dtype, torch.float32)
    bank = F.normalize(train_features.to(dtype), dim=1)
    labels = train_labels.to(bank.device, torch.int64)
    queries = F.normalize(test_features.to(bank.device, dtype), dim=1)
    return torch.cat([_vote(chunk, bank, labels, k, temperature, num_classes) for chunk in queries.split(chunk_size)])


@dataclass(frozen=True)
class KNNCell:
    """One setting of the classifier and its accuracy on the validation split, in [0, 1]."""

    k: int
    temperature: float
    validation_accuracy: float


@dataclass(frozen=True, eq=False)
class KNNGridResult:
    """What :func:`knn_grid` found.

    Attributes:
        chosen: the setting with the best validation accuracy.
        test_accuracy: top-1 accuracy of the chosen setting on the test set, in [0, 1].
        test_top5_accuracy: share of test samples whose label is among the five best-scored classes (all of them
            where there are fewer), in [0, 1]; classes without a neighbour come in no particular order.
        test_balanced_accuracy: mean over the test set's classes of the share predicted correctly, in [0, 1].
        test_predictions: ``(m,)`` int64, the predicted labels of the test set.
        grid: every setting, by k and then temperature, ascending.
        at_grid_edge: for ``"k"`` and ``"temperature"``, whether the choice is the smallest (except k = 1) or largest
            of several values; a wider grid may then do better.
    """

    chosen: KNNCell
    test_accuracy: float
    test_top5_accuracy: float
    test_balanced_accuracy: float
    test_predictions: Tensor
    grid: tuple[KNNCell, ...]
    at_grid_edge: dict[str, bool]

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold of the result: everything but the predictions."""
        return {
            "chosen": vars(self.chosen).copy(),
            "test_accuracy": self.test_accuracy,
            "test_top5_accuracy": self.test_top5_accuracy,
            "test_balanced_accuracy": self.test_balanced_accuracy,
            "grid": [vars(cell).copy() for cell in self.grid],
            "at_grid_edge": dict(self.at_grid_edge),
        }


def knn_grid(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    ks: Sequence[int] = DEFAULT_KS,
    temperatures: Sequence[float] = DEFAULT_TEMPERATURES,
    validation: tuple[Tensor, Tensor] | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    num_classes: int | None = None,
    chunk_size: int = 512,
) -> KNNGridResult:
    """Choose k and the temperature of the kNN classifier on a validation split, then test that setting once.

    The validation samples are compared with the rest of the train set once for all settings. The chosen setting is
    tested with train and validation samples together as the memory bank. Of equally accurate settings the smallest
    k, then the smallest temperature is taken. A test class that the bank lacks counts as an error.

    Args:
        train_features: ``(n, D)`` floating point, the memory bank. The computation runs on its device.
        train_labels: ``(n,)`` integers in 0 .. C - 1.
        test_features: ``(m, D)`` floating point.
        test_labels: ``(m,)`` integers in 0 .. C - 1.
        ks: numbers of neighbours, each at least 1 and at most the bank's size without the validation samples.
        temperatures: softmax temperatures of the vote, each > 0.
        validation: features ``(v, D)`` and labels ``(v,)`` of a validation set of its own; without one, a part of
            the train set is split off.
        validation_fraction: share of each class to split off, in (0, 1).
        seed: seed of the split; the global random state is neither read nor changed.
        num_classes: C; by default one more than the largest label given.
        chunk_size: samples compared at once; memory grows with ``chunk_size * n``.

    Raises:
        TypeError: features are not floating point or labels are not integers.
        ValueError: shapes or ranges are not as stated, or a feature is NaN or infinite.
    """
    sets = {"train": (train_features, train_labels), "test": (test_features, test_labels)}
    sets = sets if validation is None else {**sets, "validation": validation}
    check_sets(sets, num_classes)
    if num_classes is None:
        num_classes = 1 + max(int(labels.max()) for _, labels in sets.values())
    check_open_fraction(validation_fraction, "validation_fraction")
    check_positive(chunk_size, "chunk_size")
    ks = _checked_ks(ks)
    temperatures = checked_grid(temperatures, "temperatures")

    features, held_out_labels = train_features, None
    if validation is not None:
        features = torch.cat([train_features, validation[0].to(train_features)])
        held_out_labels = validation[1]
    labels = train_labels.to(features.device, torch.int64)
    labels, held_out = join_validation(labels, held_out_labels, validation_fraction, seed)
    _check_k(ks[-1], int((~held_out).sum()))
    grid = _validation_grid(features, labels, held_out, ks, temperatures, num_classes, chunk_size)
    chosen = max(grid, key=lambda cell: cell.validation_accuracy)

    scores = knn_predict(
        features,
        labels,
        test_features,
        k=chosen.k,
        temperature=chosen.temperature,
        num_classes=num_classes,
        chunk_size=chunk_size,
    )
    predictions, test_labels = scores.argmax(dim=1), test_labels.to(labels)
    return KNNGridResult(
        chosen=chosen,
        test_accuracy=accuracy(predictions, test_labels),
        test_top5_accuracy=top_k_accuracy(scores, torch.arange(num_classes).to(labels), test_labels, 5),
        test_balanced_accuracy=balanced_accuracy(predictions, test_labels),
        test_predictions=predictions,
        grid=grid,
        at_grid_edge={
            "k": len(ks) > 1 and (chosen.k == ks[-1] or chosen.k == ks[0] != 1),
            "temperature": len(temperatures) > 1 and chosen.temperature in (temperatures[0], temperatures[-1]),
        },
    )


def _validation_grid(
    features: Tensor,
    labels: Tensor,
    held_out: Tensor,
    ks: Sequence[int],
    temperatures: Sequence[float],
    num_classes: int,
    chunk_size: int,
) -> tuple[KNNCell, ...]:
    dtype = torch.promote_types(features.dtype, torch.float32)
    bank, bank_labels = F.normalize(features[~held_out].to(dtype), dim=1), labels[~held_out]
    queries, targets = F.normalize(features[held_out].to(dtype), dim=1), labels[held_out]
    hits = torch.zeros(len(ks), len(temperatures), dtype=torch.int64, device=features.device)
    for chunk, wanted in zip(queries.split(chunk_size), targets.split(chunk_size), strict=True):
        similarity, neighbours = (chunk @ bank.T).topk(ks[-1], dim=1)
        votes = bank_labels[neighbours]
        for column, temperature in enumerate(temperatures):
            predictions = _nested_votes(similarity / temperature, votes, ks, num_classes)
            hits[:, column] += (predictions == wanted).sum(dim=1)
    shares = (hits.double() / len(queries)).tolist()
    return tuple(
        KNNCell(k, temperature, share)
        for k, row in zip(ks, shares, strict=True)
        for temperature, share in zip(temperatures, row, strict=True)
    )


def _nested_votes(exponents: Tensor, votes: Tensor, ks: Sequence[int], num_classes: int) -> Tensor:
    """Predicted classes ``(len(ks), b)`` from the ``(b, k)`` exponents of the votes, falling, and their classes."""
    weights = torch.exp(exponents - exponents[:, :1])
    scores = weights.new_zeros(len(weights), num_classes)
    predictions = []
    for start, stop in zip([0, *ks], ks, strict=False):
        scores.scatter_add_(1, votes[:, start:stop], weights[:, start:stop])
        predictions.append(scores.argmax(dim=1))
    return torch.stack(predictions)


def _vote(queries: Tensor, bank: Tensor, labels: Tensor, k: int, temperature: float, num_classes: int) -> Tensor:
    similarity, neighbours = (queries @ bank.T).topk(k, dim=1)
    weights = torch.softmax(similarity / temperature, dim=1)
    scores = weights.new_zeros(len(queries), num_classes)
    return scores.scatter_add_(1, labels[neighbours], weights)


def _checked_ks(ks: Sequence[int]) -> list[int]:
    values = checked_grid(ks, "ks")
    for k in values:
        if k != int(k):
            raise ValueError(f"ks holds {k}, but whole numbers of neighbours are expected. Round it.")
    return [int(k) for k in values]


def _check_k(k: int, num_train: int) -> None:
    if not 1 <= k <= num_train:
        raise ValueError(
            f"k is {k}, but a value in 1 .. {num_train} is expected, the number of train samples. "
            "Lower k or pass more train features."
        )
