# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Disentanglement scores of constructed codes, and what groups tell of classes, where the answer is known."""

import json

import numpy as np
import pytest
from datasets import Dataset

from sparsejepa_hf.data.scenes import build_scenes
from sparsejepa_hf.interpret.disentanglement import (
    class_scores,
    class_section,
    disentanglement,
    disentanglement_section,
    group_class_information,
    mutual_information_matrix,
    scene_factors,
)
from sparsejepa_hf.interpret.measures import NotMeasurable
from sparsejepa_hf.interpret.patches import PatchRecord


N = 1500


@pytest.fixture(scope="module")
def factors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "shape": rng.choice(["circle", "cross", "square"], N),
        "count": rng.integers(1, 5, N),
        "x": rng.uniform(size=N),
        "size": rng.normal(size=N),
    }


@pytest.fixture(scope="module")
def perfect(factors) -> np.ndarray:
    """One code for each factor, standardised."""
    columns = [
        np.unique(values, return_inverse=True)[1] if name == "shape" else values for name, values in factors.items()
    ]
    codes = np.stack(columns, axis=1).astype(float)
    return (codes - codes.mean(axis=0)) / codes.std(axis=0)


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(N, 4))


def test_a_perfect_code_scores_one(perfect, factors):
    for score in vars(disentanglement(perfect, factors)).values():
        assert score == pytest.approx(1, abs=0.04)


def test_order_sign_and_scale_of_codes_do_not_matter(perfect, factors):
    changed = disentanglement(perfect[:, ::-1] * [-3, 0.1, 100, -1] + 5, factors)
    for name, score in vars(disentanglement(perfect, factors)).items():
        # Reversed bins may split a tie elsewhere.
        assert getattr(changed, name) == pytest.approx(score, abs=0.02)


def test_information_does_not_see_monotone_maps(perfect, factors):
    assert mutual_information_matrix(np.exp(perfect), factors) == pytest.approx(
        mutual_information_matrix(perfect, factors), abs=1e-12
    )


def test_noise_scores_zero(noise, factors):
    for score in vars(disentanglement(noise, factors)).values():
        assert score == pytest.approx(0, abs=0.05)


def test_noise_is_seldom_taken_for_information():
    # Modularity is 0 where the G-test finds nothing, at the level 0.01 for all codes and factors together.
    rng = np.random.default_rng(0)
    found = 0
    for n in (60, 200):
        for _ in range(30):
            known = {"kind": rng.choice(list("abcd"), n), "x": rng.uniform(size=n), "count": rng.integers(0, 7, n)}
            found += disentanglement(rng.normal(size=(n, 3)), known).modularity > 0
    assert found <= 3


def test_a_rotated_code_tells_as_much_and_parts_nothing(perfect, factors):
    # Each row of this Hadamard matrix mixes all four factors alike.
    rotation = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    scores = disentanglement(perfect @ rotation, factors)
    assert scores.informativeness > 0.6
    assert max(scores.mig, scores.sap) < 0.15 and max(scores.disentanglement, scores.completeness) < 0.35


def test_a_code_twice_over_has_no_gap_but_is_modular(perfect, factors):
    scores = disentanglement(np.hstack([perfect, perfect]), factors)
    assert scores.mig == pytest.approx(0, abs=1e-12) and scores.sap == pytest.approx(0, abs=1e-9)
    assert scores.modularity == pytest.approx(1, abs=0.02) and scores.disentanglement > 0.98
    assert scores.completeness < 0.9


def test_added_noise_codes_change_little(perfect, noise, factors):
    padded = disentanglement(np.hstack([perfect, noise]), factors)
    for name, score in vars(disentanglement(perfect, factors)).items():
        assert getattr(padded, name) == pytest.approx(score, abs=0.04)


def test_one_code_for_two_factors_is_complete_but_not_disentangled():
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 2, (2, N))
    codes = np.stack([2 * one + two, rng.normal(size=N)], axis=1)
    scores = disentanglement(codes, {"one": one, "two": two})
    assert scores.completeness > 0.95 and scores.disentanglement < 0.1 and scores.modularity < 0.05
    assert scores.mig == pytest.approx(1, abs=0.02)


