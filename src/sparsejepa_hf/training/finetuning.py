# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The Trainer that fine-tunes an encoder under a classifier, with layer-wise learning rates."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import EvalPrediction
from transformers.utils import logging

from ..configuration_sparsejepa import SparseJEPAConfig
from ..evaluation import classification_metrics
from ..evaluation.encoders import find_processor, pixel_statistics_of
from ..modeling_sparsejepa import SparseJEPAForImageClassification
from .arguments import FineTuningArguments
from .base_trainer import ImageTrainer


logger = logging.get_logger(__name__)


# ---- the model ----


def read_config(model_name_or_path: str) -> SparseJEPAConfig:
    """The configuration of a SparseJEPA checkpoint.

    Raises:
        ValueError: there is no model, or it is not one of SparseJEPA.
    """
    try:
        written = SparseJEPAConfig.get_config_dict(model_name_or_path)[0]
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
    config = read_config(model_name_or_path)
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
    absent = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    lacking = sorted(key for key in absent if not key.startswith("classifier."))
    if lacking:
        raise ValueError(
            f"The checkpoint {str(model_name_or_path)!r} lacks {len(lacking)} weights of the target encoder, such as "
            f"{lacking[0]}; expected one written by save_pretrained of a SparseJEPA model."
        )
    return model


class _LayerOrder:
    """What timm asks of a model for layer decay: its parameters, and which layer each belongs to."""

    def __init__(self, model: nn.Module) -> None:
        self.named_parameters = model.named_parameters

    @staticmethod
    def group_matcher(coarse: bool = False) -> dict[str, Any]:
        """Embeddings first, then the layers; 99999 is timm's sign for "with the layer before". The rest comes last."""
        layers = [(r".*\.layers\.(\d+)\.", None), (r".*_encoder\.layernorm\.", (99999,))]
        return {"embeddings": r".*\.embeddings\.", "layers": layers}


def pixel_statistics(
    model_name_or_path: str, image_mean: list[float] | None = None, image_std: list[float] | None = None
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel that images are normalised with: those given, else those of the
    checkpoint's image processor, else, with a warning, 0.5 and 0.5."""
    if image_mean is not None and image_std is not None:
        return image_mean, image_std
    num_channels = read_config(model_name_or_path).num_channels
    processor = find_processor(str(model_name_or_path))
    if processor is not None:
        return pixel_statistics_of(processor, num_channels)
    logger.warning(
        f"The checkpoint {str(model_name_or_path)!r} has no image processor, so images are normalised with mean and "
        "standard deviation 0.5. Give image_mean and image_std as in pre-training."
    )
    return [0.5] * num_channels, [0.5] * num_channels


def layer_decay_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float
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


class FineTuningTrainer(ImageTrainer):
    """transformers' `Trainer` for [`SparseJEPAForImageClassification`], with layer decay.

    It augments and normalises uint8 images on the device; floats are used as they are. The augmentation of a sample
    depends on (seed, optimizer step, place in the global batch) alone.

    Args:
        args: those of [`ImageTrainer`], of which `model` is a [`SparseJEPAForImageClassification`] and `args`
            [`FineTuningArguments`]. Examples have `labels`, or `label`, the number of a class.
        compute_metrics: what is measured of logits and labels; default: [`classification_metrics`].
        kwargs: as for [`ImageTrainer`].

    Raises:
        TypeError: the model or its arguments are of another class.
        ValueError: arguments do not fit together.
    """

    model_class = SparseJEPAForImageClassification
    arguments_class = FineTuningArguments
    card_kind = "finetuning"

    def __init__(
        self, *args: Any, compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, compute_metrics=compute_metrics or classification_metrics, **kwargs)

    def fit_to_model(self) -> None:
        """As in the base class, and freezes the encoder if that is asked for."""
        super().fit_to_model()
        args = self.args
        if args.freeze_encoder:
            self.model.sparsejepa.requires_grad_(False)
        alphas = args.mixup, args.cutmix
        # Smoothing is left to the loss, where it comes to the same.
        options = {"label_smoothing": 0.0, "num_classes": self.model.config.num_labels}
        self._mixing = Mixup(*alphas, **options) if any(alphas) else None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Cross entropy of a batch; in training of augmented images against smoothed, and perhaps mixed, labels."""
        if "labels" not in inputs:
            raise ValueError(f"A batch has {sorted(inputs)}; expected labels too. Give examples 'labels' or 'label'.")
        pixel_values, targets, smoothing = inputs["pixel_values"], inputs["labels"], 0.0
        if model.training:
            pixel_values, targets = self._training_views(pixel_values, targets)
            smoothing = self.args.label_smoothing_factor
        outputs = model(pixel_values=self.normalize(pixel_values))
        loss = F.cross_entropy(outputs.logits.float(), targets, label_smoothing=smoothing)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`, of uint8 images too, with labels or without."""
        inputs = {**inputs, "pixel_values": self.normalize(inputs["pixel_values"])}
        return super().prediction_step(model, inputs, *args, **kwargs)

    def _training_views(self, pixel_values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Augmented images, and labels (B,), or (B, num_labels) once mixed."""
        slots = self.take_slots(len(pixel_values), pixel_values.device)
        pixel_values = self.augment(pixel_values, slots)
        if self._mixing is None or len(labels) % 2:
            return pixel_values, labels
        return self._mixing(pixel_values, labels)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Those of [`layer_decay_groups`]."""
        args = self.args
        return layer_decay_groups(model, args.learning_rate, args.weight_decay, args.layer_decay)

    def measure(self, dataset: Dataset) -> dict[str, float]:
        """What `compute_metrics` gives on all of `dataset`, by the model as it stands."""
        output = self.predict(dataset)
        return self.compute_metrics(EvalPrediction(output.predictions, output.label_ids))

    def card_facts(self) -> dict[str, Any]:
        """As in the base class; random weights come from no other model."""
        facts = super().card_facts()
        return {**facts, "base_model": None} if self.args.random_weights else facts
