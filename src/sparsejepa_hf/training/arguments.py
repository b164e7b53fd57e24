# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Arguments of pre-training and of fine-tuning: transformers' own with a recipe's defaults, and what is added."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from transformers import SchedulerType, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.training_args import trainer_log_levels
from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available, logging

from .checks import check_options, shown
from .processes import join_on_cpus, require_all_processes


logger = logging.get_logger(__name__)

# Every number of the classes below and of transformers' own: the interval it lies in. A list's entries each lie in it.
RANGES = {
    "adam_beta1": "[0, 1)",
    "adam_beta2": "[0, 1)",
    "adam_epsilon": "(0, inf)",
    "collapse_min_rank": "[0, inf)",
    "collapse_min_std": "[0, inf)",
    "color_jitter": "[0, 1]",
    "crop_padding": "[0, inf)",
    "crop_scale": "(0, 1]",
    "cutmix": "[0, inf)",
    "data_seed": "[0, 4294967295]",
    "dataloader_num_workers": "[0, 1024]",
    "dataloader_prefetch_factor": "[1, inf)",
    "ddp_bucket_cap_mb": "[1, 1000000]",
    "ddp_timeout": "[1, 1000000000]",
    "ema_momentum": "[0, 1)",
    "ema_momentum_end": "[0, 1)",
    "eval_accumulation_steps": "[1, inf)",
    "eval_delay": "[0, inf)",
    "eval_steps": "[0, inf)",
    "gradient_accumulation_steps": "[1, inf)",
    "group_learning_rate": "[0, inf)",
    "horizontal_flip": "[0, 1]",
    "kl_warmup_steps": "[0, inf)",
    "knn_k": "[1, inf)",
    "knn_max_examples": "[1, inf)",
    "knn_steps": "[0, inf)",
    "label_smoothing_factor": "[0, 1)",
    "layer_decay": "(0, 1]",
    "learning_rate": "[0, inf)",
    "local_rank": "[-1, inf)",
    "logging_steps": "[0, inf)",
    "max_grad_norm": "[0, inf)",
    "max_steps": "[-1, inf)",
    "mixup": "[0, inf)",
    "monitor_samples": "[1, 1000000]",
    "neftune_noise_alpha": "[0, inf)",
    "num_context_patches": "[1, inf)",
    # More would hold the same patches again and again.
    "num_target_blocks": "[1, 64]",
    "num_target_patches": "[1, inf)",
    "num_train_epochs": "(0, inf)",
    "per_device_eval_batch_size": "[1, inf)",
    "per_device_train_batch_size": "[1, inf)",
    "save_steps": "(0, inf)",
    "save_total_limit": "[1, inf)",
    # numpy's generator takes no other.
    "seed": "[0, 4294967295]",
    "sparsity_warmup_steps": "[0, inf)",
    "support_steps": "[1, inf)",
    "target_aspect_ratio": "(0, inf)",
    "torch_empty_cache_steps": "[1, inf)",
    "warmup_steps": "[0, inf)",
    "weight_decay": "[0, inf)",
    "weight_decay_end": "[0, inf)",
}
# What texts can be, where their type does not say it.
CHOICES = {
    "collapse_action": ("warn", "stop"),
    "crop": ("pad", "resized", "none"),
    "dataloader_multiprocessing_context": ("fork", "spawn", "forkserver"),
    "ddp_backend": ("nccl", "gloo", "mpi", "xccl", "hccl", "cncl", "mccl"),
    "include_num_input_tokens_seen": ("all", "non_padding", "no", True, False),
    "log_level": tuple(trainer_log_levels),
    "log_level_replica": tuple(trainer_log_levels),
    "lr_scheduler_type": tuple(kind.value for kind in SchedulerType),
    "report_to": ("all", "none", *INTEGRATION_TO_CALLBACK),
    "torch_compile_backend": tuple(backend.value.lower() for backend in DynamoBackend),
    "torch_compile_mode": ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    # The others order texts by their length.
    "train_sampling_strategy": ("random", "sequential"),
}
# Launchers set most of these, as objects of their own kinds.
_UNCHECKED = ("accelerator_config", "debug", "deepspeed", "fsdp", "fsdp_config", "parallelism_config")
_WARMUPS = ("warmup_steps", "sparsity_warmup_steps", "kl_warmup_steps")


