# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The synthetic scenes: what the columns say is what the pixels show."""

import math

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsejepa_hf.data import build_scenes, min_visible_pixels, render_scene, texture_values, textures
from sparsejepa_hf.data.scenes import COLORS, LABELS, PALETTE, SHAPES
from sparsejepa_hf.data.textures import TEXTURES


@pytest.fixture(scope="module")
def scenes():
    return build_scenes(600, seed=5)


@pytest.fixture(scope="module")
def many_scenes():
    return build_scenes(4096, seed=1).select_columns(["count", "label", "objects"])


@pytest.fixture(scope="module")
def textured():
    return build_scenes(2048, style="textured", seed=2).with_format(None)


@pytest.fixture(scope="module")
def objects(textured) -> dict[str, np.ndarray]:
    """Factors of the one object of each textured scene."""
    rows = [scene[0] for scene in textured["objects"]]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


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
        ({"style": "striped"}, "style is 'striped'; expected one of: 'plain', 'textured'"),
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


def test_plain_scenes_are_what_they_always_were():
    """Trained checkpoints and published numbers rest on them."""
    scenes = build_scenes(8)
    assert scenes["label"][:] == [16, 13, 22, 16, 23, 21, 16, 11] and scenes["count"][:] == [2, 4, 4, 4, 3, 2, 3, 4]
    first = scenes[0]["objects"][0]
    assert (first["shape"], first["color"], first["visible_pixels"]) == ("circle", "blue", 105)
    assert [first[name] for name in ("size", "x", "y")] == pytest.approx([5.766579, 24.435452, 18.900152], abs=1e-5)
    means = [153.861, 105.541, 123.979, 129.832, 107.536, 137.616, 134.086, 141.984]
    assert [np.asarray(image).mean() for image in scenes["image"]] == pytest.approx(means, abs=0.01)
    named = build_scenes(8, style="plain", max_objects=4)
    assert named[3] == scenes[3]


SURFACES = st.fixed_dictionaries(
    {
        "period": st.floats(2, 16),
        "tilt": st.floats(-20, 20),
        "phase_u": st.floats(0, 6.3),
        "phase_v": st.floats(0, 6.3),
    }
)
# The angle at which stripes are seen to rise, anticlockwise from level.
RISES = {"level stripes": 0, "upright stripes": 90, "rising stripes": 45, "falling stripes": -45}
ANGLES = {"checks": 0, "diamonds": 45, "dots": 0, "grid": 0}


class TestTextures:
    @pytest.mark.parametrize("texture", RISES)
    @given(surface=SURFACES, x=st.floats(0, 32), y=st.floats(0, 32))
    @settings(max_examples=25, deadline=None)
    def test_stripes_run_along_their_angle_and_repeat_after_a_period(self, texture, surface, x, y):
        angle = math.radians(RISES[texture] - surface["tilt"])
        right, up, period = math.cos(angle), math.sin(angle), surface["period"]
        here = texture_values(texture, x, y, surface)
        # y runs down, so up is less of it.
        assert texture_values(texture, x + 5 * right, y - 5 * up, surface) == pytest.approx(here, abs=1e-6)
        for periods, sign in ((1, 1), (0.5, -1)):
            across, down = x + periods * period * up, y + periods * period * right
            assert texture_values(texture, across, down, surface) == pytest.approx(sign * here, abs=1e-6)

    @pytest.mark.parametrize("texture", ANGLES)
    @given(surface=SURFACES, x=st.floats(0, 32), y=st.floats(0, 32))
    @settings(max_examples=25, deadline=None)
    def test_the_others_repeat_along_both_axes_and_only_checks_change_sign_on_the_way(self, texture, surface, x, y):
        angle, period = math.radians(ANGLES[texture] + surface["tilt"]), surface["period"]
        axes = [(math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))]
        here = texture_values(texture, x, y, surface)
        for right, down in axes:
            moved = texture_values(texture, x + period * right, y + period * down, surface)
            assert moved == pytest.approx(here, abs=1e-6)
            half = texture_values(texture, x + period / 2 * right, y + period / 2 * down, surface)
            if texture in ("checks", "diamonds"):
                assert half == pytest.approx(-here, abs=1e-6)

    def test_level_and_upright_stripes_are_constant_along_rows_and_columns(self):
        x, y = centres(16)
        surface = {"period": 5.0, "tilt": 0.0, "phase_u": 1.0, "phase_v": 0.0}
        level, upright = (texture_values(f"{name} stripes", x, y, surface) for name in ("level", "upright"))
        assert np.ptp(level, axis=1).max() < 1e-9 and np.ptp(level, axis=0).min() > 1
        assert np.ptp(upright, axis=0).max() < 1e-9 and np.ptp(upright, axis=1).min() > 1

    def test_dots_are_islands_of_one_colour_and_a_grid_its_lines(self):
        x, y = centres(64)
        surface = {"period": 8.0, "tilt": 0.0, "phase_u": 0.0, "phase_v": 0.0}
        dots, grid = (texture_values(texture, x, y, surface) > 0 for texture in ("dots", "grid"))
        # One to a cell, at the cells' corners; the border cuts the outer ones.
        assert scipy.ndimage.label(dots[4:60, 4:60])[1] == 7 * 7
        assert scipy.ndimage.label(grid)[1] == 1 and scipy.ndimage.label(~grid)[1] == 8 * 8


