# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Our optimizer step with nothing around it: no Trainer, no data loader, no logs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparsejepa_hf import SparseJEPAForPreTraining
from sparsejepa_hf.training.ema import ema_update_
from sparsejepa_hf.training.precision import AutocastWeights
from sparsejepa_hf.training.proximal import group_lasso_step_, hold_scales_


def _unwatched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    return call


class BareStep:
    """Forward, backward, gradient clipping, fused AdamW, EMA and, with a grouping, the proximal step, for each call.

    Args:
        model: what is trained, on its device.
        autocast: run the forward pass in bf16.
        learning_rate, weight_decay: of AdamW; W takes no weight decay.
        momentum: of the target encoder.
        watched: `watched(name, call)` returns what is called in place of a part's `call`; for counting time by part.
    """

    def __init__(
        self,
        model: SparseJEPAForPreTraining,
        autocast: bool = False,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        momentum: float = 0.996,
        watched: Callable[[str, Callable[..., Any]], Callable[..., Any]] = _unwatched,
    ):
        self.model = model.train()
        self._forward: Callable[..., Any] = model
        self._autocast, self._momentum, self._watched = autocast, momentum, watched
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # W is last, in a group of its own; empty without a grouping.
        own = [parameter for name, parameter in model.named_parameters() if name.endswith("group_weight")]
        others = [parameter for parameter in self._trained if all(parameter is not p for p in own)]
        self.optimizer = torch.optim.AdamW(
            [{"params": others}, {"params": own, "weight_decay": 0.0}],
            lr=learning_rate,
            betas=(0.9, 0.95),
            weight_decay=weight_decay,
            fused=True,
        )
        self._targets = list(model.sparsejepa.target_encoder.parameters())
        self._sources = list(model.sparsejepa.context_encoder.parameters())
        self._autocast_weights = AutocastWeights(model.sparsejepa.target_encoder) if autocast else None

    def wrap(self, wrapper: Callable[[SparseJEPAForPreTraining], Callable[..., Any]]) -> "BareStep":
        """Runs the forward pass through `wrapper(model)`, such as `torch.compile`; returns itself."""
        if self._autocast_weights is not None:
            # As in training: the compiler has casts of its own.
            self._autocast_weights.remove()
            self._autocast_weights = None
        self._forward = wrapper(self.model)
        return self

    def __call__(self, pixel_values: Tensor, context_mask: Tensor, target_mask: Tensor) -> Tensor:
        """(B, C, H, W), (B, Nc), (B, M, Nt) -> the loss before the step, ()."""
        watched, config = self._watched, self.model.config
        with torch.autocast(pixel_values.device.type, torch.bfloat16, enabled=self._autocast):
            loss = watched("forward", self._forward)(pixel_values, context_mask, target_mask).loss
        watched("backward", loss.backward)()
        watched("clip", torch.nn.utils.clip_grad_norm_)(self._trained, 1.0)
        watched("optimizer", self.optimizer.step)()
        watched("EMA", self._update_target)()
        if config.use_grouping and config.sparsity_mode == "proximal":
            step = watched("proximal step", group_lasso_step_)
            step(self.optimizer, self.optimizer.param_groups[1], config.sparsity_weight, 100)
            if config.sparsity_weight > 0:
                watched("proximal step", hold_scales_)(self.model.sparsejepa.predictor.grouping)
        watched("zero gradients", self.optimizer.zero_grad)()
        return loss.detach()

    def _update_target(self) -> None:
        ema_update_(self._targets, self._sources, self._momentum)
        if self._autocast_weights is not None:
            self._autocast_weights.refresh()
