# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The queue in the background, from a commit of its own, through a kill, a stop and a checkout that moves on."""

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file


ROOT = Path(__file__).parents[2]
EPOCHS = 24


def git(folder, *arguments):
    author = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *author, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path, make_recipe):
    """A git repository of this package with a tiny recipe and a queue of it."""
    folder = tmp_path / "checkout"
    for name in ("src", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    recipe = make_recipe(max_train_examples=32, num_train_epochs=EPOCHS)
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**recipe, "max_steps": -1}))
    stage = {"recipe": "tiny.yaml", "seeds": [3], "methods": {"good": {}}}
    (folder / "queue-tiny.yaml").write_text(yaml.safe_dump([stage], sort_keys=False))
    (folder / ".gitignore").write_text("/runs/\n__pycache__/\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


@pytest.fixture
def call(checkout, monkeypatch, capsys):
    """Calls the checkout's script on its queue; returns what it printed. What is left running is stopped."""
    script, queue = checkout / "examples" / "train_queue.py", checkout / "queue-tiny.yaml"

    def call(*flags):
        monkeypatch.setattr(sys, "argv", [str(script), str(queue), *flags])
        runpy.run_path(str(script), run_name="__main__")
        return capsys.readouterr().out

    yield call
    call("--stop")


def wait(condition, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def process_in(printed):
    return int(re.search(r"process (\d+)", printed).group(1))


def test_uncommitted_changes_and_a_queue_that_is_not_committed_are_refused(checkout, call):
    assert "not been started" in call("--status")
    (checkout / "tiny.yaml").write_text("{}")
    with pytest.raises(SystemExit, match="Commit first"):
        call()
    git(checkout, "checkout", "tiny.yaml")
    git(checkout, "rm", "-q", "--cached", "queue-tiny.yaml")
    git(checkout, "commit", "-qm", "second")
    with pytest.raises(SystemExit, match="not committed"):
        call()
    assert "not been started" in call("--status")


@pytest.mark.slow
def test_a_killed_and_a_stopped_queue_go_on_to_the_bit_from_the_commit_that_it_began_with(checkout, call, tmp_path):
    first, folder = git(checkout, "rev-parse", "HEAD"), checkout / "runs" / "queue-tiny"
    leader = process_in(call())
    assert os.getsid(leader) == leader != os.getsid(0), "a terminal's end does not reach it"
    wait(lambda: list(folder.glob("runs/good-*/checkpoint-*/trainer_state.json")))
    assert re.search(r"good  seed 3  running   \d+ of \d+ epochs", call("--status"))
    assert process_in(call()) == leader, "a second start starts nothing"
    os.kill(leader, signal.SIGKILL)
    wait(lambda: "Not running" in call("--status"))
    assert re.search(r"good  seed 3  waiting   [1-9]\d* of \d+ epochs", call("--status"))
    (run,) = folder.glob("runs/good-*")
    assert not (run / "pretraining_results.json").exists()

    (checkout / "examples" / "pretrain.py").write_text("raise SystemExit('the checkout moved on')\n")
    (checkout / "src" / "sparsejepa_hf" / "__init__.py").write_text("raise ImportError('the checkout moved on')\n")
    git(checkout, "commit", "-qam", "second")
    assert first[:10] in call()
    call("--stop")
    assert "Not running" in call("--status")
    # As in a checkout that was cloned anew, with the runs kept.
    shutil.rmtree(checkout / ".git" / "worktrees")

    call()
    wait(lambda: "Not running" in call("--status"))
    assert f"good  seed 3  finished  {EPOCHS} of {EPOCHS} epochs" in call("--status")
    assert json.loads((run / "pretraining_results.json").read_text())["provenance"]["commit"] == first
    assert len(re.findall(r"'epoch': '?0\.25\b", (run / "log.txt").read_text())) == 1, "resumed, not begun again"

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    flags = [str(checkout / "tiny.yaml"), "--seed", "3", "--output_dir", str(tmp_path / "whole"), "--probe", "false"]
    runpy.run_path(str(ROOT / "examples" / "pretrain.py"))["main"](flags)
    torch.set_num_threads(threads)
    whole, resumed = (load_file(path / "model.safetensors") for path in (tmp_path / "whole", run))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
