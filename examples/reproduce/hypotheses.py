# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Test what would make grouping help: variants of SparseJEPA, each with a prediction that was written down first.

    python -m examples.reproduce.hypotheses examples/reproduce/hypotheses-cifar100-cpu.yaml --dataset data/cifar100 \
        --tasks cifar100=data/cifar100 --jobs 2 --threads 1
    python -m examples.reproduce.hypotheses --render results/hypotheses_cpu.json --into docs/results.md

A prediction names a metric, what it is measured against, and the least difference in points. Over the paired seeds it
*held* if the mean difference reaches that and its 95 % interval leaves out 0, it *failed* if the whole interval lies
below, and is *open* otherwise. I-JEPA and SparseJEPA as the recipe has them are trained with the same seeds. After an
interruption the same command goes on where it was. Flags that are not listed here go to every pre-training run.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sparsejepa_hf.evaluation import Evaluator, PairedDifference, ProbeSettings
from sparsejepa_hf.records import NONE, percent, table, write_record

from .experiment import PRETRAIN, Record, difference, last_values, mean_of_seeds, measure, show, values_by_seed
from .runs import IJEPA, IJEPA_OPTIONS, SPARSEJEPA, Runs, as_options


METRICS = {"linear": "accuracy_last/mean", "linear, last four": "accuracy_last4/mean", "kNN": "knn_accuracy"}
HELD, FAILED, OPEN = "held", "failed", "open"
_KEYS = {"recipe", "options", "seeds", "hypotheses"}
_OF_ONE = {"options", "because", "predicts"}
_OF_PREDICTION = {"metric", "against", "points"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, unless told to render only; then renders."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("file", nargs="?", help="YAML: recipe, options of all runs, seeds, hypotheses")
    add(
        "--tasks",
        nargs="+",
        default=["cifar100"],
        help="NAME, NAME=PATH or NAME:count=PATH; predictions are of the first",
    )
    add("--output_dir", default="runs/hypotheses", help="folder of runs, features and finished evaluations")
    add("--jobs", type=int, default=1, help="runs at a time")
    add("--threads", type=int, help="CPU threads of each run; default: torch's")
    add("--results", default="results/hypotheses_cpu.json", help="file to write; the table goes beside it")
    add("--render", help="measure nothing: render this results file")
    add("--into", nargs="+", default=[], help="Markdown files that carry the table between marks")
    own, rest = parser.parse_known_args(arguments)
    path = Path(own.render or own.results)
    if not own.render:
        if not own.file:
            parser.error("no file is given; expected a YAML file of hypotheses, or --render a results file")
        found = read_hypotheses(own.file)
        folder, command = Path(own.output_dir), [sys.executable, str(PRETRAIN)]
        options = {**found["options"], **as_options(rest)}
        runs = Runs(found["recipe"], command, folder / "runs", options, own.jobs, own.threads)
        evaluator = Evaluator(folder, ProbeSettings())
        record = measure(runs, methods_of(found), found["seeds"], own.tasks, evaluator, baselines=False)
        write_record({**record, "hypotheses": found["hypotheses"]}, path)
    show(path, own.into, RENDERINGS, plot=None, needs=("runs", "evaluations", "hypotheses"))


def read_hypotheses(path: str | Path) -> dict[str, Any]:
    """The file's `recipe`, `options` of all runs, `seeds` and `hypotheses`, by name: `options` over the recipe's,
    `because`, a sentence, and `predicts`, the `metric`, the method that it is measured `against`, and the least
    difference in `points`.

    Raises:
        ValueError: the file has another form, or a prediction names no such metric or method.
    """
    found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(found, dict) or set(found) != _KEYS:
        raise ValueError(f"{path} has another form; expected a mapping of {', '.join(sorted(_KEYS))}.")
    for name, entry in found["hypotheses"].items():
        if not isinstance(entry, dict) or set(entry) != _OF_ONE or set(entry["predicts"]) != _OF_PREDICTION:
            raise ValueError(
                f"The hypothesis {name!r} is {entry!r}; expected {', '.join(sorted(_OF_ONE))}, and in predicts "
                f"{', '.join(sorted(_OF_PREDICTION))}."
            )
        for key, known in (("metric", METRICS), ("against", methods_of(found))):
            if (value := entry["predicts"][key]) not in known:
                raise ValueError(f"The hypothesis {name!r} has {key} {value!r}; expected one of {', '.join(known)}.")
    return found


def methods_of(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What is trained: I-JEPA, SparseJEPA and every hypothesis, with their options over the recipe's."""
    own = {name: entry["options"] for name, entry in found["hypotheses"].items()}
    return {IJEPA: IJEPA_OPTIONS, SPARSEJEPA: {}, **own}


def outcome(difference: PairedDifference, points: float) -> str:
    """Whether a prediction of at least `points` held, failed, or is open."""
    if difference.low is None or difference.high is None:
        return OPEN
    if difference.sign == 1 and 100 * difference.mean >= points:
        return HELD
    return FAILED if 100 * difference.high < points else OPEN


# ---- what is shown ----


def render(record: Record) -> str:
    """What every method reached on the first task, and what became of each prediction."""
    task = next(iter(record["tasks"]))
    rows = []
    for method in record["methods"]:
        cells = [mean_of_seeds(values_by_seed(record, task, method, metric)) for metric in METRICS.values()]
        zeros = last_values(record, method, "zero_columns")
        rows.append([method, *cells, f"{mean_of_seeds(zeros)} %" if zeros else NONE])
    parts = [table(["encoder", *METRICS, "zero columns"], rows)]
    rows = []
    for name, entry in record["hypotheses"].items():
        predicted = entry["predicts"]
        said = f"{predicted['metric']}: at least {predicted['points']:+g} against {predicted['against']}"
        found = difference(record, task, name, METRICS[predicted["metric"]], predicted["against"])
        shown = (NONE, "not measured") if found is None else (_points(found), outcome(found, predicted["points"]))
        rows.append([name, entry["because"], said, *shown])
    return "\n\n".join([*parts, table(["hypothesis", "because", "prediction", "measured", ""], rows)])


def _points(found: PairedDifference) -> str:
    interval = "" if found.low is None else f" ({percent(found.low)} to {percent(found.high)})"
    return f"{100 * found.mean:+.1f}{interval}"


# By the end of the mark in a page.
RENDERINGS = {"": render}

if __name__ == "__main__":
    main()
