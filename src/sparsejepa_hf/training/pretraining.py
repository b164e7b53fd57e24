# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A whole pre-training run from its options: data, model, trainer, checkpoint, comparison with the start."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import datasets
import yaml
from torch import Tensor
from torch.utils.data import Dataset
from transformers import set_seed
from transformers.utils import logging

from ..configuration_sparsejepa import SparseJEPAConfig
from ..data import SYNTHETIC_SCENES, build_image_dataset, build_scenes, load_image_dataset
from ..evaluation import extract_features, knn_accuracy, linear_probe
from ..evaluation.features import small_pixel_features
from ..modeling_sparsejepa import SparseJEPAForPreTraining
from ..records import provenance
from .arguments import SparseJEPATrainingArguments
from .command_line import DataArguments, ModelArguments
from .monitors import comparison_device, full_float32, labelled_images
from .trainer import SparseJEPATrainer, image_processor


logger = logging.get_logger(__name__)

OPTION_TYPES = (ModelArguments, DataArguments, SparseJEPATrainingArguments)
# Largest sets that the comparison at the end looks at.
MAX_PROBE_TRAIN, MAX_PROBE_TEST = 20_000, 10_000


def pretrain(
    model_arguments: Any, data_arguments: DataArguments, training_arguments: SparseJEPATrainingArguments
) -> dict[str, Any]:
    """Pre-trains from options and writes the checkpoint, the resolved options, the results and a model card.

    Returns:
        `output_dir`, `num_train_examples`, `num_undecodable`, `train_metrics`, `num_processes`, `provenance` (as at
        the start) and, with labelled data and `probe`, `comparison`: kNN and linear top-1 accuracy of raw pixels, of
        the untrained and of the trained encoder.

    Raises:
        ValueError: if options do not fit together, or `output_dir` holds checkpoints of another run.
    """
    refuse_other_checkpoints(training_arguments)
    # Before anything runs: what is committed meanwhile did not.
    origin = provenance()
    set_seed(training_arguments.seed)
    config = model_arguments.build_config()
    side = square_side(config)
    data = RunData(data_arguments, training_arguments, side)
    trainer = SparseJEPATrainer(
        model=SparseJEPAForPreTraining(config),
        args=training_arguments,
        train_dataset=data.train,
        eval_dataset=data.heldout,
        processing_class=image_processor(config.image_sides, data_arguments.image_mean, data_arguments.image_std),
        knn_datasets=(data.bank, data.heldout) if training_arguments.knn_steps else None,
    )
    if trainer.is_world_process_zero():
        write_options(training_arguments.output_dir, model_arguments, data_arguments, training_arguments)
    comparison = FeatureComparison(data, trainer) if data.is_labelled and data_arguments.probe else None
    if comparison is not None:
        comparison.measure_baselines()
    output = trainer.train(resume_from_checkpoint=training_arguments.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    results = {
        "output_dir": training_arguments.output_dir,
        "num_train_examples": len(data.train) if hasattr(data.train, "__len__") else None,
        "num_undecodable": data.train.num_bad,
        "train_metrics": output.metrics,
        "num_processes": training_arguments.world_size,
        "provenance": origin,
    }
    if comparison is not None:
        comparison.measure("trained")
        results["comparison"] = comparison.results
        trainer.state.log_history.append({"comparison": comparison.results, "step": trainer.state.global_step})
    trainer.create_model_card(dataset=data_arguments.dataset)
    if trainer.is_world_process_zero():
        path = Path(training_arguments.output_dir) / "pretraining_results.json"
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    # Together, and in order: left to the interpreter's exit, gloo's threads sometimes abort a process.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    return results


def refuse_other_checkpoints(arguments: SparseJEPATrainingArguments) -> None:
    """A later resume would take the newest checkpoint, whichever run it is from."""
    found = sorted(Path(arguments.output_dir).glob("checkpoint-*"))
    if found and not arguments.resume_from_checkpoint and arguments.process_index == 0:
        raise ValueError(
            f"output_dir {arguments.output_dir!r} holds checkpoints of an earlier run, such as {found[-1].name}. Go "
            "on with that run by --resume_from_checkpoint true, choose another output_dir, or delete them."
        )


def square_side(config: SparseJEPAConfig) -> int:
    height, width = config.image_sides
    if height != width or config.num_channels != 3:
        raise ValueError(
            f"image_size is {config.image_size} and num_channels {config.num_channels}; this data pipeline makes "
            "square RGB images. Use a square image_size and num_channels=3, or give SparseJEPATrainer float images."
        )
    return height


def _require_steps_of_streams(data: DataArguments, training: SparseJEPATrainingArguments) -> None:
    if data.streaming and training.max_steps <= 0:
        raise ValueError(
            f"streaming is set and max_steps is {training.max_steps}, but a stream does not say how long it is. Give "
            "max_steps, the number of optimizer steps."
        )
    if data.streaming and training.knn_steps:
        raise ValueError(
            f"streaming is set and knn_steps is {training.knn_steps}, but the kNN monitor needs images that can be "
            "looked up again. Set knn_steps to 0, or leave streaming out."
        )


class RunData:
    """The data sets of a run.

    Attributes:
        train: what is trained on, decoded at `load_size`.
        heldout: the held-out split at the model's size, or None.
        bank: training images at the model's size, for kNN and probes; None unless `is_labelled`.
        is_labelled: whether `train` and `heldout` have labels of the same classes.
    """

    def __init__(self, data: DataArguments, training: SparseJEPATrainingArguments, side: int):
        _require_steps_of_streams(data, training)
        self._arguments = data
        train, load_size = self._load(data.train_split, data.max_train_examples, side), data.load_size or side
        self.train = self._build(train, load_size)
        self.heldout: Dataset | None = None
        self.bank: Dataset | None = None
        self.is_labelled = False
        # A stream is not labelled here, so only the evaluation loss would look at its held-out images.
        wants_heldout = not data.streaming or training.eval_strategy != "no"
        if data.eval_split is not None and data.eval_split.lower() != "none" and wants_heldout:
            heldout = self._load(data.eval_split, data.max_eval_examples, side, streaming=False)
            self.heldout = self._build(heldout, side)
            self.is_labelled = not data.streaming and has_labels(self.train) and has_labels(self.heldout)
            if self.is_labelled:
                _require_same_classes(train, heldout)
                self.bank = self.train if load_size == side else self._build(_spread(train, MAX_PROBE_TRAIN), side)
        if training.knn_steps and not self.is_labelled:
            raise ValueError(
                f"knn_steps is {training.knn_steps}, but the kNN monitor needs labels in train_split and in "
                "eval_split. Name label_column and eval_split, or set knn_steps to 0."
            )

    def _load(
        self, split: str, max_examples: int | None, side: int, streaming: bool | None = None
    ) -> datasets.Dataset | datasets.IterableDataset:
        options, source = self._arguments, self._arguments.dataset
        if source == SYNTHETIC_SCENES:
            # Rendered at the model's size.
            count = {} if max_examples is None else {"num_examples": max_examples}
            objects = options.scene_max_objects
            source = build_scenes(
                **count, seed=options.dataset_seed, image_size=side, max_objects=objects, split=split
            )
        return load_image_dataset(
            source,
            split,
            name=options.dataset_config_name,
            image_column=options.image_column,
            label_column=options.label_column,
            streaming=options.streaming if streaming is None else streaming,
            max_examples=max_examples,
            seed=options.dataset_seed,
        )

    def _build(self, dataset: datasets.Dataset | datasets.IterableDataset, side: int) -> Dataset:
        options = self._arguments
        return build_image_dataset(
            dataset,
            side,
            max_bad_fraction=options.max_bad_fraction,
            shuffle_buffer_size=options.shuffle_buffer,
            seed=options.dataset_seed,
            repeat=True,
        )


def has_labels(dataset: Dataset) -> bool:
    """Whether a map-style data set's examples carry labels; -1, as test splits on the Hub often have, is none."""
    if getattr(dataset, "labels", None) is not None:
        return bool((dataset.labels >= 0).any())
    return "labels" in dataset[0] and int(dataset[0]["labels"]) >= 0


def _require_same_classes(train: datasets.Dataset, heldout: datasets.Dataset) -> None:
    """Splits that are loaded alone number their classes alone."""
    names = [getattr(dataset.features["label"], "names", None) for dataset in (train, heldout)]
    if names[0] == names[1]:
        return
    differing = sorted(set(names[0] or []) ^ set(names[1] or []))[:5]
    raise ValueError(
        "The training and the held-out split number their classes differently: they do not have the same class names "
        f"({', '.join(map(repr, differing))} are in one only). Give both the same classes, or set eval_split to none."
    )


def _spread(dataset: datasets.Dataset, limit: int) -> datasets.Dataset:
    """At most about `limit` examples, evenly spaced."""
    return dataset.select(range(0, len(dataset), max(1, len(dataset) // limit)))


def resolved_options(*options: Any) -> dict[str, Any]:
    """Every option as it was resolved, in one mapping that runs again as it stands."""
    resolved: dict[str, Any] = {}
    for option in options:
        values = option.to_dict() if hasattr(option, "to_dict") else dataclasses.asdict(option)
        defaults = {f.name: f.default for f in dataclasses.fields(option) if f.init}
        # Null is worth a line only where it is not the default.
        resolved |= {k: v for k, v in values.items() if k in defaults and not (v is None and defaults[k] is None)}
    # What the launcher sets (`accelerate config`) is left to it; secrets are not written; a rerun starts afresh.
    left_out = ("accelerator_config", "fsdp_config", "fsdp", "parallelism_config", "resume_from_checkpoint")
    return {name: v for name, v in resolved.items() if name not in left_out and not name.endswith("_token")}


def write_options(output_dir: str, *options: Any) -> None:
    """Writes [`resolved_options`] into `pretraining_options.yaml`."""
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(resolved_options(*options), sort_keys=False)
    (Path(output_dir) / "pretraining_options.yaml").write_text(text, encoding="utf-8")


class FeatureComparison:
    """kNN and linear probe of frozen features on the same labelled images, measured by the main process.

    `results` maps a name to `knn_accuracy` and `linear_accuracy`, top-1 in [0, 1].
    """

    def __init__(self, data: RunData, trainer: SparseJEPATrainer):
        self._trainer = trainer
        self.results: dict[str, dict[str, float]] = {}
        if trainer.is_world_process_zero():
            self._bank, self._bank_labels = labelled_images(data.bank, MAX_PROBE_TRAIN)
            self._images, self._labels = labelled_images(data.heldout, MAX_PROBE_TEST)

    def measure_baselines(self) -> None:
        """Raw pixels, and the encoder as it stands now."""
        if self._trainer.is_world_process_zero():
            # Thousands of dimensions: each weight decay starts from the one before, so few iterations do.
            self._probe(
                "raw pixels", small_pixel_features(self._bank), small_pixel_features(self._images), max_iter=40
            )
        self.measure("untrained")

    def measure(self, name: str) -> None:
        """The target encoder as it stands now."""
        if self._trainer.is_world_process_zero():
            encoder, normalize = self._trainer.model.sparsejepa, self._trainer.normalize
            features = (
                extract_features(encoder, images, preprocess=normalize) for images in (self._bank, self._images)
            )
            self._probe(name, *features)
        self._trainer.accelerator.wait_for_everyone()

    @full_float32()
    def _probe(self, name: str, bank: Tensor, heldout: Tensor, max_iter: int = 200) -> None:
        arguments = self._trainer.args
        # Both are computed where the bank lies.
        sets = (bank.to(comparison_device(arguments.device)), self._bank_labels, heldout, self._labels)
        try:
            probe = linear_probe(*sets, seed=arguments.seed, max_iter=max_iter, allow_unseen_classes=True)
        except ValueError as error:
            # Too few images or classes to probe; that is no reason to lose the run.
            logger.warning(f"The features of {name} are not compared: {error}")
            return
        k = min(arguments.knn_k, len(bank))
        self.results[name] = {"knn_accuracy": knn_accuracy(*sets, k=k), "linear_accuracy": probe.test_accuracy}
