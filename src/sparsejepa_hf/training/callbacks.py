# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What happens once per optimizer step, whatever the accumulation: λ and β, weight decay, EMA, proximal step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.utils import ModelOutput, logging

from ..configuration_sparsejepa import SparseJEPAConfig
from ..modeling_sparsejepa import SparseJEPAForPreTraining, SparseJEPAGrouping
from .arguments import SparseJEPATrainingArguments as Arguments
from .ema import ema_update_
from .precision import AutocastWeights, require_full_precision
from .proximal import group_lasso_step_, hold_scales_, own_parameter_group, require_known_metric
from .schedules import cosine, linear, linear_warmup, warmup_steps


logger = logging.get_logger(__name__)

# A key of our own in the optimizer's parameter groups; it is saved and restored with the optimizer's state.
DECAYED = "is_decayed"
# A shorter run only tries whether everything fits together.
_MIN_STEPS = 100


class TrainingCallback(TrainerCallback):
    """transformers' `TrainerCallback`, which also sees what the model makes of a batch and adds to training logs."""

    def on_outputs(self, outputs: ModelOutput) -> None:
        """Event called after each forward pass of training. Nothing may be kept of `outputs` but copies: a CUDA graph
        writes the next step's into the same memory."""

    def metrics(self, average: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """What goes into the log of the training steps since the last one.

        Args:
            average: reduces a tensor to its mean over processes.
        """
        return {}


def unwrap(model: nn.Module) -> SparseJEPAForPreTraining:
    """The model inside DDP, torch.compile and other wrappers of one module."""
    while not isinstance(model, SparseJEPAForPreTraining):
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if inner is None:
            raise TypeError(f"The model is a {type(model).__name__}; expected SparseJEPAForPreTraining.")
        model = inner
    return model


class LossWeights(TrainingCallback):
    """λ and β of the step under way: the configuration's, after linear warm-ups.

    Attributes:
        config: the model's configuration.
        sparsity_weight: λ.
        kl_weight: β.
    """

    def __init__(self, config: SparseJEPAConfig) -> None:
        self.config = config
        self.sparsity_weight, self.kl_weight = float(config.sparsity_weight), float(config.kl_weight)

    def on_train_begin(
        self, args: Arguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        # `model_init` may have made another model.
        self.config = unwrap(model).config

    def on_step_begin(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step, total = state.global_step, state.max_steps
        sparsity = linear_warmup(step, warmup_steps(args.sparsity_warmup_steps, total))
        kl = linear_warmup(step, warmup_steps(args.kl_warmup_steps, total))
        self.sparsity_weight = self.config.sparsity_weight * sparsity
        self.kl_weight = self.config.kl_weight * kl

    @property
    def has_full_sparsity(self) -> bool:
        """Whether the model uses λ, and its warm-up is over."""
        return self.config.use_grouping and self.sparsity_weight >= self.config.sparsity_weight > 0

    @property
    def has_full_kl(self) -> bool:
        """Whether the model uses β, and its warm-up is over."""
        is_used = self.config.use_grouping and self.config.variational
        return is_used and self.kl_weight >= self.config.kl_weight > 0

    def metrics(self, average: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """`sparsity_weight` and `kl_weight`, if the model uses them."""
        if not self.config.use_grouping:
            return {}
        kl_weight = {"kl_weight": self.kl_weight} if self.config.variational else {}
        return {"sparsity_weight": self.sparsity_weight, **kl_weight}


class WeightDecaySchedule(TrainingCallback):
    """Sets the weight decay of each step, along half a cosine to `weight_decay_end` if that is given."""

    def __init__(self) -> None:
        self._value = 0.0

    def on_train_begin(
        self, args: Arguments, state: TrainerState, control: TrainerControl, optimizer: Optimizer, **kwargs: Any
    ) -> None:
        if args.weight_decay_end is not None and not any(DECAYED in group for group in optimizer.param_groups):
            raise ValueError(
                f"weight_decay_end is {args.weight_decay_end}, but the schedule does not reach an optimizer that is "
                "given. Leave `optimizers` out, or weight_decay_end."
            )

    def on_pre_optimizer_step(
        self, args: Arguments, state: TrainerState, control: TrainerControl, optimizer: Optimizer, **kwargs: Any
    ) -> None:
        self._value = args.weight_decay
        if args.weight_decay_end is not None:
            self._value = cosine(state.global_step, state.max_steps, args.weight_decay, args.weight_decay_end)
            for group in optimizer.param_groups:
                if group.get(DECAYED):
                    group["weight_decay"] = self._value

    def metrics(self, average: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """`weight_decay` of the last step."""
        return {"weight_decay": self._value}


class TargetEncoderEMA(TrainingCallback):
    """Moves the target encoder towards the context encoder, with a momentum that rises linearly (I-JEPA).

    Args:
        keeps_autocast_weights: keep the target encoder's weights in bf16 too, cast once a step.
    """

    def __init__(self, keeps_autocast_weights: bool = False) -> None:
        self._keeps_autocast_weights = keeps_autocast_weights
        self._autocast_weights: AutocastWeights | None = None
        self._momentum = 0.0

    def on_train_begin(
        self, args: Arguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        sparsejepa = unwrap(model).sparsejepa
        # Here too, since what prepares the model may have cast it.
        require_full_precision(sparsejepa.named_parameters(), are_averages=True)
        self._warn_of_slow_average(args, state)
        self._targets = list(sparsejepa.target_encoder.parameters())
        self._sources = list(sparsejepa.context_encoder.parameters())
        if self._keeps_autocast_weights:
            # A checkpoint to resume from is loaded by now.
            self._autocast_weights = AutocastWeights(sparsejepa.target_encoder)

    def on_optimizer_step(
        self, args: Arguments, state: TrainerState, control: TrainerControl, optimizer: Optimizer, **kwargs: Any
    ) -> None:
        self._momentum = linear(state.global_step, state.max_steps, args.ema_momentum, args.ema_momentum_end)
        if was_skipped(optimizer):
            return
        ema_update_(self._targets, self._sources, self._momentum)
        if self._autocast_weights is not None:
            self._autocast_weights.refresh()

    def _warn_of_slow_average(self, args: Arguments, state: TrainerState) -> None:
        """Warns if most of the target encoder would be what it was at the start, though the run is not just a try."""
        momenta = torch.linspace(args.ema_momentum, args.ema_momentum_end, state.max_steps, dtype=torch.float64)
        kept = float(momenta.prod())
        if kept > 0.5 and state.max_steps >= _MIN_STEPS and state.global_step == 0 and state.is_world_process_zero:
            logger.warning(
                f"After the {state.max_steps} steps of this run {kept:.0%} of the target encoder will be what it was "
                f"before, since ema_momentum is {args.ema_momentum} and ema_momentum_end {args.ema_momentum_end}. "
                "It is the encoder that a checkpoint is used for. Lower both, such as to 0.99 and 0.999 for a short "
                "run, or train longer."
            )

    def on_train_end(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._autocast_weights is not None:
            self._autocast_weights.remove()
            self._autocast_weights = None

    def metrics(self, average: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """`ema_momentum` of the last step."""
        return {"ema_momentum": self._momentum}


class ProximalStep(TrainingCallback):
    """After each optimizer step, takes W through the maps of the group lasso, which set columns to zero.

    It does nothing without grouping, and in penalty mode.

    Args:
        loss_weights: λ of the step.
    """

    def __init__(self, loss_weights: LossWeights) -> None:
        self._loss_weights = loss_weights

    def on_train_begin(
        self,
        args: Arguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        optimizer: Optimizer,
        **kwargs: Any,
    ) -> None:
        model = unwrap(model)
        self._group: dict[str, Any] | None = None
        grouping = model.sparsejepa.predictor.grouping
        if grouping is None or model.config.sparsity_mode != "proximal":
            return
        assert isinstance(grouping, SparseJEPAGrouping)
        self._grouping = grouping
        # Model and optimizer are prepared by now: this is the parameter, or the shard, that the optimizer steps.
        self._group = own_parameter_group(optimizer, model.group_weight)
        if model.config.sparsity_weight == 0:
            return
        if self._group is None:
            raise ValueError(
                "The optimizer has no parameter group of its own for W, as one that is given, or DeepSpeed's, so W "
                "would not become sparse. Leave `optimizers` out (choose one with the argument `optim`) and train "
                "with DDP or FSDP2, or use sparsity_mode='penalty'."
            )
        require_known_metric(optimizer)

    def on_optimizer_step(
        self, args: Arguments, state: TrainerState, control: TrainerControl, optimizer: Optimizer, **kwargs: Any
    ) -> None:
        if self._group is None or was_skipped(optimizer):
            return
        strength = self._loss_weights.sparsity_weight
        if self._group["params"][0].grad is None:
            if strength > 0:
                raise ValueError(
                    "W has no gradient after the optimizer's step, so it would not become sparse. Train with DDP or "
                    "FSDP2, or use sparsity_mode='penalty'."
                )
            return
        group_lasso_step_(optimizer, self._group, strength, args.support_steps)
        if strength > 0:
            hold_scales_(self._grouping)


def was_skipped(optimizer: Optimizer) -> bool:
    """Whether a loss scaler passed over the step after an overflow, so that nothing has moved."""
    return bool(getattr(optimizer, "step_was_skipped", False))


def as_model_input(weight: float, is_compiled: bool, device: torch.device) -> float | Tensor:
    """λ or β as the model takes it.

    A number is compiled in, so its warm-up would compile the model twice; a tensor is not. It is filled on the device:
    a copy would wait for the device.
    """
    return torch.full((), weight, dtype=torch.float32, device=device) if is_compiled else weight
