# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Several processes that train one model: all of them take part, FSDP2 shards, and none waits without end."""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin, parse_flag_from_env
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.utils import is_torch_xla_available

from ..modeling_sparsejepa import SparseJEPAForPreTraining, SparseJEPALayer, SparseJEPAVisionModel
from .ema import full_tensor


# What launchers call the number of processes they started: torchrun and Accelerate, then MPI's and Slurm's.
_COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
_ON_CPU = "ACCELERATE_USE_CPU"
# How gloo, NCCL and the store that processes meet at put it.
_SILENT, _GONE = ("timed out", "timeout"), ("connection closed", "connection reset", "broken pipe")


class LostProcessError(ConnectionError):
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
            f"{arguments.device}; each would train alone and write over the others. Start with torchrun or "
            "`accelerate launch`; to train on CPUs, set use_cpu to true. Nothing was written."
        )


# ---- FSDP2 ----


def set_up_sharding(accelerator: Accelerator, plugin_options: dict[str, Any] | None) -> None:
    """Makes FSDP2 shard on CPUs too, where Accelerate trains with DDP in silence, and refuses what cuts W wrongly.

    Args:
        accelerator: of the run.
        plugin_options: of FSDP, as `TrainingArguments` made them of `fsdp_config`; None: the launcher's.

    Raises:
        ValueError: FSDP1 or ZeRO-3 is asked for, or FSDP on CPUs beside an accelerator that torch would shard over.
    """
    state = accelerator.state
    asks_for_fsdp = plugin_options is not None or parse_flag_from_env("ACCELERATE_USE_FSDP")
    if asks_for_fsdp and state.distributed_type == DistributedType.MULTI_CPU:
        if torch.accelerator.is_available():
            raise ValueError(
                "FSDP and use_cpu are set, but torch would shard over the accelerator that is visible; expected none. "
                "Hide it (CUDA_VISIBLE_DEVICES=), or leave out use_cpu."
            )
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**(plugin_options or {}))
        if accelerator.mixed_precision != "no":
            state.fsdp_plugin.set_mixed_precision(accelerator.mixed_precision)
        state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    fsdp, deepspeed = getattr(state, "fsdp_plugin", None), getattr(state, "deepspeed_plugin", None)
    if deepspeed is not None and deepspeed.zero_stage == 3:
        raise ValueError(
            "DeepSpeed's ZeRO stage is 3, where the moving average does not see the weights; expected stage 1 or 2. "
            "To shard weights, train with FSDP2."
        )
    if fsdp is None:
        return
    if fsdp.fsdp_version != 2:
        raise ValueError(
            f"fsdp_version is {fsdp.fsdp_version}, which may cut a column of W in two; expected 2. Set "
            "fsdp_version: 2 in the launcher's configuration, or version: 2 in fsdp_config."
        )
    # Else nothing that from_pretrained loads is written, neither in a checkpoint nor at the end.
    fsdp.state_dict_config = fsdp.optim_state_dict_config = None
    fsdp.set_state_dict_type("FULL_STATE_DICT")
    policy = fsdp.mixed_precision_policy
    if policy is not None:
        # Accelerate's would sum gradients, and hand out the loss, in the precision of the products.
        fsdp.mixed_precision_policy = dataclasses.replace(policy, reduce_dtype=torch.float32, output_dtype=None)
    # Accelerate shards the patch projection by itself, and would shard it twice inside a class named by the model.
    fsdp.transformer_cls_names_to_wrap = fsdp.transformer_cls_names_to_wrap or [SparseJEPALayer.__name__]


def whole_encoder(model: SparseJEPAForPreTraining) -> nn.Module:
    """The model inside, called with pixels alone; where FSDP2 holds it in shards, a copy of its target encoder.

    All processes call it together; each may use what it gets alone.
    """
    sparsejepa = model.sparsejepa
    if not any(hasattr(parameter, "full_tensor") for parameter in sparsejepa.parameters()):
        return sparsejepa
    weights = {name: full_tensor(tensor) for name, tensor in sparsejepa.target_encoder.state_dict().items()}
    # The weights that a new model draws must not move the run's random state.
    with torch.random.fork_rng():
        encoder = SparseJEPAVisionModel(model.config)
    encoder.target_encoder.load_state_dict(weights)
    return encoder.to(next(iter(weights.values())).device)


# ---- processes that do not answer ----


@contextmanager
def explain_silence(trainer: Trainer) -> Iterator[None]:
    """Says what it means when an exchange between processes fails because another one did not answer.

    Raises:
        LostProcessError: another process did not answer within `ddp_timeout` seconds, or is gone.
    """
    arguments = trainer.args
    try:
        yield
    except RuntimeError as error:
        words = str(error).lower()
        is_silent, is_gone = (any(part in words for part in parts) for parts in (_SILENT, _GONE))
        if arguments.world_size == 1 or not (is_silent or is_gone):
            raise
        did = f"did not answer within {arguments.ddp_timeout} s (ddp_timeout)" if is_silent else "ended"
        hint = " If processes rightly wait longer for each other, raise ddp_timeout." if is_silent else ""
        raise LostProcessError(
            f"Another process {did} after step {trainer.state.global_step}, so process {arguments.process_index} of "
            f"{arguments.world_size} ends too. Look for the first error among the processes, then go on with "
            f"--resume_from_checkpoint auto.{hint}"
        ) from error
