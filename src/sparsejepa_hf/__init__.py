# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""SparseJEPA (arXiv 2504.16140) for the Hugging Face ecosystem.

Importing the package registers the model family with transformers' Auto classes, once those are loaded. It imports
neither torch nor transformers: a public name is imported when it is first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import registration


if TYPE_CHECKING:
    from .configuration_sparsejepa import PRESETS, SparseJEPAConfig
    from .data import load_image_dataset
    from .masking import MultiBlockMaskSampler
    from .modeling_sparsejepa import (
        SparseJEPAForImageClassification,
        SparseJEPAForPreTraining,
        SparseJEPAModel,
        SparseJEPAVisionModel,
    )
    from .training import SparseJEPATrainer, SparseJEPATrainingArguments


__version__ = "0.1.0"

# Where each public name is defined.
_HOMES = {
    "PRESETS": "configuration_sparsejepa",
    "MultiBlockMaskSampler": "masking",
    "SparseJEPAConfig": "configuration_sparsejepa",
    "SparseJEPAForImageClassification": "modeling_sparsejepa",
    "SparseJEPAForPreTraining": "modeling_sparsejepa",
    "SparseJEPAModel": "modeling_sparsejepa",
    "SparseJEPATrainer": "training",
    "SparseJEPATrainingArguments": "training",
    "SparseJEPAVisionModel": "modeling_sparsejepa",
    "load_image_dataset": "data",
}
_SUBMODULES = ("configuration_sparsejepa", "modeling_sparsejepa")

registration.install()


def __getattr__(name: str) -> Any:
    if name not in _HOMES and name not in _SUBMODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name, name)
    if home in registration.AUTO_MODULES:
        importlib.import_module(registration.AUTO_MODULES[home])
    module = importlib.import_module(f".{home}", __name__)
    if name in _SUBMODULES:
        return module
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_SUBMODULES})


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
