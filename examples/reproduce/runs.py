# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Pre-training runs of one recipe, each a process of its own. A finished run is not made again."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers.utils import logging

from sparsejepa_hf.training.options import OPTION_TYPES, parse_options, resolved_options
from sparsejepa_hf.training.preemption import PREEMPTED


logger = logging.get_logger(__name__)

IJEPA, SPARSEJEPA = "I-JEPA", "SparseJEPA"
# Turns a SparseJEPA recipe into the baseline.
IJEPA_OPTIONS: dict[str, Any] = {"use_grouping": False}

# Where a run writes and how it reports. Two runs that differ in these alone are the same run.
_REPORTING = {"output_dir", "logging_dir", "run_name", "disable_tqdm", "report_to", "knn_steps", "probe"}
_REPORTING |= {"logging_steps", "save_strategy", "save_steps", "save_total_limit", "dataloader_num_workers"}
_REPORTING |= {"overwrite_output_dir", "trust_paths"}
# Without the grouping these have no effect.
_OF_THE_GROUPING = {"sparsity_weight", "kl_weight", "latent_position", "latent_residual"}
# Taken from the last line of the log that has them.
_LAST_VALUES: tuple[str, ...] = ("prediction_loss", "kl_loss", "rankme", "target_std", "zero_columns")
_LAST_VALUES += (
    "groups_per_living_latent",
    "selectivity",
    "dead_latents",
    "dead_groups",
    "mean_column_norm",
    "generator_norm",
)
_LAST_VALUES += ("group_gradient_norm", "kkt_residual_zero", "kkt_residual_nonzero")


class PreTrainingFailed(RuntimeError):
    """A pre-training process ended with an error. The message holds its exit status and the last line of its log."""


