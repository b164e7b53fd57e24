# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A queue's runs come in order, fail alone and, from a commit of their own, go on after a kill and a stop."""

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

from examples.reproduce import queue as module
from examples.reproduce.queue import describe, read_queue, work


ROOT = Path(__file__).parents[3]
EPOCHS = 16


# ---- the runs ----


@pytest.fixture
def read(tmp_path, make_recipe, fake_command):
    """Reads a queue of these stages; their recipe is tiny.yaml, of two epochs."""
    recipe = make_recipe(num_train_epochs=2, save_strategy="epoch", max_steps=-1)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))

    def read(*stages, **options):
        path = tmp_path / "queue.yaml"
        path.write_text(yaml.safe_dump([{"recipe": "tiny.yaml", **stage} for stage in stages], sort_keys=False))
        return read_queue(path, tmp_path, fake_command, tmp_path / "runs", **options)

    return read


def test_stages_come_in_order_and_all_methods_before_the_next_seed(read):
    queue = read(
        {"seeds": [3, 4], "methods": {"first": {}}},
        {"seeds": [0, 1], "methods": {"b": {"num_groups": 4}, "a": None}, "options": {"ema_momentum": 0.5}},
    )
    wanted = [("first", 3), ("first", 4), ("b", 0), ("a", 0), ("b", 1), ("a", 1)]
    assert [(run.method, run.seed) for _, run in queue] == wanted
    resolved = [runs.resolve(run) for runs, run in queue]
    assert [options["ema_momentum"] == 0.5 for options in resolved] == [False] * 2 + [True] * 4
    assert resolved[2]["num_groups"] == 4 and resolved[3].get("num_groups") != 4


@pytest.mark.parametrize(
    "stage, message",
    [
        ({"seeds": [0], "methods": {"a": {}}, "sedes": [1]}, "sedes"),
        ({"methods": {"a": {}}}, "seeds"),
        ({"seeds": [0], "methods": {"a": {}, "b": {"num_groups": 5}}}, "does not divide"),
        ({"seeds": [0], "methods": {"a": {"max_steps": 4}}}, "max_steps"),
        ({"seeds": [0], "methods": {"a": {}}, "recipe": "nowhere.yaml"}, "nowhere.yaml"),
    ],
)
def test_what_cannot_be_run_is_refused(read, stage, message):
    with pytest.raises(ValueError, match=message):
        read(stage)


def test_an_unknown_option_ends_it_as_an_unknown_flag_does(read, capsys):
    with pytest.raises(SystemExit):
        read({"seeds": [0], "methods": {"a": {"no_such_option": 1}}})
    assert "no_such_option" in capsys.readouterr().err


def test_a_failure_is_written_down_and_passed_and_only_what_is_not_finished_is_made(read, tmp_path, capsys):
    """Seed 13 fails."""
    queue, state = read({"seeds": [0, 13, 1], "methods": {"tiny": {}}}), tmp_path / "state.json"
    work(queue, state)
    begun = re.findall(r"seed (\d+): running", capsys.readouterr().out)
    rows = json.loads(state.read_text())
    assert begun == ["0", "13", "1"] and [row["state"] for row in rows] == ["finished", "failed", "finished"]
    assert "thirteen is unlucky" in rows[1]["reason"][-1]
    good, bad, *_ = describe(state, alive=False)
    assert "finished  2 of 2 epochs, loss 0.5" in good
    assert "failed    0 of 2 epochs" in bad and "unlucky" in bad

    work(queue, state)
    assert re.findall(r"seed (\d+): running", capsys.readouterr().out) == ["13"], "it is tried again"

    state.write_text(state.read_text().replace('"finished"', '"running"'))
    work(read({"seeds": [0, 1], "methods": {"tiny": {}}}), state)
    assert [row["state"] for row in json.loads(state.read_text())] == ["finished"] * 2, "cut off before the note"
    assert not capsys.readouterr().out


