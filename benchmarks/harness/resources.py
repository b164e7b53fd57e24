# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Peak memory, counted operations, the fastest matrix product of the machine, and fresh processes to measure in."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


# Otherwise the profiler prints when it starts and stops. It reads this while it is imported.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402
from torch.utils.benchmark import Timer  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402


# A large square, and the tall and narrow products of a small ViT. CPUs and GPUs differ in which one is fastest.
_PRODUCTS = {
    "cpu": ((4096, 4096, 4096), (16384, 192, 768), (16384, 768, 192), (8192, 384, 1536)),
    "cuda": ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 16384, 16384), (131072, 768, 3072)),
}


def peak_tensor_bytes(call: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """Most bytes of tensors alive at a time during `call`, beyond those alive before it.

    On CUDA this is the allocator's own statistic. On a CPU it is summed from the allocations that torch's profiler
    sees; scratch space inside libraries is not among them.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    alive = peak = 0
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def resident_bytes(peak: bool = False) -> int:
    """Physical memory of this process: now, or at most since [`reset_peak_resident`] (Linux)."""
    name = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def reset_peak_resident() -> None:
    """Lets the peak of [`resident_bytes`] begin anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `function(*arguments)` in a new process: memory that this one has freed would hide its growth."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def counted_flops(call: Callable[[], Any]) -> int:
    """Operations of the matrix products in `call` by torch's counter: 2·m·n·k for (m, k) by (k, n).

    Attention runs as plain products, because the counter does not know all fused kernels.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def matmul_peak(precision: str, device: torch.device | str = "cpu", seconds: float = 1.0) -> dict[str, float]:
    """Highest FLOP/s of a matrix product in `precision` ("fp32" or "bf16"), each of four shapes timed for `seconds`.

    Returns:
        `flops` a second, and `rows`, `inner`, `columns` of the product that reached it.
    """
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    found = []
    for rows, inner, columns in _PRODUCTS[torch.device(device).type]:
        tensors = {
            "left": torch.randn(rows, inner, device=device).to(dtype),
            "right": torch.randn(inner, columns, device=device).to(dtype),
            "out": torch.empty(rows, columns, device=device, dtype=dtype),
        }
        product = Timer("torch.mm(left, right, out=out)", globals=tensors, num_threads=torch.get_num_threads())
        median = product.blocked_autorange(min_run_time=seconds).median
        shape = {"rows": rows, "inner": inner, "columns": columns}
        found.append({"flops": 2.0 * rows * inner * columns / median, **shape})
    return max(found, key=lambda product: product["flops"])
