# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Faults injected on purpose and whether the package held, fuzzed inputs, and a run watched for what grows.

The faults and the fuzz are `tests/reliability`, in their long form. The soak is a pre-training run with monitors,
evaluations and checkpoints, watched from outside; SIGTERM ends it.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from scipy.stats import linregress

from sparsejepa_hf.records import NONE, render_into, table, write_record
from sparsejepa_hf.training.checkpoints import newest_whole_checkpoint

from .harness.records import ROOT, make_record, origin_line, parser, start


# By effort: cases of each fuzz target, images that are streamed, minutes of the soak and seconds between two looks.
PLANS: dict[str, dict[str, float]] = {
    "full": {"cases": 10_000, "images": 200_000, "minutes": 30, "every": 5},
    "short": {"cases": 1000, "images": 20_000, "minutes": 3, "every": 1},
    "smoke": {"cases": 20, "images": 1000, "minutes": 0.4, "every": 0.5},
}
# Saves, evaluates and classifies often: each opens files, starts a worker, and could forget to close it.
_SOAK = {
    "dataset": "textured-scenes",
    "eval_split": "test",
    "max_train_examples": 2048,
    "max_eval_examples": 256,
    "preset": "vit-micro",
    "max_steps": 10**7,
    "per_device_train_batch_size": 32,
    "dataloader_num_workers": 1,
    "sparsity_weight": 5e-4,
    "kl_weight": 3e-6,
    "logging_steps": 20,
    "knn_steps": 200,
    "eval_strategy": "steps",
    "eval_steps": 200,
    "save_strategy": "steps",
    "save_steps": 100,
    "save_total_limit": 2,
    "probe": False,
    "disable_tqdm": True,
    "use_cpu": True,
}
# The second compares many processes with one.
_TESTS = ("tests/reliability", "tests/training/test_distributed.py")
_WATCHED = {"resident": "MB", "descriptors": "", "threads": "", "processes": ""}


