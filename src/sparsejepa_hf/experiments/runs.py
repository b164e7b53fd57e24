# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Many pre-training runs of one recipe, each a process of its own; what is finished is not run again."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers.utils import logging

from ..training.checkpoints import last_complete_checkpoint
from ..training.options import OPTION_TYPES, parse_options, resolved_options


logger = logging.get_logger(__name__)

IJEPA = "I-JEPA"
SPARSEJEPA = "SparseJEPA"
# Turns a SparseJEPA recipe into its I-JEPA twin.
IJEPA_OPTIONS: dict[str, Any] = {"use_grouping": False, "sparsity_weight": 0, "kl_weight": 0, "latent_residual": False}

# Where a run writes and how it reports; two runs that differ in these alone are the same run.
_NOT_OF_THE_RUN = {"output_dir", "logging_dir", "run_name", "disable_tqdm", "report_to", "knn_steps", "probe"}
_NOT_OF_THE_RUN |= {"logging_steps", "save_strategy", "save_steps", "save_total_limit", "dataloader_num_workers"}
# Taken from the last line of the log that has them.
_LAST_VALUES = ("prediction_loss", "kl_loss", "rankme", "target_std", "zero_columns", "groups_per_living_latent")
_LAST_VALUES += ("selectivity", "dead_latents", "dead_groups", "mean_column_norm", "generator_norm")
_LAST_VALUES += ("group_gradient_norm", "kkt_residual_zero", "kkt_residual_nonzero")


class PreTrainingFailed(RuntimeError):
    """A pre-training process ended with an error; the message holds its last lines."""


@dataclass(frozen=True)
class Run:
    """A pre-training run.

    Attributes:
        method: what tables call it, such as "I-JEPA".
        seed: of weights, order, masks, augmentation and noise.
        options: what differs from the recipe.
    """

    method: str
    seed: int
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.method}, seed {self.seed}"


