# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Group maps against masks: scores against scikit-learn and closed forms, invariances, codes with known answers."""

import dataclasses

import datasets
import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from sparsejepa_hf.interpret import NotMeasurable, PatchRecord
from sparsejepa_hf.interpret.objects import (
    adjusted_rand_index,
    area_matched_iou,
    contingency,
    contrast_maps,
    live_maps,
    normalized_mutual_information,
    object_pixels,
    objects_section,
    pca_maps,
    pixel_ranks,
)


SIDE, GRID, PATCH = 16, 8, 2


def _scenes(count: int, seed: int = 0) -> np.ndarray:
    """Masks (n, 16, 16) of two squares of 6x6 pixels, object 1 left and object 2 right, at any even place."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, SIDE, SIDE), dtype=np.uint8)
    for mask in masks:
        for thing, left in ((1, 0), (2, 8)):
            row, column = 2 * rng.integers(0, 6), left + 2 * rng.integers(0, 2)
            mask[row : row + 6, column : column + 6] = thing
    return masks


def _patches(masks: np.ndarray, thing: int) -> np.ndarray:
    """Share of each patch that an object covers: float32 (n, 8, 8)."""
    shown = (masks == thing).reshape(len(masks), GRID, PATCH, GRID, PATCH)
    return shown.mean(axis=(2, 4)).astype(np.float32)


def _record(maps: np.ndarray | None, masks: np.ndarray | None, features: np.ndarray | None = None) -> PatchRecord:
    count = len(maps if maps is not None else masks)
    noise = np.random.default_rng(9).standard_normal((count, GRID * GRID, 12)).astype(np.float32)
    return PatchRecord(
        pixel_values=np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, SIDE, SIDE), np.uint8),
        features=noise if features is None else features,
        latents=None if maps is None else np.zeros((count, GRID * GRID, 3), np.float32),
        maps=maps,
        labels=None,
        label_names=(),
        masks=masks,
        table=datasets.Dataset.from_dict({"row": list(range(count))}),
    )


@pytest.fixture(scope="module")
def masks():
    return _scenes(60)


@pytest.fixture(scope="module")
def noise_maps():
    return np.random.default_rng(1).random((60, 3, GRID, GRID)).astype(np.float32)


@pytest.fixture(scope="module")
def object_maps(masks):
    """Groups that are exactly object 1, object 2 and the background."""
    return np.stack([_patches(masks, 1), _patches(masks, 2), _patches(masks, 0)], axis=1)


def test_scores_of_tables_equal_scikit_learn():
    rng = np.random.default_rng(0)
    segments, things = rng.integers(0, 4, (20, 90)), rng.integers(0, 3, (20, 90))
    things[1], segments[2] = segments[1] % 3, 0
    things[3] = segments[3] = 0
    table = contingency(segments, things)
    pairs = list(zip(segments, things, strict=True))
    np.testing.assert_allclose(adjusted_rand_index(table), [adjusted_rand_score(b, a) for a, b in pairs])
    expected = [normalized_mutual_info_score(b, a) for a, b in pairs]
    np.testing.assert_allclose(normalized_mutual_information(table), expected, atol=1e-12)


def test_ari_of_random_segments_is_zero_on_average_and_nmi_is_not():
    rng = np.random.default_rng(0)
    table = contingency(rng.integers(0, 8, (500, 60)), rng.integers(0, 4, (500, 60)))
    assert abs(adjusted_rand_index(table).mean()) < 0.005
    # What shuffled masks are for.
    assert normalized_mutual_information(table).mean() > 0.05


def test_iou_is_that_of_the_maps_highest_pixels():
    rng = np.random.default_rng(0)
    values, masks = rng.standard_normal((5, 64, 2)), rng.integers(0, 3, (5, 8, 8)).astype(np.uint8)
    objects = object_pixels(masks)
    found = area_matched_iou(pixel_ranks(values), objects)
    place = 0
    for image in range(5):
        for thing in (1, 2):
            shown = masks[image].ravel() == thing
            for group in range(2):
                threshold = np.sort(values[image, :, group])[-shown.sum()]
                segment = values[image, :, group] >= threshold
                expected = (segment & shown).sum() / (segment | shown).sum()
                assert found[place, group] == pytest.approx(expected)
            place += 1
    assert place == len(found)


def test_iou_does_not_depend_on_a_maps_scale_and_its_expectation_without_knowledge_is_known():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((400, 64, 1))
    masks = np.zeros((400, 8, 8), np.uint8)
    masks[:, :2] = 1
    objects = object_pixels(masks)
    found = area_matched_iou(pixel_ranks(values), objects)
    np.testing.assert_array_equal(found, area_matched_iou(pixel_ranks(3 * np.exp(values) - 5), objects))
    # 16 of 64 pixels at random meet 4 of an object's 16, so the IoU is near 4/28; a constant map does no better.
    assert found.mean() == pytest.approx(4 / 28, abs=0.01)
    constant = area_matched_iou(pixel_ranks(np.zeros_like(values)), objects)
    assert constant.mean() == pytest.approx(4 / 28, abs=0.06)


def test_objects_are_found_with_their_pixels_and_small_ones_left_out(masks):
    masks = masks[:3].copy()
    masks[0, 15, 15] = 7
    objects = object_pixels(masks, min_area=2)
    assert objects.areas.tolist() == [36] * 6 and objects.images.tolist() == [0, 0, 1, 1, 2, 2]
    owners = objects.masks[np.repeat(objects.images, objects.areas), objects.pixels].reshape(6, 36)
    assert (owners == np.array([1, 2] * 3)[:, None]).all()
    assert len(object_pixels(masks).areas) == 7


def test_contrast_of_maps_ignores_place_scale_and_offset_and_finds_constant_maps(noise_maps):
    place = np.random.default_rng(0).random((1, 3, GRID, GRID))
    scales = np.array([1.0, 10.0, 0.1])[:, None, None]
    np.testing.assert_allclose(contrast_maps(scales * noise_maps + place), contrast_maps(noise_maps), atol=1e-5)
    assert live_maps(noise_maps * np.array([1, 0, 1])[:, None, None] + place).tolist() == [0, 2]


def test_pca_maps_find_the_direction_of_objects_whatever_its_sign(masks):
    shown = _patches(masks, 1).reshape(60, -1, 1)
    direction = np.random.default_rng(0).standard_normal(12)
    for sign in (1, -1):
        maps = pca_maps((sign * shown * direction).astype(np.float32), 1, (GRID, GRID))
        expected = (shown - shown.mean(axis=0)).ravel()
        assert np.corrcoef(maps.ravel(), expected)[0, 1] == pytest.approx(1, abs=1e-5)


def test_groups_that_are_objects_beat_every_null(masks, object_maps, noise_maps):
    section = objects_section(_record(object_maps, masks), untrained=_record(noise_maps, masks))
    assert [measure.verdict for measure in section.measures] == ["more than chance"] * 4
    assert section.finding.startswith("Groups follow objects")
    assert section.measures[0].value > 0.9 and section.measures[1].value > 0.95
    assert section.details["num_objects"] == 120
    assert np.argmax(section.details["foreground_share_where_it_wins"]) in (0, 1)


def test_groups_that_are_noise_do_no_better_than_shuffled_masks(masks, noise_maps):
    section = objects_section(_record(noise_maps, masks))
    assert all("shuffled masks" in measure.verdict for measure in section.measures)
    assert "no better than chance" in section.finding
    for measure in section.measures:
        assert abs(measure.value - measure.nulls[0].mean) < 0.05


def test_groups_that_are_places_do_no_better_than_chance_though_objects_keep_to_places(masks):
    columns = np.broadcast_to((np.arange(GRID) < 4).astype(np.float32), (60, 1, GRID, GRID))
    maps = np.concatenate([columns, 1 - columns], axis=1)
    maps = maps + 1e-2 * np.random.default_rng(0).random((60, 2, GRID, GRID)).astype(np.float32)
    section = objects_section(_record(maps, masks))
    assert "no better than chance" in section.finding


def test_principal_components_of_the_baseline_are_a_rival(masks, object_maps):
    features = object_maps.transpose(0, 2, 3, 1).reshape(60, -1, 3)
    features = np.concatenate([features, np.zeros((60, GRID * GRID, 9), np.float32)], axis=2)
    section = objects_section(_record(object_maps, masks), baseline=_record(None, masks, features))
    assert all(
        "principal components of the baseline's features" in [null.name for null in m.nulls] for m in section.measures
    )


def test_the_same_seed_gives_the_same_section(masks, noise_maps):
    record = _record(noise_maps, masks)
    assert objects_section(record, seed=3).to_dict() == objects_section(record, seed=3).to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": None, "latents": None}, "no groups"),
        ({"masks": None}, "no column `mask`"),
        ({"masks": np.zeros((60, SIDE, SIDE), np.uint8)}, "no object of at least half a patch"),
        ({"maps": np.zeros((60, 3, GRID, GRID), np.float32)}, "W of zeros"),
    ],
)
def test_what_is_missing_is_said(masks, noise_maps, change, message):
    with pytest.raises(NotMeasurable, match=message):
        objects_section(dataclasses.replace(_record(noise_maps, masks), **change))


def test_one_image_and_other_images_are_refused(masks, noise_maps):
    with pytest.raises(NotMeasurable, match="1 image"):
        objects_section(_record(noise_maps[:1], masks[:1]))
    with pytest.raises(NotMeasurable, match="different images"):
        objects_section(_record(noise_maps, masks), untrained=_record(noise_maps[:9], masks[:9]))


def test_a_single_live_group_and_single_objects_still_give_what_can_be_had(masks, noise_maps):
    alone = np.where(masks == 1, masks, 0)
    maps = noise_maps * np.array([0, 1, 0], np.float32)[:, None, None]
    section = objects_section(_record(maps, alone))
    assert section.details["groups"] == [1]
    assert [measure.name for measure in section.measures if "ARI" in measure.name] == []
