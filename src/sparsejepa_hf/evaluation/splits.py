# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Splits of a labelled set: validation samples, low-shot subsets, and test images that the train set already holds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ._checks import check_labels, check_open_fraction


Images = Tensor | np.ndarray | Sequence[bytes]


def validation_mask(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Stratified choice of validation samples: systematic sampling of the shuffled, class-sorted set.

    Every class gives the floor or the ceiling of ``fraction`` times its size. The first sample of every shuffled class
    always stays out of the validation split: where it is drawn, the second is taken for it, and none where the second
    is drawn too or missing. With one label for all samples this is simple random sampling.

    Args:
        labels: ``(n,)`` integers >= 0, n >= 1.
        fraction: share of the samples to choose, in (0, 1).
        seed: of the choice; the global random state is neither read nor changed.

    Returns:
        Boolean ``(n,)`` mask of the validation samples, on the labels' device.

    Raises:
        TypeError: the labels are not integers.
        ValueError: ``fraction`` is out of range, there are no labels, or no validation sample would be left.
    """
    _check_split_labels(labels)
    check_open_fraction(fraction, "validation_fraction")
    order = _class_sorted_shuffle(labels, generator := torch.Generator().manual_seed(seed))
    offset = torch.rand((), dtype=torch.float64, generator=generator)
    steps = torch.floor(torch.arange(len(labels) + 1, dtype=torch.float64) * fraction + offset)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    drawn, rank = steps.diff() > 0, _rank_in_class(labels.cpu()[order])
    # Without the second, classes of 1 / fraction samples each, whose draws fall on one rank, might all give none.
    drawn[1:] |= drawn[:-1] & (rank[1:] == 1)
    mask[order] = drawn & (rank > 0)
    if not bool(mask.any()):
        raise ValueError(
            f"validation_fraction {fraction} of {len(labels)} train samples leaves no validation sample, but at least "
            "one is expected beyond the one per class that is kept for fitting. Raise it or pass more samples."
        )
    return mask.to(labels.device)


def low_shot_indices(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Class-balanced subset of a labelled set, as for training with 1 % or 10 % of the labels.

    Every class gives ``fraction`` times its size, rounded to the nearest integer (halves up), and at least one
    sample. For the same labels and seed a smaller fraction's subset lies inside a larger one's.

    Args:
        labels: ``(n,)`` integers >= 0, n >= 1.
        fraction: share of every class to keep, in (0, 1].
        seed: of the choice; the global random state is neither read nor changed.

    Returns:
        Indices of the chosen samples, int64, ascending, on the labels' device.

    Raises:
        TypeError: the labels are not integers.
        ValueError: ``fraction`` is out of range or there are no labels.
    """
    _check_split_labels(labels)
    if not 0 < fraction <= 1:
        raise ValueError(
            f"fraction is {fraction}, but a value above 0 and at most 1 is expected. Pass 0.01 for one per cent."
        )
    order = _class_sorted_shuffle(labels, torch.Generator().manual_seed(seed))
    classes, sizes = labels.cpu()[order].unique_consecutive(return_inverse=True, return_counts=True)[1:]
    quota = torch.floor(sizes.double() * fraction + 0.5).clamp_min(1)
    chosen = order[_rank_in_class(classes) < quota[classes]]
    return chosen.sort().values.to(labels.device)


def image_hashes(images: Tensor | np.ndarray) -> list[bytes]:
    """A 256-bit BLAKE2b digest of every image's pixels; equal for equal images, else different for all purposes.

    Args:
        images: uint8 ``(n, ...)``.

    Returns:
        n digests of 32 bytes, in order.

    Raises:
        TypeError: the images are not uint8.
        ValueError: there is no axis of images.
    """
    array = images.cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    if array.dtype != np.uint8:
        raise TypeError(
            f"images has dtype {array.dtype}, but uint8 in 0 .. 255 is expected. Pass the stored pixels, before any "
            "normalisation."
        )
    if array.ndim < 2:
        raise ValueError(f"images has shape {array.shape}, but (n, ...) is expected. Stack the images along axis 0.")
    rows = np.ascontiguousarray(array).reshape(len(array), math.prod(array.shape[1:]))
    # Images of different shapes may hold the same bytes.
    start = hashlib.blake2b(str(array.shape[1:]).encode(), digest_size=32)
    digests = []
    for row in rows:
        digest = start.copy()
        digest.update(row)
        digests.append(digest.digest())
    return digests


def duplicate_rows(train_images: Images, test_images: Images) -> Tensor:
    """Test images whose exact pixels also occur in the train set (CIFAR-100 has ten).

    Args:
        train_images: uint8 ``(n, ...)``, or the n digests of :func:`image_hashes`.
        test_images: uint8 ``(m, ...)`` of the same size, or m digests.

    Returns:
        Indices into the test set, int64, ascending.

    Raises:
        TypeError: images are not uint8.
        ValueError: the images of both sets differ in size.
    """
    return _membership(train_images, test_images).nonzero().flatten()


def exclude_duplicates(train_images: Images, test_images: Images) -> Tensor:
    """Indices of the test images that :func:`duplicate_rows` leaves, int64, ascending; arguments as there."""
    return (~_membership(train_images, test_images)).nonzero().flatten()


def join_validation(
    labels: Tensor, validation_labels: Tensor | None, fraction: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Labels of train and validation samples together, and the mask that tells them apart.

    Args:
        labels: ``(n,)`` integer labels of the train set.
        validation_labels: ``(v,)`` integer labels of a validation set of its own; without one, ``fraction`` of the
            train set is held out (:func:`validation_mask`).
        fraction: share to hold out, in (0, 1).
        seed: of the choice.

    Returns:
        Labels, ``(n,)`` or ``(n + v,)``, and the boolean mask of the validation samples of the same shape.

    Raises:
        ValueError: as :func:`validation_mask`.
    """
    if validation_labels is None:
        return labels, validation_mask(labels, fraction, seed)
    joined = torch.cat([labels, validation_labels.to(labels)])
    return joined, torch.arange(len(joined), device=labels.device) >= len(labels)


def _class_sorted_shuffle(labels: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.randperm(len(labels), generator=generator)
    return order[labels.cpu()[order].argsort(stable=True)]


def _rank_in_class(sorted_labels: Tensor) -> Tensor:
    """Position of every sample within its class, for labels sorted by class."""
    sizes = sorted_labels.unique_consecutive(return_counts=True)[1]
    starts = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    return torch.arange(len(sorted_labels)) - starts


def _membership(train_images: Images, test_images: Images) -> Tensor:
    both_pixels = hasattr(train_images, "shape") and hasattr(test_images, "shape")
    if both_pixels and tuple(train_images.shape[1:]) != tuple(test_images.shape[1:]):
        raise ValueError(
            f"train_images holds images of shape {tuple(train_images.shape[1:])} and test_images of "
            f"{tuple(test_images.shape[1:])}, but the same shape is expected. Compare images before any resizing."
        )
    seen = set(_digests(train_images))
    return torch.tensor([digest in seen for digest in _digests(test_images)], dtype=torch.bool)


def _digests(images: Images) -> Sequence[bytes]:
    return image_hashes(images) if hasattr(images, "shape") else images


def _check_split_labels(labels: Tensor) -> None:
    if isinstance(labels, Tensor) and labels.numel() == 0:
        raise ValueError("labels is empty, but at least one sample is expected. Check how the set was loaded.")
    check_labels(labels, len(labels), "labels")
