# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""End points, shapes and closed forms of the schedules."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsejepa_hf.training.schedules import cosine, linear, linear_warmup, warmup_steps


totals = st.integers(2, 10_000)
values = st.floats(-10, 10)


@pytest.mark.parametrize("schedule", [linear, cosine])
@given(total=totals, start=values, end=values)
def test_a_schedule_begins_at_its_start_and_ends_at_its_end_on_the_last_step(schedule, total, start, end):
    assert schedule(0, total, start, end) == pytest.approx(start, abs=1e-12)
    assert schedule(total - 1, total, start, end) == pytest.approx(end, abs=1e-12)
    assert schedule(total + 5, total, start, end) == pytest.approx(end, abs=1e-12)


@pytest.mark.parametrize("schedule", [linear, cosine])
@given(total=totals, start=values, end=values, step=st.integers(0, 9_998))
def test_a_schedule_moves_towards_its_end_and_never_past_it(schedule, total, start, end, step):
    step = step % (total - 1)
    here, later = schedule(step, total, start, end), schedule(step + 1, total, start, end)
    assert (later - here) * (end - start) >= -1e-12
    assert min(start, end) - 1e-12 <= here <= max(start, end) + 1e-12


@given(total=totals, start=values, end=values, step=st.integers(0, 9_999))
def test_closed_forms(total, start, end, step):
    share = (step % total) / (total - 1)
    assert linear(step % total, total, start, end) == pytest.approx((1 - share) * start + share * end, abs=1e-9)
    expected = 0.5 * (start + end) + 0.5 * (start - end) * math.cos(math.pi * share)
    assert cosine(step % total, total, start, end) == pytest.approx(expected, abs=1e-9)


def test_linear_and_cosine_meet_in_the_middle_and_the_cosine_starts_and_ends_flat():
    assert cosine(50, 101, 1.0, 0.0) == pytest.approx(linear(50, 101, 1.0, 0.0)) == pytest.approx(0.5)
    assert cosine(10, 101, 1.0, 0.0) > linear(10, 101, 1.0, 0.0)
    assert cosine(90, 101, 1.0, 0.0) < linear(90, 101, 1.0, 0.0)


@pytest.mark.parametrize("schedule", [linear, cosine])
def test_a_run_of_one_step_or_none_uses_the_start(schedule):
    assert schedule(0, 1, 0.3, 0.7) == pytest.approx(0.3)
    assert schedule(0, 0, 0.3, 0.7) == pytest.approx(0.3)


@given(length=st.integers(1, 1000))
def test_the_warm_up_rises_in_equal_parts_to_one_and_stays(length):
    rise = [linear_warmup(step, length) for step in range(length)]
    assert rise[0] == pytest.approx(1 / length)
    assert rise[-1] == 1.0 and linear_warmup(length + 7, length) == 1.0
    assert all(b - a == pytest.approx(1 / length) for a, b in zip(rise, rise[1:], strict=False))


def test_no_warm_up_is_full_strength_from_the_first_step():
    assert linear_warmup(0, 0) == 1.0


@given(percent=st.integers(0, 99), total=st.integers(0, 10_000))
def test_below_one_a_warm_up_is_a_share_of_the_run_rounded_up(percent, total):
    share = percent / 100
    length = warmup_steps(share, total)
    assert share * total <= length < share * total + 1


@given(steps=st.integers(1, 10_000), total=st.integers(0, 10_000))
def test_from_one_on_a_warm_up_is_a_number_of_steps_whatever_the_run(steps, total):
    assert warmup_steps(steps, total) == warmup_steps(float(steps), total) == steps
