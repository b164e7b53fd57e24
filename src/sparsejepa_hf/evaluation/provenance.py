# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Where a number comes from: code, versions and machine, written beside every result."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch


_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "evaluate", "safetensors", "timm", "numpy")


def provenance() -> dict[str, Any]:
    """`commit` (with `-dirty` if the code under `src` was changed), `versions`, `python` and `machine`."""
    return {
        "commit": _commit(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _commit() -> str | None:
    """The commit of the checkout that this package runs from; None for an installed copy."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        # The commit says nothing about a package installed inside somebody else's repository.
        if not git("ls-files", str(Path(__file__).name)):
            return None
        return commit + ("-dirty" if git("status", "--porcelain", "--", str(here.parent)) else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