def inject(plan: dict[str, float], threads: int, tests: Sequence[str] = _TESTS) -> dict[str, Any]:
    """Runs tests in their long form: the rows that they recorded, and which of them failed."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder, "faults.jsonl")
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "SPARSEJEPA_FUZZ_CASES": str(int(plan["cases"])),
            "SPARSEJEPA_STREAM_IMAGES": str(int(plan["images"])),
            "SPARSEJEPA_RELIABILITY_RECORD": str(record),
        }
        command = [
            sys.executable,
            "-m",
            "pytest",
            *tests,
            "-q",
            "-p",
            "no:cacheprovider",
            "-n",
            "2",
            "--dist",
            "loadscope",
        ]
        began = time.perf_counter()
        run = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        print(run.stdout)
        rows = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    counts = {
        name: sum(map(int, re.findall(rf"(\d+) {name}", run.stdout.splitlines()[-1])))
        for name in ("passed", "failed", "error", "skipped")
    }
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.M)
    return {"faults": rows, "tests": {**counts, "names_failed": failed, "seconds": time.perf_counter() - began}}


def soak(plan: dict[str, float], threads: int, seed: int) -> dict[str, Any]:
    """Trains for `minutes`, looking at the processes every few seconds, and ends the run by SIGTERM."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [word for name, value in _SOAK.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "sparsejepa_hf", "pretrain", *flags, "--seed", str(seed)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        with Path(folder, "log.txt").open("w") as log:
            run = subprocess.Popen(
                [*command, "--output_dir", f"{folder}/run"], env=environment, stdout=log, stderr=subprocess.STDOUT
            )
            looks = _watch(run, plan, Path(folder, "run"))
            run.send_signal(signal.SIGTERM)
            code = run.wait(timeout=300)
        newest = newest_whole_checkpoint(f"{folder}/run")
        if newest is None:
            raise RuntimeError("The soak left no whole checkpoint.")
        steps = json.loads(Path(newest, "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
        results = Path(folder, "run", "pretraining_results.json").exists()
    return {
        "minutes": looks[-1]["seconds"] / 60,
        "steps": steps,
        "saves": steps // _SOAK["save_steps"],
        "evaluations": steps // _SOAK["eval_steps"],
        "looks": looks,
        "slopes": {name: slope(looks, name) for name in _WATCHED},
        "exit_code": code,
        "results_file_at_the_end": results,
    }


def _watch(run: subprocess.Popen, plan: dict[str, float], output_dir: Path) -> list[dict[str, float]]:
    """What the run holds, from its first checkpoint on: by then all that is built once is there."""
    while not list(output_dir.glob("checkpoint-*")):
        if run.poll() is not None:
            raise RuntimeError(f"The run ended by itself with {run.returncode} before its first checkpoint.")
        time.sleep(0.5)
    process, looks, began = psutil.Process(run.pid), [], time.perf_counter()
    while (seconds := time.perf_counter() - began) < 60 * plan["minutes"]:
        if run.poll() is not None:
            raise RuntimeError(f"The run ended by itself with {run.returncode} after {seconds:.0f} seconds.")
        with process.oneshot():
            look = {"resident": process.memory_info().rss / 1e6, "descriptors": process.num_fds()}
            look |= {"threads": process.num_threads(), "processes": 1 + len(process.children(recursive=True))}
        looks.append({"seconds": seconds, **look})
        time.sleep(plan["every"])
    return looks


def slope(looks: list[dict[str, float]], name: str) -> dict[str, float]:
    """Growth an hour by least squares over the last two thirds, its standard error, and medians of first and last
    third: a buffer that fills up during the first third is none."""
    third = len(looks) // 3
    late = looks[third:]
    fitted = linregress([look["seconds"] / 3600 for look in late], [look[name] for look in late])
    thirds = (looks[third : 2 * third], looks[2 * third :])
    second, last = (median(look[name] for look in part) for part in thirds)
    return {"per_hour": fitted.slope, "standard_error": fitted.stderr, "second_third": second, "last_third": last}


def render(record: dict[str, Any]) -> str:
    """One row for each fault, what grew during the soak, and where the numbers come from."""
    rows = []
    for fault in _merged(record["faults"]):
        figures = {name: v for name, v in fault.items() if name not in ("kind", "fault", "injected", "held")}
        shown = ", ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in figures.items()) or NONE
        rows.append([fault["kind"], fault["fault"], f"{fault['injected']:,}", f"{fault['held']:,}", shown])
    # Images that are streamed are no faults.
    faults = [fault for fault in record["faults"] if fault["kind"] != "soak"]
    injected, held = (sum(fault[name] for fault in faults) for name in ("injected", "held"))
    rows.append(["all but soak", "", f"{injected:,}", f"{held:,}", f"lost {injected - held:,}"])
    blocks = [table(["kind", "fault or input", "injected", "held", "figures"], rows)]
    tests, run = record["tests"], record["soak"]
    blocks.append(f"Tests: {_counts(tests)}.")
    for again in record.get("again", ()):
        names = ", ".join(f"`{name}`" for name in again["files"])
        blocks.append(f"Mended, and run again at commit {again['commit'][:7]}: {names}: {_counts(again['tests'])}.")
    growth = []
    for name, unit in _WATCHED.items():
        found = run["slopes"][name]
        medians = [f"{found[part]:,.0f} {unit}".strip() for part in ("second_third", "last_third")]
        growth.append([name, *medians, f"{found['per_hour']:+.1f} ± {found['standard_error']:.1f} {unit}".strip()])
    header = ["watched", "median of the second third", "median of the last third", "growth an hour"]
    blocks.append(table(header, growth))
    ending = "no results file" if not run["results_file_at_the_end"] else "a results file all the same"
    blocks.append(
        f"Soak: {run['minutes']:.0f} minutes, {run['steps']:,} steps, {run['saves']} checkpoints, "
        f"{run['evaluations']} evaluations with kNN, one worker process; ended by SIGTERM with exit code "
        f"{run['exit_code']}, with a whole checkpoint of step {run['steps']:,} and {ending}. {origin_line(record)}"
    )
    return "\n\n".join(blocks)


def _counts(tests: dict[str, Any]) -> str:
    failed = "".join(f"; failed: `{name}`" for name in tests["names_failed"])
    return (
        f"{tests['passed']} passed, {tests['failed'] + tests['error']} failed, {tests['skipped']} skipped, in "
        f"{tests['seconds'] / 60:.0f} minutes{failed}"
    )


def _merged(faults: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sorted by kind; several rows of one fault are summed up, without figures, which belong to one of them."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for fault in sorted(faults, key=lambda fault: fault["kind"]):
        found.setdefault((fault["kind"], fault["fault"]), []).append(fault)
    return [
        same[0]
        if len(same) == 1
        else {"kind": kind, "fault": name, **{n: sum(fault[n] for fault in same) for n in ("injected", "held")}}
        for (kind, name), same in found.items()
    ]


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--again", nargs="+", help="test files that failed and were mended: their rows join the record")
    options: argparse.Namespace = flags.parse_args()
    origin, plan, threads = start(options), PLANS[options.effort], 1
    path = options.results_dir / f"reliability{'' if options.effort == 'full' else f'_{options.effort}'}.json"
    if options.again:
        record = json.loads(path.read_text(encoding="utf-8"))
        found = inject(plan, threads, options.again)
        record["faults"] += found["faults"]
        again = {"commit": origin["commit"], "files": options.again, "tests": found["tests"]}
        record["again"] = [*record.get("again", ()), again]
    else:
        # Side by side: the soak is watched for what grows, not for its speed.
        with ThreadPoolExecutor(1) as beside:
            run = beside.submit(soak, plan, threads, options.seed)
            measured = {**inject(plan, threads), "soak": run.result(), "plan": plan}
        del options.again
        record = make_record("reliability", options, origin, measured)
    _publish(record, path)


def _publish(record: dict[str, Any], path: Path) -> None:
    """Writes the record and its rendering, and the latter into the documentation if it is the published one."""
    write_record(record, path)
    text = render(record)
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    if path == ROOT / "results" / "reliability.json":
        page = ROOT / "docs" / "reliability.md"
        page.write_text(render_into(page.read_text(encoding="utf-8"), path.name, text), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
