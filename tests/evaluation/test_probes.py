# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Linear probes: their optimality conditions, what is chosen on what, and the splits."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, mean_absolute_error, r2_score, top_k_accuracy_score
from threadpoolctl import threadpool_info, threadpool_limits

from sparsejepa_hf.evaluation import (
    count_probe,
    duplicate_rows,
    image_hashes,
    linear_probe,
    low_shot_indices,
    low_shot_probe,
    ridge_probe,
    validation_mask,
)


EXACT = {"tolerance": 1e-7, "max_iter": 2000, "weight_decays": [1e-2]}


def _problem(num_classes=4, dim=6, n=400, noise=1.5):
    """float64 features of classes around random centres, unevenly scaled: train, labels, test, labels."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(num_classes, dim, generator=generator, dtype=torch.float64)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64)

    def sample(size):
        labels = torch.arange(size) % num_classes
        noisy = centres[labels] + noise * torch.randn(size, dim, generator=generator, dtype=torch.float64)
        return noisy @ mixing + 3, labels

    return *sample(n), *sample(n // 2)


def _counts(noise=0.3):
    generator = torch.Generator().manual_seed(0)
    counts = torch.arange(600) % 6 + 3
    direction = torch.randn(1, 8, generator=generator)
    features = counts[:, None] * direction + noise * torch.randn(600, 8, generator=generator)
    return features[:300], counts[:300], features[300:], counts[300:]


class TestLinearProbe:
    @pytest.mark.parametrize("num_classes", [2, 4])
    def test_the_minimum_is_that_of_the_penalised_cross_entropy(self, num_classes):
        train, labels, test, test_labels = _problem(num_classes)
        model = linear_probe(train, labels, test, test_labels, **EXACT).model
        inputs = torch.from_numpy(model[0].transform(train.numpy()))
        weight, bias = torch.from_numpy(model[1].coef_), torch.from_numpy(model[1].intercept_)
        if num_classes == 2:
            # scikit-learn holds the difference of two opposite rows.
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        weight.requires_grad_(), bias.requires_grad_()
        loss = torch.nn.functional.cross_entropy(inputs @ weight.T + bias, labels) + 1e-2 / 2 * weight.square().sum()
        for gradient in torch.autograd.grad(loss, (weight, bias)):
            torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-6)

    def test_features_in_float32_are_fitted_in_float32_and_give_the_same_probe(self):
        train, labels, test, test_labels = _problem()
        single = linear_probe(train.float(), labels, test.float(), test_labels, weight_decays=[1e-2])
        double = linear_probe(train, labels, test, test_labels, **EXACT)
        assert single.converged and single.model[0].transform(train.float().numpy()).dtype == np.float32
        np.testing.assert_allclose(single.model[1].coef_, double.model[1].coef_, rtol=0.02, atol=2e-3)
        assert single.test_accuracy == double.test_accuracy

    def test_test_figures_are_those_of_scikit_learn(self):
        train, labels, test, test_labels = _problem(num_classes=8, dim=12, noise=3.0)
        test, test_labels = test[:131], test_labels[:131]
        result = linear_probe(train, labels, test, test_labels, weight_decays=[1e-2])
        scores, predictions = result.model.predict_proba(test.numpy()), result.model.predict(test.numpy())
        assert result.test_predictions.tolist() == predictions.tolist()
        assert result.test_accuracy == pytest.approx((predictions == test_labels.numpy()).mean())
        assert result.test_balanced_accuracy == pytest.approx(balanced_accuracy_score(test_labels, predictions))
        assert result.test_top5_accuracy == pytest.approx(top_k_accuracy_score(test_labels, scores, k=5))

    def test_the_choice_is_the_best_on_the_validation_part_by_fits_without_it(self):
        train, labels, test, test_labels = _problem(num_classes=8, dim=30, n=320, noise=2.0)
        result = linear_probe(train, labels, test, test_labels, seed=5)
        held_out = validation_mask(labels, 0.1, seed=5)
        parts = train[~held_out], labels[~held_out], train[held_out], labels[held_out]
        assert list(result.validation_accuracies) == sorted(result.validation_accuracies, reverse=True)
        for weight_decay in (1e-1, 1e-2):
            alone = linear_probe(*parts, weight_decays=[weight_decay])
            assert result.validation_accuracies[weight_decay] == alone.test_accuracy
        assert result.validation_accuracy == max(result.validation_accuracies.values())
        assert result.validation_accuracies[result.weight_decay] == result.validation_accuracy

    def test_the_test_set_never_influences_the_probe(self):
        train, labels, test, test_labels = _problem(num_classes=8, dim=30, n=320, noise=2.0)
        first = linear_probe(train, labels, test, test_labels)
        second = linear_probe(train, labels, test * 5, test_labels.flip(0))
        assert first.validation_accuracies == second.validation_accuracies
        np.testing.assert_array_equal(first.model[1].coef_, second.model[1].coef_)
        assert first.test_accuracy != second.test_accuracy

    def test_of_equal_accuracies_the_strongest_weight_decay_is_taken(self):
        result = linear_probe(*_problem(noise=0.01), weight_decays=[1e-6, 1e-3, 1e-4])
        assert set(result.validation_accuracies.values()) == {1.0} and result.test_accuracy == 1
        assert result.weight_decay == 1e-3 and result.at_grid_edge and result.test_top5_accuracy is None

    def test_rescaling_shifting_and_constant_features_change_nothing(self):
        train, labels, test, test_labels = _problem()
        first = linear_probe(train, labels, test, test_labels, **EXACT)
        scale = torch.logspace(-3, 3, 6, dtype=torch.float64)
        wider = torch.cat([train * scale + 1, torch.full((400, 1), 7.3)], dim=1)
        wider_test = torch.cat([test * scale + 1, torch.full((200, 1), -9.0)], dim=1)
        second = linear_probe(wider, labels, wider_test, test_labels, **EXACT)
        expected = np.pad(first.model[1].coef_, ((0, 0), (0, 1)))
        np.testing.assert_allclose(second.model[1].coef_, expected, rtol=1e-3, atol=1e-5)
        assert first.test_accuracy == second.test_accuracy

    def test_collapsed_features_give_the_share_of_the_largest_class(self):
        labels = torch.tensor([0] * 30 + [1] * 70)
        assert linear_probe(torch.ones(100, 3), labels, torch.ones(100, 3), labels).test_accuracy == 0.7

    def test_class_numbers_may_have_gaps_and_predictions_are_labels(self):
        train, labels, test, test_labels = _problem()
        dense = linear_probe(train, labels, test, test_labels, weight_decays=[1e-2])
        sparse = linear_probe(train, labels * 10 + 3, test, test_labels * 10 + 3, weight_decays=[1e-2])
        assert torch.equal(sparse.test_predictions, dense.test_predictions * 10 + 3)
        assert sparse.test_accuracy == dense.test_accuracy

    def test_a_test_class_absent_from_the_train_set_is_refused_or_counted_as_an_error(self):
        train, labels, test, test_labels = _problem(noise=0.05)
        kept = labels < 2
        with pytest.raises(ValueError, match=r"classes \[2, 3\], which train_labels lacks"):
            linear_probe(train[kept], labels[kept], test, test_labels)
        result = linear_probe(train[kept], labels[kept], test, test_labels, allow_unseen_classes=True)
        assert result.test_accuracy == 0.5

    def test_the_global_random_states_are_untouched(self):
        before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
        low_shot_probe(*_problem(), fraction=0.5, seeds=[0], weight_decays=[1e-2])
        assert torch.equal(torch.get_rng_state(), before)
        np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)

    def test_low_shot_probes_see_their_subset_only(self):
        train, labels, test, test_labels = _problem(n=800)
        found = low_shot_probe(train, labels, test, test_labels, fraction=0.05, seeds=(0, 4))
        expected = []
        for seed in (0, 4):
            rows = low_shot_indices(labels, 0.05, seed)
            assert len(rows) == 40
            expected.append(linear_probe(train[rows], labels[rows], test, test_labels, seed=seed).test_accuracy)
        assert found.mean == pytest.approx(np.mean(expected)) and found.std == pytest.approx(np.std(expected, ddof=1))

    @pytest.mark.parametrize(
        ("position", "change", "error", "message"),
        [
            (0, lambda x: x.long(), TypeError, "train_features is torch.int64"),
            (0, lambda x: x[:, :3], ValueError, "features"),
            (0, lambda x: x.index_fill(0, torch.tensor([5]), float("nan")), ValueError, "first is row 5"),
            (1, lambda y: y.double(), TypeError, "train_labels is torch.float64"),
            (1, lambda y: y[1:], ValueError, "one label per feature row"),
            (1, lambda y: torch.zeros_like(y), ValueError, "classes"),
            (1, lambda y: y - 1, ValueError, "holds the label -1"),
            (3, lambda y: y[1:], ValueError, "one label per feature row"),
        ],
    )
    def test_refuses_wrong_data(self, position, change, error, message):
        arguments = list(_problem())
        arguments[position] = change(arguments[position])
        with pytest.raises(error, match=message):
            linear_probe(*arguments)

    @pytest.mark.parametrize("weight_decays", [[], [0.0], [1e-2, -1.0], [float("nan")]])
    @pytest.mark.parametrize("probe", [linear_probe, ridge_probe])
    def test_refuses_impossible_weight_decays(self, probe, weight_decays):
        with pytest.raises(ValueError, match="weight_decays is .*; expected at least one, each above 0"):
            probe(*_problem(), weight_decays=weight_decays)

    def test_fits_leave_cores_to_others_and_restore_the_threads_of_blas(self, monkeypatch):
        def threads():
            return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

        during, fit = [], LogisticRegression.fit
        monkeypatch.setattr(LogisticRegression, "fit", lambda *args: (during.append(threads()), fit(*args))[1])
        with threadpool_limits(2, user_api="blas"):
            before = threads()
            linear_probe(*_problem(), weight_decays=[1e-2])
            assert set(before) == {2} and threads() == before
        assert during == [[1] * len(before)] * 2


class TestRidge:
    @pytest.mark.parametrize(("n", "dim"), [(60, 5), (30, 50)])
    @pytest.mark.parametrize("decay", [1e-3, 1.0])
    def test_the_solution_satisfies_the_normal_equations(self, n, dim, decay):
        # More features than samples too: then the covariance is singular.
        train, _, test, _ = _problem(dim=dim, n=n)
        targets = train[:, 0] - 2 * train[:, 1] + 1
        model = ridge_probe(train, targets, test, test[:, 0], weight_decays=[decay]).model
        inputs, weight = model[0].transform(train.numpy()), model[1].coef_
        residual = inputs @ weight + model[1].intercept_ - targets.numpy()
        np.testing.assert_allclose(residual @ inputs / n + decay * weight, 0, atol=1e-8)
        assert residual.mean() == pytest.approx(0, abs=1e-8)

    def test_the_choice_is_the_best_on_the_validation_part_and_never_sees_the_test_set(self):
        train, _, test, _ = _problem(dim=40, n=80)
        targets, wanted = train[:, 0].clone(), test[:, 0].clone()
        targets += 5 * torch.randn(80, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        first, second = ridge_probe(train, targets, test, wanted), ridge_probe(train, targets, test, wanted.flip(0))
        assert first.weight_decay == second.weight_decay and first.test_r2 != second.test_r2
        held_out = validation_mask(torch.zeros(80, dtype=torch.int64), 0.1, seed=0)
        parts = train[~held_out], targets[~held_out], train[held_out], targets[held_out]
        # The same penalty on fewer samples is a larger weight decay.
        scores = {d: ridge_probe(*parts, weight_decays=[d * 80 / 72]).test_r2 for d in (1e1, 1e0, 1e-1, 1e-2)}
        assert max([*scores.values(), first.validation_r2]) == pytest.approx(first.validation_r2)
        assert first.validation_r2 == pytest.approx(scores.get(first.weight_decay, first.validation_r2))

    def test_equal_test_targets_have_no_r2(self):
        train, _, test, _ = _problem()
        result = ridge_probe(train, train[:, 0], test, torch.full((200,), 2.0))
        assert result.test_r2 is None and result.test_mae > 0

    def test_counts_are_classified_and_regressed(self):
        data = _counts()
        result = count_probe(*data)
        assert result.classification.test_accuracy == linear_probe(*data).test_accuracy
        predictions = ridge_probe(*data).test_predictions
        assert torch.equal(result.regression.test_predictions, predictions)
        assert result.regression.test_r2 == pytest.approx(r2_score(data[3], predictions))
        assert result.regression.test_mae == pytest.approx(mean_absolute_error(data[3], predictions))
        rounded = predictions.round().clamp(3, 8)
        assert result.rounded_accuracy == (rounded == data[3]).double().mean().item() > 0.85

    def test_rounded_counts_stay_in_the_range_seen(self):
        train, counts, _, _ = _counts()
        far = 100 * (train[counts == 8] - train.mean(0))
        assert count_probe(train, counts, far, torch.full((len(far),), 8)).rounded_accuracy == 1


class TestSplits:
    LABELS = st.lists(st.integers(0, 6).map(lambda value: value * value), min_size=1, max_size=100).map(torch.tensor)

    @settings(max_examples=50, deadline=None)
    @given(labels=LABELS, fraction=st.floats(0.01, 0.5), seed=st.integers(0, 5))
    def test_no_class_is_lost_to_the_validation_part(self, labels, fraction, seed):
        if labels.bincount().max() == 1:
            with pytest.raises(ValueError, match="no validation sample"):
                validation_mask(labels, fraction, seed)
            return
        mask = validation_mask(labels, fraction, seed)
        assert torch.equal(mask, validation_mask(labels, fraction, seed))
        assert torch.equal(labels[~mask].unique(), labels.unique())
        repeated = labels.bincount()[labels] > 1
        assert int(mask.sum()) == max(round(fraction * int(repeated.sum())), len(labels[repeated].unique()))

    def test_the_validation_part_is_stratified_and_seeded(self):
        labels = torch.arange(1000).square() % 7
        mask = validation_mask(labels, 0.1, seed=1)
        shares = labels[mask].bincount() / labels.bincount().clamp_min(1)
        assert shares[labels.bincount() > 0].sub(0.1).abs().max() < 0.01
        assert not torch.equal(mask, validation_mask(labels, 0.1, seed=2))

    def test_the_split_of_a_seed_keeps_its_meaning(self):
        # Results are compared between versions.
        mask = validation_mask(torch.arange(40) % 4, 0.2, seed=3)
        assert mask.nonzero().flatten().tolist() == [6, 7, 12, 21, 26, 29, 32, 35]

    @settings(max_examples=50, deadline=None)
    @given(labels=LABELS, fractions=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)), seed=st.integers(0, 5))
    def test_low_shot_sets_hold_the_rounded_share_of_every_class_and_are_nested(self, labels, fractions, seed):
        small, large = (low_shot_indices(labels, fraction, seed) for fraction in sorted(fractions))
        assert torch.isin(small, large).all() and torch.equal(small, small.unique())
        sizes, drawn = labels.bincount(minlength=37), labels[small].bincount(minlength=37)
        expected = torch.floor(sizes.double() * min(fractions) + 0.5).clamp_min(1) * (sizes > 0)
        assert torch.equal(drawn.double(), expected)

    @settings(max_examples=20, deadline=None)
    @given(copies=st.lists(st.tuples(st.integers(0, 29), st.integers(0, 19)), max_size=8))
    def test_exactly_the_copied_images_are_found(self, copies):
        generator = torch.Generator().manual_seed(0)
        train, test = (torch.randint(0, 256, (n, 4, 4, 3), dtype=torch.uint8, generator=generator) for n in (30, 20))
        for source, target in copies:
            test[target] = train[source]
        changed = test.clone()
        changed[:, 1, 2, 0] += 1
        hashes = image_hashes(train)
        assert duplicate_rows(hashes, image_hashes(test.numpy())).tolist() == sorted({target for _, target in copies})
        assert duplicate_rows(hashes, image_hashes(changed)).tolist() == []

    def test_images_of_other_shapes_are_other_images(self):
        small, wide = np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 2, 8, 3), np.uint8)
        assert image_hashes(small) != image_hashes(wide)

    @pytest.mark.slow
    def test_cifar100_has_ten_test_images_in_its_train_set(self, data_dir):
        parquet, image = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("PIL.Image")

        def hashes(split):
            files = sorted((data_dir / "cifar100").glob(f"{split}-*.parquet"))
            columns = [parquet.read_table(file, columns=["img"])["img"].to_pylist() for file in files]
            return image_hashes(np.stack([image.open(io.BytesIO(row["bytes"])) for part in columns for row in part]))

        assert len(duplicate_rows(hashes("train"), hashes("test"))) == 10

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda: validation_mask(torch.arange(9) % 2, 0.0, 0), ValueError, "validation_fraction is 0.0"),
            (lambda: validation_mask(torch.arange(9) % 2, 0.6, 0), ValueError, "validation_fraction is 0.6"),
            (lambda: low_shot_indices(torch.arange(4), 0.0, 0), ValueError, "fraction is 0.0"),
            (lambda: low_shot_indices(torch.arange(4), 1.1, 0), ValueError, "fraction is 1.1"),
            (lambda: image_hashes(torch.rand(2, 3)), TypeError, "images has dtype float32"),
        ],
    )
    def test_refuses_wrong_arguments(self, call, error, message):
        with pytest.raises(error, match=message):
            call()
