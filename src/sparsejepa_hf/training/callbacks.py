# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What happens once per optimizer step, whatever the accumulation: weight decay, EMA, proximal step."""

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState

from ..modeling_sparsejepa import SparseJEPAForPreTraining
from .arguments import SparseJEPATrainingArguments
from .autocast_weights import AutocastWeights
from .ema import ema_update_
from .proximal import AVERAGE_GRADIENT, group_lasso_step_, hold_scales_
from .schedules import cosine, linear, linear_warmup, warmup_steps


# Keys of our own in the optimizer's parameter groups; they are saved and restored with its state.
DECAYED = "is_decayed"
GROUP_WEIGHT = "is_group_weight"


def unwrap(model: nn.Module) -> SparseJEPAForPreTraining:
    """The model inside DDP, torch.compile and other wrappers of one module."""
    while not isinstance(model, SparseJEPAForPreTraining):
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if inner is None:
            raise TypeError(f"The model is a {type(model).__name__}; expected SparseJEPAForPreTraining.")
        model = inner
    return model


def ema_momentum(args: SparseJEPATrainingArguments, step: int, total_steps: int) -> float:
    """m of optimizer step `step`, linear from `ema_momentum` to `ema_momentum_end` (I-JEPA)."""
    return linear(step, total_steps, args.ema_momentum, args.ema_momentum_end)


def weight_decay(args: SparseJEPATrainingArguments, step: int, total_steps: int) -> float:
    """Weight decay of optimizer step `step`, along half a cosine to `weight_decay_end` if that is set."""
    end = args.weight_decay if args.weight_decay_end is None else args.weight_decay_end
    return cosine(step, total_steps, args.weight_decay, end)


def sparsity_weight(args: SparseJEPATrainingArguments, weight: float, step: int, total_steps: int) -> float:
    """λ of optimizer step `step`: `weight` after a linear warm-up."""
    return weight * linear_warmup(step, warmup_steps(args.sparsity_warmup_steps, total_steps))


def kl_weight(args: SparseJEPATrainingArguments, weight: float, step: int, total_steps: int) -> float:
    """β of optimizer step `step`: `weight` after a linear warm-up."""
    return weight * linear_warmup(step, warmup_steps(args.kl_warmup_steps, total_steps))


def group_weight_group(optimizer: Optimizer) -> dict[str, Any] | None:
    """The optimizer's parameter group that holds W, if the model has one."""
    return next((group for group in optimizer.param_groups if group.get(GROUP_WEIGHT)), None)


def average_gradient(optimizer: Optimizer) -> Tensor | None:
    """The running average of W's gradient, once the optimizer has made a step."""
    group = group_weight_group(optimizer)
    return None if group is None else optimizer.state[group["params"][0]].get(AVERAGE_GRADIENT)


class OptimizerStepCallback(TrainerCallback):
    """Sets the weight decay before each optimizer step; after it, updates the target encoder and thresholds W.

    Args:
        keeps_autocast_weights: keep the target encoder's weights in bf16 too, cast once a step.
    """

    def __init__(self, keeps_autocast_weights: bool = False) -> None:
        self._keeps_autocast_weights = keeps_autocast_weights
        self._autocast_weights: AutocastWeights | None = None

    def on_train_begin(
        self,
        args: SparseJEPATrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        **kwargs: Any,
    ) -> None:
        sparsejepa = unwrap(model).sparsejepa
        self._targets = list(sparsejepa.target_encoder.parameters())
        self._sources = list(sparsejepa.context_encoder.parameters())
        if self._keeps_autocast_weights:
            # A checkpoint to resume from is loaded by now.
            self._autocast_weights = AutocastWeights(sparsejepa.target_encoder)

    def on_train_end(
        self,
        args: SparseJEPATrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if self._autocast_weights is not None:
            self._autocast_weights.remove()
            self._autocast_weights = None

    def on_pre_optimizer_step(
        self,
        args: SparseJEPATrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Optimizer,
        **kwargs: Any,
    ) -> None:
        if args.weight_decay_end is None:
            return
        value = weight_decay(args, state.global_step, state.max_steps)
        for group in optimizer.param_groups:
            if group.get(DECAYED):
                group["weight_decay"] = value

    def on_optimizer_step(
        self,
        args: SparseJEPATrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        optimizer: Optimizer,
        **kwargs: Any,
    ) -> None:
        # A loss scaler skips the step after an overflow; nothing has moved then.
        if getattr(optimizer, "step_was_skipped", False):
            return
        ema_update_(self._targets, self._sources, ema_momentum(args, state.global_step, state.max_steps))
        if self._autocast_weights is not None:
            self._autocast_weights.refresh()
        self._threshold(args, state, unwrap(model), optimizer)

    @staticmethod
    def _threshold(
        args: SparseJEPATrainingArguments,
        state: TrainerState,
        model: SparseJEPAForPreTraining,
        optimizer: Optimizer,
    ) -> None:
        config, group = model.config, group_weight_group(optimizer)
        if not config.use_grouping or config.sparsity_mode != "proximal":
            return
        if group is None or group["params"][0].grad is None:
            if config.sparsity_weight > 0:
                raise ValueError(
                    "The optimizer has no parameter group with W and its gradient, as under DeepSpeed, so W would not "
                    "become sparse. Train with DDP or FSDP2, or use sparsity_mode='penalty'."
                )
            return
        strength = sparsity_weight(args, config.sparsity_weight, state.global_step, state.max_steps)
        group_lasso_step_(optimizer, group, strength, args.support_steps)
        if strength > 0:
            hold_scales_(model.sparsejepa.predictor.grouping)