@dataclass(frozen=True)
class Run:
    """A pre-training run.

    Attributes:
        method: its name in tables, such as "I-JEPA".
        seed: of weights, order, masks, augmentation and noise.
        options: what differs from the recipe.
    """

    method: str
    seed: int
    options: Mapping[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """A finished run.

    Attributes:
        checkpoint: the run's folder.
        options: all its options, as they were resolved.
        results: what it wrote into `pretraining_results.json`.
        last: the last logged value of each quantity of interest.
        knn_curve: the kNN monitor's accuracies, (epoch, share of held-out images), if the run had one.
    """

    checkpoint: Path
    options: dict[str, Any]
    results: dict[str, Any]
    last: dict[str, float]
    knn_curve: list[tuple[float, float]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """What goes into a results file. Folders are left out, since they say nothing about the result."""
        measured = self.results["train_metrics"]
        return {
            "options": {k: v for k, v in self.options.items() if k not in ("output_dir", "logging_dir", "dataset")},
            "provenance": self.results["provenance"],
            # Of a run that was resumed it is the last part alone.
            "train_seconds": None if "resumed_from_step" in measured else measured["train_runtime"],
            "num_train_examples": self.results["num_train_examples"],
            "num_processes": self.results.get("num_processes", 1),
            "last": self.last,
            **({"knn_curve": self.knn_curve} if self.knn_curve else {}),
        }


class Runs:
    """Pre-trains from one recipe into folders under `folder`.

    Args:
        recipe: YAML of `examples/pretrain.py`.
        command: how to start one run, without its options, such as `["python", "examples/pretrain.py"]`.
        folder: where the runs lie; a finished run in it with the same options is taken as it is.
        options: options of all runs, over the recipe's.
        jobs: runs at a time.
        threads: CPU threads of each run; None for torch's default.

    Raises:
        ValueError: if `jobs` is below 1.
    """

    def __init__(
        self,
        recipe: str | Path,
        command: Sequence[str],
        folder: str | Path,
        options: Mapping[str, Any] | None = None,
        jobs: int = 1,
        threads: int | None = None,
    ):
        if jobs < 1:
            raise ValueError(f"jobs is {jobs}; expected at least one run at a time.")
        self.recipe, self.folder = Path(recipe), Path(folder)
        self._command, self._jobs, self._threads = list(command), jobs, threads
        self._shared = dict(options or {})

    def make(
        self, runs: Sequence[Run], on_finish: Callable[[], Any] | None = None
    ) -> list[RunRecord | PreTrainingFailed]:
        """Every run's record, or why it failed, in the order given. A run that fails does not stop the others.

        Raises:
            ValueError: before anything runs, if the options of any run are impossible.
        """
        wanted = [self.resolve(run) for run in runs]

        def make(run: Run, options: Mapping[str, Any]) -> RunRecord | PreTrainingFailed:
            try:
                return self.finished(options) or self._start(run, options)
            except (PreTrainingFailed, OSError) as error:
                # An OSError is a launcher that is not there, or a full disk.
                logger.warning(f"{run.method}, seed {run.seed} failed: {error}")
                return error if isinstance(error, PreTrainingFailed) else PreTrainingFailed(str(error))
            finally:
                if on_finish is not None:
                    on_finish()

        with ThreadPoolExecutor(self._jobs) as pool:
            return list(pool.map(make, runs, wanted))

    def resolve(self, run: Run) -> dict[str, Any]:
        """All options of a run, checked as the run itself would check them."""
        model, data, training = self._parse(run)
        data.resolve_statistics(model.build_config().num_channels)
        return resolved_options(model, data, training)

    def value(self, run: Run, option: str) -> Any:
        """The value of an option, of the model or of its training, that a run would use.

        Raises:
            ValueError: if there is no such option.
        """
        model, *others = self._parse(run)
        for holder in (model.build_config(), *others):
            if hasattr(holder, option):
                return getattr(holder, option)
        raise ValueError(f"There is no option {option!r}; expected one of examples/pretrain.py.")

    def finished(self, wanted: Mapping[str, Any]) -> RunRecord | None:
        """A finished run with these options, if there is one in the folder."""
        for path in sorted(self.folder.glob("*/pretraining_results.json")):
            folder = path.parent
            try:
                options = yaml.safe_load((folder / "pretraining_options.yaml").read_text(encoding="utf-8"))
                if _identity(options) != _identity(wanted):
                    continue
                results = json.loads(path.read_text(encoding="utf-8"))
                history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
                last = {name: entry[name] for entry in history for name in _LAST_VALUES if name in entry}
                curve = [(entry["epoch"], entry["knn_accuracy"]) for entry in history if "knn_accuracy" in entry]
                record = RunRecord(folder, options, results, last, curve)
                # Fails if anything is missing.
                record.to_dict()
                return record
            except (AttributeError, OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
                # The run was cut off while it wrote one of these files, so it is not finished.
                continue
        return None

    def folder_of(self, run: Run, wanted: Mapping[str, Any]) -> Path:
        """The run's folder, named by method, seed and a hash of the options.

        An interrupted run goes on there, and no other run writes there.
        """
        slug = "".join(c if c.isascii() and (c.isalnum() or c in ".-") else "-" for c in run.method.lower())
        digest = hashlib.sha256(json.dumps(_identity(wanted), default=str).encode()).hexdigest()[:8]
        return self.folder / f"{slug}-seed{run.seed}-{digest}"

    def _parse(self, run: Run) -> tuple[Any, ...]:
        return parse_options(OPTION_TYPES, [str(self.recipe), *self._flags(run), "--output_dir", str(self.folder)])

    def _flags(self, run: Run) -> list[str]:
        flags: list[str] = []
        for name, value in {**self._shared, **run.options, "seed": run.seed}.items():
            flags += [f"--{name}", *(map(str, value) if isinstance(value, list | tuple) else [str(value)])]
        return flags

    def _start(self, run: Run, wanted: Mapping[str, Any]) -> RunRecord:
        folder = self.folder_of(run, wanted)
        folder.mkdir(parents=True, exist_ok=True)
        # Of two flags with one name the last counts, so a run that asks for kNN gets it.
        command = [*self._command, str(self.recipe), "--probe", "false", "--knn_steps", "0", "--disable_tqdm", "true"]
        command += [*self._flags(run), "--output_dir", str(folder)]
        # It has no results with these options: what is there was cut off, and the run goes on from it where it can.
        command += ["--overwrite_output_dir", "true", "--resume_from_checkpoint", "auto"]
        threads = {} if self._threads is None else {"OMP_NUM_THREADS": str(self._threads)}
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | threads).returncode
        if code == PREEMPTED:
            raise PreTrainingFailed(
                f"it was asked to end, saved, and is not finished; start again to go on in {folder}"
            )
        if code != 0:
            lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise PreTrainingFailed(f"exit status {code}, see {folder / 'log.txt'}: {lines[-1] if lines else ''}")
        record = self.finished(wanted)
        if record is None:
            raise PreTrainingFailed(f"{folder} holds no results with the options that were asked for.")
        return record


def _identity(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that tell a run from others; an option that is None counts as absent."""
    left_out = _REPORTING | (_OF_THE_GROUPING if options.get("use_grouping") is False else set())
    return {name: options[name] for name in sorted(options) if name not in left_out and options[name] is not None}


def as_options(words: Sequence[str]) -> dict[str, Any]:
    """Reads `--name value ...` as a mapping of texts, or of lists of texts.

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
    if empty := [name for name, values in options.items() if not values]:
        raise ValueError(f"--{empty[0]} has no value; expected --{empty[0]} VALUE.")
    return {name: values[0] if len(values) == 1 else values for name, values in options.items()}
