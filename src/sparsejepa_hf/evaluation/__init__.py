# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Evaluation of frozen representations: features, probes, metrics, data sets and statistics over seeds."""

from .comparison import (
    PairedAccuracy,
    PairedDifference,
    Summary,
    TransferGain,
    paired_accuracy,
    paired_difference,
    summarize,
    test_set_standard_error,
    transfer_gain,
    verdict,
)
from .encoders import VisionEncoder, load_encoder
from .evaluator import Evaluator, ProbeSettings
from .features import FeatureSet, extract_feature_set, extract_features, pixel_features
from .knn import KNNGridResult, knn_accuracy, knn_grid, knn_predict
from .linear_probe import LinearProbeResult, LowShotResult, linear_probe, low_shot_probe
from .metrics import METRICS, alpha_req, feature_sparsity, load_metric, metric_path
from .probe_grid import GridProbeResult, linear_probe_grid
from .rankme import feature_std, rankme
from .regression_probe import CountProbeResult, RegressionProbeResult, count_probe, regression_probe
from .splits import duplicate_rows, exclude_duplicates, image_hashes, low_shot_indices, validation_mask
from .tasks import TASKS, Task, find_task, load_task


__all__ = [
    "METRICS",
    "TASKS",
    "CountProbeResult",
    "Evaluator",
    "FeatureSet",
    "GridProbeResult",
    "KNNGridResult",
    "LinearProbeResult",
    "LowShotResult",
    "PairedAccuracy",
    "PairedDifference",
    "ProbeSettings",
    "RegressionProbeResult",
    "Summary",
    "Task",
    "TransferGain",
    "VisionEncoder",
    "alpha_req",
    "count_probe",
    "duplicate_rows",
    "exclude_duplicates",
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
    "linear_probe_grid",
    "load_encoder",
    "load_metric",
    "load_task",
    "low_shot_indices",
    "low_shot_probe",
    "metric_path",
    "paired_accuracy",
    "paired_difference",
    "pixel_features",
    "rankme",
    "regression_probe",
    "summarize",
    "test_set_standard_error",
    "transfer_gain",
    "validation_mask",
    "verdict",
]
