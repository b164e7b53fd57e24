# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A run that is asked to end saves first, exits with a status that says it is not done, and goes on to the bit."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from transformers import TrainerCallback

import sparsejepa_hf
from sparsejepa_hf.commands.pretrain import main
from sparsejepa_hf.training import PREEMPTED, SparseJEPATrainer, preemption, saves_when_preempted


SOURCE = str(Path(sparsejepa_hf.__file__).parents[1])
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]


class Send(TrainerCallback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, number: signal.Signals, step: int, times: int = 1):
        self.number, self.step, self.times = number, step, times

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


@contextmanager
def interrupted(number: signal.Signals, step: int = 2, times: int = 1):
    """Sends a signal to the process of each run inside, in its step `step`."""
    train = SparseJEPATrainer.train

    def train_and_hear(self, *args, **kwargs):
        self.add_callback(Send(number, step, times))
        return train(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SparseJEPATrainer, "train", train_and_hear)
        yield


def write(folder: Path, options: dict[str, Any], name: str) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**options, "output_dir": str(folder / name)}), encoding="utf-8")
    return str(path)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def assert_equal(found: Path, expected: Path) -> None:
    found_weights, expected_weights = weights(found), weights(expected)
    assert found_weights.keys() == expected_weights.keys()
    assert all(torch.equal(found_weights[name], tensor) for name, tensor in expected_weights.items())


@pytest.fixture(scope="module")
def options(make_recipe) -> dict[str, Any]:
    sizes = {"max_train_examples": 32, "max_steps": 5, "save_strategy": "no"}
    return make_recipe(**sizes, probe=False, save_only_model=True, load_best_model_at_end=False)


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory) -> Path:
    """The folder of the run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    main([write(folder, options, "run")])
    return folder / "run"


def test_each_signal_saves_and_the_same_command_goes_on_to_the_bit(options, whole, tmp_path, record_fault, capsys):
    """Also a run that would keep no checkpoints, or models alone."""
    for number in SIGNALS:
        handlers = [signal.getsignal(each) for each in SIGNALS]
        recipe, folder = write(tmp_path, options, number.name), tmp_path / number.name
        with interrupted(number), pytest.raises(SystemExit) as ending:
            main([recipe])
        assert ending.value.code == PREEMPTED == 75
        assert [signal.getsignal(each) for each in SIGNALS] == handlers
        assert "ended after step 2 of 5: it is not finished" in capsys.readouterr().err
        assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]
        assert {path.name for path in folder.iterdir()} == {"checkpoint-2", "pretraining_options.yaml"}
        main([recipe, "--resume_from_checkpoint", "true"])
        assert_equal(folder, whole)
    record_fault("preemption", "SIGTERM, SIGINT or SIGUSR1 during a step", injected=len(SIGNALS), held=len(SIGNALS))


def test_a_request_sent_twice_at_once_is_one(options, tmp_path):
    """As a launcher and a scheduler do, to the group and to each process."""
    with interrupted(signal.SIGTERM, times=2), pytest.raises(SystemExit) as ending:
        main([write(tmp_path, options, "run")])
    assert ending.value.code == PREEMPTED


def test_a_due_evaluation_is_left_out_and_the_newest_checkpoint_is_kept(make_trainer, make_dataset):
    """The best checkpoint alone is kept at a run's end, but this is not its end."""
    trainer = make_trainer(
        eval_dataset=make_dataset(8),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        load_best_model_at_end=True,
        callbacks=[Send(signal.SIGUSR1, 3)],
    )
    with pytest.raises(SystemExit), saves_when_preempted(trainer):
        trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry] == [1, 2]
    assert (Path(trainer.args.output_dir) / "checkpoint-3" / "optimizer.pt").is_file()


def test_a_run_that_is_not_asked_trains_as_without(make_trainer, weights_of, assert_same_weights):
    plain, ready = make_trainer(), make_trainer()
    plain.train()
    callbacks = list(ready.callback_handler.callbacks)
    with saves_when_preempted(ready):
        ready.train()
    assert_same_weights(weights_of(ready), weights_of(plain))
    assert ready.callback_handler.callbacks == callbacks


@pytest.fixture
def restored_signals():
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_trainer_alone_leaves_signals_to_others(make_trainer, restored_signals):
    """In a notebook Ctrl-C stays what it is."""
    # A process in the background of a shell ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    trainer = make_trainer(callbacks=[Send(signal.SIGINT, 2)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


