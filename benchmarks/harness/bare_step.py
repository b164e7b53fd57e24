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


# Steps that the average of W's gradient covers, as in training.
_SUPPORT_STEPS = 100


class BareStep:
    """Each call is one step: forward, backward, gradient clipping, fused AdamW, EMA and proximal step.

    Args:
        model: what is trained, on its device.
        autocast: run the forward pass in bf16.
        learning_rate: of AdamW.
        weight_decay: of AdamW; W takes none.
        momentum: of the target encoder.
        wrap: what the forward pass goes through, such as `torch.compile`.
    """

    def __init__(
        self,
        model: SparseJEPAForPreTraining,
        autocast: bool = False,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        momentum: float = 0.996,
        wrap: Callable[[SparseJEPAForPreTraining], Callable[..., Any]] | None = None,
    ):
        self.model, self._autocast, self._momentum = model.train(), autocast, momentum
        self._forward = model if wrap is None else wrap(model)
        # The compiler has casts of its own.
        casts = autocast and wrap is None
        self._autocast_weights = AutocastWeights(model.sparsejepa.target_encoder) if casts else None
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        own = [] if model.group_weight is None else [model.group_weight]
        others = [parameter for parameter in self._trained if parameter is not model.group_weight]
        groups = [{"params": others}, {"params": own, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=learning_rate, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True
        )
        self._targets = list(model.sparsejepa.target_encoder.parameters())
        self._sources = list(model.sparsejepa.context_encoder.parameters())

    def __call__(self, pixel_values: Tensor, context_mask: Tensor, target_mask: Tensor) -> Tensor:
        """(B, C, H, W), (B, Nc), (B, M, Nt) -> the loss before the step, ()."""
        with torch.autocast(pixel_values.device.type, torch.bfloat16, enabled=self._autocast):
            loss = self._forward(pixel_values, context_mask, target_mask).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self.optimizer.step()
        self.follow_up()
        self.optimizer.zero_grad()
        return loss.detach()

    def follow_up(self) -> None:
        """What follows the optimizer's step: the EMA of the target encoder, and the proximal step of W."""
        ema_update_(self._targets, self._sources, self._momentum)
        if self._autocast_weights is not None:
            self._autocast_weights.refresh()
        config = self.model.config
        if config.use_grouping and config.sparsity_mode == "proximal":
            group_lasso_step_(self.optimizer, self.optimizer.param_groups[1], config.sparsity_weight, _SUPPORT_STEPS)
            if config.sparsity_weight > 0:
                hold_scales_(self.model.sparsejepa.predictor.grouping)
