# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Seconds of training until the kNN accuracy on held-out images passes a threshold.

    python -m benchmarks.time_to_accuracy --dataset /data/cifar100 --jobs 2 --threads 1

I-JEPA, SparseJEPA and SparseJEPA with a path around its groups are pre-trained by `examples/pretrain.py` on one
recipe, with the same seeds, threads and number of runs at a time. The first measurement at or above a threshold
counts; nothing is interpolated, and not to reach it is a result. What is finished is not run again. Flags that are
not known here go to every run.
"""

import argparse
import functools
import hashlib
import json
import runpy
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from examples.reproduce.runs import IJEPA, IJEPA_OPTIONS, SPARSEJEPA, PreTrainingFailed, Run, Runs, as_options
from sparsejepa_hf.records import NONE, percent, table
from sparsejepa_hf.training import trainer
from sparsejepa_hf.training.monitors import KNNMonitor

from .harness.records import ROOT, origin_line, parser, start, write
from .harness.timing import synchronize


RESIDUAL = "SparseJEPA, path around the groups"
# The path around the groups leaves W a tenth of the gradient, so λ is a tenth too.
_RESIDUAL_OPTIONS = {"latent_residual": True, "sparsity_weight": 1e-4}
METHODS: dict[str, dict[str, Any]] = {IJEPA: IJEPA_OPTIONS, SPARSEJEPA: {}, RESIDUAL: _RESIDUAL_OPTIONS}
CURVE = "knn_curve.json"
SCRIPT = ROOT / "examples" / "pretrain.py"
CONFIGS = ROOT / "examples" / "configs"
# From the untrained encoder's kNN accuracy to the best of the default recipe on CIFAR-100.
_THRESHOLDS = (0.10, 0.12, 0.14, 0.16, 0.18)
_SCENE_THRESHOLDS = (0.3, 0.4, 0.5, 0.6)

_BRIEF: dict[str, Any] = {"max_train_examples": 1024, "max_eval_examples": 256, "max_steps": 60, "logging_steps": 20}
_MINIMAL: dict[str, Any] = {
    **{"max_train_examples": 64, "max_eval_examples": 32, "max_steps": 4, "logging_steps": 2},
    **{"per_device_train_batch_size": 8, "hidden_size": 24, "num_hidden_layers": 1, "intermediate_size": 48},
    **{"predictor_hidden_size": 24, "predictor_num_hidden_layers": 1},
}


# ---- one run, in a process of its own ----


class ClockedMonitor(KNNMonitor):
    """The kNN monitor, which also writes down how long the training before each measurement took.

    Args:
        path: JSON file of the curve.
        args: as for [`KNNMonitor`], by position.
    """

    def __init__(self, path: Path, *args: Any) -> None:
        bank, heldout, preprocess, log, throughput = args
        super().__init__(bank, heldout, preprocess, self._keep, throughput)
        self._path, self._write_log = path, log
        self._points: list[dict[str, float]] = []
        self._trained = {"seconds": 0.0, "cpu_seconds": 0.0}
        self._since: dict[str, float] | None = None
        self._place = {"step": 0, "images": 0}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        """The untrained encoder's accuracy; training's clock starts behind it."""
        if state.global_step:
            raise ValueError(
                f"The run goes on from step {state.global_step}, but how long its first steps took is not known. "
                "Delete its folder, and it begins anew."
            )
        super().on_train_begin(args, state, control, model, **kwargs)
        self._since = _clocks()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        """As in `KNNMonitor`."""
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self._place = {"step": state.global_step, "images": state.global_step * batch}
        super().on_step_end(args, state, control, model, **kwargs)

    def _measure(self, args: Any, model: Any) -> None:
        now = _clocks()
        if self._since is not None:
            self._trained = {name: self._trained[name] + now[name] - self._since[name] for name in now}
        super()._measure(args, model)
        self._since = _clocks() if self._since is not None else None

    def _keep(self, logs: dict[str, float]) -> None:
        self._points.append({**self._place, **self._trained, **logs})
        # Rewritten whole each time, and moved into its place: a killed run leaves no half of a file.
        draft = self._path.with_suffix(".tmp")
        draft.write_text(json.dumps(self._points), encoding="utf-8")
        draft.replace(self._path)
        self._write_log(logs)


def _clocks() -> dict[str, float]:
    # Steps that are still under way are training's, not the measurement's.
    synchronize("cuda" if torch.cuda.is_initialized() else "cpu")
    return {"seconds": time.perf_counter(), "cpu_seconds": time.process_time()}


def train(arguments: Sequence[str]) -> None:
    """Runs `examples/pretrain.py` on `KNN_STEPS RECIPE [--flag value …]` and writes the curve into its output folder.

    Flags that come later win, so that measurements are made although [`Runs`] asks for none.
    """
    knn_steps, *rest = arguments
    folder = Path(rest[len(rest) - 1 - rest[::-1].index("--output_dir") + 1])
    monitor = functools.partial(ClockedMonitor, folder / CURVE)
    flags = [*rest, "--knn_steps", knn_steps]
    with mock.patch.object(trainer, "KNNMonitor", monitor), mock.patch.object(sys, "argv", [str(SCRIPT), *flags]):
        runpy.run_path(str(SCRIPT), run_name="__main__")


def command(knn_steps: int) -> list[str]:
    """How [`Runs`] starts a run: this module's [`train`], whatever folder it is started from."""
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from benchmarks.time_to_accuracy import train; "
    return [sys.executable, "-c", code + "train(sys.argv[1:])", str(ROOT), str(knn_steps)]


