# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The data sets of a run: classes mean the same in every split."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sparsejepa_hf.training import (
    DataArguments,
    FineTuningDataArguments,
    SparseJEPATrainingArguments,
    count_undecodable,
    load_finetuning_data,
    load_pretraining_data,
)


LEVELS = {"cat": 40, "dog": 120, "rare": 200}


@pytest.fixture
def folder(tmp_path):
    """A folder whose test split lacks the class in the middle; the grey level of an image tells its class."""
    for split, names in (("train", ("cat", "dog", "rare")), ("test", ("cat", "rare"))):
        for name in names:
            place = tmp_path / "images" / split / name
            place.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(np.full((16, 16, 3), LEVELS[name] + i, np.uint8)).save(place / f"{i}.png")
    return str(tmp_path / "images")


def classes_of(dataset):
    """Label and class by the grey level, of each image."""
    levels = dataset.pixel_values[:, 0, 0, 0].tolist()
    names = [next(name for name, lowest in LEVELS.items() if lowest <= level < lowest + 4) for level in levels]
    return set(zip(dataset.labels.tolist(), names, strict=True))


def test_a_held_out_split_without_a_class_keeps_the_numbers_of_the_training_split(folder, make_small_config, tmp_path):
    arguments = SparseJEPATrainingArguments(str(tmp_path / "run"), use_cpu=True, report_to="none", knn_steps=1)
    options = DataArguments(dataset=folder, eval_split="test")
    config = make_small_config()
    pretraining = load_pretraining_data(options, arguments, config)
    finetuning = load_finetuning_data(FineTuningDataArguments(dataset=folder), config, holds_out=False)
    assert finetuning.class_names == ["cat", "dog", "rare"]
    for train, heldout in ((pretraining.bank, pretraining.heldout), (finetuning.train, finetuning.test)):
        assert classes_of(train) == {(0, "cat"), (1, "dog"), (2, "rare")}
        assert classes_of(heldout) == {(0, "cat"), (2, "rare")}


def test_slices_of_images_that_lie_in_the_order_of_their_classes_are_refused(folder, make_small_config):
    options = FineTuningDataArguments(dataset=folder, train_split="train[:8]", test_split="train[8:]")
    with pytest.raises(
        ValueError, match=r"images of 1 classes \(rare\) and .* of 2 \(cat, dog\), and none is in common"
    ):
        load_finetuning_data(options, make_small_config(), holds_out=False)


def test_undecodable_images_are_counted_over_processes_but_cached_ones_once():
    part = SimpleNamespace(num_bad=3)
    cached = SimpleNamespace(num_bad=5, pixel_values=torch.zeros(1))
    two_processes = SimpleNamespace(device="cpu", reduce=lambda own: 2 * own)
    assert count_undecodable(two_processes, part, None, cached) == 11


def test_what_depends_on_channels_and_values_is_resolved_for_the_options_file(folder, make_small_config, tmp_path):
    """Levels lie from 40 to 203; the short side of a rectangle is load_size."""
    arguments = SparseJEPATrainingArguments(str(tmp_path / "run"), use_cpu=True, report_to="none", crop="resized")
    options = DataArguments(dataset=folder, value_range=["measure"], load_size=12)
    config = make_small_config(num_channels=1, image_size=[8, 16])
    train = load_pretraining_data(options, arguments, config).train
    assert options.value_range == [40.0, 203.0] and options.image_mean == options.image_std == [0.5]
    assert train.pixel_values.shape == (12, 1, 12, 24)
    assert train.pixel_values.min() == 0 and train.pixel_values.max() == 255


def test_statistics_and_ranges_that_fit_nothing_are_refused(folder, make_small_config, tmp_path):
    arguments = SparseJEPATrainingArguments(str(tmp_path / "run"), use_cpu=True, report_to="none", max_steps=1)
    config = make_small_config(num_channels=1)
    for options, message in (
        (
            {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            r"image_mean is .*, and num_channels 1; expected one number for each",
        ),
        ({"value_range": ["0"]}, "value_range is .*; expected two finite numbers"),
        ({"value_range": ["many", "few"]}, "value_range is .*; expected two finite numbers"),
        ({"value_range": ["measure"], "streaming": True}, "a stream are read once; give two numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            load_pretraining_data(DataArguments(dataset=folder, **options), arguments, config)
