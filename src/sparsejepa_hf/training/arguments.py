# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Arguments of a pre-training run."""

from dataclasses import dataclass, field

from transformers import TrainingArguments


@dataclass
class SparseJEPATrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments` with the recipe's defaults, and what JEPA adds to them.

    λ and β themselves are the model's (`sparsity_weight`, `kl_weight` of its configuration); here stand their
    warm-ups. Lengths of warm-ups are fractions of the run below 1 and steps from 1 on, like `warmup_steps`.

    Raises:
        ValueError: for values outside the stated ranges.
    """

    # The recipe, where transformers' default is another.
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate, at a batch of 512."})
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
    logging_steps: float = field(default=50, metadata={"help": "Log every so many steps."})
    report_to: None | str | list[str] = field(
        default="tensorboard", metadata={"help": "Where logs go: tensorboard, wandb, mlflow, …, all or none."}
    )
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Leave out the last, smaller batch."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Leave the data set's columns alone."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "Every parameter is used."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Must stay off: a non-finite loss is an error here, not something to hide."}
    )
    prediction_loss_only: bool = field(default=True, metadata={"help": "Evaluation gathers the loss alone."})

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

    # Augmentation, batched on the training device; used for uint8 images only.
    crop: str = field(default="pad", metadata={"help": "pad (padded shift), resized (random resized crop) or none."})
    crop_padding: int = field(default=4, metadata={"help": "Pixels of padding of the padded crop."})
    crop_scale: list[float] = field(
        default_factory=lambda: [0.3, 1.0], metadata={"help": "Area range of the random resized crop."}
    )
    horizontal_flip: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip."})
    color_jitter: float = field(default=0.1, metadata={"help": "Brightness, contrast and saturation ± this share."})

    # Monitors.
    knn_steps: int = field(default=0, metadata={"help": "kNN on the held-out set every so many steps; 0: never."})
    knn_k: int = field(default=20, metadata={"help": "Neighbours of the kNN monitor."})
    knn_max_examples: int = field(
        default=10_000, metadata={"help": "Most images of the kNN monitor, in its bank and held out."}
    )
    monitor_samples: int = field(default=2048, metadata={"help": "Recent images that RankMe is computed on."})
    collapse_min_std: float = field(
        default=0.02, metadata={"help": "Below this standard deviation of features over images, warn of collapse."}
    )
    collapse_min_rank: float = field(default=2.0, metadata={"help": "Below this RankMe, warn of collapse."})
    collapse_action: str = field(default="warn", metadata={"help": "What a collapse does: warn or stop."})

    def __post_init__(self):
        if self.lr_scheduler_kwargs is None and self.lr_scheduler_type == "cosine_with_min_lr":
            self.lr_scheduler_kwargs = {"min_lr": 1e-6}
        if self.accelerator_config is None and self.dataloader_pin_memory and not self.use_cpu:
            # transformers' default waits for the copy of each batch, even from pinned memory.
            self.accelerator_config = {"non_blocking": True}
        super().__post_init__()
        self._check_momenta()
        self._check_ranges()

    def _check_momenta(self) -> None:
        for name in ("ema_momentum", "ema_momentum_end"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; expected a number in [0, 1): at 1 the target encoder would "
                    "never follow."
                )

    def _check_ranges(self) -> None:
        for name in (
            "sparsity_warmup_steps",
            "kl_warmup_steps",
            "crop_padding",
            "color_jitter",
            "knn_steps",
            "collapse_min_std",
            "collapse_min_rank",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number of at least 0.")
        for name in ("weight_decay_end", "group_learning_rate"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} is {value}; expected a number of at least 0, or nothing.")
        for name in ("knn_k", "knn_max_examples", "monitor_samples", "support_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected an integer of at least 1.")
        if not 0.0 <= self.horizontal_flip <= 1.0:
            raise ValueError(f"horizontal_flip is {self.horizontal_flip}; expected a probability in [0, 1].")
        for name, valid in (("crop", ("pad", "resized", "none")), ("collapse_action", ("warn", "stop"))):
            if getattr(self, name) not in valid:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(map(repr, valid))}.")
        for name in ("target_aspect_ratio", "crop_scale"):
            if len(getattr(self, name)) != 2:
                raise ValueError(f"{name} is {getattr(self, name)}; expected two numbers, lowest and highest.")
        if self.logging_nan_inf_filter:
            raise ValueError("logging_nan_inf_filter is True; expected False: it would hide a non-finite loss.")
