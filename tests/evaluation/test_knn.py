# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Weighted kNN against a loop over the definition, scikit-learn, and its invariances."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from sparsejepa_hf.evaluation import knn, knn_accuracy, knn_grid, knn_predict, validation_mask


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 8, generator=generator, dtype=torch.float64)

    def sample(n):
        labels = torch.randint(0, 5, (n,), generator=generator)
        return centres[labels] + 1.5 * torch.randn(n, 8, generator=generator, dtype=torch.float64), labels

    return *sample(120), *sample(60)


def _brute_force(train, labels, test, k, temperature, num_classes):
    scores = torch.zeros(len(test), num_classes, dtype=torch.float64)
    for row, query in enumerate(test):
        similarity = [float(query @ other / (query.norm() * other.norm())) for other in train]
        for index in sorted(range(len(train)), key=lambda i: -similarity[i])[:k]:
            scores[row, labels[index]] += math.exp(similarity[index] / temperature)
    return scores


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (20, 1.0), (120, 0.5)])
def test_scores_are_proportional_to_the_definition(problem, k, temperature):
    train, labels, test, test_labels = problem
    expected = _brute_force(train, labels, test, k, temperature, 5)
    scores = knn_predict(train, labels, test, k=k, temperature=temperature)
    torch.testing.assert_close(scores, expected / expected.sum(dim=1, keepdim=True))
    accuracy = knn_accuracy(train, labels, test, test_labels, k=k, temperature=temperature)
    assert accuracy == (expected.argmax(dim=1) == test_labels).double().mean().item()


def test_scores_equal_scikit_learn(problem):
    train, labels, test, test_labels = problem
    reference = KNeighborsClassifier(
        n_neighbors=20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
    ).fit(train.numpy(), labels.numpy())
    scores = knn_predict(train, labels, test)
    torch.testing.assert_close(scores, torch.from_numpy(reference.predict_proba(test.numpy())))
    expected = reference.score(test.numpy(), test_labels.numpy())
    assert knn_accuracy(train, labels, test, test_labels) == pytest.approx(expected)


def test_one_neighbour_on_the_train_set_itself_is_always_right(problem):
    train, labels, _, _ = problem
    assert knn_accuracy(train.float(), labels, train.float(), labels, k=1) == 1.0


def test_rescaling_any_sample_changes_nothing(problem):
    train, labels, test, _ = problem
    scale = torch.logspace(-3, 3, len(train), dtype=torch.float64)[:, None]
    expected = knn_predict(train, labels, test)
    torch.testing.assert_close(knn_predict(train * scale, labels, test * 1e3), expected)


def test_rotation_and_order_of_the_train_set_change_nothing(problem):
    train, labels, test, _ = problem
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(2))
    scores = knn_predict((train @ rotation)[order], labels[order], test @ rotation)
    torch.testing.assert_close(scores, knn_predict(train, labels, test))


@pytest.mark.parametrize("chunk_size", [1, 7, 60, 1000])
def test_chunking_changes_nothing(problem, chunk_size, monkeypatch):
    train, labels, test, _ = problem
    expected = knn_predict(train, labels, test)
    monkeypatch.setattr(knn, "_CHUNK", chunk_size)
    torch.testing.assert_close(knn_predict(train, labels, test), expected)


def test_a_tiny_temperature_is_the_nearest_neighbour_without_overflow(problem):
    train, labels, test, _ = problem
    scores = knn_predict(train.float(), labels, test.float(), k=20, temperature=1e-6)
    nearest = knn_predict(train.float(), labels, test.float(), k=1)
    assert torch.isfinite(scores).all()
    assert torch.equal(scores.argmax(dim=1), nearest.argmax(dim=1))


def test_reduced_precision_features_are_compared_in_float32(problem):
    train, labels, test, _ = problem
    scores = knn_predict(train.bfloat16(), labels, test.bfloat16())
    expected = knn_predict(train.bfloat16().float(), labels, test.bfloat16().float())
    assert scores.dtype == torch.float32 and torch.equal(scores, expected)


