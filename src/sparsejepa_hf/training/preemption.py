# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A run that is asked to end saves a whole checkpoint first, and ends with an exit status that says it is not done.

transformers has `enable_jit_checkpoint`, which hears SIGTERM alone, saves on each process by itself, and lets a run
that was cut off return like one that is finished.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


# EX_TEMPFAIL of sysexits.h: not done, try again.
PREEMPTED = 75
# A scheduler or a launcher often sends the same request twice, to the group and to each process.
_SAME_REQUEST_SECONDS = 2.0
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


@contextmanager
def saves_when_preempted(trainer: Trainer) -> Iterator[None]:
    """While a run trains inside: SIGTERM, SIGINT or SIGUSR1 save a whole checkpoint at the end of the step under way,
    then raise `SystemExit(PREEMPTED)`. A second signal ends the process at once.

    Of several processes one signal to one of them will do: all save after the same step. An evaluation that falls on
    that step is left out. The handlers that were there before come back in the end. In a thread that is not the main
    one nothing happens, since signals do not reach it.

    Args:
        trainer: whose `train` is called inside.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    callback = _SaveWhenAsked(trainer)
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    trainer.add_callback(callback)
    trainer.shields_workers = True
    try:
        for number in _SIGNALS:
            signal.signal(number, callback.hear)
        yield
    finally:
        for number, handler in before.items():
            # None is a handler that was not set from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        trainer.shields_workers = False
        trainer.remove_callback(callback)


class _SaveWhenAsked(TrainerCallback):
    """Sums the processes' wishes to end after each step on the CPU, and reads the sum a step later: no step waits for
    the device, or for a message under way."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self._process = trainer, os.getpid()
        self._heard: tuple[int, float] | None = None
        self._group: Any = None
        self._sum = torch.zeros(1)
        self._pending: Any = None
        self._is_ending = False

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Handler of the signals."""
        if os.getpid() != self._process:
            # A worker of a loader, before it is shielded.
            return
        if self._heard is None:
            self._heard = number, time.monotonic()
            # Not by print, which fails where it has interrupted another print, as of a progress bar.
            os.write(2, f"{signal.Signals(number).name}: saving at the end of this step.\n".encode())
        elif time.monotonic() - self._heard[1] > _SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(self._process, number)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.world_size > 1 and dist.is_available() and dist.is_initialized():
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=args.ddp_timeout))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._all_are_asked():
            self._is_ending = True
            # Resumed, a run needs all of its state.
            args.save_only_model = False
            # There may be less than a minute.
            control.should_save, control.should_evaluate = True, False

    def _all_are_asked(self) -> bool:
        if self._group is None:
            return self._heard is not None
        is_asked = self._wait()
        self._sum.fill_(float(self._heard is not None))
        self._pending = dist.all_reduce(self._sum, group=self._group, async_op=True)
        return is_asked

    def _wait(self) -> bool:
        if self._pending is None:
            return False
        self._pending.wait()
        self._pending = None
        return bool(self._sum.item())

    def _leave(self) -> None:
        self._wait()
        if self._group is not None:
            # Left to the interpreter's exit, gloo's threads hold the process up.
            dist.destroy_process_group(self._group)
            self._group = None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self._is_ending:
            return
        self._leave()
        accelerator = self._trainer.accelerator
        accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            print(
                f"The run was asked to end, and ended after step {state.global_step} of {state.max_steps}: it is not "
                f"finished. {args.output_dir} has its checkpoint; the same command with --resume_from_checkpoint auto "
                "goes on.",
                file=sys.stderr,
                flush=True,
            )
        accelerator.end_training()
        raise SystemExit(PREEMPTED)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._leave()


# ---- the workers of a loader ----


def shield_workers(loader: DataLoader) -> None:
    """Lets a loader's workers end when their own process says so, and not by a signal that a terminal or a scheduler
    sends to all processes: without them there is no step to the end of."""
    # Accelerate holds the loader that makes workers inside its own.
    inner = getattr(loader, "base_dataloader", loader)
    if inner.num_workers > 0 and hasattr(signal, "sigwaitinfo"):
        inner.worker_init_fn = partial(_shielded, inner.worker_init_fn)


def _shielded(initialize: Callable[[int], None] | None, worker: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    threading.Thread(target=_obey_the_parent, daemon=True).start()
    if initialize is not None:
        initialize(worker)


def _obey_the_parent() -> None:
    parent = multiprocessing.parent_process()
    while True:
        told = signal.sigwaitinfo(_SIGNALS)
        if told.si_signo == signal.SIGTERM and parent is not None and told.si_pid == parent.pid:
            os._exit(0)
