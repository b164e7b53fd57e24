# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints are damaged and runs killed; each goes on by `auto`, and ends with the weights of a run left alone."""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from sparsejepa_hf.training.checkpoints import MANIFEST_NAME, checkpoints_in, choose_checkpoint, faults_of


STEPS = 3
OPTIONS = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "logging_steps": 100}
# A run has some hundred operations on files; it is killed at this many, spread over all.
KILLS = 40 if int(os.environ.get("SPARSEJEPA_FUZZ_CASES", "0")) > 200 else 6
# What Python tells its audit hooks, which sees the operations of all libraries that are written in it.
OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = random.Random(path.name).randrange(len(content) * 8)
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


DAMAGES = {"truncated": truncate, "zeroed": zero, "deleted": Path.unlink, "with one bit flipped": flip_a_bit}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A process that is forked off has none of the threads that others compute with."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def train(make_trainer) -> Callable[..., None]:
    """One run in a folder, begun or gone on with."""

    def train(folder: Path, resume: str | None = None, **options) -> None:
        trainer = make_trainer(output_dir=str(folder), **{**OPTIONS, **options})
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_run()

    return train


@pytest.fixture
def whole(train, tmp_path) -> Path:
    train(tmp_path / "whole")
    return tmp_path / "whole"


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def assert_ended_alike(folder: Path, expected: Path) -> None:
    found, weights = weights_in(folder), weights_in(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items()) and found.keys() == weights.keys()
    for checkpoint in checkpoints_in(folder):
        assert not faults_of(checkpoint)
    assert not list(folder.glob("_partial*"))


