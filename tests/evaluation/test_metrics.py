# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The `evaluate` modules, which need no network, and label-free measures: closed forms, invariances, bounds."""

import doctest
import math
import runpy
import socket
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import setuptools
import torch
from hypothesis import given
from hypothesis import strategies as st
from setuptools.command.build_py import build_py
from sklearn import metrics as reference
from transformers import EvalPrediction

from sparsejepa_hf.evaluation import (
    METRICS,
    alpha_req,
    classification_metrics,
    feature_sparsity,
    feature_std,
    load_metric,
    metric_path,
    rankme,
)


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory):
    """Empty caches of this module's own. One for all its tests: Python finds the copied scripts only once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path_factory.mktemp("modules"))
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path_factory.mktemp("metrics"))
        for name in [name for name in sys.modules if name.partition(".")[0] == "evaluate_modules"]:
            patch.delitem(sys.modules, name)
        yield


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a test asked the network for something")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


class TestModules:
    @pytest.mark.parametrize("name", METRICS)
    def test_examples_of_the_description_are_right(self, name):
        metric = evaluate.load(metric_path(name))
        assert metric.name == name and metric.citation.strip() and metric.description.strip()
        example = doctest.DocTestParser().get_doctest(metric.inputs_description, {}, name, None, 0)
        outcome = doctest.DocTestRunner().run(example)
        assert outcome.attempted >= 3 and outcome.failed == 0

    def test_batches_and_single_samples_change_nothing(self):
        generator = np.random.default_rng(0)
        ranked, references = generator.random((40, 9)).argsort(axis=1)[:, :5], generator.integers(0, 9, 40)
        whole = load_metric("classification").compute(predictions=ranked, references=references)
        metric = load_metric("classification", keep_in_memory=True)
        metric.add_batch(predictions=torch.from_numpy(ranked[:30]), references=torch.from_numpy(references[:30]))
        for row in range(30, 40):
            metric.add(prediction=ranked[row], reference=references[row])
        assert metric.compute() == whole

    def test_an_unknown_metric_is_refused(self):
        with pytest.raises(ValueError, match="'bleu' is unknown; expected one of: classification, counting"):
            load_metric("bleu")

    def test_every_script_is_named(self):
        assert set(METRICS) == {path.parent.name for path in Path(metric_path("counting")).parent.glob("*/*.py")}

    def test_a_wheel_carries_every_script(self, monkeypatch):
        root, options = Path(__file__).parents[2], {}
        monkeypatch.chdir(root)
        monkeypatch.setattr(setuptools, "setup", lambda **given: options.update(given))
        runpy.run_path("setup.py")
        command = build_py(setuptools.Distribution({**options, "script_name": "setup.py"}))
        command.ensure_finalized()
        listed = {Path(path).relative_to(command.build_lib).as_posix() for path in command.get_outputs(False)}
        assert {f"sparsejepa_hf/evaluation/metrics/{name}/{name}.py" for name in METRICS} <= listed

    @pytest.mark.parametrize("classes", [3, 5, 6, 40])
    def test_classification_is_that_of_scikit_learn(self, classes):
        generator = np.random.default_rng(classes)
        logits, labels = generator.standard_normal((60, classes)).astype(np.float32), generator.integers(0, 3, 60)
        found = classification_metrics(EvalPrediction(logits, labels))
        best = logits.argmax(axis=1)
        everything = range(classes)
        assert found["accuracy"] == pytest.approx(reference.accuracy_score(labels, best))
        recall = reference.recall_score(labels, best, labels=np.unique(labels), average="macro", zero_division=0)
        assert found["balanced_accuracy"] == pytest.approx(recall)
        probabilities = torch.from_numpy(logits).double().softmax(dim=1)
        loss = reference.log_loss(labels, probabilities, labels=everything)
        assert found["cross_entropy"] == pytest.approx(loss, rel=1e-5)
        assert ("top5_accuracy" in found) == (classes > 5)
        if classes > 5:
            top5 = reference.top_k_accuracy_score(labels, logits, k=5, labels=everything)
            assert found["top5_accuracy"] == pytest.approx(top5)

    def test_of_equal_scores_the_lower_class_goes_first(self):
        found = classification_metrics(EvalPrediction(np.zeros((10, 10), np.float32), np.arange(10)))
        assert (found["accuracy"], found["top5_accuracy"]) == (0.1, 0.5)

    @pytest.mark.parametrize("references", [[3, 4, 7, 10], [3, 3, 3, 3]])
    def test_count_errors_are_those_of_scikit_learn(self, references):
        predictions = [2.5, 4.25, 6.4, 12.0]
        found = load_metric("counting").compute(predictions=predictions, references=references)
        assert found["mae"] == pytest.approx(reference.mean_absolute_error(references, predictions))
        expected = reference.r2_score(references, predictions) if len(set(references)) > 1 else None
        assert found["r2"] == (None if expected is None else pytest.approx(expected))
        assert found["exact_match"] == np.mean(
            [rounded == r for rounded, r in zip([3, 4, 6, 12], references, strict=True)]
        )


SIZES = st.integers(1, 12)
SEEDS = st.integers(0, 2**31)


def _matrix(seed, n, dim, rank=None):
    generator = torch.Generator().manual_seed(seed)
    if rank is None:
        return torch.randn(n, dim, generator=generator, dtype=torch.float64)
    return torch.randn(n, rank, generator=generator, dtype=torch.float64) @ torch.randn(
        rank, dim, generator=generator, dtype=torch.float64
    )


@pytest.mark.parametrize("n", [1, 2, 16, 64])
def test_orthogonal_directions_of_equal_norm_count_one_each(n):
    directions = torch.linalg.qr(_matrix(0, 80, n)).Q.T
    assert rankme(3 * directions).item() == pytest.approx(n, rel=1e-4)


def test_a_rank_one_matrix_has_rank_one():
    assert rankme(_matrix(0, 50, 20, rank=1)).item() == pytest.approx(1, abs=1e-4)


def test_a_collapsed_representation_has_rank_one():
    assert rankme(torch.zeros(50, 20)).item() == pytest.approx(1, abs=1e-4)
    assert rankme(torch.full((50, 20), 0.3)).item() == pytest.approx(1, abs=1e-3)


def test_value_is_the_exponential_of_the_entropy_of_the_singular_values():
    p = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    # The entropy is 1.5 bits.
    assert rankme(torch.diag(8 * p)).item() == pytest.approx(2**1.5, rel=1e-5)


@given(seed=SEEDS, n=SIZES, dim=SIZES, rank=SIZES, double=st.booleans())
def test_bounds(seed, n, dim, rank, double):
    features = _matrix(seed, n, dim, rank)
    value = rankme(features if double else features.float()).item()
    assert 1 - 1e-5 <= value <= min(n, dim) * (1 + 1e-4)
    assert value <= min(n, dim, rank) * (1 + 1e-3)


@given(seed=SEEDS, n=SIZES, dim=SIZES, exponent=st.floats(-6, 6))
def test_scaling_rotating_and_transposing_change_nothing(seed, n, dim, exponent):
    features = _matrix(seed, n, dim)
    rotation = torch.linalg.qr(_matrix(seed + 1, dim, dim)).Q
    expected = rankme(features)
    torch.testing.assert_close(rankme(features * 10**exponent), expected)
    torch.testing.assert_close(rankme(features @ rotation), expected)
    torch.testing.assert_close(rankme(features.T), expected)


def test_repeating_every_sample_changes_nothing():
    features = _matrix(0, 30, 10)
    torch.testing.assert_close(rankme(features.repeat(4, 1)), rankme(features))


def test_feature_std_of_known_spreads():
    features = torch.tensor([[-1.0, 0.0, 5.0], [1.0, 0.0, 5.0]])
    assert feature_std(features).item() == pytest.approx(2**0.5 / 3)


@given(seed=SEEDS, n=st.integers(2, 12), dim=SIZES, scale=st.floats(-100, 100), shift=st.floats(-100, 100))
def test_feature_std_is_homogeneous_and_ignores_shifts(seed, n, dim, scale, shift):
    features = _matrix(seed, n, dim)
    expected = abs(scale) * feature_std(features)
    torch.testing.assert_close(feature_std(scale * features + shift), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("function", [rankme, feature_std])
def test_results_are_zero_dimensional_without_gradient_and_at_least_float32(function):
    features = _matrix(0, 20, 5)
    for dtype, expected in [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ]:
        value = function(features.to(dtype).requires_grad_())
        assert value.shape == () and value.dtype == expected and not value.requires_grad


@pytest.mark.parametrize(("function", "minimum"), [(rankme, 1), (feature_std, 2)])
def test_refuses_wrong_shapes(function, minimum):
    for features in (torch.ones(3), torch.ones(2, 3, 4), torch.ones(minimum - 1, 4), torch.ones(4, 0)):
        with pytest.raises(ValueError, match=rf"n >= {minimum} and D >= 1"):
            function(features)


def _with_spectrum(eigenvalues: torch.Tensor, n: int, seed: int = 0) -> torch.Tensor:
    """(n, D) features whose covariance has exactly these eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    dim = len(eigenvalues)
    ones = torch.ones(n, 1, dtype=torch.float64)
    # Orthonormal directions in sample space that are orthogonal to the mean.
    basis = torch.linalg.qr(torch.cat([ones, torch.randn(n, dim, generator=generator, dtype=torch.float64)], 1)).Q
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
    return math.sqrt(n - 1) * basis[:, 1:] * eigenvalues.sqrt() @ rotation


