# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The linear probe against scikit-learn's logistic regression, its optimality conditions and its protocol."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

from sparsejepa_hf.evaluation import linear_probe
from sparsejepa_hf.evaluation.linear_probe import low_shot_probe
from sparsejepa_hf.evaluation.splits import low_shot_indices, validation_mask


EXACT = {"dtype": torch.float64, "tolerance": 1e-7, "max_iter": 1000}


def _problem(num_classes=4, dim=6, n=400, noise=1.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, dim, generator=generator, dtype=torch.float64)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64)

    def sample(size):
        labels = torch.arange(size) % num_classes
        noisy = centres[labels] + noise * torch.randn(size, dim, generator=generator, dtype=torch.float64)
        return noisy @ mixing + 3, labels

    return *sample(n), *sample(n // 2)


def _standardised(result, features):
    return ((features - result.mean) / result.scale).numpy()


@pytest.mark.parametrize("num_classes", [2, 3, 7])
@pytest.mark.parametrize("weight_decay", [1e-1, 1e-3])
def test_weights_and_accuracy_equal_scikit_learn(num_classes, weight_decay):
    train, labels, test, test_labels = _problem(num_classes)
    result = linear_probe(train, labels, test, test_labels, weight_decays=[weight_decay], **EXACT)
    # Two classes: scikit-learn has one weight row w, ours are -w/2 and w/2 with half its squared norm in sum.
    strength = (2 if num_classes == 2 else 1) / (weight_decay * len(train))
    reference = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000)
    reference.fit(_standardised(result, train), labels.numpy())
    weight, bias = result.weight, result.bias
    if num_classes == 2:
        weight, bias = (weight[1] - weight[0])[None], (bias[1] - bias[0])[None]
    assert result.converged
    torch.testing.assert_close(weight, torch.from_numpy(reference.coef_), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bias, torch.from_numpy(reference.intercept_), rtol=1e-4, atol=1e-5)
    expected = reference.score(_standardised(result, test), test_labels.numpy())
    assert result.test_accuracy == pytest.approx(expected)


def test_the_solution_satisfies_the_optimality_conditions():
    train, labels, test, test_labels = _problem()
    result = linear_probe(train, labels, test, test_labels, weight_decays=[1e-2], **EXACT)
    inputs = (train - result.mean) / result.scale
    weight, bias = result.weight.clone().requires_grad_(), result.bias.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(inputs @ weight.T + bias, labels) + 1e-2 / 2 * weight.square().sum()
    for gradient in torch.autograd.grad(loss, (weight, bias)):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-7)


def test_float32_finds_the_float64_solution():
    data = _problem()
    single = linear_probe(*data, weight_decays=[1e-2])
    double = linear_probe(*data, weight_decays=[1e-2], **EXACT)
    assert single.converged and single.weight.dtype == torch.float32
    torch.testing.assert_close(single.weight.double(), double.weight, rtol=1e-2, atol=1e-3)


def test_strongly_correlated_features_still_converge():
    train, labels, test, test_labels = _problem(dim=16)
    axes = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    squeeze = axes @ torch.diag(torch.logspace(0, -4, 16, dtype=torch.float64)) @ axes.T
    result = linear_probe(train @ squeeze, labels, test @ squeeze, test_labels, max_iter=100)
    assert result.converged


def test_separable_data_is_solved():
    train, labels, test, test_labels = _problem(noise=0.05)
    result = linear_probe(train, labels, test, test_labels)
    assert result.test_accuracy == result.validation_accuracy == 1.0


def test_of_equal_accuracies_the_strongest_weight_decay_is_taken():
    result = linear_probe(*_problem(noise=0.01), weight_decays=[1e-6, 1e-3, 1e-4])
    assert set(result.validation_accuracies.values()) == {1.0}
    assert result.weight_decay == 1e-3 and result.at_grid_edge


def test_the_choice_is_the_best_of_the_grid_on_the_validation_split():
    result = linear_probe(*_problem(num_classes=8, dim=30, n=600, noise=2.0))
    assert result.validation_accuracy == max(result.validation_accuracies.values())
    assert result.validation_accuracies[result.weight_decay] == result.validation_accuracy
    assert list(result.validation_accuracies) == sorted(result.validation_accuracies, reverse=True)


def test_validation_accuracy_is_that_of_a_fit_without_the_validation_samples():
    train, labels, test, test_labels = _problem()
    result = linear_probe(train, labels, test, test_labels, weight_decays=[1e-2], seed=5, **EXACT)
    held_out = validation_mask(labels, 0.1, seed=5)
    again = linear_probe(
        train[~held_out], labels[~held_out], train[held_out], labels[held_out], weight_decays=[1e-2], **EXACT
    )
    assert result.validation_accuracy == again.test_accuracy


