# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A whole small table: the same budget for every method, failures reported, nothing done twice."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from sparsejepa_hf.evaluation import Evaluator, ProbeSettings, evaluator, find_task, load_encoder
from sparsejepa_hf.experiments import (
    IJEPA,
    IJEPA_OPTIONS,
    SPARSEJEPA,
    Runs,
    read_record,
    reproduce,
)
from sparsejepa_hf.experiments.paper_table import render
from sparsejepa_hf.experiments.reproduction import RAW_PIXELS, UNTRAINED
from sparsejepa_hf.records import write_record


PRETRAIN = Path(__file__).parents[2] / "examples" / "pretrain.py"
METHODS = {IJEPA: IJEPA_OPTIONS, SPARSEJEPA: {}}
SETTINGS = ProbeSettings(feature_kinds=("last/mean", "last/mean+max"), low_shot=(0.5,))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Noise of three tints, named 1 to 3: 20 of each to train on, 12 to test, the first of which is also in train."""
    root, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for channel, name in enumerate("123"):
        pixels = generator.integers(0, 160, (32, 16, 16, 3), dtype=np.uint8)
        pixels[..., channel] += 90
        pixels[20] = pixels[0]
        for split, chosen in (("train", range(20)), ("test", range(20, 32))):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in chosen:
                Image.fromarray(pixels[i]).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def table(images, tmp_path_factory, runs_in_process, make_recipe):
    """The record of a table of two methods, and what made it."""
    folder = tmp_path_factory.mktemp("table")
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(make_recipe(dataset=str(images))))
    runs = Runs(recipe, [sys.executable, str(PRETRAIN)], folder / "runs", threads=1)
    arguments = (runs, METHODS, [3], [f"mine={images}", "nothing=/no/such/folder"])

    def measure():
        return reproduce(*arguments, Evaluator(folder, SETTINGS, progress=False), progress=False)

    return measure(), measure, folder


def cell(record, method, task="mine"):
    (found,) = [c for c in record["evaluations"] if (c["method"], c["task"]) == (method, task)]
    return found


def test_every_row_stands_beside_its_baselines(table):
    record = table[0]
    assert record["methods"] == [RAW_PIXELS, UNTRAINED, IJEPA, SPARSEJEPA]
    for method in record["methods"]:
        found = cell(record, method)
        assert 0 <= found["accuracy"] <= 1 and 0 <= found["knn_accuracy"] <= 1 and "low_shot_0.5" in found
        assert found["seed"] == (None if method == RAW_PIXELS else 3)


def test_test_images_that_also_occur_in_train_are_left_out(table):
    record = table[0]
    assert record["tasks"]["mine"]["num_excluded"] == 3
    assert cell(record, IJEPA)["num_test"] == 33


def test_colours_are_told_apart_by_raw_pixels(table):
    assert cell(table[0], RAW_PIXELS)["accuracy"] == 1


def test_both_methods_have_the_same_budget(table):
    ijepa, sparse = (run["options"] for run in table[0]["runs"])
    differing = {key for key in ijepa.keys() | sparse.keys() if ijepa.get(key) != sparse.get(key)}
    assert differing == {"use_grouping", "sparsity_weight", "kl_weight", "latent_residual"}


def test_a_data_set_that_is_not_there_fails_alone(table):
    record = table[0]
    for method in record["methods"]:
        assert "/no/such/folder" in cell(record, method, "nothing")["failed"]
    assert "**Failed**" in render(record)


def test_nothing_is_done_twice(table, monkeypatch):
    record, measure, _ = table

    def refuse(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr(Runs, "_start", refuse)
    monkeypatch.setattr(Evaluator, "_probe", refuse)
    again = measure()
    assert again["evaluations"] == record["evaluations"] and again["runs"] == record["runs"]


def test_a_cell_that_fails_says_why_and_is_tried_again(table, monkeypatch):
    record, measure, folder = table
    monkeypatch.setattr(evaluator, "knn_grid", lambda *args, **kwargs: 1 / 0)
    for path in (folder / "evaluations").glob("*.json"):
        path.unlink()
    failed = measure()
    assert cell(failed, SPARSEJEPA)["failed"].startswith("ZeroDivisionError")
    monkeypatch.undo()
    again = cell(measure(), SPARSEJEPA)
    for name, value in cell(record, SPARSEJEPA).items():
        assert name in ("seconds",) or again[name] == value


def test_single_kind_probes_take_the_first_kind_of_the_settings_whatever_was_extracted_before(table, images, tmp_path):
    record, _, folder = table
    encoder = load_encoder(next((folder / "runs").glob("sparsejepa*")))
    swapped = replace(SETTINGS, feature_kinds=SETTINGS.feature_kinds[::-1], low_shot=())
    task = find_task(f"mine={images}")
    cached = Evaluator(folder, swapped, progress=False).evaluate(lambda: encoder, task)
    fresh = Evaluator(tmp_path, swapped, progress=False).evaluate(lambda: encoder, task)
    assert {k: v for k, v in cached.items() if k != "seconds"} == {k: v for k, v in fresh.items() if k != "seconds"}
    assert cached["rankme"] != cell(record, SPARSEJEPA)["rankme"]


def test_duplicates_are_looked_for_in_all_of_train_whatever_part_is_probed(table, images, tmp_path):
    part = Evaluator(tmp_path, replace(SETTINGS, max_train_examples=12), progress=False)
    assert part.describe(find_task(f"mine={images}"))["num_excluded"] == 3


def test_a_damaged_checkpoint_fails_its_cell_alone(table, images, tmp_path):
    _, _, folder = table
    shutil.copytree(next((folder / "runs").glob("sparsejepa*")), tmp_path / "damaged")
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    small = Evaluator(tmp_path, SETTINGS, progress=False)
    assert "failed" in small.evaluate(lambda: load_encoder(tmp_path / "damaged"), find_task(f"mine={images}"))


def test_a_record_is_read_as_it_was_written_and_names_no_folder(table, tmp_path):
    record, _, folder = table
    kept = {**record, "evaluations": [c for c in record["evaluations"] if c["task"] == "mine"]}
    write_record(kept, tmp_path / "results" / "table.json")
    text = (tmp_path / "results" / "table.json").read_text()
    assert str(folder) not in text
    assert read_record(tmp_path / "results" / "table.json") == json.loads(text)
    with pytest.raises(ValueError, match="no results file"):
        read_record(tmp_path / "none.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="no runs and evaluations"):
        read_record(tmp_path / "other.json")


@pytest.mark.parametrize(
    "given", [{"methods": {}}, {"seeds": [0, 0]}, {"tasks": []}, {"tasks": ["mine=/a", "mine=/b"]}]
)
def test_an_empty_table_is_refused(table, given):
    arguments = {"methods": METHODS, "seeds": [0], "tasks": ["cifar100"]} | given
    with pytest.raises(ValueError, match="expected at least one"):
        reproduce(None, evaluator=Evaluator("nowhere", SETTINGS), **arguments)


@pytest.mark.parametrize("given", [{"feature_kinds": ()}, {"low_shot": (1.5,)}])
def test_impossible_settings_are_refused(given):
    with pytest.raises(ValueError, match="expected"):
        ProbeSettings(**given)


def test_counts_are_scored_by_exact_matches_and_errors(images, tmp_path):
    small = Evaluator(tmp_path, SETTINGS, progress=False)
    found = small.evaluate(lambda: load_encoder("pixels"), find_task(f"mine:count={images}"))
    assert {"accuracy", "rounded_accuracy", "r2", "mae"} <= found.keys()
    assert found["accuracy"] == 1 and found["mae"] < 0.5
