# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Splits: stratified, nested, seeded; duplicates found by their pixels."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsejepa_hf.evaluation.splits import (
    duplicate_rows,
    exclude_duplicates,
    image_hashes,
    join_validation,
    low_shot_indices,
    validation_mask,
)


LABELS = st.lists(st.integers(0, 6).map(lambda value: value * value), min_size=1, max_size=200).map(torch.tensor)


@pytest.mark.parametrize(("n", "fraction"), [(40, 0.1), (1003, 0.1), (999, 0.25), (60, 0.5)])
def test_the_validation_split_is_stratified_and_seeded(n, fraction):
    labels = torch.arange(n).remainder(13).square().remainder(7)
    mask = validation_mask(labels, fraction, seed=1)
    assert torch.equal(mask, validation_mask(labels, fraction, seed=1))
    assert not torch.equal(mask, validation_mask(labels, fraction, seed=2))
    sizes, drawn = labels.bincount(minlength=7), labels[mask].bincount(minlength=7)
    assert (drawn <= torch.ceil(sizes * fraction)).all()
    assert (drawn >= torch.floor(sizes * fraction) - 1).all()
    assert (drawn < sizes)[sizes > 0].all()


def test_few_samples_per_class_are_split_without_losing_a_class():
    labels = torch.arange(300) // 3
    mask = validation_mask(labels, 0.1, seed=0)
    assert 5 <= int(mask.sum()) <= 30
    assert len(labels[~mask].unique()) == 100


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize(("size", "fraction"), [(10, 0.1), (5, 0.1), (4, 0.25), (2, 0.5)])
def test_classes_of_any_size_above_one_give_validation_samples_for_every_seed(size, fraction, seed):
    labels = torch.arange(20 * size) // size
    assert int(validation_mask(labels, fraction, seed).sum()) == round(20 * size * fraction)


def test_the_split_of_a_seed_is_the_same_for_ever():
    # Results are compared between versions: a seed has to keep its meaning.
    mask = validation_mask(torch.arange(40) % 4, 0.2, seed=3)
    assert mask.nonzero().flatten().tolist() == [1, 5, 15, 16, 23, 24, 34, 38]


def test_a_validation_set_of_its_own_comes_after_the_train_set():
    labels, mask = join_validation(torch.tensor([3, 1]), torch.tensor([1, 1, 3]), 0.1, seed=0)
    assert labels.tolist() == [3, 1, 1, 1, 3] and mask.tolist() == [False, False, True, True, True]


@given(labels=LABELS, fraction=st.floats(0.001, 1), seed=st.integers(0, 5))
def test_low_shot_sets_hold_the_rounded_share_of_every_class(labels, fraction, seed):
    chosen = low_shot_indices(labels, fraction, seed)
    assert torch.equal(chosen, chosen.unique()) and chosen.dtype == torch.int64
    sizes, drawn = labels.bincount(minlength=37), labels[chosen].bincount(minlength=37)
    expected = torch.floor(sizes.double() * fraction + 0.5).clamp_min(1) * (sizes > 0)
    assert torch.equal(drawn.double(), expected)


@given(labels=LABELS, fractions=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)), seed=st.integers(0, 5))
def test_low_shot_sets_of_one_seed_are_nested(labels, fractions, seed):
    small, large = (low_shot_indices(labels, fraction, seed) for fraction in sorted(fractions))
    assert torch.isin(small, large).all()


def test_low_shot_sets_depend_on_the_seed_alone():
    labels = torch.arange(1000) % 10
    before = torch.get_rng_state()
    first = low_shot_indices(labels, 0.1, seed=0)
    torch.manual_seed(123)
    assert torch.equal(first, low_shot_indices(labels, 0.1, seed=0))
    assert not torch.equal(first, low_shot_indices(labels, 0.1, seed=1))
    torch.set_rng_state(before)
    low_shot_indices(labels, 0.1, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def _images(n, seed=0, size=(3, 4, 4)):
    return torch.randint(0, 256, (n, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@given(copies=st.lists(st.tuples(st.integers(0, 29), st.integers(0, 19)), max_size=8))
def test_exactly_the_copied_images_are_found(copies):
    train, test = _images(30), _images(20, seed=1)
    for source, target in copies:
        test[target] = train[source]
    expected = sorted({target for _, target in copies})
    assert duplicate_rows(train, test).tolist() == expected
    assert exclude_duplicates(train, test).tolist() == [row for row in range(20) if row not in expected]


def test_one_different_pixel_is_no_duplicate():
    train = _images(5)
    test = train.clone()
    test[2, 1, 3, 0] += 1
    assert duplicate_rows(train, test).tolist() == [0, 1, 3, 4]


def test_hashes_arrays_and_views_stand_for_their_images():
    train, test = _images(6), _images(6).flip(0)[:4]
    expected = [0, 1, 2, 3]
    assert duplicate_rows(image_hashes(train), test).tolist() == expected
    assert duplicate_rows(train.numpy(), image_hashes(test.numpy())).tolist() == expected
    strided = train.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert duplicate_rows(strided, test).tolist() == expected


@pytest.mark.slow
def test_cifar100_has_ten_test_images_in_its_train_set(data_dir):
    parquet, image = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("PIL.Image")

    def pixels(split):
        files = sorted((data_dir / "cifar100").glob(f"{split}-*.parquet"))
        columns = [parquet.read_table(file, columns=["img"])["img"].to_pylist() for file in files]
        return np.stack([image.open(io.BytesIO(row["bytes"])) for column in columns for row in column])

    assert len(duplicate_rows(pixels("train"), pixels("test"))) == 10


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: validation_mask(torch.arange(9) % 2, 0.0, 0), ValueError, "validation_fraction is 0.0"),
        (lambda: validation_mask(torch.arange(9) % 2, 1.0, 0), ValueError, "validation_fraction is 1.0"),
        (lambda: validation_mask(torch.arange(4), 0.5, 0), ValueError, "leaves no validation sample"),
        (lambda: validation_mask(torch.ones(4), 0.5, 0), TypeError, "labels is torch.float32"),
        (lambda: low_shot_indices(torch.arange(0), 0.5, 0), ValueError, "labels is empty"),
        (lambda: low_shot_indices(torch.arange(4), 0.0, 0), ValueError, "fraction is 0.0"),
        (lambda: low_shot_indices(torch.arange(4), 1.1, 0), ValueError, "fraction is 1.1"),
        (lambda: low_shot_indices(torch.arange(4) - 1, 0.1, 0), ValueError, "holds the label -1"),
        (lambda: image_hashes(torch.rand(2, 3)), TypeError, "images has dtype float32"),
        (lambda: image_hashes(torch.zeros(2, dtype=torch.uint8)), ValueError, r"\(n, \.\.\.\) is expected"),
        (lambda: duplicate_rows(_images(2), _images(2, size=(3, 8, 8))), ValueError, "same shape is expected"),
    ],
)
def test_refuses_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_images_of_other_shapes_are_other_images():
    small, wide = np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 2, 8, 3), np.uint8)
    assert image_hashes(small) != image_hashes(wide)
