# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Run the demo with several seeds: what pre-training is worth on the built-in scenes, how sparse W is, what it takes.

    python -m examples.reproduce.demo examples/configs/demo.yaml --seeds 0 1 2 --into docs/results.md
    python -m examples.reproduce.demo --render results/demo_scenes_cpu.json --into docs/results.md

Each seed is one run of examples/pretrain.py as `make demo` makes it, in a process of its own, one after another.
Flags that are not listed here go to every run. The results file holds provenance, the recipe and, in `runs`, each
seed's comparison (kNN and linear probe of raw pixels, the untrained and the trained encoder), last logs and time.
"""

import argparse
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsejepa_hf.records import percent, provenance, table, write_record

from .experiment import PRETRAIN, show
from .runs import SPARSEJEPA, PreTrainingFailed, Run, Runs, as_options


ENCODERS = ("raw pixels", "untrained", "trained")
OF_W = {
    "groups per living latent": "groups_per_living_latent",
    "dead latents": "dead_latents",
    "dead groups": "dead_groups",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, unless told to render only; then renders."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("recipe", nargs="?", help="YAML of the demo, as examples/pretrain.py takes it")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of pre-training")
    add("--output_dir", default="runs/demo_scenes", help="folder of the runs")
    add("--results", default="results/demo_scenes_cpu.json", help="file to write; the table goes beside it")
    add("--render", help="measure nothing: render this results file")
    add("--into", nargs="+", default=[], help="Markdown files that carry the table between marks")
    own, rest = parser.parse_known_args(arguments)
    path = Path(own.render or own.results)
    if not own.render:
        if not own.recipe or Path(own.recipe).suffix not in (".yaml", ".yml"):
            parser.error(f"the recipe is {own.recipe!r}; put a YAML file before all flags, or --render a results file")
        command, options = [sys.executable, str(PRETRAIN)], {**as_options(rest), "probe": True}
        runs = Runs(own.recipe, command, Path(own.output_dir), options)
        write_record(measure(runs, own.seeds), path)
    show(path, own.into, RENDERINGS, plot=None, needs=("runs", "recipe"))


def measure(runs: Runs, seeds: Sequence[int]) -> dict[str, Any]:
    """Runs the demo with each seed and returns the record.

    Raises:
        PreTrainingFailed: a run failed, or an earlier one that lies in the folder was not compared.
    """
    made, origin = [], provenance()
    for seed in seeds:
        run = Run(SPARSEJEPA, seed, {})
        is_new = runs.finished(runs.resolve(run)) is None
        wall, cpu = time.perf_counter(), _cpu_seconds_of_children()
        (record,) = runs.make([run])
        if isinstance(record, PreTrainingFailed):
            raise record
        if "comparison" not in record.results:
            raise PreTrainingFailed(f"{record.checkpoint} is a run that was not compared; give another --output_dir.")
        # A run that lay there already took its time earlier.
        took = {"seconds": time.perf_counter() - wall, "cpu_seconds": _cpu_seconds_of_children() - cpu}
        entry = {"seed": seed, "comparison": record.results["comparison"], **(took if is_new else {})}
        made.append(entry | record.to_dict())
    return {**origin, "recipe": runs.recipe.name, "seeds": list(seeds), "runs": made}


def _cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def render(record: Mapping[str, Any]) -> str:
    """One row for each seed, and the medians."""
    header = ["seed", *(f"{name}, linear" for name in ENCODERS), "gain", *(f"{name}, kNN" for name in ENCODERS)]
    header += ["zero columns", *OF_W, "minutes", "CPU minutes"]
    columns = [_figures(run) for run in record["runs"]]
    rows = [[str(run["seed"]), *_cells(figures)] for run, figures in zip(record["runs"], columns, strict=True)]
    medians = [_median([figures[i] for figures in columns]) for i in range(len(header) - 1)]
    return table(header, [*rows, ["median", *_cells(medians)]])


def _figures(run: Mapping[str, Any]) -> list[float | None]:
    """Shares in [0, 1] first, then numbers, in the order of the table."""
    linear, knn = ([run["comparison"][name][f"{kind}_accuracy"] for name in ENCODERS] for kind in ("linear", "knn"))
    minutes = [run[name] / 60 if name in run else None for name in ("seconds", "cpu_seconds")]
    shares = [*linear, linear[2] - linear[1], *knn, run["last"].get("zero_columns")]
    return [*shares, *(run["last"].get(name) for name in OF_W.values()), *minutes]


def _median(values: Sequence[float | None]) -> float | None:
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    return (known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2


def _cells(figures: Sequence[float | None]) -> list[str]:
    num_shares = 8
    return [percent(share) for share in figures[:num_shares]] + [
        "–" if value is None else f"{value:.3g}" for value in figures[num_shares:]
    ]


RENDERINGS = {"": render}


if __name__ == "__main__":
    main()
