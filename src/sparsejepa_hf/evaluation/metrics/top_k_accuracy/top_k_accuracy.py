# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Top-k accuracy as a module of the `evaluate` library."""

import datasets
import evaluate

from sparsejepa_hf.evaluation.metrics.classification import top_k_accuracies


_DESCRIPTION = """
Top-k accuracy: the share of samples whose class is among the k classes with the highest scores. Top-1 accuracy, the
default, is the usual accuracy; several k can be asked for at once.
"""

_CITATION = """
@article{russakovsky2015imagenet,
  title={{ImageNet} Large Scale Visual Recognition Challenge},
  author={Russakovsky, Olga and Deng, Jia and Su, Hao and Krause, Jonathan and Satheesh, Sanjeev and Ma, Sean and
    Huang, Zhiheng and Karpathy, Andrej and Khosla, Aditya and Bernstein, Michael and Berg, Alexander C. and
    Fei-Fei, Li},
  journal={International Journal of Computer Vision},
  volume={115},
  number={3},
  pages={211--252},
  year={2015}
}
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`, or `list` of `int`): one score per class for every sample (logits or
        probabilities), or the predicted classes, which allow k = 1 only. Of equal scores the lower class goes first.
    references (`list` of `int`): the true classes. (Both are stored as numbers with a fraction, so that a score
        given in place of a class is refused and not cut to an integer.)
    k (`int` or `list` of `int`, optional): 1 unless given, here or to `load`; give it to `load` within
        `evaluate.combine`, which hands every keyword argument of `compute` to every module.

Returns:
    top_{k}_accuracy (`float`): for every k, in [0, 1], for example `top_1_accuracy` and `top_5_accuracy`.

Examples:

    >>> from sparsejepa_hf.evaluation.metrics import load_metric
    >>> metric = load_metric("top_k_accuracy")
    >>> scores = [[0.1, 0.7, 0.2], [0.5, 0.2, 0.3], [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]
    >>> metric.compute(predictions=scores, references=[1, 2, 2, 2], k=[1, 2])
    {'top_1_accuracy': 0.5, 'top_2_accuracy': 0.75}
    >>> metric.compute(predictions=[1, 0, 2, 0], references=[1, 2, 2, 2])
    {'top_1_accuracy': 0.5}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class TopKAccuracy(evaluate.Metric):
    def __init__(self, *args, k=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.k = k

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
            reference_urls=["https://arxiv.org/abs/1409.0575"],
        )

    def _compute(self, predictions, references, k=None):
        accuracies = top_k_accuracies(predictions, references, self.k if k is None else k)
        return {f"top_{number}_accuracy": accuracy for number, accuracy in accuracies.items()}
