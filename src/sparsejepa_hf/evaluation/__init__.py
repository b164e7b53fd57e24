# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Evaluation of frozen representations: features, probes, metrics, data sets and statistics over seeds."""

from .encoders import VisionEncoder, load_encoder
from .evaluator import Evaluator, ProbeSettings, add_probe_flags, probe_settings
from .features import FeatureSet, extract_feature_set, extract_features, pixel_features
from .knn import KNNGridResult, knn_accuracy, knn_grid, knn_predict
from .metrics import (
    METRICS,
    alpha_req,
    classification_metrics,
    feature_sparsity,
    feature_std,
    load_metric,
    metric_path,
    rankme,
)
from .probes import (
    CountProbeResult,
    LinearProbeResult,
    RidgeProbeResult,
    count_probe,
    duplicate_rows,
    image_hashes,
    linear_probe,
    low_shot_indices,
    low_shot_probe,
    ridge_probe,
    validation_mask,
)
from .statistics import PairedDifference, Summary, paired_difference, summarize, verdict
from .tasks import TASKS, Task, find_task, load_task


__all__ = [
    "METRICS",
    "TASKS",
    "CountProbeResult",
    "Evaluator",
    "FeatureSet",
    "KNNGridResult",
    "LinearProbeResult",
    "PairedDifference",
    "ProbeSettings",
    "RidgeProbeResult",
    "Summary",
    "Task",
    "VisionEncoder",
    "add_probe_flags",
    "alpha_req",
    "classification_metrics",
    "count_probe",
    "duplicate_rows",
    "extract_feature_set",
    "extract_features",
    "feature_sparsity",
    "feature_std",
    "find_task",
    "image_hashes",
    "knn_accuracy",
    "knn_grid",
    "knn_predict",
    "linear_probe",
    "load_encoder",
    "load_metric",
    "load_task",
    "low_shot_indices",
    "low_shot_probe",
    "metric_path",
    "paired_difference",
    "pixel_features",
    "probe_settings",
    "rankme",
    "ridge_probe",
    "summarize",
    "validation_mask",
    "verdict",
]
