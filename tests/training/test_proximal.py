# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The group lasso on W: a step is the proximal map in the optimizer's metric, and their fixed point the minimiser."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import MultiTaskLasso
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from sparsejepa_hf import SparseJEPAConfig
from sparsejepa_hf.modeling_sparsejepa import SparseJEPAForPreTraining, group_lasso
from sparsejepa_hf.training import kkt_residual, proximal_step_
from sparsejepa_hf.training.proximal import (
    AVERAGE_GRADIENT,
    group_lasso_step_,
    hold_scales_,
    optimizer_metric,
    require_known_metric,
    settle_columns_,
)


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


@given(seeds, st.integers(2, 6), thresholds)
def test_settling_and_the_step_in_a_metric_need_no_other_group_either(seed, groups, threshold):
    shape = (groups, 3, 4)
    weight, metric = random_weight(seed, shape), random_metric(seed, shape, 3.0)
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(seed + 3), dtype=torch.float64)
    sharded = weight.clone()
    for parts in zip(sharded.chunk(2), metric.chunk(2), gradient.chunk(2), strict=True):
        shard, shared, average = parts
        proximal_step_(shard, threshold, shared)
        settle_columns_(shard, average, 0.5, 0.1, 10, shared)
    proximal_step_(weight, threshold, metric)
    settle_columns_(weight, gradient, 0.5, 0.1, 10, metric)
    assert torch.equal(sharded, weight)


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


# ---- in the optimizer's metric ----


def random_metric(seed, shape, decades):
    """C in float64, spread over the given powers of ten."""
    generator = torch.Generator().manual_seed(seed + 2)
    return 10.0 ** (-decades * torch.rand(shape, generator=generator, dtype=torch.float64))


@given(seeds, shapes, thresholds, st.floats(0.0, 6.0))
def test_in_any_metric_the_subgradient_condition_holds(seed, shape, threshold, decades):
    """V = prox(W) iff C⊙(W − V) = t·V/‖V‖ in the columns of V that are not zero, and ‖C⊙W‖ ≤ t in those that are."""
    weight, metric = random_weight(seed, shape, zero_share=0.2), random_metric(seed, shape, decades)
    result = weight.clone()
    proximal_step_(result, threshold, metric)
    norms = column_norms(result)
    alive = norms > 0
    pull = (metric * (weight - result)).transpose(1, 2)[alive]
    expected = threshold * (result / norms.clamp_min(1e-300)[:, None]).transpose(1, 2)[alive]
    torch.testing.assert_close(pull, expected, rtol=1e-6, atol=1e-6 * threshold)
    assert torch.all(column_norms(metric * weight)[~alive] <= threshold * (1 + 1e-12))


@given(seeds, shapes, thresholds)
def test_a_metric_that_a_column_shares_divides_its_threshold(seed, shape, threshold):
    weight = random_weight(seed, shape)
    shared = random_metric(seed, (shape[0], 1, shape[2]), 3.0)
    result, expected = weight.clone(), weight.clone()
    proximal_step_(result, threshold, shared.expand(shape))
    for g in range(shape[0]):
        for j in range(shape[2]):
            column = expected[g : g + 1, :, j : j + 1]
            proximal_step_(column, threshold / float(shared[g, 0, j]))
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-12)


def test_extreme_metrics_make_no_nan():
    weight = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    weight[0, :, 0] = 0.0
    for size in (1e-8, 1.0, 1e4):
        for threshold in (1e-12, 1e-6, 1.0, 1e12):
            result = weight.clone()
            proximal_step_(result, threshold, torch.full_like(weight, size))
            assert torch.isfinite(result).all() and torch.all(column_norms(result) <= column_norms(weight))
            assert torch.all(result[0, :, 0] == 0)


@pytest.mark.parametrize("kind", ["fused", "foreach", "for loop"])
def test_the_metric_is_what_adam_divides_by(kind):
    """W_new − W_old = −η·m̂/C."""
    weight = torch.nn.Parameter(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)))
    optimizer = torch.optim.AdamW(
        [weight], lr=0.1, betas=(0.9, 0.95), weight_decay=0.0, fused=kind == "fused", foreach=kind == "foreach"
    )
    first_moment = torch.zeros_like(weight)
    for step in range(1, 5):
        weight.grad = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(step))
        first_moment.lerp_(weight.grad, 0.1)
        before = weight.detach().clone()
        optimizer.step()
        metric = optimizer_metric(optimizer, optimizer.param_groups[0])
        expected = -0.1 * first_moment / (1 - 0.9**step) / metric
        torch.testing.assert_close(weight.detach() - before, expected, rtol=1e-4, atol=1e-6)


