# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Paired statistics against scipy, their coverage, and what the sentences claim."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sparsejepa_hf.evaluation import paired_difference, summarize, verdict


VALUES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8)


def _by_seed(values, first=0):
    return {first + i: float(value) for i, value in enumerate(values)}


def _difference(values, **options):
    return paired_difference(_by_seed(np.zeros(len(values))), _by_seed(values), **options)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=9))
def test_summary_is_the_mean_and_the_unbiased_spread(values):
    summary = summarize(values)
    assert summary.mean == pytest.approx(np.mean(values), abs=1e-12) and summary.n == len(values)
    assert summary.std == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    assert summarize(_by_seed(values)) == summary


def test_one_value_has_no_spread_and_none_is_refused():
    summary = summarize([0.4])
    assert (summary.mean, summary.std, summary.n) == (0.4, None, 1)
    with pytest.raises(ValueError, match="at least one"):
        summarize([])
    with pytest.raises(ValueError, match="nan"):
        summarize([1.0, math.nan])


@given(VALUES, st.floats(0.5, 0.999))
def test_interval_and_p_value_are_those_of_scipy(pairs, confidence):
    baseline, method = np.array(pairs).T
    gaps = method - baseline
    result = paired_difference(_by_seed(baseline), _by_seed(method), confidence)
    assert result.mean == pytest.approx(gaps.mean(), abs=1e-12)
    if gaps.std() < 1e-9:
        return
    low, high = stats.t.interval(confidence, len(gaps) - 1, loc=gaps.mean(), scale=stats.sem(gaps))
    assert (result.low, result.high) == pytest.approx((low, high))
    assert result.p_value == pytest.approx(stats.ttest_rel(method, baseline).pvalue, abs=1e-12)
    assert result.is_larger_than_spread == (abs(gaps.mean()) > gaps.std(ddof=1))


@given(VALUES)
def test_exchanging_the_methods_mirrors_the_interval(pairs):
    baseline, method = (_by_seed(values) for values in np.array(pairs).T)
    there, back = paired_difference(baseline, method), paired_difference(method, baseline)
    assert (there.mean, there.low, there.high) == pytest.approx((-back.mean, -back.high, -back.low), abs=1e-12)
    assert there.p_value == pytest.approx(back.p_value)


# Nearly equal differences are what this is about.
@pytest.mark.filterwarnings("ignore:Precision loss occurred")
def test_what_is_common_to_the_seeds_cancels():
    seeds = _by_seed([0.1, 0.5, 0.9])
    result = paired_difference(seeds, {seed: value + 0.01 for seed, value in seeds.items()})
    assert result.std == pytest.approx(0, abs=1e-12) and result.low == pytest.approx(result.high)
    assert result.mean == pytest.approx(0.01) and result.p_value < 1e-6


def test_pairs_are_made_by_seed_and_not_by_position():
    there = paired_difference({0: 0.1, 1: 0.2, 2: 0.4}, {2: 0.5, 0: 0.3, 1: 0.4})
    assert there.mean == pytest.approx(0.5 / 3) and there.std == pytest.approx(np.std([0.2, 0.2, 0.1], ddof=1))


def test_intervals_hold_the_true_difference_as_often_as_they_say():
    generator = np.random.default_rng(0)
    covered = [
        result.low <= 0.3 <= result.high
        for result in (_difference(row) for row in 0.3 + 0.1 * generator.standard_normal((1500, 3)))
    ]
    # Three standard errors of a share of 0.95 over 1,500 draws.
    assert np.mean(covered) == pytest.approx(0.95, abs=0.017)


def test_one_seed_gives_no_interval_and_says_so():
    result = paired_difference({7: 0.40}, {7: 0.42})
    assert result.mean == pytest.approx(0.02) and result.n == 1
    assert result.std is result.low is result.high is result.p_value is result.is_larger_than_spread is None
    assert verdict(result) == (
        "not decided: +2.0 points from one seed, which gives no interval; run at least two seeds"
    )


def test_unmatched_seeds_and_wrong_values_are_refused():
    with pytest.raises(ValueError, match="only in baseline: 1; only in method: 2, 3"):
        paired_difference({0: 1.0, 1: 1.0}, {0: 1.0, 2: 1.0, 3: 1.0})
    with pytest.raises(ValueError, match="at least one"):
        paired_difference({}, {})
    with pytest.raises(ValueError, match="inf"):
        paired_difference({0: 1.0}, {0: math.inf})
    with pytest.raises(ValueError, match="confidence is 95"):
        paired_difference({0: 1.0}, {0: 1.0}, 95)


def test_equal_differences_have_no_width():
    same, shifted = _difference([0.0, 0.0, 0.0]), _difference([0.5, 0.5])
    assert (same.low, same.high, same.p_value, same.sign) == (0, 0, 1, 0)
    assert (shifted.low, shifted.high, shifted.p_value, shifted.sign) == (0.5, 0.5, 0, 1)


def test_verdicts():
    better = _difference([0.010, 0.012, 0.014])
    assert verdict(better) == "better by 1.2 points (95 % CI 0.7 to 1.7, n = 3)"
    worse = _difference([-0.010, -0.012, -0.014])
    assert verdict(worse) == "worse by 1.2 points (95 % CI 0.7 to 1.7, n = 3)"
    unclear = _difference([0.01, -0.02, 0.02], confidence=0.9)
    assert verdict(unclear).startswith("no difference shown: +0.3 points (90 % CI -3.2 to 3.8, n = 3)")


def test_lower_errors_are_better():
    smaller = _difference([-0.10, -0.12, -0.14])
    sentence = verdict(smaller, scale=1, unit="objects", higher_is_better=False)
    assert sentence == "better by 0.1 objects (95 % CI 0.1 to 0.2, n = 3)"
    assert verdict(_difference([0.1, 0.12]), higher_is_better=False).startswith("no difference shown: -11.0 points")


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=6), st.booleans())
def test_verdict_agrees_with_the_interval(values, higher_is_better):
    result = _difference(values)
    word = {1: "better", 0: "no difference shown", -1: "worse"}[result.sign * (1 if higher_is_better else -1)]
    assert verdict(result, higher_is_better=higher_is_better).startswith(word)
