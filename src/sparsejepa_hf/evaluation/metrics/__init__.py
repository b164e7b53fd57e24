# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Modules for the `evaluate` library that load from the installed package, without any network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .representation import FeatureSparsity, PowerLawFit, alpha_req, feature_sparsity


METRICS = (
    "alpha_req",
    "balanced_accuracy",
    "count_error",
    "feature_sparsity",
    "probe_gap",
    "rankme",
    "top_k_accuracy",
)


def metric_path(name: str) -> str:
    """Folder of a metric, for ``evaluate.load(metric_path("rankme"))`` and lists given to ``evaluate.combine``.

    Args:
        name: one of ``METRICS``.

    Raises:
        ValueError: there is no metric of this name.
    """
    if name not in METRICS:
        raise ValueError(f"The metric {name!r} is unknown; expected one of: {', '.join(METRICS)}.")
    return str(Path(__file__).parent / name)


def load_metric(name: str, **options: Any) -> Any:
    """``evaluate.load`` for a metric of this package; nothing is asked of the Hub.

    `evaluate` copies the script to its module cache and the inputs to its data cache, as for every metric.

    Args:
        name: one of ``METRICS``.
        options: as for ``evaluate.load`` (``num_process``, ``process_id``, ``experiment_id``, ``cache_dir``,
            ``keep_in_memory``, ...), and the metric's own settings, such as ``k`` of `top_k_accuracy`.

    Returns:
        An ``evaluate.Metric``.

    Raises:
        ValueError: there is no metric of this name.
    """
    # Only here: `evaluate` takes long to import, and the functions of this package need it not.
    import evaluate

    return evaluate.load(metric_path(name), **options)


__all__ = [
    "METRICS",
    "FeatureSparsity",
    "PowerLawFit",
    "alpha_req",
    "feature_sparsity",
    "load_metric",
    "metric_path",
]