class TestSpectrumAndSparsity:
    @given(st.floats(0, 3), st.integers(0, 2**31), st.floats(-3, 3), st.floats(-5, 5))
    def test_alpha_of_a_power_law_is_its_exponent(self, alpha, seed, log_scale, shift):
        ranks = torch.arange(1, 25, dtype=torch.float64)
        features = _with_spectrum(10**log_scale * ranks**-alpha, 60, seed)
        fit = alpha_req(features + shift * 10 ** (log_scale / 2), first_rank=2)
        assert fit.alpha == pytest.approx(alpha, abs=1e-6)
        assert fit.r2 == pytest.approx(1, abs=1e-6) and (fit.first_rank, fit.last_rank) == (2, 24)

    def test_only_the_ranks_asked_for_are_fitted(self):
        ranks = torch.arange(1, 31, dtype=torch.float64)
        bent = torch.where(ranks <= 10, ranks**-0.5, 10**1.5 * ranks**-2)
        features = _with_spectrum(bent, 80)
        assert alpha_req(features, first_rank=1, last_rank=10).alpha == pytest.approx(0.5)
        assert alpha_req(features, first_rank=10, last_rank=30).alpha == pytest.approx(2)
        mixed = alpha_req(features, first_rank=1, last_rank=30)
        assert 0.5 < mixed.alpha < 2 and mixed.r2 < 1

    def test_fit_is_the_weighted_regression_of_numpy(self):
        features = torch.randn(50, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        eigenvalues = np.linalg.eigvalsh(np.cov(features.numpy().T))[::-1][3:]
        ranks = np.arange(4, 21)
        slope, _ = np.polyfit(np.log(ranks), np.log(eigenvalues), 1, w=ranks**-0.5)
        assert alpha_req(features).alpha == pytest.approx(-slope)

    def test_more_dimensions_than_samples_change_the_range_only(self):
        features = _with_spectrum(torch.arange(1, 11, dtype=torch.float64) ** -1.0, 20)
        wide = torch.cat([features, torch.zeros(20, 30)], dim=1)
        assert alpha_req(wide).last_rank == alpha_req(features).last_rank == 10
        assert alpha_req(wide).alpha == pytest.approx(alpha_req(features).alpha)

    def test_a_collapse_has_no_exponent(self):
        for features in (torch.full((30, 8), 0.3), torch.zeros(30, 8), torch.arange(30.0)[:, None].expand(-1, 8)):
            fit = alpha_req(features)
            assert fit.alpha is None and fit.r2 is None and fit.last_rank <= 1

    def test_alpha_refuses_wrong_arguments(self):
        with pytest.raises(ValueError, match="at least 2"):
            alpha_req(torch.ones(1, 4))
        with pytest.raises(ValueError, match="first_rank is 5 and last_rank 5"):
            alpha_req(torch.ones(3, 4), first_rank=5, last_rank=5)
        with pytest.raises(TypeError, match="floating-point"):
            alpha_req(torch.ones(3, 4, dtype=torch.long))

    @pytest.mark.parametrize(
        ("vectors", "hoyer", "l0", "l1"),
        [
            ([[0.0, 0.0, 5.0, 0.0]], 1, 1, 5),
            ([[2.0, -2.0, 2.0, -2.0]], 0, 4, 8),
            ([[3.0, 4.0, 0.0, 0.0]], 2 - 7 / 5, 2, 7),
            ([[0.0, 0.0, 5.0, 0.0], [0.0] * 4, [2.0, 2.0, 2.0, 2.0]], 0.5, 5 / 3, 13 / 3),
        ],
    )
    def test_sparsity_of_known_vectors(self, vectors, hoyer, l0, l1):
        result = feature_sparsity(torch.tensor(vectors))
        assert result.hoyer == pytest.approx(hoyer, abs=1e-12)
        assert (result.l0, result.l1) == pytest.approx((l0, l1))
        assert result.exact_zero_share == result.near_zero_share == pytest.approx(1 - l0 / 4)

    @given(st.integers(0, 2**31), st.integers(1, 8), st.integers(2, 9), st.integers(-60, 60))
    def test_sparsity_under_scale_and_order(self, seed, n, dim, exponent):
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(n, dim, generator=generator, dtype=torch.float64)
        features[torch.rand(n, dim, generator=generator) < 0.4] = 0
        before, scale = feature_sparsity(features, threshold=0.5), 2.0**exponent
        after = feature_sparsity(features.flip(1) * scale, threshold=0.5 * scale)
        assert after.hoyer == pytest.approx(before.hoyer)
        assert after.l1 == pytest.approx(before.l1 * scale) and after.l0 == before.l0
        assert (after.exact_zero_share, after.near_zero_share) == (before.exact_zero_share, before.near_zero_share)
        assert before.near_zero_share == pytest.approx(1 - before.l0 / dim)
        assert before.hoyer is None or 0 <= before.hoyer <= 1

    def test_hoyer_is_undefined_without_a_vector(self):
        assert feature_sparsity(torch.zeros(3, 4)).hoyer is None and feature_sparsity(torch.ones(3, 1)).hoyer is None
        with pytest.raises(ValueError, match="threshold is -1"):
            feature_sparsity(torch.ones(2, 2), threshold=-1)