@dataclass(frozen=True)
class RunRecord:
    """A finished run: its checkpoint, and what goes into a results file."""

    checkpoint: Path
    options: dict[str, Any]
    provenance: dict[str, Any]
    seconds: float
    num_examples: int | None
    num_processes: int
    last: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Without folders of the machine that ran it, which say nothing about the result."""
        options = {k: v for k, v in self.options.items() if k not in ("output_dir", "logging_dir", "dataset")}
        return {
            "options": options,
            "provenance": self.provenance,
            "train_seconds": self.seconds,
            "num_train_examples": self.num_examples,
            "num_processes": self.num_processes,
            "last": self.last,
        }


class Runs:
    """Pre-trains from one recipe into folders under `folder`.

    Args:
        recipe: YAML of `examples/pretrain.py`.
        command: how to start one run, without its options, such as `["python", "examples/pretrain.py"]`.
        folder: where the runs lie; a finished run in it with the same options is taken as it is.
        options: options of all runs, over the recipe's.
        jobs: runs at a time.
        threads: CPU threads of each.

    Raises:
        ValueError: if the recipe cannot be read or has unknown keys.
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
        self, runs: Sequence[Run], on_finish: Callable[[Run], None] | None = None
    ) -> list[RunRecord | PreTrainingFailed]:
        """Every run's record, or why it failed, in the order given: one that fails leaves the others alone.

        Raises:
            ValueError: at once, if the options of any run are impossible.
        """
        wanted = [self.resolve(run) for run in runs]

        def make(run: Run, options: Mapping[str, Any]) -> RunRecord | PreTrainingFailed:
            try:
                result = self.finished(options) or self._start(run, options)
            except (PreTrainingFailed, OSError) as error:
                # An OSError is a launcher that is not there, or a full disk.
                logger.warning(f"{run.name} failed: {error}")
                result = error if isinstance(error, PreTrainingFailed) else PreTrainingFailed(str(error))
            if on_finish is not None:
                on_finish(run)
            return result

        with ThreadPoolExecutor(self._jobs) as pool:
            return list(pool.map(make, runs, wanted))

    def resolve(self, run: Run) -> dict[str, Any]:
        """All options of a run, checked as the run itself would check them."""
        options = self._parse(run)
        options[0].build_config()
        return resolved_options(*options)

    def value(self, run: Run, option: str) -> Any:
        """What a run would take for an option, of the model or of its training.

        Raises:
            ValueError: if there is no such option.
        """
        model, *others = self._parse(run)
        holders = [holder for holder in (model.build_config(), *others) if hasattr(holder, option)]
        if not holders:
            raise ValueError(f"There is no option {option!r}; expected one of examples/pretrain.py.")
        return getattr(holders[0], option)

    def _parse(self, run: Run) -> tuple[Any, ...]:
        return parse_options(OPTION_TYPES, [str(self.recipe), *self._flags(run), "--output_dir", str(self.folder)])

    def finished(self, wanted: Mapping[str, Any]) -> RunRecord | None:
        """A finished run with these options, if there is one in the folder."""
        for results in sorted(self.folder.glob("*/pretraining_results.json")):
            try:
                options = yaml.safe_load((results.parent / "pretraining_options.yaml").read_text(encoding="utf-8"))
                if isinstance(options, dict) and _same_run(options, wanted):
                    return _read(results.parent, options)
            except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
                # Cut off while it was written: not finished.
                continue
        return None

    def _flags(self, run: Run) -> list[str]:
        options = {**self._shared, **run.options, "seed": run.seed}
        flags: list[str] = []
        for name, value in options.items():
            flags += [f"--{name}", *(map(str, value) if isinstance(value, list | tuple) else [str(value)])]
        return flags

    def _start(self, run: Run, wanted: Mapping[str, Any]) -> RunRecord:
        folder = self.folder_of(run, wanted)
        folder.mkdir(parents=True, exist_ok=True)
        # The last of two flags of a name counts: a run that asks for kNN has it.
        command = [*self._command, str(self.recipe), "--probe", "false", "--knn_steps", "0", "--disable_tqdm", "true"]
        command += [*self._flags(run), "--output_dir", str(folder)]
        if _has_checkpoint(folder):
            command += ["--resume_from_checkpoint", "true"]
        environment = dict(os.environ)
        if self._threads is not None:
            environment["OMP_NUM_THREADS"] = str(self._threads)
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode
        if code != 0:
            lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise PreTrainingFailed(f"exit status {code}, see {folder / 'log.txt'}: {lines[-1] if lines else ''}")
        record = self.finished(wanted)
        if record is None:
            raise PreTrainingFailed(f"{folder} holds no results with the options that were asked for.")
        return record

    def folder_of(self, run: Run, wanted: Mapping[str, Any]) -> Path:
        """Named by method, seed and a hash of the options: an interrupted run goes on there, no other comes there."""
        slug = "".join(c if c.isascii() and (c.isalnum() or c in ".-") else "-" for c in run.method.lower())
        described = {name: wanted[name] for name in sorted(set(wanted) - _NOT_OF_THE_RUN)}
        digest = hashlib.sha256(json.dumps(described, default=str).encode()).hexdigest()[:8]
        return self.folder / f"{slug}-seed{run.seed}-{digest}"


def _has_checkpoint(folder: Path) -> bool:
    """Whether there is one to go on from; if none was written to its end, their remains are in the way and go."""
    found = list(folder.glob("checkpoint-*"))
    try:
        return bool(found and last_complete_checkpoint(str(folder)))
    except ValueError:
        for path in found:
            shutil.rmtree(path)
        return False


def _same_run(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    names = (set(found) | set(wanted)) - _NOT_OF_THE_RUN
    return all(found.get(name) == wanted.get(name) for name in names)


def _read(folder: Path, options: dict[str, Any]) -> RunRecord:
    results = json.loads((folder / "pretraining_results.json").read_text(encoding="utf-8"))
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    last = {name: entry[name] for entry in history for name in _LAST_VALUES if name in entry}
    return RunRecord(
        checkpoint=folder,
        options=options,
        provenance=results["provenance"],
        seconds=results["train_metrics"]["train_runtime"],
        num_examples=results["num_train_examples"],
        num_processes=results.get("num_processes", 1),
        last=last,
    )
