# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What a run was started with, kept in each checkpoint, and what may differ when the run goes on from there."""

import difflib
import hashlib
import json
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedConfig, Trainer
from transformers.utils import logging

from ..data import ImageDataset, ResidentImages, StreamingImageDataset


logger = logging.get_logger(__name__)

RUN_RECORD = "run_options.json"

# Whatever is not in this list shapes the run, also an option that a later version brings.
_HARMLESS = set(
    # What is written, said and sent where.
    "output_dir overwrite_output_dir run_name project trackio_space_id trackio_bucket_id trackio_static_space_id "
    "report_to disable_tqdm log_level log_level_replica log_on_each_node logging_strategy logging_steps "
    "logging_first_step include_num_input_tokens_seen save_only_model save_strategy save_steps save_on_each_node "
    "save_total_limit "
    "enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push "
    "hub_revision do_train do_eval do_predict resume_from_checkpoint resume_with_changes "
    "restore_callback_states_from_checkpoint "
    # How the model is looked at on the way.
    "eval_strategy eval_steps eval_delay eval_on_start per_device_eval_batch_size prediction_loss_only "
    "eval_do_concat_batches eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics "
    "bf16_full_eval fp16_full_eval knn_steps monitor_samples collapse_min_std collapse_min_rank collapse_action "
    "eval_split max_eval_examples test_split max_test_examples probe max_bad_fraction "
    # Where the same numbers are computed, up to rounding, and what they cost.
    "use_cpu data_on_device dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers "
    "dataloader_prefetch_factor dataloader_multiprocessing_context activation_checkpointing "
    "activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs torch_empty_cache_steps "
    "use_cache ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend "
    "ddp_timeout local_rank debug skip_memory_metrics "
    # Compared as what comes of them, which a launcher can set too.
    "bf16 fp16 fsdp fsdp_config deepspeed parallelism_config preset images_per_step images_per_epoch".split()
)
# A loader's workers share the shards of a stream, so their number is part of its order.
_OF_STREAMS = {"dataloader_num_workers"}
# The parts of a batch. Images, masks and noise go by the place in the whole batch.
_OF_THE_BATCH = {"world_size", "per_device_train_batch_size", "gradient_accumulation_steps"}
# Of the model's configuration, what is no part of the architecture.
_OF_THE_LOSS = {"sparsity_weight", "kl_weight", "loss_type", "target_normalization"}
_OF_THE_LOSS |= {"hidden_dropout_prob", "attention_probs_dropout_prob"}
# Without the grouping these have no effect.
_OF_THE_GROUPING = set(
    "sparsity_weight sparsity_mode kl_weight num_groups num_latents group_size generator_hidden_size variational "
    "latent_position latent_residual sparsity_warmup_steps kl_warmup_steps support_steps group_learning_rate".split()
)
# What a resumed run could not follow: the optimizer's state, the best checkpoint so far, the start.
_FIXED = {"optim", "optim_args", "optim_target_modules", "freeze_encoder", "engine"}
_FIXED |= {"metric_for_best_model", "greater_is_better", "random_weights"}
# What an option sets in an optimizer's parameter groups.
_RATES = {"learning_rate", "group_learning_rate", "layer_decay"}
_GROUP_KEYS = {
    **dict.fromkeys(_RATES, ("initial_lr", "lr_scale")),
    **dict.fromkeys(("weight_decay", "weight_decay_end"), ("weight_decay",)),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), ("betas",)),
    "adam_epsilon": ("eps",),
}
_SCHEDULE = {*_RATES, "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_steps", "num_train_epochs"}
# Schedules with a state of their own, into which no other rate can be put.
_STATEFUL_SCHEDULES = {"reduce_lr_on_plateau", "greedy"}
_NUM_LOOKED_AT = 8

Record = dict[str, dict[str, Any]]


# ---- what a run is ----


