# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Is one method better than another: paired statistics over seeds and on one test set."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


@dataclass(frozen=True)
class Summary:
    """Mean and spread of one method's results over seeds.

    Attributes:
        mean: arithmetic mean, in the unit of the values.
        std: standard deviation over the values (divisor n - 1), or None for a single value.
        n: number of values, >= 1.
    """

    mean: float
    std: float | None
    n: int

    def to_dict(self) -> dict[str, Any]:
        """The attributes, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class PairedDifference:
    """Method minus baseline over paired seeds, with Student's t interval.

    Attributes:
        mean: mean of the differences, in the unit of the values.
        std: standard deviation of the differences (divisor n - 1), or None for one seed.
        n: number of paired seeds, >= 1.
        low: lower end of the confidence interval, or None for one seed.
        high: upper end, or None for one seed.
        confidence: of the interval, in (0, 1).
        p_value: of the two-sided paired t test that the mean difference is 0, or None for one seed.
        is_larger_than_spread: whether ``|mean| > std``, the difference exceeds its own scatter from seed to seed; or
            None for one seed. At 95 % an interval that leaves out 0 asks for more than this up to n = 6, and for
            less from n = 7 on.
        differences: method minus baseline by seed.
    """

    mean: float
    std: float | None
    n: int
    low: float | None
    high: float | None
    confidence: float
    p_value: float | None
    is_larger_than_spread: bool | None
    differences: Mapping[Hashable, float]

    @property
    def sign(self) -> int | None:
        """1 or -1 if the whole interval lies above or below 0, 0 if it holds 0, None where there is no interval."""
        if self.low is None or self.high is None:
            return None
        return int(self.low > 0) - int(self.high < 0)

    def to_dict(self) -> dict[str, Any]:
        """The attributes, ready for JSON; seeds become strings."""
        return {
            "mean": self.mean,
            "std": self.std,
            "n": self.n,
            "low": self.low,
            "high": self.high,
            "confidence": self.confidence,
            "p_value": self.p_value,
            "is_larger_than_spread": self.is_larger_than_spread,
            "differences": {str(seed): value for seed, value in self.differences.items()},
        }


@dataclass(frozen=True)
class PairedAccuracy:
    """Two classifiers on the same test samples. All shares are in [0, 1].

    Attributes:
        accuracy: of the method.
        baseline_accuracy: of the baseline.
        difference: ``accuracy - baseline_accuracy``, in [-1, 1].
        standard_error: of ``difference``, from the sample-wise differences of correctness; 0 for one sample.
        n: number of test samples.
        only_method: number of samples that the method alone has right.
        only_baseline: number of samples that the baseline alone has right.
        p_value: of McNemar's exact two-sided test that both counts have the same expectation.
    """

    accuracy: float
    baseline_accuracy: float
    difference: float
    standard_error: float
    n: int
    only_method: int
    only_baseline: int
    p_value: float

    def to_dict(self) -> dict[str, Any]:
        """The attributes, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class TransferGain:
    """How much of a gain on one data set is found on another.

    Attributes:
        in_domain: mean gain on the data set that was trained on, in the unit of the values.
        out_domain: mean gain on the other data set.
        difference: ``out_domain - in_domain``.
        difference_low: lower end of its confidence interval, paired by seed; None unless both gains come from the
            same two or more seeds.
        difference_high: upper end, or None.
        ratio: ``out_domain / in_domain``, the share of the gain that transfers; None unless the interval of the gain
            in the domain leaves out 0, since a ratio to what may be nothing says nothing.
        in_domain_sign: 1, 0, -1 or None, as ``PairedDifference.sign``.
        out_domain_sign: likewise.
        confidence: of all intervals, in (0, 1).
    """

    in_domain: float
    out_domain: float
    difference: float
    difference_low: float | None
    difference_high: float | None
    ratio: float | None
    in_domain_sign: int | None
    out_domain_sign: int | None
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        """The attributes, ready for JSON."""
        return asdict(self)

    def sentence(self, *, scale: float = 100.0, unit: str = "points") -> str:
        """What the figures show, in one sentence.

        Args:
            scale: the values are multiplied by it; 100 turns accuracies in [0, 1] into points.
            unit: name of the unit after scaling.
        """
        gains = f"{self.in_domain * scale:+.1f} {unit} in the domain and {self.out_domain * scale:+.1f} outside it"
        if self.in_domain_sign is None or self.out_domain_sign is None:
            return f"whether the gain transfers cannot be told from one seed: {gains}"
        if self.in_domain_sign <= 0:
            return f"no gain in the domain that could transfer: {gains}"
        share = f"{self.ratio:.0%} of the gain" if self.ratio is not None else "a gain"
        if self.out_domain_sign > 0:
            return f"the gain transfers: {gains} ({share})"
        if self.out_domain_sign < 0:
            return f"the gain turns into a loss: {gains}"
        return f"no transfer of the gain shown: {gains}"


