# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""SparseJEPA (arXiv 2504.16140) for the Hugging Face ecosystem.

Importing the package makes the model family known to transformers' Auto classes. Models, data and training are
imported when one of their names is first asked for.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)
from transformers.models.auto.auto_mappings import IMAGE_PROCESSOR_MAPPING_NAMES

from .configuration_sparsejepa import PRESETS, SparseJEPAConfig


if TYPE_CHECKING:
    from .data import load_image_dataset
    from .image_processing_sparsejepa import SparseJEPAImageProcessor
    from .masking import MultiBlockMaskSampler
    from .modeling_sparsejepa import (
        SparseJEPABackbone,
        SparseJEPAForImageClassification,
        SparseJEPAForPreTraining,
        SparseJEPAModel,
        SparseJEPAVisionModel,
    )
    from .training import SparseJEPATrainer, SparseJEPATrainingArguments


__version__ = "0.1.0"

# Where the names that are imported later are defined.
_HOMES = {
    "MultiBlockMaskSampler": "masking",
    "SparseJEPABackbone": "modeling_sparsejepa",
    "SparseJEPAForImageClassification": "modeling_sparsejepa",
    "SparseJEPAForPreTraining": "modeling_sparsejepa",
    "SparseJEPAImageProcessor": "image_processing_sparsejepa",
    "SparseJEPAModel": "modeling_sparsejepa",
    "SparseJEPATrainer": "training",
    "SparseJEPATrainingArguments": "training",
    "SparseJEPAVisionModel": "modeling_sparsejepa",
    "load_image_dataset": "data",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "SparseJEPAImageProcessor":
        _tell_that_there_is_no_video_processor()
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def _tell_that_there_is_no_video_processor() -> None:
    """Keeps `pipeline` from asking a person whether to trust code.

    It takes an image processor that carries its code for a video processor that does too, unless the configuration is
    known to it. Called late: the import takes seconds without that of the image processor.
    """
    from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING

    VIDEO_PROCESSOR_MAPPING._extra_content.setdefault(SparseJEPAConfig, {})


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


AutoConfig.register(SparseJEPAConfig.model_type, SparseJEPAConfig, exist_ok=True)
for _auto_class, _name in (
    (AutoBackbone, "SparseJEPABackbone"),
    (AutoModel, "SparseJEPAVisionModel"),
    (AutoModelForPreTraining, "SparseJEPAForPreTraining"),
    (AutoModelForImageClassification, "SparseJEPAForImageClassification"),
):
    # By name, as transformers registers its own families. `register` needs the class itself, and importing that takes
    # almost as long as importing the Auto classes.
    _auto_class._model_mapping._reverse_config_mapping[SparseJEPAConfig.__name__] = SparseJEPAConfig.model_type
    _auto_class._model_mapping._model_mapping[SparseJEPAConfig.model_type] = _name
    _auto_class._model_mapping._modules[SparseJEPAConfig.model_type] = sys.modules[__name__]
# By name too: importing the class would take as long again as all of this. The one module where image processors are
# looked for by name has to be found among transformers' own.
IMAGE_PROCESSOR_MAPPING_NAMES[SparseJEPAConfig.model_type] = dict.fromkeys(
    ("torchvision", "pil"), "SparseJEPAImageProcessor"
)
sys.modules[f"transformers.models.{SparseJEPAConfig.model_type}"] = sys.modules[__name__]


__all__ = [
    "PRESETS",
    "MultiBlockMaskSampler",
    "SparseJEPABackbone",
    "SparseJEPAConfig",
    "SparseJEPAForImageClassification",
    "SparseJEPAForPreTraining",
    "SparseJEPAImageProcessor",
    "SparseJEPAModel",
    "SparseJEPATrainer",
    "SparseJEPATrainingArguments",
    "SparseJEPAVisionModel",
    "load_image_dataset",
]
