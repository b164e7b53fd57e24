# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The machine's limit: what its best matrix product reaches."""

import time

import torch


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# A large square, and the tall and narrow products of a small ViT: whichever the machine likes best is the peak.
_SHAPES = ((4096, 4096, 4096), (16384, 192, 768), (16384, 768, 192), (8192, 384, 1536))


def matmul_peak(precision: str, device: torch.device | str = "cpu", seconds: float = 1.0) -> dict[str, float]:
    """Highest FLOP/s of a matrix product, in `precision` ("fp32" or "bf16").

    Each of four shapes is repeated for about `seconds`; a shape's figure is that of its median call.

    Returns:
        `flops` a second, and `rows`, `inner`, `columns` of the product that reached it.
    """
    best = {"flops": 0.0}
    for rows, inner, columns in _SHAPES:
        reached = _product_flops(rows, inner, columns, _DTYPES[precision], torch.device(device), seconds)
        if reached > best["flops"]:
            best = {"flops": reached, "rows": rows, "inner": inner, "columns": columns}
    return best


def _product_flops(
    rows: int, inner: int, columns: int, dtype: torch.dtype, device: torch.device, seconds: float
) -> float:
    left = torch.randn(rows, inner, device=device).to(dtype)
    right = torch.randn(inner, columns, device=device).to(dtype)
    out = torch.empty(rows, columns, device=device, dtype=dtype)
    calls = []
    end = time.perf_counter() + seconds
    while len(calls) < 4 or time.perf_counter() < end:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        calls.append(time.perf_counter() - start)
    # The first call pays for what is set up once.
    calls = sorted(calls[1:])
    return 2.0 * rows * inner * columns / calls[len(calls) // 2]