def test_the_metric_of_sgd_is_the_identity():
    weight = torch.nn.Parameter(torch.ones(1, 1, 1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert optimizer_metric(optimizer, optimizer.param_groups[0]) is None


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.RMSprop(p),
        lambda p: torch.optim.Adagrad(p),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, amsgrad=True),
    ],
)
def test_an_optimizer_with_another_metric_is_refused(make):
    optimizer = make([torch.nn.Parameter(torch.ones(1, 1, 1))])
    with pytest.raises(ValueError, match=rf"{type(optimizer).__name__}.*known here for Adam and AdamW.*penalty"):
        require_known_metric(optimizer)


# ---- the minimiser ----


class Regression:
    """½/n·‖Y_g − X·W⁽ᵍ⁾ᵀ‖² in each of two groups, with a few true columns, and its group-lasso solution."""

    def __init__(self, sparsity_weight, samples=400, latents=12, size=3):
        generator = np.random.default_rng(0)
        mixing = np.eye(latents) + 0.3 * generator.standard_normal((latents, latents))
        self.inputs = generator.standard_normal((samples, latents)) @ mixing
        true = generator.standard_normal((2, size, latents)) * (generator.random((2, 1, latents)) < 0.4)
        self.outputs = np.einsum("nk,gpk->gnp", self.inputs, true) + 0.5 * generator.standard_normal(
            (2, samples, size)
        )
        # MultiTaskLasso minimises 1/(2n)·‖Y − X·Wᵀ‖² + λ·Σ_j ‖W_{·,j}‖₂, a group by itself.
        lasso = MultiTaskLasso(alpha=sparsity_weight, fit_intercept=False, tol=1e-10, max_iter=100_000)
        self.solution = torch.stack([torch.from_numpy(lasso.fit(self.inputs, y).coef_.copy()) for y in self.outputs])
        self.inputs, self.outputs = torch.from_numpy(self.inputs), torch.from_numpy(self.outputs)

    def gradient(self, weight, rows=slice(None)):
        """∂/∂W of the loss of these samples."""
        inputs, outputs = self.inputs[rows], self.outputs[:, rows]
        error = torch.einsum("nk,gpk->gnp", inputs, weight) - outputs
        return torch.einsum("gnp,nk->gpk", error, inputs) / len(inputs)


def minimise(problem, sparsity_weight, make_optimizer, steps, batch=None, support_steps=None):
    """W and the running average of its gradient after the given steps as the trainer takes them, η falling to zero."""
    weight = torch.nn.Parameter(
        torch.randn(problem.solution.shape, generator=torch.Generator().manual_seed(1)).double()
    )
    optimizer = make_optimizer([weight])
    peak = optimizer.param_groups[0]["lr"]
    generator = torch.Generator().manual_seed(2)
    for step in range(steps):
        group = optimizer.param_groups[0]
        group["lr"] = rate = peak * 0.5 * (1 + np.cos(np.pi * step / steps))
        rows = slice(None) if batch is None else torch.randint(len(problem.inputs), (batch,), generator=generator)
        weight.grad = problem.gradient(weight.detach(), rows)
        optimizer.step()
        if support_steps is None:
            proximal_step_(weight, rate * sparsity_weight, optimizer_metric(optimizer, group))
        else:
            group_lasso_step_(optimizer, group, sparsity_weight, support_steps)
    return weight.detach(), optimizer.state[weight].get(AVERAGE_GRADIENT)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05)


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=0.02, betas=(0.9, 0.95), weight_decay=0.0)


def same_support(weight, solution):
    return torch.equal(column_norms(weight) > 0, column_norms(solution) > 1e-9)


@pytest.mark.parametrize(
    ("sparsity_weight", "support_steps"), [(0.1, 100), (0.4, None), (1.0, 100)], ids=["small", "step alone", "large"]
)
@pytest.mark.parametrize("make_optimizer", [sgd, adam])
def test_the_iteration_converges_to_the_solution_of_a_convex_solver(sparsity_weight, make_optimizer, support_steps):
    """At one λ whichever the optimizer, its learning rate and the length of the run."""
    problem = Regression(sparsity_weight)
    zeros = column_norms(problem.solution) == 0
    assert zeros.any() and not zeros.all()
    weight, _ = minimise(problem, sparsity_weight, make_optimizer, 2_000, support_steps=support_steps)
    assert same_support(weight, problem.solution)
    torch.testing.assert_close(weight, problem.solution, rtol=1e-2, atol=2e-3)
    assert kkt_residual(weight, problem.gradient(weight), sparsity_weight).max() < 0.02 * sparsity_weight


