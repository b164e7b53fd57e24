# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The synthetic scenes: what the columns say is what the pixels show."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsejepa_hf.data import build_scenes, min_visible_pixels, render_scene
from sparsejepa_hf.data.scenes import COLORS, LABELS, PALETTE, SHAPES


@pytest.fixture(scope="module")
def scenes():
    return build_scenes(600, seed=5)


@pytest.fixture(scope="module")
def many_scenes():
    return build_scenes(4096, seed=1).select_columns(["count", "label", "objects"])


def thing(shape="circle", color="red", size=6.0, x=16.0, y=16.0) -> dict:
    return {"shape": shape, "color": color, "size": size, "x": x, "y": y}


def centres(size: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:size, 0:size] + 0.5
    return x, y


@given(x=st.floats(4, 28, width=32), y=st.floats(4, 28, width=32), radius=st.floats(2, 8, width=32))
@settings(max_examples=40, deadline=None)
def test_a_circles_mask_is_the_disc_at_pixel_centres(x, y, radius):
    mask = render_scene([thing(size=radius, x=x, y=y)], 32, (0.5, 0.5, 0.5))[1]
    across, down = centres(32)
    distance = np.hypot(across - x, down - y)
    is_clear = np.abs(distance - radius) > 1e-4
    np.testing.assert_array_equal(mask[is_clear] == 1, (distance <= radius)[is_clear])


def test_a_squares_mask_and_a_triangles_and_a_crosses():
    across, down = centres(64)
    across, down = across - 31.7, down - 30.2
    half = 12 * math.sqrt(math.pi) / 2
    square = (np.abs(across) <= half) & (np.abs(down) <= half)
    np.testing.assert_array_equal(render_scene([thing("square", size=12, x=31.7, y=30.2)], 64, (0,) * 3)[1], square)
    # An equilateral triangle with one corner up: three half planes at the inradius from the centre.
    inradius = 12 * math.sqrt(4 * math.pi / (3 * math.sqrt(3))) / 2
    normals = [(0, 1), (math.sqrt(3) / 2, -0.5), (-math.sqrt(3) / 2, -0.5)]
    triangle = np.all([a * across + b * down <= inradius for a, b in normals], axis=0)
    got = render_scene([thing("triangle", size=12, x=31.7, y=30.2)], 64, (0,) * 3)[1]
    np.testing.assert_array_equal(got, triangle)
    cross = render_scene([thing("cross", size=12, x=32, y=32)], 64, (0,) * 3)[1]
    np.testing.assert_array_equal(cross, np.rot90(cross))
    assert cross[32, 32] == 1 and cross[20, 20] == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_all_shapes_of_one_size_have_the_same_area(shape):
    mask = render_scene([thing(shape, size=60, x=128, y=128)], 256, (0.5, 0.5, 0.5))[1]
    assert mask.sum() == pytest.approx(math.pi * 60**2, rel=0.015)


def test_later_objects_lie_on_top():
    below, above = thing("square", "red", 8), thing("circle", "blue", 4)
    image, mask = render_scene([below, above], 32, (1.0, 1.0, 1.0))
    assert set(np.unique(mask)) == {0, 1, 2} and mask[16, 16] == 2
    assert tuple(image[16, 16]) == PALETTE["blue"] and tuple(image[10, 10]) == PALETTE["red"]
    assert tuple(image[0, 0]) == (255, 255, 255)
    hidden = render_scene([above, below], 32, (1.0, 1.0, 1.0))[1]
    assert set(np.unique(hidden)) == {0, 2}


def test_edges_are_antialiased_by_the_area_covered():
    image, _ = render_scene([thing("circle", "red", 9.3)], 32, (1.0, 1.0, 1.0))
    red = np.array(PALETTE["red"], dtype=np.float64)
    covered = ((255 - image.astype(np.float64)) / (255 - red)).mean(axis=2)
    assert covered.sum() == pytest.approx(math.pi * 9.3**2, rel=0.005)
    assert ((covered > 0.1) & (covered < 0.9)).sum() > 20


def test_the_background_may_vary_over_the_image():
    background = np.linspace(0, 1, 32 * 32 * 3).reshape(32, 32, 3)
    image, mask = render_scene([], 32, background)
    np.testing.assert_allclose(image / 255, background, atol=0.5 / 255 + 1e-6)
    assert not mask.any()


def test_counts_masks_and_visible_pixels_agree(scenes):
    for example in scenes:
        mask = np.asarray(example["mask"])
        ids, sizes = np.unique(mask[mask > 0], return_counts=True)
        assert ids.tolist() == list(range(1, example["count"] + 1)) and len(example["objects"]) == example["count"]
        assert sizes.tolist() == [item["visible_pixels"] for item in example["objects"]]
        assert sizes.min() >= min_visible_pixels(32) == 12