def has_bf16() -> bool:
    """Whether an accelerator is here that computes in bf16."""
    return bool(is_torch_bf16_gpu_available() or is_torch_xla_available())


def _text(option: Any) -> str:
    """The text of an option that may be an enumeration's member."""
    return str(getattr(option, "value", option))


class _Secret(str):
    """Text that is pickled as None. The Trainer writes a pickle of its arguments beside what it pushes to the Hub."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Secret":
        return self


@dataclass
class ImageTrainingArguments(TrainingArguments):
    """What pre-training and fine-tuning share.

    Raises:
        ValueError: for values outside the stated ranges.
    """

    # The recipe, where transformers' default is another.
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay; none on biases and norms."})
    logging_steps: float = field(default=50, metadata={"help": "Steps from one log to the next."})
    report_to: None | str | list[str] = field(
        default="tensorboard", metadata={"help": "Where logs go: tensorboard, wandb, mlflow, …, all or none."}
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Begin anew in a folder that holds an earlier run; its checkpoints are set aside."},
    )
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "Every parameter is used."})

    resume_with_changes: list[str] | None = field(
        default=None,
        metadata={"help": "Names of options that may differ from those of the checkpoint that is resumed."},
    )

    # Augmentation, batched on the training device; used for uint8 images only.
    crop: str = field(default="pad", metadata={"help": "pad (padded shift), resized (random resized crop) or none."})
    crop_padding: int = field(default=4, metadata={"help": "Pixels of padding of the padded crop."})
    crop_scale: list[float] = field(
        default_factory=lambda: [0.3, 1.0], metadata={"help": "Area range of the random resized crop."}
    )
    horizontal_flip: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip."})
    color_jitter: float = field(default=0.0, metadata={"help": "Brightness, contrast and saturation ± this share."})

    def __post_init__(self) -> None:
        self.report_to = "none" if self.report_to is None else self.report_to
        for name in ("lr_scheduler_kwargs", "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
            self._read_json(name)
        check_options(self, RANGES, CHOICES, _UNCHECKED)
        self._check_combinations()
        if self.accelerator_config is None and self.dataloader_pin_memory and not self.use_cpu:
            # transformers' default waits for the copy of each batch, even from pinned memory.
            self.accelerator_config: Any = {"non_blocking": True}
        if (self.bf16 or self.bf16_full_eval) and not (self.use_cpu or has_bf16()):
            raise ValueError(
                "bf16 is true, but there is no GPU here that has it. Set bf16 to false; to train in bf16 on the CPU, "
                "which is slow on most, set use_cpu to true."
            )
        join_on_cpus(self)
        try:
            super().__post_init__()
        except (ArithmeticError, AttributeError, ImportError, KeyError, OSError, TypeError, ValueError) as error:
            raise ValueError(f"The training options do not fit together: {error}") from error
        require_all_processes(self)
        if self.fp16 and self.device.type == "cpu":
            raise ValueError("fp16 is true, but there is no GPU here that has it. Set fp16 to false.")
        if self.resume_with_changes is not None:
            # Words, or one word with commas.
            words = ",".join(self.resume_with_changes).split(",")
            self.resume_with_changes = [word.strip() for word in words if word.strip()]
        # A non-finite loss is an error here, not something to hide; and the collator picks the columns.
        self.logging_nan_inf_filter = self.remove_unused_columns = False
        self._warn_of_short_runs()

    def __setattr__(self, name: str, value: Any) -> None:
        is_secret = name == "hub_token" and isinstance(value, str)
        super().__setattr__(name, _Secret(value) if is_secret else value)

    def _read_json(self, name: str) -> None:
        """A mapping of the text that a flag gives."""
        text = getattr(self, name, None)
        if not isinstance(text, str):
            return
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise ValueError(f'{name} is {shown(text)}; expected a mapping as JSON, such as {{"min_lr": 1e-6}}.')
        setattr(self, name, value)

    def _check_combinations(self) -> None:
        folder = Path(self.output_dir or ".").expanduser()
        there = next((path for path in (folder, *folder.parents) if os.path.exists(path)), None)
        if there is not None and not os.path.isdir(there):
            raise ValueError(f"output_dir is {str(folder)!r}, where {str(there)!r} is a file; expected a folder.")
        if self.max_steps == 0:
            raise ValueError("max_steps is 0; expected at least 1, or -1 to train for num_train_epochs.")
        if self.logging_strategy == "steps" and self.logging_steps == 0:
            raise ValueError("logging_steps is 0; expected a number above 0, or logging_strategy no.")
        for name in ("crop_scale", "target_aspect_ratio"):
            pair = getattr(self, name, (0, 1))
            if len(pair) != 2 or pair[0] > pair[1]:
                raise ValueError(f"{name} is {pair}; expected two numbers, lowest and highest.")
        has_metric = self.load_best_model_at_end or self.metric_for_best_model is not None
        if self.save_strategy == "best" and not (has_metric and self.eval_strategy != "no"):
            raise ValueError(
                f"save_strategy is 'best', metric_for_best_model {self.metric_for_best_model!r} and eval_strategy "
                f"{_text(self.eval_strategy)!r}; expected a metric, such as loss, "
                "and eval_strategy steps or epoch, which measure it."
            )
        for name in ("dataloader_persistent_workers", "dataloader_multiprocessing_context"):
            if getattr(self, name, None) and not self.dataloader_num_workers:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r} and dataloader_num_workers 0; expected at least one worker, "
                    f"or no {name}."
                )
        if any(piece.count("=") != 1 for piece in (self.optim_args or "a=b").split(",")):
            raise ValueError(f"optim_args is {self.optim_args!r}; expected NAME=VALUE, separated by commas.")
        self._try_schedule()

    def _try_schedule(self) -> None:
        """Makes the schedule of a long run, so that what it does not take is known before anything is loaded."""
        given, name = dict(self.lr_scheduler_kwargs or {}), _text(self.lr_scheduler_type)
        optimizer, steps = torch.optim.SGD([torch.zeros(1)], lr=self.learning_rate), 10**9
        why = "it takes none" if given and name.startswith("constant") else None
        # Whatever a schedule stumbles over, these options made it.
        try:
            schedule = get_scheduler(name, optimizer, 1, steps, scheduler_specific_kwargs=given)
            factors = [of(step) for of in getattr(schedule, "lr_lambdas", ()) for step in (0, 1, 2, steps // 2, steps)]
            # A rounding above 1 is none.
            if not all(0 <= factor < 1 + 1e-6 for factor in factors):
                why = f"it goes through {[self.learning_rate * factor for factor in factors]}"
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        if why is not None:
            raise ValueError(
                f"lr_scheduler_kwargs is {shown(given)}, which with lr_scheduler_type {name!r} makes no schedule "
                f"between 0 and learning_rate {self.learning_rate} ({why}); expected the arguments of that schedule."
            )

    def _warn_of_short_runs(self) -> None:
        for name in _WARMUPS:
            steps = getattr(self, name, 0)
            if 1 <= self.max_steps < steps and self.process_index == 0:
                logger.warning(f"{name} is {steps}, but the run has only {self.max_steps} steps, so it never ends.")


@dataclass
class SparseJEPATrainingArguments(ImageTrainingArguments):
    """transformers' `TrainingArguments` with the defaults of the pre-training recipe, and what JEPA adds to them.

    λ and β themselves are the model's (`sparsity_weight`, `kl_weight` of its configuration); their warm-ups are set
    here. The length of a warm-up is a fraction of the run below 1 and a number of steps from 1 on, like
    `warmup_steps`.

    Raises:
        ValueError: for values outside the stated ranges.
    """

    # The recipe, where transformers' default is another.
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay at the start."})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's second beta."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradient clipping."})
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Learning rate warm-up: fraction of the run, or steps."}
    )
    lr_scheduler_type: str = field(default="cosine_with_min_lr", metadata={"help": "Learning rate schedule."})
    lr_scheduler_kwargs: dict | str | None = field(
        default=None,
        metadata={"help": "Extra arguments of the schedule, as JSON; default: min_lr 1e-6 for cosine_with_min_lr."},
    )
    dataloader_drop_last: bool = field(
        default=True,
        metadata={"help": "Leave out the last, smaller batch of an epoch of training."},
    )
    prediction_loss_only: bool = field(default=True, metadata={"help": "Evaluation gathers the loss alone."})
    color_jitter: float = field(default=0.1, metadata={"help": "Brightness, contrast and saturation ± this share."})

    # Masks.
    num_target_blocks: int = field(default=4, metadata={"help": "M, target blocks an image."})
    num_target_patches: int | None = field(
        default=None,
        metadata={"help": "Nt, patches a block; default: the feasible count nearest to 14 %% of the grid."},
    )
    num_context_patches: int | None = field(
        default=None,
        metadata={"help": "Nc, patches of the context; default: what M disjoint blocks leave, at least 25 %%."},
    )
    target_aspect_ratio: list[float] = field(
        default_factory=lambda: [0.75, 1.5], metadata={"help": "Lowest and highest height/width of a block."}
    )

    # Data.
    data_on_device: bool = field(
        default=False,
        metadata={"help": "Keep all training images on the training device; needs a data set cached in memory."},
    )

    # Target encoder.
    ema_momentum: float = field(default=0.996, metadata={"help": "EMA momentum at the start, in [0, 1)."})
    ema_momentum_end: float = field(default=0.9999, metadata={"help": "EMA momentum at the end, in [0, 1)."})

    # Regularisers.
    weight_decay_end: float | None = field(
        default=None, metadata={"help": "Weight decay at the end (cosine); default: constant."}
    )
    sparsity_warmup_steps: float = field(
        default=0.1, metadata={"help": "Warm-up of λ: fraction of the run, or steps."}
    )
    kl_warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up of β: fraction of the run, or steps."})
    support_steps: int = field(
        default=100,
        metadata={
            "help": "Steps over which W's gradient is averaged to tell which columns are zero; 1: each step's own."
        },
    )
    group_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of W alone; default: learning_rate."}
    )

    # Monitors.
    knn_steps: int = field(default=0, metadata={"help": "Steps from one kNN of held-out images to the next; 0: none."})
    knn_k: int = field(default=20, metadata={"help": "Neighbours of the kNN monitor."})
    knn_max_examples: int = field(
        default=10_000, metadata={"help": "Most images that the kNN monitor takes, of either set."}
    )
    monitor_samples: int = field(default=2048, metadata={"help": "Recent images that RankMe is computed on."})
    collapse_min_std: float = field(
        default=0.02, metadata={"help": "Below this standard deviation of features over images, warn of collapse."}
    )
    collapse_min_rank: float = field(default=2.0, metadata={"help": "Below this RankMe, warn of collapse."})
    collapse_action: str = field(
        default="warn", metadata={"help": "What an alarm of the monitors does: warn or stop."}
    )

    def __post_init__(self) -> None:
        if self.lr_scheduler_kwargs is None and self.lr_scheduler_type == "cosine_with_min_lr":
            self.lr_scheduler_kwargs = {"min_lr": 1e-6}
        super().__post_init__()

    @property
    def needs_knn(self) -> bool:
        """Whether the kNN accuracy is asked for: at steps, or to choose the best checkpoint."""
        return bool(self.knn_steps) or str(self.metric_for_best_model).removeprefix("eval_") == "knn_accuracy"


@dataclass
class FineTuningArguments(ImageTrainingArguments):
    """transformers' `TrainingArguments` with the defaults of the fine-tuning recipe of MAE (arXiv 2111.06377), without
    its mixing, and what fine-tuning an encoder adds to them.

    Raises:
        ValueError: for values outside the stated ranges.
    """

    # The recipe, where transformers' default is another.
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate, of the classifier."})
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Learning rate warm-up: fraction of the run, or steps."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    label_smoothing_factor: float = field(default=0.1, metadata={"help": "Label smoothing, in training only."})

    # What is trained.
    layer_decay: float = field(
        default=0.75,
        metadata={"help": "Factor of the learning rate from each layer to the one below, in (0, 1]; 1: all the same."},
    )
    freeze_encoder: bool = field(default=False, metadata={"help": "Train the linear classifier alone."})
    random_weights: bool = field(
        default=False,
        metadata={"help": "Begin from random weights of the checkpoint's architecture: what pre-training must beat."},
    )
    mixup: float = field(
        default=0.0, metadata={"help": "α of Mixup, one λ a batch; 0: off. A last batch of odd size stays unmixed."}
    )
    cutmix: float = field(
        default=0.0, metadata={"help": "α of CutMix; 0: off. With both, each batch takes one of the two at random."}
    )

    def __post_init__(self) -> None:
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model: str | None = "accuracy"
        super().__post_init__()
        if (self.mixup or self.cutmix) and self.per_device_train_batch_size % 2:
            raise ValueError(
                f"per_device_train_batch_size is {self.per_device_train_batch_size}; expected an even number, since "
                "mixup and cutmix mix pairs of images."
            )
