# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Whether bf16 pays on this CPU: without units for its products it can take several times as long as fp32."""

import time

import torch
import torch.nn.functional as F
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Tokens, inputs and outputs of a linear map of a small ViT: a product takes milliseconds.
_PRODUCT = (512, 192, 768)
_TURNS = 5
# Two times of the same product differ by a few per cent.
_NOISE = 1.1


def product_seconds(dtype: torch.dtype) -> float:
    """Shortest time of a small linear map on this CPU; time that other processes take does not count."""
    tokens, width, outputs = _PRODUCT
    states, weight = torch.ones(tokens, width, dtype=dtype), torch.ones(outputs, width, dtype=dtype)
    turns = []
    # The first pays for what is set up once.
    for _ in range(1 + _TURNS):
        start = time.thread_time()
        F.linear(states, weight)
        turns.append(time.thread_time() - start)
    return min(turns[1:])


def warn_of_slow_bf16() -> None:
    """Warns if a product takes longer in bf16 than in fp32."""
    half, full = product_seconds(torch.bfloat16), product_seconds(torch.float32)
    # A coarse clock may not see a product at all.
    if half > _NOISE * full > 0:
        logger.warning(
            f"bf16 is on, but on this CPU a matrix product takes {half / full:.1f} times as long in bf16 as in fp32. "
            "Training is probably faster with bf16 set to false."
        )
