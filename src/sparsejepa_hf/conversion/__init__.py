# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Encoders as models of other families, and models of other families as this one's."""

from .onnx import export_onnx


__all__ = ["export_onnx"]
