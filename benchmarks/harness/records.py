# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Flags that all benchmarks share, and the records that they write."""

import argparse
import importlib
import importlib.metadata
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import torch

from sparsejepa_hf.records import provenance


ROOT = Path(__file__).parents[2]
EFFORTS = ("full", "short", "smoke")
# Their versions are written down where they are installed.
_ALTERNATIVES = ("lightly", "onnxruntime", "onnxscript", "onnx", "torchvision", "pillow")


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags that all benchmarks share."""
    flags = argparse.ArgumentParser(
        description=description.strip().splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    flags.add_argument("--results_dir", type=Path, default=ROOT / "results", help="where the record goes")
    flags.add_argument("--effort", choices=EFFORTS, default="full", help="full; short: brief; smoke: does it run?")
    flags.add_argument("--threads", type=int, default=os.cpu_count(), help="torch's threads")
    flags.add_argument("--repeats", type=int, default=None, help="timed rounds; default: by effort")
    flags.add_argument("--device", default="cpu", help="cpu or cuda")
    flags.add_argument("--seed", type=int, default=0, help="seed of weights, images and masks")
    return flags


def start(options: argparse.Namespace) -> dict[str, Any]:
    """Sets threads and seed; returns where the numbers will come from, to be taken before they are measured.

    Raises:
        ValueError: for a device that is not measured, or numbers below 1.
    """
    if torch.device(options.device).type not in ("cpu", "cuda"):
        raise ValueError(f"--device is {options.device}; expected cpu or cuda: no other device's work is waited for.")
    if options.threads < 1 or (options.repeats is not None and options.repeats < 1):
        raise ValueError(f"--threads is {options.threads}, --repeats {options.repeats}; expected at least 1 each.")
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    origin = provenance()
    if origin["commit"] and not origin["commit"].endswith("-dirty") and _changed():
        origin["commit"] += "-dirty"
    origin["versions"] |= {name: importlib.metadata.version(name) for name in _ALTERNATIVES if _is_installed(name)}
    return origin


def _changed() -> bool:
    command = ["git", "-C", str(ROOT), "status", "--porcelain", "--", "benchmarks", "examples"]
    return bool(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def commit_of(checkout: Path) -> str | None:
    """The commit that a folder is at, or None for a folder without git."""
    done = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def write(name: str, options: argparse.Namespace, origin: dict[str, Any], measured: dict[str, Any]) -> Path:
    """Writes `benchmark_<name>_<device>.json` and its rendering beside it; returns the former's path.

    Short and smoke runs carry their effort in the file's name, so that they never replace a full run's.
    """
    shown = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    # Where the record lies says nothing about what was measured.
    shown.pop("results_dir")
    record = {"benchmark": name, **origin, "options": shown, **measured}
    suffix = "" if options.effort == "full" else f"_{options.effort}"
    path = options.results_dir / f"benchmark_{name}_{torch.device(options.device).type}{suffix}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = render(record)
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return path


def render(record: dict[str, Any]) -> str:
    """The Markdown of a record, by the module that wrote it."""
    return importlib.import_module(f"benchmarks.{record['benchmark']}").render(record)


def device_name(record: dict[str, Any]) -> str:
    """The processor or GPU that was measured."""
    machine = record["machine"]
    return machine["accelerator"] if record["options"]["device"].startswith("cuda") else machine["processor"]


def origin_line(record: dict[str, Any]) -> str:
    """One line under a table: the machine, threads, versions and seed."""
    machine, versions, options = record["machine"], record["versions"], record["options"]
    commit = (record["commit"] or "unknown")[:7]
    return (
        f"{device_name(record)}, {machine['cores']} cores, {options['threads']} threads; torch {versions['torch']}, "
        f"transformers {versions['transformers']}; seed {options['seed']}; commit {commit}."
    )