def test_mutual_information_has_its_closed_form():
    # A fair coin, told rightly with probability 0.9: log 2 − H(0.9).
    truth = np.tile([0, 1], 500)
    told = truth.copy()
    told[:100] = 1 - told[:100]
    expected = np.log(2) + 0.9 * np.log(0.9) + 0.1 * np.log(0.1)
    assert mutual_information_matrix(told[:, None], {"coin": truth}) == pytest.approx(
        np.array([[expected]]), abs=1e-12
    )


def test_groups_that_are_classes_tell_all_and_noise_tells_nothing(noise):
    labels = np.arange(N) % 5
    shares, draws = group_class_information(np.column_stack([labels, labels > 1, noise]), labels, num_draws=200)
    assert shares[0] == pytest.approx(1, abs=0.02)
    # Which of {0, 1} or {2, 3, 4}: the entropy of (0.4, 0.6).
    assert shares[1] == pytest.approx(-(0.4 * np.log(0.4) + 0.6 * np.log(0.6)) / np.log(5), abs=0.01)
    assert shares[2:] == pytest.approx(0, abs=0.03)
    # The expectation that is subtracted is the mean over shuffled labels.
    assert draws.mean(axis=0) == pytest.approx(0, abs=4 * draws.std(axis=0).max() / np.sqrt(200))


def test_many_classes_and_few_images_do_not_look_informative():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 100, 300)
    shares, _ = group_class_information(rng.normal(size=(300, 8)), labels, num_draws=1)
    assert np.abs(shares).max() < 0.03


def test_factors_of_the_built_in_scenes():
    scenes = build_scenes(60, seed=1)
    factors = scene_factors(scenes)
    assert {"shape", "color", "size", "x", "y", "count"} <= set(factors)
    assert not {"label", "visible_pixels", "mask"} & set(factors)
    # The label is colour and shape of the object with the most visible pixels.
    names = scenes.features["label"].names
    assert [names[label] for label in scenes["label"]] == [
        f"{color} {shape}" for color, shape in zip(factors["color"], factors["shape"], strict=True)
    ]


def test_factors_are_whatever_varies():
    dataset = Dataset.from_dict(
        {
            "objects": [
                [{"hue": 1.0, "kind": "a", "visible_pixels": 3}, {"hue": 2.0, "kind": "b", "visible_pixels": 9}],
                [{"hue": 4.0, "kind": "b", "visible_pixels": 2}],
            ],
            "background": [{"light": 0.5, "texture": "dots"}, {"light": 0.25, "texture": "dots"}],
            "half": [1.0, float("nan")],
        }
    )
    factors = scene_factors(dataset)
    assert {name: values.tolist() for name, values in factors.items()} == {
        "hue": [2.0, 4.0],
        "background_light": [0.5, 0.25],
    }


def test_data_without_factors_is_named():
    with pytest.raises(NotMeasurable, match="no `objects`"):
        scene_factors(Dataset.from_dict({"image": [1]}))
    with pytest.raises(NotMeasurable, match="1 of 2 images have no object"):
        scene_factors(Dataset.from_dict({"objects": [[{"x": 1.0}], []]}))


def test_bad_input_is_refused(perfect, factors):
    with pytest.raises(ValueError, match="NaN"):
        disentanglement(np.where(perfect > 1, np.nan, perfect), factors)
    with pytest.raises(ValueError, match="column 1 is constant"):
        disentanglement(perfect * [1, 0, 1, 1], factors)
    with pytest.raises(ValueError, match="'x' has the shape"):
        disentanglement(perfect, {"x": np.zeros(3)})
    with pytest.raises(ValueError, match="'x' has NaN"):
        disentanglement(perfect, {"x": np.full(N, np.nan), "count": factors["count"]})
    with pytest.raises(ValueError, match="expected \\(n, c\\)"):
        disentanglement(perfect[0], factors)
    with pytest.raises(NotMeasurable, match="same value of 'one'"):
        disentanglement(perfect, {"one": np.ones(N), "count": factors["count"]})
    with pytest.raises(NotMeasurable, match="Images: 20"):
        disentanglement(perfect[:20], {name: values[:20] for name, values in factors.items()})
    with pytest.raises(NotMeasurable, match="codes that vary: 1"):
        disentanglement(perfect[:, :1], factors)
    with pytest.raises(NotMeasurable, match="known factors: 1"):
        disentanglement(perfect, {"x": factors["x"]})
    with pytest.raises(NotMeasurable, match="same value of 'label'"):
        group_class_information(perfect, np.zeros(N))
    with pytest.raises(NotMeasurable, match="Images: 1"):
        disentanglement_section(record(perfect[:1], None, Dataset.from_dict({"objects": [[{"x": 1.0}]]})))


