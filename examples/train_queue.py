# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Pre-train a list of runs in the background, one after the other on one core, through interruptions.

    python examples/train_queue.py examples/configs/queue-cifar100-cpu.yaml --dataset data/cifar100
    python examples/train_queue.py examples/configs/queue-cifar100-cpu.yaml --status
    python examples/train_queue.py examples/configs/queue-cifar100-cpu.yaml --stop

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
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

import sparsejepa_hf
from sparsejepa_hf.experiments.run_queue import describe, read_queue, work


ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
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
    # What the queue's own process is started with.
    action.add_argument("--work", help=argparse.SUPPRESS)
    own = parser.parse_args()
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
    # A name on the Hub stays; a path is to hold in any folder.
    is_path = own.dataset is not None and Path(own.dataset).exists()
    start(path.relative_to(ROOT), folder, str(Path(own.dataset).resolve()) if is_path else own.dataset)


def start(queue: Path, folder: Path, dataset: str | None) -> None:
    """Starts a process of a session of its own, unless there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = take_lock(folder)
    if lock is None:
        print(f"It is already running, as process {process_of(folder)}.")
        return
    # For whoever asks meanwhile.
    (folder / "lock").write_text(str(os.getpid()), encoding="utf-8")
    begun, worktree = begin(queue, folder, dataset), folder / "worktree"
    if dataset not in (None, begun["dataset"]):
        raise SystemExit(f"It was begun with --dataset {begun['dataset']}; leave --dataset out, or delete {folder}.")
    command = [sys.executable, "-u", f"{worktree}/examples/train_queue.py", str(queue), "--work", str(folder)]
    paths = [str(worktree / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            command,
            cwd=worktree,
            # The lock is held until the last process that inherited it ends, a run's own too.
            stdin=lock,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
    (folder / "lock").write_text(str(process.pid), encoding="utf-8")
    lock.close()
    print(f"Started as process {process.pid}, from commit {begun['commit'][:10]}. Its log: {folder / 'log.txt'}")


def begin(queue: Path, folder: Path, dataset: str | None) -> dict[str, str | None]:
    """Commit and data set of the queue; at the first start they are fixed, and the worktree is made."""
    begun, worktree = folder / "queue.json", folder / "worktree"
    if begun.is_file():
        fixed = json.loads(begun.read_text(encoding="utf-8"))
        # A checkout that was cloned anew, around the runs that were kept, does not know the worktree.
        found = git("-C", str(worktree), "rev-parse", "--show-toplevel", "HEAD", check=False).splitlines()
        if found != [str(worktree), fixed["commit"]]:
            add_worktree(worktree, fixed["commit"])
        return fixed
    if changed := git("status", "--porcelain", "--untracked-files=no"):
        raise SystemExit(f"Commit first, since records name the commit that ran; not committed:\n{changed}")
    add_worktree(worktree, "HEAD")
    fixed = {"commit": git("-C", str(worktree), "rev-parse", "HEAD"), "dataset": dataset}
    if not (worktree / queue).is_file():
        raise SystemExit(f"{queue} is not committed; the queue runs what is.")
    read_queue(worktree / queue, worktree, [], folder / "runs", fixed["dataset"])
    begun.write_text(json.dumps(fixed) + "\n", encoding="utf-8")
    return fixed


def add_worktree(worktree: Path, commit: str) -> None:
    """Checks the commit out into `worktree`, in place of whatever an earlier start left there."""
    shutil.rmtree(worktree, ignore_errors=True)
    git("worktree", "add", "--force", "--force", "--detach", str(worktree), commit)


def work_through(queue: str, folder: Path) -> None:
    """What the queue's process does."""
    if not Path(sparsejepa_hf.__file__).is_relative_to(ROOT):
        raise SystemExit(f"sparsejepa_hf comes from {sparsejepa_hf.__file__}, not from {ROOT}.")
    os.nice(5)
    begun = json.loads((folder / "queue.json").read_text(encoding="utf-8"))
    # A run must not outlive a killed queue, or the next start would meet it in its folder.
    tied = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    command = [*tied, sys.executable, str(ROOT / "examples" / "pretrain.py")]
    work(read_queue(ROOT / queue, ROOT, command, folder / "runs", begun["dataset"]), folder / "state.json")


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


def stop(folder: Path) -> None:
    """Ends all processes of the queue; the run that it is at goes on from its last checkpoint at the next start."""
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
    """What git prints in this checkout."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=check).stdout.strip()


if __name__ == "__main__":
    main()
