# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Probe one frozen checkpoint on one or several data sets: linear probe, kNN, few labels, label-free diagnostics.

    sparsejepa probe runs/demo --tasks cifar100=data/cifar100
    sparsejepa probe facebook/ijepa_vith14_1k --tasks cifar10 --feature_kinds last/mean last4/mean
    accelerate launch -m sparsejepa_hf probe timm/vit_tiny_patch16_224 --tasks mine=/data/folder-of-classes

The checkpoint may be one of this package, any transformers vision model, `timm/NAME`, or `pixels`. Under Accelerate
all processes extract features. Features and finished probes are kept in --output_dir.
"""

import argparse
import re
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from ..evaluation import Evaluator, ProbeSettings, add_probe_flags, find_task, load_encoder, probe_settings
from ..records import percent, provenance, table, write_record


SHOWN = {
    "accuracy": "linear",
    "validation_accuracy": "(validation)",
    "top5_accuracy": "top-5",
    "balanced_accuracy": "balanced",
    "knn_accuracy": "kNN",
}
DIAGNOSTICS = {
    "rankme": "RankMe",
    "alpha_req": "α-ReQ",
    "hoyer": "Hoyer sparsity",
    "r2": "count R²",
    "mae": "count MAE",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses, probes, reports; ends with an error if a data set could not be probed."""
    own = parse(arguments)
    # The main process probes while the others wait.
    patience = InitProcessGroupKwargs(timeout=timedelta(days=1))
    accelerator = Accelerator(cpu=own.probe_device in (None, "cpu"), kwargs_handlers=[patience])
    evaluator = Evaluator(own.output_dir, probe_settings(own), accelerator=accelerator)
    origin = provenance()
    tasks = {task.name: task for task in map(find_task, own.tasks)}
    if len(tasks) < len(own.tasks):
        raise ValueError(f"Two of the data sets have one name: {own.tasks}; expected each name once.")
    options = {"encoder": own.encoder, "untrained": own.untrained, "seed": own.seed, "image_size": own.image_size}
    options |= {"num_channels": own.num_channels, "value_range": own.value_range}
    options |= {"device": own.probe_device, "trust_remote_code": own.trust_remote_code}
    found = {
        name: evaluator.evaluate(lambda: load_encoder(own.checkpoint, **options), task) for name, task in tasks.items()
    }
    if not accelerator.is_main_process:
        return
    for name, figures in found.items():
        report(name, figures)
    if any("failed" not in figures for figures in found.values()):
        results = Path(own.results or Path(own.output_dir) / f"{name_of(own.checkpoint, found)}.json")
        record = {**origin, "checkpoint": own.checkpoint, "settings": vars(evaluator.settings), "results": found}
        write_record(record, results)
        print(f"\nWritten to {results}")
    if failed := [name for name, figures in found.items() if "failed" in figures]:
        raise SystemExit(f"Not probed: {', '.join(failed)}")


def name_of(checkpoint: str, tasks: Iterable[str]) -> str:
    """A file's name for what was probed on what, so that no probe writes over another's results."""
    return re.sub(r"[^\w.-]+", "-", " ".join([checkpoint, *tasks])).strip("-.")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The checkpoint, how to load it, and how to probe it."""
    parser = argparse.ArgumentParser(
        "sparsejepa probe",
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="folder, Hub name, timm/NAME or pixels")
    parser.add_argument("--tasks", nargs="+", required=True, help="NAME, NAME=PATH or NAME:count=PATH")
    parser.add_argument("--encoder", choices=("target", "context"), default="target", help="of this package's models")
    parser.add_argument("--untrained", action="store_true", help="the same architecture with fresh weights")
    parser.add_argument("--seed", type=int, default=0, help="of the fresh weights")
    size = "pixels: the side, or height and width; default: the checkpoint's"
    parser.add_argument("--image_size", type=int, nargs="+", help=size)
    parser.add_argument("--num_channels", type=int, default=3, help="of pixels; a checkpoint says its own")
    white = "values that are black and white; default: as in training"
    parser.add_argument("--value_range", type=float, nargs=2, help=white)
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that the checkpoint brings along")
    parser.add_argument("--output_dir", default="runs/linear_probe", help="keeps features and finished probes")
    parser.add_argument("--results", help="JSON file to write; default: named in --output_dir")
    add_probe_flags(parser, ProbeSettings())
    return parser.parse_args(arguments)


def report(name: str, figures: dict[str, Any]) -> None:
    """Prints a data set's figures."""
    if "failed" in figures:
        print(f"\n{name}: {figures['failed']}")
        return
    sizes = f"{figures['num_train']:,} training and {figures['num_test']:,} test images"
    print(f"\n{name} ({sizes}), per cent; chosen on validation: {figures['chosen']}\n")
    low_shot = [key for key in figures if key.startswith("low_shot_") and key.count("_") == 2]
    named = SHOWN | {key: f"{100 * float(key.rpartition('_')[2]):g} % labels" for key in low_shot}
    shown = {label: percent(figures[key]) for key, label in named.items() if figures.get(key) is not None}
    for key in sorted(key for key in figures if key.endswith("_failed")):
        print(f"{key.removesuffix('_failed')}: {figures[key]}")
    print(table(list(shown), [list(shown.values())]))
    other = {label: figures[key] for key, label in DIAGNOSTICS.items() if figures.get(key) is not None}
    print("\n" + ", ".join(f"{label} {value:.3g}" for label, value in other.items()))
