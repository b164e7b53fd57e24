# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Arguments of pre-training and of fine-tuning: transformers' own with a recipe's defaults, and what is added."""

import math
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available


def has_bf16() -> bool:
    """Whether an accelerator is here that computes in bf16."""
    return bool(is_torch_bf16_gpu_available() or is_torch_xla_available())


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
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "Every parameter is used."})

    # Augmentation, batched on the training device; used for uint8 images only.
    crop: str = field(default="pad", metadata={"help": "pad (padded shift), resized (random resized crop) or none."})
    crop_padding: int = field(default=4, metadata={"help": "Pixels of padding of the padded crop."})
    crop_scale: list[float] = field(
        default_factory=lambda: [0.3, 1.0], metadata={"help": "Area range of the random resized crop."}
    )
    horizontal_flip: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip."})
    color_jitter: float = field(default=0.0, metadata={"help": "Brightness, contrast and saturation ± this share."})

    def __post_init__(self) -> None:
        if self.accelerator_config is None and self.dataloader_pin_memory and not self.use_cpu:
            # transformers' default waits for the copy of each batch, even from pinned memory.
            self.accelerator_config: Any = {"non_blocking": True}
        if (self.bf16 or self.bf16_full_eval) and not (self.use_cpu or has_bf16()):
            raise ValueError(
                "bf16 is true, but there is no GPU here that has it. Set bf16 to false; to train in bf16 on the CPU, "
                "which is slow on most, set use_cpu to true."
            )
        super().__post_init__()
        # A non-finite loss is an error here, not something to hide; and the collator picks the columns.
        self.logging_nan_inf_filter = self.remove_unused_columns = False
        self._require_choice("crop", ("pad", "resized", "none"))
        self._require_at_least(0, "crop_padding", "color_jitter")
        self._require_pair("crop_scale")
        if not 0.0 <= self.horizontal_flip <= 1.0:
            raise ValueError(f"horizontal_flip is {self.horizontal_flip}; expected a probability in [0, 1].")

    def __setattr__(self, name: str, value: Any) -> None:
        is_secret = name == "hub_token" and isinstance(value, str)
        super().__setattr__(name, _Secret(value) if is_secret else value)

    def _require_at_least(self, lowest: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= lowest):
                raise ValueError(f"{name} is {value}; expected a finite number of at least {lowest}.")

    def _require_choice(self, name: str, valid: tuple[str, ...]) -> None:
        if getattr(self, name) not in valid:
            raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(map(repr, valid))}.")

    def _require_pair(self, name: str) -> None:
        if len(getattr(self, name)) != 2:
            raise ValueError(f"{name} is {getattr(self, name)}; expected two numbers, lowest and highest.")


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
        for name in ("ema_momentum", "ema_momentum_end"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; expected a number in [0, 1): at 1 the target encoder would "
                    "never follow."
                )
        self._require_at_least(0, "sparsity_warmup_steps", "kl_warmup_steps", "weight_decay_end")
        self._require_at_least(0, "group_learning_rate", "knn_steps", "collapse_min_std", "collapse_min_rank")
        self._require_at_least(1, "knn_k", "knn_max_examples", "monitor_samples", "support_steps")
        self._require_choice("collapse_action", ("warn", "stop"))
        self._require_pair("target_aspect_ratio")

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
        if not 0.0 < self.layer_decay <= 1.0:
            raise ValueError(f"layer_decay is {self.layer_decay}; expected a number above 0 and at most 1.")
        if not 0.0 <= self.label_smoothing_factor < 1.0:
            raise ValueError(f"label_smoothing_factor is {self.label_smoothing_factor}; expected a number in [0, 1).")
        self._require_at_least(0, "mixup", "cutmix")
        if (self.mixup or self.cutmix) and self.per_device_train_batch_size % 2:
            raise ValueError(
                f"per_device_train_batch_size is {self.per_device_train_batch_size}; expected an even number, since "
                "mixup and cutmix mix pairs of images."
            )