# ---- all runs ----


def main(argv: list[str] | None = None) -> None:
    """Trains what is not there yet and writes the record."""
    own = _flags()
    options, rest = own.parse_known_args(argv)
    _fill_in(options)
    _require_sense(options, own)
    origin = start(options)
    shared = {**_shared(options), **as_options(rest)}
    measured = measure(options, shared, origin["commit"])
    # Where things lie on this machine says nothing.
    options.dataset = options.dataset and Path(options.dataset).name
    options.recipe, options.runs_dir = options.recipe.name, None
    options.flags = " ".join(rest)
    path = write("time_to_accuracy", options, origin, measured)
    plot({"options": vars(options), **measured}, path.with_suffix(".png"))


def _flags() -> argparse.ArgumentParser:
    own = parser(__doc__)
    own.allow_abbrev = False
    own.add_argument("--recipe", type=Path, default=None, help="YAML of a SparseJEPA run; default: by effort")
    own.add_argument("--dataset", default=None, help="in place of the recipe's, such as a folder of parquet files")
    own.add_argument("--seeds", type=int, nargs="+", default=None, help="of pre-training; default: by effort")
    own.add_argument("--methods", nargs="+", choices=list(METHODS), default=None, help="default: all")
    own.add_argument("--thresholds", type=float, nargs="+", default=None, help="kNN accuracies in (0, 1]")
    own.add_argument("--knn_steps", type=int, default=None, help="measure every so many steps; default: by effort")
    own.add_argument("--jobs", type=int, default=None, help="runs at a time, of --threads each; default: 1")
    own.add_argument("--runs_dir", type=Path, default=ROOT / "runs" / "time_to_accuracy", help="where the runs lie")
    return own


def _fill_in(options: argparse.Namespace) -> None:
    """What is not given, by effort."""
    full, smoke = options.effort == "full", options.effort == "smoke"
    options.recipe = options.recipe or CONFIGS / ("cifar100-cpu.yaml" if full else "demo.yaml")
    options.seeds = options.seeds or ([0, 1, 2] if full else [options.seed])
    options.methods = options.methods or list(METHODS)[: 2 if smoke else None]
    options.thresholds = sorted(options.thresholds or (_THRESHOLDS if full else _SCENE_THRESHOLDS))
    options.knn_steps = options.knn_steps or {"full": 125, "short": 20, "smoke": 2}[options.effort]
    options.jobs = options.jobs or (2 if smoke else 1)


