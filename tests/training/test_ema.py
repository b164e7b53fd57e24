# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The EMA update against its closed form."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsejepa_hf.training import ema_update_


SHAPES = [(3,), (2, 4), (), (1, 2, 3)]
momenta = st.floats(0.0, 0.9999)


def tensors(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


@given(st.lists(momenta, min_size=1, max_size=8), st.integers(0, 2**31))
def test_n_steps_of_a_schedule_equal_the_closed_form(schedule, seed):
    """θ̄_n = Π_i m_i · θ̄_0 + Σ_i (1 − m_i) · Π_{j>i} m_j · θ_i."""
    targets = tensors(seed)
    sources = [tensors(seed + 1 + step) for step in range(len(schedule))]
    start = [t.clone() for t in targets]
    for momentum, source in zip(schedule, sources, strict=True):
        ema_update_(targets, source, momentum)
    for index, target in enumerate(targets):
        expected = start[index] * torch.tensor(schedule, dtype=torch.float64).prod()
        for step, momentum in enumerate(schedule):
            later = torch.tensor(schedule[step + 1 :], dtype=torch.float64).prod()
            expected = expected + (1 - momentum) * later * sources[step][index]
        torch.testing.assert_close(target, expected, rtol=1e-9, atol=1e-9)


@given(momenta, st.integers(0, 2**31), st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_target_equal_to_its_source_does_not_move(momentum, seed, dtype):
    targets, sources = tensors(seed, dtype), tensors(seed, dtype)
    for _ in range(3):
        ema_update_(targets, sources, momentum)
    assert all(torch.equal(target, source) for target, source in zip(targets, sources, strict=True))


@given(momenta, st.integers(1, 20))
def test_the_distance_to_a_constant_source_shrinks_by_the_momentum_each_step(momentum, steps):
    targets, sources = tensors(0), tensors(1)
    distances = [target - source for target, source in zip(targets, sources, strict=True)]
    for _ in range(steps):
        ema_update_(targets, sources, momentum)
    for target, source, distance in zip(targets, sources, distances, strict=True):
        torch.testing.assert_close(target - source, momentum**steps * distance, rtol=1e-9, atol=1e-12)


@given(momenta, st.integers(0, 2**31))
def test_the_fused_update_equals_a_loop_over_tensors(momentum, seed):
    targets, sources = tensors(seed, torch.float32), tensors(seed + 1, torch.float32)
    looped = [target.clone().lerp_(source, 1.0 - momentum) for target, source in zip(targets, sources, strict=True)]
    ema_update_(targets, sources, momentum)
    assert all(torch.equal(target, expected) for target, expected in zip(targets, looped, strict=True))


def test_momentum_zero_copies_the_source_and_leaves_it_alone():
    targets, sources = tensors(0), tensors(1)
    kept = [s.clone() for s in sources]
    ema_update_(targets, sources, 0.0)
    assert all(torch.equal(t, s) and torch.equal(s, k) for t, s, k in zip(targets, sources, kept, strict=True))


def test_bfloat16_is_the_exact_average_rounded():
    targets, sources = tensors(0, torch.bfloat16), tensors(1, torch.bfloat16)
    exact = [0.75 * t.double() + 0.25 * s.double() for t, s in zip(targets, sources, strict=True)]
    ema_update_(targets, sources, 0.75)
    for target, value in zip(targets, exact, strict=True):
        assert target.dtype == torch.bfloat16
        torch.testing.assert_close(target.double(), value, rtol=2**-7, atol=2**-8)


def test_parameters_are_updated_without_a_gradient_graph():
    target, source = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.ones(3))
    ema_update_([target], [source], 0.5)
    assert target.grad_fn is None
    assert torch.equal(target, torch.full((3,), 0.5))


@pytest.mark.parametrize("momentum", [1.0, 1.5, -0.1, float("nan")])
def test_a_momentum_outside_zero_to_one_is_refused_and_nothing_moves(momentum):
    targets = tensors(0)
    with pytest.raises(ValueError, match=rf"momentum is {momentum}; expected a number in \[0, 1\)"):
        ema_update_(targets, tensors(1), momentum)
    assert all(torch.equal(t, s) for t, s in zip(targets, tensors(0), strict=True))
