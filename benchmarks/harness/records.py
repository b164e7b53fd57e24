# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Flags that all benchmarks share, and the records that they write."""

import argparse
import contextlib
import importlib
import importlib.metadata
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sparsejepa_hf.records import provenance, table, write_record


ROOT = Path(__file__).parents[2]
# Their versions are recorded where they are installed.
_ALTERNATIVES = ("lightly", "onnxruntime", "onnxscript", "onnx", "torchvision", "pillow")


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags that all benchmarks share."""
    flags = argparse.ArgumentParser(
        description=description.strip().splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    flags.add_argument("--results_dir", type=Path, default=ROOT / "results", help="where the record goes")
    efforts = ("full", "short", "smoke")
    flags.add_argument("--effort", choices=efforts, default="full", help="full; short: brief; smoke: does it run?")
    flags.add_argument("--threads", type=int, default=os.cpu_count(), help="torch's threads")
    flags.add_argument("--repeats", type=int, default=None, help="timed rounds; default: by effort")
    flags.add_argument("--device", default="cpu", help="cpu or cuda")
    flags.add_argument("--seed", type=int, default=0, help="seed of weights, images and masks")
    return flags


def start(options: argparse.Namespace) -> dict[str, Any]:
    """Sets threads and seed; returns the provenance of what will be measured, so that it is taken beforehand.

    Raises:
        ValueError: for a device that is not measured, or numbers below 1.
    """
    if torch.device(options.device).type not in ("cpu", "cuda"):
        raise ValueError(f"--device is {options.device}; expected cpu or cuda.")
    if options.threads < 1 or (options.repeats is not None and options.repeats < 1):
        raise ValueError(f"--threads is {options.threads}, --repeats {options.repeats}; expected at least 1 each.")
    if torch.device(options.device).index is not None:
        # The clock waits for the current device.
        torch.cuda.set_device(options.device)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    origin = provenance()
    # `provenance` looks for changes in the package alone.
    status = ["git", "-C", str(ROOT), "status", "--porcelain", "--", "benchmarks", "examples"]
    changed = origin["commit"] and subprocess.run(status, capture_output=True, text=True).stdout.strip()
    if changed and not origin["commit"].endswith("-dirty"):
        origin["commit"] += "-dirty"
    for name in _ALTERNATIVES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            origin["versions"][name] = importlib.metadata.version(name)
    return origin


def make_record(
    name: str, options: argparse.Namespace, origin: dict[str, Any], measured: dict[str, Any]
) -> dict[str, Any]:
    """What was measured, with its origin and its options."""
    shown = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    # Where the record lies says nothing about what was measured.
    shown.pop("results_dir")
    return {"benchmark": name, **origin, "options": shown, **measured}


def write(name: str, options: argparse.Namespace, origin: dict[str, Any], measured: dict[str, Any]) -> Path:
    """Writes `benchmark_<name>_<device>.json` and its rendering beside it; returns the former's path.

    The file of a short or smoke run carries its effort in its name, so that it never replaces a full run's.
    """
    record = make_record(name, options, origin, measured)
    suffix = "" if options.effort == "full" else f"_{options.effort}"
    path = options.results_dir / f"benchmark_{name}_{torch.device(options.device).type}{suffix}.json"
    write_record(record, path)
    text = render(record)
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return path


def render(record: dict[str, Any]) -> str:
    """The Markdown of a record, by the module that wrote it."""
    return importlib.import_module(f"benchmarks.{record['benchmark']}").render(record)


def format_table(columns: Sequence[tuple[str, str]], rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table. Each column is its title and a format string for the values of a row."""
    return table([title for title, _ in columns], [[text.format_map(row) for _, text in columns] for row in rows])


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