def record(values: np.ndarray | None, labels: np.ndarray | None, table: Dataset) -> PatchRecord:
    """A record whose latents and maps are `values` (n, 4) at each of four patches."""
    maps = None if values is None else np.tile(values[:, :, None, None], (1, 1, 2, 2)).astype(np.float32)
    n = len(table) if values is None else len(values)
    return PatchRecord(
        pixel_values=np.zeros((n, 3, 4, 4), np.uint8),
        features=np.zeros((n, 4, 2), np.float32),
        latents=None if values is None else np.tile(values[:, None], (1, 4, 1)).astype(np.float32),
        maps=maps,
        labels=labels,
        label_names=(),
        masks=None,
        table=table,
    )


def test_sections_tell_factors_and_classes_from_chance(perfect, noise, factors):
    n = 400
    objects = [[{name: values[i].item() for name, values in factors.items()}] for i in range(n)]
    table, labels = Dataset.from_dict({"objects": objects}), factors["count"][:n]
    good, bad = record(perfect[:n], labels, table), record(noise[:n], labels, table)
    section = disentanglement_section(good, num_draws=6)
    assert {measure.verdict for measure in section.measures} == {"more than chance"}
    assert section.details["groups"]["best_code_of_factor"] == {"shape": 0, "count": 1, "x": 2, "size": 3}
    assert "Every score is better than chance" in section.finding
    assert "no better than chance" in disentanglement_section(bad, num_draws=20).finding
    classes = class_section(good)
    assert classes.finding.startswith("Group 1 says most") and classes.measures[0].verdict == "more than chance"
    assert "no better than chance" in class_section(bad, seed=1).finding
    for made in (section, classes):
        json.dumps(made.to_dict(), allow_nan=False)


def test_sections_say_what_is_missing(perfect):
    table = Dataset.from_dict({"image": [0] * 60})
    with pytest.raises(NotMeasurable, match="no groups"):
        disentanglement_section(record(None, None, table))
    with pytest.raises(NotMeasurable, match="no `objects`"):
        disentanglement_section(record(perfect[:60], None, table))
    with pytest.raises(NotMeasurable, match="no labels"):
        class_section(record(perfect[:60], None, table))
    with pytest.raises(NotMeasurable, match="No group's activation varies"):
        class_section(record(np.ones((60, 4)), np.arange(60), table))


def test_class_scores_are_standardised_over_shuffled_labels():
    rng = np.random.default_rng(1)
    activity, labels = rng.gamma(2.0, size=(60, 3)), np.repeat(np.arange(4), [6, 12, 18, 24])

    def means(labels):
        return [activity[labels == label].mean(axis=0) for label in range(4)]

    draws = np.array([means(rng.permutation(labels)) for _ in range(4000)])
    expected = (np.array(means(labels)) - draws.mean(axis=0)) / draws.std(axis=0)
    scores = class_scores(activity, labels)
    assert np.allclose(scores.z, expected.T, atol=0.1)
    # Scale and offset of a group's activation mean nothing, and images without a label are left out.
    more = class_scores(np.concatenate([3 * activity + 50, activity]), np.concatenate([labels, np.full(60, -1)]))
    assert np.allclose(more.z, scores.z)


def test_class_scores_of_a_group_that_is_never_active_are_zero():
    assert (class_scores(np.zeros((20, 1)), np.repeat([0, 1], 10)).z == 0).all()


def test_shuffled_labels_make_a_class_stand_out_in_one_case_of_twenty_at_most():
    rng = np.random.default_rng(0)
    activity, labels = rng.normal(size=(400, 400)), np.repeat(np.arange(20), 20)
    scores = class_scores(activity, labels)
    share = (np.abs(scores.z).max(axis=1) > scores.threshold).mean()
    # 0.05 and three standard deviations.
    assert 0.01 < share < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_small_classes_are_left_out_and_one_class_is_refused():
    labels = np.repeat([0, 1, 2], [36, 4, 5])
    assert class_scores(np.random.default_rng(0).normal(size=(45, 2)), labels).labels.tolist() == [0, 2]
    for bad in (np.zeros(20, dtype=int), np.full(20, -1), np.arange(20)):
        with pytest.raises(NotMeasurable, match="one class at most|No class has 5"):
            class_scores(np.ones((20, 1)), bad)
