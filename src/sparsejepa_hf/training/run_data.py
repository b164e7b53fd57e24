# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The data sets of a run, from its options."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from transformers.utils import logging

from ..configuration_sparsejepa import SparseJEPAConfig
from ..data import (
    SCENE_STYLES,
    ImageDataset,
    StreamingImageDataset,
    align_classes,
    build_image_dataset,
    build_scenes,
    load_image_dataset,
)
from ..data.dataset import undecoded
from ..data.row_files import row_opener
from ..evaluation import validation_mask
from ..image_decoding_sparsejepa import measure_value_range, require_value_range
from .arguments import SparseJEPATrainingArguments
from .options import DataArguments, FineTuningDataArguments, ImageDataArguments, check_together


logger = logging.get_logger(__name__)

_MEASURE = "measure"
# The most training images that the comparison at the end of a run looks at.
MAX_BANK = 20_000


@dataclass
class PreTrainingData:
    """The data sets of a pre-training run.

    Attributes:
        train: what is trained on, decoded at `load_size`.
        heldout: the held-out split at the model's size, or None.
        bank: training images at the model's size, for kNN and probes; None unless they and `heldout` have labels of
            the same classes.
    """

    train: ImageDataset | StreamingImageDataset
    heldout: ImageDataset | None = None
    bank: ImageDataset | None = None


def load_pretraining_data(
    options: DataArguments, training: SparseJEPATrainingArguments, config: SparseJEPAConfig
) -> PreTrainingData:
    """Loads the splits that pre-training needs, and decodes them if they fit into memory.

    Raises:
        ValueError: options do not fit together, or the splits do not fit each other.
    """
    sides = config.image_sides
    options.resolve_statistics(config.num_channels)
    check_together(options, training, config)
    _require_steps_of_streams(options, training)

    def load(split: str, max_examples: int | None, streaming: bool) -> Any:
        source = None
        if options.dataset in SCENE_STYLES:
            # Rendered as squares, at the model's size.
            count = {} if max_examples is None else {"num_examples": max_examples}
            source = build_scenes(
                **count,
                style=SCENE_STYLES[options.dataset],
                seed=options.dataset_seed,
                image_size=max(sides),
                max_objects=options.scene_max_objects,
                split=split,
            )
        return _load_split(options, split, max_examples, source, streaming)

    def build(dataset: Any, sides: tuple[int, int]) -> Any:
        return build_image_dataset(
            dataset,
            sides,
            num_channels=config.num_channels,
            value_range=options.value_range,  # type: ignore[arg-type]
            max_bad_fraction=options.max_bad_fraction,
            shuffle_buffer_size=options.shuffle_buffer,
            seed=options.dataset_seed,
            repeat=True,
        )

    load_sides = _load_sides(options.load_size, sides)
    source = load(options.train_split, options.max_train_examples, options.streaming)
    _resolve_value_range(options, source, config.num_channels)
    train = build(source, load_sides)
    data = PreTrainingData(train)
    # A stream is not labelled here, so only the evaluation loss would look at its held-out images.
    wants_heldout = not options.streaming or training.eval_strategy != "no"
    if options.eval_split is not None and options.eval_split.lower() != "none" and wants_heldout:
        heldout = load(options.eval_split, options.max_eval_examples, streaming=False)
        if not options.streaming and "label" in source.column_names and "label" in heldout.column_names:
            heldout = align_classes(heldout, source, _named(options.eval_split, options.train_split))
        data.heldout = build(heldout, sides)
        if not options.streaming and has_labels(train) and has_labels(data.heldout):
            data.bank = train if load_sides == sides else build(_spread(source, MAX_BANK), sides)
    if training.needs_knn and data.bank is None:
        raise ValueError(
            f"knn_steps is {training.knn_steps} and metric_for_best_model {training.metric_for_best_model}, but kNN "
            "needs labels in train_split and in eval_split. Name label_column and eval_split, or set knn_steps to 0 "
            "and leave out metric_for_best_model."
        )
    return data


def _load_sides(load_size: int | None, sides: tuple[int, int]) -> tuple[int, int]:
    """Height and width that training images are decoded to, of the model's aspect ratio."""
    if load_size is None:
        return sides
    height, width = (round(load_size * side / min(sides)) for side in sides)
    return height, width


def _resolve_value_range(options: ImageDataArguments, train: Any, num_channels: int) -> None:
    """Makes two numbers of the option `value_range`, or leaves it None.

    Raises:
        ValueError: it is neither two numbers nor "measure", or images of a stream are to be measured.
    """
    if options.value_range is None:
        return
    ends: Sequence[Any] = options.value_range
    if list(ends) == [_MEASURE]:
        if isinstance(train, datasets.IterableDataset):
            raise ValueError(
                "value_range is measure, but the images of a stream are read once; give two numbers, the lowest and "
                "the highest value of the data set, or leave streaming out."
            )
        images = undecoded(train)
        opener = row_opener(images.features["image"])
        ends = measure_value_range((row["image"] for row in images), opener, num_channels)
        logger.info(f"The values of the training images lie from {ends[0]:g} to {ends[1]:g}.")
    options.value_range = list(require_value_range(ends))  # type: ignore[arg-type]


