# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Figures show the numbers that they are given: true maxima, true zeros, every group."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from scipy.stats import zscore

from sparsejepa_hf.interpret import GroupStructure, NotMeasurable, PatchRecord
from sparsejepa_hf.interpret import figures as drawn
from sparsejepa_hf.interpret.patches import above_place


GROUPS, LATENTS, IMAGES, SIDE = 4, 9, 30, 5


def make_structure(groups: int = GROUPS, latents: int = LATENTS, seed: int = 0) -> GroupStructure:
    """Each latent holds a group or two, and latent 2 none."""
    rng = np.random.default_rng(seed)
    held = rng.random((groups, latents)) < 0.4
    held[rng.integers(groups, size=latents), np.arange(latents)] = True
    held[:, 2] = False
    norms = np.where(held, rng.uniform(0.1, 1, held.shape), 0.0)
    return GroupStructure(norms, norms * rng.uniform(0.01, 2, held.shape))


def make_record(images: int = IMAGES, groups: int = GROUPS, classes: int = 3, seed: int = 0, **parts) -> PatchRecord:
    rng = np.random.default_rng(seed)
    arrays = {
        "pixel_values": rng.integers(0, 256, (images, 3, 4 * SIDE, 4 * SIDE), dtype=np.uint8),
        "features": rng.normal(size=(images, SIDE**2, 12)).astype(np.float32),
        "latents": rng.normal(size=(images, SIDE**2, LATENTS)).astype(np.float32),
        "maps": rng.gamma(2.0, size=(images, groups, SIDE, SIDE)).astype(np.float32),
        "labels": np.arange(images) % classes,
        "label_names": tuple(f"class {label}" for label in range(classes)),
        "masks": None,
        "table": None,
    }
    return PatchRecord(**{**arrays, **parts})


def render(figure) -> np.ndarray:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=50)
    return np.asarray(Image.open(buffer).convert("RGB"))


# --- what is shown ------------------------------------------------------------------------------------------------


def test_order_of_latents_is_a_permutation_sorted_by_group_with_the_dead_last():
    structure = make_structure()
    order = drawn.latent_order(structure)
    assert sorted(order) == list(range(LATENTS))
    assert order[-1] == 2
    assigned = structure.assignment[order]
    assert (np.diff(assigned[:-1]) >= 0).all()
    strength = structure.importance.max(axis=0)[order]
    assert all(a >= b for a, b, same in zip(strength, strength[1:], np.diff(assigned) == 0, strict=False) if same)


@pytest.mark.parametrize("for_place", [False, True])
def test_top_patches_are_the_true_maxima_one_of_each_image(for_place):
    record = make_record()
    values = record.maps[:, 1] - (record.maps[:, 1].mean(axis=0) if for_place else 0)
    found = drawn.top_patches(record, 1, 7, for_place)
    expected = np.sort(values.max(axis=(1, 2)))[::-1][:7]
    assert np.allclose([patch.activation for patch in found], expected)
    assert all(values[patch.image, patch.row, patch.column] == pytest.approx(patch.activation) for patch in found)
    assert len({patch.image for patch in found}) == 7