class TestTexturedScenes:
    def test_without_grain_an_object_is_what_its_factors_say(self, monkeypatch):
        monkeypatch.setattr(textures, "GRAIN", 0)
        scenes = build_scenes(40, style="textured", seed=4)
        x, y = centres(32)
        for example in scenes:
            (item,), background = example["objects"], example["background"]
            inner = scipy.ndimage.binary_erosion(np.asarray(example["mask"]) == 1, np.ones((3, 3)))
            b = background["light_angle"]
            values = texture_values(item["texture"], x, y, item)
            light = 1 + background["light"] * ((x / 32 - 0.5) * math.cos(b) + (y / 32 - 0.5) * math.sin(b))
            for channel, name in enumerate(("red", "green", "blue")):
                expected = light * (item[name] + item["contrast"] * values)
                got = np.asarray(example["image"], np.float64)[..., channel] / 255
                np.testing.assert_allclose(got[inner], np.clip(expected, 0, 1)[inner], atol=0.6 / 255)

    def test_without_grain_and_clutter_so_is_the_background(self, monkeypatch):
        monkeypatch.setattr(textures, "GRAIN", 0)
        monkeypatch.setattr(textures, "_CLUTTER", 0)
        for example in build_scenes(20, style="textured"):
            background, x, y = example["background"], *centres(32)
            b = background["light_angle"]
            light = 1 + background["light"] * ((x / 32 - 0.5) * math.cos(b) + (y / 32 - 0.5) * math.sin(b))
            outside = np.hypot(x - example["objects"][0]["x"], y - example["objects"][0]["y"]) > 30
            expected = light[..., None] * [background[name] for name in ("red", "green", "blue")]
            np.testing.assert_allclose(np.asarray(example["image"])[outside] / 255, expected[outside], atol=0.6 / 255)

    def test_grain_has_mean_zero_and_the_stated_width(self, monkeypatch):
        noisy = build_scenes(60, style="textured")
        monkeypatch.setattr(textures, "GRAIN", 0)
        clean = build_scenes(60, style="textured")
        assert noisy["objects"][:] == clean["objects"][:] and noisy["background"][:] == clean["background"][:]
        pairs = [[np.asarray(example["image"], np.float64) / 255 for example in scenes] for scenes in (noisy, clean)]
        grain, clean_pixels = np.subtract(*pairs), np.array(pairs[1])
        # Where nothing is cut off at black or white.
        grain = grain[(clean_pixels > 0.42) & (clean_pixels < 0.58)]
        assert abs(grain.mean()) < 0.005 and grain.std() == pytest.approx(0.4 / math.sqrt(3), rel=0.02)
        assert np.abs(grain).max() <= 0.4 + 1 / 255

    def test_masks_are_those_of_the_listed_shapes(self, textured):
        for example in textured.select(range(60)):
            plain = [{**item, "color": "red"} for item in example["objects"]]
            np.testing.assert_array_equal(np.asarray(example["mask"]), render_scene(plain, 32, (0, 0, 0))[1])
            assert (np.asarray(example["mask"]) == 1).sum() == example["objects"][0]["visible_pixels"]

    def test_the_label_is_the_texture_of_the_object_seen_most(self):
        scenes = build_scenes(100, style="textured", min_objects=2, max_objects=4)
        assert scenes.features["label"].names == list(TEXTURES) and len(set(TEXTURES)) == 8
        for example in scenes.select_columns(["label", "objects"]):
            largest = max(example["objects"], key=lambda item: item["visible_pixels"])
            assert TEXTURES[example["label"]] == largest["texture"]
        assert set(scenes["count"][:]) == {2, 3, 4}

    def test_nothing_else_tells_the_texture(self, textured, objects):
        """A label that colour, light or place gave away would be a label for raw pixels."""
        labels = np.array(textured["label"][:])
        assert np.abs(np.bincount(labels) / len(labels) - 1 / 8).max() < 5 * math.sqrt(7 / 64 / len(labels))
        background = {name: [row[name] for row in textured["background"]] for name in textured[0]["background"]}
        factors = {**{k: v for k, v in objects.items() if k not in ("texture", "shape")}, **background}
        for name, values in factors.items():
            values = np.asarray(values, np.float64)
            between = np.array([values[labels == label].mean() for label in range(8)])
            share = (np.bincount(labels) * (between - values.mean()) ** 2).sum() / (
                (values - values.mean()) ** 2
            ).sum()
            # There are 7 degrees of freedom: a share of 7 / 2047 by chance, and seldom four times that.
            assert share < 28 / 2047, name
        names = ("size", "x", "y", "period", "tilt", "phase_u", "phase_v", "red", "green", "blue", "contrast")
        correlations = np.corrcoef([objects[name] for name in names]) - np.eye(len(names))
        assert np.abs(correlations).max() < 0.1

    def test_factors_have_their_ranges_and_either_contrast(self, objects):
        assert 14.39 <= objects["size"].min() and objects["size"].max() <= 19.21
        assert 9.6 <= objects["x"].min() and objects["x"].max() <= 22.4
        assert 4 <= objects["period"].min() and objects["period"].max() <= 7 and np.abs(objects["tilt"]).max() <= 6
        contrast = objects["contrast"]
        assert 0.12 <= np.abs(contrast).min() and np.abs(contrast).max() <= 0.281
        assert abs((contrast > 0).mean() - 0.5) < 5 * 0.5 / math.sqrt(len(contrast))

    def test_the_mean_image_of_every_texture_is_the_same(self, textured):
        """Phase and contrast are random, so the first moments of pixels know nothing of the texture."""
        labels = np.array(textured["label"][:])
        images = np.stack([np.asarray(image, np.float64) for image in textured["image"]]) / 255
        means = np.stack([images[labels == label].mean(axis=0) for label in range(8)])
        spread = images.std(axis=0) / math.sqrt(len(labels) / 8)
        # A standard normal number each, correlated within an image: by light, colour and the sign of dots' contrast.
        assert np.abs(means - images.mean(axis=0)).mean() < 2 * spread.mean()

    def test_a_scene_depends_only_on_its_index_seed_and_split(self, textured):
        again = build_scenes(258, style="textured", seed=2)
        for index in (0, 7, 257):
            assert again[index] == textured[index]
        others = [build_scenes(2, style="textured", **options)[1] for options in ({}, {"seed": 1}, {"split": "test"})]
        assert len({example["objects"][0]["phase_u"] for example in others}) == 3

    def test_lengths_grow_with_the_image_and_shrink_with_the_crowd(self):
        large = build_scenes(20, style="textured", image_size=64, min_objects=4, max_objects=4)
        items = [item for scene in large["objects"] for item in scene]
        assert len(items) == 80 and large[0]["image"].size == (64, 64)
        assert all(0.224 * 64 <= item["size"] <= 0.301 * 64 and 8 <= item["period"] <= 14 for item in items)
