# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Pre-training: arguments, trainer, schedules, EMA, proximal step and monitors."""

from .arguments import SparseJEPATrainingArguments
from .ema import ema_update_
from .proximal import kkt_residual, proximal_step_
from .trainer import SparseJEPATrainer


__all__ = [
    "SparseJEPATrainer",
    "SparseJEPATrainingArguments",
    "ema_update_",
    "kkt_residual",
    "proximal_step_",
]