def run_record(trainer: Any, training_data: Mapping[str, Any]) -> Record:
    """What shapes a run and may be compared: `arguments`, `model`, `data` and `processes`, ready for JSON.

    Args:
        trainer: an `ImageTrainer`; it need not have trained yet.
        training_data: of [`describe_data`].
    """
    args, config = trainer.args, trainer.model.config
    arguments = {name: value for name, value in args.to_dict().items() if not name.endswith("_token")}
    if isinstance(arguments.get("accelerator_config"), dict):
        # How a copy is waited for is the machine's matter.
        arguments["accelerator_config"].pop("non_blocking", None)
    if args.max_steps > 0:
        arguments.pop("num_train_epochs")
    of_any_model = PreTrainedConfig().to_dict().keys() | {"architectures", "auto_map"}
    model = {name: value for name, value in config.to_dict().items() if name not in of_any_model}
    model["class_names"] = [str(name) for name in (config.id2label or {}).values()]
    processor = trainer.processing_class
    options = [option for option in trainer.run_options if option is not args]
    data = {name: value for option in options for name, value in vars(option).items() if name not in model}
    data |= training_data
    data |= {name: list(getattr(processor, name)) for name in ("image_mean", "image_std")}
    processes = {name: arguments.pop(name) for name in _OF_THE_BATCH - {"world_size"}}
    record = {"arguments": arguments, "model": model, "data": data, "processes": {**processes, **_processes(trainer)}}
    return json.loads(json.dumps(record, default=str))


