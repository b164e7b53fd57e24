# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The proximal step is the proximal map of the group lasso: exact zeros, shrunk norms, kept directions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsejepa_hf.modeling_sparsejepa import group_lasso
from sparsejepa_hf.training import proximal_step_


shapes = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6))
seeds = st.integers(0, 2**31)
thresholds = st.floats(1e-6, 5.0)


def random_weight(seed, shape, zero_share=0.0):
    """W in float64 whose columns' norms range from far below to far above one."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    scale = 10.0 ** (4 * torch.rand(shape[0], 1, shape[2], generator=generator, dtype=torch.float64) - 3)
    keep = torch.rand(shape[0], 1, shape[2], generator=generator) >= zero_share
    return weight * scale * keep


def prox(weight, threshold):
    result = weight.clone()
    proximal_step_(result, threshold)
    return result


def column_norms(weight):
    return torch.linalg.vector_norm(weight, dim=1)


@given(seeds, shapes, thresholds)
def test_columns_within_the_threshold_become_zero_and_others_lose_it_from_their_norm(seed, shape, threshold):
    before = random_weight(seed, shape)
    after = prox(before, threshold)
    norms = column_norms(before)
    near_zero = norms <= threshold
    assert torch.all(after.transpose(1, 2)[near_zero] == 0)
    torch.testing.assert_close(column_norms(after)[~near_zero], norms[~near_zero] - threshold)
    direction_before = (before / norms[:, None]).transpose(1, 2)[~near_zero]
    shrunk_norms = column_norms(after)[:, None]
    direction_after = (after / shrunk_norms).transpose(1, 2)[~near_zero]
    # A column barely above the threshold keeps few digits of its direction.
    well_above = (norms > 1.001 * threshold)[~near_zero]
    torch.testing.assert_close(direction_after[well_above], direction_before[well_above])


@given(seeds, shapes, thresholds)
def test_the_result_satisfies_the_subgradient_condition_of_the_proximal_map(seed, shape, threshold):
    """V = prox(W) iff W − V = t·V/‖V‖ in the columns of V that are not zero, and ‖W‖ ≤ t in those that are."""
    weight = random_weight(seed, shape)
    result = prox(weight, threshold)
    norms = column_norms(result)
    alive = norms > 0
    pull = (weight - result).transpose(1, 2)
    expected = threshold * (result / norms.clamp_min(1e-300)[:, None]).transpose(1, 2)
    torch.testing.assert_close(pull[alive], expected[alive], rtol=1e-6, atol=1e-9)
    assert torch.all(column_norms(weight)[~alive] <= threshold * (1 + 1e-12))


@given(seeds, shapes, thresholds, st.sampled_from([1e-3, 0.1, 1.0, 10.0]))
def test_no_perturbation_lowers_the_proximal_objective(seed, shape, threshold, size):
    """½‖V − W‖² + t·Ω(V) is 1-strongly convex: around its minimum it rises by at least ½‖δ‖²."""
    weight = random_weight(seed, shape, zero_share=0.2)
    best = prox(weight, threshold)

    def objective(candidate):
        penalty = torch.linalg.vector_norm(candidate, dim=1).sum()
        return 0.5 * (candidate - weight).square().sum() + threshold * penalty

    generator = torch.Generator().manual_seed(seed + 1)
    for _ in range(5):
        change = size * torch.randn(shape, generator=generator, dtype=torch.float64)
        rise = objective(best + change) - objective(best)
        assert rise >= 0.5 * change.square().sum() * (1 - 1e-9) - 1e-9 * objective(best)


@given(seeds, shapes, st.floats(1e-4, 0.5), st.integers(1, 12))
def test_n_steps_shrink_each_norm_by_n_thresholds_until_it_is_zero(seed, shape, threshold, steps):
    """So Σ λη over a run, the logged sparsity_pull, is what a column's norm must exceed to survive."""
    before = random_weight(seed, shape)
    after = before.clone()
    for _ in range(steps):
        proximal_step_(after, threshold)
    expected = (column_norms(before) - steps * threshold).clamp_min(0.0)
    torch.testing.assert_close(column_norms(after), expected, rtol=1e-9, atol=1e-9)


@given(seeds, shapes, st.floats(0.0, 5.0))
def test_zero_columns_stay_exactly_zero_without_nan(seed, shape, threshold):
    before = random_weight(seed, shape, zero_share=0.5).float()
    after = prox(before, threshold)
    assert torch.isfinite(after).all()
    assert torch.all(after[before == 0] == 0)


@pytest.mark.parametrize("tiny", [1e-45, 1e-40, 1e-30])
def test_columns_of_vanishing_norm_become_zero_not_nan(tiny):
    weight = torch.full((1, 2, 3), tiny)
    proximal_step_(weight, 1e-3)
    assert torch.equal(weight, torch.zeros(1, 2, 3))


def test_a_huge_threshold_empties_w_without_nan():
    weight = random_weight(0, (2, 3, 4), zero_share=0.3).float()
    proximal_step_(weight, 1e30)
    assert torch.equal(weight, torch.zeros_like(weight))


@given(seeds, shapes)
def test_threshold_zero_is_the_identity(seed, shape):
    weight = random_weight(seed, shape)
    assert torch.equal(prox(weight, 0.0), weight)


@given(seeds, st.integers(2, 6), thresholds)
def test_thresholding_shards_along_groups_equals_thresholding_the_whole(seed, groups, threshold):
    """A column lies within one group, so processes that hold different groups need not talk."""
    weight = random_weight(seed, (groups, 3, 4))
    sharded = weight.clone()
    for shard in sharded.chunk(2):
        proximal_step_(shard, threshold)
    assert torch.equal(sharded, prox(weight, threshold))


@given(seeds, shapes, thresholds)
def test_the_penalty_of_the_result_is_what_is_left_of_each_norm(seed, shape, threshold):
    weight = random_weight(seed, shape)
    left = (column_norms(weight) - threshold).clamp_min(0.0).sum()
    torch.testing.assert_close(group_lasso(prox(weight, threshold)).double(), left, rtol=1e-4, atol=1e-5)


def test_it_leaves_no_trace_in_the_gradient_graph():
    weight = torch.nn.Parameter(torch.ones(1, 2, 2))
    proximal_step_(weight, 0.1)
    assert weight.grad_fn is None and weight.requires_grad


def test_a_negative_threshold_is_refused():
    with pytest.raises(ValueError, match=r"threshold is -0.1; expected .* at least 0"):
        proximal_step_(torch.ones(1, 2, 2), -0.1)
