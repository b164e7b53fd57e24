# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Several processes that train one model: all of them take part, FSDP2 shards, and none waits without end."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin, parse_flag_from_env
from transformers import TrainingArguments
from transformers.utils import is_torch_xla_available


# What launchers call the number of processes they started: torchrun and Accelerate, then MPI's and Slurm's.
_COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
_ON_CPU = "ACCELERATE_USE_CPU"
# How gloo, NCCL and the store that processes meet at word it.
_NO_ANSWER = ("timed out", "timeout", "connection closed by peer", "connection reset by peer", "broken pipe")


class LostProcessError(RuntimeError):
    """Another process of the run did not answer in time, or is gone."""


# ---- before a process group ----


def num_launched() -> int:
    """Processes that the launcher started for this run, by the environment; 1 without a launcher."""
    return int(next((os.environ[name] for name in _COUNTS if os.environ.get(name)), 1))


def join_on_cpus(arguments: TrainingArguments) -> None:
    """Lets the processes of a launcher find each other on CPUs, where no accelerator is visible or `use_cpu` is set.

    transformers joins them only with `use_cpu`; else each would train alone and write over the others. It also leaves
    `ddp_timeout` to accelerators.

    Args:
        arguments: before their `__post_init__`.
    """
    if num_launched() == 1 or "LOCAL_RANK" not in os.environ:
        return
    if not (arguments.use_cpu or torch.accelerator.is_available() or is_torch_xla_available()):
        # Not `use_cpu`, which would be written into the options of the run.
        os.environ[_ON_CPU] = "true"
    on_cpu = arguments.use_cpu or parse_flag_from_env(_ON_CPU)
    is_gloo = arguments.ddp_backend in (None, "gloo") and not dist.is_mpi_available()
    if on_cpu and is_gloo and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(seconds=arguments.ddp_timeout))


def require_all_processes(arguments: TrainingArguments) -> None:
    """Refuses a run that does not see every process of its launcher: each would call itself the first.

    Raises:
        ValueError: if there are others.
    """
    launched = num_launched()
    if launched != arguments.world_size:
        raise ValueError(
            f"The launcher started {launched} processes, but the Trainer sees {arguments.world_size} on "
            f"{arguments.device}; each would train alone and write over the others. Start with torchrun or `accelerate "
            "launch`; to train on CPUs, set use_cpu to true. Nothing was written."
        )


# ---- FSDP2 ----


def require_known_sharding(accelerator: Accelerator) -> None:
    """Refuses engines that cut W across columns, or hold weights where the moving average does not see them.

    Raises:
        ValueError: for FSDP1 and for DeepSpeed's ZeRO-3.
    """
    fsdp = getattr(accelerator.state, "fsdp_plugin", None)
    if fsdp is not None and fsdp.fsdp_version != 2:
        raise ValueError(
            f"fsdp_version is {fsdp.fsdp_version}, which cuts tensors anywhere; expected 2. Set fsdp_version: 2 in "
            "the launcher's configuration, or version: 2 in fsdp_config."
        )
    deepspeed = getattr(accelerator.state, "deepspeed_plugin", None)
    if deepspeed is not None and deepspeed.zero_stage == 3:
        raise ValueError(
            "DeepSpeed's ZeRO stage is 3, which hides the weights from the moving average and from the proximal step; "
            "expected stage 1 or 2. To shard weights too, train with FSDP2."
        )


def shard_on_cpus(accelerator: Accelerator, plugin_options: dict | None) -> None:
    """Turns FSDP2 on where it was asked for and processes are on CPUs: Accelerate would train with DDP in silence.

    Args:
        accelerator: of the run.
        plugin_options: of the plugin, as `TrainingArguments` made them of `fsdp_config`; None: the launcher's.

    Raises:
        ValueError: an accelerator is visible, which torch would shard over.
    """
    state = accelerator.state
    asked = plugin_options is not None or parse_flag_from_env("ACCELERATE_USE_FSDP")
    if not asked or state.distributed_type != DistributedType.MULTI_CPU:
        return
    if torch.accelerator.is_available():
        raise ValueError(
            "FSDP and use_cpu are set, but torch would shard over the accelerator that is visible. Hide it "
            "(CUDA_VISIBLE_DEVICES=), or leave out use_cpu."
        )
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**(plugin_options or {}))
    if accelerator.mixed_precision != "no":
        state.fsdp_plugin.set_mixed_precision(accelerator.mixed_precision)
    state.distributed_type = PartialState().distributed_type = DistributedType.FSDP


# ---- others that do not answer ----


@contextmanager
def explain_silence(arguments: TrainingArguments, where: str) -> Iterator[None]:
    """Says in a sentence what it means when a collective operation fails because another process does not answer.

    Args:
        arguments: of the run.
        where: what was under way, asked for only then.

    Raises:
        LostProcessError: another process did not answer within `ddp_timeout` seconds, or is gone.
    """
    try:
        yield
    except RuntimeError as error:
        if arguments.world_size == 1 or not any(words in str(error).lower() for words in _NO_ANSWER):
            raise
        raise LostProcessError("") from error
