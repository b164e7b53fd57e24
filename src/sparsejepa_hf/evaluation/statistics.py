# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Is one method better than another: paired statistics over seeds."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
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


def summarize(values: Sequence[float] | Mapping[Hashable, float]) -> Summary:
    """Mean, standard deviation (divisor n - 1) and number of `values`, a sequence or a mapping from seeds.

    Raises:
        ValueError: there is no value, or one is NaN or infinite.
    """
    array = _finite(list(values.values() if isinstance(values, Mapping) else values), "values")
    return Summary(float(array.mean()), _std(array), array.size)


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
    """

    mean: float
    std: float | None
    n: int
    low: float | None
    high: float | None
    confidence: float
    p_value: float | None

    @property
    def sign(self) -> int | None:
        """1 or -1 if the whole interval lies above or below 0, 0 if it holds 0, None where there is no interval."""
        if self.low is None or self.high is None:
            return None
        return int(self.low > 0) - int(self.high < 0)

    @property
    def is_larger_than_spread(self) -> bool | None:
        """Whether `|mean| > std`: the difference exceeds its own scatter from seed to seed. None for one seed.

        At 95 %, an interval that leaves out 0 asks for more than this up to n = 6, and for less from n = 7 on.
        """
        return None if self.std is None else abs(self.mean) > self.std


def paired_difference(
    baseline: Mapping[Hashable, float], method: Mapping[Hashable, float], confidence: float = 0.95
) -> PairedDifference:
    """Method minus baseline, seed by seed, with Student's t interval for the mean difference.

    The interval assumes that the differences of all seeds are independent draws from one normal distribution. It
    speaks of the training seeds only: the test samples are the same for every seed.

    Args:
        baseline: result by seed.
        method: result by seed, for the same seeds.
        confidence: of the interval, in (0, 1).

    Returns:
        With one seed, `std`, `low`, `high` and `p_value` are None. If all differences are equal, the interval
        has no width and the p value is 0, or 1 if they all are 0.

    Raises:
        ValueError: the seeds differ, there is none, a value is NaN or infinite, or `confidence` is out of range.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, but a number between 0 and 1 is expected, for example 0.95.")
    if baseline.keys() != method.keys():
        only = [", ".join(sorted(map(str, a.keys() - b.keys()))) for a, b in ((baseline, method), (method, baseline))]
        raise ValueError(
            f"The seeds differ (only in baseline: {only[0] or 'none'}; only in method: {only[1] or 'none'}), but the "
            "same seeds are expected. Run the missing ones, or leave the others out of both."
        )
    left = _finite(list(baseline.values()), "baseline")
    right = _finite([method[seed] for seed in baseline], "method")
    mean, std, n = float((right - left).mean()), _std(right - left), left.size
    if std is None:
        return PairedDifference(mean, None, n, None, None, confidence, None)
    if std == 0:
        return PairedDifference(mean, std, n, mean, mean, confidence, float(mean == 0))
    test = stats.ttest_rel(right, left)
    low, high = test.confidence_interval(confidence)
    return PairedDifference(mean, std, n, float(low), float(high), confidence, float(test.pvalue))


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
        For example `"better by 1.2 points (95 % CI 0.3 to 2.1, n = 3)"`, where for errors the figures are those of
        the reduction; `"no difference shown: ..."` where the interval holds 0, which is no proof of equality.
    """
    direction = scale if higher_is_better else -scale
    gain = direction * difference.mean
    if difference.low is None or difference.high is None:
        return f"not decided: {gain:+.1f} {unit} from one seed, which gives no interval; run at least two seeds"
    low, high = sorted((direction * difference.low, direction * difference.high))
    about = f"({100 * difference.confidence:g} % CI {{:.1f}} to {{:.1f}}, n = {difference.n})"
    if difference.sign == 0:
        return f"no difference shown: {gain:+.1f} {unit} {about.format(low, high)}"
    word = "better" if gain > 0 else "worse"
    return f"{word} by {abs(gain):.1f} {unit} {about.format(*sorted((abs(low), abs(high))))}"


def _std(array: NDArray) -> float | None:
    if array.size < 2:
        return None
    # Rounding alone would give equal values a spread.
    return 0.0 if np.ptp(array) == 0 else float(array.std(ddof=1))


def _finite(values: Sequence[float], name: str) -> NDArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} has the shape {array.shape}, but one number per seed is expected, at least one.")
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name} holds {array[~np.isfinite(array)][0]}, but finite numbers are expected. "
            "Leave the failed runs out of both methods, and say so."
        )
    return array
