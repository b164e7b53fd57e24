# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The `evaluate` modules: closed forms, scikit-learn, batches and processes that change nothing, and no network."""

import doctest
import math
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from sparsejepa_hf.evaluation import rankme
from sparsejepa_hf.evaluation.metrics import METRICS, alpha_req, feature_sparsity, load_metric, metric_path
from sparsejepa_hf.evaluation.metrics.classification import (
    class_balanced_accuracy,
    count_errors,
    top_k_accuracies,
)


REPRESENTATION = ("rankme", "alpha_req", "feature_sparsity")


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


def _inputs(name: str, n: int = 40) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    references = generator.integers(0, 5, n)
    if name in REPRESENTATION:
        return {"predictions": generator.standard_normal((n, 8)).astype(np.float32)}
    if name == "count_error":
        return {"predictions": references + generator.standard_normal(n), "references": references}
    scores = {"predictions": generator.standard_normal((n, 5)), "references": references}
    return scores | ({"baseline_predictions": generator.standard_normal((n, 5))} if name == "probe_gap" else {})


def _part(inputs, rows):
    return {key: values[rows] for key, values in inputs.items()}


class TestModules:
    @pytest.mark.parametrize("name", METRICS)
    def test_examples_of_the_description_are_right(self, name):
        metric = evaluate.load(metric_path(name))
        assert metric.name == name and metric.citation.strip() and metric.description.strip()
        example = doctest.DocTestParser().get_doctest(metric.inputs_description, {}, name, None, 0)
        outcome = doctest.DocTestRunner().run(example)
        assert outcome.attempted >= 3 and outcome.failed == 0

    @pytest.mark.parametrize("name", METRICS)
    def test_batches_and_single_samples_change_nothing(self, name):
        inputs = _inputs(name)
        whole = load_metric(name).compute(**inputs)
        assert whole and all(value is None or isinstance(value, (int, float)) for value in whole.values())
        batched, single = load_metric(name), load_metric(name, keep_in_memory=True)
        for rows in (slice(0, 7), slice(7, 8), slice(8, None)):
            batched.add_batch(**_part(inputs, rows))
        for row in range(len(inputs["predictions"])):
            sample = _part(inputs, row)
            renamed = {"prediction": sample.pop("predictions"), "reference": sample.pop("references", None)}
            single.add(**renamed, **sample)
        assert batched.compute() == whole and single.compute() == whole

    @pytest.mark.parametrize("name", METRICS)
    def test_tensors_and_lists_are_the_same(self, name):
        inputs = _inputs(name)
        whole = load_metric(name).compute(**inputs)
        assert load_metric(name).compute(**{key: torch.from_numpy(values) for key, values in inputs.items()}) == whole
        assert load_metric(name).compute(**{key: values.tolist() for key, values in inputs.items()}) == whole

    @pytest.mark.parametrize("name", ["rankme", "top_k_accuracy"])
    def test_two_processes_give_the_result_of_one(self, name):
        inputs = _inputs(name)

        def process(index):
            metric = load_metric(name, num_process=2, process_id=index, experiment_id=f"two-{name}")
            return metric.compute(**_part(inputs, slice(0, 15) if index == 0 else slice(15, None)))

        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(process, range(2))
        assert first == load_metric(name).compute(**inputs) and second is None

    def test_classification_modules_combine(self):
        inputs = _inputs("probe_gap")
        together = evaluate.combine(
            [load_metric("top_k_accuracy", k=(1, 3)), metric_path("balanced_accuracy"), metric_path("probe_gap")]
        )
        for rows in (slice(0, 20), slice(20, None)):
            together.add_batch(**_part(inputs, rows))
        combined = together.compute()
        apart = load_metric("probe_gap").compute(**inputs)
        del inputs["baseline_predictions"]
        apart |= load_metric("balanced_accuracy").compute(**inputs)
        apart |= load_metric("top_k_accuracy", k=[1, 3]).compute(**inputs)
        assert combined == apart
        assert apart["top_1_accuracy"] == apart["probe_accuracy"]

    def test_representation_modules_combine(self):
        inputs = _inputs("rankme")
        result = evaluate.combine([metric_path(name) for name in REPRESENTATION]).compute(**inputs)
        features = torch.from_numpy(inputs["predictions"])
        assert result["rankme"] == rankme(features).item()
        assert result["alpha_req"] == alpha_req(features).alpha
        assert result["hoyer"] == feature_sparsity(features).hoyer

    def test_counts_combine_with_classes(self):
        together = evaluate.combine([metric_path("count_error"), metric_path("balanced_accuracy")])
        assert together.compute(predictions=[3, 4, 4], references=[3, 4, 5]) == {
            "exact_match": pytest.approx(2 / 3),
            "mae": pytest.approx(1 / 3),
            "r2": pytest.approx(0.5),
            "balanced_accuracy": pytest.approx(2 / 3),
        }

    def test_settings_of_compute_go_before_those_of_load(self):
        inputs = _inputs("top_k_accuracy")
        metric = load_metric("top_k_accuracy", k=2)
        assert metric.compute(**inputs).keys() == {"top_2_accuracy"}
        assert metric.compute(**inputs, k=3).keys() == {"top_3_accuracy"}
        vectors = [[0.1, 1.0], [0.3, 0.0]]
        assert load_metric("feature_sparsity", threshold=0.2).compute(predictions=vectors)["near_zero_share"] == 0.5
        assert load_metric("feature_sparsity").compute(predictions=vectors, threshold=0.5)["near_zero_share"] == 0.75

    def test_wrong_inputs_are_refused_with_a_sentence(self):
        with pytest.raises(ValueError, match="holds 0.9, but class indices"):
            load_metric("balanced_accuracy").compute(predictions=[0.9, 0.0], references=[1, 0])
        with pytest.raises(ValueError, match="different lengths"):
            load_metric("rankme").compute(predictions=[[1.0, 2.0], [1.0]])
        with pytest.raises(ValueError, match="NaN or infinite values in 1 of 2 rows"):
            load_metric("feature_sparsity").compute(predictions=[[1.0, 2.0], [1.0, math.nan]])
        with pytest.raises(ValueError, match="'accuracy' is unknown; expected one of: alpha_req"):
            load_metric("accuracy")

    def test_a_wheel_carries_every_script(self):
        root = Path(__file__).parents[3]
        if not (root / "setup.py").is_file():
            pytest.skip("not run from a checkout")
        code = (
            "import os, runpy, sys, setuptools\n"
            "from setuptools.command.build_py import build_py\n"
            "options = {}\n"
            "setuptools.setup = lambda **given: options.update(given)\n"
            "runpy.run_path('setup.py')\n"
            "command = build_py(setuptools.Distribution({**options, 'script_name': 'setup.py'}))\n"
            "command.ensure_finalized()\n"
            "print('\\n'.join(os.path.relpath(p, command.build_lib) for p in command.get_outputs(False)))\n"
        )
        listed = subprocess.run(
            [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for name in METRICS:
            assert f"sparsejepa_hf/evaluation/metrics/{name}/{name}.py" in listed
        assert set(METRICS) == {path.parent.name for path in Path(metric_path("rankme")).parent.glob("*/*.py")}


class TestClassification:
    @given(st.integers(0, 2**31), st.integers(1, 30), st.integers(3, 7))
    def test_top_k_is_that_of_scikit_learn(self, seed, n, classes):
        generator = np.random.default_rng(seed)
        scores, references = generator.standard_normal((n, classes)), generator.integers(0, classes, n)
        found = top_k_accuracies(scores, references, range(1, classes + 1))
        for k in range(1, classes):
            expected = reference.top_k_accuracy_score(references, scores, k=k, labels=range(classes))
            assert found[k] == pytest.approx(expected)
        assert found[classes] == 1 and list(found.values()) == sorted(found.values())
        assert found[1] == top_k_accuracies(scores.argmax(axis=1), references, 1)[1]

    def test_equal_scores_earn_nothing(self):
        references = [0, 1, 2, 3]
        assert top_k_accuracies(np.zeros((4, 4)), references, [1, 2]) == {1: 0.25, 2: 0.5}

    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
    def test_balanced_accuracy_is_the_mean_recall(self, rows):
        predictions, references = np.array(rows).T
        expected = reference.recall_score(
            references, predictions, labels=np.unique(references), average="macro", zero_division=0
        )
        assert class_balanced_accuracy(predictions, references) == pytest.approx(expected)

    @given(st.integers(0, 2**31), st.integers(0, 3), st.integers(1, 9))
    def test_balanced_accuracy_ignores_how_often_a_class_occurs(self, seed, repeated, times):
        generator = np.random.default_rng(seed)
        predictions, references = generator.integers(0, 4, 30), generator.integers(0, 4, 30)
        copies = np.where(references == repeated, times, 1)
        more = class_balanced_accuracy(predictions.repeat(copies), references.repeat(copies))
        assert more == pytest.approx(class_balanced_accuracy(predictions, references))

    @given(st.lists(st.tuples(st.floats(-2, 12), st.integers(0, 10)), min_size=2, max_size=30))
    def test_count_errors_are_those_of_scikit_learn(self, rows):
        predictions, references = np.array(rows).T
        found = count_errors(predictions, references)
        assert found["mae"] == pytest.approx(reference.mean_absolute_error(references, predictions))
        if np.ptp(references) == 0:
            assert found["r2"] is None
        else:
            assert found["r2"] == pytest.approx(reference.r2_score(references, predictions))
        assert found["exact_match"] == np.mean([math.floor(p + 0.5) == r for p, r in rows])

    @pytest.mark.parametrize(
        ("predictions", "references", "k", "message"),
        [
            ([[0.1, 0.9]], [0], 3, "k is 3"),
            ([0, 1], [0, 1], 5, "class indices instead of scores"),
            ([[0.1, 0.9]], [0], [], "k is empty"),
            ([[0.1, 0.9]], [2], 1, "holds the class 2"),
            ([[0.1, math.nan]], [0], 1, "NaN in 1 of 1 rows"),
            ([[0.1, 0.9]], [0, 1], 1, "1 predictions and 2 references"),
            ([[0.1, 0.9]], [-1], 1, "holds -1"),
            ([[0.1, 0.9], [0.1]], [0, 1], 1, "different lengths"),
            ([], [], 1, "n >= 1"),
        ],
    )
    def test_wrong_scores_are_refused(self, predictions, references, k, message):
        with pytest.raises(ValueError, match=message):
            top_k_accuracies(predictions, references, k)

    def test_wrong_counts_are_refused(self):
        with pytest.raises(ValueError, match="1 values that are NaN"):
            count_errors([1.0, math.nan], [1, 2])
        with pytest.raises(ValueError, match="holds -1"):
            count_errors([1.0], [-1])


def _with_spectrum(eigenvalues: torch.Tensor, n: int, seed: int = 0) -> torch.Tensor:
    """(n, D) features whose covariance has exactly these eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    dim = len(eigenvalues)
    ones = torch.ones(n, 1, dtype=torch.float64)
    # Orthonormal directions in sample space that are orthogonal to the mean.
    basis = torch.linalg.qr(torch.cat([ones, torch.randn(n, dim, generator=generator, dtype=torch.float64)], 1)).Q
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
    return math.sqrt(n - 1) * basis[:, 1:] * eigenvalues.sqrt() @ rotation


class TestRepresentation:
    def test_rankme_of_orthonormal_features_is_their_number(self):
        rows = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0))).Q[:5]
        assert load_metric("rankme").compute(predictions=rows)["rankme"] == pytest.approx(5, rel=1e-4)

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
        assert load_metric("alpha_req").compute(predictions=torch.zeros(30, 8))["alpha_req"] is None

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
        assert result.zero_vectors == sum(not any(vector) for vector in vectors)

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
