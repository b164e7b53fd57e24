# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Flags that the experiments' scripts share; whatever they do not know goes to every pre-training run."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..evaluation import Evaluator, ProbeSettings
from .runs import Runs


def make_parser(description: str, results: str) -> argparse.ArgumentParser:
    """A parser with the recipe, the seeds, the runs' and the probes' flags; `results` is the default file."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", help="YAML of a SparseJEPA run, as examples/pretrain.py takes it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of pre-training")
    runs = parser.add_argument_group("runs")
    runs.add_argument("--output_dir", required=False, help="folder of runs, features and finished evaluations")
    runs.add_argument("--jobs", type=int, default=1, help="runs at a time")
    runs.add_argument("--threads", type=int, default=None, help="CPU threads of each run; default: torch's")
    runs.add_argument("--launcher", default=sys.executable, help='starts a run, such as "accelerate launch"')
    add_probe_flags(parser)
    output = parser.add_argument_group("results")
    output.add_argument("--results", default=results, help="file to write; table and plot go beside it")
    output.add_argument("--render", help="measure nothing: render this results file")
    output.add_argument("--into", help="Markdown file that carries the table between the marks of the results file")
    return parser


def add_probe_flags(parser: argparse.ArgumentParser) -> None:
    """How features are made and probed."""
    probes = parser.add_argument_group("probes")
    settings = ProbeSettings()
    probes.add_argument("--feature_kinds", nargs="+", default=list(settings.feature_kinds), help="LAYERS/POOLING")
    probes.add_argument("--probe_seed", type=int, default=settings.seed, help="seed of splits and subsets")
    probes.add_argument("--probe_train_examples", type=int, default=None, help="probe on a random subset of train")
    probes.add_argument("--low_shot", type=float, nargs="*", default=list(settings.low_shot), help="shares of labels")
    probes.add_argument("--keep_duplicates", action="store_true", help="keep test images that also occur in train")
    probes.add_argument("--probe_precision", choices=("no", "bf16", "fp16"), default="no", help="of the encoders")
    probes.add_argument("--probe_device", default=None, help="of encoders and kNN, such as cuda; default: the CPU")


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> tuple[Any, dict[str, Any]]:
    """Own flags, and the runs' options among the rest: `--name value …`."""
    own, rest = parser.parse_known_args(arguments)
    if not own.render and not own.recipe:
        parser.error("name a recipe (a YAML file), or --render a results file")
    if own.render and (own.recipe or rest):
        parser.error("--render takes a results file alone: nothing is run")
    if own.recipe and Path(own.recipe).suffix not in (".yaml", ".yml"):
        parser.error(f"the recipe is {own.recipe!r}; put a YAML file first, before all flags")
    options = as_options(rest)
    if "seed" in options:
        parser.error("--seed is set by --seeds; leave it out")
    return own, options


def as_options(words: Sequence[str]) -> dict[str, Any]:
    """`--name value …` as a mapping of texts, or of lists of texts.

    Raises:
        ValueError: if the words do not have this form.
    """
    options: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            options[name] = [value] if equals else []
        elif not options:
            raise ValueError(f"{word!r} follows no flag; expected --name value.")
        else:
            options[next(reversed(options))].append(word)
    empty = [name for name, values in options.items() if not values]
    if empty:
        raise ValueError(f"--{empty[0]} has no value; expected --{empty[0]} VALUE.")
    return {name: values[0] if len(values) == 1 else values for name, values in options.items()}


def parse_changes(text: str) -> dict[str, Any]:
    """`"name=value name=value"` with values as YAML reads them.

    Raises:
        ValueError: if the text does not have this form.
    """
    changes = {}
    for word in shlex.split(text):
        name, equals, value = word.partition("=")
        if not equals or not name or not value:
            raise ValueError(f"{word!r} in {text!r} is no option; expected name=value, such as num_groups=4.")
        changes[name] = parse_value(value)
    return changes


def parse_value(text: str) -> Any:
    """As YAML reads it, and 1e-3 as a number too."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return yaml.safe_load(text)


def make_runs(own: Any, options: dict[str, Any], pretrain: Path) -> Runs:
    """The runs of a recipe, started as `LAUNCHER pretrain.py`."""
    folder = Path(own.output_dir) / "runs"
    return Runs(own.recipe, [*shlex.split(own.launcher), str(pretrain)], folder, options, own.jobs, own.threads)


def make_evaluator(own: Any, low_shot: Sequence[float] | None = None) -> Evaluator:
    """Probes with the settings of the flags."""
    return Evaluator(own.output_dir, probe_settings(own, low_shot))


def probe_settings(own: Any, low_shot: Sequence[float] | None = None) -> ProbeSettings:
    """The settings that the flags ask for; `low_shot` replaces theirs."""
    return ProbeSettings(
        feature_kinds=tuple(own.feature_kinds),
        low_shot=tuple(own.low_shot if low_shot is None else low_shot),
        exclude_duplicates=not own.keep_duplicates,
        max_train_examples=own.probe_train_examples,
        seed=own.probe_seed,
        mixed_precision=own.probe_precision,
        device=own.probe_device,
    )
