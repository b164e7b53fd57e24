# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""RankMe as a module of the `evaluate` library."""

import datasets
import evaluate

from sparsejepa_hf.evaluation.metrics.representation import feature_matrix
from sparsejepa_hf.evaluation.rankme import rankme


_DESCRIPTION = """
RankMe (Garrido et al., 2023, arXiv 2210.02885): the smooth effective rank of a matrix of feature vectors, that is the
exponential of the entropy of its normalised singular values. It needs no labels and lies between 1 (collapsed) and
the smaller of the number of samples and of dimensions.
"""

_CITATION = """
@inproceedings{garrido2023rankme,
  title={{RankMe}: Assessing the Downstream Performance of Pretrained Self-Supervised Representations by Their Rank},
  author={Garrido, Quentin and Balestriero, Randall and Najman, Laurent and LeCun, Yann},
  booktitle={International Conference on Machine Learning},
  year={2023}
}
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`): one feature vector per sample, all of the same length. They are not
        centred, as in the paper, which uses 25,600 samples; use well more samples than dimensions.

Returns:
    rankme (`float`): the effective rank.

Examples:

    Two orthogonal directions of the same strength:

    >>> from sparsejepa_hf.evaluation.metrics import load_metric
    >>> metric = load_metric("rankme")
    >>> results = metric.compute(predictions=[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> round(results["rankme"], 3)
    2.0
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Rankme(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float32"))}),
            reference_urls=["https://arxiv.org/abs/2210.02885"],
        )

    def _compute(self, predictions):
        return {"rankme": rankme(feature_matrix(predictions)).item()}
