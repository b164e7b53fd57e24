# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Pre-train a list of runs in the background, one after the other on one core, through interruptions.

    python -m examples.reproduce.queue examples/configs/queue-cifar100-cpu.yaml --dataset data/cifar100
    python -m examples.reproduce.queue examples/configs/queue-cifar100-cpu.yaml --status
    python -m examples.reproduce.queue examples/configs/queue-cifar100-cpu.yaml --stop

The first start fixes the commit: the queue lives in runs/NAME of the checkout and runs from a worktree there, with the
queue's file and recipes as they were committed. The same command goes on after a stop, a kill or a reboot: finished
runs stay, an interrupted one is resumed from its last checkpoint, failed ones are tried again. To begin anew, stop it
and delete its folder. On Linux.
"""

import argparse
import fcntl
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import yaml

import sparsejepa_hf
from sparsejepa_hf.data import SCENE_STYLES
from sparsejepa_hf.training.checkpoints import checkpoints_in

from .runs import PreTrainingFailed, Run, Runs


ROOT = Path(__file__).resolve().parents[2]
WAITING, RUNNING, FINISHED, FAILED = "waiting", "running", "finished", "failed"
_REQUIRED, _KNOWN = {"recipe", "seeds", "methods"}, {"recipe", "seeds", "methods", "options"}
# Two checkpoints are kept, so that the older one is there if the power fails while the newer is written.
_SAVING = {"save_strategy": "epoch", "save_total_limit": 2}
# What `--status` shows of the last line of a run's log that has it.
_SHOWN = {
    "loss": "loss {:.4g}",
    "zero_columns": "zero columns {:.1%}",
    "groups_per_living_latent": "groups per living latent {:.1f}",
    "dead_latents": "dead latents {:.0f}",
    "rankme": "RankMe {:.1f}",
    "knn_accuracy": "kNN {:.1%}",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Starts the queue unless told otherwise."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("queue", help="YAML of stages: recipe, seeds, methods, options")
    parser.add_argument(
        "--dataset", help="in place of the recipes', except the built-in scenes; kept for later starts"
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--status", action="store_true", help="say where every run stands")
    action.add_argument("--stop", action="store_true", help="end the queue and the run that it is at")
    # The queue's own process is started with it.
    action.add_argument("--work", help=argparse.SUPPRESS)
    own = parser.parse_args(arguments)
    if own.work:
        return work_through(own.queue, Path(own.work))
    path = Path(own.queue).resolve()
    if not path.is_file() or not path.is_relative_to(ROOT):
        parser.error(f"there is no file {own.queue} in {ROOT}")
    folder = ROOT / "runs" / path.stem
    if own.status:
        return report(folder)
    if own.stop:
        return stop(folder)
    # A name on the Hub stays as it is; a path must hold in any folder.
    is_path = own.dataset is not None and Path(own.dataset).exists()
    start(path.relative_to(ROOT), folder, str(Path(own.dataset).resolve()) if is_path else own.dataset)


# ---- the process in the background ----


def start(queue: Path, folder: Path, dataset: str | None) -> None:
    """Starts the queue's process in a session of its own, unless there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = take_lock(folder)
    if lock is None:
        print(f"It is already running, as process {process_of(folder)}.")
        return
    # A start or a status at the same time reads it.
    (folder / "lock").write_text(str(os.getpid()), encoding="utf-8")
    begun, worktree = begin(queue, folder, dataset), folder / "worktree"
    if dataset not in (None, begun["dataset"]):
        raise SystemExit(f"It was begun with --dataset {begun['dataset']}; leave --dataset out, or delete {folder}.")
    # The file of an older queue names no command: the commit that it was begun from has the queue in this script.
    entry = begun.get("command", ["examples/train_queue.py"])
    paths = [str(worktree / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-u", *entry, str(queue), "--work", str(folder)],
            cwd=worktree,
            # The queue and its run inherit the lock, which is held until the last of them ends.
            stdin=lock,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
    (folder / "lock").write_text(str(process.pid), encoding="utf-8")
    lock.close()
    print(f"Started as process {process.pid}, from commit {begun['commit'][:10]}. Its log: {folder / 'log.txt'}")


def begin(queue: Path, folder: Path, dataset: str | None) -> dict[str, Any]:
    """Commit, command and data set of the queue. The first start fixes them and makes the worktree."""
    begun, worktree = folder / "queue.json", folder / "worktree"
    if begun.is_file():
        fixed = json.loads(begun.read_text(encoding="utf-8"))
        # A fresh clone that was put around runs that were kept does not know the worktree.
        found = git("-C", str(worktree), "rev-parse", "--show-toplevel", "HEAD", check=False).splitlines()
        if found != [str(worktree), fixed["commit"]]:
            add_worktree(worktree, fixed["commit"])
        return fixed
    if changed := git("status", "--porcelain", "--untracked-files=no"):
        raise SystemExit(f"Commit first, since records name the commit that ran; not committed:\n{changed}")
    add_worktree(worktree, "HEAD")
    commit = git("-C", str(worktree), "rev-parse", "HEAD")
    fixed = {"commit": commit, "command": ["-m", "examples.reproduce.queue"], "dataset": dataset}
    if not (worktree / queue).is_file():
        raise SystemExit(f"{queue} is not committed; the queue runs what is.")
    read_queue(worktree / queue, worktree, [], folder / "runs", fixed["dataset"])
    begun.write_text(json.dumps(fixed) + "\n", encoding="utf-8")
    return fixed


def add_worktree(worktree: Path, commit: str) -> None:
    """Checks the commit out into `worktree`, in place of whatever an earlier start left there."""
    shutil.rmtree(worktree, ignore_errors=True)
    git("worktree", "add", "--force", "--force", "--detach", str(worktree), commit)


def stop(folder: Path) -> None:
    """Ends all processes of the queue. The next start resumes the run that it is at from its last checkpoint."""
    if is_running(folder):
        os.killpg(process_of(folder), signal.SIGTERM)
    while is_running(folder):
        time.sleep(0.1)
    print("It is not running.")


def take_lock(folder: Path) -> TextIO | None:
    """The queue's lock as an open file, or None if a process of the queue has it."""
    lock = (folder / "lock").open("a", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def is_running(folder: Path) -> bool:
    """Whether any process of the queue lives."""
    if not (folder / "lock").is_file():
        return False
    lock = take_lock(folder)
    if lock is not None:
        lock.close()
    return lock is None


def process_of(folder: Path) -> int:
    """The queue's process, which leads a group with the run that it is at."""
    return int((folder / "lock").read_text(encoding="utf-8"))


def git(*arguments: str, check: bool = True) -> str:
    """Calls git in this checkout and returns what it prints."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=check).stdout.strip()


# ---- the runs ----


def read_queue(
    path: Path, root: Path, command: Sequence[str], folder: Path, dataset: str | None = None
) -> list[tuple[Runs, Run]]:
    """The runs of a queue's file in their order: stage by stage, and in each all methods before the next seed.

    Args:
        path: YAML, a list of stages: `recipe` (below `root`), `seeds`, `methods` (name -> options) and `options` of
            all methods.
        root: the checkout.
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
        if dataset is not None and wanted and runs.resolve(wanted[0])["dataset"] not in SCENE_STYLES:
            runs = Runs(recipe, command, folder, {**options, "dataset": dataset}, threads=1)
        for run in wanted:
            if runs.resolve(run)["max_steps"] > 0:
                raise ValueError(
                    f"{run.method}, seed {run.seed} sets max_steps; expected num_train_epochs, since a queue counts "
                    "in epochs."
                )
        queue += [(runs, run) for run in wanted]
    return queue


def work_through(queue: str, folder: Path) -> None:
    """Reads the queue's file and makes its runs; the queue's own process does this."""
    if not Path(sparsejepa_hf.__file__).is_relative_to(ROOT):
        raise SystemExit(f"sparsejepa_hf comes from {sparsejepa_hf.__file__}, not from {ROOT}.")
    os.nice(5)
    begun = json.loads((folder / "queue.json").read_text(encoding="utf-8"))
    # A run must not outlive a killed queue, or the next start would meet it in its folder.
    tied = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    command = [*tied, sys.executable, str(ROOT / "examples" / "pretrain.py")]
    work(read_queue(ROOT / queue, ROOT, command, folder / "runs", begun["dataset"]), folder / "state.json")


def work(queue: Sequence[tuple[Runs, Run]], state: Path) -> None:
    """Makes the runs that are not finished, one after the other; a run that fails is passed over.

    Args:
        queue: as [`read_queue`] returns it.
        state: the file that tells where each run stands.
    """
    rows: list[dict[str, Any]] = []

    def note(row: dict[str, Any], new: str) -> None:
        row["state"] = new
        write(rows, state)
        now = time.strftime("%F %T")
        print(f"{now} {row['name']}, seed {row['seed']}: {new}", *row.get("reason", ()), sep="\n  ")

    for runs, run in queue:
        wanted = runs.resolve(run)
        rows.append(
            {
                "name": run.method,
                "seed": run.seed,
                "recipe": runs.recipe.name,
                "folder": str(runs.folder_of(run, wanted)),
                "epochs": wanted["num_train_epochs"],
                "images_per_step": wanted["per_device_train_batch_size"] * wanted["gradient_accumulation_steps"],
                "state": WAITING if runs.finished(wanted) is None else FINISHED,
            }
        )
    write(rows, state)
    for (runs, run), row in zip(queue, rows, strict=True):
        if row["state"] == FINISHED:
            continue
        note(row, RUNNING)
        (record,) = runs.make([run])
        if isinstance(record, PreTrainingFailed):
            log = Path(row["folder"]) / "log.txt"
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
            row["reason"] = [str(record), *lines[-5:]]
        note(row, FAILED if "reason" in row else FINISHED)


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes the state so that a reader finds the old file or the new one, never half of one."""
    path.with_suffix(".new").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    os.replace(path.with_suffix(".new"), path)


# ---- --status ----


def report(folder: Path) -> None:
    """Prints where the queue and each of its runs stand."""
    if not (folder / "queue.json").is_file():
        print("It has not been started.")
        return
    alive = is_running(folder)
    commit = json.loads((folder / "queue.json").read_text(encoding="utf-8"))["commit"]
    print(f"Running, as process {process_of(folder)}" if alive else "Not running", end="; ")
    print(f"commit {commit[:10]}; log: {folder / 'log.txt'}")
    if (folder / "state.json").is_file():
        print(*describe(folder / "state.json", alive), sep="\n")


def describe(state: Path, alive: bool) -> list[str]:
    """One line per run: state, epochs at its last checkpoint, last logged values, hours left; then all hours left."""
    rows = json.loads(state.read_text(encoding="utf-8"))
    trainers = [_trainer_state(Path(row["folder"])) for row in rows]
    paces: dict[str, float] = {}
    for row, trainer in zip(rows, trainers, strict=True):
        history = trainer.get("log_history", [])
        if rates := [entry["images_per_second"] for entry in history if "images_per_second" in entry]:
            images_per_epoch = trainer["max_steps"] / trainer["num_train_epochs"] * row["images_per_step"]
            row["pace"] = images_per_epoch / statistics.median(rates)
            # A run that has no pace yet goes at that of another of its recipe.
            paces[row["recipe"]] = row["pace"]
    width, lines, hours, unknown = max(len(row["name"]) for row in rows), [], 0.0, 0
    for row, trainer in zip(rows, trainers, strict=True):
        is_lost = row["state"] == RUNNING and not alive
        done = trainer.get("epoch", 0.0)
        last: dict[str, Any] = {}
        for entry in trainer.get("log_history", []):
            last |= entry
        line = f"{row['name']:<{width}}  seed {row['seed']}  {WAITING if is_lost else row['state']:<8}  "
        line += f"{done:g} of {row['epochs']:g} epochs"
        line += "".join(f", {form.format(last[key])}" for key, form in _SHOWN.items() if key in last)
        if row["state"] == FAILED:
            line += f"; {row['reason'][0]}"
        pace = row.get("pace", paces.get(row["recipe"]))
        if row["state"] != FINISHED and pace is None:
            unknown += 1
        elif row["state"] != FINISHED:
            left = (row["epochs"] - done) * pace / 3600
            hours += left
            line += f"; about {left:.1f} h left"
        lines.append(line)
    return [*lines, f"About {hours:.1f} h left{f', not counting {unknown} of unknown pace' if unknown else ''}."]


def _trainer_state(folder: Path) -> dict[str, Any]:
    """The Trainer's state at the run's end or at its last checkpoint; empty if there is none."""
    for place in (folder, *checkpoints_in(folder)):
        try:
            return json.loads((place / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            # None here, or the folder is being deleted at this moment.
            continue
    return {}


if __name__ == "__main__":
    main()
