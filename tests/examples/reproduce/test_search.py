# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A search compares settings on a part of the training set, and never sees the test set."""

import json
import shutil

import pytest
import yaml
from datasets import load_from_disk

from examples.reproduce import search
from examples.reproduce.runs import Runs
from sparsejepa_hf.evaluation import Evaluator


@pytest.fixture(scope="module")
def folder(images, tmp_path_factory, runs_in_process, make_recipe):
    """Where the script is called. There is no test split."""
    folder = tmp_path_factory.mktemp("search")
    shutil.copytree(images / "train", folder / "images" / "train")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(make_recipe(dataset=str(folder / "images"), num_groups=4)))
    first = {"name": "First", "options": {"max_steps": 1}, "seeds": [0]}
    first["settings"] = {"as it is": {}, "rate": {"learning_rate": 2e-3}, "nowhere": {"train_split": "nowhere"}}
    second = {"name": "Second", "options": {"max_steps": 2}, "seeds": [0, 1], "settings": {"as it is": None}}
    text = {"recipe": "recipe.yaml", "options": {"use_grouping": False}, "rounds": [first, second]}
    (folder / "search.yaml").write_text(yaml.safe_dump(text, sort_keys=False))
    (folder / "page.md").write_text("<!-- results/found.json -->\n<!-- end -->\n")
    return folder


FLAGS = [
    "search.yaml",
    "--task",
    "mine=images",
    "--output_dir",
    "work",
    "--results",
    "found.json",
    "--into",
    "page.md",
]


@pytest.fixture(scope="module")
def found(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        search.main(FLAGS)
    return json.loads((folder / "found.json").read_text())


def test_settings_are_judged_on_a_fifth_of_train_that_no_probe_was_fitted_on(found, folder):
    parts = load_from_disk(folder / "work" / "judged_split")
    assert len(parts["test"]) == 12 and len(parts["train"]) == 48, "60 training images"
    assert len(set(parts["test"]["label"])) == 3
    pixels = {name: {image.tobytes() for image in part["image"]} for name, part in parts.items()}
    assert not pixels["train"] & pixels["test"]
    for entry in found["rounds"]:
        assert {(e["num_train"], e["num_test"]) for e in entry["evaluations"] if "failed" not in e} == {(48, 12)}


def test_every_run_stands_in_the_record_with_its_options_and_failures(found):
    first, second = found["rounds"]
    assert [run["method"] for run in first["runs"]] == ["as it is", "rate", "nowhere"]
    assert first["runs"][1]["options"]["learning_rate"] == 2e-3 and first["runs"][0]["options"]["max_steps"] == 1
    assert not first["runs"][0]["options"]["use_grouping"]
    assert "nowhere" in first["runs"][2]["failed"]
    assert [(run["seed"], run["options"]["max_steps"]) for run in second["runs"]] == [(0, 2), (1, 2)]


def test_nothing_is_done_twice(found, folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.chdir(folder)
    start = Runs._start
    monkeypatch.setattr(
        Runs, "_start", lambda self, run, wanted: start(self, run, wanted) if "nowhere" in run.method else refuse()
    )
    monkeypatch.setattr(Evaluator, "_probe", refuse)
    search.main(FLAGS)
    again = json.loads((folder / "found.json").read_text())
    assert [entry["evaluations"] for entry in again["rounds"]] == [entry["evaluations"] for entry in found["rounds"]]


def make_round(**scores):
    """Two seeds; linear and kNN both equal the score plus the seed in per cent."""
    evaluations = [
        {
            "task": "judged",
            "method": name,
            "seed": seed,
            "accuracy_last/mean": value + seed / 100,
            "knn_accuracy": value + seed / 100,
        }
        for name, value in scores.items()
        for seed in (0, 1)
    ]
    runs = [{"method": name, "seed": 0, "train_seconds": 120.0} for name in scores]
    return {
        "name": "Round",
        "options": {"num_train_epochs": 4},
        "seeds": [0, 1],
        "methods": list(scores),
        "evaluations": evaluations,
        "runs": runs,
    }


def test_the_best_setting_comes_first_and_gains_are_over_the_round_s_first():
    text = search.render({"rounds": [make_round(base=0.2, worse=0.19, better=0.23)]})
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    assert [row[0] for row in rows[2:]] == ["better", "base", "worse"]
    assert rows[2] == ["better", "23.5", "23.5", "–", "+3.0 ± 0.0", "2.0"]
    assert rows[3][4] == "–" and rows[4][4] == "-1.0 ± 0.0"
    assert "4 epochs, seeds 0, 1" in text


@pytest.mark.parametrize(
    "text, message",
    [
        ({"recipe": "a", "rounds": []}, "recipe, options and rounds"),
        ([], "recipe, options and rounds"),
        ({"recipe": "a", "options": {}, "rounds": [{"name": "x"}]}, "Round 1"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, text, message):
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(text))
    with pytest.raises(ValueError, match=message):
        search.read_search(tmp_path / "search.yaml")


def test_an_impossible_setting_is_refused_before_anything_runs(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    text = yaml.safe_load((folder / "search.yaml").read_text())
    text["rounds"][1]["settings"] = {"impossible": {"num_target_blocks": 0}}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(text))
    with pytest.raises(ValueError, match="num_target_blocks"):
        search.main([str(tmp_path / "search.yaml"), "--task", "mine=images", "--output_dir", str(tmp_path / "unused")])
    assert not (tmp_path / "unused" / "runs").exists()