def _require_sense(options: argparse.Namespace, own: argparse.ArgumentParser) -> None:
    if any(not 0 < threshold <= 1 for threshold in options.thresholds):
        own.error(f"--thresholds are {options.thresholds}; expected accuracies in (0, 1], such as 0.2 for 20 %")
    if options.repeats is not None:
        own.error(f"--repeats is {options.repeats}; expected none: a run is repeated by --seeds")
    if options.knn_steps < 1 or options.jobs < 1 or options.threads < 1:
        own.error(
            f"--knn_steps is {options.knn_steps}, --jobs {options.jobs}, --threads {options.threads}; expected at "
            "least 1 each"
        )
    if not options.recipe.is_file():
        own.error(f"--recipe is {options.recipe}; expected a YAML file, such as {CONFIGS / 'cifar100-cpu.yaml'}")


def _shared(options: argparse.Namespace) -> dict[str, Any]:
    """Options of all runs. A run that is interrupted begins anew, so it needs no checkpoints on the way."""
    brief = {"full": {}, "short": _BRIEF, "smoke": _MINIMAL}[options.effort]
    data = {} if options.dataset is None else {"dataset": options.dataset}
    place = {"use_cpu": options.device == "cpu"}
    return {"save_strategy": "no", "report_to": "none", "knn_max_examples": 10_000, **place, **brief, **data}


def measure(options: argparse.Namespace, shared: dict[str, Any], commit: str | None = None) -> dict[str, Any]:
    """Makes the runs; returns every run's curve and what it took to reach each threshold.

    Raises:
        ValueError: if the recipe is of I-JEPA, where nothing would tell the methods apart, or options are impossible.
    """
    # Code, threads, runs at a time, interval and every option decide what is measured: runs with others are no match.
    given = hashlib.sha256(json.dumps(shared, sort_keys=True, default=str).encode()).hexdigest()[:8]
    place = f"{(commit or 'unknown')[:12]}-{given}-knn{options.knn_steps}-jobs{options.jobs}-threads{options.threads}"
    folder = options.runs_dir / place
    runs = Runs(options.recipe, command(options.knn_steps), folder, shared, options.jobs, options.threads)
    wanted = [Run(method, seed, METHODS[method]) for seed in options.seeds for method in options.methods]
    if not runs.value(Run(SPARSEJEPA, 0, {}), "use_grouping"):
        raise ValueError(f"{options.recipe} has no grouping (I-JEPA's); expected a recipe of SparseJEPA: its twin.")
    results = runs.make(wanted)
    rows = [_row(run, result, options.thresholds) for run, result in zip(wanted, results, strict=True)]
    return {"thresholds": options.thresholds, "knn_steps": options.knn_steps, "runs": rows}


def _row(run: Run, result: Any, thresholds: Sequence[float]) -> dict[str, Any]:
    if isinstance(result, PreTrainingFailed):
        return {"method": run.method, "seed": run.seed, "failed": str(result)}
    curve = json.loads((result.checkpoint / CURVE).read_text(encoding="utf-8"))
    return {
        "method": run.method,
        "seed": run.seed,
        "curve": curve,
        "reached": [first_reached(curve, threshold) for threshold in thresholds],
        "run": result.to_dict(),
    }


def first_reached(curve: Sequence[dict[str, float]], threshold: float) -> dict[str, float] | None:
    """The first measurement at or above `threshold`, or None."""
    return next((point for point in curve if point["knn_accuracy"] >= threshold), None)


# ---- what is shown ----