def test_test_set_never_influences_the_probe():
    train, labels, test, test_labels = _problem(num_classes=8, dim=30, n=600, noise=2.0)
    first = linear_probe(train, labels, test, test_labels)
    permuted = test_labels[torch.randperm(len(test), generator=torch.Generator().manual_seed(3))]
    second = linear_probe(train, labels, test * 5, permuted)
    assert first.weight_decay == second.weight_decay
    assert first.validation_accuracies == second.validation_accuracies
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)
    assert first.test_accuracy != second.test_accuracy


def test_rescaling_and_shifting_features_changes_nothing():
    train, labels, test, test_labels = _problem()
    scale = torch.logspace(-3, 3, 6, dtype=torch.float64)
    first = linear_probe(train, labels, test, test_labels, **EXACT)
    second = linear_probe(train * scale + 1, labels, test * scale + 1, test_labels, **EXACT)
    assert first.test_accuracy == second.test_accuracy
    torch.testing.assert_close(first.weight, second.weight, rtol=1e-4, atol=1e-5)


def test_constant_features_are_ignored():
    train, labels, test, test_labels = _problem()
    first = linear_probe(train, labels, test, test_labels, weight_decays=[1e-2], **EXACT)
    second = linear_probe(
        torch.cat([train, torch.full((400, 1), 7.3)], dim=1),
        labels,
        torch.cat([test, torch.full((200, 1), -9.0)], dim=1),
        test_labels,
        weight_decays=[1e-2],
        **EXACT,
    )
    assert first.test_accuracy == second.test_accuracy
    torch.testing.assert_close(second.weight[:, -1], torch.zeros(4, dtype=torch.float64))


def test_collapsed_features_give_the_share_of_the_largest_class():
    labels = torch.tensor([0] * 30 + [1] * 70)
    result = linear_probe(torch.ones(100, 3), labels, torch.ones(100, 3), labels)
    assert result.test_accuracy == pytest.approx(0.7)


def test_class_numbers_may_have_gaps_and_predictions_are_labels():
    train, labels, test, test_labels = _problem()
    dense = linear_probe(train, labels, test, test_labels)
    sparse = linear_probe(train, labels * 10 + 3, test, test_labels * 10 + 3)
    assert sparse.classes.tolist() == [3, 13, 23, 33]
    assert sparse.test_accuracy == dense.test_accuracy
    predictions = sparse.predict(test)
    assert torch.equal(predictions, dense.predict(test) * 10 + 3)
    assert (predictions == test_labels * 10 + 3).double().mean().item() == sparse.test_accuracy


def test_a_test_class_absent_from_the_train_set_is_refused_or_counted_as_an_error():
    train, labels, test, test_labels = _problem(noise=0.05)
    kept = labels < 2
    with pytest.raises(ValueError, match=r"classes \[2, 3\], which train_labels lacks"):
        linear_probe(train[kept], labels[kept], test, test_labels)
    result = linear_probe(train[kept], labels[kept], test, test_labels, allow_unseen_classes=True)
    assert result.test_accuracy == pytest.approx(0.5)


def test_the_caller_may_be_in_inference_mode_and_the_global_random_state_is_untouched():
    data = [tensor.float() if tensor.is_floating_point() else tensor for tensor in _problem()]
    expected = linear_probe(*data, weight_decays=[1e-2])
    before = torch.get_rng_state()
    with torch.inference_mode():
        result = linear_probe(*[tensor.clone() for tensor in data], weight_decays=[1e-2])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(result.weight, expected.weight)


def test_an_explicit_validation_set_is_chosen_on_and_then_fitted_too():
    train, labels, test, test_labels = _problem()
    held_out = validation_mask(labels, 0.1, seed=0)
    parts = (train[~held_out], labels[~held_out], test, test_labels)
    order = torch.cat([(~held_out).nonzero(), held_out.nonzero()]).flatten()
    split = linear_probe(train[order], labels[order], test, test_labels, weight_decays=[1e-2], **EXACT)
    given = linear_probe(*parts, validation=(train[held_out], labels[held_out]), weight_decays=[1e-2], **EXACT)
    fitted_alone = linear_probe(*parts[:2], train[held_out], labels[held_out], weight_decays=[1e-2], **EXACT)
    torch.testing.assert_close(given.weight, split.weight, rtol=1e-5, atol=1e-6)
    assert given.test_accuracy == split.test_accuracy
    assert given.validation_accuracy == fitted_alone.test_accuracy


def test_scores_of_the_test_set_are_those_of_scikit_learn():
    train, labels, test, test_labels = _problem(num_classes=8, dim=12, noise=3.0)
    test, test_labels = test[:131], test_labels[:131]
    result = linear_probe(train, labels, test, test_labels, weight_decays=[1e-2], **EXACT)
    scores = ((test - result.mean) / result.scale @ result.weight.T + result.bias).numpy()
    assert torch.equal(result.test_predictions, result.predict(test))
    assert result.test_accuracy == pytest.approx(accuracy_score(test_labels, result.test_predictions))
    balanced = balanced_accuracy_score(test_labels, result.test_predictions)
    assert result.test_balanced_accuracy == pytest.approx(balanced)
    assert result.test_top5_accuracy == pytest.approx(top_k_accuracy_score(test_labels, scores, k=5))