def test_a_test_class_absent_from_the_train_set_counts_as_an_error():
    features = torch.eye(3)
    labels = torch.tensor([0, 1, 2])
    assert knn_accuracy(features[:2], labels[:2], features, labels, k=1) == pytest.approx(2 / 3)


GRID = {"ks": (1, 5, 20, 60), "temperatures": (0.04, 0.2, 1.0)}


def test_every_setting_of_the_grid_has_the_accuracy_of_that_setting(problem):
    train, labels, test, test_labels = problem
    result = knn_grid(train, labels, test, test_labels, **GRID, seed=2)
    held_out = validation_mask(labels, 0.1, seed=2)
    parts = (train[~held_out], labels[~held_out], train[held_out], labels[held_out])
    assert list(result.validation_accuracies) == [(k, t) for k in GRID["ks"] for t in GRID["temperatures"]]
    for (k, temperature), accuracy in result.validation_accuracies.items():
        assert accuracy == knn_accuracy(*parts, k=k, temperature=temperature)


def test_the_best_setting_is_tested_once_with_the_whole_bank(problem):
    result = knn_grid(*problem, **GRID, validation_fraction=0.4)
    assert result.validation_accuracy == max(result.validation_accuracies.values())
    assert result.validation_accuracy == result.validation_accuracies[result.k, result.temperature]
    assert result.test_accuracy == knn_accuracy(*problem, k=result.k, temperature=result.temperature)


def test_the_choice_of_the_grid_never_sees_the_test_set(problem):
    train, labels, test, test_labels = problem
    first = knn_grid(train, labels, test, test_labels, **GRID)
    second = knn_grid(train, labels, -test, test_labels.flip(0), **GRID)
    assert first.validation_accuracies == second.validation_accuracies and first.k == second.k
    assert first.test_accuracy != second.test_accuracy


def test_one_class_per_cluster_is_solved_and_the_smallest_setting_is_taken():
    labels = torch.arange(60) % 6
    features = torch.eye(6)[labels] + 0.01 * torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    result = knn_grid(features, labels, features, labels, ks=(5, 1), temperatures=(0.1, 0.07))
    assert result.test_accuracy == 1 and (result.k, result.temperature) == (1, 0.07)


def test_more_neighbours_than_the_bank_has_without_the_validation_part_are_left_out(problem):
    result = knn_grid(*problem, ks=(1, 108, 109), temperatures=[0.1])
    assert list(result.validation_accuracies) == [(1, 0.1), (108, 0.1)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 121}, r"k is 121, but a value in 1 \.\. 120"),
        ({"k": 0}, "k is 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_refuses_wrong_settings(problem, settings, message):
    with pytest.raises(ValueError, match=message):
        knn_accuracy(*problem, **settings)


@pytest.mark.parametrize("settings", [{"ks": (121,)}, {"ks": ()}, {"temperatures": ()}])
def test_a_grid_without_a_setting_to_try_is_refused(problem, settings):
    with pytest.raises(ValueError, match=r"expected at least one temperature and one k in 1 \.\. 108"):
        knn_grid(*problem, **settings)


@pytest.mark.parametrize(
    ("position", "change", "error", "message"),
    [
        (0, lambda x: x.long(), TypeError, "train_features is torch.int64"),
        (0, lambda x: x[0], ValueError, r"\(n, D\)"),
        (0, lambda x: x[:0], ValueError, r"\(n, D\)"),
        (2, lambda x: x[:, :5], ValueError, "test_features has 5 columns, but 8 are expected"),
        (2, lambda x: x.index_fill(0, torch.tensor([5]), float("inf")), ValueError, "first is row 5"),
        (1, lambda y: y.float(), TypeError, "train_labels is torch.float32"),
        (1, lambda y: y[1:], ValueError, "one label per feature row"),
        (3, lambda y: y - 1, ValueError, "holds the label -1"),
    ],
)
def test_refuses_wrong_data(problem, position, change, error, message):
    arguments = list(problem)
    arguments[position] = change(arguments[position])
    if position == 0 and len(arguments[0]) == 0:
        arguments[1] = arguments[1][:0]
    with pytest.raises(error, match=message):
        knn_accuracy(*arguments)