def render(record: dict[str, Any]) -> str:
    """One row for each method and threshold, with every seed's seconds, and where each curve ends.

    On a CPU those of the processor: runs beside one another slow each other down.
    """
    methods = list(dict.fromkeys(run["method"] for run in record["runs"]))
    rows = [
        _threshold_row(record, method, index, threshold)
        for index, threshold in enumerate(record["thresholds"])
        for method in methods
    ]
    clocks = _CLOCKS[_kind(record)]
    header = ["kNN accuracy, %", "method", "reached", f"{clocks[0][1]}, each seed", "median", clocks[1][1], "images"]
    blocks = [table(header, rows), table(_END_HEADER, [row for run in record["runs"] for row in _end_rows(run)])]
    blocks += [f"{run['method']}, seed {run['seed']}, failed: {run['failed']}" for run in _failed(record)]
    options = record["options"]
    blocks.append(
        f"{options['recipe']} {options.get('flags', '')}".rstrip()
        + f"; kNN every {record['knn_steps']} steps, its own time left out; the first measurement at "
        f"or above counts; {options['jobs']} runs at a time. " + origin_line(record)
    )
    return "\n\n".join(blocks)


# What is compared, and what stands beside it: (key, title) each.
_CLOCKS = {
    "cpu": (("cpu_seconds", "CPU seconds"), ("seconds", "seconds")),
    "cuda": (("seconds", "seconds"), ("cpu_seconds", "CPU seconds")),
}


def _kind(record: dict[str, Any]) -> str:
    return torch.device(record["options"]["device"]).type


_END_HEADER = ["method", "seed", "steps", "CPU seconds", "seconds", "untrained, %", "best, %", "last, %"]


def _failed(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [run for run in record["runs"] if "failed" in run]


def _threshold_row(record: dict[str, Any], method: str, index: int, threshold: float) -> list[str]:
    runs = [run for run in record["runs"] if run["method"] == method and "failed" not in run]
    reached = [run["reached"][index] for run in runs]
    (clock, _), (other, _) = _CLOCKS[_kind(record)]
    each = ", ".join("not reached" if point is None else f"{point[clock]:.0f}" for point in reached)

    def median(name: str) -> str:
        # A median over those alone that got there would flatter.
        if not reached or None in reached:
            return NONE
        return f"{statistics.median(point[name] for point in reached):.0f}"

    count = f"{sum(point is not None for point in reached)} of {len(reached)}"
    return [percent(threshold), method, count, each or NONE, *map(median, (clock, other, "images"))]


def _end_rows(run: dict[str, Any]) -> list[list[str]]:
    if "failed" in run:
        return []
    curve = run["curve"]
    accuracies = [point["knn_accuracy"] for point in curve]
    shown = (accuracies[0], max(accuracies), accuracies[-1])
    times = (f"{curve[-1][name]:.0f}" for name in ("cpu_seconds", "seconds"))
    return [[run["method"], str(run["seed"]), str(curve[-1]["step"]), *times, *map(percent, shown)]]


def plot(record: dict[str, Any], path: Path) -> bool:
    """Draws kNN accuracy against seconds, a line a run; whether matplotlib is there to do it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    named: set[str] = set()
    colours = {method: f"C{index}" for index, method in enumerate(METHODS)}
    (clock, title), _ = _CLOCKS[_kind(record)]
    for run in record["runs"]:
        if "failed" in run:
            continue
        label = None if run["method"] in named else run["method"]
        named.add(run["method"])
        x, y = ([point[name] for point in run["curve"]] for name in (clock, "knn_accuracy"))
        axes.plot(x, [100 * value for value in y], color=colours[run["method"]], label=label, alpha=0.8)
    for threshold in record["thresholds"]:
        axes.axhline(100 * threshold, color="grey", linewidth=0.5)
    axes.set_xlabel(f"{title} of training")
    axes.set_ylabel("kNN accuracy on held-out images, %")
    if named:
        axes.legend()
    figure.savefig(path, dpi=150)
    return True


if __name__ == "__main__":
    main()
