# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What the table and the sweep share: flags, pre-training and probing of every method, the results file.

A results file holds, beside provenance and settings: `methods` (names, in the order of the table's rows), `seeds`,
`tasks` (name -> sizes, kind, the data set that it stands in for), `runs` (options, versions, commit, time and last
logs of every run) and `evaluations` (method, seed, task and figures). What failed holds `failed`, the reason.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from tqdm.auto import tqdm
from transformers.utils import logging

from sparsejepa_hf.evaluation import (
    Evaluator,
    PairedDifference,
    ProbeSettings,
    VisionEncoder,
    add_probe_flags,
    find_task,
    load_encoder,
    paired_difference,
    summarize,
)
from sparsejepa_hf.evaluation.encoders import PIXELS
from sparsejepa_hf.records import NONE, mean_and_std, provenance, render_into

from .runs import IJEPA, PreTrainingFailed, Run, RunRecord, Runs, as_options


logger = logging.get_logger(__name__)

Record = Mapping[str, Any]
RAW_PIXELS, UNTRAINED = "raw pixels", "untrained"
PRETRAIN = Path(__file__).parents[1] / "pretrain.py"


# ---- flags ----


def make_parser(description: str | None, results: str, output_dir: str) -> argparse.ArgumentParser:
    """A parser with the flags that both scripts take.

    Args:
        description: of the script.
        results: default of `--results`.
        output_dir: default of `--output_dir`.
    """
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("recipe", nargs="?", help="YAML of a SparseJEPA run, as examples/pretrain.py takes it")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of pre-training")
    add("--output_dir", default=output_dir, help="folder of runs, features and finished evaluations")
    add("--jobs", type=int, default=1, help="runs at a time")
    add("--threads", type=int, help="CPU threads of each run; default: torch's")
    add("--launcher", default=sys.executable, help='starts a run, such as "accelerate launch"')
    add_probe_flags(parser, ProbeSettings(feature_kinds=("last/mean",), low_shot=()))
    add("--results", default=results, help="file to write; table and plot go beside it")
    add("--render", help="measure nothing: render this results file")
    add("--into", nargs="+", default=[], help="Markdown files that carry the table between marks")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Runs | None]:
    """The parser's flags, and the runs of the recipe with all flags that the parser does not know.

    With `--render FILE` there are no runs, and `results` is FILE.
    """
    own, rest = parser.parse_known_args(arguments)
    if own.render:
        if own.recipe or rest:
            parser.error("--render takes a results file alone: nothing is run")
        own.results = own.render
        return own, None
    if not own.recipe or Path(own.recipe).suffix not in (".yaml", ".yml"):
        parser.error(f"the recipe is {own.recipe!r}; put a YAML file before all flags, or --render a results file")
    options = as_options(rest)
    if "seed" in options:
        parser.error("--seed is set by --seeds; leave it out")
    command = [*shlex.split(own.launcher), str(PRETRAIN)]
    return own, Runs(own.recipe, command, Path(own.output_dir) / "runs", options, own.jobs, own.threads)


def parse_changes(text: str) -> dict[str, Any]:
    """Reads `"name=value name=value"`.

    Raises:
        ValueError: if the text does not have this form.
    """
    pairs = [word.partition("=") for word in shlex.split(text)]
    if not all(name and value for name, _, value in pairs):
        raise ValueError(f"{text!r} holds what is no option; expected name=value, such as num_groups=4.")
    return {name: parse_value(value) for name, _, value in pairs}


def parse_value(text: str) -> Any:
    """Reads a value as YAML does, and 1e-3 as a number, too."""
    value = yaml.safe_load(text)
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


# ---- measuring ----


def measure(
    runs: Runs,
    methods: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    tasks: Sequence[str],
    evaluator: Evaluator,
    *,
    baselines: bool = True,
) -> dict[str, Any]:
    """Pre-trains every method with every seed, probes all of them on every task, and returns the record.

    Args:
        runs: the recipe, and where its runs lie.
        methods: name -> options over the recipe; `I-JEPA` is what the others are measured against.
        seeds: of pre-training, the same for every method.
        tasks: `NAME`, `NAME=PATH` or `NAME:count=PATH`.
        evaluator: probes the encoders.
        baselines: also probe raw pixels and, for every seed, the untrained encoder.

    Raises:
        ValueError: if there is no method, seed or task, one is given twice, or an option is impossible.
    """
    found = [find_task(spec) for spec in tasks]
    for name, given in (("methods", methods), ("seeds", seeds), ("tasks", [task.name for task in found])):
        if not given or len(set(given)) < len(given):
            raise ValueError(f"{name} is {list(given)}; expected at least one, and each once.")
    origin = provenance()
    wanted = [Run(method, seed, options) for seed in seeds for method, options in methods.items()]
    with tqdm(total=len(wanted), desc="Pre-training", unit="run") as bar:
        records = runs.make(wanted, on_finish=bar.update)
    # Runs that were there already are taken as they are, and may have been made another way.
    origins = [record.to_dict() for record in records if isinstance(record, RunRecord)]
    for name, values in (
        ("commits", {made["provenance"].get("commit") for made in origins}),
        ("numbers of processes", {made["num_processes"] for made in origins}),
    ):
        if len(values) > 1:
            logger.warning(f"The runs were made by different {name}: {', '.join(map(str, values))}.")

    load = partial(_load, device=evaluator.settings.device)
    sources: list[tuple[str, int | None, Callable[[], VisionEncoder]]] = []
    if baselines:
        sources.append((RAW_PIXELS, None, lambda: load_encoder(PIXELS)))
    for seed in seeds if baselines else ():
        # All methods start from an encoder of one architecture, so any checkpoint of the seed will do.
        of_seed = [record for run, record in zip(wanted, records, strict=True) if run.seed == seed]
        made = [record for record in of_seed if isinstance(record, RunRecord)]
        sources.append((UNTRAINED, seed, partial(load, [*made, *of_seed][0], untrained=True, seed=seed)))
    sources += [(run.method, run.seed, partial(load, record)) for run, record in zip(wanted, records, strict=True)]

    evaluations = []
    with tqdm(total=len(sources) * len(found), desc="Probing", unit="encoder") as bar:
        for task in found:
            for method, encoder_seed, make_encoder in sources:
                figures = evaluator.evaluate(make_encoder, task)
                # Only the commit is kept of where an evaluation was made: it may be an earlier one's.
                about = {"commit": figures["provenance"]["commit"]} if "provenance" in figures else {}
                kept = {name: value for name, value in figures.items() if name not in ("provenance", "encoder")}
                evaluations.append({"task": task.name, "method": method, "seed": encoder_seed, **kept, **about})
                bar.update()
    return {
        **origin,
        "recipe": runs.recipe.name,
        "settings": vars(evaluator.settings).copy(),
        "seeds": list(seeds),
        "methods": [*((RAW_PIXELS, UNTRAINED) if baselines else ()), *methods],
        "tasks": {task.name: {**evaluator.describe(task), "citation": task.citation} for task in found},
        "runs": [
            {"method": run.method, "seed": run.seed, "baseline": run.method == IJEPA}
            | (record.to_dict() if isinstance(record, RunRecord) else {"failed": str(record)})
            for run, record in zip(wanted, records, strict=True)
        ],
        "evaluations": evaluations,
    }


