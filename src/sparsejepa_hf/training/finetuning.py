# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A whole fine-tuning run: an encoder and a classifier, trained with labels and layer-wise learning rates."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
import yaml
from timm.data.mixup import Mixup
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from transformers import EvalPrediction, PreTrainedConfig, Trainer, TrainingArguments, set_seed
from transformers.models.auto.image_processing_auto import get_image_processor_config
from transformers.utils import logging

from ..configuration_sparsejepa import SparseJEPAConfig
from ..counter_rng import stream_keys
from ..data import BatchAugmentation, ImageDataset, collate_images, load_image_dataset, normalize_images
from ..evaluation import classification_metrics, validation_mask
from ..modeling_sparsejepa import SparseJEPAForImageClassification
from ..records import provenance
from .checkpoints import last_complete_checkpoint
from .monitors import NonFiniteLossError
from .pretraining import refuse_other_checkpoints, resolved_options, square_side
from .trainer import AUGMENTATION_STREAM, image_processor


logger = logging.get_logger(__name__)


@dataclass
class FineTuningModelArguments:
    """Which encoder to begin from."""

    model_name_or_path: str = field(
        metadata={"help": "A SparseJEPA checkpoint: a folder, or a model on the Hub. Its target encoder is taken."}
    )


@dataclass
class FineTuningDataArguments:
    """Which labelled images to train and to test on."""

    dataset: str = field(
        metadata={
            "help": "A Hub data set, a folder of images, parquet, arrow or tar files (a glob will do), a folder of "
            "save_to_disk, or synthetic-scenes, the built-in data."
        }
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    test_split: str = field(
        default="test", metadata={"help": "Split that the finished model is tested on, once; nothing is chosen on it."}
    )
    validation_fraction: float = field(
        default=0.1,
        metadata={
            "help": "Share of each class of train_split that is held out for the evaluations during training, and for "
            "load_best_model_at_end; with eval_strategy no, nothing is held out."
        },
    )
    image_column: str | None = field(default=None, metadata={"help": "Default: the only image column."})
    label_column: str | None = field(default=None, metadata={"help": "Default: the only label column."})
    load_size: int | None = field(
        default=None,
        metadata={"help": "Side that training images are decoded to before augmentation; default: the model's."},
    )
    max_train_examples: int | None = field(
        default=None, metadata={"help": "A random subset of so many, validation part included."}
    )
    max_test_examples: int | None = field(default=None, metadata={"help": "Likewise for the test split."})
    dataset_seed: int = field(default=0, metadata={"help": "Seed of subsets and of the validation part."})
    max_bad_fraction: float = field(default=0.01, metadata={"help": "Largest share of undecodable images."})
    image_mean: list[float] | None = field(
        default=None, metadata={"help": "Of each channel; default: the checkpoint's image processor's."}
    )
    image_std: list[float] | None = field(
        default=None, metadata={"help": "Of each channel; default: the checkpoint's image processor's."}
    )

    def __post_init__(self):
        if not 0.0 < self.validation_fraction < 1.0:
            raise ValueError(
                f"validation_fraction is {self.validation_fraction}; expected a number between 0 and 1. To hold "
                "nothing out, leave it and set eval_strategy to no."
            )
        if (self.image_mean is None) != (self.image_std is None):
            raise ValueError("Of image_mean and image_std one is given alone; expected both, or neither.")


@dataclass
class FineTuningArguments(TrainingArguments):
    """transformers' `TrainingArguments` with a recipe's defaults (those of MAE, arXiv 2111.06377, without its mixing),
    and what fine-tuning an encoder adds to them.

    Raises:
        ValueError: for values outside the stated ranges.
    """

    # The recipe, where transformers' default is another.
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate, of the classifier."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay; none on biases and norms."})
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Learning rate warm-up: fraction of the run, or steps."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    label_smoothing_factor: float = field(default=0.1, metadata={"help": "Label smoothing, in training only."})
    logging_steps: float = field(default=50, metadata={"help": "Log every so many steps."})
    report_to: None | str | list[str] = field(
        default="tensorboard", metadata={"help": "Where logs go: tensorboard, wandb, mlflow, …, all or none."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Leave the data set's columns alone."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "Every parameter is used."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Off: a non-finite loss is an error here, not something to hide."}
    )

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

    # Augmentation, batched on the training device.
    crop: str = field(default="pad", metadata={"help": "pad (padded shift), resized (random resized crop) or none."})
    crop_padding: int = field(default=4, metadata={"help": "Pixels of padding of the padded crop."})
    crop_scale: list[float] = field(
        default_factory=lambda: [0.3, 1.0], metadata={"help": "Area range of the random resized crop."}
    )
    horizontal_flip: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip."})
    color_jitter: float = field(default=0.0, metadata={"help": "Brightness, contrast and saturation ± this share."})
    mixup: float = field(
        default=0.0, metadata={"help": "α of Mixup, one λ a batch; 0: off. A last batch of odd size stays unmixed."}
    )
    cutmix: float = field(
        default=0.0, metadata={"help": "α of CutMix, likewise. With both, each batch takes one of them at random."}
    )

    def __post_init__(self):
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = "accuracy"
        super().__post_init__()
        if not 0.0 < self.layer_decay <= 1.0:
            raise ValueError(f"layer_decay is {self.layer_decay}; expected a number above 0 and at most 1.")
        if not 0.0 <= self.label_smoothing_factor < 1.0:
            raise ValueError(f"label_smoothing_factor is {self.label_smoothing_factor}; expected a number in [0, 1).")
        for name in ("mixup", "cutmix"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0.0):
                raise ValueError(f"{name} is {getattr(self, name)}; expected a finite number of at least 0.")
        if (self.mixup or self.cutmix) and self.per_device_train_batch_size % 2:
            raise ValueError(
                f"per_device_train_batch_size is {self.per_device_train_batch_size}; expected an even number, since "
                "mixup and cutmix mix pairs of images."
            )


OPTION_TYPES = (FineTuningModelArguments, FineTuningDataArguments, FineTuningArguments)


def finetune(
    model_name_or_path: str, data_arguments: FineTuningDataArguments, training_arguments: FineTuningArguments
) -> dict[str, Any]:
    """Fine-tunes a checkpoint's target encoder with a linear classifier on its mean-pooled features, and tests it.

    Writes the classifier with its class names, the image processor, the resolved options
    (`finetuning_options.yaml`, which runs again as it stands) and the results (`finetuning_results.json`).

    Returns:
        `output_dir`, `model_name_or_path`, `class_names`, `num_train_examples`, `num_validation_examples`,
        `num_test_examples`, `num_undecodable`, `train_metrics`, `validation` (None where nothing was held out) and
        `test`, each with what [`classification_metrics`] measures, and `provenance` (as at the start).

    Raises:
        ValueError: the checkpoint is not one of SparseJEPA; a split is empty, has no labels, or labels outside its
            classes; there are fewer than two classes; or `output_dir` holds something that must not be overwritten.
        NonFiniteLossError: the loss is NaN or infinite.
    """
    _refuse_overwriting(model_name_or_path, training_arguments)
    # Before anything runs: what is committed meanwhile did not.
    origin = provenance()
    config = _read_config(model_name_or_path)
    data = _LabelledData(data_arguments, square_side(config), training_arguments.eval_strategy != "no")
    # After the data, so that the classifier starts the same whether they were in a cache or not.
    set_seed(training_arguments.seed)
    trainer = FineTuningTrainer(
        model=load_classifier(model_name_or_path, data.class_names, training_arguments.random_weights),
        args=training_arguments,
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=image_processor(config.image_sides, *_pixel_statistics(model_name_or_path, data_arguments)),
    )
    if trainer.is_world_process_zero():
        options = (FineTuningModelArguments(str(model_name_or_path)), data_arguments, training_arguments)
        _write_options(training_arguments.output_dir, *options)
    output = trainer.train(resume_from_checkpoint=training_arguments.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    results = {"output_dir": training_arguments.output_dir, "model_name_or_path": str(model_name_or_path)}
    results |= {"train_metrics": output.metrics, **_tested(trainer, data), "provenance": origin}
    if trainer.is_world_process_zero():
        path = Path(training_arguments.output_dir) / "finetuning_results.json"
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    # Together, and in order: left to the interpreter's exit, gloo's threads sometimes abort a process.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    return results


def _tested(trainer: "FineTuningTrainer", data: "_LabelledData") -> dict[str, Any]:
    parts = [part for part in (data.train, data.validation, data.test) if part is not None]
    return {
        "class_names": data.class_names,
        "num_train_examples": len(data.train),
        "num_validation_examples": 0 if data.validation is None else len(data.validation),
        "num_test_examples": len(data.test),
        "num_undecodable": sum(part.num_bad for part in parts),
        "validation": None if data.validation is None else trainer.measure(data.validation),
        "test": trainer.measure(data.test),
    }


def _refuse_overwriting(model_name_or_path: str, arguments: FineTuningArguments) -> None:
    if Path(arguments.output_dir).resolve() == Path(model_name_or_path).resolve():
        raise ValueError(
            f"output_dir is {arguments.output_dir!r}, which holds the checkpoint to begin from; the result would "
            "overwrite it. Choose another output_dir."
        )
    refuse_other_checkpoints(arguments)


def _write_options(output_dir: str, *options: Any) -> None:
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(resolved_options(*options), sort_keys=False)
    (Path(output_dir) / "finetuning_options.yaml").write_text(text, encoding="utf-8")


# ---- the model ----


def _read_config(model_name_or_path: str) -> SparseJEPAConfig:
    try:
        written = PreTrainedConfig.get_config_dict(model_name_or_path)[0]
    except OSError as error:
        raise ValueError(
            f"model_name_or_path is {str(model_name_or_path)!r}, where no model was found ({error}). Give the output "
            "folder of a pre-training run, or a SparseJEPA model on the Hub."
        ) from error
    if written.get("model_type") != SparseJEPAConfig.model_type:
        found = f"a model of type {written.get('model_type')!r}" if written else "where there is no config.json"
        raise ValueError(
            f"model_name_or_path is {str(model_name_or_path)!r}, {found}; expected a model of type "
            f"{SparseJEPAConfig.model_type!r}. Give the output folder of a pre-training run, or a SparseJEPA model on "
            "the Hub."
        )
    return SparseJEPAConfig.from_pretrained(model_name_or_path)


def load_classifier(
    model_name_or_path: str, class_names: list[str], random_weights: bool = False
) -> SparseJEPAForImageClassification:
    """The checkpoint's target encoder under a classifier of `class_names`, in float32.

    A classifier in the checkpoint is kept if it has as many classes, else replaced by a random one. With
    `random_weights` everything is random, and the checkpoint gives the architecture alone.

    Raises:
        ValueError: the checkpoint is not one of SparseJEPA, or lacks weights of the encoder.
    """
    config = _read_config(model_name_or_path)
    config.id2label = dict(enumerate(class_names))
    config.label2id = {name: index for index, name in enumerate(class_names)}
    if random_weights:
        return SparseJEPAForImageClassification(config).float()
    model, info = SparseJEPAForImageClassification.from_pretrained(
        model_name_or_path,
        config=config,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    lacking = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    lacking = sorted(key for key in lacking if not key.startswith("classifier."))
    if lacking:
        raise ValueError(
            f"The checkpoint {str(model_name_or_path)!r} lacks {len(lacking)} weights of the target encoder, such as "
            f"{lacking[0]}; expected one written by save_pretrained of a SparseJEPA model."
        )
    return model


class _LayerOrder:
    """What timm asks of a model for layer decay: its parameters, and which layer each belongs to."""

    def __init__(self, model: nn.Module):
        self.named_parameters = model.named_parameters

    @staticmethod
    def group_matcher(coarse: bool = False) -> dict[str, Any]:
        """Embeddings first, then the layers; 99999 is timm's sign for "with the layer before". The rest comes last."""
        layers = [(r".*\.layers\.(\d+)\.", None), (r".*_encoder\.layernorm\.", (99999,))]
        return {"embeddings": r".*\.embeddings\.", "layers": layers}


def layer_decay_groups(
    model: SparseJEPAForImageClassification, learning_rate: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer whose learning rates fall from the classifier down (BEiT, arXiv 2106.08254).

    With L layers the learning rate is learning_rate · layer_decay^(L+1−l), where l is 0 for the embeddings, 1 to L for
    the layers (the final norm is with the last) and L + 1 for the classifier. Frozen parameters are in no group;
    biases and norms, all one-dimensional, have no weight decay; positions are fixed here and have neither.

    Returns:
        dictionaries of `params`, `lr`, `lr_scale` and `weight_decay`, the classifier's first.
    """
    groups = param_groups_layer_decay(_LayerOrder(model), weight_decay=weight_decay, layer_decay=layer_decay)
    for group in groups:
        group["lr"] = learning_rate * group["lr_scale"]
    # The Trainer logs the first group's learning rate, and that should be the one that was asked for.
    return groups[::-1]


# ---- the trainer ----


class FineTuningTrainer(Trainer):
    """transformers' `Trainer` for [`SparseJEPAForImageClassification`], with layer decay.

    It augments and normalises uint8 images on the device; floats are used as they are. The augmentation of a sample
    depends on (seed, optimizer step, place in the global batch) alone.

    Args:
        model: [`SparseJEPAForImageClassification`].
        args: [`FineTuningArguments`].
        train_dataset: examples {"pixel_values": uint8 (3, S, S) or float (3, H, W), "labels": int}.
        eval_dataset: held-out examples, never augmented; cross entropy without smoothing and accuracies are measured.
        processing_class: image processor, saved with the checkpoint; its `image_mean` and `image_std` normalise.
        kwargs: as for `Trainer`.
    """

    # The loss is a mean over the batch.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: SparseJEPAForImageClassification,
        args: FineTuningArguments,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: Any | None = None,
        **kwargs: Any,
    ):
        if not isinstance(model, SparseJEPAForImageClassification):
            raise TypeError(f"model is a {type(model).__name__}; expected SparseJEPAForImageClassification.")
        if not isinstance(args, FineTuningArguments):
            raise TypeError(f"args is a {type(args).__name__}; expected FineTuningArguments.")
        if args.freeze_encoder:
            model.sparsejepa.requires_grad_(False)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class or image_processor(model.config.image_sides),
            data_collator=kwargs.pop("data_collator", None) or collate_images,
            compute_metrics=kwargs.pop("compute_metrics", None) or classification_metrics,
            **kwargs,
        )
        self._augmentation = self._build_augmentation()
        self._mixing = self._build_mixing()
        self._slot_step, self._next_slot = -1, 0

    def _build_augmentation(self) -> BatchAugmentation:
        return BatchAugmentation(
            self.model.config.image_sides[0],
            self.processing_class.image_mean,
            self.processing_class.image_std,
            crop=self.args.crop,
            crop_padding=self.args.crop_padding,
            crop_scale=tuple(self.args.crop_scale),
            horizontal_flip=self.args.horizontal_flip,
            color_jitter=self.args.color_jitter,
        )

    def _build_mixing(self) -> Mixup | None:
        alphas = self.args.mixup, self.args.cutmix
        # Smoothing is left to the loss, where it comes to the same.
        return Mixup(*alphas, label_smoothing=0.0, num_classes=self.model.config.num_labels) if any(alphas) else None

    # ---- one step ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Cross entropy of a batch; in training of augmented images against smoothed, and perhaps mixed, labels."""
        pixel_values, targets, smoothing = inputs["pixel_values"], inputs["labels"], 0.0
        if model.training:
            pixel_values, targets = self._training_views(pixel_values, targets)
            smoothing = self.args.label_smoothing_factor
        elif not pixel_values.is_floating_point():
            statistics = self.processing_class.image_mean, self.processing_class.image_std
            pixel_values = normalize_images(pixel_values, *statistics)
        outputs = model(pixel_values=pixel_values)
        loss = F.cross_entropy(outputs.logits.float(), targets, label_smoothing=smoothing)
        return (loss, outputs) if return_outputs else loss

    def _training_views(self, pixel_values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Augmented images, and labels (B,), or (B, num_labels) once mixed."""
        if not pixel_values.is_floating_point():
            slots = self._take_slots(len(pixel_values), pixel_values.device)
            keys = stream_keys(self.args.seed, self.state.global_step, slots, AUGMENTATION_STREAM)
            pixel_values = self._augmentation(pixel_values, keys)
        if self._mixing is None or len(labels) % 2:
            return pixel_values, labels
        return self._mixing(pixel_values, labels)

    def _take_slots(self, batch_size: int, device: torch.device) -> Tensor:
        """Places of this process's samples in the step's global batch, (B,) int64."""
        if self.state.global_step != self._slot_step:
            self._slot_step, self._next_slot = self.state.global_step, 0
        first = self._next_slot + self.args.process_index * batch_size
        self._next_slot += batch_size * self.args.world_size
        return torch.arange(first, first + batch_size, device=device)

    # ---- optimizer ----

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """As in `Trainer`, with the groups of [`layer_decay_groups`]."""
        if self.optimizer is None:
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups = layer_decay_groups(
                self.model, self.args.learning_rate, self.args.weight_decay, self.args.layer_decay
            )
            self.optimizer = optimizer_class(groups, **options)
        return super().create_optimizer(model)

    # ---- a run ----

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any):
        """As in `Trainer`; `resume_from_checkpoint=True` takes the last checkpoint that was written to its end."""
        # Flags and YAML files give text.
        choice = {"true": True, "false": None}.get(str(resume_from_checkpoint).lower(), resume_from_checkpoint)
        if choice is True:
            choice = last_complete_checkpoint(self.args.output_dir)
        self._slot_step = -1
        output = super().train(resume_from_checkpoint=choice, **kwargs)
        # Each process knows its own mean; all must judge the same one.
        loss = torch.tensor(output.training_loss, device=self.args.device)
        self._require_finite(float(self.accelerator.reduce(loss, reduction="mean")))
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in `Trainer`; a loss that is not finite ends the run."""
        self._require_finite(logs.get("loss", 0.0))
        super().log(logs, start_time)

    def _require_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"The loss is {loss} at step {self.state.global_step}; expected a finite number. Try a smaller "
                "learning_rate, a longer warmup_steps, or fp32 instead of fp16."
            )

    def measure(self, dataset: Dataset) -> dict[str, float]:
        """What `compute_metrics` gives on all of `dataset`, by the model as it stands."""
        output = self.predict(dataset)
        return self.compute_metrics(EvalPrediction(output.predictions, output.label_ids))

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """As in `Trainer`; every held-out image counts, also those of the last, smaller batch."""
        with self._every_example():
            return super().get_eval_dataloader(*args, **kwargs)

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """Likewise."""
        with self._every_example():
            return super().get_test_dataloader(*args, **kwargs)

    @contextmanager
    def _every_example(self) -> Iterator[None]:
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = drop_last


# ---- the data ----


class _LabelledData:
    """The labelled images of a run.

    Attributes:
        class_names: by index; the numbers themselves where the labels are plain integers.
        train: what is trained on, decoded at `load_size`.
        validation: the part of the training split held out for evaluations, at the model's size, or None.
        test: the test split at the model's size.
    """

    def __init__(self, data: FineTuningDataArguments, side: int, holds_out: bool):
        self._arguments = data
        train = self._load(data.train_split, data.max_train_examples)
        test = self._load(data.test_split, data.max_test_examples)
        labels = _labels_of(train, data.train_split)
        self.class_names = _class_names(train, labels)
        _require_classes(labels, data.train_split, self.class_names)
        _require_same_numbering(train, test, data)
        _require_in_range(_labels_of(test, data.test_split), data.test_split, len(self.class_names))
        self.validation: ImageDataset | None = None
        if holds_out:
            fraction, seed = data.validation_fraction, data.dataset_seed
            is_held_out = validation_mask(torch.from_numpy(labels), fraction, seed).numpy()
            self.validation = self._build(train.select(np.flatnonzero(is_held_out)), side)
            train = train.select(np.flatnonzero(~is_held_out))
        self.train = self._build(train, data.load_size or side)
        self.test = self._build(test, side)

    def _load(self, split: str, max_examples: int | None) -> datasets.Dataset:
        options = self._arguments
        return load_image_dataset(
            options.dataset,
            split,
            name=options.dataset_config_name,
            image_column=options.image_column,
            label_column=options.label_column,
            max_examples=max_examples,
            seed=options.dataset_seed,
        )

    def _build(self, dataset: datasets.Dataset, side: int) -> ImageDataset:
        return ImageDataset(dataset, side, max_bad_fraction=self._arguments.max_bad_fraction)


def _labels_of(dataset: datasets.Dataset, split: str) -> np.ndarray:
    """int64 (n,); -1 where there is none."""
    if len(dataset) == 0:
        raise ValueError(f"The split {split!r} is empty; expected labelled images. Name another split.")
    if "label" not in dataset.column_names:
        raise ValueError(
            f"The split {split!r} has no column of labels; expected ClassLabels, integers, booleans or strings. Name "
            "it with label_column."
        )
    column = dataset.select_columns("label").with_format("arrow")[:]["label"].to_pylist()
    return np.array([-1 if label is None else int(label) for label in column], dtype=np.int64)


def _class_names(dataset: datasets.Dataset, labels: np.ndarray) -> list[str]:
    names = getattr(dataset.features["label"], "names", None)
    return list(names) if names else [str(index) for index in range(int(labels.max()) + 1)]


def _require_classes(labels: np.ndarray, split: str, class_names: list[str]) -> None:
    _require_in_range(labels, split, len(class_names))
    found = np.unique(labels)
    if len(found) < 2:
        raise ValueError(
            f"All {len(labels)} images of the split {split!r} are of one class, {class_names[found[0]]!r}; expected "
            "at least two classes. Check label_column, or take more images."
        )


def _require_in_range(labels: np.ndarray, split: str, num_classes: int) -> None:
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        raise ValueError(
            f"{outside.sum()} of the {len(labels)} images of the split {split!r} have a label outside the classes 0 "
            f"to {num_classes - 1}, such as {labels[outside][0]} (-1 stands for none). Leave those images out, or "
            "name another split."
        )


def _require_same_numbering(train: datasets.Dataset, test: datasets.Dataset, data: FineTuningDataArguments) -> None:
    """Splits that are loaded alone number their classes alone."""
    names = [getattr(part.features.get("label"), "names", None) for part in (train, test)]
    if "label" in test.column_names and names[0] != names[1]:
        differing = sorted(set(names[0] or []) ^ set(names[1] or []))[:5]
        raise ValueError(
            f"The splits {data.train_split!r} and {data.test_split!r} number their classes differently: they do not "
            f"have the same class names ({', '.join(map(repr, differing))} are in one only). Give both the same."
        )


def _pixel_statistics(
    model_name_or_path: str, data: FineTuningDataArguments
) -> tuple[list[float], list[float]] | tuple[()]:
    """Mean and standard deviation that images are normalised with; nothing, for the default, where none is known."""
    if data.image_mean is not None and data.image_std is not None:
        return data.image_mean, data.image_std
    processor = get_image_processor_config(model_name_or_path)
    if "image_mean" in processor and "image_std" in processor:
        return processor["image_mean"], processor["image_std"]
    logger.warning(
        f"The checkpoint {str(model_name_or_path)!r} has no image processor, so images are normalised with mean and "
        "standard deviation 0.5. Give image_mean and image_std as in pre-training."
    )
    return ()