def test_the_same_pixels_are_not_shown_twice():
    pixels = make_record().pixel_values.copy()
    pixels[1::2] = pixels[::2]
    record = make_record(pixel_values=pixels)
    for images in ([p.image for p in drawn.top_patches(record, 0, 100)], drawn.top_images(record, 0, 100)):
        assert sorted(image // 2 for image in images) == list(range(IMAGES // 2))


def test_top_images_have_the_highest_mean():
    record = make_record()
    means = record.maps[:, 2].mean(axis=(1, 2))
    assert drawn.top_images(record, 2, 5) == np.argsort(-means)[:5].tolist()


def test_variation_of_a_sum_is_shared_out_as_it_was_made():
    rng = np.random.default_rng(0)
    place, image = (
        zscore(rng.normal(size=(1, 1, SIDE, SIDE)), axis=None),
        zscore(rng.normal(size=(50, 1, 1, 1)), axis=None),
    )
    # Two groups: 1 part place to 4 parts image; nothing but place.
    maps = np.concatenate([place + 2 * image, place + 0 * image], axis=1)
    assert np.allclose(drawn.variation_shares(maps), [[0.2, 0.8, 0], [1, 0, 0]])
    noise = rng.normal(size=(50, 3, SIDE, SIDE))
    assert np.allclose(drawn.variation_shares(noise).sum(axis=1), 1)
    assert np.isnan(drawn.variation_shares(np.ones((5, 1, SIDE, SIDE)))).all()


def test_activation_above_its_place_has_no_mean_at_any_place():
    above = above_place(make_record().maps.astype(np.float64))
    assert np.allclose(above.mean(axis=0), 0)


def test_pca_colors_tell_apart_what_features_tell_apart():
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 2, (IMAGES, SIDE**2))
    # Places differ far more than kinds do, and must not show.
    features = np.where(kinds[..., None], 1.0, -1.0) * np.eye(12)[0] + 50 * rng.normal(size=(1, SIDE**2, 12))
    record = make_record(features=features.astype(np.float32))
    colors = drawn.pca_colors(record, range(IMAGES)).reshape(IMAGES, SIDE**2, 3)
    assert colors.min() >= 0 and colors.max() <= 1
    high, low = colors[..., 0][kinds == 1], colors[..., 0][kinds == 0]
    assert high.min() > low.max() or high.max() < low.min()


# --- figures ------------------------------------------------------------------------------------------------------


def test_zeros_of_w_are_drawn_as_zeros_and_small_values_are_not():
    structure = make_structure()
    importance = np.where(structure.held, np.maximum(structure.importance, 1e-9), 0)
    structure = GroupStructure(structure.column_norms, importance)
    figure = drawn.importance_figure(structure)
    shown = figure.axes[0].images[0]
    order = drawn.latent_order(structure)
    assert (shown.get_array().mask == ~structure.held[:, order]).all()
    assert np.allclose(shown.get_array().filled(0), importance[:, order])
    alpha = shown.cmap(shown.norm(shown.get_array()))[..., 3]
    assert (alpha == structure.held[:, order]).all()
    assert "dead" in [label.get_text() for label in figure.axes[0].get_xticklabels()]


@pytest.mark.parametrize("groups", [1, 8, 70])
def test_any_number_of_groups_is_drawn_up_to_the_cap(groups):
    record, structure = make_record(images=15, groups=groups), make_structure(groups)
    shown = min(groups, drawn.MAX_GROUPS)
    figures = {
        "importance": drawn.importance_figure(structure),
        "maps": drawn.heat_map_figure(record.pixel_values[:2], record.maps[:2], ["a", "b"]),
        "patches": drawn.top_patches_figure(record, count=3),
        "images": drawn.top_images_figure(record, count=3),
        "classes": drawn.class_figure(record),
        "pca": drawn.pca_figure(record, [0, 3]),
    }
    assert figures["importance"].axes[0].images[0].get_array().shape[0] == shown
    assert len(figures["maps"].axes[0].images) == 2 * (1 + shown)
    assert len(figures["patches"].axes[0].images) == 3 * shown
    assert figures["classes"].axes[0].images[0].get_array().shape[1] == shown
    for name, figure in figures.items():
        assert np.ptp(render(figure)) > 100, name
        is_capped = groups > shown or (name == "pca" and groups > 8)
        assert (f"of {groups} groups" in figure.axes[0].get_xlabel()) == is_capped, name


def test_all_heat_maps_share_one_scale_and_show_the_maps_given():
    record = make_record()
    figure = drawn.heat_map_figure(record.pixel_values[:3], record.maps[:3])
    tiles = [tile for tile in figure.axes[0].images if tile.get_array().ndim == 2]
    assert {(tile.norm.vmin, tile.norm.vmax) for tile in tiles} == {(0, float(record.maps[:3].max()))}
    assert np.allclose([tile.get_array() for tile in tiles], record.maps[:3].reshape(-1, SIDE, SIDE))
    assert figure.axes[1].get_ylabel().startswith("Activation")