def summarize(values: Sequence[float] | Mapping[Hashable, float]) -> Summary:
    """Mean, standard deviation (divisor n - 1) and number of ``values``, a sequence or a mapping from seeds.

    Raises:
        ValueError: there is no value, or one is NaN or infinite.
    """
    array = _finite(list(values.values() if isinstance(values, Mapping) else values), "values")
    return Summary(float(array.mean()), _std(array), array.size)


def paired_difference(
    baseline: Mapping[Hashable, float], method: Mapping[Hashable, float], confidence: float = 0.95
) -> PairedDifference:
    """Method minus baseline, seed by seed, with Student's t interval for the mean difference.

    The interval assumes that the differences of all seeds are independent draws from one normal distribution. It
    speaks of the training seeds only: the test samples are the same for every seed (see
    :func:`paired_accuracy`).

    Args:
        baseline: result by seed.
        method: result by seed, for the same seeds.
        confidence: of the interval, in (0, 1).

    Returns:
        With one seed, ``std``, ``low``, ``high``, ``p_value`` and ``is_larger_than_spread`` are None. If all
        differences are equal, the interval has no width and the p value is 0, or 1 if they all are 0.

    Raises:
        ValueError: the seeds differ, there is none, a value is NaN or infinite, or ``confidence`` is out of range.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, but a number between 0 and 1 is expected, for example 0.95.")
    _check_same_seeds(baseline, method)
    seeds = list(baseline)
    left = _finite([baseline[seed] for seed in seeds], "baseline")
    differences = _finite([method[seed] for seed in seeds], "method") - left
    by_seed = dict(zip(seeds, differences.tolist(), strict=True))
    mean, std, n = float(differences.mean()), _std(differences), differences.size
    if std is None:
        return PairedDifference(mean, None, n, None, None, confidence, None, None, by_seed)
    error = std / math.sqrt(n)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    if error > 0:
        p_value = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    else:
        p_value = float(mean == 0)
    return PairedDifference(mean, std, n, mean - half, mean + half, confidence, p_value, abs(mean) > std, by_seed)


def verdict(
    difference: PairedDifference, *, scale: float = 100.0, unit: str = "points", higher_is_better: bool = True
) -> str:
    """What a paired difference shows, in one sentence without a full stop.

    Args:
        difference: method minus baseline.
        scale: the figures are multiplied by it; 100 turns accuracies in [0, 1] into points.
        unit: name of the unit after scaling.
        higher_is_better: False for errors, such as the mean absolute error of counts.

    Returns:
        For example ``"better by 1.2 points (95 % CI 0.3 to 2.1, n = 3)"``, where for errors the figures are those of
        the reduction; ``"no difference shown: ..."`` where the interval holds 0, which is no proof of equality.
    """
    direction = 1 if higher_is_better else -1
    gain = direction * difference.mean * scale
    if difference.sign is None:
        return f"not decided: {gain:+.1f} {unit} from one seed, which gives no interval; run at least two seeds"
    low, high = sorted(direction * scale * end for end in (difference.low, difference.high))
    percent = f"{100 * difference.confidence:g} % CI"
    if difference.sign == 0:
        return f"no difference shown: {gain:+.1f} {unit} ({percent} {low:.1f} to {high:.1f}, n = {difference.n})"
    word = "better" if gain > 0 else "worse"
    low, high = sorted((abs(low), abs(high)))
    return f"{word} by {abs(gain):.1f} {unit} ({percent} {low:.1f} to {high:.1f}, n = {difference.n})"


def transfer_gain(in_domain: PairedDifference, out_domain: PairedDifference) -> TransferGain:
    """Compare the gain on the data set that was trained on with that on another one.

    Args:
        in_domain: method minus baseline on the first data set, higher being better.
        out_domain: the same methods on the other data set.

    Raises:
        ValueError: the two intervals have different confidences.
    """
    if in_domain.confidence != out_domain.confidence:
        raise ValueError(
            f"in_domain has the confidence {in_domain.confidence} and out_domain {out_domain.confidence}, but the "
            "same is expected. Compute both with the same confidence."
        )
    low = high = None
    if in_domain.differences.keys() == out_domain.differences.keys():
        change = paired_difference(in_domain.differences, out_domain.differences, in_domain.confidence)
        low, high = change.low, change.high
    return TransferGain(
        in_domain=in_domain.mean,
        out_domain=out_domain.mean,
        difference=out_domain.mean - in_domain.mean,
        difference_low=low,
        difference_high=high,
        ratio=out_domain.mean / in_domain.mean if in_domain.sign else None,
        in_domain_sign=in_domain.sign,
        out_domain_sign=out_domain.sign,
        confidence=in_domain.confidence,
    )


def test_set_standard_error(accuracy: float, n: int) -> float:
    """Standard error ``sqrt(p (1 - p) / n)`` of an accuracy p measured on n independent test samples.

    It speaks of one classifier and of the choice of test samples, not of seeds. For two classifiers on the same
    samples it is the wrong one: see :func:`paired_accuracy`.

    Args:
        accuracy: in [0, 1].
        n: number of test samples, >= 1.

    Raises:
        ValueError: an argument is out of range.
    """
    if not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy is {accuracy}, but a share in [0, 1] is expected. Divide percentages by 100.")
    if n < 1:
        raise ValueError(f"n is {n}, but at least 1 test sample is expected. Pass the size of the test set.")
    return math.sqrt(accuracy * (1 - accuracy) / n)


def paired_accuracy(predictions: ArrayLike, baseline_predictions: ArrayLike, references: ArrayLike) -> PairedAccuracy:
    """Accuracy of a method minus that of a baseline on the same test samples, with a paired standard error.

    With ``d_i`` in {-1, 0, 1} the method's correctness on sample i minus the baseline's, the difference is the mean
    of d and its standard error ``std(d) / sqrt(n)`` (divisor n - 1). The p value is that of McNemar's test in its
    exact, binomial form, which depends only on the samples that one of both has right.

    Args:
        predictions: ``(n,)`` predicted classes of the method.
        baseline_predictions: ``(n,)`` predicted classes of the baseline, for the same samples in the same order.
        references: ``(n,)`` true classes.

    Raises:
        ValueError: the shapes differ, are not one-dimensional, or there is no sample.
    """
    arrays = [np.asarray(given) for given in (predictions, baseline_predictions, references)]
    if arrays[0].ndim != 1 or arrays[0].size == 0 or any(array.shape != arrays[0].shape for array in arrays):
        raise ValueError(
            f"predictions, baseline_predictions and references have the shapes {[array.shape for array in arrays]}, "
            "but one and the same (n,) with n >= 1 is expected. Pass the predicted classes of the same samples."
        )
    right, baseline_right = arrays[0] == arrays[2], arrays[1] == arrays[2]
    differences = right.astype(np.float64) - baseline_right
    only_method, only_baseline = int((right & ~baseline_right).sum()), int((baseline_right & ~right).sum())
    discordant = only_method + only_baseline
    return PairedAccuracy(
        accuracy=float(right.mean()),
        baseline_accuracy=float(baseline_right.mean()),
        difference=(only_method - only_baseline) / right.size,
        standard_error=(_std(differences) or 0.0) / math.sqrt(right.size),
        n=right.size,
        only_method=only_method,
        only_baseline=only_baseline,
        p_value=float(stats.binomtest(only_method, discordant).pvalue) if discordant else 1.0,
    )


def _std(array: np.ndarray) -> float | None:
    if array.size < 2:
        return None
    # Rounding alone would give equal values a spread.
    return 0.0 if np.ptp(array) == 0 else float(array.std(ddof=1))


def _finite(values: Sequence[float], name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} has the shape {array.shape}, but one number per seed is expected, at least one.")
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name} holds {array[~np.isfinite(array)][0]}, but finite numbers are expected. "
            "Leave the failed runs out of both methods, and say so."
        )
    return array


def _check_same_seeds(baseline: Mapping[Hashable, float], method: Mapping[Hashable, float]) -> None:
    only_baseline = sorted(map(str, baseline.keys() - method.keys()))
    only_method = sorted(map(str, method.keys() - baseline.keys()))
    if only_baseline or only_method:
        raise ValueError(
            f"The seeds differ (only in baseline: {', '.join(only_baseline) or 'none'}; only in method: "
            f"{', '.join(only_method) or 'none'}), but the same seeds are expected. Run the missing ones, or leave "
            "the others out of both."
        )