def _load(record: RunRecord | PreTrainingFailed, **options: Any) -> VisionEncoder:
    if isinstance(record, PreTrainingFailed):
        raise RuntimeError(f"there is no checkpoint, since pre-training failed: {record}")
    return load_encoder(record.checkpoint, **options)


# ---- results files ----


def read_record(path: str | Path, needs: Sequence[str] = ("runs", "evaluations")) -> dict[str, Any]:
    """Reads a results file.

    Args:
        path: of the file.
        needs: the keys that this kind of results file has.

    Raises:
        ValueError: if there is none, or it lacks a key.
    """
    if not Path(path).is_file():
        raise ValueError(f"There is no results file {path}.")
    record = json.loads(Path(path).read_text(encoding="utf-8"))
    if missing := [name for name in needs if name not in record]:
        raise ValueError(
            f"{path} holds no {' and no '.join(missing)}; expected a results file that this script wrote."
        )
    return record


def values_by_seed(record: Record, task: str, method: str, metric: str = "accuracy") -> dict[Hashable, float]:
    """A metric of one method's finished evaluations on a task, by seed; -1 stands for no seed (raw pixels)."""
    return {
        -1 if entry["seed"] is None else entry["seed"]: entry[metric]
        for entry in record["evaluations"]
        if entry["task"] == task and entry["method"] == method and entry.get(metric) is not None
    }


def mean_of_seeds(values: Mapping[Hashable, float]) -> str:
    """Mean and standard deviation of shares by seed in per cent, or a dash."""
    summary = summarize(values) if values else None
    return NONE if summary is None else mean_and_std(summary.mean, summary.std)


def difference(
    record: Record, task: str, method: str, metric: str = "accuracy", against: str = IJEPA
) -> PairedDifference | None:
    """`method` minus `against` over the seeds that both have, or None if they share none."""
    baseline, values = (values_by_seed(record, task, name, metric) for name in (against, method))
    shared = [seed for seed in baseline if seed in values]
    return paired_difference({s: baseline[s] for s in shared}, {s: values[s] for s in shared}) if shared else None


def last_values(record: Record, method: str, name: str) -> dict[Hashable, float]:
    """The last logged value of a quantity in each of a method's runs, by seed."""
    runs = [run for run in record["runs"] if run["method"] == method and name in run.get("last", {})]
    return {run["seed"]: run["last"][name] for run in runs}


def show(
    path: Path,
    into: Sequence[str],
    renderings: Mapping[str, Callable[[Record], str]],
    plot: Callable[[Record, Path], None] | None,
    needs: Sequence[str] = ("runs", "evaluations"),
) -> None:
    """Prints the table, writes it and its plot beside the results file, and fills it into pages.

    Args:
        path: the results file.
        into: Markdown files. Every mark of the results file that one has is filled.
        renderings: by the end of the mark, such as `"#short"` for `<!-- results/table.json#short -->`. The one with
            the end `""` is what is printed.
        plot: draws a record into a file, if there is a figure of it.
        needs: see [`read_record`].

    Raises:
        ValueError: if a page has none of the marks.
    """
    record = read_record(path, needs)
    texts = {f"{path.name}{end}": render(record) for end, render in renderings.items()}
    print(texts[path.name])
    path.with_suffix(".md").write_text(texts[path.name] + "\n", encoding="utf-8")
    for page in map(Path, into):
        text = page.read_text(encoding="utf-8")
        marks = [mark for mark in texts if f"<!-- results/{mark} -->" in text]
        if not marks:
            raise ValueError(f"{page} has no mark <!-- results/{path.name} -->; put one where the table should stand.")
        for mark in marks:
            text = render_into(text, mark, texts[mark])
        page.write_text(text, encoding="utf-8")
    if plot is not None:
        plot(record, path.with_suffix(".png"))
