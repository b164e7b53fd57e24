# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Pre-trains every method with the same seeds and budget, probes all of them on every data set, and writes it down.

A results file holds, beside provenance and settings: `methods` (names, in the order of the table's rows), `seeds`,
`tasks` (name -> sizes, task, what it stands in for), `runs` (options, versions, commit, time and last logs of
every run) and `evaluations` (method, seed, task and figures). What failed holds `failed`, the reason.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers.utils import logging

from ..evaluation import Evaluator, Task, VisionEncoder, find_task, load_encoder
from ..evaluation.encoders import PIXELS
from ..records import provenance
from .runs import IJEPA, PreTrainingFailed, Run, RunRecord, Runs


logger = logging.get_logger(__name__)

RAW_PIXELS, UNTRAINED = "raw pixels", "untrained"
# What speaks of one encoder's place on the machine that ran it is left out of a results file.
_NOT_WRITTEN = ("provenance", "encoder")


def reproduce(
    runs: Runs,
    methods: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    tasks: Sequence[str],
    evaluator: Evaluator,
    *,
    baselines: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Everything that a table needs.

    Args:
        runs: the recipe, and where its runs lie.
        methods: name -> options over the recipe; `I-JEPA` is what the others are measured against.
        seeds: of pre-training, the same for every method.
        tasks: `NAME`, `NAME=PATH` or `NAME:count=PATH`, as [`find_task`] takes them.
        evaluator: probes, with their settings and folder.
        baselines: also raw pixels and, for every seed, the untrained encoder.
        progress: show progress bars.

    Raises:
        ValueError: if there is no method, seed or data set, one is given twice, or an option is impossible.
    """
    found = [find_task(spec) for spec in tasks]
    _check(methods, seeds, [task.name for task in found])
    origin = provenance()
    wanted = [Run(method, seed, options) for seed in seeds for method, options in methods.items()]
    with tqdm(total=len(wanted), desc="Pre-training", unit="run", disable=not progress) as bar:
        records = runs.make(wanted, on_finish=lambda run: bar.update())
    _warn_of_differences(records)
    trained = dict(zip(wanted_keys(wanted), records, strict=True))
    sources = [*_encoders(trained, evaluator.settings.device, baselines)]
    measured = []
    with tqdm(total=len(sources) * len(found), desc="Probing", unit="encoder", disable=not progress) as bar:
        for task in found:
            for method, seed, make_encoder in sources:
                figures = evaluator.evaluate(make_encoder, task)
                kept = {key: value for key, value in figures.items() if key not in _NOT_WRITTEN}
                # An evaluation of an earlier call may be another commit's.
                kept |= {"commit": figures["provenance"]["commit"]} if "provenance" in figures else {}
                measured.append({"task": task.name, "method": method, "seed": seed, **kept})
                bar.update()
    return {
        **origin,
        "recipe": runs.recipe.name,
        "settings": vars(evaluator.settings).copy(),
        "seeds": list(seeds),
        "methods": [*((RAW_PIXELS, UNTRAINED) if baselines else ()), *methods],
        "tasks": {task.name: _about(evaluator, task) for task in found},
        "runs": [_run_entry(run, record) for run, record in zip(wanted, records, strict=True)],
        "evaluations": measured,
    }


def wanted_keys(runs: Iterable[Run]) -> list[tuple[str, int]]:
    """(method, seed) of every run."""
    return [(run.method, run.seed) for run in runs]


def read_record(path: str | Path) -> dict[str, Any]:
    """Reads a results file.

    Raises:
        ValueError: if there is none, or it holds no evaluations.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no results file {path}; expected one that this script wrote.")
    record = json.loads(path.read_text(encoding="utf-8"))
    if "evaluations" not in record or "runs" not in record:
        raise ValueError(f"{path} holds no runs and evaluations; expected a results file of the table or of a sweep.")
    return record


def _check(methods: Mapping[str, Any], seeds: Sequence[int], tasks: Sequence[str]) -> None:
    for name, given in (("methods", methods), ("seeds", seeds), ("tasks", tasks)):
        if not given or len(set(given)) < len(given):
            raise ValueError(f"{name} is {list(given)}; expected at least one, and each once.")


def _warn_of_differences(records: Sequence[RunRecord | PreTrainingFailed]) -> None:
    """Runs that were made earlier are taken as they are; the table should know where they differ."""
    made = [record for record in records if isinstance(record, RunRecord)]
    for name, values in (
        ("commits", {record.provenance.get("commit") for record in made}),
        ("numbers of processes", {record.num_processes for record in made}),
    ):
        if len(values) > 1:
            logger.warning(f"The runs were made by different {name}: {', '.join(map(str, values))}.")


def _encoders(
    trained: Mapping[tuple[str, int], RunRecord | PreTrainingFailed], device: str | None, baselines: bool
) -> list[tuple[str, int | None, Callable[[], VisionEncoder]]]:
    """(method, seed, how to load) of every row: raw pixels, untrained encoders, trained ones."""
    rows: list[tuple[str, int | None, Callable[[], VisionEncoder]]] = []
    if baselines:
        rows.append((RAW_PIXELS, None, lambda: load_encoder(PIXELS)))
        # One method's checkpoint per seed: the encoders start from the same weights, whatever stands behind them.
        made = [(seed, r) for (_, seed), r in trained.items() if isinstance(r, RunRecord)]
        first = {seed: record for (_, seed), record in trained.items()} | dict(reversed(made))
        rows += [(UNTRAINED, seed, _loader(record, device, seed)) for seed, record in sorted(first.items())]
    return [*rows, *((method, seed, _loader(record, device)) for (method, seed), record in trained.items())]


def _loader(
    record: RunRecord | PreTrainingFailed, device: str | None, untrained_seed: int | None = None
) -> Callable[[], VisionEncoder]:
    def load() -> VisionEncoder:
        if isinstance(record, PreTrainingFailed):
            raise RuntimeError(f"there is no checkpoint, since pre-training failed: {record}")
        untrained = {} if untrained_seed is None else {"untrained": True, "seed": untrained_seed}
        return load_encoder(record.checkpoint, device=device, **untrained)

    return load


def _about(evaluator: Evaluator, task: Task) -> dict[str, Any]:
    return {**evaluator.describe(task), "citation": task.citation}


def _run_entry(run: Run, record: RunRecord | PreTrainingFailed) -> dict[str, Any]:
    entry: dict[str, Any] = {"method": run.method, "seed": run.seed, "baseline": run.method == IJEPA}
    return entry | ({"failed": str(record)} if isinstance(record, PreTrainingFailed) else record.to_dict())