def test_the_result_is_ready_for_json():
    result = linear_probe(*_problem())
    written = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert written["test_accuracy"] == result.test_accuracy
    assert written["validation_accuracies"][str(result.weight_decay)] == result.validation_accuracy


def test_low_shot_probes_see_their_subset_only():
    train, labels, test, test_labels = _problem(n=2000)
    result = low_shot_probe(train, labels, test, test_labels, fractions=(0.1, 0.05), seeds=(0, 4))
    assert [entry.fraction for entry in result.fractions] == [0.05, 0.1]
    for entry in result.fractions:
        expected = []
        for seed in (0, 4):
            subset = low_shot_indices(labels, entry.fraction, seed)
            assert len(subset) == entry.num_labels == round(2000 * entry.fraction)
            probe = linear_probe(train[subset], labels[subset], test, test_labels, seed=seed)
            expected.append(probe.test_accuracy)
        assert list(entry.accuracies) == expected
        assert entry.mean == pytest.approx(np.mean(expected))
        assert entry.std == pytest.approx(np.std(expected, ddof=1))
    json.dumps(result.to_dict(), allow_nan=False)


def test_one_seed_has_no_spread():
    result = low_shot_probe(*_problem(), fractions=[1.0], seeds=[0])
    assert result.fractions[0].std is None
    assert result.fractions[0].mean == linear_probe(*_problem()).test_accuracy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": ()}, "seeds is empty"),
        ({"fractions": ()}, "fractions is empty"),
        ({"fractions": (1.5,)}, "fraction is 1.5"),
        ({"fractions": (0.01,)}, "leaves no validation sample"),
        ({"validation": (torch.ones(4, 6), torch.arange(4))}, "inside its subset"),
    ],
)
def test_low_shot_refuses_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        low_shot_probe(*_problem(), **settings)


def test_refuses_a_wrong_validation_set():
    train, labels, test, test_labels = _problem()
    for validation, message in [
        ((train[:5, :3], labels[:5]), "validation_features has 3"),
        ((train[:5], labels[:5] + 4), r"validation_labels holds the classes \[4, 5, 6, 7\], which train_labels lacks"),
        ((train[:0], labels[:0]), "validation_features has shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            linear_probe(train, labels, test, test_labels, validation=validation)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_decays": []}, "weight_decays is empty"),
        ({"weight_decays": [1e-2, 0.0]}, "weight_decays holds 0.0"),
        ({"weight_decays": [float("inf")]}, "weight_decays holds inf"),
        ({"validation_fraction": 0.0}, "validation_fraction is 0.0"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0"),
        ({"num_classes": 3}, "train_labels holds the label 3"),
        ({"max_iter": 0}, "max_iter is 0"),
        ({"tolerance": -1.0}, "tolerance is -1.0"),
        ({"dtype": torch.bfloat16}, "dtype is torch.bfloat16"),
    ],
)
def test_refuses_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        linear_probe(*_problem(), **settings)


@pytest.mark.parametrize(
    ("position", "change", "error", "message"),
    [
        (0, lambda x: x.long(), TypeError, "train_features is torch.int64"),
        (0, lambda x: x[:, :3], ValueError, "same number is expected"),
        (0, lambda x: x.index_fill(0, torch.tensor([5]), float("nan")), ValueError, "first is row 5"),
        (1, lambda y: y.double(), TypeError, "train_labels is torch.float64"),
        (1, lambda y: y[1:], ValueError, "one label per feature row"),
        (1, lambda y: torch.zeros_like(y), ValueError, "only the class 0"),
        (1, lambda y: y - 1, ValueError, "holds the label -1"),
        (3, lambda y: y[1:], ValueError, "one label per feature row"),
    ],
)
def test_refuses_wrong_data(position, change, error, message):
    arguments = list(_problem())
    arguments[position] = change(arguments[position])
    with pytest.raises(error, match=message):
        linear_probe(*arguments)


def test_refuses_a_train_set_too_small_to_split():
    features, labels = torch.eye(4), torch.arange(4)
    with pytest.raises(ValueError, match="leaves no validation sample"):
        linear_probe(features, labels, features, labels)


def test_fewer_samples_than_dimensions_have_the_same_solution():
    """The optimality conditions hold in all D dimensions, though the fit sees only the space of the samples."""
    train, labels, test, test_labels = _problem(num_classes=3, dim=60, n=30)
    result = linear_probe(train, labels, test, test_labels, weight_decays=[1e-2], **EXACT)
    inputs = (train - result.mean) / result.scale
    weight, bias = result.weight.clone().requires_grad_(), result.bias.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(inputs @ weight.T + bias, labels) + 1e-2 / 2 * weight.square().sum()
    for gradient in torch.autograd.grad(loss, (weight, bias)):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-7)
