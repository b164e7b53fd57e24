# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Sparsity of feature vectors as a module of the `evaluate` library."""

import datasets
import evaluate

from sparsejepa_hf.evaluation.metrics.representation import feature_matrix, feature_sparsity


_DESCRIPTION = """
Sparsity of feature vectors: the share of entries that are exactly or nearly zero, the mean number of others (l0), the
mean sum of absolute values (l1) and Hoyer's measure, which does not depend on scale (Hoyer, 2004; compared with
others by Hurley and Rickard, 2009, arXiv 0811.4706).
"""

_CITATION = """
@article{hoyer2004nonnegative,
  title={Non-negative Matrix Factorization with Sparseness Constraints},
  author={Hoyer, Patrik O.},
  journal={Journal of Machine Learning Research},
  volume={5},
  pages={1457--1469},
  year={2004}
}
@article{hurley2009comparing,
  title={Comparing Measures of Sparsity},
  author={Hurley, Niall and Rickard, Scott},
  journal={IEEE Transactions on Information Theory},
  volume={55},
  number={10},
  pages={4723--4741},
  year={2009}
}
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`): one feature vector per sample, all of the same length D.
    threshold (`float`, optional): largest absolute value that counts as near zero; 1e-6 unless given, here or to
        `load`.

Returns:
    exact_zero_share (`float`): share of the entries that are 0, in [0, 1].
    near_zero_share (`float`): share of the entries with an absolute value of at most `threshold`, in [0, 1].
    l0 (`float`): mean number of entries above `threshold` per vector, in [0, D].
    l1 (`float`): mean sum of absolute values per vector.
    hoyer (`float` or `None`): mean of (sqrt(D) - l1 / l2) / (sqrt(D) - 1) over the vectors that are not all zero,
        from 0 (all entries of one size) to 1 (one entry alone); None if there is no such vector or D is 1.
    zero_vectors (`int`): number of vectors of zeros alone.

Examples:

    >>> from sparsejepa_hf.evaluation.metrics import load_metric
    >>> metric = load_metric("feature_sparsity")
    >>> results = metric.compute(predictions=[[0.0, 0.0, 0.0, 2.0], [1.0, -1.0, 1.0, 1.0]])
    >>> results["exact_zero_share"], results["l0"], results["l1"], results["hoyer"]
    (0.375, 2.5, 3.0, 0.5)
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class FeatureSparsity(evaluate.Metric):
    def __init__(self, *args, threshold=1e-6, **kwargs):
        super().__init__(*args, **kwargs)
        self.threshold = threshold

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float32"))}),
            reference_urls=["https://arxiv.org/abs/0811.4706", "https://www.jmlr.org/papers/v5/hoyer04a.html"],
        )

    def _compute(self, predictions, threshold=None):
        features = feature_matrix(predictions)
        result = feature_sparsity(features, threshold=self.threshold if threshold is None else threshold).to_dict()
        del result["threshold"]
        return result
