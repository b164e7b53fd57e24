# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Pre-training and fine-tuning: options, data of a run, Trainers, callbacks and monitors."""

from ..image_processing_sparsejepa import image_processor
from .arguments import FineTuningArguments, SparseJEPATrainingArguments
from .base_trainer import ImageTrainer, NonFiniteLossError
from .checkpoints import finished_results, newest_whole_checkpoint, refuse_other_checkpoints
from .comparison import compare_features
from .ema import ema_update_
from .finetuning import (
    FineTuningTrainer,
    layer_decay_groups,
    load_classifier,
    pixel_statistics,
    read_config,
)
from .options import (
    FINE_TUNING_OPTION_TYPES,
    OPTION_TYPES,
    DataArguments,
    FineTuningDataArguments,
    FineTuningModelArguments,
    ModelArguments,
    parse_options,
    resolved_options,
    write_options,
)
from .preemption import PREEMPTED, saves_when_preempted
from .pretraining import SparseJEPATrainer
from .proximal import kkt_residual, proximal_step_
from .run_data import (
    FineTuningData,
    PreTrainingData,
    count_undecodable,
    load_finetuning_data,
    load_pretraining_data,
)


__all__ = [
    "FINE_TUNING_OPTION_TYPES",
    "OPTION_TYPES",
    "PREEMPTED",
    "DataArguments",
    "FineTuningArguments",
    "FineTuningData",
    "FineTuningDataArguments",
    "FineTuningModelArguments",
    "FineTuningTrainer",
    "ImageTrainer",
    "ModelArguments",
    "NonFiniteLossError",
    "PreTrainingData",
    "SparseJEPATrainer",
    "SparseJEPATrainingArguments",
    "compare_features",
    "count_undecodable",
    "ema_update_",
    "finished_results",
    "image_processor",
    "kkt_residual",
    "layer_decay_groups",
    "load_classifier",
    "load_finetuning_data",
    "load_pretraining_data",
    "newest_whole_checkpoint",
    "parse_options",
    "pixel_statistics",
    "proximal_step_",
    "read_config",
    "refuse_other_checkpoints",
    "resolved_options",
    "saves_when_preempted",
    "write_options",
]
