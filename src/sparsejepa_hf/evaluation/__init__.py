# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Evaluation of frozen representations: features, kNN, linear probe and label-free diagnostics."""

from .features import extract_features, pixel_features
from .knn import knn_accuracy, knn_predict
from .linear_probe import LinearProbeResult, linear_probe
from .provenance import provenance
from .rankme import feature_std, rankme


__all__ = [
    "LinearProbeResult",
    "extract_features",
    "feature_std",
    "knn_accuracy",
    "knn_predict",
    "linear_probe",
    "pixel_features",
    "provenance",
    "rankme",
]