def test_the_step_in_the_wrong_metric_does_not():
    """Why the metric matters: without it, λ on the gradient's scale hardly does anything against Adam."""
    problem, sparsity_weight = Regression(0.4), 0.4
    weight = torch.nn.Parameter(
        torch.randn(problem.solution.shape, generator=torch.Generator().manual_seed(1)).double()
    )
    optimizer = adam([weight])
    for _ in range(2_000):
        weight.grad = problem.gradient(weight.detach())
        optimizer.step()
        proximal_step_(weight, 0.02 * sparsity_weight)
    assert not same_support(weight, problem.solution)


@pytest.mark.parametrize("make_optimizer", [sgd, adam])
def test_under_the_noise_of_small_batches_the_average_gradient_finds_the_support(make_optimizer):
    """The step alone leaves columns that belong at zero moving about it; what tells them is the average."""
    problem, sparsity_weight = Regression(0.4), 0.4
    plain, _ = minimise(problem, sparsity_weight, make_optimizer, 2_000, batch=4)
    settled, average = minimise(problem, sparsity_weight, make_optimizer, 2_000, batch=4, support_steps=200)
    belongs_at_zero = column_norms(problem.solution) == 0
    margin = column_norms(problem.gradient(problem.solution)) < 0.8 * sparsity_weight
    clear = belongs_at_zero & margin
    assert (column_norms(plain) == 0)[clear].double().mean() < 0.9
    assert (column_norms(settled) == 0)[clear].all()
    large = column_norms(problem.solution) > 0.1
    assert (column_norms(settled) > 0)[large].all()
    # The optimality conditions, by the average that a run has at hand.
    assert column_norms(average)[column_norms(settled) == 0].max() <= sparsity_weight
    kept = kkt_residual(settled, average, sparsity_weight)[column_norms(settled) > 0]
    assert kept.median() < 0.5 * sparsity_weight


def test_a_gradient_that_overflowed_is_left_out_of_the_average():
    """As a fused optimizer under fp16's loss scaling leaves the step out."""
    weight = torch.nn.Parameter(torch.ones(1, 2, 3))
    optimizer = torch.optim.AdamW([weight], lr=0.0)
    for value in (2.0, math.nan, 4.0):
        weight.grad = torch.full_like(weight, value)
        optimizer.step()
        group_lasso_step_(optimizer, optimizer.param_groups[0], 0.0, support_steps=1)
        if math.isnan(value):
            assert torch.equal(optimizer.state[weight][AVERAGE_GRADIENT], torch.full_like(weight, 2.0))
    assert torch.equal(optimizer.state[weight][AVERAGE_GRADIENT], torch.full_like(weight, 4.0))


def test_the_residual_is_zero_at_the_solution_and_nowhere_else():
    problem = Regression(0.4)
    gradient = problem.gradient(problem.solution)
    assert kkt_residual(problem.solution, gradient, 0.4).max() < 1e-6
    away = problem.solution + 0.1
    assert kkt_residual(away, problem.gradient(away), 0.4).max() > 0.01


def test_the_residual_of_a_zero_column_is_what_its_gradient_exceeds_lambda_by():
    gradient = torch.tensor([[[3.0, 0.3]], [[0.0, -2.0]]])
    torch.testing.assert_close(
        kkt_residual(torch.zeros(2, 1, 2), gradient, 1.0), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    )


@given(seeds, shapes, st.floats(1e-3, 2.0), st.floats(0.0, 3.0))
def test_settling_over_one_step_zeroes_what_that_step_s_proximal_map_does(seed, shape, sparsity_weight, decades):
    """A gradient step in the metric C, then the map; the same columns without taking the step."""
    weight, metric = random_weight(seed, shape), random_metric(seed, shape, decades)
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(seed + 3), dtype=torch.float64)
    stepped, settled = weight - 0.1 * gradient / metric, weight.clone()
    norms = column_norms(metric * stepped)
    clear = (norms - 0.1 * sparsity_weight).abs() > 1e-9 * norms
    proximal_step_(stepped, 0.1 * sparsity_weight, metric)
    settle_columns_(settled, gradient, sparsity_weight, 0.1, 1, metric)
    assert torch.equal((column_norms(stepped) == 0)[clear], (column_norms(settled) == 0)[clear])
    kept = column_norms(settled) > 0
    assert torch.equal(settled.transpose(1, 2)[kept], weight.transpose(1, 2)[kept])


