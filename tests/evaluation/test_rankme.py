# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""RankMe and feature spread: known values, invariances and bounds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsejepa_hf.evaluation import feature_std, rankme


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


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, n=SIZES, dim=SIZES, rank=SIZES, double=st.booleans())
def test_bounds(seed, n, dim, rank, double):
    features = _matrix(seed, n, dim, rank)
    value = rankme(features if double else features.float()).item()
    assert 1 - 1e-5 <= value <= min(n, dim) * (1 + 1e-4)
    assert value <= min(n, dim, rank) * (1 + 1e-3)


@settings(max_examples=50, deadline=None)
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


@settings(max_examples=50, deadline=None)
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