def has_labels(dataset: ImageDataset) -> bool:
    """Whether a data set's examples carry labels; -1, which test splits on the Hub often have, stands for none."""
    if dataset.labels is not None:
        return bool((dataset.labels >= 0).any())
    example = dataset[0]
    return int(example.get("labels", -1)) >= 0


def count_undecodable(accelerator: Accelerator, *parts: ImageDataset | StreamingImageDataset | None) -> int:
    """How often a run met an undecodable image, in all processes and their workers; to be called by all processes.

    An image that is decoded anew in each epoch counts each time. Cached images are decoded once, by every process.
    """
    present = [part for part in parts if part is not None]
    met = sum(part.num_bad for part in present if not _is_cached(part))
    total = accelerator.reduce(torch.tensor(met, device=accelerator.device))
    return int(total) + sum(part.num_bad for part in present if _is_cached(part))


def _is_cached(dataset: Any) -> bool:
    return getattr(dataset, "pixel_values", None) is not None


def _require_steps_of_streams(data: DataArguments, training: SparseJEPATrainingArguments) -> None:
    if data.streaming and training.max_steps <= 0:
        raise ValueError(
            f"streaming is set and max_steps is {training.max_steps}, but a stream does not say how long it is. Give "
            "max_steps, the number of optimizer steps."
        )
    if data.streaming and training.needs_knn:
        raise ValueError(
            f"streaming is set and knn_steps is {training.knn_steps} (metric_for_best_model "
            f"{training.metric_for_best_model}), but kNN needs images that can be looked up again. Set knn_steps to 0 "
            "and leave out metric_for_best_model, or leave streaming out."
        )


def _load_split(
    options: ImageDataArguments, split: str, max_examples: int | None, source: Any = None, streaming: bool = False
) -> Any:
    """A split of `source`, by default of the data set that the options name."""
    return load_image_dataset(
        options.dataset if source is None else source,
        split,
        name=options.dataset_config_name,
        image_column=options.image_column,
        label_column=options.label_column,
        streaming=streaming,
        max_examples=max_examples,
        seed=options.dataset_seed,
        trust_paths=options.trust_paths,
    )


def _named(heldout: str, train: str) -> tuple[str, str]:
    """The splits, as messages call them."""
    return f"The split {heldout!r}", f"the split {train!r}"


def _spread(dataset: datasets.Dataset, limit: int) -> datasets.Dataset:
    """At most about `limit` examples, evenly spaced."""
    return dataset.select(range(0, len(dataset), max(1, len(dataset) // limit)))


# ---- labelled, for fine-tuning ----


@dataclass
class FineTuningData:
    """The data sets of a fine-tuning run.

    Attributes:
        class_names: by index; the numbers themselves where the labels are plain integers.
        train: what is trained on, decoded at `load_size`.
        validation: the part of the training split held out for evaluations, at the model's size, or None.
        test: the test split at the model's size.
    """

    class_names: list[str]
    train: ImageDataset
    validation: ImageDataset | None
    test: ImageDataset


def load_finetuning_data(
    options: FineTuningDataArguments,
    config: SparseJEPAConfig,
    holds_out: bool,
) -> FineTuningData:
    """Loads the labelled splits.

    Args:
        options: which images.
        config: of the model, which says what images it takes.
        holds_out: whether a part of the training split is held out.

    Raises:
        ValueError: a split is empty, or has no labels or labels outside its classes; or there are fewer than two
            classes.
    """
    train = _load_split(options, options.train_split, options.max_train_examples)
    test = _load_split(options, options.test_split, options.max_test_examples)
    _resolve_value_range(options, train, config.num_channels)
    labels = _labels_of(train, options.train_split)
    # Asked for before classes are compared, since there may be none.
    _labels_of(test, options.test_split)
    names = getattr(train.features["label"], "names", None)
    class_names = list(names) if names else [str(index) for index in range(int(labels.max()) + 1)]
    _require_classes(labels, options.train_split, class_names)
    test = align_classes(test, train, _named(options.test_split, options.train_split))
    _require_in_range(_labels_of(test, options.test_split), options.test_split, len(class_names))

    sides = config.image_sides

    def build(dataset: datasets.Dataset, sides: tuple[int, int]) -> ImageDataset:
        return ImageDataset(
            dataset,
            sides,
            max_bad_fraction=options.max_bad_fraction,
            num_channels=config.num_channels,
            value_range=options.value_range,  # type: ignore[arg-type]
        )

    validation = None
    if holds_out:
        mask = validation_mask(torch.from_numpy(labels), options.validation_fraction, options.dataset_seed).numpy()
        validation = build(train.select(np.flatnonzero(mask)), sides)
        train = train.select(np.flatnonzero(~mask))
    load_sides = _load_sides(options.load_size, sides)
    return FineTuningData(class_names, build(train, load_sides), validation, build(test, sides))


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
