# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Accuracy, balanced accuracy and top-5 accuracy as a module of the `evaluate` library."""

import warnings
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, balanced_accuracy_score


_DESCRIPTION = """
Accuracy, the share of samples whose best-scored class is right; balanced accuracy, the mean of this share over the
classes that occur, so that every class counts the same; and top-5 accuracy, the share of samples whose class is among
the five best.
"""

_CITATION = """
@article{pedregosa2011scikit,
  title={Scikit-learn: Machine Learning in {P}ython},
  author={Pedregosa, Fabian and Varoquaux, Ga{\\"e}l and Gramfort, Alexandre and Michel, Vincent and Thirion, Bertrand
    and Grisel, Olivier and Blondel, Mathieu and Prettenhofer, Peter and Weiss, Ron and Dubourg, Vincent and others},
  journal={Journal of Machine Learning Research},
  volume={12},
  pages={2825--2830},
  year={2011}
}
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `int`): for every sample its classes from best to worst, all of one length: the
        predicted class alone, or the best five.
    references (`list` of `int`): the true classes.

Returns:
    accuracy (`float`): in [0, 1].
    balanced_accuracy (`float`): in [0, 1].
    top5_accuracy (`float`): in [0, 1]; only where five or more classes a sample are given.

Examples:

    >>> from sparsejepa_hf.evaluation import load_metric
    >>> metric = load_metric("classification")
    >>> metric.compute(predictions=[[0], [0], [0], [0]], references=[0, 0, 0, 1])
    {'accuracy': 0.75, 'balanced_accuracy': 0.5}
    >>> metric.compute(predictions=[[5, 4, 3, 2, 1], [0, 1, 2, 3, 4]], references=[3, 0])["top5_accuracy"]
    1.0
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Classification(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        classes = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Sequence(classes), "references": classes}),
            reference_urls=["https://scikit-learn.org/stable/modules/model_evaluation.html"],
        )

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        ranked, labels = np.asarray(predictions), np.asarray(references)
        with warnings.catch_warnings():
            # A class may be predicted that no sample has, and all samples may have one class.
            warnings.simplefilter("ignore", UserWarning)
            balanced = balanced_accuracy_score(labels, ranked[:, 0])
        found = {
            "accuracy": float(accuracy_score(labels, ranked[:, 0])),
            "balanced_accuracy": float(balanced),
        }
        if ranked.shape[1] >= 5:
            found["top5_accuracy"] = float((ranked[:, :5] == labels[:, None]).any(axis=1).mean())
        return found