def test_settling_at_lambda_or_learning_rate_zero_changes_no_bit():
    weight = random_weight(0, (2, 3, 4))
    for sparsity_weight, rate in ((0.0, 0.1), (0.1, 0.0)):
        settled = weight.clone()
        settle_columns_(settled, torch.zeros_like(weight), sparsity_weight, rate, 10)
        assert torch.equal(settled, weight)


# ---- what stands around W ----


def test_maps_around_w_are_held_at_their_scale_and_smaller_ones_left_as_they_are():
    config = SparseJEPAConfig(hidden_size=32, num_attention_heads=2, num_groups=4, num_latents=6, group_size=3)
    grouping = SparseJEPAForPreTraining(config).sparsejepa.predictor.grouping
    bounds = {"latent_mean.weight": math.sqrt(2 * 96 / (96 + 6))}
    bounds["generator_in_weight"] = math.sqrt(2 * 3 * 32 / 35)
    bounds["generator_out_weight"] = math.sqrt(2 * 32 * 8 / 40)
    for name, bound in bounds.items():
        parameter = grouping.get_parameter(name)
        with torch.no_grad():
            parameter.copy_(torch.nn.functional.normalize(parameter.flatten(1)).view_as(parameter) * bound)
            parameter[0] *= 3.0
            parameter[1] *= 0.5
    before = {name: grouping.get_parameter(name).detach().clone() for name in bounds}
    hold_scales_(grouping)
    for name, bound in bounds.items():
        after = grouping.get_parameter(name).detach()
        torch.testing.assert_close(after[0], before[name][0] / 3.0)
        assert torch.equal(after[1], before[name][1])
        assert torch.linalg.vector_norm(after.flatten(1), dim=1).max() <= bound * (1 + 1e-5)


def test_a_fresh_grouping_is_within_its_scale():
    """On average over groups: held, it starts as it was initialised."""
    torch.manual_seed(0)
    grouping = SparseJEPAForPreTraining(SparseJEPAConfig(num_hidden_layers=1)).sparsejepa.predictor.grouping
    before = {name: p.detach().clone() for name, p in grouping.named_parameters()}
    hold_scales_(grouping)
    for name, parameter in grouping.named_parameters():
        torch.testing.assert_close(parameter.detach().norm(), before[name].norm(), rtol=0.05, atol=0)


def three_steps(weight, gradients):
    """W after three optimizer steps, each with what follows it."""
    optimizer = torch.optim.AdamW([weight], lr=0.05, weight_decay=0.0)
    for gradient in gradients:
        weight.grad = gradient
        optimizer.step()
        group_lasso_step_(optimizer, optimizer.param_groups[0], 1.5, support_steps=2)
    return weight.detach(), optimizer.state[weight][AVERAGE_GRADIENT]


def sharded_steps(rank, folder, weight, gradients):
    """The same on one of two processes, each of which holds half of the groups, as FSDP2 shards them."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    parts = [distribute_tensor(tensor, mesh, [Shard(0)]) for tensor in (weight, *gradients)]
    found = three_steps(torch.nn.Parameter(parts[0]), parts[1:])
    assert all(tensor.to_local().shape[0] == 2 for tensor in found)
    whole = [tensor.full_tensor() for tensor in found]
    if rank == 0:
        torch.save(whole, folder / "found.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_that_share_w_out_take_the_steps_of_one(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, 5, generator=generator)
    weight[:, :, 0] = 0.0
    gradients = [torch.randn(4, 3, 5, generator=generator) for _ in range(3)]
    torch.multiprocessing.spawn(sharded_steps, (tmp_path, weight, gradients), nprocs=2)
    expected = three_steps(torch.nn.Parameter(weight.clone()), gradients)
    assert (column_norms(expected[0]) == 0).any() and (column_norms(expected[0]) > 0).any()
    for found, wanted in zip(torch.load(tmp_path / "found.pt"), expected, strict=True):
        torch.testing.assert_close(found, wanted)
