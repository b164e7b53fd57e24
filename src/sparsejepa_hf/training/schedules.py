# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Schedules as functions of the optimizer step, so that a resumed run needs no state to continue them."""

import math


def warmup_steps(value: float, total_steps: int) -> int:
    """Steps of a warm-up: a share of `total_steps` if below 1, else a number of steps (as transformers reads it)."""
    return math.ceil(value * total_steps) if value < 1 else int(value)


def linear_warmup(step: int, length: int) -> float:
    """Rises linearly from 1/length at step 0 to 1 at step `length - 1` and stays there."""
    return 1.0 if length <= 0 else min(1.0, (step + 1) / length)


def linear(step: int, total_steps: int, start: float, end: float) -> float:
    """From `start` at step 0 to `end` at the last step, linearly."""
    return start + (end - start) * _progress(step, total_steps)


def cosine(step: int, total_steps: int, start: float, end: float) -> float:
    """From `start` at step 0 to `end` at the last step, along half a cosine."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * _progress(step, total_steps)))


def _progress(step: int, total_steps: int) -> float:
    return min(1.0, step / max(1, total_steps - 1))
