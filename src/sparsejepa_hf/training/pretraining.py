# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A whole pre-training run from its options: data, model, trainer, checkpoint, comparison with the start."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor
from torch.utils.data import Dataset
from transformers import set_seed

from ..data import build_image_dataset, load_image_dataset
from ..evaluation import extract_features, knn_accuracy, linear_probe, pixel_features
from ..modeling_sparsejepa import SparseJEPAForPreTraining
from .arguments import SparseJEPATrainingArguments
from .command_line import DataArguments, ModelArguments
from .monitors import labelled_images
from .trainer import SparseJEPATrainer, image_processor


OPTION_TYPES = (ModelArguments, DataArguments, SparseJEPATrainingArguments)
# Largest sets that the comparison at the end looks at.
MAX_PROBE_TRAIN, MAX_PROBE_TEST = 20_000, 10_000


def pretrain(
    model_arguments: Any, data_arguments: DataArguments, training_arguments: SparseJEPATrainingArguments
) -> dict[str, Any]:
    """Pre-trains from options and writes the checkpoint, the resolved options, the results and a model card.

    Returns:
        `output_dir`, `num_train_examples`, `train_metrics` and, with labelled data and `probe`, `comparison`: kNN and
        linear top-1 accuracy of raw pixels, of the untrained and of the trained encoder.
    """
    set_seed(training_arguments.seed)
    config = model_arguments.build_config()
    train_dataset = build_dataset(data_arguments, data_arguments.train_split, config.image_size, training=True)
    eval_dataset = None
    if data_arguments.eval_split is not None and data_arguments.eval_split.lower() != "none":
        eval_dataset = build_dataset(data_arguments, data_arguments.eval_split, config.image_size, training=False)
    model = SparseJEPAForPreTraining(config)
    labelled = not data_arguments.streaming and has_labels(train_dataset) and has_labels(eval_dataset)
    if training_arguments.knn_steps and not labelled:
        raise ValueError(
            f"knn_steps is {training_arguments.knn_steps}, but the kNN monitor needs labels in train_split and in "
            "eval_split, and no streaming. Name label_column and eval_split, or set knn_steps to 0."
        )
    trainer = SparseJEPATrainer(
        model=model,
        args=training_arguments,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=image_processor(config.image_size, data_arguments.image_mean, data_arguments.image_std),
        knn_datasets=(train_dataset, eval_dataset) if labelled and training_arguments.knn_steps else None,
    )
    if trainer.is_world_process_zero():
        write_options(training_arguments.output_dir, model_arguments, data_arguments, training_arguments)
    comparison = FeatureComparison(train_dataset, eval_dataset, trainer) if labelled and data_arguments.probe else None
    if comparison is not None:
        comparison.measure_baselines(trainer)
    output = trainer.train(resume_from_checkpoint=training_arguments.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    results = {
        "output_dir": training_arguments.output_dir,
        "num_train_examples": len(train_dataset) if hasattr(train_dataset, "__len__") else None,
        "train_metrics": output.metrics,
    }
    if comparison is not None:
        comparison.measure("trained", trainer)
        results["comparison"] = comparison.results
        trainer.state.log_history.append({"comparison": comparison.results, "step": trainer.state.global_step})
    trainer.create_model_card()
    if trainer.is_world_process_zero():
        path = Path(training_arguments.output_dir) / "pretraining_results.json"
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def build_dataset(arguments: DataArguments, split: str, image_size: Any, training: bool) -> Dataset:
    """The torch data set of one split, as the options describe it."""
    side = image_size if isinstance(image_size, int) else image_size[0]
    limit = arguments.max_train_examples if training else arguments.max_eval_examples
    dataset = load_image_dataset(
        arguments.dataset,
        split,
        name=arguments.dataset_name,
        image_column=arguments.image_column,
        label_column=arguments.label_column,
        streaming=arguments.streaming and training,
        max_examples=limit,
    )
    return build_image_dataset(
        dataset,
        arguments.load_size or side,
        max_bad_fraction=arguments.max_bad_fraction,
        shuffle_buffer_size=arguments.shuffle_buffer,
    )


def has_labels(dataset: Dataset | None) -> bool:
    """Whether a map-style data set's examples carry labels."""
    return dataset is not None and hasattr(dataset, "__len__") and "labels" in dataset[0]


def write_options(output_dir: str, *options: Any) -> None:
    """Writes every option as it was resolved into `pretraining_options.yaml`, which runs again as it stands."""
    resolved: dict[str, Any] = {}
    for option in options:
        values = option.to_dict() if hasattr(option, "to_dict") else dataclasses.asdict(option)
        defaults = {f.name: f.default for f in dataclasses.fields(option) if f.init}
        # Null is worth a line only where it is not the default.
        resolved |= {k: v for k, v in values.items() if k in defaults and not (v is None and defaults[k] is None)}
    # Written by transformers for its own use, or refused by its own parser; secrets are not written.
    own = ("accelerator_config", "fsdp_config", "fsdp", "parallelism_config")
    for name in [name for name in resolved if name in own or name.endswith("_token")]:
        del resolved[name]
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(resolved, sort_keys=False)
    (Path(output_dir) / "pretraining_options.yaml").write_text(text, encoding="utf-8")


class FeatureComparison:
    """kNN and linear probe of frozen features on the same labelled images.

    `results` maps a name to `knn_accuracy` and `linear_accuracy`, top-1 in [0, 1].
    """

    def __init__(self, bank: Dataset, heldout: Dataset, trainer: SparseJEPATrainer):
        self._bank, self._bank_labels = labelled_images(bank, MAX_PROBE_TRAIN)
        self._images, self._labels = labelled_images(heldout, MAX_PROBE_TEST)
        self._seed = trainer.args.seed
        self.results: dict[str, dict[str, float]] = {}

    def measure_baselines(self, trainer: SparseJEPATrainer) -> None:
        """Raw pixels, and the encoder as it stands now."""
        # Thousands of dimensions: each weight decay starts from the one before, so few iterations do.
        self._probe("raw pixels", pixel_features(self._bank), pixel_features(self._images), max_iter=40)
        self.measure("untrained", trainer)

    def measure(self, name: str, trainer: SparseJEPATrainer) -> None:
        """The target encoder as it stands now."""
        encoder = trainer.model.sparsejepa
        bank, heldout = (
            extract_features(encoder, images, preprocess=trainer.normalize) for images in (self._bank, self._images)
        )
        self._probe(name, bank, heldout)

    def _probe(self, name: str, bank: Tensor, heldout: Tensor, max_iter: int = 200) -> None:
        k = min(20, len(bank))
        probe = linear_probe(bank, self._bank_labels, heldout, self._labels, seed=self._seed, max_iter=max_iter)
        self.results[name] = {
            "knn_accuracy": knn_accuracy(bank, self._bank_labels, heldout, self._labels, k=k),
            "linear_accuracy": probe.test_accuracy,
        }
