# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Encoders as models of other families and as ONNX, and models of other families as this one's."""

from .ijepa import export_encoder, from_ijepa, to_ijepa
from .onnx import export_onnx
from .timm_models import from_timm, to_timm


__all__ = ["export_encoder", "export_onnx", "from_ijepa", "from_timm", "to_ijepa", "to_timm"]
