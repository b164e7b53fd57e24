# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Balanced accuracy as a module of the `evaluate` library."""

import datasets
import evaluate

from sparsejepa_hf.evaluation.metrics.classification import class_balanced_accuracy


_DESCRIPTION = """
Balanced accuracy: the mean over the classes of the share of their samples that is predicted right (macro-averaged
recall). Unlike accuracy it does not change when some classes have more samples than others. Classes without a sample
among the references do not count.
"""

_CITATION = """
@inproceedings{brodersen2010balanced,
  title={The Balanced Accuracy and Its Posterior Distribution},
  author={Brodersen, Kay Henning and Ong, Cheng Soon and Stephan, Klaas Enno and Buhmann, Joachim M.},
  booktitle={International Conference on Pattern Recognition},
  pages={3121--3124},
  year={2010}
}
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `int`, or `list` of `list` of `float`): the predicted classes, or one score per class for
        every sample, of which the largest is taken.
    references (`list` of `int`): the true classes. (Both are stored as numbers with a fraction, so that a score
        given in place of a class is refused and not cut to an integer.)

Returns:
    balanced_accuracy (`float`): in [0, 1].

Examples:

    >>> from sparsejepa_hf.evaluation.metrics import load_metric
    >>> metric = load_metric("balanced_accuracy")
    >>> metric.compute(predictions=[0, 0, 0, 0], references=[0, 0, 0, 1])
    {'balanced_accuracy': 0.5}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class BalancedAccuracy(evaluate.Metric):
    def _info(self):
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=[
                datasets.Features({"predictions": number, "references": number}),
                datasets.Features({"predictions": datasets.Sequence(number), "references": number}),
            ],
            reference_urls=["https://doi.org/10.1109/ICPR.2010.764"],
        )

    def _compute(self, predictions, references):
        return {"balanced_accuracy": class_balanced_accuracy(predictions, references)}
