# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""SparseJEPA (arXiv 2504.16140) for the Hugging Face ecosystem.

Importing the package registers the model family with transformers' Auto classes.
"""

import importlib
from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    ViTImageProcessor,
    ViTImageProcessorPil,
)

from .configuration_sparsejepa import PRESETS, SparseJEPAConfig
from .modeling_sparsejepa import (
    SparseJEPAForImageClassification,
    SparseJEPAForPreTraining,
    SparseJEPAModel,
    SparseJEPAVisionModel,
)


__version__ = "0.1.0"

# What is not needed to load a model is imported when it is first asked for.
_LAZY = {
    "MultiBlockMaskSampler": "masking",
    "SparseJEPATrainer": "training",
    "SparseJEPATrainingArguments": "training",
    "load_image_dataset": "data",
}

AutoConfig.register(SparseJEPAConfig.model_type, SparseJEPAConfig)
AutoModel.register(SparseJEPAConfig, SparseJEPAModel)
AutoModelForPreTraining.register(SparseJEPAConfig, SparseJEPAForPreTraining)
AutoModelForImageClassification.register(SparseJEPAConfig, SparseJEPAForImageClassification)
AutoImageProcessor.register(
    SparseJEPAConfig,
    image_processor_classes={"torchvision": ViTImageProcessor, "pil": ViTImageProcessorPil},
)

# A saved checkpoint carries its code, for trust_remote_code=True where this package is not installed.
SparseJEPAConfig.register_for_auto_class()
SparseJEPAModel.register_for_auto_class("AutoModel")
SparseJEPAForPreTraining.register_for_auto_class("AutoModelForPreTraining")
SparseJEPAForImageClassification.register_for_auto_class("AutoModelForImageClassification")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


__all__ = [
    "PRESETS",
    "MultiBlockMaskSampler",
    "SparseJEPAConfig",
    "SparseJEPAForImageClassification",
    "SparseJEPAForPreTraining",
    "SparseJEPAModel",
    "SparseJEPATrainer",
    "SparseJEPATrainingArguments",
    "SparseJEPAVisionModel",
    "load_image_dataset",
]
