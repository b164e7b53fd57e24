# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""An encoder's figures on a task are kept once made, tried again where they failed, and the same with a cache."""

from dataclasses import replace

import datasets
import numpy as np
import pytest

from sparsejepa_hf import SparseJEPAModel
from sparsejepa_hf.data import load_image_dataset
from sparsejepa_hf.evaluation import Evaluator, ProbeSettings, evaluator, find_task, load_encoder


SETTINGS = ProbeSettings(feature_kinds=("last/mean", "last/mean+max"), low_shot=(0.5,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Noise of three tints, of the classes 1 to 3; one test image of each is also in train."""
    generator, path = np.random.default_rng(0), tmp_path_factory.mktemp("task") / "data"
    rows = {"train": [], "test": []}
    for channel in range(3):
        pixels = generator.integers(0, 160, (32, 16, 16, 3), dtype=np.uint8)
        pixels[..., channel] += 90
        pixels[20] = pixels[0]
        for i, image in enumerate(pixels):
            rows["train" if i < 20 else "test"].append({"image": image, "label": channel})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["1", "2", "3"])})
    splits = {split: datasets.Dataset.from_list(examples, features=features) for split, examples in rows.items()}
    datasets.DatasetDict(splits).save_to_disk(path)
    return path


@pytest.fixture(scope="module")
def encoder(make_model):
    return load_encoder(make_model(SparseJEPAModel, image_size=16))


def figures(found):
    return {name: value for name, value in found.items() if name not in ("seconds", "provenance")}


def test_what_is_finished_is_kept_and_what_failed_says_why_and_is_tried_again(folder, encoder, tmp_path, monkeypatch):
    task = find_task(f"mine={folder}")

    def evaluate():
        return Evaluator(tmp_path, SETTINGS, progress=False).evaluate(lambda: encoder, task)

    with monkeypatch.context() as patch:
        patch.setattr(evaluator, "knn_grid", lambda *args, **kwargs: 1 / 0)
        assert evaluate()["failed"].startswith("ZeroDivisionError")
    found = evaluate()
    assert {"accuracy", "knn_accuracy", "validation_accuracy", "low_shot_0.5", "rankme"} <= found.keys()
    assert (found["num_train"], found["num_test"]) == (60, 33), "test images that also occur in train are left out"
    monkeypatch.setattr(Evaluator, "_probe", lambda *args, **kwargs: pytest.fail("measured again"))
    assert evaluate() == found


def test_single_kind_probes_take_the_first_kind_of_the_settings_whatever_was_extracted_before(
    folder, encoder, tmp_path
):
    task = find_task(f"mine={folder}")
    swapped = replace(SETTINGS, feature_kinds=SETTINGS.feature_kinds[::-1], low_shot=())
    other = Evaluator(tmp_path / "a", SETTINGS, progress=False).evaluate(lambda: encoder, task)
    cached, fresh = (
        Evaluator(tmp_path / name, swapped, progress=False).evaluate(lambda: encoder, task) for name in "ab"
    )
    assert figures(cached) == figures(fresh)
    assert cached["rankme"] != other["rankme"]


def test_every_kind_s_accuracy_is_kept_beside_that_of_the_chosen_one(folder, encoder, tmp_path):
    task = find_task(f"mine={folder}")
    both = Evaluator(tmp_path, SETTINGS, progress=False).evaluate(lambda: encoder, task)
    for kind in SETTINGS.feature_kinds:
        alone = replace(SETTINGS, feature_kinds=(kind,))
        found = Evaluator(tmp_path, alone, progress=False).evaluate(lambda: encoder, task)
        assert both[f"accuracy_{kind}"] == found["accuracy"] == found[f"accuracy_{kind}"]
    assert both["accuracy"] == both[f"accuracy_{both['chosen']['kind']}"]


def test_an_encoder_that_cannot_be_loaded_fails_its_evaluation_alone(folder, tmp_path):
    small = Evaluator(tmp_path, SETTINGS, progress=False)
    assert "failed" in small.evaluate(lambda: load_encoder(tmp_path / "nothing"), find_task(f"mine={folder}"))


def test_duplicates_are_looked_for_in_all_of_train_whatever_part_is_probed(folder, tmp_path):
    part = Evaluator(tmp_path, replace(SETTINGS, max_train_examples=12), progress=False)
    assert part.describe(find_task(f"mine={folder}"))["num_excluded"] == 3


def test_counts_are_scored_by_exact_matches_and_errors(folder, tmp_path):
    small = Evaluator(tmp_path, SETTINGS, progress=False)
    found = small.evaluate(lambda: load_encoder("pixels"), find_task(f"mine:count={folder}"))
    assert {"accuracy", "rounded_accuracy", "r2", "mae"} <= found.keys()
    assert found["accuracy"] == 1 and found["mae"] < 0.5


@pytest.mark.parametrize("given", [{"feature_kinds": ()}, {"low_shot": (1.5,)}])
def test_impossible_settings_are_refused(given):
    with pytest.raises(ValueError, match="expected"):
        ProbeSettings(**given)


def test_duplicates_are_looked_for_in_no_file_that_rows_may_not_name(tmp_path):
    (tmp_path / "own").mkdir()
    datasets.Dataset.from_dict({"pixels": [[0]]}).to_parquet(tmp_path / "outside.png")
    image = {"bytes": None, "path": str(tmp_path / "outside.png")}
    rows = datasets.Dataset.from_dict({"image": [image, image, {"bytes": b"13 bands", "path": None}, None]})
    rows.to_parquet(tmp_path / "own" / "train.parquet")
    dataset = load_image_dataset(tmp_path / "own", image_column="image", cache_dir=tmp_path / "cache")
    first, second, bands, missing = evaluator._pixel_hashes(dataset)
    assert len({first, second, bands, missing}) == 4, "those that cannot be read equal none"
    assert evaluator._pixel_hashes(dataset)[2] == bands
