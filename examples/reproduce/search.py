# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Search a recipe in rounds: settings of one recipe, trained alike, compared on a part of the training set alone.

    python -m examples.reproduce.search examples/reproduce/search-cifar100-cpu.yaml --dataset data/cifar100 \
        --task cifar100=data/cifar100 --jobs 2 --threads 1
    python -m examples.reproduce.search --render results/recipe_search_cpu.json --into docs/results.md

The file lists rounds. Later rounds hold what was best in earlier ones, together and for longer (successive halving, by
hand). Pre-training takes all training images; probes are fitted on one part of them and judged on another. The test
set is never opened. A setting's score is the mean of its linear probe of the last block and its kNN; a probe of
all blocks is shown too. After an interruption the same command goes on where it was, and rounds that are appended
later are measured then.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset, DatasetDict

from sparsejepa_hf.evaluation import Evaluator, ProbeSettings, find_task, load_task, paired_difference, summarize
from sparsejepa_hf.evaluation.probes import validation_mask
from sparsejepa_hf.records import NONE, percent, provenance, table, write_record

from .experiment import PRETRAIN, Record, measure, show, values_by_seed
from .runs import Run, Runs


# Judged on a fifth of the training set; what probes are fitted on is bounded, since there are many.
JUDGED_SHARE, MAX_FITTED = 0.2, 20_000
METRICS = {"linear": "accuracy_last/mean", "kNN": "knn_accuracy"}
# Shown and not judged by.
ALL_BLOCKS = "accuracy_last4/mean"
_ROUND_KEYS = {"name", "options", "seeds", "settings"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, unless told to render only; then renders."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("search", nargs="?", help="YAML: recipe, options of all runs, rounds")
    add("--dataset", help="in place of the recipe's")
    add("--task", default="cifar100", help="the same data as a task, NAME or NAME=PATH; its test split is not read")
    add("--output_dir", default="runs/search", help="folder of runs, features and finished evaluations")
    add("--jobs", type=int, default=1, help="runs at a time")
    add("--threads", type=int, help="CPU threads of each run; default: torch's")
    add("--launcher", default=sys.executable, help='starts a run, such as "accelerate launch"')
    add("--results", default="results/recipe_search_cpu.json", help="file to write; the table goes beside it")
    add("--render", help="measure nothing: render this results file")
    add("--into", nargs="+", default=[], help="Markdown files that carry the table between marks")
    own = parser.parse_args(arguments)
    path = Path(own.render or own.results)
    if not own.render:
        if not own.search:
            parser.error("no file is given; expected a YAML file of rounds, or --render a results file")
        command = [*shlex.split(own.launcher), str(PRETRAIN)]
        search = read_search(own.search)
        shared = {} if own.dataset is None else {"dataset": own.dataset}
        record = run_search(search, own.task, Path(own.output_dir), command, shared, own.jobs, own.threads)
        write_record(record, path)
    show(path, own.into, RENDERINGS, plot=None, needs=("rounds", "recipe"))


def read_search(path: str | Path) -> dict[str, Any]:
    """The file's `recipe`, `options` of all runs, and `rounds`: each `name`, `options`, `seeds` and `settings`, a
    mapping from names to options, of which the first is what the others are compared with.

    Raises:
        ValueError: the file has another form.
    """
    search = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(search, dict) or set(search) != {"recipe", "options", "rounds"}:
        raise ValueError(f"{path} has another form; expected a mapping of recipe, options and rounds.")
    for number, entry in enumerate(search["rounds"], start=1):
        if not isinstance(entry, dict) or set(entry) != _ROUND_KEYS:
            raise ValueError(f"Round {number} of {path} is {entry!r}; expected {', '.join(sorted(_ROUND_KEYS))}.")
    return search


def run_search(
    search: Mapping[str, Any],
    task: str,
    folder: Path,
    command: Sequence[str],
    shared: Mapping[str, Any],
    jobs: int = 1,
    threads: int | None = None,
) -> dict[str, Any]:
    """Trains and judges all settings of all rounds, and returns the record.

    Args:
        search: as [`read_search`] returns it.
        task: the data, as [`find_task`] takes them.
        folder: of runs, features and evaluations.
        command: how to start one run.
        shared: options of all runs, over those of the file.
        jobs: runs at a time.
        threads: CPU threads of each run.
    """
    planned = []
    for entry in search["rounds"]:
        options = {**search["options"], **entry["options"]}
        runs = Runs(search["recipe"], command, folder / "runs", {**options, **shared}, jobs, threads)
        settings = {name: changes or {} for name, changes in entry["settings"].items()}
        # What is impossible is told before the first run.
        for name, changes in settings.items():
            runs.resolve(Run(name, entry["seeds"][0], changes))
        planned.append(({"name": entry["name"], "options": options}, runs, settings, entry["seeds"]))
    split = judged_split(task, folder)
    evaluator = Evaluator(folder, ProbeSettings(("last/mean", "last4/mean"), (), exclude_duplicates=False))
    rounds = [
        {**about, **measure(runs, settings, seeds, [f"judged={split}"], evaluator, baselines=False)}
        for about, runs, settings, seeds in planned
    ]
    return {**provenance(), "recipe": Path(search["recipe"]).name, "task": find_task(task).name, "rounds": rounds}


def judged_split(task: str, folder: Path) -> Path:
    """Divides the training split of a task into `train`, to fit probes on, and `test`, to judge by, and saves both.

    A fifth of each class is judged; the task's own test split is not read.
    """
    path = folder / "judged_split"
    if not path.is_dir():
        train: Dataset = load_task(task, "train")
        judged = validation_mask(torch.tensor(train["label"]), JUDGED_SHARE, seed=0)
        fitted = torch.nonzero(~judged).flatten()
        order = torch.randperm(len(fitted), generator=torch.Generator().manual_seed(0))
        parts = {"train": fitted[order[:MAX_FITTED]].sort().values, "test": torch.nonzero(judged).flatten()}
        DatasetDict({name: train.select(rows.tolist()) for name, rows in parts.items()}).save_to_disk(path)
    return path


# ---- what is shown ----


def score(record: Record, setting: str) -> dict[Any, float]:
    """The mean of linear probe and kNN of a setting's finished runs in a round, by seed."""
    found = [values_by_seed(record, "judged", setting, metric) for metric in METRICS.values()]
    return {seed: sum(values[seed] for values in found) / len(found) for seed in found[0] if seed in found[1]}


def render(record: Record) -> str:
    """One table for each round, best first, beside the round's first setting."""
    parts = []
    for entry in record["rounds"]:
        first, rows = entry["methods"][0], []
        order = sorted(entry["methods"], key=lambda name: -_mean(score(entry, name)))
        for name in order:
            of_metrics = [values_by_seed(entry, "judged", name, metric) for metric in (*METRICS.values(), ALL_BLOCKS)]
            cells = [percent(_mean(values)) if values else NONE for values in of_metrics]
            seconds = [run.get("train_seconds") for run in entry["runs"] if run["method"] == name]
            known = [value for value in seconds if value is not None]
            minutes = f"{summarize(known).mean / 60:.1f}" if known else NONE
            rows.append([name, *cells, _gain(score(entry, first), score(entry, name)), minutes])
        epochs = entry["options"].get("num_train_epochs")
        title = f"**{entry['name']}**: {epochs} epochs, seeds {', '.join(map(str, entry['seeds']))}"
        parts += [title, table(["setting", *METRICS, "linear, all blocks", f"gain over “{first}”", "minutes"], rows)]
    return "\n\n".join(parts)


def _mean(values: Mapping[Any, float]) -> float:
    return summarize(values).mean if values else float("-inf")


def _gain(baseline: Mapping[Any, float], values: Mapping[Any, float]) -> str:
    shared = [seed for seed in baseline if seed in values]
    if not shared or baseline == values:
        return NONE
    found = paired_difference({s: baseline[s] for s in shared}, {s: values[s] for s in shared})
    return f"{100 * found.mean:+.1f}" + ("" if found.std is None else f" ± {100 * found.std:.1f}")


# By the end of the mark in a page.
RENDERINGS = {"": render}

if __name__ == "__main__":
    main()
