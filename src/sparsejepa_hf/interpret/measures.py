# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What an analysis returns: measures beside what they would be if there were nothing to find, and a finding."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


MORE, LESS = "more than chance", "less than chance"
# Equal numbers that were added up in another order differ by less, relative to themselves.
_ROUNDING = 1e-9


class NotMeasurable(ValueError):
    """This cannot be measured here. The message says what is missing, what was given and what to do."""


@dataclass(frozen=True)
class Null:
    """The same measure where there is nothing to find.

    Args:
        name: what was put in the place of the groups, such as "shuffled masks".
        values: one value for each draw; a single one where nothing is drawn.
    """

    name: str
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values or not np.isfinite(self.values).all():
            raise ValueError(f"The null {self.name!r} has the values {self.values}; expected finite numbers.")

    @property
    def mean(self) -> float:
        """Mean over the draws."""
        return float(np.mean(self.values))

    @property
    def low(self) -> float:
        """2.5 % of the draws lie below."""
        return float(np.quantile(self.values, 0.025))

    @property
    def high(self) -> float:
        """2.5 % of the draws lie above."""
        return float(np.quantile(self.values, 0.975))


@dataclass(frozen=True)
class Measure:
    """A number, how sure it is, and what chance gives.

    Args:
        name: in words.
        value: the number.
        nulls: what it is compared with.
        interval: 95 % bootstrap interval over images, where there is one.
        unit: such as "nats", or "" for a pure number.
    """

    name: str
    value: float
    nulls: tuple[Null, ...] = ()
    interval: tuple[float, float] | None = None
    unit: str = ""

    def exceeds(self, null: Null) -> bool:
        """Whether the value, with all of its interval, lies above 97.5 % of the null's draws."""
        return min((self.value, *(self.interval or ()))) > null.high + _ROUNDING * abs(null.high)

    def falls_below(self, null: Null) -> bool:
        """Whether the value, with all of its interval, lies below 97.5 % of the null's draws."""
        return max((self.value, *(self.interval or ()))) < null.low - _ROUNDING * abs(null.low)

    @property
    def verdict(self) -> str | None:
        """[`MORE`] if it exceeds every null, [`LESS`] if it falls below every null, else "no more than" those that it
        does not exceed; None without any null."""
        if not self.nulls:
            return None
        if all(map(self.falls_below, self.nulls)):
            return LESS
        rivals = [null.name for null in self.nulls if not self.exceeds(null)]
        return f"no more than {', '.join(rivals)}" if rivals else MORE

    def to_dict(self) -> dict[str, Any]:
        """For a results file."""
        return {
            "name": self.name,
            "value": self.value,
            "interval": self.interval,
            "unit": self.unit,
            "verdict": self.verdict,
            "nulls": [
                {"name": n.name, "mean": n.mean, "low": n.low, "high": n.high, "n": len(n.values)} for n in self.nulls
            ],
        }


def for_each_group(groups: np.ndarray, values: Sequence[float] | np.ndarray, num_groups: int) -> list[float | None]:
    """`values` of `groups` at those groups' places among all; None for the others, such as dead ones."""
    found = dict(zip(np.asarray(groups).tolist(), np.asarray(values, dtype=float).tolist(), strict=True))
    return [found.get(group) for group in range(num_groups)]


@dataclass(frozen=True)
class Section:
    """One question and its answer.

    Args:
        key: in results files, such as "objects".
        title: the question.
        measures: the numbers.
        finding: what they mean here, in a sentence or two. Where a section could not be measured: why.
        details: what figures and tables need besides; nothing but what JSON can hold. `by_group`, if given, holds
            scores of single groups: by name, a list of one number or None for each group.
        is_measured: False if `finding` says why there is no answer.
    """

    key: str
    title: str
    measures: tuple[Measure, ...]
    finding: str
    details: dict[str, Any] = field(default_factory=dict)
    is_measured: bool = True

    def to_dict(self) -> dict[str, Any]:
        """For a results file."""
        return {
            "title": self.title,
            "finding": self.finding,
            "is_measured": self.is_measured,
            "measures": [measure.to_dict() for measure in self.measures],
            "details": self.details,
        }
