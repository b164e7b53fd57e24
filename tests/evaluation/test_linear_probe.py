# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The linear probe against scikit-learn's logistic regression, its optimality conditions and its protocol."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from sparsejepa_hf.evaluation import linear_probe
from sparsejepa_hf.evaluation.linear_probe import _validation_mask


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
    held_out = _validation_mask(labels, 0.1, seed=5)
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


@pytest.mark.parametrize(("n", "fraction"), [(40, 0.1), (1003, 0.1), (999, 0.25), (60, 0.5)])
def test_the_validation_split_is_stratified_and_seeded(n, fraction):
    labels = torch.arange(n).remainder(13).square().remainder(7)
    mask = _validation_mask(labels, fraction, seed=1)
    assert torch.equal(mask, _validation_mask(labels, fraction, seed=1))
    assert not torch.equal(mask, _validation_mask(labels, fraction, seed=2))
    sizes, drawn = labels.bincount(minlength=7), labels[mask].bincount(minlength=7)
    assert (drawn <= torch.ceil(sizes * fraction)).all()
    assert (drawn >= torch.floor(sizes * fraction) - 1).all()
    assert (drawn < sizes)[sizes > 0].all()


def test_few_samples_per_class_are_split_without_losing_a_class():
    labels = torch.arange(300) // 3
    mask = _validation_mask(labels, 0.1, seed=0)
    assert 5 <= int(mask.sum()) <= 30
    assert len(labels[~mask].unique()) == 100


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_decays": []}, "weight_decays is empty"),
        ({"weight_decays": [1e-2, 0.0]}, "weight_decay is 0.0"),
        ({"weight_decays": [float("inf")]}, "holds infinity"),
        ({"validation_fraction": 0.0}, "validation_fraction is 0.0"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0"),
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
