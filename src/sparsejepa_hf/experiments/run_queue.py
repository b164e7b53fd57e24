# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A queue of long pre-training runs: what its file asks for, one run after the other, and where each stands."""

import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..data import SYNTHETIC_SCENES
from ..training.checkpoints import last_complete_checkpoint
from .runs import PreTrainingFailed, Run, Runs


WAITING, RUNNING, FINISHED, FAILED = "waiting", "running", "finished", "failed"
_REQUIRED, _KNOWN = {"recipe", "seeds", "methods"}, {"recipe", "seeds", "methods", "options"}
# Checkpoints do not make a run another one; the older of two is there if the power fails while the newer is written.
_SAVING = {"save_strategy": "epoch", "save_total_limit": 2}
# Shown of the last line of a run's log that has them: label and format.
_SHOWN = {
    "loss": "loss {:.4g}",
    "zero_columns": "zero columns {:.1%}",
    "groups_per_living_latent": "groups per living latent {:.1f}",
    "dead_latents": "dead latents {:.0f}",
    "rankme": "RankMe {:.1f}",
    "knn_accuracy": "kNN {:.1%}",
}
_REASON_LINES = 5


def read_queue(
    path: Path, root: Path, command: Sequence[str], folder: Path, dataset: str | None = None
) -> list[tuple[Runs, Run]]:
    """The runs of a queue's file in their order: stage by stage, and in each all methods before the next seed.

    Args:
        path: YAML, a list of stages: `recipe` (below `root`), `seeds`, `methods` (name -> options) and `options` of
            all methods.
        command: how to start one run.
        folder: where the runs lie.
        dataset: replaces the recipes', except the built-in scenes.

    Raises:
        ValueError: if the file has another form, an unknown key or impossible options.
    """
    stages = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise ValueError(f"{path} is not a list of stages; expected entries with {', '.join(sorted(_KNOWN))}.")
    queue = []
    for stage in stages:
        if wrong := (set(stage) - _KNOWN) | (_REQUIRED - set(stage)):
            raise ValueError(f"{path} has a stage with unknown or missing keys: {', '.join(sorted(map(str, wrong)))}.")
        recipe, options = root / stage["recipe"], {**_SAVING, **(stage.get("options") or {})}
        wanted = [Run(name, seed, own or {}) for seed in stage["seeds"] for name, own in stage["methods"].items()]
        runs = Runs(recipe, command, folder, options, threads=1)
        if dataset is not None and wanted and runs.resolve(wanted[0])["dataset"] != SYNTHETIC_SCENES:
            runs = Runs(recipe, command, folder, {**options, "dataset": dataset}, threads=1)
        for run in wanted:
            if runs.resolve(run)["max_steps"] > 0:
                raise ValueError(f"{run.name} sets max_steps; expected num_train_epochs, which a queue counts in.")
        queue += [(runs, run) for run in wanted]
    return queue


def work(queue: Sequence[tuple[Runs, Run]], state: Path) -> None:
    """Runs what is not finished, one after the other, and writes into `state` where each stands; skips what fails."""
    rows = [_row(*entry) for entry in queue]
    _write(rows, state)
    for (runs, run), row in zip(queue, rows, strict=True):
        if row["state"] == FINISHED:
            continue
        row["state"] = RUNNING
        _report(row)
        _write(rows, state)
        (record,) = runs.make([run])
        if isinstance(record, PreTrainingFailed):
            row["reason"] = [str(record), *_last_lines(Path(row["folder"]) / "log.txt")]
        row["state"] = FAILED if "reason" in row else FINISHED
        _report(row)
        _write(rows, state)


def _row(runs: Runs, run: Run) -> dict[str, Any]:
    wanted = runs.resolve(run)
    return {
        "name": run.method,
        "seed": run.seed,
        "recipe": runs.recipe.name,
        "folder": str(runs.folder_of(run, wanted)),
        "epochs": wanted["num_train_epochs"],
        "images_per_step": wanted["per_device_train_batch_size"] * wanted["gradient_accumulation_steps"],
        "state": WAITING if runs.finished(wanted) is None else FINISHED,
    }


def _report(row: dict[str, Any]) -> None:
    now = time.strftime("%F %T")
    print(f"{now} {row['name']}, seed {row['seed']}: {row['state']}", *row.get("reason", ()), sep="\n  ")


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    # Whoever reads meanwhile finds the old file or the new one.
    path.with_suffix(".new").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    os.replace(path.with_suffix(".new"), path)


def _last_lines(log: Path) -> list[str]:
    if not log.is_file():
        return []
    return log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_REASON_LINES:]


def describe(state: Path, alive: bool) -> list[str]:
    """One line per run: state, epochs at its last checkpoint, last logged values, hours left; then all hours left."""
    rows = json.loads(state.read_text(encoding="utf-8"))
    found = [_trainer_state(Path(row["folder"])) for row in rows]
    paces = [_seconds_an_epoch(row, trainer) for row, trainer in zip(rows, found, strict=True)]
    # A run that has none goes at the pace of another of its recipe.
    of_recipe = {row["recipe"]: pace for row, pace in zip(rows, paces, strict=True) if pace is not None}
    width, lines, hours, unknown = max(len(row["name"]) for row in rows), [], 0.0, 0
    for row, trainer, pace in zip(rows, found, paces, strict=True):
        is_lost = row["state"] == RUNNING and not alive
        done, last = 0.0, {}
        if trainer is not None:
            done = trainer["epoch"]
            last = {key: value for entry in trainer["log_history"] for key, value in entry.items()}
        line = f"{row['name']:<{width}}  seed {row['seed']}  {WAITING if is_lost else row['state']:<8}  "
        line += f"{done:g} of {row['epochs']:g} epochs"
        line += "".join(f", {form.format(last[key])}" for key, form in _SHOWN.items() if key in last)
        if row["state"] == FAILED:
            line += f"; {row['reason'][0]}"
        pace = pace or of_recipe.get(row["recipe"])
        if row["state"] != FINISHED and pace is None:
            unknown += 1
        elif row["state"] != FINISHED:
            left = (row["epochs"] - done) * pace / 3600
            hours += left
            line += f"; about {left:.1f} h left"
        lines.append(line)
    return [*lines, f"About {hours:.1f} h left{f', not counting {unknown} of unknown pace' if unknown else ''}."]


def _trainer_state(folder: Path) -> dict[str, Any] | None:
    """The Trainer's state at the run's end or at its last checkpoint."""
    try:
        end = folder / "trainer_state.json"
        path = end if end.is_file() else Path(last_complete_checkpoint(str(folder))) / end.name
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # None yet, or just being written or replaced.
        return None


def _seconds_an_epoch(row: dict[str, Any], trainer: dict[str, Any] | None) -> float | None:
    history = [] if trainer is None else trainer["log_history"]
    rates = [entry["images_per_second"] for entry in history if "images_per_second" in entry]
    if not rates:
        return None
    return trainer["max_steps"] / trainer["num_train_epochs"] * row["images_per_step"] / statistics.median(rates)
