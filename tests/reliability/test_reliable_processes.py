# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Launched processes train together or not at all; none waits for one that was stopped, killed or lost its node."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import two_nodes
import yaml

import sparsejepa_hf


CONFIGS = Path(__file__).parents[2] / "examples" / "accelerate_configs"
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = ("accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0", "--config_file")
TINY = ["demo", "--use_cpu", "false", "--max_train_examples", "64", "--max_eval_examples", "32", "--report_to", "none"]
TINY += ["--per_device_train_batch_size", "8", "--logging_steps", "1", "--disable_tqdm", "true"]

LONG = pytest.mark.skipif("SPARSEJEPA_RELIABILITY_RECORD" not in os.environ, reason="part of the long form")

# What each process makes of every recipe, without a word about CPUs.
READ_RECIPES = """
import json, sys
from sparsejepa_hf.training import FINE_TUNING_OPTION_TYPES, OPTION_TYPES, parse_options
from sparsejepa_hf.training.options import RECIPES

seen = {}
for name in RECIPES:
    types = FINE_TUNING_OPTION_TYPES if name.endswith("-finetune") else OPTION_TYPES
    try:
        words = [name, "--use_cpu", "false", "--dataset", "mine", "--output_dir", sys.argv[1], "--report_to", "none"]
        arguments = parse_options(types, words)[-1]
        seen[name] = [arguments.world_size, arguments.process_index, arguments.use_cpu]
    except ValueError as error:
        seen[name] = str(error)
with open(f"{sys.argv[1]}-{arguments.process_index}.json", "w") as file:
    json.dump(seen, file)
"""


def launch(*words: str, log: Path) -> subprocess.Popen[bytes]:
    """Python processes of a launcher, which see no accelerator."""
    environment = {**os.environ, "PYTHONPATH": str(Path(sparsejepa_hf.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("wb") as file:
        command = [sys.executable, "-m", *words]
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)


@pytest.mark.slow
@LONG
def test_every_recipe_sees_all_processes_or_refuses(tmp_path, record_fault):
    (tmp_path / "read.py").write_text(READ_RECIPES, encoding="utf-8")
    log = tmp_path / "log"
    run = launch(*TORCHRUN, str(tmp_path / "read.py"), str(tmp_path / "out"), log=log)
    assert run.wait(timeout=200) == 0, log.read_text()[-3000:]
    first, second = (json.loads((tmp_path / f"out-{rank}.json").read_text()) for rank in range(2))
    for name, seen in first.items():
        if name == "imagefolder-vit-small":
            assert seen == second[name] and "bf16 is true, but there is no GPU here" in seen
        else:
            assert (seen, second[name]) == ([2, 0, False], [2, 1, False])
    assert not (tmp_path / "out").exists(), "nothing is written before all are there"
    record_fault(
        "processes", "two processes without an accelerator, each recipe", injected=len(first), held=len(first)
    )


@pytest.mark.slow
@LONG
def test_accelerate_launches_the_fsdp2_configuration_from_its_file(tmp_path):
    """End to end, with the comparison that one process alone measures while the others wait for it."""
    log, out = tmp_path / "log", tmp_path / "out"
    flags = ["--output_dir", str(out), "--max_steps", "3", "--knn_steps", "0"]
    run = launch(*ACCELERATE, str(CONFIGS / "fsdp2.yaml"), "-m", "sparsejepa_hf", "pretrain", *TINY, *flags, log=log)
    assert run.wait(timeout=200) == 0, log.read_text()[-3000:]
    results = json.loads((out / "pretraining_results.json").read_text())
    assert results["num_processes"] == 2 and results["comparison"].keys() == {"raw pixels", "untrained", "trained"}
    assert (out / "model.safetensors").is_file()
    assert yaml.safe_load((out / "pretraining_options.yaml").read_text())["use_cpu"] is False, "as it was asked for"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fault", "said"),
    [
        ("SIGSTOP", "a process stopped", "did not answer within 20 s (ddp_timeout) after step "),
        pytest.param("SIGKILL", "a process killed", "Another process ended after step ", marks=LONG),
    ],
)
def test_a_process_that_falls_silent_ends_the_run(tmp_path, record_fault, name, fault, said):
    """The others say so and end, the launcher ends the silent one and fails, and there are no results."""
    log, out = tmp_path / "log", tmp_path / "out"
    flags = ["--max_steps", "100000", "--ddp_timeout", "20", "--knn_steps", "0", "--probe", "false"]
    run = launch(*TORCHRUN, "-m", "sparsejepa_hf", "pretrain", *TINY, "--output_dir", str(out), *flags, log=log)
    try:
        end = time.monotonic() + 200
        while b"'loss'" not in log.read_bytes() and run.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        workers = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        victim = next(int(pid) for pid in workers if _rank(int(pid)) == "1")
        os.kill(victim, getattr(signal, name))
        stopped = time.monotonic()
        while said not in log.read_text() and run.poll() is None and time.monotonic() - stopped < 100:
            time.sleep(0.1)
        waited = time.monotonic() - stopped
        assert said in log.read_text(), log.read_text()[-3000:]
        if name == "SIGSTOP":
            # The launcher would do so after 30 seconds.
            os.kill(victim, signal.SIGKILL)
        assert run.wait(timeout=100) != 0
    finally:
        two_nodes.kill(run)
    assert "--resume_from_checkpoint auto" in log.read_text()
    assert not (out / "pretraining_results.json").exists()
    record_fault("processes", fault, injected=1, held=1, seconds_to_the_sentence=round(waited, 1))


@pytest.mark.slow
@LONG
def test_two_nodes_of_which_one_is_killed_end_and_go_on_as_if_there_had_been_none(tmp_path, record_fault):
    try:
        with two_nodes.network():
            pass
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {error}")
    found = two_nodes.compare(tmp_path)
    assert found == {"statuses": [[0, 0], [1, -9], [0, 0]], "no_results_when_killed": True, "equal": True}
    record_fault("processes", "a node of two killed, weights after the resume", injected=1, held=1, equal=True)


def _rank(pid: int) -> str | None:
    """RANK of a process, as its launcher set it."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((v[5:].decode() for v in variables if v.startswith(b"RANK=")), None)
