# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Interleaved timing: candidates take turns, so that a drift of the machine hits all of them alike.

`torch.utils.benchmark.Timer` times one candidate to its end before the next one, and warms up again at every call.
Its clock, which waits for an accelerator to finish, is used here.
"""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.benchmark import timer


def seconds_of(call: Callable[[], Any], count: int = 1) -> float:
    """Mean wall-clock seconds of `count` calls, including the work that they leave to an accelerator."""
    start = timer()
    for _ in range(count):
        call()
    return (timer() - start) / count


def interleaved(
    candidates: Mapping[str, Callable[[], Any]], *, repeats: int, warmup: int = 1, min_seconds: float = 0.0
) -> dict[str, list[float]]:
    """Times candidates in turn.

    Args:
        candidates: calls by name.
        repeats: rounds. Each candidate is timed once a round, and the one that begins rotates.
        warmup: untimed calls of each candidate before the first round.
        min_seconds: a shorter call is repeated for about this long within a round, and the mean counts. Otherwise a
            short call would be timed with the caches that its predecessor left.

    Returns:
        For each candidate the wall-clock seconds of a call in each round.
    """
    for _ in range(warmup):
        for call in candidates.values():
            call()
    counts = {
        name: max(1, round(min_seconds / seconds_of(call))) if min_seconds else 1 for name, call in candidates.items()
    }
    names = list(candidates)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(repeats):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(seconds_of(candidates[name], counts[name]))
    return seconds


def summary(seconds: list[float]) -> dict[str, Any]:
    """`median_s`, `fastest_s`, `slowest_s` and `n` of the calls."""
    return {
        "median_s": statistics.median(seconds),
        "fastest_s": min(seconds),
        "slowest_s": max(seconds),
        "n": len(seconds),
    }


def speedup(baseline: list[float], seconds: list[float]) -> float:
    """How many times as fast as the baseline: the median over rounds of the ratio of that round's two times."""
    return statistics.median(b / s for b, s in zip(baseline, seconds, strict=True))
