# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Errors of predicted counts as a module of the `evaluate` library."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import mean_absolute_error, r2_score


_DESCRIPTION = """
Errors of predicted numbers of objects: the share of counts that are exactly right once rounded, the mean absolute
error, and R2, the share of the variance of the counts that the predictions explain. The counting task of VTAB (Zhai et
al., 2019, arXiv 1910.04867) reports exact matches.
"""

_CITATION = """
@article{zhai2019largescale,
  title={A Large-scale Study of Representation Learning with the Visual Task Adaptation Benchmark},
  author={Zhai, Xiaohua and Puigcerver, Joan and Kolesnikov, Alexander and Ruyssen, Pierre and Riquelme, Carlos and
    Lucic, Mario and Djolonga, Josip and Pinto, Andre Susano and Neumann, Maxim and Dosovitskiy, Alexey and others},
  journal={arXiv preprint arXiv:1910.04867},
  year={2019}
}
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `float`): the predicted counts, integers or not.
    references (`list` of `float`): the true counts.

Returns:
    exact_match (`float`): share of predictions that are right after rounding to the nearest integer, halves up.
    mae (`float`): mean absolute error of the predictions as given, in objects.
    r2 (`float` or `None`): 1 - squared error / squared deviation of the references from their mean, at most 1, of
        the predictions as given; None if all references are equal.

Examples:

    >>> from sparsejepa_hf.evaluation import load_metric
    >>> metric = load_metric("counting")
    >>> metric.compute(predictions=[3.0, 4.25, 6.75, 9.0], references=[3, 4, 7, 10])
    {'exact_match': 0.75, 'mae': 0.375, 'r2': 0.9625}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Counting(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
            reference_urls=["https://arxiv.org/abs/1910.04867"],
        )

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float | None]:
        found, counts = np.asarray(predictions), np.asarray(references)
        return {
            "exact_match": float((np.floor(found + 0.5) == counts).mean()),
            "mae": float(mean_absolute_error(counts, found)),
            "r2": float(r2_score(counts, found)) if np.ptp(counts) > 0 else None,
        }
