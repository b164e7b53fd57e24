# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The machine's limit: what its best matrix product reaches."""

import time

import torch

from .timing import synchronize


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# A large square, and the tall and narrow products of a small ViT: whichever the machine likes best is the peak.
_SHAPES = {
    "cpu": ((4096, 4096, 4096), (16384, 192, 768), (16384, 768, 192), (8192, 384, 1536)),
    "cuda": ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 16384, 16384), (131072, 768, 3072)),
}
# Calls between two looks at the clock: on an accelerator, starting a call takes as long as a small product.
_CALLS = {"cpu": 1, "cuda": 10}


def matmul_peak(precision: str, device: torch.device | str = "cpu", seconds: float = 1.0) -> dict[str, float]:
    """Highest FLOP/s of a matrix product, in `precision` ("fp32" or "bf16").

    Each of four shapes is repeated for about `seconds`; a shape's figure is that of its median turn.

    Returns:
        `flops` a second, and `rows`, `inner`, `columns` of the product that reached it.
    """
    best = {"flops": 0.0}
    device = torch.device(device)
    for rows, inner, columns in _SHAPES[device.type]:
        reached = _product_flops(rows, inner, columns, _DTYPES[precision], device, seconds)
        if reached > best["flops"]:
            best = {"flops": reached, "rows": rows, "inner": inner, "columns": columns}
    return best


def _product_flops(
    rows: int, inner: int, columns: int, dtype: torch.dtype, device: torch.device, seconds: float
) -> float:
    left = torch.randn(rows, inner, device=device).to(dtype)
    right = torch.randn(inner, columns, device=device).to(dtype)
    out = torch.empty(rows, columns, device=device, dtype=dtype)
    turns, calls = [], _CALLS[device.type]
    end = time.perf_counter() + seconds
    while len(turns) < 4 or time.perf_counter() < end:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            torch.mm(left, right, out=out)
        synchronize(device)
        turns.append((time.perf_counter() - start) / calls)
    # The first turn pays for what is set up once.
    turns = sorted(turns[1:])
    return 2.0 * rows * inner * columns / turns[len(turns) // 2]
