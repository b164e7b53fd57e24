# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Seconds of training until the kNN accuracy on held-out images passes a threshold.

    python -m benchmarks.time_to_accuracy --dataset /data/cifar100 --jobs 2 --threads 1

I-JEPA and SparseJEPA are pre-trained by `examples/pretrain.py` on one recipe, with the same seeds, threads and number
of runs at a time. The first measurement at or above a threshold counts. Nothing is interpolated, and a threshold that
is not reached is a result. A finished run is not run again. Flags that are not known here go to every run.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from examples.reproduce.runs import IJEPA, IJEPA_OPTIONS, SPARSEJEPA, PreTrainingFailed, Run, Runs, as_options
from sparsejepa_hf.records import NONE, percent, table

from .clocked_pretrain import CURVE
from .harness.records import ROOT, origin_line, parser, start, write


METHODS: dict[str, dict[str, Any]] = {IJEPA: IJEPA_OPTIONS, SPARSEJEPA: {"use_grouping": True}}
CONFIGS = ROOT / "examples" / "configs"
# By effort: recipe, seeds, steps between kNN measurements, and thresholds between the untrained encoder's accuracy and
# the best of the recipe.
PLANS: dict[str, dict[str, Any]] = {
    "full": {
        "recipe": CONFIGS / "cifar100-cpu.yaml",
        "seeds": [0, 1, 2],
        "knn_steps": 125,
        "thresholds": [0.10, 0.12, 0.14, 0.16, 0.18],
    },
    "short": {"recipe": CONFIGS / "demo.yaml", "seeds": [0], "knn_steps": 20, "thresholds": [0.3, 0.4, 0.5, 0.6]},
    "smoke": {"recipe": CONFIGS / "demo.yaml", "seeds": [0], "knn_steps": 2, "thresholds": [0.3, 0.4, 0.5, 0.6]},
}
# Options of all runs. A run that is interrupted begins anew, so it needs no checkpoints on the way.
_SHARED = {"save_strategy": "no", "report_to": "none", "knn_max_examples": 10_000}
_SHORT = {"max_train_examples": 1024, "max_eval_examples": 256, "max_steps": 60, "logging_steps": 20}
_SMOKE = {
    **{"max_train_examples": 64, "max_eval_examples": 32, "max_steps": 4, "logging_steps": 2},
    **{"per_device_train_batch_size": 8, "hidden_size": 24, "num_hidden_layers": 1, "intermediate_size": 48},
    **{"predictor_hidden_size": 24, "predictor_num_hidden_layers": 1},
}
SIZES: dict[str, dict[str, Any]] = {"full": {}, "short": _SHORT, "smoke": _SMOKE}


def main(argv: list[str] | None = None) -> None:
    """Trains what is not there yet and writes the record."""
    flags = parser(__doc__)
    flags.allow_abbrev = False
    flags.add_argument("--recipe", type=Path, help="YAML of a SparseJEPA run; default: by effort")
    flags.add_argument("--dataset", help="in place of the recipe's, such as a folder of parquet files")
    flags.add_argument("--seeds", type=int, nargs="+", help="of pre-training; default: by effort")
    flags.add_argument("--thresholds", type=float, nargs="+", help="kNN accuracies in (0, 1]; default: by effort")
    flags.add_argument("--knn_steps", type=int, help="measure every so many steps; default: by effort")
    flags.add_argument("--jobs", type=int, default=1, help="runs at a time, of --threads each")
    flags.add_argument("--runs_dir", type=Path, default=ROOT / "runs" / "time_to_accuracy", help="where the runs lie")
    options, rest = flags.parse_known_args(argv)
    for name, value in PLANS[options.effort].items():
        setattr(options, name, getattr(options, name) or value)
    options.thresholds = sorted(options.thresholds)
    if not 0 < options.thresholds[0] <= options.thresholds[-1] <= 1:
        flags.error(f"--thresholds are {options.thresholds}; expected accuracies in (0, 1], such as 0.2 for 20 %")
    if options.repeats is not None:
        flags.error(f"--repeats is {options.repeats}; expected none, because runs are repeated by --seeds")
    origin = start(options)
    measured = measure(options, as_options(rest), origin["commit"])
    # Where things lie on this machine says nothing.
    options.dataset = options.dataset and Path(options.dataset).name
    options.recipe, options.runs_dir = options.recipe.name, None
    options.flags = " ".join(rest)
    path = write("time_to_accuracy", options, origin, measured)
    plot({"options": vars(options), **measured}, path.with_suffix(".png"))


