# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Ridge probes against the normal equations, scikit-learn and their protocol; counting in both ways."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from sparsejepa_hf.evaluation import linear_probe
from sparsejepa_hf.evaluation.regression_probe import count_probe, regression_probe


def _problem(n=200, dim=6, targets=1, noise=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    weight = torch.randn(dim, targets, generator=generator, dtype=torch.float64)

    def sample(size):
        inputs = torch.randn(size, dim, generator=generator, dtype=torch.float64) @ mixing + 3
        outputs = inputs @ weight + noise * torch.randn(size, targets, generator=generator, dtype=torch.float64) - 2
        return inputs, outputs[:, 0] if targets == 1 else outputs

    return *sample(n), *sample(n // 2)


def _counts(n=300, noise=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(3, 9, (n,), generator=generator)
    features = torch.randn(n, 5, generator=generator) * noise
    features[:, 2] += counts
    return features[: n // 2], counts[: n // 2], features[n // 2 :], counts[n // 2 :]


@given(
    n=st.integers(12, 60),
    dim=st.integers(1, 70),
    targets=st.integers(1, 3),
    decay=st.sampled_from([1e-4, 1e-2, 1.0, 100.0]),
)
def test_the_solution_satisfies_the_normal_equations(n, dim, targets, decay):
    train, outputs, test, test_outputs = _problem(n, dim, targets)
    # More features than samples too: then the covariance is singular.
    result = regression_probe(train, outputs, test, test_outputs, weight_decays=[decay], criterion="mae")
    inputs = (train - result.mean) / result.scale
    residual = inputs @ result.weight.T + result.bias - outputs.view(n, targets)
    gradient = residual.T @ inputs / n + decay * result.weight
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-8)
    torch.testing.assert_close(residual.mean(dim=0), torch.zeros(targets, dtype=torch.float64), rtol=0, atol=1e-8)


@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("decay", [1e-3, 1.0])
def test_weights_and_scores_equal_scikit_learn(targets, decay):
    train, outputs, test, test_outputs = _problem(targets=targets)
    result = regression_probe(train, outputs, test, test_outputs, weight_decays=[decay])
    reference = Ridge(alpha=decay * len(train), solver="svd")
    reference.fit(((train - result.mean) / result.scale).numpy(), outputs.numpy())
    np.testing.assert_allclose(result.weight.numpy(), np.atleast_2d(reference.coef_), rtol=1e-8)
    np.testing.assert_allclose(result.bias.numpy(), np.atleast_1d(reference.intercept_), rtol=1e-8)
    predictions = reference.predict(((test - result.mean) / result.scale).numpy())
    np.testing.assert_allclose(result.test_predictions.numpy(), predictions, rtol=1e-8, atol=1e-8)
    assert result.test.r2 == pytest.approx(r2_score(test_outputs, predictions))
    assert result.test.mae == pytest.approx(mean_absolute_error(test_outputs, predictions))
    errors = np.square(predictions - test_outputs.numpy())
    assert result.test.rmse == pytest.approx(np.sqrt(errors.mean()))
    if targets == 1:
        assert result.test.rmse == pytest.approx(root_mean_squared_error(test_outputs, predictions))


def test_a_noiseless_linear_target_is_found():
    train, outputs, test, test_outputs = _problem(noise=0.0)
    result = regression_probe(train, outputs, test, test_outputs, weight_decays=[1e-12])
    assert result.test.r2 == pytest.approx(1) and result.test.mae < 1e-8 and result.test.rmse < 1e-8
    torch.testing.assert_close(result.predict(test)[:, 0], test_outputs)


@pytest.mark.parametrize("criterion", ["r2", "mae"])
def test_the_weight_decay_is_the_best_on_the_validation_set(criterion):
    train, outputs, test, test_outputs = _problem(n=60, dim=40, noise=5.0)
    parts = (train[:40], outputs[:40], test, test_outputs)
    result = regression_probe(*parts, validation=(train[40:], outputs[40:]), criterion=criterion)
    alone = {
        decay: regression_probe(train[:40], outputs[:40], train[40:], outputs[40:], weight_decays=[decay]).test
        for decay in result.validation_grid
    }
    assert {decay: pytest.approx(scores.to_dict()) for decay, scores in alone.items()} == {
        decay: scores.to_dict() for decay, scores in result.validation_grid.items()
    }
    sign = 1 if criterion == "r2" else -1
    best = max(alone, key=lambda decay: sign * getattr(alone[decay], criterion))
    assert result.weight_decay == best
    refitted = regression_probe(train, outputs, test, test_outputs, weight_decays=[best])
    torch.testing.assert_close(result.weight, refitted.weight)


def test_the_choice_never_sees_the_test_set():
    train, outputs, test, test_outputs = _problem(n=60, dim=40, noise=5.0)
    first = regression_probe(train, outputs, test, test_outputs)
    second = regression_probe(train, outputs, test, test_outputs.flip(0))
    assert first.validation_grid == second.validation_grid and torch.equal(first.weight, second.weight)
    assert torch.equal(first.test_predictions, second.test_predictions)
    assert first.test.r2 != second.test.r2


def test_the_mean_has_an_r2_of_zero():
    train, outputs, _, _ = _problem()
    result = regression_probe(torch.ones_like(train), outputs, torch.ones_like(train), outputs)
    assert result.test.r2 == pytest.approx(0)
    assert result.test.rmse == pytest.approx(outputs.std(correction=0).item())


def test_a_constant_test_target_has_no_r2_and_is_ready_for_json():
    train, outputs, test, test_outputs = _problem()
    result = regression_probe(train, outputs, test, torch.full_like(test_outputs, 2.0))
    assert result.test.r2 is None and result.test.mae > 0
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["test"]["r2"] is None


def test_counts_are_classified_and_regressed():
    data = _counts()
    result = count_probe(*data)
    classified = linear_probe(*data)
    assert result.classification.test_accuracy == classified.test_accuracy
    regressed = regression_probe(*data)
    assert result.regression.test == regressed.test
    rounded = regressed.test_predictions.round().clamp(3, 8)
    assert torch.equal(result.rounded_predictions, rounded.long())
    assert result.rounded_accuracy == (rounded == data[3]).double().mean().item() > 0.85
    assert result.rounded.mae == pytest.approx(mean_absolute_error(data[3], rounded))
    assert result.rounded.r2 == pytest.approx(r2_score(data[3], rounded))
    json.dumps(result.to_dict(), allow_nan=False)


def test_rounded_counts_stay_in_the_range_seen():
    train, counts, test, test_counts = _counts()
    result = count_probe(train, counts, 100 * test - 300, test_counts)
    assert set(result.rounded_predictions.tolist()) <= set(range(3, 9))


def test_a_count_that_the_train_set_lacks_is_refused_or_an_error_of_the_classifier():
    train, counts, test, test_counts = _counts(noise=0.05)
    kept = counts != 5
    with pytest.raises(ValueError, match=r"classes \[5\], which train_labels lacks"):
        count_probe(train[kept], counts[kept], test, test_counts)
    result = count_probe(train[kept], counts[kept], test, test_counts, allow_unseen_classes=True)
    share = (test_counts == 5).double().mean().item()
    assert result.classification.test_accuracy <= 1 - share
    # Regression interpolates between the counts that it has seen.
    assert result.rounded_accuracy == 1


@pytest.mark.parametrize(
    ("position", "change", "error", "message"),
    [
        (0, lambda x: x.index_fill(0, torch.tensor([5]), float("nan")), ValueError, "first is row 5"),
        (0, lambda x: x[:0], ValueError, "train_features has shape"),
        (2, lambda x: x[:, :3], ValueError, "same number is expected"),
        (1, lambda y: y[1:], ValueError, "train_targets has shape"),
        (1, lambda y: y.log(), ValueError, "train_targets holds NaN"),
        (1, lambda y: y > 0, TypeError, "train_targets is torch.bool"),
        (1, lambda y: y.tolist(), TypeError, "train_targets is list"),
        (3, lambda y: y[:, None].expand(-1, 2), ValueError, "test_targets has shape"),
        (1, lambda y: torch.ones_like(y), ValueError, "target is constant over the validation samples"),
    ],
)
def test_refuses_wrong_data(position, change, error, message):
    arguments = list(_problem())
    arguments[position] = change(arguments[position])
    with pytest.raises(error, match=message):
        regression_probe(*arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_decays": []}, "weight_decays is empty"),
        ({"weight_decays": [0.0]}, "weight_decays holds 0.0"),
        ({"criterion": "mse"}, "criterion is 'mse'"),
        ({"validation_fraction": 0.0}, "validation_fraction is 0.0"),
    ],
)
def test_refuses_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        regression_probe(*_problem(), **settings)
