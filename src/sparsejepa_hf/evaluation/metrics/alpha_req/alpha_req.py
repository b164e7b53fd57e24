# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""α-ReQ as a module of the `evaluate` library."""

import datasets
import evaluate

from sparsejepa_hf.evaluation.metrics.representation import alpha_req, feature_matrix


_DESCRIPTION = """
α-ReQ (Agrawal et al., NeurIPS 2022): the exponent alpha of the power law rank ** -alpha that the eigenvalues of the
features' covariance follow. It needs no labels. The authors find the best representations near 1; a larger alpha
means that few directions hold the variance, a smaller one that it is spread over many, noise included.
"""

_CITATION = """
@inproceedings{agrawal2022alpha,
  title={{$\\alpha$-ReQ}: Assessing Representation Quality in Self-Supervised Learning by Measuring Eigenspectrum
    Decay},
  author={Agrawal, Kumar Krishna and Mondal, Arnab Kumar and Ghosh, Arna and Richards, Blake},
  booktitle={Advances in Neural Information Processing Systems},
  year={2022}
}
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`): one feature vector per sample, all of the same length.
    first_rank (`int`, optional): rank of the first eigenvalue fitted, from 1; 4 unless given, here or to `load`.
    last_rank (`int`, optional): rank of the last one, 100 unless given; fewer where fewer are above rounding.

Returns:
    alpha_req (`float` or `None`): the exponent; None if fewer than two eigenvalues are left, as after a collapse.
    alpha_req_r2 (`float` or `None`): how well the power law fits the log eigenvalues, at most 1.
    alpha_req_last_rank (`int`): rank of the last eigenvalue that was fitted.

Examples:

    Variances 1, 1/2, 1/3 and 1/4 along four orthogonal directions:

    >>> from sparsejepa_hf.evaluation.metrics import load_metric
    >>> metric = load_metric("alpha_req", first_rank=1)
    >>> directions = [[(i + 1) ** -0.5 * (i == j) for j in range(4)] for i in range(4)]
    >>> mirrored = [[-x for x in row] for row in directions]
    >>> results = metric.compute(predictions=directions + mirrored)
    >>> round(results["alpha_req"], 3)
    1.0
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class AlphaReq(evaluate.Metric):
    def __init__(self, *args, first_rank=4, last_rank=100, **kwargs):
        super().__init__(*args, **kwargs)
        self.first_rank = first_rank
        self.last_rank = last_rank

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float32"))}),
            reference_urls=["https://openreview.net/forum?id=ii9X4vtZGTZ"],
        )

    def _compute(self, predictions, first_rank=None, last_rank=None):
        fit = alpha_req(
            feature_matrix(predictions),
            first_rank=self.first_rank if first_rank is None else first_rank,
            last_rank=self.last_rank if last_rank is None else last_rank,
        )
        return {"alpha_req": fit.alpha, "alpha_req_r2": fit.r2, "alpha_req_last_rank": fit.last_rank}