def describe_data(dataset: Any, collate: Any) -> dict[str, Any]:
    """What tells a data set from another, whatever its name or folder: its size and a checksum of some of its images,
    or the number and names of a stream's files."""
    if dataset is None:
        return {}
    if isinstance(dataset, StreamingImageDataset):
        files = hashlib.sha256("\n".join(dataset.shard_names).encode()).hexdigest()[:16]
        return {"train_shards": dataset.num_shards, "train_files": files}
    if not hasattr(dataset, "__len__"):
        return {}
    size = len(dataset)
    places = sorted({(size - 1) * i // (_NUM_LOOKED_AT - 1) for i in range(_NUM_LOOKED_AT)}) if size else []
    return {"train_images": size, "train_pixels": _checksum(dataset, places, collate)}


def _checksum(dataset: Any, places: Sequence[int], collate: Any) -> str | None:
    """Of the examples at `places`; None where an example is drawn anew each time, or cannot be read alone."""
    digests = []
    try:
        for _ in range(2):
            digest = hashlib.sha256()
            with _own_chance():
                for place in places:
                    digest.update(_bytes_of(dataset, place, collate))
            digests.append(digest.hexdigest()[:16])
    except Exception as error:  # noqa: BLE001
        # Any data set may stand here, and a run must not end because its data cannot be described.
        logger.info(f"The training images could not be looked at one by one ({error}), so a resume compares none.")
        return None
    return digests[0] if digests[0] == digests[1] else None


def _bytes_of(dataset: Any, place: int, collate: Any) -> bytes:
    if isinstance(dataset, ResidentImages):
        return dataset.gather(torch.tensor([place], device=dataset.device)).cpu().numpy().tobytes()
    if isinstance(dataset, ImageDataset) and dataset.pixel_values is None:
        # Not decoded: what is decoded here would count among the images that the run has seen.
        form = dataset.pixel_format
        return f"{form.shape}{form.value_range}".encode() + dataset.encoded(place)
    # Labels are left out: pre-training does not see them, and the classes are compared by name.
    return collate([dataset[place]])["pixel_values"].contiguous().cpu().numpy().tobytes()


@contextmanager
def _own_chance() -> Iterator[None]:
    """Random numbers inside are the same each time, and those outside are as if nothing had been drawn."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _processes(trainer: Trainer) -> dict[str, Any]:
    args, dataset = trainer.args, trainer.train_dataset
    # All but DDP and one process alone write checkpoints of their own kind.
    kind = trainer.accelerator.distributed_type.value
    engine = kind if kind in ("FSDP", "DEEPSPEED", "TP", "MEGATRON_LM", "XLA") else "DDP"
    in_parts = args.per_device_train_batch_size * args.world_size
    images_per_epoch: int | str | None = None
    if hasattr(dataset, "__len__"):
        size = len(dataset)
        images_per_epoch = size // in_parts * in_parts if args.dataloader_drop_last else size
        if size % in_parts and not args.dataloader_drop_last:
            # The last images of an epoch, and what fills their batch up, go by the parts.
            images_per_epoch = f"{size} in parts of {in_parts}"
    return {
        "engine": engine,
        "mixed_precision": trainer.accelerator.mixed_precision,
        "world_size": args.world_size,
        "images_per_step": in_parts * args.gradient_accumulation_steps,
        "images_per_epoch": images_per_epoch,
    }


# ---- what differs ----


def differences(was: Record, now: Record) -> dict[str, tuple[Any, Any]]:
    """What shapes the run and differs, as {name: (was, is)}; what only one of the two knows is not compared."""
    before, after = _flat(was), _flat(now)
    found = {name: (before[name], after[name]) for name in after if name in before}
    found = {name: pair for name, pair in found.items() if pair[0] != pair[1] and str(pair[0]) != str(pair[1])}
    ignored = _HARMLESS
    if now["processes"]["images_per_epoch"] is None:
        ignored = ignored - _OF_STREAMS
    elif now["data"].get("train_pixels") is not None:
        # The same images in another folder.
        ignored = ignored | {"dataset"}
    if before.get("use_grouping") is False and after.get("use_grouping") is False:
        ignored = ignored | _OF_THE_GROUPING
    if _has_equal_batches(before, after):
        ignored = ignored | _OF_THE_BATCH
    return {name: pair for name, pair in found.items() if name not in ignored}


def _flat(record: Record) -> dict[str, Any]:
    return {
        name: value for part in ("arguments", "model", "data", "processes") for name, value in record[part].items()
    }


def _has_equal_batches(was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether each step sees the same images, however a batch is cut into processes and accumulation steps."""
    sizes = ("images_per_step", "images_per_epoch")
    if now["images_per_epoch"] is None or any(was.get(name) != now[name] for name in sizes):
        return False
    # These draw from a generator of the process, or once a part.
    of_the_part = ("hidden_dropout_prob", "attention_probs_dropout_prob", "mixup", "cutmix", "auto_find_batch_size")
    return not any(now.get(name) for name in of_the_part)


def require_same_run(folder: str | Path, now: Record, allowed: Collection[str]) -> dict[str, tuple[Any, Any]]:
    """Compares a checkpoint's run with the one that is to go on, and returns the changes allowed, {name: (was, is)}.

    Args:
        folder: the checkpoint.
        now: of [`run_record`].
        allowed: names of what may differ.

    Raises:
        ValueError: something differs that is not allowed or cannot change; all of it is named. Or a name is unknown.
    """
    was = read_record(folder)
    if was is None:
        logger.warning(f"{folder} does not say what its run was started with, so nothing is compared with it.")
        return {}
    known = _flat(was) | _flat(now)
    for name in allowed:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else "Expected names of options, such as learning_rate."
            raise ValueError(f"resume_with_changes has {name!r}, which is the name of no option. {hint}")
    found = differences(was, now)
    fixed = {name for name in found if name in _FIXED or (name in now["model"] and name not in _OF_THE_LOSS)}
    types = {_flat(record)["lr_scheduler_type"] for record in (was, now)}
    if now["processes"]["engine"] == "DEEPSPEED":
        # It loads a state, with its rates, in its own way.
        fixed |= found.keys() & (_GROUP_KEYS.keys() | _SCHEDULE)
    if types & _STATEFUL_SCHEDULES:
        fixed |= found.keys() & _SCHEDULE
    refused = found.keys() - set(allowed)
    if fixed | refused:
        raise ValueError(_refusal(folder, found, fixed, refused - fixed, allowed))
    if found:
        logger.warning(f"The run goes on from {folder} with changes: {_listed(found)}.")
    return found


def _refusal(
    folder: str | Path,
    found: Mapping[str, tuple[Any, Any]],
    fixed: Collection[str],
    refused: Collection[str],
    allowed: Collection[str],
) -> str:
    lines = [f"The run of {folder} was started with other options (was -> is):"]
    lines += [f"  {_listed({name: pair})}" for name, pair in found.items() if name in fixed or name in refused]
    if fixed:
        names = ", ".join(name for name in found if name in fixed)
        lines.append(f"The checkpoint does not fit the model or the options that cannot change on a resume: {names}.")
        lines.append("Resume with what the run was started with, or begin a new run in another output_dir.")
    else:
        names = " ".join([*allowed, *(name for name in found if name in refused)])
        lines.append(f"Resume with the values before, or allow the changes by --resume_with_changes {names}")
    return "\n".join(lines)


def _listed(found: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{name}: {was} -> {now}" for name, (was, now) in found.items())


# ---- in a checkpoint ----


def write_record(folder: str | Path, record: Record, changes: Sequence[Mapping[str, Any]]) -> None:
    """Writes a run's record, with the changes that were allowed on the way, into a checkpoint's folder."""
    text = json.dumps({**record, "changes": list(changes)}, indent=1)
    (Path(folder) / RUN_RECORD).write_text(text + "\n", encoding="utf-8")


def read_record(folder: str | Path) -> dict[str, Any] | None:
    """What [`write_record`] wrote into a checkpoint's folder; None if there is nothing.

    Raises:
        ValueError: the file is damaged.
    """
    path = Path(folder) / RUN_RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        _flat(record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); expected what the run was started with. Resume from another checkpoint."
        ) from error
    return record


# ---- changes that were allowed ----


def changes_until(folder: str | Path, found: Mapping[str, tuple[Any, Any]]) -> list[dict[str, Any]]:
    """The changes that a run has seen by now: those that its checkpoint tells of, and those found at this resume."""
    earlier = (read_record(folder) or {}).get("changes", [])
    return [*earlier, {"from": Path(folder).name, **found}] if found else earlier


@contextmanager
def keeps_changed_options(trainer: Trainer, changed: Collection[str]) -> Iterator[None]:
    """While the states of optimizer and schedule are loaded inside: keeps what the changed options made of them.

    A state that is loaded brings the learning rates, weight decay and betas that it was saved with.
    """
    fresh = [{key: value for key, value in group.items() if key != "params"} for group in _groups(trainer)]
    yield
    if not changed:
        return
    keys = {key for name in changed for key in _GROUP_KEYS.get(name, ())}
    for group, before in zip(_groups(trainer), fresh, strict=True):
        group |= {key: before[key] for key in keys & before.keys()}
    scheduler = trainer.lr_scheduler
    if isinstance(scheduler, LambdaLR):
        _set_rates(scheduler)


def _groups(trainer: Trainer) -> list[dict[str, Any]]:
    optimizer = trainer.optimizer
    return optimizer.param_groups if isinstance(optimizer, Optimizer) else []


def _set_rates(scheduler: LambdaLR) -> None:
    """Gives each parameter group the rate of the step that comes next, by the schedule as it is now."""
    groups = scheduler.optimizer.param_groups
    scheduler.base_lrs = [group["initial_lr"] for group in groups]
    factors = [function(scheduler.last_epoch) for function in scheduler.lr_lambdas]
    for group, base, factor in zip(groups, scheduler.base_lrs, factors, strict=True):
        group["lr"] = base * factor
    scheduler._last_lr = [group["lr"] for group in groups]
