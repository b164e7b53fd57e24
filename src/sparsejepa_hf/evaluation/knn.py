# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Weighted k-nearest-neighbour classification of frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .metrics import check_features
from .probes import VALIDATION_FRACTION, check_labels, validation_mask


DEFAULT_KS = (1, 5, 10, 20, 50, 100, 200)
DEFAULT_TEMPERATURES = (0.04, 0.07, 0.1)
# Samples compared with the bank at once; bounds the memory.
_CHUNK = 512


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Top-1 accuracy of the weighted kNN classifier of Wu et al. (arXiv 1805.01978, section 3.4), as DINO uses it.

    A test class that the train set lacks can never be predicted: its samples count as errors.

    Args:
        train_features: `(n, D)` floating point, the memory bank.
        train_labels: `(n,)` integers >= 0.
        test_features: `(m, D)` floating point.
        test_labels: `(m,)` integers >= 0.
        k: number of neighbours, 1 .. n.
        temperature: softmax temperature of the vote, > 0.

    Returns:
        The share of test samples whose best-scored class is their label, in [0, 1].

    Raises:
        TypeError: features are not floating point or labels are not integers.
        ValueError: shapes or ranges are not as stated, or a feature is NaN or infinite.
    """
    scores = knn_predict(train_features, train_labels, test_features, k=k, temperature=temperature)
    check_labels(test_labels, len(test_features), "test_labels")
    return (scores.argmax(dim=1) == test_labels.to(scores.device)).double().mean().item()


def knn_predict(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, *, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Class scores of the weighted kNN vote: the k nearest by cosine similarity s each add exp(s / temperature).

    Scores are divided by their sum over the classes, which leaves the predicted class unchanged and keeps small
    temperatures from overflowing. An all-zero feature vector has similarity 0 to every other.

    Args:
        train_features: `(n, D)` floating point, the memory bank. The computation runs on its device.
        train_labels: `(n,)` integers in 0 .. C - 1.
        test_features: `(m, D)` floating point.
        k: number of neighbours, 1 .. n.
        temperature: softmax temperature of the vote, > 0.

    Returns:
        `(m, C)` scores in [0, 1] whose rows sum to 1, on the device of `train_features`; float64 if the train
        features are, else float32.

    Raises:
        TypeError: features are not floating point or labels are not integers.
        ValueError: shapes or ranges are not as stated, or a feature is NaN or infinite.
    """
    similarity, votes = _neighbours(train_features, train_labels, test_features, k)
    return _vote(similarity, votes, temperature, 1 + int(train_labels.max()))


@dataclass(frozen=True, eq=False)
class KNNGridResult:
    """What [`knn_grid`] found.

    Attributes:
        k: the chosen number of neighbours.
        temperature: the chosen temperature.
        validation_accuracy: accuracy of the chosen setting on the validation part, in [0, 1].
        test_accuracy: top-1 accuracy of the chosen setting on the test set, in [0, 1].
        validation_accuracies: of every setting `(k, temperature)`, by k and then temperature, ascending.
    """

    k: int
    temperature: float
    validation_accuracy: float
    test_accuracy: float
    validation_accuracies: dict[tuple[int, float], float]


def knn_grid(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    ks: Sequence[int] = DEFAULT_KS,
    temperatures: Sequence[float] = DEFAULT_TEMPERATURES,
    validation_fraction: float = VALIDATION_FRACTION,
    seed: int = 0,
) -> KNNGridResult:
    """Chooses k and the temperature of the kNN classifier on a validation part, then tests that setting once.

    The chosen setting is tested with train and validation samples together as the memory bank. Of equally accurate
    settings the smallest k, then the smallest temperature is taken. A test class that the bank lacks counts as an
    error.

    Args:
        train_features: `(n, D)` floating point, the memory bank. The computation runs on its device.
        train_labels: `(n,)` integers in 0 .. C - 1.
        test_features: `(m, D)` floating point.
        test_labels: `(m,)` integers >= 0.
        ks: numbers of neighbours, each at least 1; those above the bank's size without the validation samples are
            left out.
        temperatures: softmax temperatures of the vote, each > 0.
        validation_fraction: share of the train set to choose on, at most 0.5; see [`validation_mask`].
        seed: of the split; the global random state is neither read nor changed.

    Raises:
        TypeError: features are not floating point or labels are not integers.
        ValueError: shapes or ranges are not as stated, or a feature is NaN or infinite.
    """
    check_labels(train_labels, len(train_features), "train_labels")
    labels = train_labels.to(train_features.device)
    held_out = validation_mask(labels, validation_fraction, seed)
    bank_size = int((~held_out).sum())
    if not temperatures or not any(k <= bank_size for k in ks):
        raise ValueError(
            f"ks is {list(ks)} and temperatures {list(temperatures)}; expected at least one temperature and one k in "
            f"1 .. {bank_size}, the number of train samples beside the validation part."
        )
    ks = sorted({k for k in ks if k <= bank_size})
    # The neighbours are found once for all settings.
    similarity, votes = _neighbours(train_features[~held_out], labels[~held_out], train_features[held_out], ks[-1])
    accuracies = {}
    for k in ks:
        for temperature in sorted(set(temperatures)):
            scores = _vote(similarity[:, :k], votes[:, :k], temperature, 1 + int(labels.max()))
            accuracies[k, temperature] = (scores.argmax(dim=1) == labels[held_out]).double().mean().item()
    k, temperature = max(accuracies, key=accuracies.__getitem__)
    test_accuracy = knn_accuracy(train_features, labels, test_features, test_labels, k=k, temperature=temperature)
    return KNNGridResult(k, temperature, accuracies[k, temperature], test_accuracy, accuracies)


def _neighbours(bank: Tensor, labels: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities `(m, k)` of the k nearest of the bank, largest first, and their labels `(m, k)`."""
    check_features(bank, "train_features")
    check_labels(labels, len(bank), "train_labels")
    check_features(queries, "test_features")
    if queries.shape[1] != bank.shape[1]:
        raise ValueError(
            f"test_features has {queries.shape[1]} columns, but {bank.shape[1]} are expected, as in train_features."
        )
    if not 1 <= k <= len(bank):
        raise ValueError(f"k is {k}, but a value in 1 .. {len(bank)} is expected, the number of train samples.")
    dtype = torch.promote_types(bank.dtype, torch.float32)
    labels = labels.to(bank.device, torch.int64)
    bank = F.normalize(bank.to(dtype), dim=1)
    found = [
        (F.normalize(chunk.to(bank.device, dtype), dim=1) @ bank.T).topk(k, dim=1) for chunk in queries.split(_CHUNK)
    ]
    return torch.cat([part.values for part in found]), labels[torch.cat([part.indices for part in found])]


def _vote(similarity: Tensor, votes: Tensor, temperature: float, num_classes: int) -> Tensor:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, but a value above 0 is expected.")
    weights = torch.softmax(similarity / temperature, dim=1)
    return weights.new_zeros(len(weights), num_classes).scatter_add_(1, votes, weights)
