# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""One pass over a data set: as image by image, rows that belong together, and what is missing said."""

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessor

from sparsejepa_hf import SparseJEPAForPreTraining, SparseJEPAVisionModel
from sparsejepa_hf.data import UndecodableImageError, build_scenes, load_image_dataset
from sparsejepa_hf.evaluation import load_encoder
from sparsejepa_hf.interpret import EXTRA_COLUMNS, NotMeasurable, collect_patches, group_activations


@pytest.fixture(scope="module")
def scenes():
    return build_scenes(6, seed=1)


@pytest.fixture(scope="module")
def checkpoint(make_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    make_model(SparseJEPAForPreTraining).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.4] * 3, image_std=[0.3] * 3).save_pretrained(
        folder
    )
    return folder


def test_the_pass_gives_what_single_images_give(checkpoint, scenes):
    encoder = load_encoder(checkpoint)
    record = collect_patches(encoder, scenes, progress=False)
    assert len(record) == 6 and record.grid == (8, 8) and record.aspect == 1
    image = torch.tensor(record.pixel_values[4:5])
    np.testing.assert_array_equal(image[0], np.asarray(scenes[4]["image"]).transpose(2, 0, 1))
    with torch.no_grad():
        maps = group_activations(encoder.module, encoder.preprocess(image))
        features = encoder.module(encoder.preprocess(image)).last_hidden_state
        latents, _ = encoder.module.encode_latents(encoder.preprocess(image))
    for found, expected in ((record.maps, maps), (record.features, features), (record.latents, latents)):
        np.testing.assert_allclose(found[4], expected[0], rtol=1e-3, atol=1e-4)
    assert record.label_names[record.labels[4]] == scenes.features["label"].int2str(scenes[4]["label"])
    np.testing.assert_array_equal(record.masks[4], np.asarray(scenes[4]["mask"]))
    assert record.table["objects"][4] == scenes["objects"][4]


def test_rows_of_damaged_images_are_left_out_everywhere(checkpoint, scenes):
    raw = scenes.cast_column("image", datasets.Image(decode=False)).to_list()
    raw[2]["image"] = {"bytes": b"no image", "path": None}
    damaged = datasets.Dataset.from_list(raw, features=scenes.features)
    # One in six is more than is allowed, so that it takes many more good ones.
    many = datasets.concatenate_datasets([damaged, *[scenes] * 17])
    record = collect_patches(load_encoder(checkpoint), many, progress=False)
    assert len(record) == len(record.masks) == len(record.table) == len(record.labels) == len(many) - 1
    np.testing.assert_array_equal(record.masks[2], np.asarray(scenes[3]["mask"]))
    assert record.table["objects"][2] == scenes["objects"][3]


def test_masks_take_the_nearest_object_when_images_shrink(checkpoint):
    large = build_scenes(3, image_size=64, seed=2)
    record = collect_patches(load_encoder(checkpoint), large, progress=False)
    assert record.masks.shape == (3, 32, 32)
    for row, mask in zip(large, record.masks, strict=True):
        full = np.asarray(row["mask"])
        assert set(np.unique(mask)) <= set(np.unique(full))
        # Each pixel is one of the four that it stands for.
        blocks = full.reshape(32, 2, 32, 2).transpose(0, 2, 1, 3).reshape(32, 32, 4)
        assert (blocks == mask[..., None]).any(axis=-1).all()


def test_what_a_data_set_lacks_is_said(checkpoint, scenes):
    record = collect_patches(load_encoder(checkpoint), scenes.select_columns(["image"]), progress=False)
    assert record.labels is None and record.masks is None and record.label_names == ()
    with pytest.raises(NotMeasurable, match="no labels"):
        record.require_labels()
    with pytest.raises(NotMeasurable, match="no column `mask`"):
        record.require_masks()
    partly = datasets.Dataset.from_list(
        [row | {"label": None if place == 1 else row["label"]} for place, row in enumerate(scenes.to_list())],
        features=scenes.features,
    )
    with pytest.raises(NotMeasurable, match="1 of the 6 images have no label"):
        collect_patches(load_encoder(checkpoint), partly, progress=False).require_labels()


def test_a_mask_in_colour_is_refused(checkpoint, scenes):
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, format="PNG")
    colour = scenes.remove_columns("mask").add_column("mask", [{"bytes": buffer.getvalue(), "path": None}] * 6)
    with pytest.raises(NotMeasurable, match="mask has the mode RGB"):
        collect_patches(load_encoder(checkpoint), colour, progress=False)


def test_an_i_jepa_gives_features_alone(make_model, tmp_path, scenes):
    make_model(SparseJEPAForPreTraining, use_grouping=False).save_pretrained(tmp_path)
    record = collect_patches(load_encoder(tmp_path), scenes, progress=False)
    assert record.features.shape == (6, 64, 32) and record.maps is None and record.grid == (8, 8)
    with pytest.raises(NotMeasurable, match="I-JEPA"):
        record.require_groups()


def test_encoders_without_groups_and_broken_ones_are_refused(make_model, make_config, tmp_path, scenes):
    with pytest.raises(NotMeasurable, match="Raw pixels have no groups"):
        collect_patches(load_encoder("pixels"), scenes)
    SparseJEPAVisionModel(make_config()).save_pretrained(tmp_path)
    with pytest.raises(NotMeasurable, match="has no predictor"):
        collect_patches(load_encoder(tmp_path), scenes)
    broken = make_model(SparseJEPAForPreTraining)
    with torch.no_grad():
        broken.sparsejepa.target_encoder.layernorm.weight.fill_(torch.nan)
    with pytest.raises((NotMeasurable, ValueError), match="NaN"):
        collect_patches(load_encoder(broken), scenes, progress=False)


def test_groups_that_are_not_finite_leave_the_features(make_model, scenes):
    model = make_model(SparseJEPAForPreTraining)
    with torch.no_grad():
        model.sparsejepa.predictor.grouping.group_weight[0, 0, 0] = torch.nan
    record = collect_patches(load_encoder(model), scenes, progress=False)
    assert record.maps is None and record.latents is None and len(record.features) == 6
    with pytest.raises(NotMeasurable, match="group_weight holds a NaN"):
        record.require_groups()


def test_extra_columns_are_kept_where_they_are(scenes):
    kept = load_image_dataset(scenes, extra_columns=EXTRA_COLUMNS)
    assert set(kept.column_names) == {"image", "label", "mask", "objects", "count"}
    assert set(load_image_dataset(scenes).column_names) == {"image", "label"}


def test_masks_are_no_files_that_the_images_beside_them_may_not_name(checkpoint, scenes, tmp_path):
    outside = tmp_path / "outside.png"
    Image.new("L", (32, 32)).save(outside)
    named = scenes.remove_columns("mask").add_column("mask", [{"bytes": None, "path": str(outside)}] * 6)
    (tmp_path / "own").mkdir()
    named.select_columns(["image", "mask"]).to_parquet(tmp_path / "own" / "train.parquet")
    dataset = load_image_dataset(tmp_path / "own", extra_columns=("mask",), cache_dir=tmp_path / "cache")
    with pytest.raises(UndecodableImageError, match="a file outside the data set's folder"):
        collect_patches(load_encoder(checkpoint), dataset, progress=False)
    assert collect_patches(load_encoder(checkpoint), named, progress=False).masks.max() == 0