def measure(options: argparse.Namespace, given: dict[str, Any], commit: str | None = None) -> dict[str, Any]:
    """Makes the runs, with the options `given`; returns every run's curve and what it took to reach each threshold."""
    shared = {**_SHARED, "use_cpu": options.device == "cpu", "knn_steps": options.knn_steps}
    shared |= SIZES[options.effort] | ({} if options.dataset is None else {"dataset": options.dataset}) | given
    # A run under other code, threads, jobs or measurements would take another time: it is no match.
    place = f"{(commit or 'unknown')[:12]}-knn{options.knn_steps}-jobs{options.jobs}-threads{options.threads}"
    command = [sys.executable, str(Path(__file__).with_name("clocked_pretrain.py"))]
    runs = Runs(options.recipe, command, options.runs_dir / place, shared, options.jobs, options.threads)
    wanted = [Run(method, seed, own) for seed in options.seeds for method, own in METHODS.items()]
    rows = []
    for run, result in zip(wanted, runs.make(wanted), strict=True):
        row: dict[str, Any] = {"method": run.method, "seed": run.seed}
        if isinstance(result, PreTrainingFailed):
            rows.append(row | {"failed": str(result)})
            continue
        curve = json.loads((result.checkpoint / CURVE).read_text(encoding="utf-8"))
        reached = [first_reached(curve, threshold) for threshold in options.thresholds]
        rows.append(row | {"curve": curve, "reached": reached, "run": result.to_dict()})
    return {"thresholds": options.thresholds, "knn_steps": options.knn_steps, "runs": rows}


def first_reached(curve: Sequence[dict[str, float]], threshold: float) -> dict[str, float] | None:
    """The first measurement at or above `threshold`, or None."""
    return next((point for point in curve if point["knn_accuracy"] >= threshold), None)


# ---- what is shown ----


def clocks(record: dict[str, Any]) -> list[tuple[str, str]]:
    """What is compared, and what stands beside it: (key, title) each.

    On a CPU the processor's seconds are compared, because runs beside one another slow each other down.
    """
    found = [("cpu_seconds", "CPU seconds"), ("seconds", "seconds")]
    return found if torch.device(record["options"]["device"]).type == "cpu" else found[::-1]


def render(record: dict[str, Any]) -> str:
    """One row for each method and threshold, with every seed's seconds, and where each curve ends."""
    (clock, title), (other, other_title) = clocks(record)
    done = [run for run in record["runs"] if "failed" not in run]
    rows = []
    for index, threshold in enumerate(record["thresholds"]):
        for method in dict.fromkeys(run["method"] for run in record["runs"]):
            points = [run["reached"][index] for run in done if run["method"] == method]
            each = ", ".join("not reached" if point is None else f"{point[clock]:.0f}" for point in points)
            count = f"{sum(point is not None for point in points)} of {len(points)}"
            # A median over those alone that got there would flatter.
            medians = [NONE] * 3
            if points and None not in points:
                medians = [
                    f"{statistics.median(point[name] for point in points):.0f}" for name in (clock, other, "images")
                ]
            rows.append([percent(threshold), method, count, each or NONE, *medians])
    header = ["kNN accuracy, %", "method", "reached", f"{title}, each seed", "median", other_title, "images"]
    ends = []
    for run in done:
        accuracies, last = [point["knn_accuracy"] for point in run["curve"]], run["curve"][-1]
        shown = (accuracies[0], max(accuracies), accuracies[-1])
        times = [f"{last[name]:.0f}" for name in ("cpu_seconds", "seconds")]
        ends.append([run["method"], str(run["seed"]), str(last["step"]), *times, *map(percent, shown)])
    ends_header = ["method", "seed", "steps", "CPU seconds", "seconds", "untrained, %", "best, %", "last, %"]
    blocks = [table(header, rows), table(ends_header, ends)]
    for run in record["runs"]:
        if "failed" in run:
            blocks.append(f"{run['method']}, seed {run['seed']}, failed: {run['failed']}")
    options = record["options"]
    blocks.append(
        f"{options['recipe']} {options.get('flags', '')}".rstrip()
        + f"; kNN every {record['knn_steps']} steps, its own time left out; the first measurement at "
        f"or above counts; {options['jobs']} runs at a time. " + origin_line(record)
    )
    return "\n\n".join(blocks)


def plot(record: dict[str, Any], path: Path) -> None:
    """Draws kNN accuracy against seconds, a line a run, if matplotlib is there to do it."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError:
        return
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    (clock, title), _ = clocks(record)
    colours = {method: f"C{index}" for index, method in enumerate(METHODS)}
    for run in record["runs"]:
        if "failed" not in run:
            x, y = ([point[name] for point in run["curve"]] for name in (clock, "knn_accuracy"))
            axes.plot(x, [100 * value for value in y], color=colours[run["method"]], alpha=0.8)
    for threshold in record["thresholds"]:
        axes.axhline(100 * threshold, color="grey", linewidth=0.5)
    axes.set_xlabel(f"{title} of training")
    axes.set_ylabel("kNN accuracy on held-out images, %")
    axes.legend([Line2D([], [], color=colour) for colour in colours.values()], list(colours))
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