def test_the_box_stands_on_the_patch():
    record = make_record()
    axes = drawn.top_patches_figure(record, [1], 4).axes[0]
    for patch, position in zip(drawn.top_patches(record, 1, 4), range(4), strict=True):
        left, right, bottom, top = axes.images[position].get_extent()
        box = axes.patches[2 * position]
        assert (box.get_x() - left) / (right - left) == pytest.approx(patch.column / SIDE)
        assert (box.get_y() - top) / (bottom - top) == pytest.approx(patch.row / SIDE)
        assert box.get_width() / (right - left) == pytest.approx(1 / SIDE)


def test_a_hundred_classes_stay_legible():
    record = make_record(images=500, groups=64, classes=100)
    axes = drawn.class_figure(record).axes[0]
    assert len(axes.get_yticklabels()) == 60
    assert "60 of 100 classes" in axes.get_xlabel()


def test_w_of_zeros_a_single_image_and_dead_groups_can_be_drawn():
    zeros = np.zeros((3, 5))
    structure = GroupStructure(zeros, zeros)
    figure = drawn.importance_figure(structure)
    assert figure.axes[0].images[0].get_array().mask.all()
    record = make_record(images=1, groups=3, maps=np.zeros((1, 3, SIDE, SIDE), np.float32))
    for each in (
        figure,
        drawn.heat_map_figure(record.pixel_values, record.maps),
        drawn.top_patches_figure(record),
        drawn.pca_figure(record, [0]),
    ):
        render(each)


def test_names_are_not_read_as_mathematics():
    record = make_record(label_names=("$\\frac{", "a $ b", "<c> & d"))
    render(drawn.class_figure(record))


def test_what_is_missing_is_said():
    with pytest.raises(NotMeasurable, match="no groups"):
        drawn.top_patches_figure(make_record(latents=None, maps=None))
    with pytest.raises(NotMeasurable, match="no labels"):
        drawn.class_figure(make_record(labels=None))
    with pytest.raises(NotMeasurable, match="one class"):
        drawn.class_figure(make_record(classes=1))
    with pytest.raises(ValueError, match="0 maps for 0 images"):
        drawn.heat_map_figure(np.zeros((0, 3, 8, 8), np.uint8), np.zeros((0, 2, 2, 2)))
    with pytest.raises(ValueError, match="No image"):
        drawn.pca_figure(make_record(), [])


def test_an_encoder_without_groups_still_has_principal_components():
    figure = drawn.pca_figure(make_record(latents=None, maps=None), [0, 1])
    assert len(figure.axes[0].images) == 4


# --- training -----------------------------------------------------------------------------------------------------


def test_sparsity_through_training_is_what_was_logged(tmp_path):
    logged = [
        {
            "step": step,
            "zero_columns": step / 40,
            "groups_per_living_latent": 8 - step / 10,
            "dead_latents": step // 10,
        }
        for step in (10, 20, 30)
    ]
    state = {"log_history": [*logged, {"step": 30, "train_loss": 0.1}]}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    history = drawn.read_training_history(tmp_path)
    assert history == logged
    first, second, third = drawn.training_figure(history).axes
    assert first.lines[0].get_ydata() == pytest.approx([25, 50, 75])
    assert second.lines[0].get_ydata() == pytest.approx([7, 6, 5])
    assert third.lines[0].get_xydata().tolist() == [[10, 1], [20, 2], [30, 3]]


def test_a_run_that_logged_nothing_about_groups_is_named(tmp_path):
    with pytest.raises(NotMeasurable, match="There is no file"):
        drawn.read_training_history(tmp_path)
    path = tmp_path / "trainer_state.json"
    for text, message in (("{", "is not a state"), ("[]", "is not a state"), ('{"log_history": []}', "nothing about")):
        path.write_text(text)
        with pytest.raises(NotMeasurable, match=message):
            drawn.read_training_history(tmp_path)
    with pytest.raises(NotMeasurable, match="no entry"):
        drawn.training_figure([])
