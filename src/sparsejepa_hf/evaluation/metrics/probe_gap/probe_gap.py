# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Gap between two probes on the same samples as a module of the `evaluate` library."""

import datasets
import evaluate

from sparsejepa_hf.evaluation.comparison import paired_accuracy
from sparsejepa_hf.evaluation.metrics.classification import class_indices, predicted_classes


_DESCRIPTION = """
Probe gap: the accuracy of one probe minus that of another on the same samples, for example linear minus kNN probe
(how much of the information is linear but not local) or trained minus untrained encoder (what training added). Its
standard error is the paired one, std(d) / sqrt(n) with d the sample-wise difference of correctness in {-1, 0, 1},
which is smaller than that of two independent accuracies when the probes agree. The p value is that of McNemar's exact
test (McNemar, 1947). All of it speaks of the choice of test samples, not of seeds.
"""

_CITATION = """
@article{mcnemar1947note,
  title={Note on the Sampling Error of the Difference Between Correlated Proportions or Percentages},
  author={McNemar, Quinn},
  journal={Psychometrika},
  volume={12},
  number={2},
  pages={153--157},
  year={1947}
}
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `int`, or `list` of `list` of `float`): predicted classes of the probe, or its scores over
        the classes.
    baseline_predictions (like `predictions`): those of the probe compared with, for the same samples. Within
        `evaluate.combine` give them to `add_batch`, not to `compute`.
    references (`list` of `int`): the true classes.

Returns:
    probe_gap (`float`): accuracy minus accuracy of the baseline, in [-1, 1].
    probe_gap_standard_error (`float`): paired standard error of the gap.
    probe_gap_p_value (`float`): of McNemar's exact two-sided test that there is no gap.
    probe_accuracy (`float`): accuracy of `predictions`, in [0, 1].
    baseline_accuracy (`float`): accuracy of `baseline_predictions`, in [0, 1].

Examples:

    >>> from sparsejepa_hf.evaluation.metrics import load_metric
    >>> metric = load_metric("probe_gap")
    >>> results = metric.compute(
    ...     predictions=[0, 1, 1, 0], baseline_predictions=[0, 1, 0, 1], references=[0, 1, 1, 1]
    ... )
    >>> results["probe_gap"], results["probe_accuracy"], results["baseline_accuracy"]
    (0.0, 0.75, 0.75)
    >>> round(results["probe_gap_standard_error"], 4)
    0.4082
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class ProbeGap(evaluate.Metric):
    def _info(self):
        number = datasets.Value("float64")
        scores = datasets.Sequence(number)
        kinds = [(number, number), (scores, scores), (scores, number), (number, scores)]
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=[
                datasets.Features({"predictions": own, "baseline_predictions": other, "references": number})
                for own, other in kinds
            ],
            reference_urls=["https://doi.org/10.1007/BF02295996"],
        )

    def _compute(self, predictions, references, baseline_predictions):
        result = paired_accuracy(
            predicted_classes(predictions),
            predicted_classes(baseline_predictions, "baseline_predictions"),
            class_indices(references, "references"),
        )
        return {
            "probe_gap": result.difference,
            "probe_gap_standard_error": result.standard_error,
            "probe_gap_p_value": result.p_value,
            "probe_accuracy": result.accuracy,
            "baseline_accuracy": result.baseline_accuracy,
        }
