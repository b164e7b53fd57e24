# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Weighted k-nearest-neighbour classification of frozen features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsejepa_hf.evaluation._checks import check_features, check_labels, check_positive, check_same_width


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
    _check_num_classes(test_labels, num_classes, "test_labels")
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
    _check_num_classes(train_labels, num_classes, "train_labels")

    dtype = torch.promote_types(train_features.dtype, torch.float32)
    bank = F.normalize(train_features.to(dtype), dim=1)
    labels = train_labels.to(bank.device, torch.int64)
    queries = F.normalize(test_features.to(bank.device, dtype), dim=1)
    return torch.cat([_vote(chunk, bank, labels, k, temperature, num_classes) for chunk in queries.split(chunk_size)])


def _vote(queries: Tensor, bank: Tensor, labels: Tensor, k: int, temperature: float, num_classes: int) -> Tensor:
    similarity, neighbours = (queries @ bank.T).topk(k, dim=1)
    weights = torch.softmax(similarity / temperature, dim=1)
    scores = weights.new_zeros(len(queries), num_classes)
    return scores.scatter_add_(1, labels[neighbours], weights)


def _check_k(k: int, num_train: int) -> None:
    if not 1 <= k <= num_train:
        raise ValueError(
            f"k is {k}, but a value in 1 .. {num_train} is expected, the number of train samples. "
            "Lower k or pass more train features."
        )


def _check_num_classes(labels: Tensor, num_classes: int, name: str) -> None:
    largest = int(labels.max())
    if largest >= num_classes:
        raise ValueError(
            f"{name} holds the label {largest}, but labels below num_classes = {num_classes} are expected. "
            "Raise num_classes or renumber the classes."
        )
