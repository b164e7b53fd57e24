# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Interleaved timing: candidates take turns, so that a drift of the machine hits all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def interleaved(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    warmup: int = 1,
    device: torch.device | str = "cpu",
    min_seconds: float = 0.0,
) -> dict[str, list[float]]:
    """Wall-clock seconds of each candidate's calls, `repeats` each.

    All candidates are first called `warmup` times, untimed. Then, `repeats` times, each is called once; who begins
    rotates. On an accelerator the device is synchronised before and after each call. Calls so short that they would
    measure what ran before them are called again and again, for about `min_seconds`, and their mean counts as one.

    Raises:
        ValueError: if `repeats` is below 1 or there is no candidate.
    """
    if repeats < 1 or not candidates:
        raise ValueError(f"There are {len(candidates)} candidates and {repeats} repeats; expected at least one each.")
    for _ in range(warmup):
        for call in candidates.values():
            call()
    names = list(candidates)
    counts = {name: _count(call, min_seconds, device) for name, call in candidates.items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(repeats):
        turn = round_ % len(names)
        for name in names[turn:] + names[:turn]:
            seconds[name].append(_timed(candidates[name], device, counts[name]))
    return seconds


def _count(call: Callable[[], Any], min_seconds: float, device: torch.device | str) -> int:
    """How many calls take `min_seconds`."""
    return 1 if min_seconds <= 0 else max(1, round(min_seconds / _timed(call, device)))


def _timed(call: Callable[[], Any], device: torch.device | str, count: int = 1) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / count


def synchronize(device: torch.device | str) -> None:
    """Waits until an accelerator has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def summary(seconds: list[float]) -> dict[str, Any]:
    """`median_s`, `fastest_s`, `slowest_s` and `n` of the calls."""
    return {
        "median_s": statistics.median(seconds),
        "fastest_s": min(seconds),
        "slowest_s": max(seconds),
        "n": len(seconds),
    }


def speedup(baseline: list[float], seconds: list[float]) -> float:
    """How many times as fast as the baseline: the median over rounds of the two times of one round."""
    return statistics.median(b / s for b, s in zip(baseline, seconds, strict=True))
