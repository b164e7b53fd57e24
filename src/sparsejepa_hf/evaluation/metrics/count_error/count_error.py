# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Errors of predicted counts as a module of the `evaluate` library."""

import datasets
import evaluate

from sparsejepa_hf.evaluation.metrics.classification import count_errors


_DESCRIPTION = """
Errors of predicted numbers of objects: the share of counts that are exactly right once rounded, the mean absolute
error, and R2, the share of the variance of the counts that the predictions explain. Counting objects in CLEVR images
is a task of the VTAB task (Zhai et al., 2019, arXiv 1910.04867), where exact matches are reported.
"""

_CITATION = """
@article{zhai2019largescale,
  title={A Large-scale Study of Representation Learning with the Visual Kind Adaptation Task},
  author={Zhai, Xiaohua and Puigcerver, Joan and Kolesnikov, Alexander and Ruyssen, Pierre and Riquelme, Carlos and
    Lucic, Mario and Djolonga, Josip and Pinto, Andre Susano and Neumann, Maxim and Dosovitskiy, Alexey and others},
  journal={arXiv preprint arXiv:1910.04867},
  year={2019}
}
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `float`): the predicted counts, integers or not.
    references (`list` of `int`): the true counts, at least 0.

Returns:
    exact_match (`float`): share of predictions that are right after rounding to the nearest integer, halves up.
    mae (`float`): mean absolute error of the predictions as given, in objects.
    r2 (`float` or `None`): 1 - squared error / squared deviation of the references from their mean, at most 1, of
        the predictions as given; None if all references are equal.

Examples:

    >>> from sparsejepa_hf.evaluation.metrics import load_metric
    >>> metric = load_metric("count_error")
    >>> metric.compute(predictions=[3.0, 4.25, 6.75, 9.0], references=[3, 4, 7, 10])
    {'exact_match': 0.75, 'mae': 0.375, 'r2': 0.9625}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class CountError(evaluate.Metric):
    def _info(self):
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": number, "references": number}),
            reference_urls=["https://arxiv.org/abs/1910.04867"],
        )

    def _compute(self, predictions, references):
        return count_errors(predictions, references)
