# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Total correlation: closed forms, invariances, the identity of its parts, and groupings with known redundancy."""

import json

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsejepa_hf.interpret.groups import GroupStructure
from sparsejepa_hf.interpret.information import (
    decompose,
    feature_slices,
    grouping_redundancy,
    information_section,
    normal_scores,
    searched_grouping,
    shrunk_correlation,
    total_correlation,
    total_correlation_ksg,
)
from sparsejepa_hf.interpret.measures import NotMeasurable
from sparsejepa_hf.interpret.patches import PatchRecord


def equicorrelated(d: int, correlation: float) -> np.ndarray:
    return (1 - correlation) * np.eye(d) + correlation


def gaussian(covariance: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).multivariate_normal(np.zeros(len(covariance)), covariance, size=n)


def clustered(images: int, tokens: int, groups: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Variables that share a factor within their group and nothing across: (images, tokens, d) and the groups."""
    rng = np.random.default_rng(seed)
    assignment = np.repeat(np.arange(groups), size)
    factors = rng.normal(size=(images, tokens, groups))
    return factors[..., assignment] + rng.normal(size=(images, tokens, groups * size)), assignment


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("d", [2, 5])
def test_gaussian_estimates_meet_the_closed_form(d, correlation):
    data = gaussian(equicorrelated(d, correlation), 4000)
    # Of d variables that all correlate by r: det = (1 − r)^(d − 1) (1 + (d − 1) r).
    truth = -0.5 * ((d - 1) * np.log(1 - correlation) + np.log(1 + (d - 1) * correlation))
    assert total_correlation(data) == pytest.approx(truth, abs=0.06)
    assert total_correlation(data, "copula") == pytest.approx(truth, abs=0.06)
    assert total_correlation_ksg(data) == pytest.approx(truth, abs=0.1)


def test_nearest_neighbours_see_dependence_without_correlation():
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 3000)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.05 * rng.normal(size=(3000, 2))
    assert total_correlation(ring) < 0.01
    assert total_correlation_ksg(ring) > 1.0


def test_nearest_neighbours_meet_a_uniform_square_in_noise():
    # y = x + u with x, u uniform: h(y) − h(u). For u on [0, a], a <= 1, I = −log a + a/2.
    rng = np.random.default_rng(1)
    x, a = rng.uniform(size=4000), 0.25
    data = np.stack([x, x + a * rng.uniform(size=4000)], axis=1)
    assert total_correlation_ksg(data) == pytest.approx(-np.log(a) + a / 2, abs=0.06)


def test_estimates_do_not_depend_on_units_signs_or_order():
    data = gaussian(equicorrelated(4, 0.6), 500)
    changed = data[:, ::-1] * [1e-4, -3, 1e5, 7] + [0, 5, -1e3, 2]
    for estimate in (total_correlation, total_correlation_ksg, lambda x: total_correlation(x, "copula")):
        assert estimate(changed) == pytest.approx(estimate(data), rel=1e-6)


def test_the_copula_does_not_see_monotone_maps():
    data = gaussian(equicorrelated(3, 0.7), 400)
    assert total_correlation(np.exp(2 * data), "copula") == pytest.approx(total_correlation(data, "copula"), rel=1e-12)
    assert total_correlation(np.exp(2 * data)) < 0.8 * total_correlation(data)
    assert normal_scores(data).mean(axis=0) == pytest.approx(0, abs=1e-9)


def test_shrinkage_keeps_a_small_sample_near_independence():
    data = np.random.default_rng(0).normal(size=(60, 40))
    unshrunk = -0.5 * np.linalg.slogdet(np.corrcoef(data.T))[1]
    assert total_correlation(data) < 0.1 * unshrunk
    assert np.diag(shrunk_correlation(data)) == pytest.approx(1)


@st.composite
def covariances_and_partitions(draw):
    d = draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    factor = rng.normal(size=(d, d))
    scale = np.diag(10.0 ** rng.uniform(-2, 2, d))
    groups = draw(st.lists(st.integers(-2, 3), min_size=d, max_size=d))
    return scale @ (factor @ factor.T + 0.1 * np.eye(d)) @ scale, np.array(groups)


@settings(deadline=None, max_examples=200)
@given(covariances_and_partitions())
def test_total_is_what_lies_between_groups_and_within_them(case):
    covariance, assignment = case
    parts = decompose(covariance, assignment)
    assert parts.total == pytest.approx(parts.between + sum(parts.within), rel=1e-9, abs=1e-9)
    assert parts.between >= -1e-9 and min(parts.within) >= -1e-9
    assert 0 <= parts.within_share <= 1 + 1e-9


@settings(deadline=None, max_examples=50)
@given(covariances_and_partitions(), st.integers(0, 100))
def test_a_coarser_partition_has_less_between_groups(case, seed):
    covariance, assignment = case
    coarser = np.where(assignment == 3, 2, assignment)
    assert decompose(covariance, coarser).between <= decompose(covariance, assignment).between + 1e-9


def test_extreme_partitions():
    covariance = equicorrelated(5, 0.4)
    assert decompose(covariance, np.zeros(5)).between == pytest.approx(0, abs=1e-12)
    assert decompose(covariance, np.arange(5)).within == pytest.approx([0] * 5, abs=1e-12)


def test_a_grouping_that_holds_all_redundancy_is_told_from_random_ones():
    data, assignment = clustered(300, 4, groups=4, size=3)
    result = grouping_redundancy(data, assignment, num_draws=100, num_bootstrap=50)
    # Three variables of one factor correlate by 1/2.
    truth = -4 * 0.5 * np.log(0.5**2 * 2)
    assert result.decomposition.total == pytest.approx(truth, rel=0.1)
    assert result.share > 0.97 and result.percentile == 100 and result.p_value == pytest.approx(1 / 101)
    assert result.share_interval[0] > max(result.random_shares)
    assert result.gathered == pytest.approx(1) and result.group_sizes == (3, 3, 3, 3)
    assert result.bias < 0.05 * truth


def test_a_random_grouping_is_one_of_the_random_groupings():
    data, assignment = clustered(300, 2, groups=4, size=4)
    rng = np.random.default_rng(5)
    percentiles = [
        grouping_redundancy(data, rng.permutation(assignment), num_draws=60, num_bootstrap=1).percentile
        for _ in range(20)
    ]
    assert 25 < np.mean(percentiles) < 75


def test_a_grouping_that_parts_what_belongs_together_is_below_chance():
    data, assignment = clustered(300, 2, groups=4, size=4)
    parted = np.tile(np.arange(4), 4)
    result = grouping_redundancy(data, parted, num_draws=100, num_bootstrap=20)
    assert result.percentile == 0 and result.gathered < 0 and result.p_value == 1


def test_copies_of_patches_do_not_narrow_the_interval():
    # One value an image, repeated on 8 patches, says no more than one patch: images are what is resampled.
    data, assignment = clustered(250, 1, groups=3, size=3)
    once = grouping_redundancy(data, assignment, num_draws=1, num_bootstrap=400)
    copied = grouping_redundancy(data.repeat(8, axis=1), assignment, num_draws=1, num_bootstrap=400)
    widths = [np.diff(result.total_interval)[0] for result in (once, copied)]
    assert widths[1] == pytest.approx(widths[0], rel=0.25)
    assert copied.bias == pytest.approx(once.bias, rel=0.8)


def test_the_interval_covers_the_truth():
    covariance = equicorrelated(4, 0.5)
    truth, hits = decompose(covariance, np.arange(4)).total, 0
    for seed in range(60):
        data = gaussian(covariance, 200, seed)
        low, high = grouping_redundancy(data, [0, 0, 1, 1], num_draws=1, num_bootstrap=200, seed=seed).total_interval
        hits += low <= truth <= high
    assert hits >= 52


def test_bias_is_near_its_formula():
    data = np.random.default_rng(0).normal(size=(400, 1, 20)) + np.random.default_rng(1).normal(size=(400, 1, 1))
    result = grouping_redundancy(data, np.repeat([0, 1], 10), num_draws=1, num_bootstrap=1)
    assert result.bias == pytest.approx(20 * 19 / (4 * 400), rel=0.35)


def test_sums_of_others_are_seen_through_noise():
    # x and its copy, through noise of a share s each, correlate by 1 − s.
    x = np.random.default_rng(0).normal(size=(2000, 3))
    data = np.column_stack([x, x])
    result = grouping_redundancy(data, [0, 1, 2, 0, 1, 2], min_noise=0.1, num_draws=50, num_bootstrap=20)
    assert result.rank == 3 and result.noise == 0.1
    assert result.decomposition.total == pytest.approx(-3 * 0.5 * np.log(1 - 0.9**2), rel=0.01)
    assert result.share > 0.99


def test_the_search_finds_blocks_of_equal_size():
    blocks = np.repeat(np.arange(4), 3)
    correlation = np.where(blocks[:, None] == blocks, 0.5, 0.0) + 0.5 * np.eye(12)
    for seed in range(10):
        found = searched_grouping(correlation, np.random.default_rng(seed).permutation(blocks))
        assert decompose(correlation, found).within_share == pytest.approx(1)


@settings(deadline=None, max_examples=50)
@given(covariances_and_partitions())
def test_the_search_keeps_sizes_and_never_loses(case):
    covariance, start = case
    deviation = np.sqrt(np.diag(covariance))
    strength = (covariance / np.outer(deviation, deviation)) ** 2
    before = start.copy()
    found = searched_grouping(covariance / np.outer(deviation, deviation), start)
    assert sorted(np.bincount(found)) == sorted(np.unique(start, return_counts=True)[1])
    assert (start == before).all()

    def inside(groups):
        return strength[groups[:, None] == groups].sum()

    assert inside(found) >= inside(start) - 1e-9


def test_the_same_seed_gives_the_same_numbers():
    data, assignment = clustered(100, 20, groups=2, size=3)
    runs = [grouping_redundancy(data, assignment, num_draws=5, num_bootstrap=5, seed=4) for _ in range(2)]
    assert runs[0] == runs[1] and runs[0].num_tokens == 16


def test_feature_slices():
    assert feature_slices(6, 3).tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="do not divide"):
        feature_slices(7, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.full((10, 2), np.nan), "NaN"),
        (np.ones((10, 2)), "constant"),
        (np.eye(3), "too few"),
        (np.zeros(3), "expected"),
    ],
)
def test_bad_tables_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        total_correlation(data)


def test_bad_arguments_are_refused():
    data = np.random.default_rng(0).normal(size=(50, 3))
    with pytest.raises(ValueError, match="estimator is 'ksg'"):
        total_correlation(data, "ksg")
    with pytest.raises(ValueError, match="num_neighbors is 50"):
        total_correlation_ksg(data, 50)
    with pytest.raises(ValueError, match="1 columns"):
        total_correlation_ksg(data[:, :1])
    with pytest.raises(ValueError, match="coincide"):
        total_correlation_ksg(np.sign(data))
    with pytest.raises(ValueError, match="span only 3 dimensions"):
        total_correlation(np.column_stack([data, data.sum(axis=1)]))
    with pytest.raises(ValueError, match="min_noise is 0"):
        grouping_redundancy(data, [0, 0, 1], min_noise=0)
    with pytest.raises(ValueError, match="positive definite"):
        decompose(np.ones((2, 2)), [0, 1])
    with pytest.raises(ValueError, match="shape"):
        decompose(np.eye(3), [0, 1])
    with pytest.raises(ValueError, match="at least 1 each"):
        grouping_redundancy(data, [0, 0, 1], num_draws=0)
    with pytest.raises(ValueError, match="expected \\(n_images"):
        grouping_redundancy(data, [0, 1])


@pytest.mark.parametrize(
    ("images", "assignment", "message"),
    [
        (3, [0, 0, 1, 1], "too few"),
        (50, [0, 0, 0, 0], "nothing can be compared"),
        (50, [0, 1, 2, 3], "nothing can be compared"),
    ],
)
def test_what_cannot_be_measured_is_said(images, assignment, message):
    data = np.random.default_rng(0).normal(size=(images, 5, 4))
    with pytest.raises(NotMeasurable, match=message):
        grouping_redundancy(data, assignment)


def record(latents: np.ndarray | None, features: np.ndarray, groups: int = 2) -> PatchRecord:
    images, side = len(features), round(features.shape[1] ** 0.5)
    maps = None
    if latents is not None:
        maps = np.abs(latents[..., :groups]).transpose(0, 2, 1).reshape(images, groups, side, side)
    return PatchRecord(
        pixel_values=np.zeros((images, 3, 4, 4), np.uint8),
        features=features,
        latents=latents,
        maps=maps,
        labels=None,
        label_names=(),
        masks=None,
        table=Dataset.from_dict({}),
    )


def test_the_section_tells_gathered_redundancy_from_chance():
    latents, assignment = clustered(200, 4, groups=4, size=8)
    features = clustered(200, 4, groups=4, size=8, seed=1)[0]
    importance = np.eye(4)[assignment].T.copy()
    importance[:, 0] = 0  # A dead latent.
    parted = features[..., np.arange(32).reshape(4, 8).T.ravel()]
    section = information_section(
        record(latents, features, groups=4),
        GroupStructure(importance, importance),
        baseline=record(None, parted),
        num_draws=100,
        num_bootstrap=20,
    )
    verdicts = [measure.verdict for measure in section.measures[:4]]
    assert verdicts[:3] == ["more than chance"] * 3 and verdicts[3] == "less than chance"
    assert section.details["latents_left_out"] == 1 and section.details["latents_gaussian"]["noise"] >= 0.01
    assert "more than chance" in section.finding and "less than chance" in section.finding
    json.dumps(section.to_dict(), allow_nan=False)


def test_the_section_says_what_it_cannot_measure():
    latents, assignment = clustered(30, 4, groups=2, size=4)
    importance = np.eye(2)[assignment].T
    with pytest.raises(NotMeasurable, match="no groups"):
        information_section(record(None, latents), None)
    section = information_section(record(latents, latents), GroupStructure(0 * importance, 0 * importance))
    assert "0 of 8 variables are in a group" in section.finding
    assert len(section.measures) == 3  # Features, and activations by two estimators.
    other = record(None, latents[..., :6])
    section = information_section(record(latents, latents), GroupStructure(importance, importance), baseline=other)
    assert "The baseline has 6 features and the model 8" in section.finding
    few = record(latents[:4], latents[:4])
    with pytest.raises(NotMeasurable, match="too few"):
        information_section(few, GroupStructure(importance, importance))