def test_masks_and_images_are_rendered_from_the_listed_factors(scenes):
    for example in scenes.select(range(100)):
        image, mask = render_scene(example["objects"], 32, (0.5, 0.5, 0.5))
        np.testing.assert_array_equal(mask, np.asarray(example["mask"]))
        inner = mask > 0
        for shift, axis in ((1, 0), (-1, 0), (1, 1), (-1, 1)):
            inner &= np.roll(mask, shift, axis) == mask
        difference = np.abs(np.asarray(example["image"]).astype(int) - image.astype(int))[inner]
        assert (difference <= 6).mean() > 0.95


def test_inside_an_object_the_nearest_palette_colour_is_the_listed_one(scenes):
    palette = np.array([PALETTE[color] for color in COLORS], dtype=np.float64)
    hits = total = 0
    for example in scenes:
        image, mask = np.asarray(example["image"], np.float64), np.asarray(example["mask"])
        for number, item in enumerate(example["objects"], 1):
            median = np.median(image[mask == number], axis=0)
            hits += COLORS[np.linalg.norm(palette - median, axis=1).argmin()] == item["color"]
            total += 1
    assert hits >= 0.995 * total


def test_the_label_is_colour_and_shape_of_the_object_seen_most(scenes):
    assert scenes.features["label"].names == list(LABELS) and len(set(LABELS)) == 24
    for example in scenes.select_columns(["label", "objects"]):
        largest = max(example["objects"], key=lambda item: item["visible_pixels"])
        assert LABELS[example["label"]] == f"{largest['color']} {largest['shape']}"


def test_a_scene_depends_only_on_its_index_seed_and_split(scenes):
    again, longer = build_scenes(30, seed=5), build_scenes(400, seed=5)
    for index in (0, 7, 29):
        plain = scenes.with_format(None)[index]
        for other in (again, longer):
            assert np.array_equal(np.asarray(other[index]["image"]), np.asarray(plain["image"]))
            assert other[index]["objects"] == plain["objects"]
    block_border = build_scenes(258, seed=5)[257]
    assert np.array_equal(np.asarray(block_border["image"]), np.asarray(scenes[257]["image"]))


def test_seeds_and_splits_differ():
    def first(**options):
        return [item["x"] for example in build_scenes(8, **options)["objects"] for item in example]

    variants = [first(), first(seed=1), first(split="test"), first(split="validation")]
    assert len({tuple(values) for values in variants}) == 4


def test_factors_are_close_to_uniform_and_independent(many_scenes):
    counts = np.bincount(many_scenes["count"], minlength=5)[1:] / len(many_scenes)
    assert np.abs(counts - 0.25).max() < 5 * math.sqrt(0.25 * 0.75 / len(many_scenes))
    items = [item for example in many_scenes["objects"] for item in example]
    colors = np.array([COLORS.index(item["color"]) for item in items])
    shapes = np.array([SHAPES.index(item["shape"]) for item in items])
    # The rejection rule knows nothing of colours, so these stay exactly uniform and independent.
    table = np.zeros((6, 4))
    np.add.at(table, (colors, shapes), 1)
    rows = table.sum(axis=1) / len(items)
    assert np.abs(rows - 1 / 6).max() < 5 * math.sqrt(5 / 36 / len(items))
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / len(items)
    assert ((table - expected) ** 2 / expected).sum() < 40
    assert np.abs(table.sum(axis=0) / len(items) - 0.25).max() < 0.03
    x = np.array([item["x"] for item in items])
    size = np.array([item["size"] for item in items])
    assert 6.4 <= x.min() and x.max() <= 25.6 and 5.12 <= size.min() and size.max() <= 9.6
    assert abs(x.mean() - 16) < 0.3 and abs(size.mean() - 7.36) < 0.15
    assert abs(np.corrcoef(x, colors)[0, 1]) < 0.05


def test_other_sizes_and_counts():
    scenes = build_scenes(20, image_size=64, min_objects=3, max_objects=5)
    assert set(scenes["count"]) <= {3, 4, 5} and scenes[0]["image"].size == scenes[0]["mask"].size == (64, 64)
    smallest = min(item["visible_pixels"] for example in scenes["objects"] for item in example)
    assert smallest >= min_visible_pixels(64) == 48


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_examples": 0}, "num_examples is 0"),
        ({"image_size": 8}, "image_size is 8"),
        ({"min_objects": 3, "max_objects": 2}, "1 <= min <= max <= 8"),
        ({"split": "holdout"}, "no split 'holdout'"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_scenes(**options)


def test_unknown_shapes_and_colours_are_refused():
    with pytest.raises(ValueError, match="expected one of: circle"):
        render_scene([thing("star")], 32, (0, 0, 0))
    with pytest.raises(ValueError, match="expected one of: red"):
        render_scene([thing(color="mauve")], 32, (0, 0, 0))
