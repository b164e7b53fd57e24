# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Peak memory, as the allocator sees it and as the operating system does."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


# The profiler reports its own start and stop otherwise; it reads this when it is loaded.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

from torch.profiler import ProfilerActivity, profile  # noqa: E402


def peak_tensor_bytes(call: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """Most bytes of tensors alive at a time in `call`, beyond those alive before it.

    On a CUDA device from its allocator's statistics; on a CPU from the allocations that torch's profiler sees, which
    leaves out libraries' own scratch space.
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


def peak_resident_bytes() -> int:
    """Most physical memory this process has had since [`reset_peak_resident`], or since its start (Linux)."""
    return _status("VmHWM")


def resident_bytes() -> int:
    """Physical memory of this process now (Linux)."""
    return _status("VmRSS")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}; resident memory is measured on Linux only.")


def reset_peak_resident() -> None:
    """Starts [`peak_resident_bytes`] anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
