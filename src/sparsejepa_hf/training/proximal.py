# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The group lasso on W by proximal steps, in the metric of the optimizer that moves W.

At a minimiser of L + λΩ the gradient of a zero column W⁽ᵍ⁾_{·,j} has a norm of at most λ, that of any other of exactly
λ (the lasso's conditions). So λ is on the gradient's scale, whatever the learning rate and the length of the run. The
gradient is the one that the optimizer sees: where it is clipped, λ counts for more. Two maps after each optimizer step
bring W to that minimiser:

- [`proximal_step_`]. Adam divides the gradient by C = √v̂ + ε, so the step is taken in the
  metric C (Yun, Lozano & Yang, *Adaptive proximal gradient methods for structured neural networks*, 2021). SGD's
  metric is the identity (oi-VAE, arXiv 1802.06765, section 4).
- [`settle_columns_`], which asks the same question of many steps at once. One step sees the gradient of one batch,
  whose noise keeps small columns moving about zero; a gradient averaged over many steps tells which belong at zero.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from ..modeling_sparsejepa import SparseJEPAGrouping
from .ema import local_shard


# Of W in the optimizer's state, so that they are saved and restored with it.
AVERAGE_GRADIENT, AVERAGED_STEPS = "average_gradient", "averaged_steps"
# Exact after one where a column shares its metric; others are at float32's precision after four.
_NEWTON_STEPS = 4


def own_parameter_group(optimizer: Optimizer, parameter: Tensor | None) -> dict[str, Any] | None:
    """The optimizer's parameter group that holds this very parameter and no other; None if there is none."""
    groups = [group for group in optimizer.param_groups if len(group["params"]) == 1]
    return next((group for group in groups if group["params"][0] is parameter), None)


def require_known_metric(optimizer: Optimizer) -> None:
    """Refuses an optimizer in whose metric no proximal step can be taken here.

    Raises:
        ValueError: unless it is Adam or AdamW without amsgrad, or SGD without momentum.
    """
    # Accelerate wraps it.
    optimizer = getattr(optimizer, "optimizer", optimizer)
    plain = not any(group.get("amsgrad") or group.get("momentum") for group in optimizer.param_groups)
    if not (isinstance(optimizer, (Adam, SGD)) and plain):
        raise ValueError(
            f"The optimizer is {type(optimizer).__name__}, but the proximal step of W is taken in the optimizer's "
            "metric, which is known here for Adam and AdamW without amsgrad, and for SGD without momentum. Choose "
            "one of them, such as optim='adamw_torch_fused', or sparsity_mode='penalty'."
        )


@torch.no_grad()
def optimizer_metric(optimizer: Optimizer, group: dict[str, Any]) -> Tensor | None:
    """C (G, p, K), by which the gradient of W is divided: √v̂ + ε of Adam, None (the identity) of SGD.

    Args:
        optimizer: after a step.
        group: its parameter group that holds W alone.
    """
    state = optimizer.state[group["params"][0]]
    if "exp_avg_sq" not in state:
        return None
    correction = 1.0 - group["betas"][1] ** state["step"]
    return (local_shard(state["exp_avg_sq"]) / correction).sqrt_().add_(group["eps"])


def start_average_(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any]:
    """The optimizer's state of W, with an average of its gradient: of no step yet, if there was none."""
    state = optimizer.state[parameter]
    if AVERAGE_GRADIENT not in state:
        state[AVERAGE_GRADIENT] = torch.zeros_like(parameter, requires_grad=False)
        state[AVERAGED_STEPS] = 0
    return state


@torch.no_grad()
def group_lasso_step_(optimizer: Optimizer, group: dict[str, Any], sparsity_weight: float, support_steps: int) -> None:
    """What follows an optimizer step: averages W's gradient, then takes W through both maps of the group lasso.

    Args:
        optimizer: after the step, the gradient still there.
        group: its parameter group that holds W alone.
        sparsity_weight: λ of this step; at 0 the gradient is averaged and W left as it is.
        support_steps: steps that the average of the gradient covers, at least 1.
    """
    parameter = group["params"][0]
    state = start_average_(optimizer, parameter)
    weight, average, gradient = map(local_shard, (parameter, state[AVERAGE_GRADIENT], parameter.grad))
    # The plain mean of all gradients, until there are more than `support_steps`.
    state[AVERAGED_STEPS] = min(support_steps, state[AVERAGED_STEPS] + 1)
    # A fused optimizer skips a step that overflowed in fp16 by itself; its gradient is passed over without asking.
    moved = average.lerp(gradient, 1.0 / state[AVERAGED_STEPS])
    average.copy_(torch.where(gradient.isfinite().all(), moved, average))
    if sparsity_weight == 0:
        return
    rate, metric = float(group["lr"]), optimizer_metric(optimizer, group)
    proximal_step_(weight, rate * sparsity_weight, metric)
    settle_columns_(weight, average, sparsity_weight, rate, support_steps, metric)


@torch.no_grad()
def proximal_step_(group_weight: Tensor, threshold: float, metric: Tensor | None = None) -> None:
    """W ← argmin_V ½‖V − W‖²_C + ηλ·Ω(V) in place, column by column; a column with ‖C·W_{·,j}‖₂ ≤ ηλ becomes zero.

    Others are W_i·C_i·n/(C_i·n + ηλ), n being the norm of the result, which solves Σ_i (C_i·W_i/(C_i·n + ηλ))² = 1.
    For a C that the column shares that is (1 − (ηλ/C)/‖W_{·,j}‖₂)·W_{·,j}.

    Args:
        group_weight: W (G, p, K), or a shard of it along G.
        threshold: ηλ ≥ 0.
        metric: C (G, p, K) > 0; the identity if not given.

    Raises:
        ValueError: if `threshold` is negative.
    """
    if threshold < 0:
        raise ValueError(f"threshold is {threshold}; expected learning rate times sparsity weight, at least 0.")
    if threshold == 0:
        return
    if metric is None:
        norms = torch.linalg.vector_norm(group_weight, dim=1, keepdim=True)
        # A zero column gives 0/0 without the clamp; clamped, its factor is 0 like that of any within the threshold.
        factors = (1.0 - threshold / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_min_(0.0)
        group_weight.mul_(factors)
        return
    # In units of ηλ, so that nothing underflows when squared.
    metric = metric / threshold
    scaled = metric * group_weight
    norms = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    # The answer for the largest C of the column: a lower bound, from where Newton's method rises.
    norm = (norms - 1.0).clamp_min(0.0) / metric.amax(dim=1, keepdim=True)
    for _ in range(_NEWTON_STEPS):
        # On S^(−1/2) − 1 with S(n) = Σ (C·W/(C·n + ηλ))², which is concave and nearly linear in n.
        divisor = metric * norm + 1.0
        terms = (scaled / divisor).square()
        total, slope = terms.sum(dim=1, keepdim=True), (terms * metric / divisor).sum(dim=1, keepdim=True)
        norm = norm + (total.sqrt() - 1.0) * total / slope.clamp_min(torch.finfo(norm.dtype).tiny)
    factors = metric * norm / (metric * norm + 1.0)
    group_weight.copy_(torch.where(norms > 1.0, group_weight * factors, 0.0))


@torch.no_grad()
def hold_scales_(grouping: SparseJEPAGrouping) -> None:
    """Keeps the weights around W from growing in its place, which would undo its shrinkage, since only W pays λ.

    The norm of each latent's row of A, and of each generator's two matrices, is at most what Xavier's initialisation
    gives it on average: √(2·a/(a + b)) for a row of (b, a), √(2·a·b/(a + b)) for a whole (a, b).
    """
    num_latents, width = grouping.latent_mean.weight.shape
    local_shard(grouping.latent_mean.weight).renorm_(2, 0, (2.0 * width / (width + num_latents)) ** 0.5)
    for weight in (grouping.generator_in_weight, grouping.generator_out_weight):
        _, fan_in, fan_out = weight.shape
        local_shard(weight).renorm_(2, 0, (2.0 * fan_in * fan_out / (fan_in + fan_out)) ** 0.5)


@torch.no_grad()
def settle_columns_(
    group_weight: Tensor,
    average_gradient: Tensor,
    sparsity_weight: float,
    learning_rate: float,
    steps: int,
    metric: Tensor | None = None,
) -> None:
    """Sets to zero, in place, every column that `steps` steps with its average gradient would take to zero.

    The proximal step of length `steps`·η from W with the gradient ḡ is zero where ‖ḡ − C·W_{·,j}/(steps·η)‖₂ ≤ λ.
    So a zero column stays zero while ‖ḡ_{·,j}‖₂ ≤ λ, whatever the gradients of single batches. For `steps` of 1 and
    the optimizer's own gradient this is the condition of [`proximal_step_`].

    Args:
        group_weight: W (G, p, K), or a shard of it along G.
        average_gradient: ḡ, of the same shape, averaged over about `steps` steps.
        sparsity_weight: λ ≥ 0.
        learning_rate: η ≥ 0.
        steps: at least 1.
        metric: C (G, p, K) > 0; the identity if not given.
    """
    if sparsity_weight == 0 or learning_rate == 0:
        return
    kept = group_weight / (steps * learning_rate)
    force = average_gradient - (kept if metric is None else metric * kept)
    settled = torch.linalg.vector_norm(force, dim=1, keepdim=True) <= sparsity_weight
    group_weight.masked_fill_(settled, 0.0)


@torch.no_grad()
def kkt_residual(group_weight: Tensor, gradient: Tensor, sparsity_weight: float) -> Tensor:
    """How far each column is from the group lasso's optimality conditions, (G, K) ≥ 0, on the gradient's scale.

    ‖∂L/∂W_{·,j} + λ·W_{·,j}/‖W_{·,j}‖₂‖₂ for a column that is not zero; max(0, ‖∂L/∂W_{·,j}‖₂ − λ) for one that is.

    Args:
        group_weight: W (G, p, K).
        gradient: ∂L/∂W without the penalty, of the same shape; of a noisy loss, an average.
        sparsity_weight: λ ≥ 0.
    """
    norms = torch.linalg.vector_norm(group_weight, dim=1)
    direction = group_weight / norms.clamp_min(torch.finfo(norms.dtype).tiny)[:, None]
    moving = torch.linalg.vector_norm(gradient + sparsity_weight * direction, dim=1)
    resting = (torch.linalg.vector_norm(gradient, dim=1) - sparsity_weight).clamp_min(0.0)
    return torch.where(norms > 0, moving, resting)