def test_the_description_counts_what_lies_in_checkpoints_and_what_is_left(tmp_path):
    row = {"seed": 0, "recipe": "r.yaml", "epochs": 40.0, "images_per_step": 64}
    names = {"gone": "finished", "now": "running", "next": "waiting"}
    rows = [{**row, "name": name, "state": s, "folder": str(tmp_path / name)} for name, s in names.items()]
    rows.append({**rows[2], "name": "other", "recipe": "s.yaml"})
    (tmp_path / "state.json").write_text(json.dumps(rows))
    for folder, epoch in (("gone", 40.0), ("now/checkpoint-1000", 10.0)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "model.safetensors").touch()
        # 100 steps of 64 images an epoch at 64 images a second: 100 s.
        history = [{"loss": 0.5, "zero_columns": 0.0, "images_per_second": 64.0}, {"loss": 0.25, "zero_columns": 0.5}]
        state = {"epoch": epoch, "num_train_epochs": 40, "max_steps": 4000, "log_history": history}
        (tmp_path / folder / "trainer_state.json").write_text(json.dumps(state))
    gone, now, after, other, total = describe(tmp_path / "state.json", alive=True)
    assert "finished  40 of 40 epochs" in gone and "left" not in gone
    assert "running   10 of 40 epochs, loss 0.25, zero columns 50.0%; about 0.8 h left" in now
    assert "waiting   0 of 40 epochs; about 1.1 h left" in after and "left" not in other
    assert total == "About 1.9 h left, not counting 1 of unknown pace."
    assert "waiting   10 of 40" in describe(tmp_path / "state.json", alive=False)[1], "nobody is at it"


# ---- the process in the background ----


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
    recipe = make_recipe(max_train_examples=32, num_train_epochs=EPOCHS, max_steps=-1)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    stage = {"recipe": "tiny.yaml", "seeds": [3], "methods": {"good": {}}}
    (folder / "queue-tiny.yaml").write_text(yaml.safe_dump([stage], sort_keys=False))
    (folder / ".gitignore").write_text("/runs/\n__pycache__/\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


@pytest.fixture
def call(checkout, monkeypatch, capsys):
    """Calls the script on the checkout's queue; returns what it printed. What is left running is stopped."""
    monkeypatch.setattr(module, "ROOT", checkout)

    def call(*flags):
        module.main([str(checkout / "queue-tiny.yaml"), *flags])
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


def test_a_queue_from_before_its_command_was_written_down_goes_on_with_the_script_of_its_commit(checkout, call):
    script = checkout / "examples" / "train_queue.py"
    script.write_text("import json, os, sys; print(json.dumps([os.getcwd(), *sys.argv]))\n")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "as it was")
    folder = checkout / "runs" / "queue-tiny"
    folder.mkdir(parents=True)
    begun = {"commit": git(checkout, "rev-parse", "HEAD"), "dataset": "data/mine"}
    (folder / "queue.json").write_text(json.dumps(begun))
    git(checkout, "rm", "-q", "examples/train_queue.py")
    git(checkout, "commit", "-qm", "moved on")
    call("--dataset", "data/mine")
    wait(lambda: "Not running" in call("--status"))
    started = json.loads((folder / "log.txt").read_text())
    assert started == [str(folder / "worktree"), "examples/train_queue.py", "queue-tiny.yaml", "--work", str(folder)]
    with pytest.raises(SystemExit, match="begun with --dataset data/mine"):
        call("--dataset", "data/yours")


@pytest.mark.slow
def test_a_killed_and_a_stopped_queue_go_on_to_the_bit_from_the_commit_that_it_began_with(
    checkout, call, tmp_path, monkeypatch
):
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
    origin = json.loads((run / "pretraining_results.json").read_text())["provenance"]
    assert origin["commit"] == first and origin["machine"]["torch_threads"] == 1
    assert len(re.findall(r"'epoch': '?0\.25\b", (run / "log.txt").read_text())) == 1, "resumed, not begun again"

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    flags = [str(checkout / "tiny.yaml"), "--seed", "3", "--output_dir", str(tmp_path / "whole"), "--probe", "false"]
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *flags])
    runpy.run_path(str(ROOT / "examples" / "pretrain.py"), run_name="__main__")
    torch.set_num_threads(threads)
    whole, resumed = (load_file(path / "model.safetensors") for path in (tmp_path / "whole", run))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
