# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What every published number needs: where it comes from, the file that holds it, and the table that shows it."""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


NONE = "–"
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
        return commit + ("-dirty" if git("status", "--porcelain", "--", str(here)) else "")
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


def write_record(record: Mapping[str, Any], path: str | Path) -> None:
    """Writes a results file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    Raises:
        ValueError: if a row has another length than the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"A row has {len(row)} cells: {row}; expected {len(header)}: {list(header)}.")
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def percent(value: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as per cent, or a dash."""
    return NONE if value is None else f"{100 * value:.{digits}f}"


def mean_and_std(mean: float, std: float | None) -> str:
    """Shares in [0, 1] as "mean ± std" in per cent; the mean alone where there is one value."""
    return percent(mean) if std is None else f"{percent(mean)} ± {percent(std)}"


def render_into(text: str, name: str, content: str) -> str:
    """`text` with `content` between `<!-- results/NAME -->` and the next `<!-- end -->`.

    Raises:
        ValueError: if `text` has no such marks.
    """
    mark, end = f"<!-- results/{name} -->", "<!-- end -->"
    if mark not in text or end not in text.split(mark, 1)[1]:
        raise ValueError(f"There are no marks {mark} and {end}; put them where the table should stand.")
    before, rest = text.split(mark, 1)
    return f"{before}{mark}\n{content}\n{end}{rest.split(end, 1)[1]}"