def test_another_thread_than_the_main_one_trains_without_handlers(make_trainer):
    trainer, before = make_trainer(max_steps=1), signal.getsignal(signal.SIGTERM)
    seen = []

    def train():
        with saves_when_preempted(trainer):
            seen.append(signal.getsignal(signal.SIGTERM))
            trainer.train()

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [before] and trainer.state.global_step == 1


def test_a_second_request_ends_the_process_at_once(make_trainer, monkeypatch, capfd):
    times, sent = iter([10.0, 11.0, 13.0]), []
    monkeypatch.setattr(preemption.time, "monotonic", lambda: next(times))
    monkeypatch.setattr(preemption.os, "kill", lambda *given: sent.append(given))
    with saves_when_preempted(make_trainer()):
        hear = signal.getsignal(signal.SIGTERM)
        hear(signal.SIGTERM, None)
        hear(signal.SIGTERM, None)
        assert not sent
        hear(signal.SIGTERM, None)
        assert sent == [(os.getpid(), signal.SIGTERM)] and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert capfd.readouterr().err.count("saving at the end of this step") == 1


# ---- processes of their own ----


def start(words: list[str], log: Path, *launcher: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("a") as file:
        return subprocess.Popen(
            [sys.executable, *launcher, "-m", "sparsejepa_hf", "pretrain", *words],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def wait_for(text: str, log: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while text not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-5000:]
        time.sleep(0.05)


@pytest.mark.slow
def test_a_signal_to_all_processes_leaves_the_loaders_workers_alone(options, tmp_path, record_fault):
    """Schedulers signal a job's whole group. Without workers there is no step to the end of."""
    long = {**options, "max_steps": 100_000, "dataloader_num_workers": 2}
    log = tmp_path / "log.txt"
    process = start([write(tmp_path, long, "run")], log)
    try:
        wait_for("'epoch'", log, process)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(60) == PREEMPTED, log.read_text()[-5000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    (saved,) = (tmp_path / "run").glob("checkpoint-*")
    assert json.loads((saved / "trainer_state.json").read_text())["global_step"] > 0
    assert "is not finished" in log.read_text()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    record_fault("preemption", "SIGTERM to a run and its loader's workers", injected=1, held=1)


# One process of two is asked to end at the first start, and killed at the second.
TRAIN = """
import os
import signal
import sys
from pathlib import Path

from transformers import TrainerCallback

from sparsejepa_hf.commands import pretrain
from sparsejepa_hf.training import SparseJEPATrainer

FAULTS = {0: (signal.SIGUSR1, 2), 1: (signal.SIGKILL, 5)}
start, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])
recipe, folder = sys.argv[1], Path(sys.argv[2])


class Break(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        number, step = FAULTS[start]
        if state.global_step + 1 == step:
            os.kill(os.getpid(), number)


train, finish = SparseJEPATrainer.train, SparseJEPATrainer.finish


def train_and_break(self, *args, **kwargs):
    if rank == 1 and start in FAULTS:
        self.add_callback(Break())
    return train(self, *args, **kwargs)


if start == 0:
    # The processes go on together.
    SparseJEPATrainer.finish = lambda self: self.accelerator.wait_for_everyone()
    pretrain.main([recipe, "--output_dir", str(folder / "whole")])
    SparseJEPATrainer.finish = finish
SparseJEPATrainer.train = train_and_break
pretrain.main([recipe, "--resume_from_checkpoint", "auto"])
"""


@pytest.mark.slow
def test_processes_that_torchrun_restarts_save_together_and_end_equal_to_the_bit(options, tmp_path, record_fault):
    """A signal reaches one process of two; later one is killed. Each time the same command is started again."""
    (tmp_path / "train.py").write_text(TRAIN, encoding="utf-8")
    saving = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4, "save_only_model": False}
    words = [write(tmp_path, {**options, **saving}, "run"), str(tmp_path)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts", "2"]
    environment = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *launcher, str(tmp_path / "train.py"), *words],
        # Else a restart meets the addresses of the processes before, in the store that all starts share.
        env={**environment, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    assert done.stderr.count("ended after step 3 of 6: it is not finished") == 1
    assert done.stdout.count("\nCheckpoint: ") == 2, "the whole run, and the one that went on; no other end"
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {f"checkpoint-{n}" for n in (3, 4, 6)}
    assert_equal(tmp_path / "run", tmp_path / "whole")
    record_fault("preemption", "one process of two signalled, then one killed, under torchrun", injected=2, held=2)