def in_a_child(work: Callable[[], None], kill_after: float | None = None, seconds: float = 60.0) -> bool:
    """Does the work in a process forked off; whether it came to its end. It is killed after `kill_after` seconds."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    start = time.monotonic()
    status = None
    while status is None:
        ended, code = os.waitpid(child, os.WNOHANG)
        if ended:
            status = code
        elif time.monotonic() - start > min(seconds, kill_after or seconds):
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            assert kill_after is not None, f"the child did not end within {seconds} s"
        time.sleep(0.002)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or status == 0, f"the child ended with status {status}"
    return not killed


def kill_at(operation: int, folder: Path) -> Callable[[], int]:
    """Kills this process just before its n-th operation on a file in the folder; the answer counts them so far."""
    count = 0

    def step() -> None:
        nonlocal count
        if count == operation:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    def hook(event: str, arguments: tuple) -> None:
        if event in OPERATIONS and str(folder) in str(arguments[:2]):
            step()

    sync = os.fsync
    os.fsync = lambda handle: (step(), sync(handle))[1]
    sys.addaudithook(hook)
    return lambda: count


def kill_everywhere(work: Callable[[], None], folder: Path, tmp_path: Path) -> list[int]:
    """Counts the operations of the work on files in the folder, and says before which of them to kill it."""

    def counted() -> None:
        count = kill_at(-1, folder)
        work()
        (tmp_path / "count").write_text(str(count()))

    assert in_a_child(counted)
    count = int((tmp_path / "count").read_text())
    assert count > 50
    return list(range(0, count, max(1, count // KILLS)))


# ---- damage ----


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_of_the_newest_checkpoint_is_seen(whole, record_fault, hear_warnings, damage):
    newest, last = checkpoints_in(whole)
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    assert len(files) >= 12
    for path in files:
        content = path.read_bytes()
        hear_warnings.clear()
        DAMAGES[damage](path)
        chosen = choose_checkpoint(str(whole), "auto")
        if path.name == MANIFEST_NAME and damage == "deleted":
            # Then it is like a checkpoint from before there were manifests, with all its files.
            assert chosen == str(newest) and "has no manifest.json" in hear_warnings.text
        else:
            assert chosen == str(last) and f"{newest} is not whole" in hear_warnings.text
            # A damaged manifest may name a file that never was.
            told = "" if path.name == MANIFEST_NAME else path.name
            assert told in hear_warnings.text
            with pytest.raises(ValueError, match=f"checkpoint-{STEPS} is not whole.*{told}"):
                choose_checkpoint(str(whole), str(newest))
        path.write_bytes(content)
    assert choose_checkpoint(str(whole), "auto") == str(newest)
    fault = f"a file of the newest checkpoint {damage}"
    record_fault("checkpoints", fault, injected=len(files), held=len(files))


def test_a_run_goes_on_past_damage_to_the_same_end(whole, train, tmp_path, record_fault):
    """Each file in turn, each damage in turn."""
    names = sorted(path.name for path in checkpoints_in(whole)[0].iterdir())
    for number, name in enumerate(names):
        folder = tmp_path / "damaged"
        shutil.copytree(whole, folder)
        list(DAMAGES.values())[number % len(DAMAGES)](folder / f"checkpoint-{STEPS}" / name)
        (folder / "model.safetensors").unlink()
        train(folder, "auto")
        assert_ended_alike(folder, whole)
        shutil.rmtree(folder)
    fault = "a damaged newest checkpoint, resumed to the run's end"
    record_fault("checkpoints", fault, injected=len(names), held=len(names), weights="bit-equal")


# ---- kills ----


def test_a_run_killed_at_any_operation_on_files_goes_on_to_the_same_end(whole, train, tmp_path, record_fault):
    """While checkpoints are written, put in place and rotated, and while the model is saved at the end."""
    folder = tmp_path / "killed"
    moments = kill_everywhere(lambda: train(folder), folder, tmp_path)
    for moment in moments:
        shutil.rmtree(folder, ignore_errors=True)
        assert not in_a_child(lambda: (kill_at(moment, folder), train(folder))[1])  # noqa: B023
        if (folder / "model.safetensors").exists():
            assert weights_in(folder).keys() == weights_in(whole).keys()
        train(folder, "auto")
        assert_ended_alike(folder, whole)
    fault = "SIGKILL before an operation on files while a run saves"
    record_fault("checkpoints", fault, injected=len(moments), held=len(moments), weights="bit-equal")


def test_a_run_killed_at_random_moments_goes_on_to_the_same_end(whole, train, tmp_path, record_fault):
    """Amid steps and amid the writing of files, again and again until it has ended."""
    generator, kills = random.Random(0), 0
    start = time.monotonic()
    assert in_a_child(lambda: train(tmp_path / "timed"))
    duration = time.monotonic() - start
    while kills < max(10, KILLS):
        folder, ended = tmp_path / "killed", False
        shutil.rmtree(folder, ignore_errors=True)
        while not ended:
            ended = in_a_child(lambda: train(folder, "auto"), kill_after=generator.uniform(0.1, 1.1) * duration)  # noqa: B023
            kills += not ended
        assert_ended_alike(folder, whole)
    fault = "SIGKILL at a random moment of a run, resumed by auto until it ends"
    record_fault("checkpoints", fault, injected=kills, held=kills, weights="bit-equal")


def test_nothing_is_lost_when_a_run_is_begun_again_in_its_folder(whole, train, tmp_path, record_fault):
    """By code, which no command refuses: each earlier checkpoint is in its place or set aside, and whole."""
    folder = tmp_path / "again"
    shutil.copytree(whole, folder)
    again = lambda: train(folder, max_steps=STEPS, save_steps=STEPS)  # noqa: E731
    moments = kill_everywhere(again, folder, tmp_path)
    for moment in moments:
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        assert not in_a_child(lambda: (kill_at(moment, folder), again())[1])  # noqa: B023
        for earlier in checkpoints_in(whole):
            places = (folder / earlier.name, folder / f"_abandoned-{earlier.name}")
            assert any(place.is_dir() and not faults_of(place) for place in places)
        assert weights_in(folder).keys() == weights_in(whole).keys()
        train(folder, "auto")
        assert_ended_alike(folder, whole)
    fault = "SIGKILL before an operation on files while a run is begun again in its folder"
    record_fault("checkpoints", fault, injected=len(moments), held=len(moments), weights="bit-equal")


# ---- a branch that was left ----


def test_a_branch_that_was_left_is_never_taken(train, tmp_path, record_fault):
    """A run goes back to its first checkpoint with other options, and is killed before and after its next save."""
    other = {"learning_rate": 1e-2, "resume_with_changes": ["learning_rate"], "save_total_limit": None}
    folder, expected = tmp_path / "run", tmp_path / "expected"
    train(tmp_path / "origin", save_total_limit=None)
    shutil.copytree(tmp_path / "origin", expected)
    train(expected, str(expected / "checkpoint-1"), **other)
    moments = ("checkpoint-2/model.safetensors", "checkpoint-3/model.safetensors")
    for moment in moments:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "origin", folder)
        wanted = folder / "_partial" / moment

        def work(wanted=wanted):
            # Before the fsync of the new branch's checkpoint.
            sync = os.open
            os.open = lambda path, *a, **k: (
                os.kill(os.getpid(), signal.SIGKILL) if Path(path) == wanted else None,
                sync(path, *a, **k),
            )[1]
            train(folder, str(folder / "checkpoint-1"), **other)

        assert not in_a_child(work)
        train(folder, "auto", **other)
        assert_ended_alike(folder, expected)
        for step in (2, 3):
            assert not faults_of(folder / f"_abandoned-checkpoint-{step}"), "and nothing of it is lost"
    fault = "going back to an older checkpoint, then SIGKILL"
    record_fault("checkpoints", fault, injected=len(moments), held=len(moments), weights="bit-equal")
